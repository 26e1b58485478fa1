"""Whether a region is as sharp and as textured as the truth, whatever it shows."""

import numpy as np
from jaxtyping import Bool, Float

OCTAVES = (1, 2, 4, 8)
# Squared gradient of one grey level of 255: below it, energies count as equal.
FLOOR = 1 / 255**2
FEWEST_GRADIENTS = 64
_LUMA = np.array([0.2126, 0.7152, 0.0722])


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
