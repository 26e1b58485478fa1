"""How natural are the scenes? Gradient spectra of rendered and natural clips, side by side.

    python -m experiments.scene_statistics --data .data

writes experiments/results/scenes.md.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, UInt8

from experiments.natural_clips import natural_clips

_LUMA = np.array([0.2126, 0.7152, 0.0722])
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
    return np.array([np.sqrt(power[(radius >= low) & (radius < high)].mean()) for low, high in edges])


def mean_spectrum(clips) -> Float[np.ndarray, "bands"]:
    """Gradient spectrum averaged over clips."""
    return np.mean([gradient_spectrum(clip) for clip in clips], axis=0)
