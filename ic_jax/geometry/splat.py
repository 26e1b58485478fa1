"""Splatting depth: the nearest surface in every pixel of another view.

Every source pixel becomes a box in the target view, as large as the surface is magnified
there, and each target pixel keeps the nearest depth that a box brings (a z-buffer).
Neighbouring boxes touch, so a surface has no cracks however much it is magnified, and what
stays empty was hidden from the source.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Shaped

from ic_jax.geometry.camera import Camera, pixel_centres, project, unproject
from ic_jax.geometry.depth import RELATIVE_JUMP

# Half the side of the largest box, in target pixels: surfaces magnified more than twice
# this are not shown, for too little of them was seen.
LARGEST_HALF = 4.0
# Neighbours that part by more than this many target pixels are torn, not stretched.
LARGEST_STRETCH = 3.0
# Added to every half side, lest rounding part two boxes that touch.
OVERLAP = 1e-3


def splat_depth(
    depth: Float[Array, "h w"], keep: Bool[Array, "h w"], source: Camera, target: Camera
) -> Float[Array, "h w"]:
    """Nearest depth in every target pixel, infinite where no splat reaches."""
    height, width = depth.shape
    pixels, z = project(unproject(pixel_centres(height, width), depth, source), target)
    magnification = _focals(target) / _focals(source) * (depth / z)[..., None]
    shown = keep & (z > 0) & jnp.all(magnification <= 2 * LARGEST_HALF, axis=-1)
    half = jnp.where(shown[..., None], _half_splats(depth, pixels, magnification), 0.0)
    z = jnp.where(shown, z, jnp.inf)
    margin = 2 * LARGEST_HALF
    pixels = jnp.where(shown[..., None], pixels, 0.0)
    pixels = jnp.clip(pixels, -margin, max(height, width) + margin)
    # a box holds the pixel centres from `first` on, at most `side` of them along each axis
    first = jnp.ceil(pixels - half - 0.5).astype(jnp.int32)
    side = jnp.ceil(2 * jnp.max(half)).astype(jnp.int32)

    def splat(step, surface):
        x, y = first[..., 0] + step % side, first[..., 1] + step // side
        offset = jnp.stack([x, y], axis=-1) + 0.5 - pixels
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        value = jnp.where(inside & jnp.all(offset <= half, axis=-1), z, jnp.inf)
        index = jnp.clip(y, 0, height - 1) * width + jnp.clip(x, 0, width - 1)
        return surface.at[index].min(value, mode="promise_in_bounds")

    empty = jnp.full(height * width, jnp.inf)
    return jax.lax.fori_loop(0, side * side, splat, empty).reshape(height, width)


def _half_splats(
    depth: Float[Array, "h w"],
    pixels: Float[Array, "h w 2"],
    magnification: Float[Array, "h w 2"],
) -> Float[Array, "h w 2"]:
    """Half sides of the boxes, in target pixels, that leave no gap between neighbours."""
    limit = LARGEST_STRETCH * jnp.max(jnp.maximum(magnification, 1.0), axis=-1)
    stretch = sum(_stretch(depth, pixels, limit, axis) for axis in (0, 1))
    sides = jnp.maximum(jnp.maximum(magnification, stretch), 1.0)
    return jnp.minimum(sides / 2, LARGEST_HALF) + OVERLAP


def _stretch(
    depth: Float[Array, "h w"], pixels: Float[Array, "h w 2"], limit: Float[Array, "h w"], axis: int
) -> Float[Array, "h w 2"]:
    """How far the neighbours before and after land from a pixel, the larger of the two.

    Neighbours on another surface, or torn away, do not count.
    """
    before, after = _neighbours(depth, axis)
    joined = jnp.maximum(before, after) <= (1 + RELATIVE_JUMP) * jnp.minimum(before, after)
    step = jnp.abs(jnp.diff(pixels, axis=axis))
    joined &= jnp.max(step, axis=-1) <= jnp.minimum(*_neighbours(limit, axis))
    step = jnp.where(joined[..., None], step, 0.0)
    return jnp.maximum(*_both_sides(step, axis))


def _neighbours(
    values: Shaped[Array, "h w"], axis: int
) -> tuple[Shaped[Array, "a b"], Shaped[Array, "a b"]]:
    """The pixels before and after each boundary between pixels along an axis."""
    size = values.shape[axis]
    before = jax.lax.slice_in_dim(values, 0, size - 1, axis=axis)
    return before, jax.lax.slice_in_dim(values, 1, size, axis=axis)


def _both_sides(
    step: Float[Array, "a b 2"], axis: int
) -> tuple[Float[Array, "h w 2"], Float[Array, "h w 2"]]:
    """Steps between neighbours, seen from the one after and from the one before; 0 at the rim."""
    pads = [[(0, 0)] * 3, [(0, 0)] * 3]
    pads[0][axis], pads[1][axis] = (1, 0), (0, 1)
    return tuple(jnp.pad(step, pad) for pad in pads)


def _focals(camera: Camera) -> Float[Array, "2"]:
    return jnp.diagonal(camera.intrinsics)[:2]
