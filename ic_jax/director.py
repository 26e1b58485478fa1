"""Re-capture of a whole clip: the pipeline, window by window, on frames of any size."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from . import framing, pipeline
from .composite import composite
from .errors import InputError
from .latent_mask import MASKS
from .model import Model, embed, tokenize
from .pipeline import CONSISTENCIES, Scene, Settings
from .shot import Shot, hold, take, to_working
from .video import to_float, to_uint8

# Frames that a window takes over from the one before: two latents' worth.
OVERLAP = 5

Progress = Callable[[str, int], None]

_observe = jax.jit(pipeline.observe, static_argnums=(0, 1))
_proceed = jax.jit(pipeline.proceed, static_argnums=(0, 1), donate_argnums=5)
_finish = jax.jit(pipeline.finish, static_argnums=0)
_embed = jax.jit(embed, static_argnums=0)
_apply = jax.jit(lambda operator, clip: operator.apply(clip))
_composite = jax.jit(composite)


class Take(NamedTuple):
    """What came of it, at the source's size."""

    recaptured: UInt8[np.ndarray, "t h w 3"]
    """The result: `generated`, with `warped` over it where `Settings.composite` is on."""
    generated: UInt8[np.ndarray, "t h w 3"]
    """What the model decoded."""
    warped: UInt8[np.ndarray, "t h w 3"]
    visible: Float[np.ndarray, "t h w"]
    seconds: dict[str, float]


def resolve(settings: Settings, model: Model) -> Settings:
    """Settings with the model's own recommendation in place of every None.

    Raises:
        InputError: a setting out of its range, or a name that does not exist.
    """
    _check(settings)
    sizes = model.variant
    recommended = {
        "steps": sizes.steps,
        "guidance_scale": sizes.guidance_scale,
        "shift": sizes.shift,
        "response_scale": model.calibration.get("response_scale", 1.0),
        "composite": sizes.composite,
    }
    unset = {n: value for n, value in recommended.items() if getattr(settings, n) is None}
    return replace(settings, **unset)


def plan(model: Model, shot: Shot) -> list[range]:
    """The windows that a shot runs in."""
    return framing.windows(len(shot.frames), model.variant.frames, OVERLAP)


def direct(
    model: Model,
    settings: Settings,
    shot: Shot,
    *,
    prompt: str = "",
    negative_prompt: str = "",
    seed: int = 0,
    progress: Progress = lambda stage, steps: None,
) -> Take:
    """Re-capture a shot of any size and length.

    The frame is fitted into the model's by the rule of `framing`; a longer clip runs in
    windows, each of which observes its predecessor's last frames as well. `progress` is
    told the stage and how many steps of it are done.

    Raises:
        InputError: nothing of the source is visible from the new camera.
    """
    sizes, weights = model.variant, model.weights
    seconds: dict[str, float] = {}
    settings = resolve(settings, model)
    fit = framing.fit(shot.frames.shape[1:3], (sizes.height, sizes.width))
    small = to_working(shot, fit)

    with timed(seconds, "text"):
        tokens, mask = tokenize(sizes, [negative_prompt, prompt])
        context = _embed(sizes, weights.umt5, tokens, mask)

    with timed(seconds, "warp"):
        warped, visible = warp(shot, sizes.frames)
    if not visible.any():
        raise InputError("the new camera sees nothing of the source; use a smaller move")

    results = []
    for index, window in enumerate(plan(model, shot)):
        part = filler = take(small, window)
        if index:
            part = hold(part, results[-1][-OVERLAP:])
        key, noise_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), index))
        progress("encode", 0)
        with timed(seconds, "encode"):
            scene, filler = (Scene(_clip(s), s.operator()) for s in (part, filler))
            seen = _observe(sizes, settings, weights, scene, filler, key)
            jax.block_until_ready(seen)
        with timed(seconds, "sample"):
            state, levels = pipeline.begin(sizes, settings, noise_key)
            for i in range(len(levels.sigma)):
                level = jax.tree.map(lambda leaf: leaf[i : i + 1], levels)
                state = _proceed(sizes, settings, weights, context, seen, state, level)
                jax.block_until_ready(state)
                progress("sample", 1)
        progress("decode", 0)
        with timed(seconds, "decode"):
            results.append(to_uint8(np.asarray(_finish(sizes, weights, state))))

    joined = framing.join(results, OVERLAP, len(shot.frames))
    generated = recaptured = framing.from_working(joined, fit)
    if settings.composite:
        with timed(seconds, "composite"):
            recaptured = _composited(generated, warped, visible, sizes.frames)
    return Take(recaptured, generated, warped, visible, seconds)


def warp(shot: Shot, chunk: int) -> tuple[UInt8[np.ndarray, "t h w 3"], Float[np.ndarray, "t h w"]]:
    """The shot from its target cameras, and what of it is visible, `chunk` frames at a time."""
    warped, visible = [], []
    for window in framing.windows(len(shot.frames), chunk, 0):
        part = take(shot, window)
        operator = part.operator()
        warped.append(to_uint8(np.asarray(_apply(operator, _clip(part)))))
        visible.append(np.asarray(operator.visible))
    return tuple(framing.join(parts, 0, len(shot.frames)) for parts in (warped, visible))


def _composited(
    generated: UInt8[np.ndarray, "t h w 3"],
    warped: UInt8[np.ndarray, "t h w 3"],
    visible: Float[np.ndarray, "t h w"],
    chunk: int,
) -> UInt8[np.ndarray, "t h w 3"]:
    """`composite` of bytes, `chunk` frames at a time: every frame stands alone."""
    parts = []
    for window in framing.windows(len(generated), chunk, 0):
        a, b, share = (framing.take(clip, window) for clip in (generated, warped, visible))
        parts.append(to_uint8(np.asarray(_composite(to_float(a), to_float(b), share))))
    return framing.join(parts, 0, len(generated))


def _clip(shot: Shot) -> jax.Array:
    return jnp.asarray(to_float(shot.frames))


def _check(settings: Settings) -> None:
    for name, known in (("mask", list(MASKS)), ("consistency", CONSISTENCIES)):
        value = getattr(settings, name)
        if value not in known:
            raise InputError(f"unknown --{name} {value!r}; one of {', '.join(known)}")
    ranges = {
        "steps": (1, 1000),
        "shift": (1e-3, 1e3),
        "guidance_scale": (0, 100),
        "gamma": (0, 1e6),
        "guided_from": (0, 1),
        "guided_to": (0, 1),
        "renoise": (0, 1),
        "response_scale": (0, 1e6),
    }
    for name, (low, high) in ranges.items():
        value = getattr(settings, name)
        if value is not None and not low <= value <= high:
            option = name.replace("_", "-")
            raise InputError(f"--{option} is {value}; give a number from {low} to {high}")
    if settings.guided_from < settings.guided_to:
        raise InputError("--guided-from is below --guided-to; give the higher noise level first")


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds the seconds that the block takes to those of its stage."""
    began = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - began
