"""Other papers' rules against their formulas in numpy, their limits, and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.latent_mask import LatentMask
from ic_jax.sampling.consistency import bayes_dds, dds, weighted
from ic_jax.sampling.denoiser import Prediction, denoiser, split
from ic_jax.sampling.methods import METHODS, method
from ic_jax.sampling.projections import (
    ddnm,
    dds_attenuated,
    flowchef,
    smallest,
    trimmed,
)
from ic_jax.sampling.renewals import (
    bayes_draw,
    diffpir,
    flowdps,
    flower,
    flower_cov,
    mixed,
    pnp_flow,
    replacement,
)
from ic_jax.sampling.sampler import advance, split_correct_recombine, start
from ic_jax.sampling.schedule import Level, flow_schedule
from ic_jax.sampling.solvers import euler

SHAPE = (2, 3, 4, 5)
KEY = jax.random.key(9)
RULES = {
    "replacement": replacement,
    "ddnm": ddnm(),
    "dds_attenuated": dds_attenuated(),
    "diffpir": diffpir(),
    "flowdps": flowdps(),
    "flowchef": flowchef(),
    "pnp_flow": pnp_flow(),
    "flower": flower(),
    "flower_cov": flower_cov(),
    "trimmed": trimmed(),
}


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def level(sigma=0.4, after=0.3):
    return Level(jnp.float32(sigma), jnp.float32(after), jnp.float32(1000 * sigma))


def prediction(sigma=0.4):
    return split(normal(0), normal(1), jnp.float32(sigma))


def mask(a=1.0, v=0.0, channels=1):
    shape = (*SHAPE[:3], channels)
    return LatentMask(jnp.full(shape, a), jnp.full(shape, v))


def soft_mask():
    """A share and a variance of its own in every latent, holes and exact ones among them."""
    a, v = jax.random.uniform(jax.random.key(2), SHAPE), normal(3) ** 2
    return LatentMask(jnp.where(a < 0.3, 0.0, a), jnp.where(v < 0.1, 0.0, v))


def arrays(soft, p, y):
    """The same in numpy and float64, and the static weight h."""
    a, v, clean, noise, y = (np.asarray(part, np.float64) for part in (*soft, *p, y))
    return a, v, clean, noise, y, a / (1 + v)


def corrected(rule, soft=None, y=None, at=None, p=None):
    soft, y = soft_mask() if soft is None else soft, normal(4) if y is None else y
    return rule(p or prediction(), y, soft, at or level(), KEY)


def noisy(p, sigma=0.4):
    return (1 - sigma) * p.clean + sigma * p.noise


# The clean estimate -------------------------------------------------------------------


def expected_clean(name, a, v, clean, y, h, sigma=0.4, after=0.3):
    """The papers' own expressions, as sums and quotients rather than weights."""
    spread = sigma**2 / (sigma**2 + (1 - sigma) ** 2)
    rho = v * ((1 - sigma) / sigma) ** 2
    proximal = (clean + 5 * h**2 * y) / (1 + 5 * h**2)
    descended = clean
    for _ in range(10):
        descended = descended - 0.9 * h * (h * descended - h * y)
    return {
        "replacement": (1 - h) * clean + h * y,
        "ddnm": clean - h * (clean - y),
        "dds_attenuated": (clean + 5 * h * y) / (1 + 5 * h**2),
        "diffpir": clean + a * ((y + rho * clean) / (1 + rho) - clean),
        "flowdps": (1 - sigma) * clean + sigma * proximal,
        "flowchef": descended,
        "pnp_flow": clean - np.sqrt(after) * h * (h * clean - h * y),
        "flower": clean + a * ((spread * y + v * clean) / (spread + v) - clean),
    }[name]


@pytest.mark.parametrize("name", [n for n in RULES if n not in ("flower_cov", "trimmed")])
def test_clean_estimate_moves_as_the_paper_says(name):
    soft, y, p = soft_mask(), normal(4), prediction()
    a, v, clean, _, y_, h = arrays(soft, p, y)
    expected = expected_clean(name, a, v, clean, y_, h)
    out = corrected(RULES[name], soft, y).clean
    np.testing.assert_allclose(out, expected, atol=3e-6)
    assert np.abs(expected - clean).max() > 0.3


# Noise --------------------------------------------------------------------------------


def test_projections_treat_the_noise_as_they_say():
    p = prediction()
    np.testing.assert_array_equal(corrected(ddnm()).noise, p.noise)
    np.testing.assert_allclose(noisy(corrected(dds_attenuated())), noisy(p), atol=3e-6)
    np.testing.assert_allclose(noisy(corrected(trimmed())), noisy(p), atol=3e-6)


def test_flowchef_keeps_the_velocity():
    p, out = prediction(), corrected(flowchef())
    np.testing.assert_allclose(out.noise - out.clean, p.noise - p.clean, atol=2e-6)
    assert jnp.abs(noisy(out) - noisy(p)).max() > 0.3


def test_flowchef_is_gradient_descent_on_x_with_a_fixed_velocity():
    sigma, velocity, y, h = 0.4, normal(1), normal(4), soft_mask().weight(1.0)
    loss = lambda x: 0.5 * jnp.sum((h * (x - sigma * velocity - y)) ** 2)
    x = normal(0)
    for _ in range(3):
        x = x - 0.5 * jax.grad(loss)(x)
    expected = split(x, velocity, jnp.float32(sigma))
    for one, other in zip(corrected(flowchef(0.5, 3)), expected):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_replacement_with_euler_blends_the_next_x():
    p, y, h, at = prediction(), normal(4), soft_mask().weight(1.0), level()
    out, _ = euler().update((), replacement(p, y, soft_mask(), at, KEY), at, KEY)
    plain, _ = euler().update((), p, at, KEY)
    fresh = jax.random.normal(KEY, SHAPE)
    np.testing.assert_allclose(out, (1 - h) * plain + h * (0.7 * y + 0.3 * fresh), atol=2e-6)


def test_mixed_noise_is_fresh_by_its_share_of_the_variance():
    old, fresh = normal(5), jax.random.normal(KEY, SHAPE)
    np.testing.assert_array_equal(mixed(old, 0.0, KEY), old)
    np.testing.assert_array_equal(mixed(old, 1.0, KEY), fresh)
    np.testing.assert_allclose(
        mixed(old, 0.3, KEY), np.sqrt(0.7) * old + np.sqrt(0.3) * fresh, atol=1e-6
    )


def test_diffpir_recomputes_what_it_does_not_renew():
    out, p = corrected(diffpir(renewed=0.0)), prediction()
    np.testing.assert_allclose(noisy(out), noisy(p), atol=3e-6)
    half = corrected(diffpir(renewed=0.3)).noise
    np.testing.assert_allclose(half, mixed(out.noise, 0.3, KEY), atol=1e-6)


def test_flowdps_renews_more_noise_the_less_there_is():
    p = prediction()
    for after in (0.9, 0.1):
        noise = corrected(flowdps(), at=level(after=after)).noise
        np.testing.assert_allclose(noise, mixed(p.noise, 1 - after, KEY), atol=1e-6)


@pytest.mark.parametrize("rule", [pnp_flow(), flower(), flower(1.0), diffpir()])
def test_all_noise_is_fresh(rule):
    one, other = corrected(rule), corrected(rule, p=Prediction(prediction().clean, normal(8)))
    np.testing.assert_array_equal(one.noise, other.noise)
    assert abs(np.std(one.noise) - 1) < 0.2


# One rule is another's limit ----------------------------------------------------------


def test_dds_of_infinite_strength_is_ddnm_under_a_hard_mask():
    hard = LatentMask((soft_mask().coverage > 0).astype(jnp.float32), jnp.zeros(SHAPE))
    for one, other in zip(corrected(dds(1e8), hard), corrected(ddnm("recompute"), hard)):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_dds_attenuated_of_an_attenuated_measurement_is_dds():
    soft, y = soft_mask(), normal(4)
    out = corrected(dds_attenuated(3.0), soft, soft.weight(1.0) * y)
    for one, other in zip(out, corrected(dds(3.0), soft, y)):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_dds_attenuated_of_infinite_strength_pulls_beyond_the_measurement():
    y, half = normal(4), mask(a=0.5)
    np.testing.assert_allclose(corrected(dds_attenuated(1e8), half, y).clean, 2 * y, atol=1e-4)
    np.testing.assert_allclose(corrected(dds(1e8), half, y).clean, y, atol=1e-4)


def test_diffpir_is_bayes_dds_with_the_noise_as_the_models_own_error():
    soft, expected = soft_mask(), bayes_dds(lambda sigma: (sigma / (1 - sigma)) ** 2 / 3.0)
    for one, other in zip(corrected(diffpir(3.0, 0.0), soft), corrected(expected, soft)):
        np.testing.assert_allclose(one, other, atol=3e-6)


def test_flower_moves_the_clean_estimate_as_bayes_dds_does():
    np.testing.assert_array_equal(corrected(flower()).clean, corrected(bayes_dds()).clean)


def test_flowdps_at_pure_noise_is_dds_and_at_none_is_no_correction():
    p = prediction()
    np.testing.assert_allclose(
        corrected(flowdps(), at=level(1.0, 0.9)).clean, corrected(dds()).clean, atol=2e-6
    )
    np.testing.assert_allclose(corrected(flowdps(), at=level(1e-6, 0.0)).clean, p.clean, atol=1e-5)


def test_pnp_flow_ends_with_the_denoised_estimate():
    out = corrected(pnp_flow(), at=level(0.1, 0.0)).clean
    np.testing.assert_array_equal(out, prediction().clean)


def test_pnp_flow_is_its_papers_loop():
    """Gradient, noise, denoiser, from any image at all; here with a model that is not linear."""
    levels, soft, y = flow_schedule(4, 1.0), soft_mask(), normal(4)
    h2 = soft.weight(1.0) ** 2
    velocity = lambda x, t: jnp.tanh(x) + (t / 1000)[:, None, None, None, None]
    denoise = denoiser(velocity)

    state = start(KEY, SHAPE, euler())
    step = split_correct_recombine(pnp_flow())(denoise, euler(), y, soft)
    ours = advance(step, state, levels).x

    # The loop draws what our step draws: the state's key gives the rule its own.
    image, key, noise = 100 * jnp.ones(SHAPE), state.key, state.x
    for row in zip(*levels):
        at = Level(*(jnp.float32(number) for number in row))
        z = image - jnp.sqrt(at.sigma) * h2 * (image - y)
        image = denoise((1 - at.sigma) * z + at.sigma * noise, at).clean
        key, rule_key, _ = jax.random.split(key, 3)
        noise = jax.random.normal(rule_key, SHAPE)
    np.testing.assert_allclose(ours, image, atol=1e-5)


# Flower's draws -----------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 5])
def test_flower_with_draws_is_exact_for_a_unit_gaussian_at_few_steps(steps):
    shape, v, y = (1, 1, 1, 40_000), 0.5, 1.2
    sigma_of = lambda t: (t / 1000)[:, None, None, None, None]
    # E[clean | x] = (1-σ) x / ((1-σ)² + σ²), and the velocity that says so.
    gain = lambda s: (2 * s - 1) / ((1 - s) ** 2 + s**2)
    denoise = denoiser(lambda x, t: gain(sigma_of(t)) * x)
    run = lambda rule: (
        advance(
            split_correct_recombine(rule)(
                denoise,
                euler(),
                jnp.full(shape, y),
                LatentMask(jnp.ones(shape), jnp.full(shape, v)),
            ),
            start(KEY, shape, euler()),
            flow_schedule(steps, 1.0),
        ).x
    )
    drawn, mean = run(flower(1.0)), run(flower())
    np.testing.assert_allclose(drawn.mean(), y / (1 + v), atol=0.02)
    np.testing.assert_allclose(drawn.var(), v / (1 + v), atol=0.02)
    assert mean.var() < 0.8 * drawn.var()


# Trimmed ------------------------------------------------------------------------------


def test_trimmed_acts_on_the_nearest_share_of_each_frames_observed_elements():
    hard = LatentMask((soft_mask().coverage > 0).astype(jnp.float32), jnp.zeros(SHAPE))
    y, p = normal(4), prediction()
    out = corrected(trimmed(share=0.25), hard, y).clean
    for frame in range(SHAPE[0]):
        seen = np.asarray(hard.coverage[frame]) > 0
        error = np.abs(np.asarray(p.clean - y)[frame])
        cutoff = np.sort(error[seen])[int(np.ceil(0.25 * seen.sum())) - 1]
        chosen = seen & (error <= cutoff)
        np.testing.assert_allclose(out[frame][chosen], y[frame][chosen], atol=1e-6)
        np.testing.assert_array_equal(out[frame][~chosen], p.clean[frame][~chosen])
        assert chosen.sum() == np.ceil(0.25 * seen.sum())


def test_trimmed_by_nothing_is_the_rule_itself():
    for one, other in zip(corrected(trimmed(bayes_dds(), 1.0)), corrected(bayes_dds())):
        np.testing.assert_array_equal(one, other)


def test_trimmed_by_all_but_the_nearest_leaves_nearly_everything():
    moved = corrected(trimmed(bayes_dds(), 1e-6), mask()).clean != prediction().clean
    np.testing.assert_array_equal(moved.sum((1, 2, 3)), 1)


def test_smallest_counts_by_weight():
    values = jnp.array([3.0, 1.0, 2.0, 4.0]).reshape(1, 1, 1, 4)
    weights = jnp.array([0.1, 0.1, 0.7, 0.1]).reshape(1, 1, 1, 4)
    for share, count in [(0.05, 1), (0.5, 2), (0.85, 3), (1.0, 4)]:
        np.testing.assert_array_equal(smallest(values, weights, share), values <= count)


# All rules ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_first_and_last_level_are_finite(name):
    for at in (level(1.0, 0.9), level(0.02, 0.0)):
        p = prediction(float(at.sigma))
        for soft in (soft_mask(), mask(0.0), mask(1.0, 0.0, 5)):
            assert jnp.isfinite(jnp.stack(corrected(RULES[name], soft, at=at, p=p))).all()


@pytest.mark.parametrize("name", RULES)
def test_registry_has_the_rule(name):
    assert METHODS[name].source.startswith("arXiv")
    assert callable(method(name))


def test_weighted_says_what_it_does():
    half = weighted(lambda mask, level: level.sigma * mask.coverage, "keep")
    p, y = prediction(), normal(4)
    np.testing.assert_allclose(
        corrected(half, mask(0.5), y).clean, 0.8 * p.clean + 0.2 * y, atol=1e-6
    )


def test_a_draw_has_the_variance_of_the_models_own_error():
    """Where nothing is observed, clean is spread by r², channel by channel."""
    shape = 2, 32, 32, 2
    variance = jnp.array([0.09, 1.0])
    clean = jnp.zeros(shape)
    mask = LatentMask(jnp.zeros(shape), jnp.zeros(shape))
    level = Level(jnp.float32(0.5), jnp.float32(0.4), jnp.float32(500.0))
    rule = bayes_draw(lambda sigma: variance)
    drawn = rule(Prediction(clean, clean), clean + 5, mask, level, jax.random.key(3)).clean
    np.testing.assert_allclose(drawn.var((0, 1, 2)), variance, rtol=0.1)
    exact = LatentMask(jnp.ones(shape), jnp.zeros(shape))
    held = rule(Prediction(clean, clean), clean + 5, exact, level, jax.random.key(3)).clean
    np.testing.assert_allclose(held, 5, atol=1e-5)
