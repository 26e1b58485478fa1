"""Descent of a variational mean: the state holds a clean latent, and no noisy trajectory.

These methods fit the mean μ of a narrow Gaussian to the posterior. At each level μ is noised,
the model cleans it, μ goes some way towards what came out, and then towards the measurement.
The state's x is μ itself, finished whenever the levels end. So a window of levels in which
another method acts makes no sense with them, nor does a solver, and none is used.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ic_jax.latent_mask import LatentMask

from .consistency import CleanVariance, Latent, unit_gaussian
from .denoiser import Denoiser
from .sampler import Method, State, Step
from .schedule import Level
from .solvers import Solver

# Schedules begin above it, save for shifts below 0.5 with unipc. A second step above it, as of 50
# with a shift of 12, begins again from y.
BEGINS = 0.998


def red_diff(gamma: float = 1.0, trust: float = 0.25) -> Method:
    """μ ← μ + λ (clean - μ), then the proximal step of γ/2 ‖h (μ - y)‖².

    Mardani et al., "A Variational Perspective on Solving Inverse Problems with Diffusion
    Models" (RED-diff, arXiv 2305.04391). Their regulariser's gradient (noise predicted -
    noise put in), weighted by the inverse of the signal-to-noise ratio σ/(1-σ), is exactly
    μ - clean for the flow; λ = 0.25 is their constant before it. Adapted: the data term is
    in latents and diagonal, and a proximal gradient step stands where the authors use Adam.
    """

    def towards_data(mask: LatentMask) -> Float[Array, "t h w #c"]:
        strength = gamma * mask.weight(1.0) ** 2
        return strength / (1 + strength)

    return _descent(lambda sigma: trust, towards_data)


def flair(r2: CleanVariance = unit_gaussian) -> Method:
    """The same descent along a noise that the model half predicts, onto the measurement.

    Erbach et al., "Solving Inverse Problems with FLAIR" (arXiv 2506.02680), in latents. The
    noise put in is α n + √(1-α²) ε with n the model's own (their trajectory adjustment), and
    μ is moved onto y by its share h (their hard data consistency).

    Reconstructed: α = 1 - σ; n from a call at the same level and fresh noise, where the
    authors keep that of the level before; and their regulariser's weight, measured offline
    from the model's accuracy, as 1 - r_σ², the part of unit variance that the model explains.
    """
    return _descent(
        lambda sigma: jnp.clip(1 - r2(sigma), 0, 1), lambda mask: mask.weight(1.0), adjusted=True
    )


def _descent(
    trust: Callable[[Float[Array, ""]], Float[Array, "*#c"] | float],
    towards_data: Callable[[LatentMask], Float[Array, "t h w #c"]],
    adjusted: bool = False,
) -> Method:
    """`trust` is the share of the way to the clean estimate, `towards_data` of that to y."""

    def method(denoise: Denoiser, solver: Solver, y: Latent, mask: LatentMask) -> Step:
        def step(state: State, level: Level) -> State:
            sigma = level.sigma
            key, first_key, second_key = jax.random.split(state.key, 3)
            # The noise that every run starts from says nothing of μ.
            mean = jnp.where(sigma > BEGINS, y, state.x)
            noised = lambda noise: (1 - sigma) * mean + sigma * noise
            noise = jax.random.normal(first_key, mean.shape)
            if adjusted:
                predicted = denoise(noised(noise), level).noise
                fresh = jax.random.normal(second_key, mean.shape)
                noise = (1 - sigma) * predicted + jnp.sqrt(1 - (1 - sigma) ** 2) * fresh
            clean = denoise(noised(noise), level).clean
            mean = mean + trust(sigma) * (clean - mean)
            mean = mean + towards_data(mask) * (y - mean)
            return State(mean, state.memory, key)

        return step

    return method
