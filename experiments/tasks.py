"""What the studies ask of a method: a scene, and what should come of it, by number.

A task is the same at every call, so that all methods answer the same questions and an interrupted
study goes on. Without `clips`, tasks are made of rendered scenes and of the natural clips that
arrive inside Python packages; with them (see `clips_data`), of a user's own.
"""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from experiments.clip_files import ClipFile, read_frames, read_regenerate, read_shot
from experiments.held_out import NewView, stored_view
from experiments.hole_shapes import moving_hole
from experiments.natural_clips import natural_clips
from experiments.round_trip import Footage, round_trip, with_made_up_depth
from experiments.scene_motion import Motion, known_motion, view_motion
from experiments.scenes import scene_of
from ic_jax.errors import InputError
from ic_jax.geometry.depth import depth_edges
from ic_jax.geometry.mask import MaskOperator
from ic_jax.models.variants import Variant
from ic_jax.pipeline import Scene
from ic_jax.video import to_float

# Defaults are chosen by these scenes, so no other study may report on them.
FIRST_STUDY_SEED = 4_000_000
PER_SOURCE = 6
# Shares of a clip between which its own mask is a task, and not a formality.
SMALLEST_MASK, LARGEST_MASK = 0.05, 0.60


class Task(NamedTuple):
    """One question."""

    name: str
    """Stable and unique; fit to be a file's name."""
    scene: Scene
    """What the method is given, at the model's size."""
    truth: Float[Array, "t h w 3"]
    """What should come of it, in [-1, 1]."""
    caption: str
    flow: Motion | None = None
    """How the truth moves, where that is known."""


Make = Callable[[Variant, Path, int, Sequence[ClipFile] | None], Task]


def recapture(
    sizes: Variant, data: Path, number: int, clips: Sequence[ClipFile] | None = None
) -> Task:
    """A rendered scene from a new camera, five in turn, whose true view is known.

    Raises:
        InputError: clips are given, of which no camera saw another view.
    """
    if clips is not None:
        raise InputError(
            "a new view of your own clips has no truth to compare with;"
            " study reprojection on them instead"
        )
    view = _view(sizes, data, number)
    scene, flow = Scene(view.clip, view.operator), view_motion(FIRST_STUDY_SEED + number, view)
    return Task(f"recapture-{number:04d}", scene, view.truth, view.caption, flow)


def inpainting(
    sizes: Variant, data: Path, number: int, clips: Sequence[ClipFile] | None = None
) -> Task:
    """A clip with a moving hole of 15 to 30 %, behind which the pixels are known.

    Rendered scenes and natural clips come in turn. A user's clip that has its own masks is
    inpainted under them, where they cover 5 to 60 % of it.
    """
    size = sizes.frames, sizes.height, sizes.width
    keep, flow = moving_hole(number, *size), None
    if clips is not None:
        file = clips[number % len(clips)]
        source, caption, clip = file.name, file.caption, _floats(read_frames(file, sizes))
        regenerate = read_regenerate(file, sizes)
        if SMALLEST_MASK <= regenerate.mean() <= LARGEST_MASK:
            keep = 1 - regenerate.astype(np.float32)
    elif number % 2:
        source, caption, clip = "natural", "", _natural(sizes, number // 2)
    else:
        view = _view(sizes, data, number // 2)
        source, caption, clip = "scene", view.caption, view.clip
        drawn, c2w, intrinsics = scene_of(FIRST_STUDY_SEED + number // 2, *size)
        times = jnp.linspace(0, 1, sizes.frames)
        flow = known_motion(drawn, c2w, intrinsics, times, sizes.height, sizes.width)
    scene = Scene(clip, MaskOperator(jnp.asarray(keep)))
    return Task(f"inpainting-{number:04d}-{source}", scene, clip, caption, flow)


def reprojection(
    sizes: Variant, data: Path, number: int, clips: Sequence[ClipFile] | None = None
) -> Task:
    """A real clip, warped to one of five cameras and back; `data` is not read.

    It goes by the clip's own depth where there is some, and by made-up depth elsewhere.
    """
    if clips is None:
        source, caption = "natural", ""
        footage = with_made_up_depth(_natural(sizes, number), number)
    else:
        file = clips[number % len(clips)]
        source, caption = file.name, file.caption
        if file.depth is None:
            footage = with_made_up_depth(_floats(read_frames(file, sizes)), number)
        else:
            shot = read_shot(file, sizes)
            known = shot.depth, shot.source, shot.keep
            depth, camera, keep = jax.tree.map(jnp.asarray, known)
            keep &= depth_edges(depth)
            footage = Footage(_floats(shot.frames), depth, camera, keep)
    scene = round_trip(footage, number)
    return Task(f"reprojection-{number:04d}-{source}", scene, footage.clip, caption)


TASKS: dict[str, Make] = {
    "recapture": recapture,
    "inpainting": inpainting,
    "reprojection": reprojection,
}


def _view(sizes: Variant, data: Path, number: int) -> NewView:
    size = sizes.frames, sizes.height, sizes.width
    return stored_view(data / "held_out", FIRST_STUDY_SEED + number, number, *size)


def _natural(sizes: Variant, number: int) -> Float[Array, "t h w 3"]:
    """The sources in turn; after the last of their clips, the first again."""
    clips = _all_natural(sizes.frames, sizes.height, sizes.width)
    sources = len(clips) // PER_SOURCE
    turn, source = divmod(number, sources)
    return _floats(clips[source * PER_SOURCE + turn % PER_SOURCE])


@cache
def _all_natural(frames: int, height: int, width: int) -> UInt8[np.ndarray, "n t h w 3"]:
    try:
        return natural_clips("test", frames, height, width, PER_SOURCE)
    except ValueError:  # none of the sources is as large
        raise InputError(
            f"no clip inside the Python packages is as large as {width}x{height};"
            " give --clips or --davis"
        ) from None


def _floats(frames: UInt8[np.ndarray, "t h w 3"]) -> Float[Array, "t h w 3"]:
    return jnp.asarray(to_float(frames))
