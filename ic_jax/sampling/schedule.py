"""Noise levels: σ from 1 (noise) to 0 (clean), and the timestep the checkpoint expects.

Every schedule is made on the host, in float64, and is no traced value: under `jax.jit` it can
still be cut where the model changes (`split_at`), or one step at a time for a progress bar.

    schedule              σ before the shift          timestep
    flow_schedule         1 … 0, N equal parts        1000 σ
    unipc_schedule        0.999 … 0, N equal parts    1000 σ, truncated
    dpmpp_schedule        1 … 0, N equal parts        1000 σ, truncated
    double_shift_schedule 1 … shifted(0.001), then 0  1000 σ

The last three are what Wan's own samplers and VideoX-Fun's "Flow" use; a checkpoint's
defaults for steps and shift were chosen with one of them.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

TRAIN_TIMESTEPS = 1000


class Level(NamedTuple):
    """One step of a schedule, or all of them along a leading axis.

    A schedule is numpy, float32, with strictly falling σ; inside the loop its rows are traced.
    """

    sigma: Float[Array | np.ndarray, "*n"]
    next_sigma: Float[Array | np.ndarray, "*n"]
    timestep: Float[Array | np.ndarray, "*n"]


def shifted(sigma, shift: float):
    """s σ / (1 + (s-1) σ): for s > 1, more steps where there is more noise.

    Esser et al., "Scaling Rectified Flow Transformers" (arXiv 2403.03206), eq. 23.
    """
    return shift * sigma / (1 + (shift - 1) * sigma)


def flow_schedule(steps: int, shift: float) -> Level:
    """`steps` equal parts of [1, 0], shifted; the timestep is 1000 σ, not truncated."""
    return _levels(shifted(np.linspace(1.0, 0.0, steps + 1), shift))


def unipc_schedule(steps: int, shift: float) -> Level:
    """Wan's schedule for UniPC: it begins at 0.999 and truncates timesteps to whole numbers."""
    return _levels(shifted(np.linspace(0.999, 0.0, steps + 1), shift), truncate=True)


def dpmpp_schedule(steps: int, shift: float) -> Level:
    """Wan's schedule for DPM-Solver++: `flow_schedule` with timesteps in whole numbers."""
    return _levels(shifted(np.linspace(1.0, 0.0, steps + 1), shift), truncate=True)


def double_shift_schedule(steps: int, shift: float) -> Level:
    """VideoX-Fun's "Flow", that is diffusers' FlowMatchEulerDiscreteScheduler.

    The smallest σ is shifted before the others are spaced, and again with them, so the last
    step is shorter than in `flow_schedule`.
    """
    smallest = shifted(1 / TRAIN_TIMESTEPS, shift)
    return _levels(np.append(shifted(np.linspace(1.0, smallest, steps), shift), 0.0))


def split_at(levels: Level, boundary: float) -> tuple[Level, Level]:
    """(high, low): the steps whose timestep is at least 1000 `boundary`, and the rest.

    Models of two experts (Wan 2.2) give the high part to one and the low part to the other.
    Either part may be empty. `levels` must be a whole schedule, not traced.
    """
    high = int(np.sum(levels.timestep >= TRAIN_TIMESTEPS * boundary))
    part = lambda cut: Level(*(leaf[cut] for leaf in levels))
    return part(slice(high)), part(slice(high, None))


def _levels(sigmas: Float[np.ndarray, " n"], truncate: bool = False) -> Level:
    # The product is taken in float64: in float32 a timestep could truncate to another number.
    timesteps = TRAIN_TIMESTEPS * sigmas[:-1]
    arrays = sigmas[:-1], sigmas[1:], np.trunc(timesteps) if truncate else timesteps
    return Level(*(array.astype(np.float32) for array in arrays))
