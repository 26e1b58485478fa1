"""How sure a study is: means with intervals, paired comparisons, shares and ranks."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy.stats import rankdata


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


class Comparison(NamedTuple):
    """One method against another on the same clips with the same seeds."""

    gain: Interval
    won: float
    """Share of the clips in which the first is better; a tie counts half."""
    clips: int
    """How many clips have something to compare."""

    @property
    def decided(self) -> bool:
        """Whether the interval of the gain leaves zero out."""
        return self.gain.low > 0 or self.gain.high < 0


def bootstrap(
    values: Float[np.ndarray, "n"], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of paired differences (or any values), with its 95 % percentile bootstrap interval.

    Values that are not finite are left out: those clips have nothing to compare. All three are
    nan where none is left.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(np.nan, np.nan, np.nan)
    draws = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    low, high = np.percentile(values[draws].mean(1), (2.5, 97.5))
    return Interval(float(values.mean()), float(low), float(high))


def compare(
    ours: Float[np.ndarray, "clips *seeds"],
    theirs: Float[np.ndarray, "clips *seeds"],
    higher_is_better: bool = True,
) -> Comparison:
    """The paired gain of one method over another: positive where ours is better.

    Clips are resampled, not seeds: a clip's seeds share its difficulty, so they are averaged
    first. Clips with a figure that is not finite are left out.
    """
    with np.errstate(invalid="ignore"):
        differences = np.asarray(ours, np.float64) - np.asarray(theirs, np.float64)
    differences = differences.reshape(len(differences), -1).mean(1)
    gains = differences[np.isfinite(differences)] * (1 if higher_is_better else -1)
    won = float(np.mean((np.sign(gains) + 1) / 2)) if len(gains) else np.nan
    return Comparison(bootstrap(gains), won, len(gains))


def mean_ranks(
    values: Float[np.ndarray, "methods clips"], higher_is_better: bool = True
) -> Float[np.ndarray, "methods"]:
    """Each method's rank among all (1 is best, ties share), averaged over clips.

    Clips with a nan are left out; nan where none is left.
    """
    complete = values[:, ~np.isnan(values).any(0)]
    if not complete.shape[1]:
        return np.full(len(values), np.nan)
    return rankdata(-complete if higher_is_better else complete, axis=0).mean(1)


def wilson(right: int, n: int) -> Interval:
    """A share of `n` independent trials, with its 95 % interval by Wilson's score.

    Wilson, "Probable inference, the law of succession, and statistical inference" (1927).
    Unlike the normal interval it stays within [0, 1] and keeps a width where all are right.
    """
    z, share = 1.959964, right / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return Interval(share, max(0.0, float(centre - half)), min(1.0, float(centre + half)))
