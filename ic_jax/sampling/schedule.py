"""Noise levels: σ from 1 (noise) to 0 (clean), and the timestep the checkpoint expects."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Level(NamedTuple):
    """One step of a schedule, or all of them along a leading axis."""

    sigma: Float[Array, "*n"]
    next_sigma: Float[Array, "*n"]
    timestep: Float[Array, "*n"]


def shifted(sigma, shift: float):
    """s σ / (1 + (s-1) σ): for s > 1, more steps where there is more noise.

    Esser et al., "Scaling Rectified Flow Transformers" (arXiv 2403.03206), eq. 23.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_schedule(steps: int, shift: float) -> Level:
    """`steps` equal parts of [1, 0], shifted; the timestep is 1000 σ, not truncated."""
    sigmas = shifted(np.linspace(1.0, 0.0, steps + 1), shift)
    as_float = lambda x: jnp.asarray(x, jnp.float32)
    return Level(as_float(sigmas[:-1]), as_float(sigmas[1:]), as_float(1000 * sigmas[:-1]))
