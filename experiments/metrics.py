"""How close a re-captured clip is to the true view: by region, by gradients, with intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import maximum_filter

from ic_jax.report import psnr_db

SEAM_PIXELS = 4
OCTAVES = (1, 2, 4, 8)
# Squared gradient of one grey level of 255: below it, energies count as equal.
FLOOR = 1 / 255**2
FEWEST_GRADIENTS = 64
_LUMA = np.array([0.2126, 0.7152, 0.0722])


class Regions(NamedTuple):
    """Where pixels are compared. Hole and visible part the clip; the seam lies in the visible."""

    visible: Bool[np.ndarray, "t h w"]
    seam: Bool[np.ndarray, "t h w"]
    hole: Bool[np.ndarray, "t h w"]


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def regions(visible: Float[np.ndarray, "t h w"], seam: int = SEAM_PIXELS) -> Regions:
    """Holes are pixels seen by less than a half; the seam is what is seen within `seam` pixels.

    The distance is the larger of the two along rows and columns, within a frame.
    """
    hole = visible < 0.5
    near = maximum_filter(hole, size=(1, 2 * seam + 1, 2 * seam + 1), mode="constant", cval=False)
    return Regions(~hole, ~hole & near, hole)


def psnr_by_region(
    clip: Float[np.ndarray, "t h w 3"], truth: Float[np.ndarray, "t h w 3"], where: Regions
) -> dict[str, float]:
    """PSNR in dB of clips in [-1, 1], per region; nan for a region without pixels."""
    return {name: psnr_db(clip, truth, mask) for name, mask in where._asdict().items()}


def gradient_spectrum(
    clip: Float[np.ndarray, "t h w 3"], region: Bool[np.ndarray, "t h w"]
) -> Float[np.ndarray, "octaves"]:
    """Mean squared luma gradient inside a region, per octave of scale; luma in [0, 1].

    At scale s a gradient is the difference of the means of two neighbouring s x s boxes, along
    rows or columns: the Haar wavelet's octaves. Only pairs of boxes wholly inside the region
    count, so nothing outside it plays a part and no window is needed. An octave with fewer
    than 64 pairs is nan.
    """
    luma = (clip @ _LUMA + 1) / 2
    return np.array([_gradient_energy(luma, region, scale) for scale in OCTAVES])


def spectrum_distance_db(
    clip: Float[np.ndarray, "t h w 3"],
    truth: Float[np.ndarray, "t h w 3"],
    region: Bool[np.ndarray, "t h w"],
) -> float:
    """Root mean square over octaves of the two gradient spectra's ratio in dB; nan without any.

    0 for the same energy at every scale, wherever it lies: it asks whether the region is as
    sharp and as textured as the truth, not whether it shows the same thing. A gradient twice
    as large everywhere is 6 dB away.
    """
    ratio = (gradient_spectrum(clip, region) + FLOOR) / (gradient_spectrum(truth, region) + FLOOR)
    decibels = 10 * np.log10(ratio[np.isfinite(ratio)])
    return float(np.sqrt(np.mean(decibels**2))) if decibels.size else float("nan")


def bootstrap(
    values: Float[np.ndarray, "n"], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of paired differences (or any values), with its 95 % percentile bootstrap interval.

    Values that are nan are left out: those scenes have nothing to compare.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return Interval(float(values.mean()), float(low), float(high))


def wilson(right: int, n: int) -> Interval:
    """A share of `n` independent trials, with its 95 % interval by Wilson's score.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    Unlike the normal interval it stays within [0, 1] and keeps a width where all are right.
    """
    z, share = 1.959964, right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))


def _gradient_energy(luma, region, scale):
    boxes, inside = _box_sums(luma, scale) / scale**2, _box_sums(region * 1.0, scale)
    inside = inside > scale**2 - 0.5
    squares = []
    for axis in (1, 2):
        before, after = _apart(boxes, scale, axis)
        both = np.logical_and(*_apart(inside, scale, axis))
        squares.append((after - before)[both] ** 2)
    squares = np.concatenate(squares)
    return squares.mean() if len(squares) >= FEWEST_GRADIENTS else np.nan


def _box_sums(frames, side):
    """Sums over every side x side box inside the frame."""
    corners = np.pad(frames, ((0, 0), (1, 0), (1, 0))).cumsum(1).cumsum(2)
    rows = corners[:, side:] - corners[:, :-side]
    return rows[:, :, side:] - rows[:, :, :-side]


def _apart(values, distance, axis):
    size = values.shape[axis]
    return (
        np.take(values, range(0, size - distance), axis),
        np.take(values, range(distance, size), axis),
    )
