"""Which pixels and which frames a model sees: its fixed size fitted over a clip's own.

Space: the whole frame is scaled to fit inside the working size, aspect kept to the nearest
pixel, centred, and the rest is padded by repeating the edge. Afterwards the padding is cropped
and the frame is scaled back. Time: a clip runs in equally long windows that overlap by a fixed
number of frames; the last window is filled up by repeating the last frame, and cropped.
A clip that already has the working size and length passes through bit for bit.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image

from ic_jax.errors import InputError
from ic_jax.geometry.depth import resize_depth

# Full-size frames in one go: it bounds the memory and changes nothing else.
FRAMES_AT_ONCE = 8


class Fit(NamedTuple):
    """Where a frame lies inside the working size; all sizes are (height, width) in pixels."""

    source: tuple[int, int]
    working: tuple[int, int]
    content: tuple[int, int]  # size of the scaled frame inside the working size
    offset: tuple[int, int]  # rows above it, columns to its left


def fit(source: tuple[int, int], working: tuple[int, int]) -> Fit:
    """Scales `source` to the largest size of the same aspect inside `working`, and centres it."""
    scale = min(working[0] / source[0], working[1] / source[1])
    content = tuple(max(1, min(w, round(s * scale))) for s, w in zip(source, working, strict=True))
    offset = tuple((w - c) // 2 for w, c in zip(working, content, strict=True))
    return Fit(tuple(source), tuple(working), content, offset)


def to_working(frames: UInt8[np.ndarray, "t h w c"], fit: Fit) -> UInt8[np.ndarray, "t H W c"]:
    """Scales (Lanczos, antialiased) and pads by edge replication.

    Works on uint8, in fixed-point arithmetic: the same bits on every machine and device.
    """
    return _pad(_resize(frames, fit.content), fit)


def from_working(frames: UInt8[np.ndarray, "t H W c"], fit: Fit) -> UInt8[np.ndarray, "t h w c"]:
    """Crops the padding and scales back (Lanczos): the inverse of `to_working` up to sharpness."""
    return _resize(_crop(frames, fit), fit.source)


def depth_to_working(depth: Float[np.ndarray, "t h w"], fit: Fit) -> Float[np.ndarray, "t H W"]:
    """As `to_working`, but by `resize_depth`."""
    return _pad(resize_depth(depth, *fit.content), fit)


def mask_to_working(keep: Bool[np.ndarray, "t h w"], fit: Fit) -> Bool[np.ndarray, "t H W"]:
    """As `to_working`, but keeps a pixel only if all of it was kept, and none of the padding."""
    return ~_pad(any_within(~keep, fit.content), fit) & inside(fit)


def any_within(mask: Bool[np.ndarray, "t h w"], size: tuple[int, int]) -> Bool[np.ndarray, "t H W"]:
    """A mask at another size: a pixel is set if it touches one that was."""
    for axis, length in enumerate(size, start=1):
        mask = _any_along(mask, axis, length)
    return mask


def _any_along(mask: Bool[np.ndarray, "..."], axis: int, length: int) -> Bool[np.ndarray, "..."]:
    found, at = mask.shape[axis], np.arange(length)
    first, last = at * found // length, -(-(at + 1) * found // length)
    before = [(0, 0)] * mask.ndim
    before[axis] = (1, 0)
    count = np.pad(np.cumsum(mask, axis, dtype=np.int32), before)
    return count.take(last, axis) > count.take(first, axis)


def intrinsics_to_working(
    intrinsics: Float[np.ndarray, "*t 3 3"], fit: Fit
) -> Float[np.ndarray, "*t 3 3"]:
    """Intrinsics in pixels of the source, to pixels of the working size.

    The centre of the top-left pixel is (0.5, 0.5), so a pixel (x, y) of the source lies at
    (x·sx + left, y·sy + top): no half-pixel terms.
    """
    (scale_y, scale_x), (top, left) = scales(fit), fit.offset
    follow = np.array([[scale_x, 0, left], [0, scale_y, top], [0, 0, 1]])
    return (follow @ intrinsics).astype(intrinsics.dtype)


def scales(fit: Fit) -> tuple[float, float]:
    """Working pixels per source pixel, (vertical, horizontal): equal up to rounding."""
    return fit.content[0] / fit.source[0], fit.content[1] / fit.source[1]


def inside(fit: Fit) -> Bool[np.ndarray, "H W"]:
    """True where the working frame shows the clip, False on its padding.

    Padding is no part of the scene: a warp should neither splat it nor count it as covered.
    """
    mask = np.zeros(fit.working, bool)
    mask[_content(fit)] = True
    return mask


def windows(frames: int, length: int, overlap: int) -> list[range]:
    """Equally long runs of frame numbers that cover 0..frames-1, neighbours sharing `overlap`.

    Every window has exactly `length` numbers. The last may run past the end: `take` repeats the
    last frame there, and `join` crops it again. A clip shorter than one window is one window.

    Raises:
      InputError: no frames, or an overlap that leaves windows no new frame.
    """
    if frames < 1:
        raise InputError("a clip of no frames cannot be divided into windows")
    if not 0 <= overlap < length:
        raise InputError(f"windows of {length} frames cannot overlap by {overlap} frames")
    stride = length - overlap
    count = 1 + max(0, -(-(frames - length) // stride))
    return [range(n * stride, n * stride + length) for n in range(count)]


def take(
    frames: Shaped[np.ndarray, "t *dims"], window: range
) -> Shaped[np.ndarray, "length *dims"]:
    """The window's frames; past the end, the last one repeated."""
    return frames[np.minimum(window, len(frames) - 1)]


def join(
    parts: Sequence[Shaped[np.ndarray, "length *dims"]], overlap: int, frames: int
) -> Shaped[np.ndarray, "t *dims"]:
    """Undoes `windows`: of shared frames the earlier window's are kept, and padding is cropped."""
    return np.concatenate([parts[0], *(part[overlap:] for part in parts[1:])])[:frames]


def _content(fit: Fit) -> tuple[slice, slice]:
    (top, left), (height, width) = fit.offset, fit.content
    return slice(top, top + height), slice(left, left + width)


def _crop(frames: Shaped[np.ndarray, "t H W *c"], fit: Fit) -> Shaped[np.ndarray, "t h w *c"]:
    return frames[:, *_content(fit)]


def _pad(frames: Shaped[np.ndarray, "t h w *c"], fit: Fit) -> Shaped[np.ndarray, "t H W *c"]:
    (top, left), (height, width) = fit.offset, fit.content
    below, right = fit.working[0] - top - height, fit.working[1] - left - width
    around = [(0, 0), (top, below), (left, right)] + [(0, 0)] * (frames.ndim - 3)
    return np.pad(frames, around, mode="edge")


def _resize(
    frames: UInt8[np.ndarray, "t h w c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "t H W c"]:
    if frames.shape[1:3] == size:
        return frames
    resized = np.empty((len(frames), *size, frames.shape[3]), np.uint8)
    for image, result in zip(frames, resized, strict=True):
        for channel in range(frames.shape[3]):
            plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
            result[..., channel] = plane.resize(size[::-1], Image.Resampling.LANCZOS)
    return resized
