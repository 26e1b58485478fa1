"""The story: warp, fill, encode, mask, sample, decode.

    cameras, depth ──► warp operator ──┬─► warped clip ─► fill ─► encode ─► y ──┐
                                       └─► latent_mask(warp, encode) ─► (a, v) ─┤
    text ─► context ─► denoiser ─► guided ─► consistent(y, a, v) ─► sample ─────┴─► decode

Editing is the same story with another operator: the identity, where a mask keeps the source.

All functions here are pure, work on one clip of the model's own size, and take the
weights as an argument: `jax.jit`, `jax.vmap` and `jax.pmap` apply to every one of them.
`layout` is static, and spreads the transformer of one clip over devices.
The encoder runs before the loop and the decoder after it; nothing is differentiated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .conditioning import condition
from .fill import fill
from .geometry.mask import MaskOperator
from .geometry.warp import WarpOperator
from .latent_mask import MASKS, Encode, LatentMask, Measurement, Operator, fitting
from .model import Weights
from .models import wan_vae
from .models.clip_vision import encode_image
from .models.layout import Layout
from .models.variants import Variant
from .models.wan_dit import Prepared, WanDiT
from .sampling import caching
from .sampling.consistency import CleanVariance, unit_gaussian
from .sampling.denoiser import Denoiser, Velocity, denoiser, guided
from .sampling.methods import method
from .sampling.sampler import Pixels, State, advance, start
from .sampling.schedule import TRAIN_TIMESTEPS, Level, parts
from .sampling.solvers import SOLVERS


@dataclass(frozen=True)
class Settings:
    """How a clip is sampled; None means the model's own recommendation."""

    latent_mask: str = "mean"
    """Latent mask: nearest, mean, min, encoded, probes, response, response_open, jacobian or
    kernel."""
    consistency: str = "bayes_draw"
    """How the sample agrees with the measurement: bayes_draw, bayes_dds, dds, ddnm, none, or any
    other of sampling.methods.METHODS; a name that does not exist lists them."""
    gamma: float | None = None
    """Strength of the measurement, in methods that have one number for it."""
    gamma_schedule: str | None = None
    """Its course over the noise levels: constant, falling, rising or variance."""
    clean_error: str | None = None
    """The model's own variance, where a method weighs it: gaussian, or measured (see
    `ic-jax calibrate`)."""
    noise: str | None = None
    """What becomes of the noise when the clean estimate moves: recompute, keep or renew."""
    inner: int | None = None
    """Calls of the model beyond the first in each step, in methods that refine."""
    guided_from: float = 1.0
    """Highest noise level at which the measurement acts, in [0, 1]."""
    guided_to: float = 0.0
    """Lowest noise level at which the measurement acts, in [0, 1]."""
    refresh_at: float | None = None
    """Noise level at which the holes are filled again, from the sample, and encoded: once."""
    solver: str | None = None
    """How predictions make the next latent: euler, flow_euler, unipc or dpmpp_2m."""
    steps: int | None = None
    """Sampling steps."""
    guidance_scale: float | None = None
    """Weight of the prompt against the negative prompt; 1 ignores the latter."""
    guidance_scale_low: float | None = None
    """The same for the low-noise expert of a model of two."""
    shift: float | None = None
    """Shift of the noise levels: larger spends more steps on noise."""
    reuse: int = 0
    """Steps in a row that take over what the model's blocks said before; 0 asks them at each."""
    renoise: float = 0.0
    """Share of the noise drawn anew at every step, in [0, 1]; costs unipc and dpmpp_2m an order."""
    variance_scale: float | None = None
    """Factor on the error variance of the latent mask; without it, as calibrated for the mask."""
    conditioning: bool = True
    """Tell an image model what was observed through its own inputs as well."""
    composite: bool | None = None
    """Show the observed pixels themselves where they were seen, over the decoded ones."""


class Scene(NamedTuple):
    """What is sampled anew: the clip, and what of the result it shows."""

    clip: Float[Array, "*b t h w 3"]
    operator: WarpOperator | MaskOperator


class Conditioning(NamedTuple):
    """The inputs of an image model: channels beside the noise, and CLIP's tokens."""

    channels: Float[Array, "*b t h w k"]
    tokens: Float[Array, "*b m e"] | None


class Observation(NamedTuple):
    """What is known of the result."""

    observed: Float[Array, "*b t h w 3"]
    visible: Float[Array, "*b t h w"]
    measurement: Measurement
    mask: LatentMask
    conditioning: Conditioning | None


class Part(NamedTuple):
    """What the steps of one part of the schedule have in common."""

    expert: str = "dit"
    """The generator's name among the weights."""
    acts: bool = True
    """Whether the measurement does."""
    refreshes: bool = False
    """Whether the measurement is made anew before it."""


def recapture(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    scene: Scene,
    context: Float[Array, "2 l d"],
    key: PRNGKeyArray,
    layout: Layout = Layout(),
) -> Float[Array, "t h w 3"]:
    """The clip from the new camera, or edited, in [-1, 1], as decoded.

    `context` embeds [negative prompt, prompt] (see `text`). `director.resolve` puts the model's
    calibrated `variance_scale` into `settings`; left at None it is 1 here. `settings.composite`
    is for `director.direct`, which has the clip's own size.
    """
    mask_key, noise_key = jax.random.split(key)
    observation = observe(sizes, settings, weights, scene, scene, mask_key)
    state = sample(sizes, settings, weights, context, observation, noise_key, layout)
    return finish(sizes, weights, state)


def observe(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    scene: Scene,
    filler: Scene,
    key: PRNGKeyArray,
) -> Observation:
    """Apply the operator, fill the holes, encode once, and ask how far to trust each latent.

    `filler` is the scene whose other frames fill the holes: `scene` itself, unless some
    of its frames stand for something else (see `framing.windows`).
    """
    encode = partial(_encode, sizes, weights)
    observed, visible = scene.operator.apply(scene.clip), scene.operator.visible
    filled = fill(filler.operator, filler.clip, observed, visible)
    measurement = Measurement(filled, encode(filled))
    mask = latent_mask(sizes, settings, weights, scene.operator, measurement, key)
    told = None
    if sizes.conditioning is not None:
        told = _conditioning(sizes, weights, measurement, visible > 0.5, encode)
        told = told if settings.conditioning else jax.tree.map(jnp.zeros_like, told)
    return Observation(observed, visible, measurement, mask, told)


def latent_mask(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    operator: Operator,
    measurement: Measurement,
    key: PRNGKeyArray,
) -> LatentMask:
    """How far to trust each latent, by the construction that `settings` names."""
    name = settings.latent_mask
    construct = MASKS[name]
    if name == "kernel":
        construct = partial(construct, weights=weights.calibration.kernel)
    mask = construct(operator, partial(_encode, sizes, weights), measurement, key)
    a, v = fitting(mask, measurement.latent, name)
    return LatentMask(a, v if settings.variance_scale is None else settings.variance_scale * v)


def _conditioning(
    sizes: Variant,
    weights: Weights,
    measurement: Measurement,
    known: Bool[Array, "t h w"],
    encode: Encode,
) -> Conditioning:
    """What the model was trained to be shown: any known pixels, or those of the first frame."""
    if sizes.conditioning == "first_frame":
        known = known & (jnp.arange(len(known)) == 0)[:, None, None]
    tokens = None
    if sizes.clip is not None:
        frame, dtype = measurement.clip[0], jnp.dtype(sizes.dtype)
        tokens = encode_image(sizes.clip, weights.clip, frame, dtype)
    return Conditioning(condition(measurement.clip, known, encode), tokens)


def sample(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    context: Float[Array, "2 l d"],
    observation: Observation,
    key: PRNGKeyArray,
    layout: Layout = Layout(),
) -> State:
    """From noise to a clean latent, through all of the schedule."""
    state, levels = begin(sizes, settings, key)
    for part, some in stages(sizes, settings, levels):
        known = sizes, settings, part, weights, context
        if part.refreshes:
            observation = refresh(*known, observation, state, some, layout)
        state = proceed(*known, observation, state, some, layout)
    return state


def begin(sizes: Variant, settings: Settings, key: PRNGKeyArray) -> tuple[State, Level]:
    """Pure noise, and the levels that lead from it to a clean latent."""
    shape = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)
    _, solver = SOLVERS[settings.solver or sizes.solver]
    state = start(key, shape, solver(settings.renoise))
    if settings.reuse:
        tokens = prod(shape[:3]) // prod(sizes.dit.patch)
        said = (_room(sizes, settings), tokens, sizes.dit.dim)
        state = caching.empty(state, jax.ShapeDtypeStruct(said, jnp.float32))
    return state, _levels(sizes, settings)


def _levels(sizes: Variant, settings: Settings) -> Level:
    shift = sizes.shift if settings.shift is None else settings.shift
    schedule, _ = SOLVERS[settings.solver or sizes.solver]
    return schedule(settings.steps or sizes.steps, shift)


def stages(sizes: Variant, settings: Settings, levels: Level) -> list[tuple[Part, Level]]:
    """The schedule, cut where the expert changes, and where the measurement does."""
    boundary = TRAIN_TIMESTEPS * (sizes.boundary or 0.0)
    after = levels.sigma <= (-1.0 if settings.refresh_at is None else settings.refresh_at)
    first_after = levels.sigma[after][:1]

    def part(level: Level) -> Part:
        return Part(
            "dit" if level.timestep >= boundary else "dit_low",
            bool(settings.guided_from >= level.sigma >= settings.guided_to),
            bool(level.sigma in first_after),
        )

    return parts(levels, part)


def proceed(
    sizes: Variant,
    settings: Settings,
    part: Part,
    weights: Weights,
    context: Float[Array, "2 l d"] | Prepared,
    observation: Observation,
    state: State,
    levels: Level,
    layout: Layout = Layout(),
) -> State:
    """Sample through `levels`, which are all of one part: all of them, or the next few.

    Where it is the next few, `prepare` the context once.
    """
    _, solver = SOLVERS[settings.solver or sizes.solver]
    consistent = method(
        settings.consistency if part.acts else "none",
        **_options(settings),
        r2=clean_variance(settings, weights),
        pixels=_pixels(sizes, weights, observation),
    )
    known = sizes, settings, part, weights, context, observation.conditioning, layout
    measured = solver(settings.renoise), observation.measurement.latent, observation.mask
    if settings.reuse:
        step = caching.reusing(consistent, halves_of(*known), _reused(sizes, settings), *measured)
    else:
        step = consistent(denoiser_of(*known), *measured)
    return advance(step, state, levels)


def refresh(
    sizes: Variant,
    settings: Settings,
    part: Part,
    weights: Weights,
    context: Float[Array, "2 l d"] | Prepared,
    observation: Observation,
    state: State,
    levels: Level,
    layout: Layout = Layout(),
) -> Observation:
    """The measurement, with the holes filled by what the sample says at the first of `levels`.

    It costs a call of the model, a decode and an encode. The mask stays: its variance is that
    of the first fill, so it trusts the better one too little rather than too much.
    """
    level = Level(*(jnp.asarray(leaf[0]) for leaf in levels))
    known = sizes, settings, part, weights, context, observation.conditioning, layout
    denoise = denoiser_of(*known)
    pixels = _pixels(sizes, weights, observation)
    seen = observation.visible[..., None]
    decoded = pixels.decode(denoise(state.x, level).clean)
    filled = seen * observation.measurement.clip + (1 - seen) * decoded
    return observation._replace(measurement=Measurement(filled, pixels.encode(filled)))


def guidance_scale(sizes: Variant, settings: Settings, expert: str) -> float:
    """The expert's own weight of the prompt, unless `settings` has one."""
    if expert == "dit_low" and settings.guidance_scale_low is not None:
        return settings.guidance_scale_low
    if settings.guidance_scale is not None:
        return settings.guidance_scale
    return sizes.guidance_scale_low if expert == "dit_low" else sizes.guidance_scale


def denoiser_of(
    sizes: Variant,
    settings: Settings,
    part: Part,
    weights: Weights,
    context: Float[Array, "2 l d"] | Prepared,
    conditioning: Conditioning | None,
    layout: Layout = Layout(),
) -> Denoiser:
    """The model as the sampler asks it: the part's expert, guided by the prompt.

    `context` may be what `prepare` made of it, which saves that work where this is called often.
    """
    if not isinstance(context, Prepared):
        context = prepare(sizes, settings, part, weights, context, conditioning, layout)
    network = _network(sizes, part, weights, layout)

    def velocity(x: Float[Array, "b t h w c"], timestep: Float[Array, " b"]):
        return network(_shown(x, conditioning), timestep, context, method="velocity")

    return _guided(sizes, settings, part, velocity)


def halves_of(
    sizes: Variant,
    settings: Settings,
    part: Part,
    weights: Weights,
    context: Float[Array, "2 l d"] | Prepared,
    conditioning: Conditioning | None,
    layout: Layout = Layout(),
) -> caching.Halves:
    """The same model, cut around its blocks."""
    if not isinstance(context, Prepared):
        context = prepare(sizes, settings, part, weights, context, conditioning, layout)
    network = _network(sizes, part, weights, layout)
    prompts = _prompts(sizes, settings, part.expert)

    def deep(x: Float[Array, "t h w c"], level: Level) -> Float[Array, "b l d"]:
        both = _shown(jnp.stack([x] * prompts), conditioning), jnp.stack([level.timestep] * prompts)
        said = network(*both, context, method="residual")
        return jnp.resize(said, (_room(sizes, settings), *said.shape[1:]))

    def around(said: Float[Array, "b l d"]) -> Denoiser:
        def velocity(x: Float[Array, "b t h w c"], timestep: Float[Array, " b"]):
            x = _shown(x, conditioning)
            return network(x, timestep, said[:prompts], method="velocity_around")

        return _guided(sizes, settings, part, velocity)

    return caching.Halves(deep, around)


def _room(sizes: Variant, settings: Settings) -> int:
    """Prompts of the expert with the most of them: both write to the same memory."""
    experts = ("dit",) if sizes.boundary is None else ("dit", "dit_low")
    return max(_prompts(sizes, settings, expert) for expert in experts)


def _reused(sizes: Variant, settings: Settings) -> Float[np.ndarray, " n"]:
    """The noise levels whose steps do not ask the blocks; an expert's first one does."""
    levels = _levels(sizes, settings)
    flags = caching.every(len(levels.sigma), settings.reuse)
    low = levels.timestep < TRAIN_TIMESTEPS * (sizes.boundary or 0.0)
    flags[1:] &= low[1:] == low[:-1]
    return levels.sigma[flags]


def prepare(
    sizes: Variant,
    settings: Settings,
    part: Part,
    weights: Weights,
    context: Float[Array, "2 l d"],
    conditioning: Conditioning | None,
    layout: Layout = Layout(),
) -> Prepared:
    """What a part's expert makes of the prompts and of an image, for all of its steps.

    Both prompts, in one batch, or without guidance the last alone.
    """
    context = context[-_prompts(sizes, settings, part.expert) :]
    tokens = None
    if conditioning is not None:
        times = lambda leaf: jnp.broadcast_to(leaf, (len(context), *leaf.shape))
        tokens = jax.tree.map(times, conditioning.tokens)
    grid = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]
    network = _network(sizes, part, weights, layout)
    return network(grid, context, tokens, method="prepare")


def _guided(sizes: Variant, settings: Settings, part: Part, velocity: Velocity) -> Denoiser:
    scale = guidance_scale(sizes, settings, part.expert)
    return denoiser(velocity) if scale == 1 else guided(velocity, scale)


def _prompts(sizes: Variant, settings: Settings, expert: str) -> int:
    """How many the expert is asked with: without guidance, the negative one has no say."""
    return 1 if guidance_scale(sizes, settings, expert) == 1 else 2


def _shown(
    x: Float[Array, "b t h w c"], conditioning: Conditioning | None
) -> Float[Array, "b t h w c2"]:
    """What an image model is shown lies beside the noise."""
    if conditioning is None:
        return x
    channels = jnp.broadcast_to(conditioning.channels, (len(x), *conditioning.channels.shape))
    return jnp.concatenate([x, channels], axis=-1)


def _network(sizes: Variant, part: Part, weights: Weights, layout: Layout) -> Callable[..., Any]:
    """The part's expert: its inputs, and the `method` that is meant."""
    network = WanDiT(sizes.dit, dtype=jnp.dtype(sizes.dtype), layout=layout)
    return partial(network.apply, {"params": getattr(weights, part.expert)})


def finish(sizes: Variant, weights: Weights, state: State) -> Float[Array, "t h w 3"]:
    """Decode."""
    return _decode(sizes, weights, state.x)


def clean_variance(settings: Settings, weights: Weights) -> CleanVariance:
    """r_σ²: that of a unit Gaussian, or as measured, where that is asked for and was done."""
    measured = weights.calibration.clean_error
    return measured if settings.clean_error == "measured" and measured else unit_gaussian


def _options(settings: Settings) -> dict[str, float | int | str]:
    """The settings of a method that were given; for the others it has its own."""
    names = "gamma", "gamma_schedule", "noise", "inner"
    given = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _pixels(sizes: Variant, weights: Weights, observation: Observation) -> Pixels:
    return Pixels(
        encode=partial(_encode, sizes, weights),
        decode=partial(_decode, sizes, weights),
        clip=observation.measurement.clip,
        visible=observation.visible,
    )


def _encode(sizes: Variant, weights: Weights, clip: Float[Array, "t h w 3"]):
    return wan_vae.encode(sizes.vae, weights.vae, clip[None], chunk=sizes.chunk)[0]


def _decode(sizes: Variant, weights: Weights, latent: Float[Array, "t h w c"]):
    chunk = sizes.chunk and sizes.chunk // sizes.vae.temporal_factor
    return wan_vae.decode(sizes.vae, weights.vae, latent[None], chunk=chunk)[0]
