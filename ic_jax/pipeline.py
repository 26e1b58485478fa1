"""The story: warp, fill, encode, mask, sample, decode.

    cameras, depth ──► warp operator ──┬─► warped clip ─► fill ─► encode ─► y ──┐
                                       └─► latent_mask(warp, encode) ─► (a, v) ─┤
    text ─► context ─► denoiser ─► guided ─► consistent(y, a, v) ─► sample ─────┴─► decode

All functions here are pure, work on one clip of the model's own size, and take the
weights as an argument: `jax.jit`, `jax.vmap` and `jax.pmap` apply to every one of them.
The encoder runs before the loop and the decoder after it; nothing is differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .fill import fill
from .geometry.warp import WarpOperator
from .latent_mask import MASKS, LatentMask, Measurement
from .model import Weights, embed
from .models import wan_vae
from .models.variants import Variant
from .models.wan_dit import WanDiT
from .sampling.consistency import Consistency, dds, fusion, none, within
from .sampling.denoiser import denoiser, guided
from .sampling.sampler import State, advance, split_correct_recombine, start
from .sampling.schedule import Level, flow_schedule
from .sampling.solvers import euler


@dataclass(frozen=True)
class Settings:
    """How a clip is re-captured; None means the model's own recommendation."""

    mask: str = "response"
    """Construction of the latent mask: nearest, mean, min, encoded or response."""
    consistency: str = "fusion"
    """How predictions agree with the measurement: fusion (variances), dds (one gamma) or none."""
    gamma: float = 5.0
    """Strength of dds."""
    guided_from: float = 1.0
    """Highest noise level at which the measurement acts, in [0, 1]."""
    guided_to: float = 0.0
    """Lowest noise level at which the measurement acts, in [0, 1]."""
    steps: int | None = None
    """Sampling steps."""
    guidance_scale: float | None = None
    """Weight of the prompt against no prompt; 1 ignores the latter."""
    shift: float | None = None
    """Shift of the noise levels: larger spends more steps on noise."""
    renoise: float = 0.0
    """Share of the noise that is drawn anew at every step, in [0, 1]."""
    response_scale: float | None = None
    """Scale of the error variance of the response mask."""
    composite: bool | None = None
    """Show the warped pixels themselves where they were seen, over the decoded ones."""


class Scene(NamedTuple):
    """What is re-captured: the clip, and the warp that takes it to the new camera."""

    clip: Float[Array, "*b t h w 3"]
    operator: WarpOperator


class Observation(NamedTuple):
    """What is known of the new view."""

    warped: Float[Array, "*b t h w 3"]
    measurement: Measurement
    mask: LatentMask


def recapture(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    scene: Scene,
    tokens: Int[Array, "2 l"],
    token_mask: Bool[Array, "2 l"],
    key: PRNGKeyArray,
) -> Float[Array, "t h w 3"]:
    """The clip from the new camera, in [-1, 1], as decoded. `tokens` are [negative prompt, prompt].

    `director.resolve` puts the model's calibrated `response_scale` into `settings`; left at None
    it is 1 here. `settings.composite` is for `director.direct`, which has the clip's own size.
    """
    mask_key, noise_key = jax.random.split(key)
    context = embed(sizes, weights.umt5, tokens, token_mask)
    observation = observe(sizes, settings, weights, scene, scene, mask_key)
    state, levels = begin(sizes, settings, noise_key)
    state = proceed(sizes, settings, weights, context, observation, state, levels)
    return finish(sizes, weights, state)


def observe(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    scene: Scene,
    filler: Scene,
    key: PRNGKeyArray,
) -> Observation:
    """Warp, fill the holes, encode once, and ask how far each latent can be trusted.

    `filler` is the scene whose other frames fill the holes: `scene` itself, unless some
    of its frames stand for something else (see `framing.windows`).
    """
    encode = lambda clip: wan_vae.encode(sizes.vae, weights.vae, clip[None], chunk=sizes.chunk)[0]
    warped, visible = scene.operator.apply(scene.clip), scene.operator.visible
    filled = fill(filler.operator, filler.clip, warped, visible)
    measurement = Measurement(filled, encode(filled))
    construct = MASKS[settings.mask]
    if settings.mask == "response":
        scale = 1.0 if settings.response_scale is None else settings.response_scale
        construct = partial(construct, scale=scale)
    return Observation(warped, measurement, construct(scene.operator, encode, measurement, key))


def begin(sizes: Variant, settings: Settings, key: PRNGKeyArray) -> tuple[State, Level]:
    """Pure noise, and the levels that lead from it to a clean latent."""
    steps = settings.steps or sizes.steps
    shift = sizes.shift if settings.shift is None else settings.shift
    shape = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)
    return start(key, shape, euler(settings.renoise)), flow_schedule(steps, shift)


def proceed(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    context: Float[Array, "2 l d"],
    observation: Observation,
    state: State,
    levels: Level,
) -> State:
    """Sample through `levels`: all of them, or the next few."""

    def velocity(x: Float[Array, "b t h w c"], timestep: Float[Array, " b"]):
        # As many conditions as clips: both prompts, or the last one alone.
        given = context[-len(x) :]
        return WanDiT(sizes.dit).apply({"params": weights.dit}, x, timestep, given)

    scale = sizes.guidance_scale if settings.guidance_scale is None else settings.guidance_scale
    step = split_correct_recombine(
        denoiser(velocity) if scale == 1 else guided(velocity, scale),
        consistency(settings),
        euler(settings.renoise),
        observation.measurement.latent,
        observation.mask,
    )
    return advance(step, state, levels)


def finish(sizes: Variant, weights: Weights, state: State) -> Float[Array, "t h w 3"]:
    """Decode."""
    chunk = sizes.chunk and sizes.chunk // sizes.vae.temporal_factor
    return wan_vae.decode(sizes.vae, weights.vae, state.x[None], chunk=chunk)[0]


CONSISTENCIES: dict[str, Callable[[Settings], Consistency]] = {
    "fusion": lambda settings: fusion(),
    "dds": lambda settings: dds(settings.gamma),
    "none": lambda settings: none,
}


def consistency(settings: Settings) -> Consistency:
    """The rule that `settings` names, within its window of noise levels."""
    rule = CONSISTENCIES[settings.consistency](settings)
    return within(rule, settings.guided_from, settings.guided_to)
