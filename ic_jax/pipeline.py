"""The story: warp, fill, encode, mask, sample, decode.

    cameras, depth ──► warp operator ──┬─► warped clip ─► fill ─► encode ─► y ──┐
                                       └─► latent_mask(warp, encode) ─► (a, v) ─┤
    text ─► context ─► denoiser ─► guided ─► consistent(y, a, v) ─► sample ─────┴─► decode

Editing is the same story with another operator: the identity, where a mask keeps the source.

All functions here are pure, work on one clip of the model's own size, and take the
weights as an argument: `jax.jit`, `jax.vmap` and `jax.pmap` apply to every one of them.
`layout` is static, and spreads the networks over devices that share a clip.
The encoder runs before the loop and the decoder after it, and nothing is differentiated, save by
the baselines that go to pixels or backwards through the model.
"""

from collections.abc import Callable
from functools import partial
from math import prod
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray, Shaped, UInt8

from .choices import check
from .conditioning import Conditioning, condition
from .course import Part, check_levels, recipe, reused, schedule, stages
from .errors import InputError
from .expert import denoiser_of, expert, halves_of
from .fill import fill
from .geometry.mask import MaskOperator
from .geometry.warp import WarpOperator
from .latent_mask import MASKS, Encode, LatentMask, Measurement, Operator, fitting
from .model import Weights
from .models import wan_vae
from .models.clip_vision import encode_image
from .models.layout import Layout, Place
from .models.variants import Variant
from .models.wan_dit import Prepared
from .sampling import caching
from .sampling.consistency import CleanVariance, unit_gaussian
from .sampling.methods import method
from .sampling.sampler import Pixels, State, advance, start
from .sampling.schedule import Level
from .settings import Settings, most_prompts

# How far beyond its range an array may be.
ROUNDING = 1e-3


class Scene(NamedTuple):
    """What is sampled anew: the clip, and what of the result it shows."""

    clip: Float[Array, "*b t h w 3"]
    """In [-1, 1]."""
    operator: WarpOperator | MaskOperator


class Observation(NamedTuple):
    """What is known of the result."""

    observed: Float[Array, "*b t h w 3"]
    visible: Float[Array, "*b t h w"]
    measurement: Measurement
    mask: LatentMask
    conditioning: Conditioning | None


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

    `context` embeds [negative prompt, prompt] (see `text`). `choices.resolve` puts the model's
    calibrated `variance_scale` into `settings`; left at None it is 1 here. `settings.composite`
    is for `director.direct`, which has the clip's own size.

    Raises:
        InputError: a setting out of its range, a name that does not exist, a scene of another
            size than the model's or of no floats, or, where it is not traced, of other values
            than [-1, 1] in the clip and [0, 1] in what is visible.
    """
    check(settings)
    check_levels(sizes, settings)
    _check_scene(sizes, scene)
    mask_key, noise_key = jax.random.split(key)
    observation = observe(sizes, settings, weights, scene, scene, mask_key, layout)
    state = sample(sizes, settings, weights, context, observation, noise_key, layout)
    return finish(sizes, weights, state, layout)


def _check_scene(sizes: Variant, scene: Scene) -> None:
    size = sizes.frames, sizes.height, sizes.width
    for name, array, shape, low in (
        ("clip", scene.clip, (*size, 3), -1),
        ("operator.visible", scene.operator.visible, size, 0),
    ):
        if array.shape != shape or not jnp.issubdtype(array.dtype, jnp.floating):
            raise InputError(
                f"scene.{name} is {array.dtype} of shape {array.shape}; "
                f"give floats in [{low}, 1] of shape {shape}"
            )
        if isinstance(array, jax.core.Tracer):  # it has no values yet
            continue
        least, most = float(array.min()), float(array.max())
        if not low - ROUNDING <= least <= most <= 1 + ROUNDING:
            raise InputError(
                f"scene.{name} holds values from {least:g} to {most:g}; give [{low}, 1]"
            )


def observe(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    scene: Scene,
    filler: Scene,
    key: PRNGKeyArray,
    layout: Layout = Layout(),
) -> Observation:
    """Apply the operator, fill the holes, encode once, and ask how far to trust each latent.

    `filler` is the scene whose other frames fill the holes: `scene` itself, unless some
    of its frames stand for something else (see `framing.windows`).
    """
    encode = partial(_encode, sizes, weights, layout)
    observed, visible = scene.operator.apply(scene.clip), scene.operator.visible
    filled = fill(filler.operator, filler.clip, observed, visible)
    measurement = Measurement(filled, encode(filled))
    mask = latent_mask(sizes, settings, weights, scene.operator, measurement, key, layout)
    conditioning = None
    if sizes.conditioning is not None:
        known = visible > 0.5  # image models were trained on binary masks
        conditioning = _conditioning(sizes, weights, measurement, known, encode, layout)
        if not settings.conditioning:
            conditioning = jax.tree.map(jnp.zeros_like, conditioning)
    return Observation(observed, visible, measurement, mask, conditioning)


def latent_mask(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    operator: Operator,
    measurement: Measurement,
    key: PRNGKeyArray,
    layout: Layout = Layout(),
) -> LatentMask:
    """How far to trust each latent, by the construction that `settings` names."""
    name = settings.latent_mask
    construct = MASKS[name]
    if name == "kernel":
        construct = partial(construct, weights=weights.calibration.kernel)
    mask = construct(operator, partial(_encode, sizes, weights, layout), measurement, key)
    a, v = fitting(mask, measurement.latent, name)
    return LatentMask(a, v if settings.variance_scale is None else settings.variance_scale * v)


def _conditioning(
    sizes: Variant,
    weights: Weights,
    measurement: Measurement,
    known: Bool[Array, "t h w"],
    encode: Encode,
    layout: Layout,
) -> Conditioning:
    """What the model was trained to be shown: any known pixels, or those of the first frame."""
    if sizes.conditioning == "first_frame":
        known = known & (jnp.arange(len(known)) == 0)[:, None, None]
    tokens = None
    if sizes.clip is not None:
        frame, dtype = measurement.clip[0], jnp.dtype(sizes.dtype)
        tokens = encode_image(sizes.clip, weights.clip, frame, dtype, layout.attend_context)
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
    solver = recipe(sizes, settings).solver
    state = start(key, shape, solver(settings.renoise))
    if settings.reuse:
        tokens = prod(shape[:3]) // prod(sizes.dit.patch)
        said = (most_prompts(sizes, settings), tokens, sizes.dit.dim)
        state = caching.empty(state, jax.ShapeDtypeStruct(said, jnp.float32))
    return state, schedule(sizes, settings)


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

    Where it is the next few, `expert.prepare` the context once.
    """
    solver = recipe(sizes, settings).solver
    consistent = method(
        settings.consistency if part.acts else "none",
        **_options(settings),
        r2=clean_variance(settings, weights),
        pixels=_pixels(sizes, weights, observation, layout),
    )
    given = weights, context, observation.conditioning, layout
    asked = expert(sizes, settings, part.expert, *given)
    measured = solver(settings.renoise), observation.measurement.latent, observation.mask
    if settings.reuse:
        halves = halves_of(asked, most_prompts(sizes, settings))
        step = caching.reusing(consistent, halves, reused(sizes, settings), *measured)
    else:
        step = consistent(denoiser_of(asked), *measured)
    # As it came: XLA would cut it up as it likes, and compile the next step for that.
    whole = lambda leaf: layout.whole(leaf) if leaf.ndim else leaf
    return caching.apart(layout.keep, whole, advance(step, state, levels))


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
    given = weights, context, observation.conditioning, layout
    denoise = denoiser_of(expert(sizes, settings, part.expert, *given))
    pixels = _pixels(sizes, weights, observation, layout)
    seen = observation.visible[..., None]
    decoded = pixels.decode(denoise(state.x, level).clean)
    filled = seen * observation.measurement.clip + (1 - seen) * decoded
    return observation._replace(measurement=Measurement(filled, pixels.encode(filled)))


def finish(
    sizes: Variant, weights: Weights, state: State, layout: Layout = Layout()
) -> Float[Array, "t h w 3"]:
    """Decode, to [-1, 1]."""
    return _decode(sizes, weights, layout, state.x)


def finish_bytes(
    sizes: Variant, weights: Weights, state: State, layout: Layout = Layout()
) -> UInt8[Array, "t h w 3"]:
    """Decode, to what a file holds."""
    return _decode(sizes, weights, layout, state.x, wan_vae.decode_bytes)


def clean_variance(settings: Settings, weights: Weights) -> CleanVariance:
    """r_σ²: that of a unit Gaussian, or as measured, where that is asked for and was done."""
    measured = weights.calibration.clean_error
    return measured if settings.clean_error == "measured" and measured else unit_gaussian


def _options(settings: Settings) -> dict[str, float | int | str]:
    """The settings of a method that were given; for the others it has its own."""
    names = "gamma", "gamma_schedule", "noise", "inner"
    given = {name: getattr(settings, name) for name in names}
    return {name: value for name, value in given.items() if value is not None}


def _pixels(sizes: Variant, weights: Weights, observation: Observation, layout: Layout) -> Pixels:
    return Pixels(
        encode=partial(_encode, sizes, weights, layout),
        decode=partial(_decode, sizes, weights, layout),
        clip=observation.measurement.clip,
        visible=observation.visible,
    )


def _encode(
    sizes: Variant, weights: Weights, layout: Layout, clip: Float[Array, "t h w 3"]
) -> Float[Array, "t2 h2 w2 c"]:
    given = sizes.vae, weights.vae, layout.whole(clip[None])
    return layout.whole(wan_vae.encode(*given, chunk=sizes.chunk, place=_rows(sizes, layout)))[0]


def _decode(
    sizes: Variant,
    weights: Weights,
    layout: Layout,
    latent: Float[Array, "t h w c"],
    decode: Callable[..., Shaped[Array, "1 t2 h2 w2 3"]] = wan_vae.decode,
) -> Shaped[Array, "t2 h2 w2 3"]:
    chunk = sizes.chunk and sizes.chunk // sizes.vae.temporal_factor
    given = sizes.vae, weights.vae, layout.whole(latent[None])
    return layout.whole(decode(*given, chunk=chunk, place=_rows(sizes, layout)))[0]


def _rows(sizes: Variant, layout: Layout) -> Place:
    return partial(layout.rows, latent_rows=sizes.height // sizes.vae.spatial_factor)
