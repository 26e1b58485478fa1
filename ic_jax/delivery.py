"""What a run leaves behind: videos, a contact sheet, and a record of how they were made."""

import platform
from collections.abc import Mapping
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from .director import Take
from .errors import InputError
from .report import Labels, comparison_frames, psnr_db, save_png, summary
from .video import Clip, read_video, write_video

# A pixel counts as seen from here on.
VISIBLE = 0.5


def read_truth(path: Path, clip: Clip) -> UInt8[np.ndarray, "t h w 3"]:
    """The true new view. Raises InputError unless it has the clip's size and length."""
    frames = read_video(path).frames
    if frames.shape != clip.frames.shape:
        found, wanted = (
            f"{t} frames of {w}x{h}" for t, h, w, _ in (frames.shape, clip.frames.shape)
        )
        raise InputError(f"{path}: {found}, but {clip.path} has {wanted}")
    return frames


def measure(take: Take, truth: UInt8[np.ndarray, "t h w 3"] | None) -> dict[str, Any]:
    """coverage: the mean visible share. visible_psnr_db: the decoded result against what was
    observed, where something was; once more as delivered if that differs. psnr_db: against the
    truth, by region, where it is known: as delivered, and as decoded. What is not a finite
    number, of an empty region or of equal frames, is left out: JSON has no word for it."""
    seen = take.visible >= VISIBLE
    kept = {"visible_psnr_db": psnr_db(take.generated, take.observed, seen)}
    if take.result is not take.generated:
        kept["visible_psnr_db_as_delivered"] = psnr_db(take.result, take.observed, seen)
    facts: dict[str, Any] = {"coverage": round(float(take.visible.mean()), 4), **_finite(kept)}
    if truth is not None:
        facts["psnr_db"] = _by_region(take.result, truth, seen)
        facts["psnr_db_as_decoded"] = _by_region(take.generated, truth, seen)
    return facts


def _by_region(
    frames: UInt8[np.ndarray, "t h w 3"],
    truth: UInt8[np.ndarray, "t h w 3"],
    seen: Bool[np.ndarray, "t h w"],
) -> dict[str, float]:
    regions = {"visible": seen, "hole": ~seen, "whole": np.ones_like(seen)}
    return _finite({name: psnr_db(frames, truth, region) for name, region in regions.items()})


def _finite(decibels: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 2) for name, value in decibels.items() if isfinite(value)}


def in_decibels(value: float | None) -> str:
    """For a label; None is what `measure` leaves out."""
    return "–" if value is None else f"{value:.1f} dB"


def write_take(
    folder: Path,
    clip: Clip,
    take: Take,
    truth: UInt8[np.ndarray, "t h w 3"] | None,
    labels: Labels,
    title: str,
    facts: Mapping[str, str],
) -> None:
    """The videos, with the clip's rate and audio, and the contact sheet."""
    write_like(folder / f"{labels.result_file}.mp4", take.result, clip)
    write_like(folder / "generated.mp4", take.generated, clip)
    write_like(folder / f"{labels.observed_file}.mp4", take.observed, clip)
    write_like(folder / "visible.mp4", as_grey(take.visible), clip)
    sides = comparison_frames(clip.frames, take.observed, take.visible, take.result, labels)
    write_like(folder / "comparison.mp4", sides, clip)
    sheet = summary(
        clip.frames, take.observed, take.visible, take.result, truth,
        labels=labels, title=title, facts=facts, fps=clip.fps,
    )  # fmt: skip
    save_png(folder / "summary.png", sheet)


def write_like(path: Path, frames: UInt8[np.ndarray, "t h w 3"], clip: Clip) -> None:
    """A video with the rate, or the times, the pixel aspect and the audio of a clip."""
    write_video(path, frames, clip.fps, clip.path, clip.pixel_aspect, clip.times)


def rehearse(clip: Clip) -> None:
    """Writes the clip's rate and sound under a dark picture, and throws that away.

    Raises:
        InputError: sound that `write_like` could not carry on, told while no result is lost yet.
    """
    with TemporaryDirectory() as folder:
        dark = np.zeros((len(clip.frames), 16, 16, 3), np.uint8)
        write_like(Path(folder) / "rehearsed.mp4", dark, clip)


def as_grey(share: Float[np.ndarray, "t h w"]) -> UInt8[np.ndarray, "t h w 3"]:
    """[0, 1] as black to white."""
    return np.repeat(np.round(255 * share).astype(np.uint8)[..., None], 3, axis=-1)


def describe(clip: Clip) -> dict[str, Any]:
    """The clip, as result.json names it."""
    frames, height, width, _ = clip.frames.shape
    return {"clip": clip.path, "frames": frames, "height": height, "width": width, "fps": clip.fps}


def environment() -> dict[str, Any]:
    """Where the numbers come from."""
    device = jax.devices()[0]
    packages = ("ic-jax", "jax", "jaxlib", "flax", "numpy")
    versions = {"python": platform.python_version()} | {name: version(name) for name in packages}
    return {
        "device": f"{device.platform}: {device.device_kind} x{jax.device_count()}",
        "versions": versions,
    }
