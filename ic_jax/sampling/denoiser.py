"""Split: a noisy latent becomes an estimate of its clean part and of its noise.

The flow x = (1-σ) clean + σ noise has the velocity v = noise - clean.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from .schedule import Level

Velocity = Callable[[Float[Array, "b t h w c"], Float[Array, " b"]], Float[Array, "b t h w c"]]


class Prediction(NamedTuple):
    """Estimates with x = (1-σ) clean + σ noise."""

    clean: Float[Array, "t h w c"]
    noise: Float[Array, "t h w c"]


Denoiser = Callable[[Float[Array, "t h w c"], Level], Prediction]


def split(
    x: Float[Array, "t h w c"], velocity: Float[Array, "t h w c"], sigma: Float[Array, ""]
) -> Prediction:
    """The prediction that a velocity stands for."""
    return Prediction(x - sigma * velocity, x + (1 - sigma) * velocity)


def denoiser(velocity: Velocity) -> Denoiser:
    """A model of one condition. `velocity` is called with a batch of one."""

    def denoise(x: Float[Array, "t h w c"], level: Level) -> Prediction:
        return split(x, velocity(x[None], level.timestep[None])[0], level.sigma)

    return denoise


def guided(velocity: Velocity, guidance_scale: Float[Array, ""] | float) -> Denoiser:
    """A model of two conditions: v = v₀ + scale · (v₁ - v₀), in one batched call.

    `velocity` is called with a batch of two and answers [unconditional, conditional].
    Ho and Salimans, "Classifier-Free Diffusion Guidance" (arXiv 2207.12598).
    """

    def denoise(x: Float[Array, "t h w c"], level: Level) -> Prediction:
        both = jnp.stack([x, x]), jnp.stack([level.timestep, level.timestep])
        without, given = velocity(*both)
        return split(x, without + guidance_scale * (given - without), level.sigma)

    return denoise
