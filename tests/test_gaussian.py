"""The linear-Gaussian problem: its posterior, its denoiser, and who reaches them."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gaussian import (
    MEASUREMENTS,
    PROBLEMS,
    SHAPE,
    Distance,
    Gaussian,
    Problem,
    Run,
    as_case,
    calls_per_step,
    clean_variance,
    decode,
    distance,
    distances,
    encode,
    exact_denoiser,
    floor,
    measure,
    moments,
    posterior,
    principal,
)
from experiments.gaussian_report import Facts, Record, page
from ic_jax.sampling.methods import METHODS, Entry
from ic_jax.sampling.sampler import State
from ic_jax.sampling.schedule import Level

SAMPLES = 1024
STEPS = 200


# The problem ----------------------------------------------------------------------------


@pytest.mark.parametrize("observed", [(1, 1), (1, 0), (0, 0)])
def test_posterior_is_prior_times_likelihood_on_a_grid(observed):
    prior = Gaussian(np.array([0.3, -0.2]), np.array([[1.0, 0.6], [0.6, 0.5]]))
    observed, error, y = np.array(observed, float), np.array([0.2, 0.4]), np.array([1.0, -1.0])
    axis = np.linspace(-6, 6, 601)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    off = points - prior.mean
    log = -0.5 * np.einsum("ni,ij,nj->n", off, np.linalg.inv(prior.covariance), off)
    log -= 0.5 * np.sum(observed * (y - points) ** 2 / error, -1)
    weight = np.exp(log) / np.exp(log).sum()
    mean = weight @ points
    found = posterior(Problem(prior, observed, error), y)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    spread = (weight[:, None] * (points - mean)).T @ (points - mean)
    np.testing.assert_allclose(found.covariance, spread, atol=1e-5)


def test_problems_are_as_named():
    for name, problem in PROBLEMS.items():
        deviation = np.sqrt(np.diag(problem.prior.covariance))
        correlation = problem.prior.covariance / np.outer(deviation, deviation)
        neighbours = correlation[0, 1], correlation[0, SHAPE[2]]
        np.testing.assert_allclose(neighbours, 0.9 if "correlated" in name else 0, atol=1e-12)
        assert problem.observed.mean() == (0.5 if "partial" in name else 1)


def test_measurements_have_the_moments_of_clean_and_error():
    problem, rng = PROBLEMS["correlated, partial"], np.random.default_rng(0)
    found = moments(np.stack([measure(problem, rng) for _ in range(4000)]))
    seen = problem.observed > 0
    assert (found.mean[~seen] == 0).all()
    np.testing.assert_allclose(found.mean[seen], problem.prior.mean[seen], atol=0.1)
    expected = (problem.prior.covariance + np.diag(problem.error))[seen][:, seen]
    np.testing.assert_allclose(found.covariance[seen][:, seen], expected, atol=0.2)


# The denoiser ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["diagonal, full", "correlated, full"])
@pytest.mark.parametrize("sigma", [0.02, 0.3, 0.7, 0.99])
def test_denoiser_is_the_mean_of_clean_given_x(name, sigma):
    """x over 1-σ is a measurement of clean, with the error variance σ² / (1-σ)²."""
    prior, signal = PROBLEMS[name].prior, 1 - sigma
    x = np.random.default_rng(0).normal(size=len(prior.mean))
    noisy = Problem(prior, np.ones_like(x), np.full_like(x, (sigma / signal) ** 2))
    true = posterior(noisy, x / signal)

    axes, given = principal(prior), jnp.asarray(x, jnp.float32).reshape(SHAPE)
    level = Level(*jnp.float32([sigma, 0.0, 1000 * sigma]))
    clean, noise = exact_denoiser(axes)(given, level)
    np.testing.assert_allclose(clean.reshape(-1), true.mean, atol=2e-4)
    np.testing.assert_allclose(signal * clean + sigma * noise, given, atol=1e-5)
    r2 = clean_variance(axes)(jnp.float32(sigma)).reshape(-1)
    np.testing.assert_allclose(r2, np.diag(true.covariance), rtol=1e-3)


def test_pixels_are_an_isometry_of_latents():
    latent = jax.random.normal(jax.random.key(0), SHAPE)
    np.testing.assert_allclose(encode(decode(latent)), latent, atol=1e-6)
    np.testing.assert_allclose(jnp.sum(decode(latent) ** 2), jnp.sum(latent**2), rtol=1e-6)


def test_calls_inside_loops_are_counted_as_often_as_they_run(monkeypatch):
    def thrice(denoise, solver, y, mask):
        def step(state: State, level: Level) -> State:
            again = lambda x, _: (denoise(x, level).clean, None)
            return state._replace(x=jax.lax.scan(again, state.x, None, 3)[0])

        return step

    monkeypatch.setitem(METHODS, "thrice", Entry(lambda: thrice, "here", False, False))
    assert calls_per_step(Run("thrice", {}, 9, "thrice")) == 3
    assert calls_per_step(Run("bayes_dds", {}, 9, "bayes_dds")) == 1


# Distances ------------------------------------------------------------------------------


def test_distance_of_diagonal_gaussians_is_that_of_their_axes():
    one, other = np.array([1.0, 4.0]), np.array([2.25, 1.0])
    shift = np.array([0.5, -1.0])
    found = distance(Gaussian(shift, np.diag(one)), Gaussian(np.zeros(2), np.diag(other)))
    w2 = np.sum(shift**2 + (np.sqrt(one) - np.sqrt(other)) ** 2) / other.sum()
    mean = np.sqrt(np.mean(shift**2 / other))
    np.testing.assert_allclose(found[::2], [mean, w2])
    np.testing.assert_allclose(found.covariance, np.hypot(*(one - other)) / np.hypot(*other))


def test_distance_is_nothing_from_itself_and_one_from_its_mean():
    true = PROBLEMS["correlated, full"].prior
    np.testing.assert_allclose(distance(true, true), 0, atol=1e-9)
    point = true._replace(covariance=np.zeros_like(true.covariance))
    np.testing.assert_allclose(distance(point, true), [0, 1, 1])


# Who reaches the posterior --------------------------------------------------------------


@pytest.fixture(scope="module")
def ours():
    return distances(Run("bayes_dds", {}, STEPS, "bayes_dds"), SAMPLES)


@pytest.fixture(scope="module")
def chance():
    return {name: floor(name, SAMPLES) for name in PROBLEMS}


@pytest.mark.parametrize("name", ["diagonal, full", "diagonal, partial"])
def test_bayes_dds_is_exact_to_chance_for_a_diagonal_prior(ours, chance, name):
    for found, by_chance in zip(ours[name], chance[name]):
        assert found < 1.6 * by_chance


@pytest.mark.parametrize("name", ["correlated, full", "correlated, partial"])
def test_bayes_dds_is_not_exact_for_a_correlated_prior(ours, chance, name):
    for found, by_chance in zip(ours[name], chance[name]):
        assert found > 5 * by_chance


def test_kept_noise_ends_at_a_point():
    kept = distances(Run("bayes_dds", {"noise": "keep"}, STEPS, "keep"), 64)["diagonal, full"]
    assert kept.covariance > 0.95 and kept.w2 > 0.9


# The page -------------------------------------------------------------------------------


def test_page_tells_every_method_on_every_problem(ours, chance):
    tell = lambda by_problem: {name: d._asdict() for name, d in by_problem.items()}
    row = partial(Record, distances=tell(ours), calls_per_step=1.0, inner=None)
    worse = tell({name: Distance(1.0, 2.0, 345.0) for name in ours})
    table = [row("bayes_dds", n) for n in (400, 24)]
    table += [row("other", n, distances=worse) for n in (400, 24)]
    curve = [row("bayes_dds", 24), row("other", 24, inner=8, calls_per_step=9.0)]
    text = page(Facts(SAMPLES, MEASUREMENTS, 16, 0.9, 1.0), tell(chance), table, curve)
    assert text.count("| other | 1 |") == len(PROBLEMS) and "345" in text
    assert "| other | 24 | 8 | 216 |" in text
    tables = [line for line in text.splitlines() if line.startswith("| bayes_dds | 1 |")]
    assert len(tables) == len(PROBLEMS) and {line.count("|") for line in tables} == {9}


def test_cases_carry_the_problem():
    case = as_case(PROBLEMS["diagonal, partial"])
    assert case.mask.coverage.shape == case.mask.variance.shape == SHAPE
    problem = PROBLEMS["diagonal, partial"]
    np.testing.assert_allclose(case.mask.variance.reshape(-1), problem.error, rtol=1e-6)
    np.testing.assert_array_equal(case.mask.coverage.reshape(-1), problem.observed)
