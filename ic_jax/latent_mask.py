"""The latent mask: how far each latent of the measurement can be trusted.

A hole in pixels does not become a hole in latents. The encoder spreads it over space,
forward in time and unevenly over channels. So the mask carries two numbers for every
latent: the observed share a, and the variance v of the error that the hole's unknown
content causes. Fused with an estimate of variance r², the measurement gets the weight

    h(r²) = a · r² / (r² + v)

which at r² = 1 is a static, continuous, C-channel mask like the paper's.

Every construction has the signature (operator, encode, measurement, key) -> LatentMask,
is pure, and runs under jit. InverseCrafter (arXiv 2512.05672) does not publish its
formula: `encoded` is the plainest reading of its text, and all of these are reconstructions.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

Encode = Callable[[Float[Array, "t h w 3"]], Float[Array, "t2 h2 w2 c"]]


@runtime_checkable
class Operator(Protocol):
    """Anything that knows which share of each target pixel it has seen."""

    visible: Float[Array, "t h w"]


class Measurement(NamedTuple):
    """The filled clip and its normalised latent y."""

    clip: Float[Array, "t h w 3"]
    latent: Float[Array, "t2 h2 w2 c"]


class LatentMask(NamedTuple):
    """Coverage a in [0, 1] and error variance v in squared latent units.

    Both broadcast over the latent: an axis of size 1 means the same for every channel.
    """

    coverage: Float[Array, "*b t h w #c"]
    variance: Float[Array, "*b t h w #d"]

    def weight(self, r2: Float[Array, "*#s"] | float) -> Float[Array, "*b t h w #e"]:
        """h(r²), in [0, 1]; a itself where v = 0."""
        total = r2 + self.variance
        return self.coverage * jnp.where(self.variance > 0, r2 / jnp.where(total > 0, total, 1), 1)


MaskConstruction = Callable[[Operator, Encode, Measurement, PRNGKeyArray], LatentMask]


# Coverage alone -------------------------------------------------------------------


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

    Costs no encode. It knows nothing of the encoder's reach: latents beside a hole count
    as clean, although the hole has leaked into them. `how` is "nearest", "mean" or "min".
    """
    a = coverage(operator.visible, measurement.latent.shape, how)
    return LatentMask(a, jnp.zeros_like(a))


# The mask's own encoding ----------------------------------------------------------


def encoded(
    operator: Operator, encode: Encode, measurement: Measurement, key: PRNGKeyArray
) -> LatentMask:
    """The mask encoded as a video, normalised per channel: (E(m) - E(0)) / (E(1) - E(0)).

    White is observed, black is hole; clipped to [0, 1], v = 0. The plainest reading of the
    paper's "continuous C-channel mask"; costs 3 encodes. Channels that hardly tell white
    from black have a tiny denominator; they fall back on their latent's mean over channels.
    """
    video = jnp.broadcast_to(operator.visible[..., None], measurement.clip.shape)
    mask, black, white = (encode(2 * m - 1) for m in (video, 0 * video, 0 * video + 1))
    contrast = white - black
    sound = jnp.abs(contrast) > 0.1
    a = jnp.clip((mask - black) / jnp.where(sound, contrast, 1.0), 0.0, 1.0)
    mean = jnp.sum(a * sound, -1, keepdims=True) / jnp.maximum(sound.sum(-1, keepdims=True), 1)
    a = jnp.where(sound, a, mean)
    return LatentMask(a, jnp.zeros_like(a))


# The response to other contents -----------------------------------------------------


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
    t, h, w, _ = clip.shape
    octaves = range(2, min(h, w).bit_length())
    noise = sum(
        jax.image.resize(jax.random.normal(k, (1, 2**o, 2**o, 3)), (1, h, w, 3), "linear")
        for o, k in zip(octaves, jax.random.split(key, len(octaves)))
    )
    mean, std = clip.mean((0, 1, 2)), clip.std((0, 1, 2))
    return jnp.clip(jnp.broadcast_to(mean + std * noise / noise.std(), clip.shape), -1, 1)


CONTENTS = (mirrored, rolled, cloudy, flat, turned)


def response(
    operator: Operator,
    encode: Encode,
    measurement: Measurement,
    key: PRNGKeyArray,
    *,
    fills: int = 8,
    scale: float = 1.0,
) -> LatentMask:
    """How far the latent moves when the hole holds something else.

    v is `scale` times the mean of (E(content k in the hole) - y)² over `fills` contents in
    turn from `CONTENTS`: a second moment about the y in use, so that an unlucky fill counts
    as error too. a is the mean coverage. Costs `fills` encodes, one at a time. `scale` is
    calibrated once per model on clips whose truth is known (experiments/masks.py).
    """
    visible = operator.visible[..., None]

    def squared_error(which_and_key):
        which, key = which_and_key
        content = jax.lax.switch(which, CONTENTS, measurement.clip, key)
        other = visible * measurement.clip + (1 - visible) * content
        return (encode(other) - measurement.latent) ** 2

    which = jnp.arange(fills) % len(CONTENTS)
    errors = jax.lax.map(squared_error, (which, jax.random.split(key, fills)))
    a = coverage(operator.visible, measurement.latent.shape)
    return LatentMask(a, scale * errors.mean(0))


MASKS: dict[str, MaskConstruction] = {
    "nearest": partial(downsample, how="nearest"),
    "mean": partial(downsample, how="mean"),
    "min": partial(downsample, how="min"),
    "encoded": encoded,
    "response": response,
}
