"""The warp: a clip seen again from other cameras, as a linear map on its pixels.

Two steps, frame by frame. First the *surface*: the source's depth is splatted into the target
view (see splat.py), and each target pixel keeps the nearest. Then the *weights*: a target pixel
looks back along its surface point to the source and gathers bilinear corners there, each
weighed by how well its own depth agrees with the surface (a soft z-buffer), so that colours
never mix across a depth edge. Where the view shrinks more than twofold, four corners alias.

Gathering rather than scattering colours makes `apply` the same, bit for bit, on every run of
every device, and leaves one pass of scatters, over depth alone, at construction.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from ic_jax.geometry.camera import Camera, pixel_centres, project, unproject
from ic_jax.geometry.depth import RELATIVE_JUMP, depth_edges
from ic_jax.geometry.mask import check_size
from ic_jax.geometry.splat import splat_depth

# Stands for the unknown depth of dropped pixels: behind everything.
FAR = 1e10
# Weights closer than this to 0 or 1 are rounding: normalisation must not amplify the former,
# and an identity must be one exactly.
VANISHING = 1e-3
# Fixed-point steps from the splatted depth to the point where the pixel's ray meets the surface.
REFINEMENTS = 2


class WarpOperator(NamedTuple):
    """Source clip to target view: linear, with its exact adjoint. Build with `warp_operator`.

    It holds geometry alone; the weights (1 GB and more for a long clip) are made again in each
    frame of `apply` and `adjoint`. Every leaf has time as its leading axis.
    """

    depth: Float[Array, "*b t h w"]
    keep: Bool[Array, "*b t h w"]
    source: Camera
    target: Camera
    surface: Float[Array, "*b t h w"]
    """Depth in the target view, infinite where there is nothing."""
    visible: Float[Array, "*b t h w"]
    """Share of each target pixel that the source saw, in [0, 1]."""

    def apply(self, clip: Float[Array, "t h w c"]) -> Float[Array, "t h w c"]:
        """The clip in the target view; 0 where nothing is visible.

        Raises:
            InputError: the clip is of another size than the operator.
        """
        check_size(self.visible, clip)
        return jax.lax.map(lambda pair: _gather(_corners(pair[0])[0], pair[1]), (self, clip))

    def adjoint(self, clip: Float[Array, "t h w c"]) -> Float[Array, "t h w c"]:
        """The transpose of `apply`: each target pixel handed back to where it came from."""
        check_size(self.visible, clip)

        def frame(pair):
            corners, _ = _corners(pair[0])
            transpose = jax.linear_transpose(lambda image: _gather(corners, image), pair[1])
            return transpose(pair[1])[0]

        return jax.lax.map(frame, (self, clip))


class Corner(NamedTuple):
    """One of the four source pixels that every pixel of a target frame gathers."""

    index: Int[Array, "h w"]
    weight: Float[Array, "h w"]


def warp_operator(
    depth: Float[Array, "t h w"],
    source: Camera,
    target: Camera,
    *,
    keep: Bool[Array, "t h w"] | None = None,
    edges: bool = True,
) -> WarpOperator:
    """The operator from the source cameras' clip to the target cameras' view of it.

    Its weights have derivatives, forward and in reverse, by depth and cameras; which surface is
    the nearest, a matter of yes or no, counts as given.

    Args:
        depth: z-depth of the source clip. A pixel where it is not finite and above 0 is dropped.
        source: one camera per frame.
        target: one camera per frame; the image size is the source's.
        keep: False drops a pixel, whose depth may then be anything. None keeps all.
        edges: drop flying pixels as well, by the rule of `depth_edges`.
    """
    known = (depth > 0) & jnp.isfinite(depth)
    keep = known if keep is None else keep & known
    depth = jnp.where(keep, depth, FAR)
    if edges:
        keep &= depth_edges(depth)
    return jax.lax.map(lambda frame: _frame_operator(*frame), (depth, keep, source, target))


def warp_frame(
    frame: Float[Array, "h w c"],
    depth: Float[Array, "h w"],
    source: Camera,
    target: Camera,
    *,
    keep: Bool[Array, "h w"] | None = None,
    edges: bool = True,
) -> tuple[Float[Array, "h w c"], Float[Array, "h w"]]:
    """One frame and its visibility from any other camera: how frame s fills the view at t.

    Cameras have no time axis here; the rest is as in `warp_operator`.
    """
    one = jax.tree.map(lambda leaf: leaf[None], (depth, source, target, keep))
    operator = warp_operator(*one[:3], keep=one[3], edges=edges)
    return operator.apply(frame[None])[0], operator.visible[0]


def _frame_operator(
    depth: Float[Array, "h w"], keep: Bool[Array, "h w"], source: Camera, target: Camera
) -> WarpOperator:
    # the refinements carry the derivative, as they carry the value
    surface = splat_depth(*jax.lax.stop_gradient((depth, keep, source, target)))
    operator = WarpOperator(depth, keep, source, target, surface, jnp.zeros_like(surface))
    operator = jax.lax.fori_loop(
        0, REFINEMENTS, lambda _, coarse: coarse._replace(surface=_refine(coarse)), operator
    )
    return operator._replace(visible=_corners(operator)[1])


def _refine(operator: WarpOperator) -> Float[Array, "h w"]:
    """One step towards the point where each target ray meets the source's surface.

    A splat has one depth over all its pixels, which is wrong on slanted surfaces; the source's
    depth where the ray lands is less wrong by the factor of the slant's parallax.
    """
    corners, visible = _corners(operator)
    # inverse depth is linear over a plane's image, depth is not
    inverse = _gather(corners, 1 / operator.depth[..., None])[..., 0]
    found = visible > 0
    pixels, _ = _look_back(operator)
    points = unproject(pixels, 1 / jnp.where(found, inverse, 1.0), operator.source)
    _, z = project(points, operator.target)
    return jnp.where(found & (z > 0), z, operator.surface)


def _look_back(operator: WarpOperator) -> tuple[Float[Array, "h w 2"], Float[Array, "h w"]]:
    """Where in the source, and at what depth there, each target pixel's surface point lies."""
    height, width = operator.surface.shape
    surface = jnp.where(jnp.isfinite(operator.surface), operator.surface, 1.0)
    points = unproject(pixel_centres(height, width), surface, operator.target)
    return project(points, operator.source)


def _corners(operator: WarpOperator) -> tuple[list[Corner], Float[Array, "h w"]]:
    """Bilinear weights around the look-back point, on the surface seen and no other; visibility.

    A corner on another surface is no part of the pixel. One outside the image is a part that was
    not seen, and so is a dropped one on this surface; of unknown depth, it counts as on another.
    """
    height, width = operator.surface.shape
    pixels, depth = _look_back(operator)
    columns, shares_x = _bracket(pixels[..., 0], width)
    rows, shares_y = _bracket(pixels[..., 1], height)
    seen = jnp.isfinite(operator.surface)
    corners, agreeing = [], 0.0
    for row, share_y in zip(rows, shares_y):
        for column, share_x in zip(columns, shares_x):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            index = jnp.clip(row, 0, height - 1) * width + jnp.clip(column, 0, width - 1)
            # full weight up to one jump away in depth, none from two
            apart = jnp.abs(_at(operator.depth, index) / depth - 1) / RELATIVE_JUMP
            agreement = jnp.where(inside, jnp.clip(2 - apart, 0.0, 1.0), 1.0)
            share = jnp.where(seen, share_x * share_y * agreement, 0.0)
            known = jnp.where(inside & _at(operator.keep, index), share, 0.0)
            corners.append(Corner(index, known))
            agreeing += share
    total = sum(corner.weight for corner in corners)
    norm = jnp.where(total > 0, total, 1.0)
    normalised = [corner._replace(weight=corner.weight / norm) for corner in corners]
    return normalised, total / jnp.where(total > 0, agreeing, 1.0)


def _bracket(
    position: Float[Array, "h w"], size: int
) -> tuple[tuple[Int[Array, "h w"], ...], tuple[Float[Array, "h w"], ...]]:
    """The two pixels around a position along one axis, and their bilinear shares."""
    position = jnp.clip(position, -1.0, size + 1.0) - 0.5
    first = jnp.floor(position)
    share = position - first
    share = jnp.where(share < VANISHING, 0.0, share)
    share = jnp.where(share > 1 - VANISHING, 1.0, share)
    index = first.astype(jnp.int32)
    return (index, index + 1), (1 - share, share)


def _gather(corners: list[Corner], image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    return sum(corner.weight[..., None] * _at(image, corner.index) for corner in corners)


def _at(image: Shaped[Array, "h w *c"], index: Int[Array, "h w"]) -> Shaped[Array, "h w *c"]:
    flat = image.reshape(-1, *image.shape[2:])
    return flat.at[index].get(mode="promise_in_bounds")
