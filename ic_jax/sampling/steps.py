"""Steps that ask the model more than once, or move to the next level in their own way.

Each function makes a `Method`. `inner` counts the calls of the model beyond the first in
every step. The move between levels is the solver's, so that all of these work with every
solver; DING alone has a transition of its own.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ic_jax.latent_mask import LatentMask

from .consistency import CleanVariance, Latent, bayes_dds, unit_gaussian
from .denoiser import Denoiser, Prediction
from .renewals import replacement
from .sampler import Method, State, Step
from .schedule import TRAIN_TIMESTEPS, Level
from .solvers import Solver, first_order


def repaint(inner: int = 4) -> Method:
    """Replace what is known, jump back to the noise, and take the step again, `inner` times.

    Lugmayr et al., "RePaint" (arXiv 2201.09865), algorithm 1, for the flow and jumps of one
    level; the paper jumps back 9 times. The repetition lets the unknown part answer to what
    was put beside it. With `inner` = 0 it is `replacement`. A jump back begins anew: a multistep
    solver takes the repeated steps at first order.
    """

    def method(denoise: Denoiser, solver: Solver, y: Latent, mask: LatentMask) -> Step:
        def step(state: State, level: Level) -> State:
            key, passes_key = jax.random.split(state.key)

            def once(carry, key: PRNGKeyArray):
                (x, memory), _ = carry
                replace_key, solver_key, back_key = jax.random.split(key, 3)
                prediction = replacement(denoise(x, level), y, mask, level, replace_key)
                end = solver.update(memory, prediction, level, solver_key)
                back = jumped_back(end[0], level, back_key)
                return ((back, solver.init(back)), end), None

            begin = state.x, state.memory
            keys = jax.random.split(passes_key, inner + 1)
            (_, (x, memory)), _ = jax.lax.scan(once, (begin, begin), keys)
            return State(x, memory, key)

        return step

    return method


def jumped_back(x: Latent, level: Level, key: PRNGKeyArray) -> Latent:
    """From σ' up to σ, by the forward process: RePaint, eq. 1, for the flow.

    x_σ = k x_σ' + √(σ² - k² σ'²) ε with k = (1-σ)/(1-σ'): the clean part shrinks to its share
    at σ, and the noise is filled up.
    """
    sigma, before = level.sigma, level.next_sigma
    kept = (1 - sigma) / (1 - before)
    added = jnp.sqrt(jnp.maximum(sigma**2 - (kept * before) ** 2, 0))
    return kept * x + added * jax.random.normal(key, x.shape)


def langevin(inner: int = 4, tau: float = 0.2, r2: CleanVariance = unit_gaussian) -> Method:
    """Before every step, `inner` steps of Langevin dynamics towards p(x at σ | y). Ours.

    Derivation. By Tweedie's formula ∇ log p(x_σ) = -E[noise | x_σ] / σ, and the same holds
    given y with E[noise | x_σ, y], which is what `bayes_dds` with the noise recomputed
    predicts: exactly, for a Gaussian with independent latents. The unadjusted Langevin step
    of size δ = τσ² along this score is

        x ← x - τσ · noise + σ√(2τ) · ε

    The curvature of -log p(x_σ | y) is at most 1/σ² where it is log-concave, so 0 < τ < 2 is
    stable at every level, and at σ = 1 nothing is singular. The walk leaves a variance too
    large by the factor 1 / (1 - τu/2), u = σ² / Var(x_σ | y) ≤ 1: small τ is accurate, and u
    vanishes with σ wherever something is uncertain.
    """
    correct = bayes_dds(r2)

    def method(denoise: Denoiser, solver: Solver, y: Latent, mask: LatentMask) -> Step:
        solver = first_order(solver)

        def step(state: State, level: Level) -> State:
            key, walk_key, solver_key = jax.random.split(state.key, 3)

            def walk(carry: tuple[Latent, Prediction], key: PRNGKeyArray):
                x, _ = carry
                # Recomputed noise needs no key: this one is for the walk alone.
                prediction = correct(denoise(x, level), y, mask, level, key)
                drift = -tau * level.sigma * prediction.noise
                spread = level.sigma * jnp.sqrt(2 * tau) * jax.random.normal(key, x.shape)
                return (x + drift + spread, prediction), None

            # The last prediction is the step's own; where it would lead is not used.
            begin = state.x, Prediction(state.x, state.x)
            keys = jax.random.split(walk_key, inner + 1)
            (_, prediction), _ = jax.lax.scan(walk, begin, keys)
            return State(*solver.update(state.memory, prediction, level, solver_key), key)

        return step

    return method


def ding(gamma: float = 1e4, delayed: bool = False) -> Method:
    """A stochastic step, drawn from its exact posterior given a noisy version of y.

    Moufad et al., "Efficient Zero-Shot Inpainting with Decoupled Diffusion Guidance" (arXiv
    2512.18365). The bridge to σ' is N(μ, s²) with s = σ'², the variance that the authors use
    for flows, and μ = (1-σ') clean + √(σ'² - s²) noise. What y would look like at σ' takes a
    noise: the model's at a draw z from the bridge, by a second call, or with `delayed` the
    one that it has just predicted. Then element by element

        x' ~ N(μ, s²) · N((1-σ') y + σ' noise; h x', ((1-σ')² / γ))

    in closed form. 1/γ is the variance of the measurement's error, 0.01² in their code; h is
    0 or 1 there, and for continuous masks h² γ takes the place of γ. The transition is the
    method's own: it has no use for a solver. As in the paper the last step, to σ' = 0, is
    the model's clean estimate.
    """

    def method(denoise: Denoiser, solver: Solver, y: Latent, mask: LatentMask) -> Step:
        def step(state: State, level: Level) -> State:
            key, draw_key, posterior_key = jax.random.split(state.key, 3)
            clean, noise = denoise(state.x, level)
            sigma, signal = level.next_sigma, 1 - level.next_sigma
            std = sigma**2
            mean = signal * clean + jnp.sqrt(sigma**2 - std**2) * noise
            if not delayed:
                # A schedule that truncates its timesteps is off by less than one of them here.
                there = Level(sigma, sigma, TRAIN_TIMESTEPS * sigma)
                draw = mean + std * jax.random.normal(draw_key, mean.shape)
                noise = denoise(draw, there).noise
            seen = signal * y + sigma * noise
            x = gaussian_posterior(mean, std, seen, gain(gamma, mask, std, signal), posterior_key)
            return State(x, state.memory, key)

        return step

    return method


def gain(
    gamma: float, mask: LatentMask, std: Float[Array, ""], signal: Float[Array, ""]
) -> Float[Array, "t h w #c"]:
    """The share of the measurement in the mean of the posterior: s² / (s² + (1-σ')² / γh²)."""
    strength = gamma * (mask.weight(1.0) * std / signal) ** 2
    return strength / (1 + strength)


def gaussian_posterior(
    mean: Latent,
    std: Float[Array, ""],
    seen: Latent,
    gain: Float[Array, "t h w #c"],
    key: PRNGKeyArray,
) -> Latent:
    """A draw from N(mean, std²) conditioned on what was seen."""
    # A model's noise may not be finite at σ' = 0, where its share is nothing.
    change = jnp.where(gain > 0, gain * (seen - mean), 0.0)
    return mean + change + std * jnp.sqrt(1 - gain) * jax.random.normal(key, mean.shape)
