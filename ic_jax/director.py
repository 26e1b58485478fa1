"""A whole clip, moved or edited: the pipeline, window by window, on frames of any size."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from . import framing, pipeline, programs
from .composite import composite
from .course import check_levels
from .edit import Edit
from .errors import InputError
from .geometry.mask import MaskOperator
from .geometry.warp import WarpOperator
from .latent_mask import MASKS
from .model import Model
from .models.frames import from_bytes, to_bytes
from .models.layout import Layout
from .parallel import beside
from .pipeline import Observation, Scene
from .sampling.consistency import GAMMA_SCHEDULES, NOISES
from .sampling.methods import METHODS, options
from .sampling.sampler import State
from .sampling.solvers import SOLVERS
from .settings import Settings, guidance_scale

# Frames that a window takes over from the one before: two latents' worth.
OVERLAP = 5

CLEAN_ERRORS = "gaussian", "measured"

Progress = Callable[[str, int], None]
Keep = Callable[["Midway"], None]

# Bytes in and bytes out: floats stay on the device.
_clip = jax.jit(from_bytes)
_apply = jax.jit(lambda operator, frames: to_bytes(operator.apply(from_bytes(frames))))
_composite = jax.jit(
    lambda generated, observed, visible: to_bytes(
        composite(from_bytes(generated), from_bytes(observed), visible)
    )
)


@runtime_checkable
class Footage(Protocol):
    """What is directed: a `Shot` to be seen from elsewhere, or an `Edit` of a clip.

    `take` gives the frames of a window, `to_working` fits them to the model's size, and `hold`
    declares the first n frames finished. The operator says what of the result the frames show.
    """

    frames: UInt8[np.ndarray, "t h w 3"]

    def operator(self) -> WarpOperator | MaskOperator: ...
    def to_working(self, fit: framing.Fit) -> "Footage": ...
    def take(self, window: range) -> "Footage": ...
    def hold(self, known: UInt8[np.ndarray, "n h w 3"]) -> "Footage": ...


class Take(NamedTuple):
    """What came of it, at the source's size."""

    result: UInt8[np.ndarray, "t h w 3"]
    """`generated`, with `observed` over it where `Settings.composite` is on."""
    generated: UInt8[np.ndarray, "t h w 3"]
    """What the model decoded."""
    observed: UInt8[np.ndarray, "t h w 3"]
    """The clip as warped, or what an edit keeps of it."""
    visible: Float[np.ndarray, "t h w"]
    seconds: dict[str, float]


class Midway(NamedTuple):
    """A run between two steps: all that it needs to go on to the same bits."""

    finished: list[UInt8[np.ndarray, "t h w 3"]]
    """The windows before this one, at the model's size."""
    seen: Observation
    state: State
    """Its arrays are the next step's to overwrite: copy what is to be kept (`midway.save`)."""
    step: int
    """Steps of this window that are done."""


def resolve(settings: Settings, model: Model, editing: bool = False) -> Settings:
    """Settings with the model's own recommendation in place of every None.

    An edit leans on its prompt more than a new view does, and shows what the model made of all
    of the clip.

    Raises:
        InputError: a setting out of its range, a name that does not exist, or noise levels at
            which no step begins.
    """
    check(settings)
    sizes = model.variant
    if settings.latent_mask == "kernel" and "kernel" not in model.calibration:
        raise InputError(f"{model.name}: mask kernel was never fitted to it; run ic-jax calibrate")
    if settings.clean_error == "measured" and "clean_error" not in model.calibration:
        raise InputError(f"{model.name}: its clean error was never measured; run ic-jax calibrate")
    recommended = {
        "solver": sizes.solver,
        "steps": sizes.steps,
        "guidance_scale": guidance_scale(sizes, settings, "dit"),
        "shift": sizes.shift,
        "clean_error": "gaussian",
        "variance_scale": variance_scale(model, settings.latent_mask),
        "composite": sizes.composite and not editing,
    }
    if editing and sizes.edit_guidance_scale is not None:
        recommended["guidance_scale"] = sizes.edit_guidance_scale
    if sizes.boundary is not None:
        recommended["guidance_scale_low"] = guidance_scale(sizes, settings, "dit_low")
    unset = {n: value for n, value in recommended.items() if getattr(settings, n) is None}
    resolved = replace(settings, **unset)
    check_levels(sizes, resolved)
    return resolved


def variance_scale(model: Model, mask: str) -> float:
    """What calibration says of this mask's error variance; 1 where it says nothing."""
    return model.calibration.get("variance_scale", {}).get(mask, 1.0)


def plan(model: Model, footage: Footage) -> list[range]:
    """The windows that a clip runs in."""
    return framing.windows(len(footage.frames), model.variant.frames, OVERLAP)


def direct(
    model: Model,
    settings: Settings,
    footage: Footage,
    context: Float[Array, "2 l d"],
    *,
    seed: int = 0,
    progress: Progress = lambda stage, steps: None,
    midway: Midway | None = None,
    keep: Keep = lambda midway: None,
    layout: Layout = Layout(),
) -> Take:
    """Re-capture a shot, or carry out an edit, of any size and length.

    `context` embeds [negative prompt, prompt] (`text.embed_prompts`). The frame is fitted into
    the model's by the rule of `framing`; a longer clip runs in windows, each of which observes
    its predecessor's last frames as well. `progress` is told the stage and how many steps of it
    are done. `keep` is given the run after every step; from one of these, as `midway`, the same
    call goes on to the same frames bit for bit, on the same kind of device. `layout` spreads
    the networks over the devices that their weights lie on (`parallel`).

    Raises:
        InputError: nothing of the source is visible in the result, or the sample overflowed.
    """
    sizes, weights = model.variant, model.weights
    seconds: dict[str, float] = {}
    settings = resolve(settings, model, isinstance(footage, Edit))
    fit = framing.fit(footage.frames.shape[1:3], (sizes.height, sizes.width))
    small = footage.to_working(fit)

    with timed(seconds, "warp"):
        observed, visible = look(footage)

    finished = [] if midway is None else midway.finished
    if midway is not None:
        progress("sample", len(finished) * settings.steps + midway.step)
    for index, window in list(enumerate(plan(model, footage)))[len(finished) :]:
        key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
        if midway is None:
            progress("encode", 0)
            with timed(seconds, "encode"):
                seen = _seen(model, settings, small.take(window), finished, key, layout)
            state, _ = pipeline.begin(sizes, settings, noise_key)
            midway = Midway(finished, seen, state, 0)
        with timed(seconds, "sample"):
            for midway in _steps(model, settings, context, midway, layout):
                progress("sample", 1)
                keep(midway)
        # as bytes, not-a-number would be black without a word
        if not np.isfinite(np.asarray(midway.state.x)).all():
            raise overflowed()
        progress("decode", 0)
        with timed(seconds, "decode"):
            decoded = programs.finish(sizes, weights, midway.state, layout)
            finished = [*finished, np.asarray(decoded)]
        midway = None

    return joined(settings, fit, finished, observed, visible, seconds)


def overflowed() -> InputError:
    """What is said of a clip whose sample is not finite."""
    return InputError(
        "the sample is not finite: the model overflowed; use less guidance, and see with"
        " ic-jax verify whether its weights were converted well"
    )


def joined(
    settings: Settings,
    fit: framing.Fit,
    finished: list[UInt8[np.ndarray, "t h w 3"]],
    observed: UInt8[np.ndarray, "T H W 3"],
    visible: Float[np.ndarray, "T H W"],
    seconds: dict[str, float],
) -> Take:
    """The take that all finished windows of a clip make, at the source's size."""
    frames = framing.join(finished, OVERLAP, len(observed))
    generated = result = framing.from_working(frames, fit)
    if settings.composite:
        with timed(seconds, "composite"):
            result = _composited(generated, observed, visible)
    return Take(result, generated, observed, visible, seconds)


def _seen(
    model: Model,
    settings: Settings,
    window: Footage,
    finished: list[UInt8[np.ndarray, "t h w 3"]],
    key: PRNGKeyArray,
    layout: Layout,
) -> Observation:
    """What is known of a window: the source, and the end of the window before it."""
    known = model.variant, settings, model.weights
    return jax.block_until_ready(programs.observe(*known, *scenes(window, finished), key, layout))


def scenes(window: Footage, finished: list[UInt8[np.ndarray, "t h w 3"]]) -> tuple[Scene, Scene]:
    """A window as it is sampled, where the end of the one before it is known, and as filmed."""
    filler = _scene(window)
    return (_scene(window.hold(finished[-1][-OVERLAP:])) if finished else filler), filler


def _steps(
    model: Model,
    settings: Settings,
    context: Float[Array, "2 l d"],
    midway: Midway,
    layout: Layout,
) -> Iterator[Midway]:
    """The steps of a window that are left, one by one."""
    sizes, weights = model.variant, model.weights
    finished, seen, state, done = midway
    seen, state = beside(weights, (seen, state))
    told = expert = None
    for part, level in programs.steps(sizes, settings)[done:]:
        if part.expert != expert:
            expert = part.expert
            whose = sizes, settings, expert, weights, context, seen.conditioning, layout
            told = programs.prepare(*whose)
        # To the steps before and after a refresh, one program.
        known = sizes, settings, part._replace(refreshes=False), weights, told
        if part.refreshes:
            seen = programs.refresh(*known, seen, state, level, layout)
        state = jax.block_until_ready(programs.proceed(*known, seen, state, level, layout))
        done += 1
        yield Midway(finished, seen, state, done)


def look(
    footage: Footage,
) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """`observe`. Raises InputError where that is nothing at all."""
    observed, visible = observe(footage)
    if not visible.any():
        raise InputError("the new camera sees nothing of the source; use a smaller move")
    return observed, visible


def observe(
    footage: Footage,
) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """What of the result the source shows, at its own size."""
    observed, visible = [], []
    for window in _runs(len(footage.frames)):
        part = footage.take(window)
        operator = part.operator()
        observed.append(np.asarray(_apply(operator, part.frames)))
        visible.append(np.asarray(operator.visible))
    return tuple(framing.join(parts, 0, len(footage.frames)) for parts in (observed, visible))


def _composited(
    generated: UInt8[np.ndarray, "t h w 3"],
    observed: UInt8[np.ndarray, "t h w 3"],
    visible: Float[np.ndarray, "t h w"],
) -> UInt8[np.ndarray, "t h w 3"]:
    """`composite` of bytes: every frame stands alone."""
    parts = []
    for window in _runs(len(generated)):
        a, b, share = (framing.take(clip, window) for clip in (generated, observed, visible))
        parts.append(np.asarray(_composite(a, b, share)))
    return framing.join(parts, 0, len(generated))


def _runs(frames: int) -> list[range]:
    return framing.windows(frames, min(frames, framing.FRAMES_AT_ONCE), 0)


def _scene(footage: Footage) -> Scene:
    return Scene(_clip(footage.frames), footage.operator())


def check(settings: Settings) -> None:
    """Raises InputError for a setting out of its range, or a name that does not exist."""
    for name, known in (
        ("latent_mask", MASKS),
        ("consistency", METHODS),
        ("gamma_schedule", GAMMA_SCHEDULES),
        ("clean_error", CLEAN_ERRORS),
        ("noise", NOISES),
        ("solver", SOLVERS),
    ):
        value = getattr(settings, name)
        if value is not None and value not in known:
            option = name.replace("_", "-")
            raise InputError(f"unknown --{option} {value!r}; one of {', '.join(known)}")
    ranges = {
        "steps": (1, 1000),
        "shift": (1e-3, 1e3),
        "guidance_scale": (0, 100),
        "guidance_scale_low": (0, 100),
        "gamma": (0, 1e6),
        "inner": (0, 1000),
        "reuse": (0, 1000),
        "guided_from": (0, 1),
        "guided_to": (0, 1),
        "refresh_at": (0, 1),
        "renoise": (0, 1),
        "variance_scale": (0, 1e6),
    }
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}; give a number from {low} to {high}")
    takes = options(settings.consistency)
    for name in ("gamma", "gamma_schedule", "noise", "inner"):
        if getattr(settings, name) is not None and name not in takes:
            option = name.replace("_", "-")
            raise InputError(
                f"--consistency {settings.consistency} has no --{option}; leave it out"
            )
    if settings.reuse and not METHODS[settings.consistency].single:
        raise InputError(
            f"--consistency {settings.consistency} asks the model more than once in a step; "
            "leave --reuse out"
        )
    windowed = settings.guided_from < 1 or settings.guided_to > 0 or settings.refresh_at is not None
    if windowed and not METHODS[settings.consistency].trajectory:
        raise InputError(
            f"--consistency {settings.consistency} has no noisy trajectory;"
            " leave --guided-from, --guided-to and --refresh-at out"
        )
    if settings.guided_from < settings.guided_to:
        raise InputError("--guided-from is below --guided-to; give the higher noise level first")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds that the block takes to those of its stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
