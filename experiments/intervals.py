"""How sure a study is: means and shares with their intervals."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float


class Interval(NamedTuple):
    """A mean, and the ends of its 95 % interval: nan where one value says nothing of others."""

    mean: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __format__(self, spec: str) -> str:
        """Each figure by `spec`: as differences are shown, with a sign and two decimals."""
        mean, low, high = (format(figure, spec or "+.2f") for figure in self)
        return mean if np.isnan(self.low) else f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return format(self)


def bootstrap(
    values: Float[np.ndarray, "n"], resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Mean of paired differences (or any values), with its 95 % percentile bootstrap interval.

    Values that are not finite are left out: those clips have nothing to compare. The ends are
    nan where fewer than two are left, and the mean where none is.
    """
    values = np.asarray(values, np.float64)
    values = values[np.isfinite(values)]
    if len(values) < 2:
        return Interval(float(values[0]) if len(values) else np.nan, np.nan, np.nan)
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
