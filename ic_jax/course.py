"""The course of a run: its noise levels, cut where something other than the level changes.

A loop compiles one kind of step; where the expert changes, or the measurement does, another
loop begins.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from .errors import InputError
from .models.variants import Variant
from .sampling.caching import every
from .sampling.schedule import TRAIN_TIMESTEPS, Level, parts
from .sampling.solvers import SOLVERS, Recipe
from .settings import Settings


class Part(NamedTuple):
    """What the steps of one part of the schedule have in common."""

    expert: str = "dit"
    """The generator's name among the weights."""
    acts: bool = True
    """Whether the measurement does."""
    refreshes: bool = False
    """Whether the measurement is made anew before it."""


def schedule(sizes: Variant, settings: Settings) -> Level:
    """The levels that lead from noise to a clean latent."""
    shift = sizes.shift if settings.shift is None else settings.shift
    steps = sizes.steps if settings.steps is None else settings.steps
    return recipe(sizes, settings).schedule(steps, shift)


def recipe(sizes: Variant, settings: Settings) -> Recipe:
    """The solver, and the schedule that it is used with."""
    return SOLVERS[sizes.solver if settings.solver is None else settings.solver]


def stages(sizes: Variant, settings: Settings, levels: Level) -> list[tuple[Part, Level]]:
    """The schedule, cut where the expert changes, and where the measurement does."""
    boundary = TRAIN_TIMESTEPS * (sizes.boundary or 0.0)
    after = levels.sigma <= (-1.0 if settings.refresh_at is None else settings.refresh_at)
    first_after = levels.sigma[after][:1]

    def part(level: Level) -> Part:
        return Part(
            "dit" if level.timestep >= boundary else "dit_low",
            bool(settings.guided_from >= level.sigma >= settings.guided_to),
            bool(level.sigma in first_after),
        )

    return parts(levels, part)


def check_levels(sizes: Variant, settings: Settings) -> None:
    """Raises InputError where `settings` ask for something at levels at which no step begins."""
    levels = schedule(sizes, settings)
    found = [part for part, _ in stages(sizes, settings, levels)]
    last = f"the last of {len(levels.sigma)} steps begins at {levels.sigma[-1]:.3f}"
    if settings.refresh_at is not None and not any(part.refreshes for part in found):
        raise InputError(f"--refresh-at is {settings.refresh_at}, and {last}; give a higher level")
    if not any(part.acts for part in found):
        raise InputError(
            f"no step begins from --guided-from {settings.guided_from} to --guided-to "
            f"{settings.guided_to}, and {last}; give levels further apart"
        )


def reused(sizes: Variant, settings: Settings) -> Float[np.ndarray, " n"]:
    """The noise levels whose steps do not ask the blocks; an expert's first one does."""
    levels = schedule(sizes, settings)
    flags = every(len(levels.sigma), settings.reuse)
    low = levels.timestep < TRAIN_TIMESTEPS * (sizes.boundary or 0.0)
    flags[1:] &= low[1:] == low[:-1]
    return levels.sigma[flags]
