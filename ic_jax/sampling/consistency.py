"""Correct: a prediction is made to agree with the measurement.

A rule moves the clean estimate; then x = (1-σ) clean + σ noise holds no longer unless the
noise moves too. `recompute` takes the noise that the same x implies, which is exact for a
Gaussian; `keep` leaves it, as DDIM-style projections do, and loses variance.
"""

from collections.abc import Callable
from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.latent_mask import LatentMask

from .denoiser import Prediction
from .schedule import Level

Noise = Literal["recompute", "keep"]
Latent = Float[Array, "t h w c"]
Consistency = Callable[[Prediction, Latent, LatentMask, Level], Prediction]


def unit_gaussian(sigma: Float[Array, ""]) -> Float[Array, ""]:
    """Var(clean | x) at σ if clean were a unit Gaussian: σ² / ((1-σ)² + σ²)."""
    return sigma**2 / ((1 - sigma) ** 2 + sigma**2)


def none(prediction: Prediction, y: Latent, mask: LatentMask, level: Level) -> Prediction:
    """No measurement: the plain generator."""
    return prediction


def dds(gamma: float = 5.0, noise: Noise = "recompute") -> Consistency:
    """clean ← (clean + γ h² y) / (1 + γ h²), with the static mask h = h(1) and one γ for all σ.

    The proximal step of Decomposed Diffusion Sampling (arXiv 2303.05754) for the operator
    diag(h) and an unattenuated measurement y: where h = 0 nothing changes.
    """

    def rule(prediction: Prediction, y: Latent, mask: LatentMask, level: Level) -> Prediction:
        strength = gamma * mask.weight(1.0) ** 2
        return _moved(prediction, strength / (1 + strength), y, level, noise)

    return rule


def fusion(
    r2: Callable[[Float[Array, ""]], Float[Array, ""]] = unit_gaussian, noise: Noise = "recompute"
) -> Consistency:
    """clean ← clean + h(r_σ²) (y - clean): the linear fusion of two independent estimates.

    `r2` is the variance of the model's clean estimate at σ. Early, when the model knows
    little, the measurement leads; late, only its most certain latents still do. Ours.
    """

    def rule(prediction: Prediction, y: Latent, mask: LatentMask, level: Level) -> Prediction:
        return _moved(prediction, mask.weight(r2(level.sigma)), y, level, noise)

    return rule


def within(rule: Consistency, first: float = 1.0, last: float = 0.0) -> Consistency:
    """A rule that acts at levels first ≥ σ ≥ last, and leaves the others to the model."""

    def windowed(prediction: Prediction, y: Latent, mask: LatentMask, level: Level) -> Prediction:
        acts = (level.sigma <= first) & (level.sigma >= last)
        moved = rule(prediction, y, mask, level)
        return Prediction(*(jnp.where(acts, m, p) for m, p in zip(moved, prediction)))

    return windowed


def _moved(
    prediction: Prediction, weight: Float[Array, "t h w #c"], y: Latent, level: Level, noise: Noise
) -> Prediction:
    change = weight * (y - prediction.clean)
    clean = prediction.clean + change
    if noise == "keep":
        return Prediction(clean, prediction.noise)
    # x is unchanged: what the clean part gains, the noise gives.
    return Prediction(clean, prediction.noise - (1 - level.sigma) / level.sigma * change)
