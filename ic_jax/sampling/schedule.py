"""Noise levels: σ from 1 (noise) to 0 (clean), and the timestep the checkpoint expects.

Every schedule is made on the host, in float64, and is no traced value: under `jax.jit` it can
still be cut where something changes (`parts`), or one step at a time for a progress bar.

    schedule              σ before the shift          timestep
    flow_schedule         1 … 0, N equal parts        1000 σ
    unipc_schedule        0.999 … 0, N equal parts    1000 σ, truncated
    dpmpp_schedule        1 … 0, N equal parts        1000 σ, truncated
    double_shift_schedule 1 … shifted(0.001), then 0  1000 σ

The last three are what Wan's own samplers and VideoX-Fun's "Flow" use; a checkpoint's
defaults for steps and shift were chosen with one of them.
"""

from collections.abc import Callable
from itertools import groupby
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Array, Float

TRAIN_TIMESTEPS = 1000
T = TypeVar("T")


class Level(NamedTuple):
    """One step of a schedule, or all of them along a leading axis.

    A schedule is numpy, float32, with strictly falling σ; inside the loop its rows are traced.
    """

    sigma: Float[Array | np.ndarray, "*n"]
    next_sigma: Float[Array | np.ndarray, "*n"]
    timestep: Float[Array | np.ndarray, "*n"]


def shifted(
    sigma: Float[Array | np.ndarray, "*n"] | float, shift: float
) -> Float[Array | np.ndarray, "*n"] | float:
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


def parts(levels: Level, label: Callable[[Level], T]) -> list[tuple[T, Level]]:
    """The schedule, cut wherever the label of a step is not that of the step before.

    Under `jax.vmap` a condition inside the loop runs both of its branches; two loops do not.
    `levels` must be a whole schedule, not traced.
    """
    rows = [Level(*row) for row in zip(*levels)]
    return [
        (key, Level(*(np.stack(leaf) for leaf in zip(*run)))) for key, run in groupby(rows, label)
    ]


def _levels(sigmas: Float[np.ndarray, " n"], truncate: bool = False) -> Level:
    # The product is taken in float64: in float32 a timestep could truncate to another number.
    timesteps = TRAIN_TIMESTEPS * sigmas[:-1]
    arrays = sigmas[:-1], sigmas[1:], np.trunc(timesteps) if truncate else timesteps
    return Level(*(array.astype(np.float32) for array in arrays))
