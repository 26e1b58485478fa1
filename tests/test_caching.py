"""What is reused between steps, when, and what that leaves as it was."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.latent_mask import LatentMask
from ic_jax.sampling import caching
from ic_jax.sampling.caching import Halves, by_magnitude, every, reusing
from ic_jax.sampling.consistency import dds
from ic_jax.sampling.denoiser import split
from ic_jax.sampling.methods import METHODS, method
from ic_jax.sampling.sampler import Pixels, advance, split_correct_recombine, start
from ic_jax.sampling.schedule import flow_schedule
from ic_jax.sampling.solvers import SOLVERS, euler, unipc

SHAPE = 2, 3, 3, 4
KEY = jax.random.key(0)
Y = jax.random.normal(jax.random.key(1), SHAPE)
MASK = LatentMask(jnp.full(SHAPE, 0.5), jnp.full(SHAPE, 0.1))
METHOD = split_correct_recombine(dds())


def deep(x, level):
    """Half of a velocity, which differs from level to level and with x."""
    return jnp.sin(x + 3 * level.sigma)


def around(residual):
    return lambda x, level: split(x, residual + 0.3 * x, level.sigma)


def whole(x, level):
    return around(deep(x, level))(x, level)


HALVES = Halves(deep, around)


def run(flags, levels, solver):
    """The last x, and after how many calls of the deep part."""
    calls = []
    counting = lambda x, level: jax.debug.callback(lambda: calls.append(1)) or deep(x, level)
    step = reusing(METHOD, Halves(counting, around), levels.sigma[flags], solver, Y, MASK)
    state = caching.empty(start(KEY, SHAPE, solver), jax.eval_shape(lambda: Y))
    state = jax.block_until_ready(advance(step, state, levels))
    jax.effects_barrier()
    return state, len(calls)


def test_a_fixed_schedule_begins_after_a_fifth_and_asks_before_it_reuses():
    assert not every(10, 0).any()
    np.testing.assert_array_equal(np.flatnonzero(every(10, 1)), [2, 4, 6, 8])
    np.testing.assert_array_equal(np.flatnonzero(every(10, 2)), [2, 3, 5, 6, 8, 9])
    assert not every(1, 3).any() and not every(2, 3)[0]


def test_magnitudes_that_stay_are_reused_as_often_as_allowed():
    np.testing.assert_array_equal(by_magnitude(np.ones(10), 0.1, 2), every(10, 2))


def test_errors_add_up_over_the_steps_since_the_last_call():
    ratios = np.array([1, 1, 1.04, 1.04, 1.04, 0.5, 1.0, 1.0, 1.0, 1.0])
    # 0.04, then 0.04 + 0.0816 > 0.1: step 3 asks. Then 0.04, then 0.52 more: step 5 asks.
    reused = by_magnitude(ratios, 0.1, 9)
    np.testing.assert_array_equal(np.flatnonzero(reused), [2, 4, 6, 7, 8, 9])
    # A fall and a rise of the same size do not cancel once both have passed.
    swing = np.array([1, 1, 1.2, 1 / 1.2, 1, 1, 1, 1, 1, 1])
    assert by_magnitude(swing, 0.3, 9)[2:].all() and not by_magnitude(swing, 0.19, 9)[2]


@pytest.mark.parametrize("name", SOLVERS)
def test_where_nothing_is_reused_it_is_the_plain_sampler(name):
    schedule, make = SOLVERS[name]
    levels, solver = schedule(6, 3.0), make()
    plain = METHOD(whole, solver, Y, MASK)
    expected = advance(plain, start(KEY, SHAPE, solver), levels)
    cached, calls = run(np.zeros(6, bool), levels, solver)
    np.testing.assert_allclose(cached.x, expected.x, atol=1e-6)
    assert calls == 6


def test_steps_that_reuse_do_not_ask_and_take_the_answer_of_the_last_that_did():
    levels = flow_schedule(6, 3.0)
    flags = every(6, 2)
    solver = unipc()
    cached, calls = run(flags, levels, solver)
    assert calls == 6 - flags.sum() == 2
    state, answer = start(KEY, SHAPE, solver), None
    for row, reuses in zip(zip(*levels), flags):
        level = type(levels)(*map(jnp.asarray, row))
        answer = answer if reuses else deep(state.x, level)
        state = METHOD(around(answer), solver, Y, MASK)(state, level)
    np.testing.assert_allclose(cached.x, state.x, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_single_methods_are_those_that_ask_once_at_their_own_x_without_a_gradient(name):
    shape = 2, 4, 4, 3  # latents that could be pixels
    y, mask = jnp.zeros(shape), LatentMask(jnp.full(shape, 0.5), jnp.full(shape, 0.1))
    pixels = Pixels(lambda clip: clip, lambda latent: latent, y, jnp.ones(shape[:3]))
    level = jax.tree.map(lambda leaf: jnp.asarray(leaf[1]), flow_schedule(4, 3.0))

    def step(state):
        def denoise(x, level):
            asked.append(x is state.x)
            return split(x, 0.5 * x, level.sigma)

        return method(name, pixels=pixels)(denoise, euler(), y, mask)(state, level)

    asked = []
    jax.eval_shape(step, start(KEY, shape, euler()))
    assert METHODS[name].single == (asked == [True])


def test_a_batch_of_clips_still_skips_the_work():
    levels, solver = flow_schedule(6, 3.0), unipc()
    step = reusing(METHOD, HALVES, levels.sigma[every(6, 1)], solver, Y, MASK)

    def sample(key):
        state = caching.empty(start(key, SHAPE, solver), jax.eval_shape(lambda: Y))
        return advance(step, state, levels).x

    keys = jax.random.split(KEY, 2)
    assert " cond[" in str(jax.make_jaxpr(jax.vmap(sample))(keys))
    together = jax.vmap(sample)(keys)
    np.testing.assert_allclose(together[1], sample(keys[1]), atol=1e-5)
