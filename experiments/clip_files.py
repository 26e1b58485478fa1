"""A user's clips at a model's size: the first frames, cut to its aspect and scaled.

A clip is cropped about its centre rather than padded: padding would be pixels that no method
can get wrong.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Shaped, UInt8

from ic_jax import framing
from ic_jax.geometry.camera import scale_intrinsics
from ic_jax.models.variants import Variant
from ic_jax.shot import Shot, load_shot
from ic_jax.video import read_image, read_video


class ClipFile(NamedTuple):
    """Where a clip's pixels are, and what is known of it."""

    name: str
    """Unique among the clips of all folders; fit to be part of a file's name."""
    video: Path | None
    images: tuple[Path, ...]
    """One per frame, where there is no video."""
    annotations: tuple[Path, ...] = ()
    """One per frame, black where there is no object. Empty where there are none."""
    caption: str = ""
    depth: Path | None = None
    """An npz file of `ic_jax.depth_file`."""


def read_frames(file: ClipFile, sizes: Variant) -> UInt8[np.ndarray, "t h w 3"]:
    """The clip's first frames at the model's size; the last is repeated if they are too few.

    Raises:
        InputError: a video or an image that cannot be read.
    """
    if file.video is not None:
        frames = read_video(file.video, sizes.frames).frames
    else:
        frames = np.stack([read_image(path, "RGB") for path in file.images[: sizes.frames]])
    rows, columns = _crop(frames.shape[1:3], sizes)
    return _in_time(framing.to_working(frames[:, rows, columns], _fit(rows, columns, sizes)), sizes)


def read_regenerate(file: ClipFile, sizes: Variant) -> Bool[np.ndarray, "t h w"]:
    """True on every annotated object, at the model's size; False everywhere without annotations.

    A pixel is to be made anew if it touches one that is annotated, as in any edit.

    Raises:
        InputError: an annotation that cannot be read.
    """
    if not file.annotations:
        return np.zeros((sizes.frames, sizes.height, sizes.width), bool)
    labels = np.stack([read_image(path, "L") for path in file.annotations[: sizes.frames]])
    rows, columns = _crop(labels.shape[1:3], sizes)
    keep = framing.mask_to_working(labels[:, rows, columns] == 0, _fit(rows, columns, sizes))
    return _in_time(~keep, sizes)


def read_shot(file: ClipFile, sizes: Variant) -> Shot:
    """The clip with its own depth and the cameras that saw it.

    Raises:
        InputError: a video or depth that cannot be read, or that do not fit each other.
    """
    whole = load_shot(read_video(file.video), file.depth, "static")
    rows, columns = _crop(whole.frames.shape[1:3], sizes)
    left, top = float(columns.start), float(rows.start)
    lens = scale_intrinsics(whole.source.intrinsics, 1.0, 1.0, left, top)
    view = whole.source._replace(intrinsics=lens)
    frames, depth, keep = (
        leaf[:, rows, columns] for leaf in (whole.frames, whole.depth, whole.keep)
    )
    part = Shot(frames, depth, view, view, keep).take(range(sizes.frames))
    return part.to_working(_fit(rows, columns, sizes))


def _crop(size: tuple[int, int], sizes: Variant) -> tuple[slice, slice]:
    """The largest window of the model's aspect, in the middle: its rows and columns."""
    scale = min(size[0] / sizes.height, size[1] / sizes.width)
    wanted = round(sizes.height * scale), round(sizes.width * scale)
    first = [(whole - part) // 2 for whole, part in zip(size, wanted, strict=True)]
    return tuple(slice(start, start + part) for start, part in zip(first, wanted, strict=True))


def _fit(rows: slice, columns: slice, sizes: Variant) -> framing.Fit:
    window = rows.stop - rows.start, columns.stop - columns.start
    return framing.fit(window, (sizes.height, sizes.width))


def _in_time(frames: Shaped[np.ndarray, "n h w *c"], sizes: Variant):
    return framing.take(frames, range(sizes.frames))
