"""The three verbs against closed forms: a Gaussian, whose posterior is known exactly."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.latent_mask import LatentMask
from ic_jax.sampling.consistency import GAMMA_SCHEDULES, bayes_dds, dds, none, unit_gaussian
from ic_jax.sampling.denoiser import Prediction, denoiser, guided, split
from ic_jax.sampling.sampler import advance, split_correct_recombine, start
from ic_jax.sampling.schedule import Level, flow_schedule
from ic_jax.sampling.solvers import euler

SHAPE = (2, 3, 4, 5)
SIGMA = jnp.float32(0.4)
LEVEL = Level(SIGMA, jnp.float32(0.3), 1000 * SIGMA)
KEY = jax.random.key(9)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def mask(a=1.0, v=0.0, shape=SHAPE):
    return LatentMask(jnp.full(shape, a), jnp.full(shape, v))


def prediction():
    return split(normal(0), normal(1), SIGMA)


def noisy(p, sigma=SIGMA):
    return (1 - sigma) * p.clean + sigma * p.noise


# Split --------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 0.6, 0.001])
def test_split_parts_make_up_the_noisy_latent(sigma):
    x, velocity = normal(0), normal(1)
    p = split(x, velocity, jnp.float32(sigma))
    np.testing.assert_allclose(noisy(p, sigma), x, atol=2e-6)
    np.testing.assert_allclose(p.noise - p.clean, velocity, atol=2e-6)


def test_split_recovers_the_parts_of_a_true_velocity():
    clean, noise = normal(2), normal(3)
    p = split(noisy(Prediction(clean, noise)), noise - clean, SIGMA)
    np.testing.assert_allclose(p.clean, clean, atol=1e-6)
    np.testing.assert_allclose(p.noise, noise, atol=1e-6)


def two_conditions(x, timestep):
    """[unconditional, conditional], each told apart by its row; the time is used as well."""
    rows = jnp.array([-1.0, 2.0])[: len(x), None, None, None, None]
    return x * rows + timestep[:, None, None, None, None] / 1000


def test_guidance_of_one_is_the_conditional_model():
    x = normal(0)
    alone = denoiser(lambda x, t: two_conditions(jnp.stack([x[0]] * 2), jnp.stack([t[0]] * 2))[1:])
    np.testing.assert_allclose(
        guided(two_conditions, 1.0)(x, LEVEL).clean, alone(x, LEVEL).clean, atol=1e-6
    )


def test_guidance_is_linear_from_unconditional_through_conditional():
    x = normal(0)
    at = lambda scale: guided(two_conditions, scale)(x, LEVEL).clean
    unconditional = split(x, -x + LEVEL.sigma, LEVEL.sigma).clean
    np.testing.assert_allclose(at(0.0), unconditional, atol=1e-6)
    np.testing.assert_allclose(at(4.0) - at(1.0), 3 * (at(1.0) - at(0.0)), atol=1e-5)
    assert jnp.abs(at(1.0) - at(0.0)).max() > 0.1


# Correct ------------------------------------------------------------------------------


def test_dds_moves_by_its_closed_form():
    p, y, m = prediction(), normal(4), mask(a=0.7, v=0.5)
    h2 = (0.7 / 1.5) ** 2
    expected = (p.clean + 3.0 * h2 * y) / (1 + 3.0 * h2)
    np.testing.assert_allclose(dds(3.0)(p, y, m, LEVEL, KEY).clean, expected, atol=1e-6)


def test_dds_of_infinite_strength_returns_the_measurement():
    y = normal(4)
    np.testing.assert_allclose(dds(1e7)(prediction(), y, mask(), LEVEL, KEY).clean, y, atol=1e-5)


def test_bayes_dds_is_the_minimum_variance_mean_of_two_estimates():
    p, y, v = prediction(), normal(4), 0.3
    r2 = unit_gaussian(SIGMA)
    expected = (p.clean / r2 + y / v) / (1 / r2 + 1 / v)
    out = bayes_dds()(p, y, mask(v=v), LEVEL, KEY).clean
    np.testing.assert_allclose(out, expected, atol=1e-6)


def test_bayes_dds_of_an_exact_measurement_returns_it():
    y = normal(4)
    np.testing.assert_allclose(bayes_dds()(prediction(), y, mask(), LEVEL, KEY).clean, y, atol=1e-6)


@pytest.mark.parametrize(
    "rule", [bayes_dds(), bayes_dds(noise="keep"), dds(), dds(noise="keep"), none]
)
def test_where_nothing_is_observed_the_prediction_stands(rule):
    p = prediction()
    for before, after in zip(p, rule(p, normal(4), mask(a=0.0), LEVEL, KEY)):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("rule", [bayes_dds, dds])
def test_renewed_noise_is_fresh(rule):
    p, y, m = prediction(), normal(4), mask(a=0.8, v=0.2)
    renewed = rule(noise="renew")(p, y, m, LEVEL, KEY)
    np.testing.assert_array_equal(renewed.clean, rule()(p, y, m, LEVEL, KEY).clean)
    assert jnp.abs(renewed.noise - p.noise).min() > 0
    other = rule(noise="renew")(p, y, m, LEVEL, jax.random.key(1))
    assert jnp.abs(renewed.noise - other.noise).max() > 0.5


@pytest.mark.parametrize("schedule", GAMMA_SCHEDULES)
def test_gamma_follows_its_schedule(schedule):
    p, y, m = prediction(), normal(4), mask(a=0.7, v=0.5)
    gamma = 3.0 * float(GAMMA_SCHEDULES[schedule](SIGMA))
    out = dds(3.0, schedule)(p, y, m, LEVEL, KEY).clean
    np.testing.assert_allclose(out, dds(gamma)(p, y, m, LEVEL, KEY).clean, atol=1e-6)


@pytest.mark.parametrize("rule", [bayes_dds, dds])
def test_recomputed_noise_keeps_x_and_kept_noise_does_not(rule):
    p, y, m = prediction(), normal(4), mask(a=0.8, v=0.2)
    np.testing.assert_allclose(noisy(rule()(p, y, m, LEVEL, KEY)), noisy(p), atol=2e-6)
    kept = rule(noise="keep")(p, y, m, LEVEL, KEY)
    np.testing.assert_array_equal(kept.noise, p.noise)
    np.testing.assert_array_equal(kept.clean, rule()(p, y, m, LEVEL, KEY).clean)
    assert jnp.abs(noisy(kept) - noisy(p)).max() > 0.1


def test_unit_gaussian_variance_at_both_ends():
    assert unit_gaussian(jnp.float32(1.0)) == 1 and unit_gaussian(jnp.float32(0.0)) == 0
    assert unit_gaussian(jnp.float32(0.5)) == 0.5


# The loop, on a Gaussian --------------------------------------------------------------
#
# clean ~ N(MEAN, SPREAD²), measured as y = clean + error, error ~ N(0, V). Every position of
# the latent is one independent sample.

MEAN, SPREAD, V, Y = 0.5, 0.8, 0.2, 1.5
MANY = (1, 64, 64, 4)


def prior_variance(sigma):
    """Var(clean | x)."""
    return (SPREAD * sigma) ** 2 / ((SPREAD * (1 - sigma)) ** 2 + sigma**2)


def exact(x, level):
    """E(clean | x) and the noise that goes with it."""
    signal = 1 - level.sigma
    gain = signal * SPREAD**2 / ((signal * SPREAD) ** 2 + level.sigma**2)
    clean = MEAN + gain * (x - signal * MEAN)
    return Prediction(clean, (x - signal * clean) / level.sigma)


@partial(jax.jit, static_argnames=("rule", "renoise", "steps", "shape"))
def ends(rule, key=0, a=1.0, v=V, renoise=0.0, steps=400, shape=MANY):
    solver, key = euler(renoise), jax.random.key(key)
    step = split_correct_recombine(rule)(exact, solver, jnp.full(shape, Y), mask(a, v, shape))
    return advance(step, start(key, shape, solver), flow_schedule(steps, 1.0)).x


RECOMPUTE = bayes_dds(prior_variance)
KEEP = bayes_dds(prior_variance, noise="keep")


def test_plain_euler_ends_at_the_prior():
    x = ends(none)
    np.testing.assert_allclose([x.mean(), x.var()], [MEAN, SPREAD**2], atol=0.02)


def test_recompute_ends_at_the_exact_posterior():
    x = ends(RECOMPUTE)
    variance = 1 / (1 / SPREAD**2 + 1 / V)
    mean = variance * (MEAN / SPREAD**2 + Y / V)
    np.testing.assert_allclose([x.mean(), x.var()], [mean, variance], rtol=0.03)


def test_keep_collapses():
    assert ends(KEEP).var() < 0.01


def test_renoising_keeps_the_variance_of_the_prior_and_needs_no_luck():
    x = ends(none, renoise=0.2)
    np.testing.assert_allclose([x.mean(), x.var()], [MEAN, SPREAD**2], atol=0.03)
    assert jnp.abs(x - ends(none)).max() > 0.5


def test_a_full_exact_measurement_is_returned():
    np.testing.assert_allclose(ends(RECOMPUTE, v=0.0, steps=8, shape=SHAPE), Y, atol=1e-6)


def test_an_empty_mask_is_the_plain_sampler_bit_for_bit():
    """As written, that is: two compiled programs may be fused, and so rounded, in two ways."""
    run = partial(ends, a=0.0, steps=8, shape=SHAPE)
    with jax.disable_jit():
        np.testing.assert_array_equal(run(RECOMPUTE), run(none))
    np.testing.assert_allclose(run(RECOMPUTE), run(none), atol=1e-6)


@pytest.mark.parametrize("renoise", [0.0, 0.3])
def test_halves_of_a_schedule_make_the_whole_bit_for_bit(renoise):
    solver = euler(renoise)
    step = split_correct_recombine(RECOMPUTE)(exact, solver, normal(4), mask(a=0.7, v=V))
    go = jax.jit(partial(advance, step))
    first, levels = start(jax.random.key(0), SHAPE, solver), flow_schedule(6, 3.0)
    part = lambda a, b: jax.tree.map(lambda leaf: leaf[a:b], levels)
    whole, halves = go(first, levels), go(go(first, part(0, 3)), part(3, 6))
    np.testing.assert_array_equal(whole.x, halves.x)
    assert (jax.random.key_data(whole.key) == jax.random.key_data(halves.key)).all()


def test_vmap_is_a_loop_over_keys():
    run = lambda key: ends(RECOMPUTE, key, renoise=0.3, steps=8, shape=SHAPE)
    together = jax.vmap(run)(jnp.arange(3))
    np.testing.assert_allclose(together, jnp.stack([run(key) for key in range(3)]), atol=1e-6)
    assert jnp.abs(together[0] - together[1]).max() > 0.1
