"""Recombine: predictions become the latent at the next level."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .denoiser import Prediction
from .schedule import Level


class Solver(NamedTuple):
    """`init(x) -> memory` and `update(memory, prediction, level, key) -> (x, memory)`."""

    init: Callable[[Float[Array, "t h w c"]], PyTree]
    update: Callable[
        [PyTree, Prediction, Level, PRNGKeyArray], tuple[Float[Array, "t h w c"], PyTree]
    ]


def euler(renoise: float = 0.0) -> Solver:
    """x' = (1-σ') clean + σ' noise.

    `renoise` is the share η in [0, 1] of the noise that is drawn anew at each step,
    √(1-η²) noise + η fresh, as in DDIM (arXiv 2010.02502, eq. 16); 0 is deterministic. It is
    a share per step, so more steps renew more, and it keeps the variance only while it is small.
    """

    def update(memory: PyTree, prediction: Prediction, level: Level, key: PRNGKeyArray):
        noise = prediction.noise
        if renoise:
            fresh = jax.random.normal(key, noise.shape)
            noise = jnp.sqrt(1 - renoise**2) * noise + renoise * fresh
        return (1 - level.next_sigma) * prediction.clean + level.next_sigma * noise, memory

    return Solver(init=lambda x: (), update=update)
