"""The mask that asks how far the latent moves when the hole holds something else."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .mask import Encode, LatentMask, Measurement, Operator
from .shares import coverage


def mirrored(clip: Float[Array, "t h w 3"], key: PRNGKeyArray) -> Float[Array, "t h w 3"]:
    """The clip, left and right exchanged."""
    return clip[:, :, ::-1]


def rolled(clip: Float[Array, "t h w 3"], key: PRNGKeyArray) -> Float[Array, "t h w 3"]:
    """The clip, moved by a random part of its size, around the edges."""
    shift = jax.random.randint(key, (2,), 1, min(clip.shape[1:3]))
    return jnp.roll(clip, shift, axis=(1, 2))


def turned(clip: Float[Array, "t h w 3"], key: PRNGKeyArray) -> Float[Array, "t h w 3"]:
    """The clip, upside down and backwards in time."""
    return clip[::-1, ::-1]


def flat(clip: Float[Array, "t h w 3"], key: PRNGKeyArray) -> Float[Array, "t h w 3"]:
    """One colour, drawn from the clip's own pixels."""
    pixels = clip.reshape(-1, 3)
    return jnp.broadcast_to(pixels[jax.random.randint(key, (), 0, len(pixels))], clip.shape)


def cloudy(clip: Float[Array, "t h w 3"], key: PRNGKeyArray) -> Float[Array, "t h w 3"]:
    """Noise with energy at every scale, about the clip's mean and as varied as the clip."""
    mean, std = clip.mean((0, 1, 2)), clip.std((0, 1, 2))
    return jnp.clip(mean + std * clouds(clip.shape, key), -1, 1)


def clouds(shape: tuple[int, ...], key: PRNGKeyArray) -> Float[Array, "t h w 3"]:
    """Noise of unit variance with energy at every scale, the same in every frame."""
    t, h, w, _ = shape
    octaves = range(2, min(h, w).bit_length())
    noise = sum(
        jax.image.resize(jax.random.normal(k, (1, 2**o, 2**o, 3)), (1, h, w, 3), "linear")
        for o, k in zip(octaves, jax.random.split(key, len(octaves)))
    )
    return jnp.broadcast_to(noise / noise.std(), shape)


CONTENTS = (mirrored, rolled, cloudy, flat, turned)


def response(
    operator: Operator,
    encode: Encode,
    measurement: Measurement,
    key: PRNGKeyArray,
    *,
    fills: int = 8,
    opening: float = 1.0,
) -> LatentMask:
    """How far the latent moves when the hole holds something else.

    v is the mean of (E(content k in the hole) - y)² over `fills` contents in
    turn from `CONTENTS`: a second moment about the y in use, so that an unlucky fill counts
    as error too. Estimates the error's variance if the truth were as unlike the fill as these
    contents are; a good fill is nearer, hence the scale of v that is calibrated once per model,
    on clips whose truth is known. Costs `fills` encodes, one at a time.

    a is min(1, `opening` · mean coverage). At 1 a latent that is half seen is trusted by half at
    most, although v says already what the other half may cost; at 2 (`response_open`) such
    latents are left to v, and the gate closes over what was hardly seen alone. Fails where
    contents and fill agree by accident, as in a clip of one colour, and where the hidden part
    is like nothing else in the clip.
    """
    visible = operator.visible[..., None]

    def squared_error(which_and_key):
        which, key = which_and_key
        content = jax.lax.switch(which, CONTENTS, measurement.clip, key)
        other = visible * measurement.clip + (1 - visible) * content
        return (encode(other) - measurement.latent) ** 2

    which = jnp.arange(fills) % len(CONTENTS)
    errors = jax.lax.map(squared_error, (which, jax.random.split(key, fills)))
    a = jnp.minimum(1.0, opening * coverage(operator.visible, measurement.latent.shape))
    return LatentMask(a, errors.mean(0))
