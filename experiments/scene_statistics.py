"""How natural are the scenes? Gradient spectra of rendered and natural clips, side by side.

    python -m experiments.scene_statistics --data .data

reads the array that `experiments.scenes_data` wrote and writes experiments/results/scenes.md.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, UInt8

from experiments.natural_clips import SOURCES, natural_clips
from experiments.tables import table

_LUMA = np.array([0.2126, 0.7152, 0.0722])
_REPORT = Path("experiments/results/scenes.md")
OCTAVES = 0.5 ** np.arange(6, 0, -1)  # band edges in cycles per pixel, 1/64 to 1/2


def gradient_spectrum(clip: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "bands"]:
    """Root mean square of the luma gradient's spectrum in octaves from 1/64 to 1/2 cycle/pixel.

    Luma is in [0, 1]; frames are windowed (Hann) so that their borders add no edges.
    """
    luma = clip @ _LUMA / 255
    across = np.diff(luma, axis=2)[:, :-1]
    down = np.diff(luma, axis=1)[:, :, :-1]
    h, w = across.shape[1:]
    window = np.outer(np.hanning(h), np.hanning(w))
    window /= np.sqrt(np.mean(window**2) * h * w)
    power = sum(np.abs(np.fft.fft2(g * window)) ** 2 for g in (across, down)).mean(0)
    radius = np.hypot(np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None, :])
    edges = zip(OCTAVES[:-1], OCTAVES[1:], strict=True)
    means = [power[(radius >= low) & (radius < high)].mean() for low, high in edges]
    return np.sqrt(means)


def mean_spectrum(clips) -> Float[np.ndarray, "bands"]:
    """Gradient spectrum averaged over clips."""
    return np.mean([gradient_spectrum(clip) for clip in clips], axis=0)


def report(scenes, natural) -> str:
    """The table per octave: root mean square gradient of both kinds of clip, and their ratio."""
    ours, theirs = mean_spectrum(scenes), mean_spectrum(natural)
    rows = [
        [f"1/{1 / low:.0f} to 1/{1 / high:.0f}", f"{a:.4f}", f"{b:.4f}", f"{a / b:.2f}"]
        for low, high, a, b in zip(OCTAVES[:-1], OCTAVES[1:], ours, theirs, strict=True)]
    frames, height, width = scenes.shape[1:4]
    return "\n".join([
        "# Gradient spectra: rendered scenes and natural clips", "",
        "`python -m experiments.scenes_data --data .data && "
        "python -m experiments.scene_statistics --data .data`", "",
        f"{len(scenes)} training scenes and {len(natural)} natural clips (as many of each of "
        f"{', '.join(sum(SOURCES.values(), ()))}), {frames}x{height}x{width}. Root mean square of "
        "the luma gradient's spectrum, luma in [0, 1], Hann window, mean over clips.", "",
        *table(["octave, cycles per pixel", "scenes", "natural", "ratio"], rows),
        f"Largest deviation: {100 * np.abs(ours / theirs - 1).max():.0f} %.", ""])


@dataclass
class Arguments:
    """Compare gradient spectra of scenes and natural clips."""

    data: Path = Path(".data")
    """Folder with nano_train.npy."""
    scenes: int = 300
    """How many scenes to look at, evenly spaced."""


def main(arguments: Arguments) -> None:
    clips = np.load(arguments.data / "nano_train.npy", mmap_mode="r")
    scenes = clips[np.linspace(0, len(clips) - 1, arguments.scenes).astype(int)]
    size = scenes.shape[1:4]
    natural = np.concatenate([natural_clips(split, *size, per_source=12) for split in SOURCES])
    text = report(scenes, natural)
    _REPORT.write_text(text)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
