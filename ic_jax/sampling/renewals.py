"""Rules of other papers that draw noise anew, where they do and as much as they do.

Euler's step puts the noise of a prediction into the next x, x' = (1-σ') clean + σ' noise, and
with it all of these are what their papers do. A solver with memory has no more to offer where
everything is drawn anew (`solvers.first_order`): there it gives its schedule, and Euler's step.
All are diagonal in the latent mask, with y as encoded, and being written for latents they are
reconstructions.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ic_jax.latent_mask import LatentMask

from .consistency import CleanVariance, Consistency, Latent, dds, moved, unit_gaussian, weighted
from .denoiser import Prediction
from .schedule import Level


def replacement(
    prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
) -> Prediction:
    """x' ← (1-h) x' + h ((1-σ') y + σ' fresh): what was seen is put back, noisy, every step.

    Blended Latent Diffusion (arXiv 2206.02779), and the known part of RePaint (arXiv
    2201.09865). Since x' is linear in clean and noise, blending each of them blends x'; fresh
    noise comes in by h alone. The blend is the papers', made for hard masks: where h is
    neither 0 nor 1, the noise loses variance, down to a half of it.
    """
    h = mask.weight(1.0)
    clean = moved(prediction, h, y, level, "keep", key).clean
    fresh = jax.random.normal(key, clean.shape)
    return Prediction(clean, prediction.noise + h * (fresh - prediction.noise))


def diffpir(strength: float = 1.0, renewed: float = 1.0) -> Consistency:
    """clean ← clean + h(σ̄² / λ) (y - clean), with σ̄ = σ / (1-σ);  a share of noise is fresh.

    DiffPIR (arXiv 2305.08995): its proximal step weighs the data against clean by
    ρ = λ σ_n² / σ̄², and σ_n² is our v. So the weight is that of `bayes_dds`, coverage included,
    if the model's own variance were σ̄² / λ. `strength` is λ; `renewed` is ζ, the share of the
    noise's variance that is fresh, while the rest is recomputed from x. Both are as the
    authors' code sets them for inpainting, where all noise is fresh.
    """

    def rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        # h(σ̄²/λ), multiplied out: σ̄ is infinite at σ = 1.
        ours = LatentMask(mask.coverage, strength * (1 - level.sigma) ** 2 * mask.variance)
        clean, noise = moved(prediction, ours.weight(level.sigma**2), y, level, "recompute", key)
        return Prediction(clean, mixed(noise, renewed, key))

    return rule


def flowdps(gamma: float = 5.0, gamma_schedule: str = "constant") -> Consistency:
    """clean ← (1-σ) clean + σ dds(clean);  noise ← √σ' noise + √(1-σ') fresh.

    FlowDPS (arXiv 2503.08136) without its decoder: there, three gradient steps of tuned
    length through the decoder stand where we have the proximal step of `dds`. What the
    measurement can do falls with σ: a last step from a small one hardly moves.
    """
    proximal = dds(gamma, gamma_schedule, noise="keep")

    def rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        consistent = proximal(prediction, y, mask, level, key).clean
        clean = prediction.clean + level.sigma * (consistent - prediction.clean)
        return Prediction(clean, mixed(prediction.noise, 1 - level.next_sigma, key))

    return rule


def pnp_flow(rate: float = 1.0, power: float = 0.5) -> Consistency:
    """clean ← clean - rate σ'^power h² (clean - y), and all noise is fresh.

    PnP-Flow (arXiv 2410.02423): a gradient step on the data, noise up to the flow, the model
    as denoiser. Its loop begins with the gradient at time t = 1-σ', ours with the denoiser
    before it; from pure noise to the last denoised estimate, on which no gradient step
    follows, the two are the same. `rate` and `power`, the paper's α, are the defaults of the
    authors' code, which averages five denoised draws in each step; we make one.
    """

    def weight(mask: LatentMask, level: Level) -> Float[Array, "t h w #c"]:
        return rate * level.next_sigma**power * mask.weight(1.0) ** 2

    return weighted(weight, "renew")


def flower(spread: float = 0.0, r2: CleanVariance = unit_gaussian) -> Consistency:
    """clean ← clean + h(r_σ²) (y - clean) + spread √(r_σ² (1 - h)) fresh, and all noise is fresh.

    Flower (arXiv 2509.26287): r_σ² is that of a unit Gaussian, σ_n² is our v, and `spread` is
    the paper's γ. At 0, its default, the estimate is the mean of clean given x and y; at 1 it
    is a draw, and for a unit Gaussian the run is then exact at any number of steps. Any other
    `r2` is ours: see `bayes_draw`.
    """

    def rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        noise_key, spread_key = jax.random.split(key)
        variance = r2(level.sigma)
        h = mask.weight(variance)
        clean, noise = moved(prediction, h, y, level, "renew", noise_key)
        if spread:
            draw = jax.random.normal(spread_key, clean.shape)
            clean = clean + spread * jnp.sqrt(variance * (1 - h)) * draw
        return Prediction(clean, noise)

    return rule


def flower_cov() -> Consistency:
    """Flower with its draws, which its authors call so."""
    return flower(spread=1.0)


def bayes_draw(r2: CleanVariance = unit_gaussian) -> Consistency:
    """`bayes_dds` with a draw where it has a mean: `flower_cov` for the model's own error r_σ².

    Every step is an ancestral draw from the fused estimate, N(clean + h (y - clean), r_σ² (1-h)),
    so errors that latents share are made anew and not carried along: on priors with strong
    correlations it stays near the posterior, where `bayes_dds` does not (experiments/gaussian).
    """
    return flower(1.0, r2)


def mixed(noise: Latent, share: Float[Array, ""] | float, key: PRNGKeyArray) -> Latent:
    """Noise whose variance is fresh by this share, in [0, 1]."""
    fresh = jax.random.normal(key, noise.shape)
    return jnp.sqrt(1 - share) * noise + jnp.sqrt(share) * fresh
