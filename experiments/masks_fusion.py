"""What masks claim and what they are worth: calibration, prediction, fusion with an estimate."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ic_jax.kernel_fit import fit_kernel
from ic_jax.latent_mask import LatentMask, Measurement, kernel
from ic_jax.mask_error import MaskError, variance_scale
from ic_jax.sampling.consistency import unit_gaussian

WITH_VARIANCE = ("probes", "response", "response_open", "jacobian", "kernel")
WHITE = (0.1, 0.3, 0.6, 1.0)  # r: how wrong an estimate with white error may be
SIGMAS = (0.3, 0.6, 0.9)  # noise levels at which the generator's own estimate is taken
# Variances below it change no weight of an estimate that is wrong by 0.1 or more.
SMALLEST = 1e-4

NO_PRIOR, NO_MEASUREMENT = "measurement alone", "estimate alone"
ONE_CHANNEL = "response, one channel"
NO_GATE = "response, no gate"
FIXED, GAUSSIAN = "response, best fixed weight", "response, r² of a unit Gaussian"
COVERAGE, ENCODED = ("nearest", "mean", "min"), ("encoded",)
DECODED = (
    NO_MEASUREMENT, NO_PRIOR, *COVERAGE, *ENCODED, *WITH_VARIANCE, ONE_CHANNEL, NO_GATE,
    "oracle",
)  # fmt: skip


class Study(NamedTuple):
    """What one fill of one case leaves, per latent; masks may broadcast over channels."""

    truth: Float[np.ndarray, "t h w c"]
    error: Float[np.ndarray, "t h w c"]
    """E(filled) - E(truth)."""
    priors: dict[float, Float[np.ndarray, "t h w c"]]
    """The generator's clean estimate of the noised truth, less the truth, per noise level."""
    masks: dict[str, LatentMask]
    visible: Float[np.ndarray, "frames height width"]
    distance: Float[np.ndarray, "t h w"]
    """Pixels to the nearest hole in the latent's own frames; nan in latents that touch one."""


class Prior(NamedTuple):
    """What a weight may know of the estimate: its variance, and the noise level it comes from."""

    r2: Float[np.ndarray, "*#c"]
    sigma: float | None = None


Weight = Callable[[Study, Prior], Float[np.ndarray, "t h w c"]]
Half = dict[str, list[Study]]


# Calibration ----------------------------------------------------------------------


class Calibration(NamedTuple):
    """What the calibration clips say; nothing here has seen the others."""

    scales: dict[str, dict[str, float]]
    """Of each mask's variance, with each fill."""
    clean_error: dict[float, Float[np.ndarray, " c"]]
    """Mean squared error of the generator's estimate, per noise level and channel."""

    def real(self) -> list[Prior]:
        """The generator, at each noise level."""
        return [Prior(self.clean_error[sigma], sigma) for sigma in SIGMAS]

    def arms(self, how: str, names: Iterable[str]) -> dict[str, Weight]:
        """Ways to weigh the measurement, with this fill."""
        scale = lambda name: self.scales[name][how] if name in self.scales else 1.0
        special = {
            NO_PRIOR: lambda study, prior: np.ones_like(study.error),
            NO_MEASUREMENT: lambda study, prior: np.zeros_like(study.error),
            ONE_CHANNEL: by_mask("response", scale("response"), channels=False),
            NO_GATE: by_mask("response", scale("response"), gate=np.ones_like),
            GAUSSIAN: in_closed_form("response", scale("response")),
        }
        return {name: special.get(name) or by_mask(name, scale(name)) for name in names}


def calibrate(halves: list[Half]) -> tuple[Calibration, list[Half]]:
    """Scales, the generator's error, and both halves with a kernel fitted to the first."""
    known = halves[0]
    kernels = {how: _fitted(some) for how, some in known.items()}
    halves = [
        {how: [_with_kernel(study, kernels[how]) for study in some] for how, some in half.items()}
        for half in halves
    ]
    scales = {
        name: {
            how: variance_scale(mask_errors(some, name), name) for how, some in halves[0].items()
        }
        for name in WITH_VARIANCE
    }
    some = next(iter(known.values()))
    clean_error = {
        sigma: np.mean([study.priors[sigma] ** 2 for study in some], axis=(0, 1, 2, 3))
        for sigma in SIGMAS
    }
    return Calibration(scales, clean_error), halves


class _Seen(NamedTuple):
    visible: Float[np.ndarray, "t h w"]


def _fitted(some: list[Study]) -> Float[np.ndarray, "kt kh kw c"]:
    shares = [study.masks["mean"].coverage for study in some]
    return fit_kernel(shares, [study.error**2 for study in some])


def _with_kernel(study: Study, weights) -> Study:
    measurement = Measurement(None, study.truth)
    mask = kernel(_Seen(study.visible), None, measurement, None, weights=weights)
    found = LatentMask(*map(np.asarray, mask))
    return study._replace(masks=study.masks | {"kernel": found})


def mask_errors(some: list[Study], mask: str) -> list[MaskError]:
    """A mask's variance beside the squared error, as the calibration of a model sees them."""
    return [
        MaskError(
            study.masks["mean"].coverage,
            {mask: np.broadcast_to(study.masks[mask].variance, study.error.shape)},
            study.error**2,
        )
        for study in some
    ]


# Prediction -----------------------------------------------------------------------


def visible_pairs(some: list[Study], mask: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and actual squared error of all latents whose own pixels are mostly seen.

    A mask without variance predicts by its missing share, 1 - a, in no unit.
    """
    predicted, actual = [], []
    for study in some:
        a, v = study.masks[mask]
        guess = v if np.any(v > 0) else 1 - a
        seen = np.broadcast_to(study.masks["mean"].coverage > 0.5, study.error.shape)
        predicted.append(np.broadcast_to(guess, study.error.shape)[seen])
        actual.append(study.error[seen] ** 2)
    return np.concatenate(predicted), np.concatenate(actual)


class Table(NamedTuple):
    """Mean squared error by bins of a mask's prediction: any proxy becomes a variance."""

    edges: np.ndarray
    variance: np.ndarray

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        return self.variance[np.searchsorted(self.edges, predicted, side="right")]


def fit_table(predicted: np.ndarray, actual: np.ndarray, bins: int = 12) -> Table:
    """Bins with as many latents each, less those that ties make empty."""
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)[1:-1]))
    at = np.searchsorted(edges, predicted, side="right")
    count = np.bincount(at, minlength=len(edges) + 1)
    total = np.bincount(at, actual, minlength=len(edges) + 1)
    return Table(edges, np.maximum(total / np.maximum(count, 1), SMALLEST))


def negative_log_likelihood(variance: np.ndarray, actual: np.ndarray) -> float:
    """Mean of ½ (log 2πv + e²/v), in nats: lower is better."""
    variance = np.maximum(variance, SMALLEST)
    return float(0.5 * np.mean(np.log(2 * np.pi * variance) + actual / variance))


# Fusion ---------------------------------------------------------------------------


def by_mask(
    name: str,
    scale: float = 1.0,
    channels: bool = True,
    gate: Callable[[np.ndarray], np.ndarray] = np.asarray,
) -> Weight:
    """A mask's own weight h(r²): its variance scaled and, if asked, averaged over channels, and
    `gate` of its coverage in place of the coverage."""

    def weight(study: Study, prior: Prior):
        a, v = study.masks[name]
        v = scale * (v if channels else v.mean(-1, keepdims=True))
        return np.asarray(LatentMask(gate(a), v).weight(prior.r2))

    return weight


def fixed(name: str, scale: float, r2: float) -> Weight:
    """The same mask, its weight that of one assumed estimate."""
    timed = by_mask(name, scale)
    return lambda study, _: timed(study, Prior(np.float32(r2)))


def in_closed_form(name: str, scale: float) -> Weight:
    """The same mask, the estimate's variance being that of a unit Gaussian."""
    timed = by_mask(name, scale)
    return lambda study, prior: timed(study, Prior(np.asarray(unit_gaussian(prior.sigma))))


def white_db(some: list[Study], weight: Weight) -> Float[np.ndarray, " n"]:
    """Per case, latent error in dB of (1 - w) estimate + w measurement, where the estimate is
    wrong by white noise of deviation r: the exact expectation, its dB averaged over r."""

    def one(study: Study, r: float) -> float:
        w = weight(study, Prior(np.float32(r**2)))
        return 10 * np.log10(np.mean((1 - w) ** 2 * r**2 + w**2 * study.error**2))

    return np.array([np.mean([one(study, r) for r in WHITE]) for study in some])


def real_db(some: list[Study], weight: Weight, priors: list[Prior]) -> Float[np.ndarray, " n"]:
    """The same with the generator's own estimates, whose errors are what they are."""
    error = lambda study: [np.mean(e**2) for e in fused_errors(study, weight, priors)]
    return np.array([np.mean(10 * np.log10(error(study))) for study in some])


def fused_errors(study: Study, weight: Weight, priors: list[Prior]) -> list[np.ndarray]:
    """(1 - w) estimate + w measurement, less the truth, per noise level."""
    fused = []
    for prior in priors:
        w = weight(study, prior)
        fused.append((1 - w) * study.priors[prior.sigma] + w * study.error)
    return fused


class PriorFacts(NamedTuple):
    """What the generator's error is like at one noise level."""

    variance_seen: float
    """Mean square in latents that are wholly seen, and in those that are wholly hidden."""
    variance_hidden: float
    across: float
    """Correlation of latents that are neighbours in a row, and in time."""
    along: float
    measured: float
    """Correlation with the measurement's error, where that is not zero; fusion assumes none."""


def prior_facts(some: list[Study], sigma: float) -> PriorFacts:
    """Measured against the holes of the clips, although the estimate was not told of them."""
    errors, measured = (
        np.stack(leaves) for leaves in zip(*((study.priors[sigma], study.error) for study in some))
    )
    shares = np.stack([study.masks["mean"].coverage[..., 0] for study in some])
    correlation = lambda a, b: float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
    apart = lambda axis: (
        np.take(errors, range(start, errors.shape[axis] - 1 + start), axis) for start in (0, 1)
    )
    of = lambda chosen: float(np.mean(errors[chosen] ** 2)) if chosen.any() else float("nan")
    wrong = measured**2 > SMALLEST
    return PriorFacts(
        variance_seen=of(shares > 0.99),
        variance_hidden=of(shares < 0.01),
        across=correlation(*apart(3)),
        along=correlation(*apart(1)),
        measured=correlation(errors[wrong], measured[wrong]),
    )
