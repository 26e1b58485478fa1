"""Many clips, directed side by side: a window of each at a time, on devices of its own.

Whatever its size and length, a clip runs in windows of the model's own size. So clips of any
kind share one compiled program, and the place of one that ends is taken by the next.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8, UInt32

from . import framing, pipeline, programs
from .director import Footage, Take, joined, look, overflowed, plan, scenes, timed
from .edit import Edit
from .errors import InputError
from .model import Model, Weights
from .models.layout import Layout
from .models.variants import Variant
from .parallel import OverClips
from .pipeline import Scene
from .settings import Settings
from .shot import Shot


class Reel(NamedTuple):
    """A clip on its way through the model."""

    name: str
    footage: Footage
    """At the model's size."""
    fit: framing.Fit
    observed: UInt8[np.ndarray, "t h w 3"]
    visible: Float[np.ndarray, "t h w"]
    context: Float[np.ndarray, "2 l d"]
    seed: int
    windows: list[range]
    finished: list[UInt8[np.ndarray, "t h w 3"]]
    """At the model's size."""
    seconds: dict[str, float]


class Window(NamedTuple):
    """What a window came to. Over clips, each of these has a leading axis, on the host."""

    frames: UInt8[Array | np.ndarray, "*n t h w 3"]
    finite: Bool[Array | np.ndarray, "*n"]
    """Whether the sample is: as bytes, not-a-number would be black without a word."""


def begin(
    model: Model, name: str, footage: Footage, context: Float[np.ndarray, "2 l d"], seed: int
) -> Reel:
    """A clip before its first window; of the model only sizes matter.

    Raises:
        InputError: nothing of the source is visible in the result.
    """
    seconds: dict[str, float] = {}
    fit = framing.fit(footage.frames.shape[1:3], (model.variant.height, model.variant.width))
    with timed(seconds, "warp"):
        observed, visible = look(footage)
    small, windows = footage.to_working(fit), plan(model, footage)
    return Reel(name, small, fit, observed, visible, context, seed, windows, [], seconds)


def side_by_side(
    model: Model, settings: Settings, reels: Iterable[Reel], run: OverClips, places: int
) -> Iterator[tuple[str, Take | InputError]]:
    """Directs clips, so many at a time as there are places, and gives each when it has ended.

    `run` is `window` over clips (`parallel.over_clips` or `over_mesh`), the model's weights lie
    where it wants them, and `settings` are resolved. A clip has the frames that `director.direct`
    gives it, up to rounding, whichever clips run beside it. Its seconds are those of its rounds.
    One whose sample overflowed ends there: in place of its take stands what to say of it.
    """
    reels, active = iter(reels), []
    while active := [*active, *islice(reels, places - len(active))]:
        began = time.perf_counter()
        made = run(model.weights, _stacked([_next_window(reel) for reel in active]))
        took = time.perf_counter() - began
        came_to, active = zip(active, *made, strict=True), []
        for reel, frames, finite in came_to:
            reel = _advanced(reel, frames, took)
            if not finite:
                yield reel.name, overflowed()
            elif len(reel.finished) < len(reel.windows):
                active.append(reel)
            else:
                take = joined(
                    settings, reel.fit, reel.finished, reel.observed, reel.visible, reel.seconds
                )
                yield reel.name, take


def window(sizes: Variant, settings: Settings, layout: Layout = Layout()) -> Callable[..., Window]:
    """A window from beginning to end, as one pure function of weights and arrays."""

    def run(
        weights: Weights,
        scene: Scene,
        filler: Scene,
        context: Float[Array, "2 l d"],
        key: UInt32[Array, " n"],
    ) -> Window:
        mask_key, noise_key = jax.random.split(jax.random.wrap_key_data(key))
        seen = pipeline.observe(sizes, settings, weights, scene, filler, mask_key, layout)
        state = pipeline.sample(sizes, settings, weights, context, seen, noise_key, layout)
        frames = pipeline.finish_bytes(sizes, weights, state, layout)
        return Window(frames, jnp.isfinite(state.x).all())

    return run


def abstract_clip(sizes: Variant, footage: type[Shot] | type[Edit]) -> tuple[Any, ...]:
    """The shapes of what `window` takes besides the weights."""
    scene = programs.abstract_scene(sizes, footage)
    key = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0)))
    return scene, scene, programs.abstract_context(sizes), key


def _next_window(reel: Reel) -> tuple[Any, ...]:
    """The arguments of `window`, on the host: one device need not hold those of all clips."""
    index = len(reel.finished)
    footage = reel.footage.take(reel.windows[index])
    key = jax.random.fold_in(jax.random.key(reel.seed), index)
    given = *scenes(footage, reel.finished), reel.context, jax.random.key_data(key)
    return jax.device_get(given)


def _stacked(windows: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    return jax.tree.map(lambda *leaves: np.stack(leaves), *windows)


def _advanced(reel: Reel, made: UInt8[np.ndarray, "t h w 3"], seconds: float) -> Reel:
    total = {"sample": reel.seconds.get("sample", 0.0) + seconds}
    return reel._replace(finished=[*reel.finished, made], seconds=reel.seconds | total)
