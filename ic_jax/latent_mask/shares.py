"""Masks that are a share of observed pixels, and nothing else."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .mask import Encode, LatentMask, Measurement, Operator


def frame_groups(visible: Float[Array, "t h w"], latent_frames: int) -> Float[Array, "u g h w"]:
    """Pixel frames by the latent that holds them: {0}, {1–4}, {5–8}, …; frame 0 repeats."""
    group = (visible.shape[0] - 1) // (latent_frames - 1) if latent_frames > 1 else 1
    padded = jnp.concatenate([jnp.repeat(visible[:1], group, axis=0), visible[1:]])
    return padded.reshape(latent_frames, group, *visible.shape[1:])


def coverage(
    visible: Float[Array, "t h w"], shape: tuple[int, ...], how: str = "mean"
) -> Float[Array, "t2 h2 w2 1"]:
    """The observed share of each latent's own pixels: their mean, min, or nearest one."""
    t, h, w = shape[:3]
    height, width = visible.shape[1:]
    blocks = frame_groups(visible, t).reshape(t, -1, h, height // h, w, width // w)
    if how == "nearest":
        blocks = blocks[:, -1:, :, blocks.shape[3] // 2, None, :, blocks.shape[5] // 2, None]
    reduce = jnp.min if how == "min" else jnp.mean
    return reduce(blocks, axis=(1, 3, 5))[..., None]


def downsample(
    operator: Operator,
    encode: Encode,
    measurement: Measurement,
    key: PRNGKeyArray,
    how: str = "mean",
) -> LatentMask:
    """Prior work's mask: one channel, resampled to the latent grid, trusted as it is (v = 0).

    Estimates the observed share and no error. Costs no encode. Fails beside holes: it knows
    nothing of the encoder's reach, so latents there count as clean although the hole has leaked
    into them. `how` is "nearest" (a single pixel speaks for hundreds), "mean" or "min" (one
    hidden pixel condemns a latent).
    """
    a = coverage(operator.visible, measurement.latent.shape, how)
    return LatentMask(a, jnp.zeros_like(a))
