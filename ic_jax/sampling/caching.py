"""Timestep caching: on some steps, reuse what the model's depths said the last time.

A deep network's answer changes little between neighbouring levels. It is cut in two: the
`deep` part is asked on some steps only, and a cheap part `around` it sees x and the level at every
step. Reusing the whole velocity instead would be no more than a longer Euler step.

Which steps reuse is decided before the run, on the host, by one of two functions here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree

from ic_jax.latent_mask import LatentMask

from .denoiser import Denoiser
from .sampler import Method, State, Step
from .schedule import Level
from .solvers import Solver

# The first steps decide what is in the picture: MagCache leaves a fifth of them alone.
KEPT = 0.2


class Halves(NamedTuple):
    """A denoiser cut in two: `around(deep(x, level))` is the whole of it at that x and level."""

    deep: Callable[[Float[Array, "t h w c"], Level], PyTree]
    around: Callable[[PyTree], Denoiser]


class Memory(NamedTuple):
    """A state's memory where steps reuse."""

    solver: PyTree
    answer: PyTree
    """Of the deep part, the last time that it was asked: by far the largest of a state's arrays."""


def every(steps: int, reuse: int) -> Bool[np.ndarray, " steps"]:
    """Whether each step reuses: after the first fifth, `reuse` steps follow each that does not."""
    later = np.arange(steps) - _kept(steps)
    return (later >= 0) & (later % (reuse + 1) < reuse)


def by_magnitude(
    ratios: Float[np.ndarray, " steps"], threshold: float, most: int
) -> Bool[np.ndarray, " steps"]:
    """Whether each step reuses, by how the size of what is reused changes from step to step.

    Ma et al., "MagCache" (arXiv 2506.09045). `ratios` are calibrated: the mean size of the deep
    part's answer at a step over that at the step before (the first is 1). A step reuses while the
    errors |1 - product of the ratios since the last call|, summed over the steps since then, stay
    below `threshold`, and at most `most` times in a row.
    """
    reused = np.zeros(len(ratios), bool)
    product, error, count = 1.0, 0.0, 0
    for step in range(_kept(len(ratios)), len(ratios)):
        product *= ratios[step]
        error += abs(1 - product)
        count += 1
        if error < threshold and count <= most:
            reused[step] = True
        else:
            product, error, count = 1.0, 0.0, 0
    return reused


def _kept(steps: int) -> int:
    """The steps at the beginning that all ask the model: one at least, as none was before it."""
    return max(1, round(KEPT * steps))


def empty(state: State, deep: PyTree) -> State:
    """The state with room for the deep part's answer, whose shapes are given."""
    nothing = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), deep)
    return state._replace(memory=Memory(state.memory, nothing))


def apart(answer: Callable[[Any], Any], other: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """`tree`, with one function applied to the arrays of answers, the other to all else."""

    def apply(node: Any) -> Any:
        if isinstance(node, Memory):
            return Memory(jax.tree.map(other, node.solver), jax.tree.map(answer, node.answer))
        return other(node)

    return jax.tree.map(apply, tree, is_leaf=lambda node: isinstance(node, Memory))


def reusing(
    method: Method,
    halves: Halves,
    reused: Float[np.ndarray, " n"],
    solver: Solver,
    y: Float[Array, "t h w c"],
    mask: LatentMask,
) -> Step:
    """The method's step, which asks the deep part at levels other than the `reused` σ only.

    For methods that call the model once per step, at x itself, without a gradient. The state's
    memory is that of the solver and the last answer, as `empty` makes it.
    """

    def step(state: State, level: Level) -> State:
        memory, last = state.memory
        # Not batched where clips are: under `jax.vmap` it remains a choice of one branch.
        known = jnp.any(level.sigma == reused)
        deep = jax.lax.cond(known, lambda: last, lambda: halves.deep(state.x, level))
        plain = method(halves.around(deep), solver, y, mask)
        after = plain(state._replace(memory=memory), level)
        return after._replace(memory=Memory(after.memory, deep))

    return step
