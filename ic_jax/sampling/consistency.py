"""Correct: a prediction is made to agree with the measurement.

A rule moves the clean estimate; then x = (1-σ) clean + σ noise holds no longer unless the noise
moves too, and that choice is part of the rule:

    recompute    the noise that the same x implies: exact for a Gaussian, and deterministic
    keep         the noise as predicted, as DDIM-style projections do: it loses variance
    renew        fresh noise: x is drawn anew around the corrected estimate

`Consistency` has the signature (prediction, y, mask, level, key) -> prediction. y is the
measurement as encoded, not attenuated by the mask; where a paper's operator attenuates, its
rule says so. Here are the seam and our own rules; other papers' are in `projections`, and in
`renewals` those that draw noise anew.
"""

from collections.abc import Callable
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ic_jax.latent_mask import LatentMask

from .denoiser import Prediction
from .schedule import Level

Noise = Literal["recompute", "keep", "renew"]
Latent = Float[Array, "t h w c"]
Consistency = Callable[[Prediction, Latent, LatentMask, Level, PRNGKeyArray], Prediction]
CleanVariance = Callable[[Float[Array, ""]], Float[Array, "*#c"]]
Weight = Callable[[LatentMask, Level], Float[Array, "t h w #c"]]

NOISES: tuple[str, ...] = get_args(Noise)


def unit_gaussian(sigma: Float[Array, ""]) -> Float[Array, ""]:
    """Var(clean | x) at σ if clean were a unit Gaussian: σ² / ((1-σ)² + σ²)."""
    return sigma**2 / ((1 - sigma) ** 2 + sigma**2)


GAMMA_SCHEDULES: dict[str, Callable[[Float[Array, ""]], Float[Array, ""]]] = {
    "constant": jnp.ones_like,
    "falling": lambda sigma: sigma,
    "rising": lambda sigma: 1 - sigma,
    "variance": unit_gaussian,
}


def none(
    prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
) -> Prediction:
    """No measurement: the plain generator."""
    return prediction


def weighted(weight: Weight, noise: Noise) -> Consistency:
    """clean ← clean + weight(mask, level) (y - clean), and the noise as asked."""

    def rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        return moved(prediction, weight(mask, level), y, level, noise, key)

    return rule


def dds(
    gamma: float = 5.0, gamma_schedule: str = "constant", noise: Noise = "recompute"
) -> Consistency:
    """clean ← (clean + γ h² y) / (1 + γ h²), with the static mask h = h(1).

    The proximal step of Decomposed Diffusion Sampling (arXiv 2303.05754) for the operator
    diag(h) and an unattenuated measurement y: where h = 0 nothing changes. γ is one number
    times one of `GAMMA_SCHEDULES` of σ.
    """

    def weight(mask: LatentMask, level: Level) -> Float[Array, "t h w #c"]:
        strength = gamma * GAMMA_SCHEDULES[gamma_schedule](level.sigma) * mask.weight(1.0) ** 2
        return strength / (1 + strength)

    return weighted(weight, noise)


def bayes_dds(r2: CleanVariance = unit_gaussian, noise: Noise = "recompute") -> Consistency:
    """clean ← clean + h(r_σ²) (y - clean): DDS whose weight follows from variances. Ours.

    The linear fusion of two independent estimates. `r2` is the variance of the model's clean
    estimate at σ, one number or one per channel: measured (`calibration`), or that of a unit
    Gaussian. Early, when the model knows little, the measurement leads; late, only its most
    certain latents still do. There is no γ to tune. For a unit Gaussian the weight is that of
    Flower's refinement (`renewals.flower`), which treats the noise otherwise.
    """
    return weighted(lambda mask, level: mask.weight(r2(level.sigma)), noise)


def moved(
    prediction: Prediction,
    weight: Float[Array, "t h w #c"],
    y: Latent,
    level: Level,
    noise: Noise,
    key: PRNGKeyArray,
) -> Prediction:
    """clean + weight (y - clean), and the noise as asked."""
    return changed(prediction, weight * (y - prediction.clean), level, noise, key)


def changed(
    prediction: Prediction, change: Latent, level: Level, noise: Noise, key: PRNGKeyArray
) -> Prediction:
    """clean + change, and the noise as asked."""
    clean = prediction.clean + change
    if noise == "keep":
        return Prediction(clean, prediction.noise)
    if noise == "renew":
        return Prediction(clean, jax.random.normal(key, clean.shape))
    # x is unchanged: what the clean part gains, the noise gives.
    return Prediction(clean, prediction.noise - (1 - level.sigma) / level.sigma * change)
