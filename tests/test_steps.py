"""Steps of their own against closed forms: a Gaussian, whose posterior is known at every level."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.latent_mask import LatentMask
from ic_jax.sampling.consistency import bayes_dds
from ic_jax.sampling.denoiser import Prediction
from ic_jax.sampling.gibbs import gibbs, patch_mean, patch_sum, spread
from ic_jax.sampling.sampler import State, advance, split_correct_recombine, start
from ic_jax.sampling.schedule import Level, flow_schedule
from ic_jax.sampling.solvers import SOLVERS, dpmpp_2m, euler
from ic_jax.sampling.steps import ding, gain, gaussian_posterior, jumped_back, langevin, repaint
from ic_jax.sampling.variational import BEGINS, flair, red_diff

SHAPE = (2, 3, 4, 5)
MANY = (1, 64, 64, 4)
KEY = jax.random.key(9)

# clean ~ N(MEAN, SPREAD²), measured as y = clean + error, error ~ N(0, V); one independent
# sample per latent.
MEAN, SPREAD, V, Y = 0.5, 0.8, 0.2, 1.5
POSTERIOR_VARIANCE = 1 / (1 / SPREAD**2 + 1 / V)
POSTERIOR_MEAN = POSTERIOR_VARIANCE * (MEAN / SPREAD**2 + Y / V)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def mask(a=1.0, v=0.0, shape=SHAPE):
    return LatentMask(jnp.full(shape, a), jnp.full(shape, v))


def uneven():
    """Coverage of 0, of 1 and between, with channels that differ, and some exact."""
    a = jnp.clip(1.4 * jax.random.uniform(KEY, SHAPE[:3] + (1,)) - 0.2, 0, 1)
    return LatentMask(a, jnp.maximum(normal(1), 0))


def level(sigma, next_sigma):
    return Level(jnp.float32(sigma), jnp.float32(next_sigma), jnp.float32(1000 * sigma))


def prior_variance(sigma):
    """Var(clean | x)."""
    return (SPREAD * sigma) ** 2 / ((SPREAD * (1 - sigma)) ** 2 + sigma**2)


def exact(x, level):
    """E(clean | x) and the noise that goes with it, at σ = 0 too."""
    signal = 1 - level.sigma
    gain = signal * SPREAD**2 / ((signal * SPREAD) ** 2 + level.sigma**2)
    clean = MEAN + gain * (x - signal * MEAN)
    noise = (x - signal * clean) / jnp.where(level.sigma > 0, level.sigma, 1)
    return Prediction(clean, noise)


def stepping(method, y, mask, level, solver=euler(), denoise=exact, memory=()):
    """One step, compiled: from x to the state after it."""
    step = jax.jit(method(denoise, solver, y, mask))
    return lambda x: jax.block_until_ready(step(State(x, memory, KEY), level))


def stepped(method, x, *args, **options):
    return stepping(method, *args, **options)(x)


def calls_of(method, y, mask, x):
    """How often a step from x called the model."""
    calls = []

    def counted(x, level):
        jax.debug.callback(lambda: calls.append(1))
        return exact(x, level)

    stepped(method, x, y, mask, level(0.4, 0.3), denoise=counted)
    jax.effects_barrier()
    return len(calls)


def run(method, y, mask, levels):
    """The end of a run from noise."""
    step = method(exact, euler(), y, mask)
    return jax.jit(partial(advance, step))(start(KEY, y.shape, euler()), levels).x


# What they cost -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, calls",
    [
        (repaint(3), 4),
        (langevin(3), 4),
        (gibbs(3, mixed=jnp.inf), 4),
        (ding(), 2),
        (ding(delayed=True), 1),
        (red_diff(), 1),
        (flair(), 2),
    ],
)
def test_calls_of_the_model_in_a_step(method, calls):
    assert calls_of(method, normal(4), uneven(), normal(0)) == calls


# RePaint --------------------------------------------------------------------------------


def test_repaint_without_jumps_puts_the_noisy_measurement_where_it_is_known():
    x, y, levels = normal(0, MANY), normal(4, MANY), level(0.5, 0.4)
    seen = normal(2, MANY) > 0
    after = stepped(repaint(0), x, y, LatentMask(1.0 * seen, jnp.zeros(MANY)), levels).x
    clean, noise = exact(x, levels)
    np.testing.assert_allclose(after[~seen], (0.6 * clean + 0.4 * noise)[~seen], atol=1e-6)
    added = (after - 0.6 * y)[seen] / 0.4
    np.testing.assert_allclose([added.mean(), added.std()], [0, 1], atol=0.03)


@pytest.mark.parametrize("sigma, before", [(1.0, 0.9), (0.5, 0.2), (0.3, 0.0), (1e-3, 0.0)])
def test_a_jump_back_follows_the_forward_process(sigma, before):
    clean = MEAN + SPREAD * normal(0, MANY)
    x = (1 - before) * clean + before * normal(1, MANY)
    back = jumped_back(x, level(sigma, before), KEY)
    np.testing.assert_allclose(back.mean(), (1 - sigma) * MEAN, atol=0.03)
    np.testing.assert_allclose(back.var(), ((1 - sigma) * SPREAD) ** 2 + sigma**2, rtol=0.04)
    noise = back - (1 - sigma) * clean
    np.testing.assert_allclose(noise.var(), sigma**2, rtol=0.04)
    assert abs(jnp.corrcoef(noise.ravel(), clean.ravel())[0, 1]) < 0.03


def test_a_jump_back_restarts_a_multistep_solver():
    """At first order the next x is clean + σ'/σ (x - clean): x can be told from it."""
    solver, levels = dpmpp_2m(), level(0.5, 0.4)
    old = solver.init(normal(0))._replace(sigma=jnp.float32(0.7), clean=5 + normal(5))
    ends = lambda inner: stepped(
        repaint(inner), normal(0), normal(4), mask(0.0), levels, solver, memory=old
    )

    def second_order(state):
        clean = state.memory.clean
        x = clean + 0.5 / 0.4 * (state.x - clean)
        return jnp.abs(exact(x, levels).clean - clean).max()

    assert second_order(ends(0)) > 0.1
    assert second_order(ends(1)) < 1e-5


# Langevin -------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [0.8, 0.25])
def test_langevin_reaches_the_posterior_of_the_level_from_anywhere(sigma):
    tau, far, y, known = 0.05, jnp.full(MANY, 3.0), jnp.full(MANY, Y), mask(v=V, shape=MANY)
    # A step of no length leaves the walk's x to be seen.
    x = stepped(langevin(400, tau, prior_variance), far, y, known, level(sigma, sigma)).x
    signal = 1 - sigma
    variance = signal**2 * POSTERIOR_VARIANCE + sigma**2
    bias = 1 / (1 - tau * sigma**2 / variance / 2)
    np.testing.assert_allclose(x.mean(), signal * POSTERIOR_MEAN, atol=0.02)
    np.testing.assert_allclose(x.var(), bias * variance, rtol=0.03)


def test_langevin_mends_some_of_what_few_steps_spoil():
    y, known, levels = jnp.full(MANY, Y), mask(v=V, shape=MANY), flow_schedule(4, 1.0)
    alone = run(split_correct_recombine(bayes_dds(prior_variance)), y, known, levels)
    walked = run(langevin(50, 0.1, prior_variance), y, known, levels)
    assert alone.var() + 0.1 * POSTERIOR_VARIANCE < walked.var() < POSTERIOR_VARIANCE


def test_langevin_without_walking_is_bayes_dds():
    y, levels = normal(4), flow_schedule(4, 3.0)
    alone = run(split_correct_recombine(bayes_dds()), y, uneven(), levels)
    np.testing.assert_allclose(run(langevin(0), y, uneven(), levels), alone, atol=1e-5)


# Gibbs ----------------------------------------------------------------------------------


def test_gibbs_holds_what_is_observed_while_it_sweeps():
    seen = (normal(2) > 0) * 1.0
    held = []

    def watching(x, level):
        jax.debug.callback(lambda x: held.append(np.asarray(x)), x, ordered=True)
        return exact(x, level)

    forever, known = gibbs(3, mixed=jnp.inf), LatentMask(seen, 0 * seen)
    stepped(forever, normal(0), normal(4), known, level(0.5, 0.4), denoise=watching)
    jax.effects_barrier()
    assert len(held) == 4
    for x in held[1:]:
        np.testing.assert_allclose(x[seen > 0], held[0][seen > 0], atol=1e-5)
        assert np.abs(x - held[0])[seen == 0].min() > 0


def test_gibbs_sweeps_keep_the_noises_variance_under_a_soft_mask():
    """σ (h noise + √(1-h²) fresh) around a clean estimate of 0 has variance σ²."""
    seen, zero = [], jnp.zeros(MANY)

    def watching(x, level):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return Prediction(zero, normal(6, MANY))

    half = mask(0.5, shape=MANY)
    stepped(gibbs(1), normal(0, MANY), zero, half, level(0.5, 0.4), denoise=watching)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[1].var(), 0.5**2, rtol=0.03)


def test_gibbs_freezes_patch_by_patch():
    """A patch that begins in equilibrium is left alone while another goes on."""
    x = normal(0, (1, 32, 64, 4)).at[:, :, 32:].add(30.0)
    known, y = mask(0.0, shape=x.shape), jnp.zeros(x.shape)
    method = gibbs(40, (1, 32, 32))
    seen = []

    def watching(x, level):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return exact(x, level)

    stepped(method, x, y, known, level(0.4, 0.3), denoise=watching)
    jax.effects_barrier()
    moves = np.array([np.abs(b - a).max((0, 1, 3)) > 0 for a, b in zip(seen, seen[1:])])
    near, far = moves[:, :32], moves[:, 32:]
    assert (near == near[:, :1]).all() and (far == far[:, :1]).all()
    assert 0 < near[:, 0].sum() < far[:, 0].sum()


def test_gibbs_sweeps_nothing_where_all_is_observed():
    assert calls_of(gibbs(5), normal(4), mask(), normal(0)) == 1


def test_gibbs_sweeps_forget_where_they_began():
    forever = gibbs(60, mixed=jnp.inf)
    ends = stepping(forever, normal(4), mask(0.0), level(0.5, 0.4))
    np.testing.assert_allclose(ends(normal(0)).x, ends(5 + normal(0)).x, atol=0.01)


def test_patches_that_do_not_divide_the_latent():
    values, weight, patch = normal(0, (3, 5, 4, 2)), jnp.abs(normal(1, (3, 5, 4, 2))), (2, 2, 3)
    assert patch_sum(values, patch).shape == (2, 3, 2)
    edge = (slice(2, 4), slice(4, 6), slice(3, 6))
    np.testing.assert_allclose(
        patch_mean(values, weight, patch)[1, 2, 1],
        np.average(values[edge], weights=weight[edge]),
        atol=1e-6,
    )
    assert (patch_mean(values, 0 * weight, patch) == 0).all()
    chosen = jnp.zeros((2, 3, 2), bool).at[1, 2, 1].set(True)
    where = jnp.zeros((3, 5, 4, 1), bool).at[edge].set(True)
    np.testing.assert_array_equal(spread(chosen, patch, (3, 5, 4, 2)), where)


# DING -----------------------------------------------------------------------------------


def test_ding_draws_from_the_product_of_its_two_gaussians():
    gamma, h, std, signal = 4.0, 0.5, jnp.float32(0.3), jnp.float32(0.7)
    mean, seen = 0.4, 1.1
    share = gain(gamma, mask(h, shape=MANY), std, signal)
    full = lambda value: jnp.full(MANY, value)
    x = np.asarray(gaussian_posterior(full(mean), std, full(seen), share, KEY))
    precision = 1 / 0.3**2 + gamma * h**2 / 0.7**2
    expected = (mean / 0.3**2 + gamma * h**2 / 0.7**2 * seen) / precision
    np.testing.assert_allclose(x.mean(), expected, atol=0.01)
    np.testing.assert_allclose(x.var(), 1 / precision, rtol=0.03)


def test_ding_where_nothing_is_seen_is_a_bridge_that_keeps_the_marginals():
    levels, nothing = flow_schedule(500, 1.0), mask(0.0, shape=MANY)
    x = run(ding(delayed=True), jnp.full(MANY, Y), nothing, levels)
    np.testing.assert_allclose([x.mean(), x.var()], [MEAN, SPREAD**2], atol=0.03)


@pytest.mark.parametrize("delayed", [True, False])
def test_ding_ends_near_an_exact_measurement(delayed):
    x = run(ding(delayed=delayed), normal(4), mask(), flow_schedule(50, 3.0))
    np.testing.assert_allclose(x, normal(4), atol=0.15)


def test_ding_asks_for_the_noise_at_the_level_it_goes_to():
    asked = []

    def watching(x, level):
        record = lambda sigma, timestep: asked.append([float(sigma), float(timestep)])
        jax.debug.callback(record, level.sigma, level.timestep, ordered=True)
        return exact(x, level)

    stepped(ding(), normal(0), normal(4), uneven(), level(0.5, 0.4), denoise=watching)
    jax.effects_barrier()
    np.testing.assert_allclose(asked, [[0.5, 500.0], [0.4, 400.0]], rtol=1e-6)


def test_ding_asks_at_a_draw_from_the_bridge():
    """Around (1-σ') clean + √(σ'² - s²) noise, here 0, with s = σ'²."""
    seen, zero = [], jnp.zeros(MANY)

    def watching(x, level):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x, ordered=True)
        return Prediction(zero, zero)

    stepped(ding(), zero, zero, mask(shape=MANY), level(0.5, 0.4), denoise=watching)
    jax.effects_barrier()
    np.testing.assert_allclose(seen[1].std(), 0.4**2, rtol=0.03)


# Variational ----------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", SOLVERS)
def test_a_descent_begins_at_y_once(recipe):
    for steps, shift in product([4, 20, 50], [1.0, 3.0, 8.0]):
        sigma = SOLVERS[recipe].schedule(steps, shift).sigma
        assert sigma[0] > BEGINS and (sigma[1:] <= BEGINS).all()


@pytest.mark.parametrize("method", [red_diff(), flair()])
def test_a_descent_forgets_the_noise_it_was_handed(method):
    ends = stepping(method, normal(4), uneven(), level(1.0, 0.9))
    np.testing.assert_array_equal(ends(normal(0)).x, ends(normal(1)).x)


@pytest.mark.parametrize("method, low, high", [(red_diff(), 0.0, 0.5), (flair(), 0.5, 1.0)])
def test_a_descent_draws_what_is_not_seen_to_the_prior(method, low, high):
    """To its mode for RED-diff; FLAIR follows the model's noise and keeps some of its spread."""
    x = run(method, jnp.full(MANY, Y), mask(0.0, shape=MANY), flow_schedule(100, 1.0))
    np.testing.assert_allclose(x.mean(), MEAN, atol=0.05)
    assert low * SPREAD < x.std() < high * SPREAD


def test_red_diff_rests_where_data_and_prior_balance():
    """At one level: γh² (y - μ) = λ (μ - E clean), with E clean from the same Gaussian."""
    sigma, gamma, trust, h = 0.5, 0.3, 0.2, 0.8
    step = red_diff(gamma, trust)(exact, euler(), jnp.full(MANY, Y), mask(h, shape=MANY))
    levels = Level(*(jnp.full(100, value) for value in (sigma, sigma, 500.0)))
    x = jax.jit(partial(advance, step))(State(normal(0, MANY), (), KEY), levels).x
    explained = (SPREAD * (1 - sigma)) ** 2 / ((SPREAD * (1 - sigma)) ** 2 + sigma**2)
    pull = trust * (1 - explained)
    expected = (gamma * h**2 * Y + pull * MEAN) / (gamma * h**2 + pull)
    np.testing.assert_allclose(x.mean(), expected, atol=0.02)


def one_descent(method):
    """From x to the mean after a step at σ = 0.4, and what that was made from, in numpy."""
    sigma, x, y, known = 0.4, normal(0), normal(4), uneven()
    after = stepping(method, y, known, level(sigma, 0.3))(x).x
    _, *keys = jax.random.split(KEY, 3)
    drawn = (jax.random.normal(key, SHAPE) for key in keys)
    arrays = x, y, known.weight(1.0), *drawn
    return after, sigma, *(np.asarray(array, np.float64) for array in arrays)


def said(mean, noise, sigma):
    """Of a mean with this noise in it, by the model."""
    return exact((1 - sigma) * mean + sigma * noise, level(sigma, 0.3))


def test_red_diff_descends_as_its_paper_says():
    """λ/SNR (noise predicted - noise put in), and the proximal map of ½ ‖h (μ - y)‖²."""
    after, sigma, x, y, h, noise, _ = one_descent(red_diff())
    mean = x - 0.25 * sigma / (1 - sigma) * (said(x, noise, sigma).noise - noise)
    np.testing.assert_allclose(after, (mean + h**2 * y) / (1 + h**2), atol=1e-5)


def test_flair_follows_the_models_noise_by_as_much_as_there_is_signal():
    after, sigma, x, y, h, first, fresh = one_descent(flair())
    alpha, explained = 1 - sigma, (1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2)
    noise = alpha * said(x, first, sigma).noise + np.sqrt(1 - alpha**2) * fresh
    mean = x + explained * (said(x, noise, sigma).clean - x)
    np.testing.assert_allclose(after, mean + h * (y - mean), atol=1e-5)


def test_flair_trusts_the_model_as_far_as_it_explains():
    """With a model that explains nothing, only the measurement moves the mean."""
    x, y = normal(0), normal(4)
    after = stepped(flair(jnp.ones_like), x, y, mask(0.4), level(0.5, 0.4)).x
    np.testing.assert_allclose(after, x + 0.4 * (y - x), atol=1e-6)
