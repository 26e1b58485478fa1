"""The loop: split, correct, recombine, from noise to a clean latent.

Everything here works on one clip and is pure: `jax.vmap`, `jax.pmap` and `jax.jit` apply.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from ic_jax.latent_mask import LatentMask

from .consistency import Consistency
from .denoiser import Denoiser
from .schedule import Level
from .solvers import Solver


class Pixels(NamedTuple):
    """The way to pixels and back, for methods that pay it in every step, and what was seen."""

    encode: Callable[[Float[Array, "t h w 3"]], Float[Array, "t2 h2 w2 c"]]
    decode: Callable[[Float[Array, "t2 h2 w2 c"]], Float[Array, "t h w 3"]]
    clip: Float[Array, "t h w 3"]
    """The filled clip whose encoding is y."""
    visible: Float[Array, "t h w"]


class State(NamedTuple):
    """All that a run needs to go on: saved, it resumes to the same bits."""

    x: Float[Array, "t h w c"]
    memory: PyTree
    key: PRNGKeyArray


Step = Callable[[State, Level], State]
Method = Callable[[Denoiser, Solver, Float[Array, "t h w c"], LatentMask], Step]


def start(key: PRNGKeyArray, shape: tuple[int, ...], solver: Solver) -> State:
    """Pure noise at σ = 1."""
    key, noise_key = jax.random.split(key)
    x = jax.random.normal(noise_key, shape)
    return State(x, solver.init(x), key)


def split_correct_recombine(consistent: Consistency) -> Method:
    """The common step. A method that does not fit it makes a `Step` of its own."""

    def method(
        denoise: Denoiser, solver: Solver, y: Float[Array, "t h w c"], mask: LatentMask
    ) -> Step:
        def step(state: State, level: Level) -> State:
            key, rule_key, solver_key = jax.random.split(state.key, 3)
            prediction = consistent(denoise(state.x, level), y, mask, level, rule_key)
            x, memory = solver.update(state.memory, prediction, level, solver_key)
            return State(x, memory, key)

        return step

    return method


def advance(step: Step, state: State, levels: Level) -> State:
    """Take one step per level, in one `lax.scan`; call it on parts of a schedule to pause."""
    return jax.lax.scan(lambda state, level: (step(state, level), None), state, levels)[0]
