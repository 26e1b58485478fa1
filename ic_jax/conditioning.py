"""What an inpainting or image-to-video generator is shown of the known pixels.

Such a generator reads, beside the noisy latent, a mask and the latent of the clip with its
unknown pixels grey. On the channel axis of its input:

    [noisy latent 16 | mask 4 | masked latent 16]

The mask tells the model what to keep, and nothing forces it to: it is independent of the
consistency rules in `sampling`, and both may act at once. First-frame conditioning, as of
Wan 2.1 I2V (arXiv 2503.20314), is the special case in which frame 0 alone is known; other
patterns follow the Fun-InP models (github.com/aigc-apps/VideoX-Fun).
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .latent_mask import Encode

# Pixel frames per latent, and so channels of the mask.
_FRAMES = 4


class Conditioning(NamedTuple):
    """The inputs of an image model: channels beside the noise, and CLIP's tokens."""

    channels: Float[Array, "*b t h w k"]
    tokens: Float[Array, "*b m e"] | None


def condition(
    clip: Float[Array, "t h w 3"], known: Bool[Array, "t h w"], encode: Encode
) -> Float[Array, "t2 h2 w2 d"]:
    """The mask (4 channels) and the masked latent, to follow the noisy latent on its channels.

    `clip` is in [-1, 1]; `encode` gives normalised latents, one for frame 0 and one for every
    four frames after it. Where nothing at all is known everything is 0, the latent too, which is
    not what a grey clip encodes to.
    """
    latent = encode(masked_video(clip, known))
    mask = mask_channels(known, clip.shape[1] // latent.shape[1])
    shown = jnp.concatenate([mask, latent], axis=-1)
    return jnp.where(known.any(), shown, 0.0)


def masked_video(
    clip: Float[Array, "t h w 3"], known: Bool[Array, "t h w"]
) -> Float[Array, "t h w 3"]:
    """The clip with unknown pixels 0, which is mid-grey, not black."""
    return jnp.where(known[..., None], clip, 0.0)


def mask_channels(known: Bool[Array, "t h w"], factor: int) -> Float[Array, "t2 h2 w2 4"]:
    """The mask at latent resolution, 1 = known; `factor` (even) is the spatial compression.

    Channel c of latent j ≥ 1 is pixel frame 4 (j - 1) + 1 + c; latent 0 has frame 0 four times.
    Each value is the mean of the 2×2 pixels at the centre of the latent's own: a linear
    interpolation without antialiasing, of which the weights end up just there.
    """
    centre = slice(factor // 2 - 1, factor // 2 + 1)
    t, h, w = known.shape
    blocks = known.reshape(t, h // factor, factor, w // factor, factor)
    small = blocks[:, :, centre, :, centre].mean((2, 4))
    padded = jnp.concatenate([jnp.repeat(small[:1], _FRAMES - 1, axis=0), small])
    return jnp.moveaxis(padded.reshape(-1, _FRAMES, *small.shape[1:]), 1, -1)
