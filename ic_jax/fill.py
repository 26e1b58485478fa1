"""What stands in a hole while the warped clip is encoded.

The encoder looks around every pixel, so a hole spoils the latents beside it and, through
the causal convolutions, those after it. A black hole spoils them most. Content that the
clip shows at another time spoils them least, and a smooth continuation comes second
(16 to 28 times less than black, within 16 pixels: experiments/results/masks.md).
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .geometry.mask import MaskOperator
from .geometry.warp import WarpOperator, warp_operator


def fill(
    operator: WarpOperator | MaskOperator,
    clip: Float[Array, "t h w c"],
    warped: Float[Array, "t h w c"],
    visible: Float[Array, "t h w"],
) -> Float[Array, "t h w c"]:
    """The warped clip without holes: other frames' views of the same place, then push-pull.

    `clip` is the source that `operator` warps; `warped` and `visible` are the measurement,
    which may hold more than the operator sees (frames kept from a window before). Where nothing
    is known of the geometry, as in editing, only push-pull is left.
    """
    if isinstance(operator, WarpOperator):
        warped, visible = from_other_frames(operator, clip, warped, visible)
    return push_pull(warped, visible)


def from_other_frames(
    operator: WarpOperator,
    clip: Float[Array, "t h w c"],
    warped: Float[Array, "t h w c"],
    visible: Float[Array, "t h w"],
) -> tuple[Float[Array, "t h w c"], Float[Array, "t h w"]]:
    """Fill holes with what frames 1, 2, 4, … before and after see there; nearest first.

    Right for a scene that stands still; a moving object may leave a ghost, which is why
    this only fills and is never counted as observed.
    """
    frames = clip.shape[0]
    distances = [2**i for i in range((frames - 1).bit_length())]
    offsets = jnp.array([sign * d for d in distances for sign in (-1, 1)], jnp.int32)

    def look(found, offset):
        warped, visible = found
        at = jnp.clip(jnp.arange(frames) + offset, 0, frames - 1)
        source = jax.tree.map(lambda leaf: leaf[at], operator.source)
        other = warp_operator(
            operator.depth[at], source, operator.target, keep=operator.keep[at], edges=False
        )
        weight = (1 - visible) * other.visible
        total = visible + weight
        share = (weight / jnp.where(total > 0, total, 1.0))[..., None]
        return ((1 - share) * warped + share * other.apply(clip[at]), total), None

    return jax.lax.scan(look, (warped, visible), offsets)[0]


def push_pull(
    clip: Float[Array, "t h w c"], weight: Float[Array, "t h w"]
) -> Float[Array, "t h w c"]:
    """Fill where weight is 0 by the smooth average of what surrounds it, frame by frame.

    A pyramid of weighted means is built down to one pixel and read back up (the push-pull
    algorithm: Gortler et al., "The Lumigraph", 1996).
    """
    return _push_pull(clip, weight[..., None])


def _push_pull(clip: Float[Array, "t h w c"], weight: Float[Array, "t h w 1"]):
    t, h, w, _ = clip.shape
    if h == w == 1:
        return clip
    pad = ((0, 0), (0, h % 2), (0, w % 2), (0, 0))

    def halve(x):
        x = jnp.pad(x, pad)
        return x.reshape(t, (h + 1) // 2, 2, (w + 1) // 2, 2, x.shape[-1]).sum((2, 4))

    total = halve(weight)
    mean = halve(clip * weight) / jnp.where(total > 0, total, 1.0)
    coarse = _push_pull(mean, jnp.minimum(total, 1.0))
    smooth = _doubled(_doubled(coarse, axis=1), axis=2)[:, :h, :w]
    return weight * clip + (1 - weight) * smooth


def _doubled(x: Float[Array, "t h w c"], axis: int) -> Float[Array, "t h2 w2 c"]:
    """Linear interpolation to twice the length; what lies beyond an end is as the end.

    `jax.image.resize` would multiply by a matrix as long as the axis: 0.1 TFLOP for 81 frames of
    480x832, in shapes that XLA's compiler for CUDA may have no tiles for.
    """
    length = x.shape[axis]
    widened = jnp.pad(x, [(int(n == axis),) * 2 for n in range(x.ndim)], mode="edge")
    around = (jax.lax.slice_in_dim(widened, at, at + length, axis=axis) for at in (0, 2))
    halves = jnp.stack([0.75 * x + 0.25 * neighbour for neighbour in around], axis + 1)
    return halves.reshape(*x.shape[:axis], 2 * length, *x.shape[axis + 1 :])
