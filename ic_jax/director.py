"""A whole clip, moved or edited: the pipeline, window by window, on frames of any size."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from . import framing, pipeline, programs
from .choices import resolve
from .composite import composite
from .edit import Edit
from .errors import InputError
from .expert import check_context
from .geometry.mask import MaskOperator
from .geometry.warp import WarpOperator
from .model import Model
from .models.frames import from_bytes, to_bytes
from .models.layout import Layout
from .parallel import beside
from .pipeline import Observation, Scene
from .sampling.sampler import State
from .settings import Settings

# Frames that a window takes over from the one before: two latents' worth.
OVERLAP = 5

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


@jax.tree_util.register_static
@dataclass(frozen=True)
class Run:
    """What tells a run from others of the same clip, prompts and model."""

    settings: Settings
    """As resolved."""
    seed: int


class Midway(NamedTuple):
    """A run between two steps: all that it needs to go on to the same bits."""

    finished: list[UInt8[np.ndarray, "t h w 3"]]
    """The windows before this one, at the model's size."""
    seen: Observation
    state: State
    """Its arrays are the next step's to overwrite: copy what is to be kept (`midway.save`)."""
    step: int
    """Steps of this window that are done."""
    run: Run
    """The one that it is of."""


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
    call goes on to the same frames bit for bit, on the same kind of device. The next step
    overwrites its arrays, so keep `midway.save` or `jax.tree.map(jnp.copy, ...)` of it.
    `layout` spreads the networks over the devices that their weights lie on (`parallel`).

    Raises:
        InputError: a `seed` that is not from 0 to 2^32 - 1, settings or a context that do not fit
            the model, a `midway` of other settings or another seed, nothing of the source
            visible in the result, or a sample that overflowed.
    """
    check_seed(seed)
    check_context(context, model.variant)
    sizes, weights = model.variant, model.weights
    seconds: dict[str, float] = {}
    settings = resolve(settings, model, isinstance(footage, Edit))
    run = Run(settings, seed)
    if midway is not None and midway.run != run:
        raise InputError("midway is of a run with other settings or another seed; give its own")
    fit = framing.fit(footage.frames.shape[1:3], (sizes.height, sizes.width))
    small = footage.to_working(fit)

    with timed(seconds, "warp"):
        observed, visible = look(footage)

    finished = [] if midway is None else midway.finished
    if midway is not None:
        midway = Midway(finished, *beside(weights, (midway.seen, midway.state)), midway.step, run)
        progress("sample", len(finished) * settings.steps + midway.step)
    for index, window in list(enumerate(plan(model, footage)))[len(finished) :]:
        if midway is None:
            progress("encode", 0)
            with timed(seconds, "encode"):
                key = jax.random.fold_in(jax.random.key(seed), index)
                midway = _begun(model, run, small.take(window), finished, key, layout)
        with timed(seconds, "sample"):
            for midway in _steps(model, context, midway, layout):
                progress("sample", 1)
                keep(midway)
        # as bytes, not-a-number would be black without a word
        if not np.isfinite(np.asarray(midway.state.x)).all():
            raise overflowed()
        progress("decode", 0)
        with timed(seconds, "decode"):
            made = np.asarray(programs.finish(sizes, weights, midway.state, layout))
            finished = [*finished, made]
        midway = None

    return joined(settings, fit, finished, observed, visible, seconds)


def check_seed(seed: int) -> None:
    """Raises InputError for one that another stands for: JAX reads 32 bits of it."""
    if not 0 <= seed < 2**32:
        raise InputError(f"--seed is {seed}; give a number from 0 to 2^32 - 1")


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


def _begun(
    model: Model,
    run: Run,
    window: Footage,
    finished: list[UInt8[np.ndarray, "t h w 3"]],
    key: PRNGKeyArray,
    layout: Layout,
) -> Midway:
    """A window before its first step: what the source and the window before it show, and noise."""
    sizes, weights, settings = model.variant, model.weights, run.settings
    key, noise_key = jax.random.split(key)
    seen = programs.observe(sizes, settings, weights, *scenes(window, finished), key, layout)
    state, _ = pipeline.begin(sizes, settings, noise_key)
    return Midway(finished, *beside(weights, jax.block_until_ready((seen, state))), 0, run)


def scenes(window: Footage, finished: list[UInt8[np.ndarray, "t h w 3"]]) -> tuple[Scene, Scene]:
    """A window as it is sampled, where the end of the one before it is known, and as filmed."""
    filler = _scene(window)
    return (_scene(window.hold(finished[-1][-OVERLAP:])) if finished else filler), filler


def _steps(
    model: Model,
    context: Float[Array, "2 l d"],
    midway: Midway,
    layout: Layout,
) -> Iterator[Midway]:
    """The steps of a window that are left, one by one."""
    sizes, weights = model.variant, model.weights
    finished, seen, state, done, run = midway
    # Held here, the first step's arrays would outlive the step.
    del midway
    told = expert = None
    settings = run.settings
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
        yield Midway(finished, seen, state, done, run)


def look(
    footage: Footage, progress: Progress = lambda stage, done: None
) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """What of the result the source shows, at its own size.

    `progress` is told whenever `framing.FRAMES_AT_ONCE` more frames are done.

    Raises:
        InputError: nothing at all.
    """
    observed, visible = [], []
    for window in _runs(len(footage.frames)):
        part = footage.take(window)
        operator = part.operator()
        observed.append(np.asarray(_apply(operator, part.frames)))
        visible.append(np.asarray(operator.visible))
        progress("warp", 1)
    if not any(part.any() for part in visible):
        raise InputError(
            "the new camera sees nothing of the source; use a smaller move, and of poses from a "
            "file see that z points forward (OpenCV) and that intrinsics are in pixels"
        )
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


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds that the block takes to those of its stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
