"""A clip and a mask of what is to be made anew: files in, arrays out.

What lies under the mask is forgotten before anything else is done with the frames, for scaling
and encoding would both carry it outside: no filter's support and no receptive field has to be
reckoned with, and the result is the same to the bit whatever was there.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, UInt8

from . import framing
from .errors import InputError
from .fill import push_pull
from .geometry.camera import same_aspect
from .geometry.mask import MaskOperator
from .models.frames import from_bytes, to_bytes
from .video import IMAGE_SUFFIXES, Clip, read_image, read_images, read_video

# Grey values above it are white: a compressed mask is not exactly black or white.
THRESHOLD = 127


class Edit(NamedTuple):
    """Frames, and which of their pixels are kept; the others hold a smooth continuation.

    Build it with `forget`, which sees to that.
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    keep: Bool[np.ndarray, "t h w"]
    """True where the source is kept, and black in a mask file."""

    def operator(self) -> MaskOperator:
        """The identity, where it is kept."""
        return MaskOperator(jnp.asarray(self.keep, jnp.float32))

    def to_working(self, fit: framing.Fit) -> "Edit":
        """The edit as a model of fixed size sees it; the padding is to be generated too."""
        return Edit(framing.to_working(self.frames, fit), framing.mask_to_working(self.keep, fit))

    def take(self, window: range) -> "Edit":
        """The frames of one window; past the end the last frame repeats."""
        return Edit(*(framing.take(leaf, window) for leaf in self))

    def hold(self, known: UInt8[np.ndarray, "n h w 3"]) -> "Edit":
        """The edit, whose first n frames are finished already."""
        n = len(known)
        return Edit(
            np.concatenate([known, self.frames[n:]]),
            np.concatenate([np.ones_like(self.keep[:n]), self.keep[n:]]),
        )


def load_edit(clip: Clip, mask_path: str | Path) -> Edit:
    """A clip and its mask: a video, a folder of frames, or one image for all frames.

    White is to be regenerated, and what is transparent in an image counts as black. A mask of
    another size but the clip's aspect is scaled to it.

    Raises:
        InputError: a mask that cannot be read, does not fit the clip, or is all black or all white.
    """
    grey = _read_grey(Path(mask_path))
    regenerate = _fitted(grey > THRESHOLD, clip, mask_path)
    if not regenerate.any():
        labels = "; multiply a mask of labels by 255" if grey.any() else ""
        raise InputError(
            f"{mask_path}: no white pixel (the brightest is {grey.max():.0f} of 255), so there is "
            f"nothing to regenerate{labels}"
        )
    if regenerate.all():
        raise InputError(
            f"{mask_path}: white everywhere, so nothing of the clip would be kept; "
            "paint black what is to stay"
        )
    return forget(clip.frames, ~regenerate)


def forget(frames: ArrayLike, keep: ArrayLike) -> Edit:
    """An edit that knows nothing of the pixels that are not kept.

    Args:
        frames: uint8 [t, h, w, 3].
        keep: bool [t, h, w], True where the source is kept.

    Raises:
        InputError: arrays of another kind or shape.
    """
    frames, keep = np.asarray(frames), np.asarray(keep)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
        raise InputError(
            f"frames is {frames.dtype} of shape {frames.shape}; give uint8 of shape (t, h, w, 3)"
        )
    if keep.dtype != np.bool_ or keep.shape != frames.shape[:3]:
        raise InputError(
            f"keep is {keep.dtype} of shape {keep.shape}; give bool of shape {frames.shape[:3]}, "
            "True where the frames are kept"
        )
    smooth = []
    for window in framing.windows(len(frames), framing.FRAMES_AT_ONCE, 0):
        some = (jnp.asarray(framing.take(leaf, window)) for leaf in (frames, keep))
        smooth.append(np.asarray(_smoothed(*some)))
    joined = framing.join(smooth, 0, len(frames))
    return Edit(np.where(keep[..., None], frames, joined), keep)


@jax.jit
def _smoothed(
    frames: UInt8[Array, "t h w 3"], keep: Bool[Array, "t h w"]
) -> UInt8[Array, "t h w 3"]:
    clip = from_bytes(frames) * keep[..., None]
    return to_bytes(push_pull(clip, keep.astype(jnp.float32)))


def _read_grey(path: Path) -> Float[np.ndarray, "t h w"]:
    if path.is_dir():
        images = read_images(path, "LA")
    elif path.suffix.lower() in IMAGE_SUFFIXES:
        images = read_image(path, "LA")[None]
    else:
        return read_video(path).frames.mean(axis=-1, dtype=np.float32)
    # Many programs draw a mask in its opacity, and leave white all over beneath.
    grey, opacity = np.moveaxis(images.astype(np.float32), -1, 0)
    return grey * opacity / 255


def _fitted(
    white: Bool[np.ndarray, "n H W"], clip: Clip, path: str | Path
) -> Bool[np.ndarray, "t h w"]:
    """The mask at the clip's length and size; one frame stands for all."""
    frames, height, width, _ = clip.frames.shape
    if len(white) not in (1, frames):
        raise InputError(
            f"{path}: {len(white)} frames of mask for {frames} frames in {clip.path}; "
            "give one per frame, or one image for all"
        )
    found = white.shape[1:]
    if not same_aspect(found, (height, width)):
        raise InputError(
            f"{path}: the mask is {found[1]}x{found[0]} and {clip.path} is {width}x{height}; "
            "give a mask of the clip's aspect"
        )
    scaled = framing.any_within(white, (height, width))
    return np.broadcast_to(scaled, (frames, height, width))
