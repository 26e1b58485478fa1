"""How missing neighbours become error: the weights of the mask `kernel`, fitted once per model."""

import numpy as np
from jaxtyping import Float
from scipy.optimize import nnls

from .latent_mask import KERNEL

# Squared errors scatter in proportion to their mean, so a second round weighs them by the first
# one's; errors below the floor matter to no weight and shall not decide.
ROUNDS = 2
FLOOR = 0.1
# Neighbours that were never missing alone leave the equations short of a rank.
RIDGE = 1e-6


def fit_kernel(
    coverages: list[Float[np.ndarray, "t h w 1"]], errors: list[Float[np.ndarray, "t h w c"]]
) -> Float[np.ndarray, "kt kh kw c"]:
    """Non-negative least squares from the missing share of a latent's neighbours to its error.

    Per clip: the mean coverage of each latent (`latent_mask.coverage`), and the squared error
    of the measurement, (E(filled) - E(truth))², in squared latent units. The fit is made
    twice, the second time with every row divided by the first one's variance, as the likelihood
    of a Gaussian error asks for. The last of the `kt` frames is the latent's own.
    """
    rows = [missing_neighbours(one) for one in coverages]
    targets = [error.reshape(-1, error.shape[-1]) for error in errors]
    channels = [_fit_channel(rows, [target[:, c] for target in targets])
                for c in range(targets[0].shape[1])]  # fmt: skip
    return np.stack(channels, -1).reshape(*KERNEL, -1).astype(np.float32)


def missing_neighbours(coverage: Float[np.ndarray, "t h w 1"]) -> Float[np.ndarray, "n k"]:
    """The missing share in each latent's neighbourhood; beyond the clip nothing is missing."""
    frames, height, width = KERNEL
    margins = (frames - 1, 0), (height // 2, height // 2), (width // 2, width // 2)
    missing = np.pad(1.0 - coverage[..., 0], margins)
    return np.lib.stride_tricks.sliding_window_view(missing, KERNEL).reshape(-1, np.prod(KERNEL))


def _fit_channel(
    rows: list[Float[np.ndarray, "n k"]], targets: list[Float[np.ndarray, " n"]]
) -> Float[np.ndarray, " k"]:
    variances = [np.ones(len(missing)) for missing in rows]
    for _ in range(ROUNDS):
        gram, moment = 0.0, 0.0
        for missing, error, variance in zip(rows, targets, variances, strict=True):
            scaled = missing / np.square(variance)[:, None]
            gram, moment = gram + missing.T @ scaled, moment + error @ scaled
        weights = _solve(gram, moment)
        variances = [missing @ weights + FLOOR for missing in rows]
    return weights


def _solve(
    gram: Float[np.ndarray, "k k"], moment: Float[np.ndarray, " k"]
) -> Float[np.ndarray, " k"]:
    """min ‖A w - b‖ over w ≥ 0, from AᵀA and Aᵀb."""
    ridge = RIDGE * max(np.trace(gram) / len(gram), 1e-12)
    lower = np.linalg.cholesky(gram + ridge * np.eye(len(gram)))
    return nnls(lower.T, np.linalg.solve(lower, moment))[0]
