"""Masks that the encoder sees as a video: by itself, or over flat colours."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .mask import Encode, LatentMask, Measurement, Operator
from .shares import coverage

# Tetrahedron: white, red, green, blue. The fewest colours of zero mean whose second moment is the
# same in every direction.
COLOURS = (1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1)


def encoded(
    operator: Operator, encode: Encode, measurement: Measurement, key: PRNGKeyArray
) -> LatentMask:
    """The mask encoded as a video, normalised per channel: (E(m) - E(0)) / (E(1) - E(0)).

    White is observed, black is hole; clipped to [0, 1], v = 0. The plainest reading of the
    paper's "continuous C-channel mask". Estimates the share of a channel's response that comes
    from observed pixels, if the encoder were linear. Costs 3 encodes. Fails because it is not:
    it overshoots beside edges, and the clipping trusts just those latents fully. Channels that
    hardly tell white from black have a tiny denominator; they fall back on their latent's mean
    over channels.
    """
    video = jnp.broadcast_to(operator.visible[..., None], measurement.clip.shape)
    mask, black, white = (encode(2 * m - 1) for m in (video, 0 * video, 0 * video + 1))
    contrast = white - black
    sound = jnp.abs(contrast) > 0.1
    a = jnp.clip((mask - black) / jnp.where(sound, contrast, 1.0), 0.0, 1.0)
    mean = jnp.sum(a * sound, -1, keepdims=True) / jnp.maximum(sound.sum(-1, keepdims=True), 1)
    a = jnp.where(sound, a, mean)
    return LatentMask(a, jnp.zeros_like(a))


def probes(
    operator: Operator, encode: Encode, measurement: Measurement, key: PRNGKeyArray
) -> LatentMask:
    """How far flat colours change when the hole turns grey: "encode the mask", made sound.

    v is the mean of (E(m·p) - E(p))² over the colours p: the mask is encoded as what it does
    to a clip, in squares, so that channels blind to white and black still answer and nothing
    is divided by. Grey is 0 in clips of [-1, 1]. Estimates how far the encoder carries a hole
    that is wrong by a whole colour; the same for every clip and fill, so its scale is that of
    no error in particular. a is the mean coverage. Costs 8 encodes, of which the 4 of whole
    colours depend on the size alone. Fails where the content decides: flat colours excite no
    texture, and a hole filled well counts as much as one filled badly.
    """
    hidden, shape = 1 - operator.visible[..., None], measurement.clip.shape
    colours = jnp.asarray(COLOURS, measurement.clip.dtype)

    def encode_colour(colour_and_share):
        colour, share = colour_and_share
        return encode(jnp.broadcast_to((1 - share * hidden) * colour, shape))

    # One loop, so that the encoder is compiled once for both.
    shares = jnp.repeat(jnp.array([1.0, 0.0]), len(colours))
    masked, whole = jax.lax.map(encode_colour, (jnp.tile(colours, (2, 1)), shares)).reshape(
        2, len(colours), *measurement.latent.shape
    )
    v = ((masked - whole) ** 2).mean(0)
    return LatentMask(coverage(operator.visible, measurement.latent.shape), v)
