"""Mask constructions, with an encoder so simple that the right answers are known."""

import itertools
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from scipy.optimize import nnls

from ic_jax.errors import InputError
from ic_jax.kernel_fit import fit_kernel, missing_neighbours
from ic_jax.latent_mask import (
    CONTENTS,
    KERNEL,
    MASKS,
    LatentMask,
    Measurement,
    coverage,
    downsample,
    encoded,
    fitting,
    frame_groups,
    jacobian,
    kernel,
    response,
)
from ic_jax.latent_mask.contents import clouds

FRAMES, HEIGHT, WIDTH = 9, 16, 24
LATENT = (3, 2, 3, 4)
LEAK = 0.5
# The last channel cannot tell white from black.
COLOURS = np.float32([[1, 0, 0.5, 1], [0, 1, 0.5, -1], [0.5, -2, 0.5, 0]])
KEY = jax.random.key(0)
WEIGHTS = np.random.default_rng(0).uniform(0.1, 1, (*KERNEL, LATENT[-1])).astype(np.float32)
READY = MASKS | {"kernel": partial(kernel, weights=jnp.asarray(WEIGHTS))}
"""All constructions, the one that needs weights having them."""


class Seen(NamedTuple):
    visible: Array


def encode(clip):
    """Block means, mixed by COLOURS; every latent leaks into the one after it."""
    groups = jnp.concatenate([clip[:1], clip[1:].reshape(2, 4, *clip.shape[1:]).mean(1)])
    means = groups.reshape(3, 2, 8, 3, 8, 3).mean((2, 4)) @ COLOURS
    return means + LEAK * jnp.concatenate([jnp.zeros_like(means[:1]), means[:-1]])


def smooth_clip():
    t, y, x, c = np.ogrid[:FRAMES, :HEIGHT, :WIDTH, :3]
    return np.float32(0.9 * np.sin(x / 5 + c + t / 9) * np.cos(y / 4 + c / 2))


def one_hole():
    """Frames 5 to 8 do not see the block at row 0, column 1: one cell of the last latent."""
    visible = np.ones((FRAMES, HEIGHT, WIDTH), np.float32)
    visible[5:, :8, 8:16] = 0
    return visible


@pytest.fixture(scope="module")
def measurement():
    clip = jnp.asarray(smooth_clip())
    return Measurement(clip, encode(clip))


@pytest.fixture(scope="module")
def built(measurement):
    """Each construction as a jitted function of visibility and key."""
    construct = lambda f, visible, key: f(Seen(visible), encode, measurement, key)
    return {name: jax.jit(partial(construct, f)) for name, f in READY.items()}


# The weight -----------------------------------------------------------------------------


def test_weight_is_the_gated_share_of_variances():
    values = [0.0, 1e-30, 1e-3, 0.5, 1.0, 30.0]
    a, v = np.meshgrid(np.float32([0, 0.3, 1]), np.float32(values), indexing="ij")
    mask = LatentMask(*(jnp.asarray(x)[None, None] for x in (a, v)))
    before = np.zeros_like(a)
    for r2 in values:
        h = np.asarray(mask.weight(r2))[0, 0]
        assert np.isfinite(h).all() and (h >= 0).all() and (h <= a).all()
        assert (h >= before).all(), "falls where the model knows less"
        before = h
        np.testing.assert_array_equal(h[v == 0], a[v == 0])
        positive = v > 1e-20
        share = a * np.float64(r2) / (np.float64(r2) + np.where(positive, v, 1))
        np.testing.assert_allclose(h[positive], share[positive], rtol=1e-5)


# Coverage -------------------------------------------------------------------------------


def test_frames_are_grouped_by_the_latent_that_holds_them():
    numbers = jnp.arange(9.0)[:, None, None]
    expected = [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]
    np.testing.assert_array_equal(frame_groups(numbers, 3)[..., 0, 0], expected)


def test_a_single_image_is_its_own_group():
    visible = jnp.zeros((1, 8, 8)).at[0, :2].set(1)
    assert coverage(visible, (1, 1, 1, 4)).item() == 0.25


def test_one_hidden_pixel_counts_in_its_latent_alone():
    visible = np.ones((FRAMES, HEIGHT, WIDTH), np.float32)
    visible[6, 9, 23] = 0
    visible = jnp.asarray(visible)
    mean, least = (np.asarray(coverage(visible, LATENT, how)) for how in ("mean", "min"))
    assert mean[2, 1, 2, 0] == 1 - 1 / 256 and least[2, 1, 2, 0] == 0
    assert np.sum(mean < 1) == np.sum(least < 1) == 1


def test_minimum_is_below_mean_and_nearest_is_one_pixel():
    seen = np.random.default_rng(0).uniform(size=(FRAMES, HEIGHT, WIDTH)) > 0.02
    visible = jnp.asarray(seen, jnp.float32)
    of = {how: np.asarray(coverage(visible, LATENT, how)) for how in ("mean", "min", "nearest")}
    assert (of["min"] <= of["mean"]).all() and (of["min"] < of["mean"]).any()
    assert set(np.unique(of["nearest"])) <= {0.0, 1.0}
    nearest = [seen[t, 4::8, 4::8] for t in (0, 4, 8)]
    np.testing.assert_array_equal(of["nearest"][..., 0], nearest)


# All constructions ----------------------------------------------------------------------


@pytest.mark.parametrize("name", READY)
def test_shapes_ranges_and_purity(built, name):
    mask = built[name](one_hole(), KEY)
    assert np.broadcast_shapes(mask.coverage.shape, mask.variance.shape, LATENT) == LATENT
    assert mask.coverage.shape[:3] == mask.variance.shape[:3] == LATENT[:3]
    for leaf in mask:
        assert np.isfinite(leaf).all() and (leaf >= 0).all()
    assert (mask.coverage <= 1).all()
    assert (mask.weight(1.0)[2, 0, 1] < 0.7).all(), "the hole does not show"
    jax.tree.map(np.testing.assert_array_equal, mask, built[name](one_hole(), KEY))


@pytest.mark.parametrize("name", READY)
def test_all_seen_is_trusted_and_nothing_seen_is_not(built, name):
    full = built[name](np.ones_like(one_hole()), KEY)
    np.testing.assert_allclose(full.coverage, 1, atol=1e-6)
    np.testing.assert_allclose(full.variance, 0, atol=1e-10)
    np.testing.assert_allclose(full.weight(1.0), 1, atol=1e-6)
    nothing = built[name](np.zeros_like(one_hole()), KEY)
    np.testing.assert_allclose(nothing.weight(1.0), 0, atol=1e-6)


@pytest.mark.parametrize("name", READY)
def test_jit_and_vmap_change_nothing(built, measurement, name):
    visible = jnp.stack([one_hole(), 1 - one_hole()])
    keys = jax.random.split(KEY)
    together = jax.vmap(built[name])(visible, keys)
    for i in range(2):
        plain = READY[name](Seen(visible[i]), encode, measurement, keys[i])
        for leaf, expected in zip(together, plain):
            np.testing.assert_allclose(leaf[i], expected, atol=1e-5)


# Each construction ----------------------------------------------------------------------


def test_downsampled_mask_ignores_the_leak_and_the_encoded_one_shows_it(built):
    seen = np.asarray(coverage(jnp.asarray(one_hole()), LATENT))
    before = np.concatenate([seen[:1], seen[:-1]])
    np.testing.assert_array_equal(built["mean"](one_hole(), KEY).coverage, seen)
    mask = built["encoded"](one_hole(), KEY)
    shown = (seen + LEAK * before) / (1 + LEAK)
    # The blind channel has the mean of the others, which here all agree.
    np.testing.assert_allclose(mask.coverage, np.broadcast_to(shown, LATENT), atol=1e-5)


def test_a_channel_that_hardly_tells_white_from_black_takes_the_others_word(measurement):
    faint = lambda clip: encode(clip).at[..., 3].set(1e-3 * encode(clip)[..., 0] ** 3)
    construct = jax.jit(lambda visible: encoded(Seen(visible), faint, measurement, KEY))
    share = construct(one_hole()).coverage
    assert share[2, 0, 1, 0] < 0.4
    np.testing.assert_allclose(share[..., 3], share[..., 0], atol=1e-5)


def test_response_is_no_further_than_the_encoder_reaches(built):
    variance = np.asarray(built["response"](one_hole(), KEY).variance)
    inside = np.zeros(LATENT[:3], bool)
    inside[2, 0, 1] = True
    assert (variance[inside] > 1e-3).all()
    np.testing.assert_allclose(variance[~inside], 0, atol=1e-10)


def test_response_follows_the_leak_into_later_latents_only(built):
    visible = np.ones_like(one_hole())
    visible[1:5, :8, :8] = 0
    variance = np.asarray(built["response"](visible, KEY).variance)[:, 0, 0]
    assert variance[0].max() < 1e-10
    assert (variance[2] > 1e-4).all()
    np.testing.assert_allclose(variance[2], LEAK**2 * variance[1], rtol=1e-3)


def test_response_is_a_second_moment_about_the_measurement_in_use(measurement):
    off = measurement._replace(latent=measurement.latent + 0.5)
    mask = response(Seen(jnp.ones((FRAMES, HEIGHT, WIDTH))), encode, off, KEY, fills=2)
    np.testing.assert_allclose(mask.variance, 0.5**2, rtol=1e-4)


def test_response_and_jacobian_depend_on_their_key_and_the_others_do_not(built):
    for name, construct in built.items():
        first, second = (construct(one_hole(), jax.random.key(seed)) for seed in (0, 1))
        same = all(np.array_equal(a, b) for a, b in zip(first, second))
        assert same == (name not in ("response", "response_open", "jacobian"))


def test_probes_give_the_energy_of_a_channel_over_all_colours(built):
    variance = np.array(built["probes"](one_hole(), KEY).variance)
    np.testing.assert_allclose(variance[2, 0, 1], (COLOURS**2).sum(0), rtol=1e-5)
    variance[2, 0, 1] = 0
    np.testing.assert_allclose(variance, 0, atol=1e-10)


def test_jacobian_is_taken_at_the_filled_clip(measurement):
    bent = lambda clip: jnp.sin(encode(clip))
    seen = Seen(jnp.asarray(one_hole()))
    straight, curved = (jacobian(seen, f, measurement, KEY).variance for f in (encode, bent))
    slope = jnp.cos(measurement.latent)
    np.testing.assert_allclose(curved, slope**2 * straight, rtol=1e-4, atol=1e-10)
    assert (np.asarray(straight)[2, 0, 1] > 1e-3).all()


def test_jacobian_expects_errors_as_large_as_the_clip_varies(measurement):
    seen = Seen(jnp.asarray(one_hole()))
    small, large = (
        jacobian(seen, encode, Measurement(scale * measurement.clip, measurement.latent), KEY)
        for scale in (0.5, 1.0)
    )
    np.testing.assert_allclose(large.variance, 4 * small.variance, rtol=1e-4, atol=1e-10)


# The fitted kernel ----------------------------------------------------------------------


def test_kernel_needs_weights(measurement):
    with pytest.raises(InputError, match="ic-jax calibrate"):
        kernel(Seen(jnp.asarray(one_hole())), encode, measurement, KEY)


def test_kernel_looks_at_neighbours_and_at_the_past_alone(measurement):
    visible = np.ones((FRAMES, HEIGHT, WIDTH), np.float32)
    visible[1:5, :8, :8] = 0  # all of latent (1, 0, 0)
    variance = READY["kernel"](Seen(jnp.asarray(visible)), encode, measurement, KEY).variance
    expected = np.zeros(LATENT, np.float32)
    for row, column in itertools.product((0, 1), (0, 1)):  # as far as one cell
        expected[1, row, column] = WEIGHTS[2, 1 - row, 1 - column]
        expected[2, row, column] = WEIGHTS[1, 1 - row, 1 - column]
    np.testing.assert_allclose(variance, expected, rtol=1e-6)


def test_fitted_kernel_predicts_what_it_was_fitted_to(measurement):
    rng = np.random.default_rng(1)
    cells = [rng.uniform(size=(FRAMES, 2, 3)) < 0.5 for _ in range(6)]
    patterns = [jnp.asarray(np.kron(one, np.ones((1, 8, 8), np.float32))) for one in cells]
    shares = [np.asarray(coverage(visible, LATENT)) for visible in patterns]
    of = lambda weights: [
        np.asarray(kernel(Seen(v), encode, measurement, KEY, weights=jnp.asarray(weights)).variance)
        for v in patterns
    ]
    fitted = fit_kernel(shares, of(WEIGHTS))
    assert fitted.shape == WEIGHTS.shape and (fitted >= 0).all()
    for found, errors in zip(of(fitted), of(WEIGHTS)):
        np.testing.assert_allclose(found, errors, rtol=0.02, atol=1e-3)


def test_large_errors_scatter_most_and_decide_least():
    """Neighbours' weights are found beside a latent's own that is a thousand times as large."""
    rng = np.random.default_rng(2)
    shares = [rng.integers(0, 2, (3, 20, 20, 1)).astype(np.float32) for _ in range(3)]
    truth = np.full(KERNEL, 0.02)
    truth[own := (-1, 1, 1)] = 20
    rows = [missing_neighbours(share) for share in shares]
    means = [(row @ truth.ravel()).reshape(share.shape) for row, share in zip(rows, shares)]
    errors = [mean * rng.chisquare(1, mean.shape) for mean in means]
    plain, _ = nnls(np.concatenate(rows), np.concatenate(errors).ravel())

    def off(weights):
        apart = np.abs(weights.reshape(KERNEL) - truth)
        return apart.sum() - apart[own]

    assert off(fit_kernel(shares, errors)) < off(plain) / 3


def test_errors_count_in_proportion_to_what_is_expected_of_them():
    """The likelihood of errors that scatter by their mean: its maximum is the mean of ratios."""
    shares, ratios = np.float32([0.1, 0.4, 1.0]), np.float32([1e3, 2e3, 6e3])
    alone = lambda value: np.full((1, 1, 1, 1), value, np.float32)
    fitted = fit_kernel([alone(1 - s) for s in shares], [alone(e) for e in shares * ratios])
    np.testing.assert_allclose(fitted[-1, 1, 1, 0], ratios.mean(), rtol=0.01)


# Contents of the hole -------------------------------------------------------------------


def test_contents_have_at_least_four_different_sources():
    clip = jnp.asarray(smooth_clip())
    made = {f.__name__: np.asarray(jax.jit(f)(clip, KEY)) for f in CONTENTS}
    assert len(made) == len(CONTENTS) >= 4
    for content in made.values():
        assert content.shape == clip.shape
        assert np.isfinite(content).all() and np.abs(content).max() <= 1
    for one, other in itertools.combinations([*made.values(), np.asarray(clip)], 2):
        assert np.abs(one - other).mean() > 0.05


@pytest.mark.parametrize("size", [32, 64, 96])
def test_clouds_vary_at_every_scale(size):
    """Alike across an eighth of a frame, not across a half, and finer than that too."""
    of = jax.vmap(lambda key: clouds((2, size, size, 3), key))
    made = np.asarray(of(jax.random.split(KEY, 64)))
    np.testing.assert_array_equal(made[:, 0], made[:, 1])
    np.testing.assert_allclose(made.std((1, 2, 3, 4)), 1, rtol=1e-4)
    apart = lambda rows: np.mean(made[:, 0, :-rows] * made[:, 0, rows:])
    assert apart(size // 8) > 0.12 and abs(apart(size // 2)) < 0.05
    assert apart(1) < 0.95


def test_masks_are_named_constructions():
    assert MASKS["encoded"] is encoded and MASKS["response"] is response
    assert MASKS["jacobian"] is jacobian and MASKS["kernel"] is kernel
    assert all(MASKS[how].func is downsample for how in ("nearest", "mean", "min"))


@pytest.mark.parametrize("shape", [LATENT[1:], (2, *LATENT[1:]), (*LATENT[:3], 2)])
def test_a_mask_of_another_shape_is_refused_in_one_line(measurement, shape):
    good = LatentMask(jnp.ones((*LATENT[:3], 1)), jnp.zeros(LATENT))
    assert fitting(good, measurement.latent, "mine") is good
    with pytest.raises(InputError, match=r"^latent mask 'mine': its variance is \(.*the latent"):
        fitting(good._replace(variance=jnp.zeros(shape)), measurement.latent, "mine")
