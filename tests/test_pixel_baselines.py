"""Baselines in pixels, with a linear toy in the place of encoder and decoder."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.latent_mask import LatentMask
from ic_jax.sampling.consistency import none
from ic_jax.sampling.denoiser import Prediction
from ic_jax.sampling.methods import method
from ic_jax.sampling.pixel_baselines import dps, pixel_dds, psld
from ic_jax.sampling.sampler import Pixels, State, advance, split_correct_recombine, start
from ic_jax.sampling.schedule import Level, flow_schedule
from ic_jax.sampling.solvers import euler

KEY = jax.random.key(3)
SHAPE = (2, 3, 4, 12)
CLIP = (2, 6, 8, 3)
# Twelve latent channels hold the 2×2 pixels of a block, turned by an orthogonal matrix.
TURN = np.float32(np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0])
LEVEL = Level(jnp.float32(0.6), jnp.float32(0.5), jnp.float32(600.0))


def encode(clip):
    t, h, w, _ = clip.shape
    blocks = clip.reshape(t, h // 2, 2, w // 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(t, h // 2, w // 2, 12) @ TURN


def decode(latent):
    t, h, w, _ = latent.shape
    blocks = (latent @ TURN.T).reshape(t, h, w, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(t, 2 * h, 2 * w, 3)


def normal(seed, shape=SHAPE):
    return jax.random.normal(jax.random.key(seed), shape)


def pixels(visible=None, decode=decode):
    clip = jnp.tanh(normal(5, CLIP))
    visible = 1.0 * (normal(6, CLIP[:3]) > 0) if visible is None else visible
    return Pixels(encode, decode, clip, visible)


def exact(x, level):
    """The model of a unit Gaussian: its clean estimate is `gain` times x."""
    signal = 1 - level.sigma
    clean = signal / (signal**2 + level.sigma**2) * x
    return Prediction(clean, (x - signal * clean) / level.sigma)


def bind(method, given):
    """The step; the latent mask and y are not what these methods look at."""
    nothing = jnp.zeros((*SHAPE[:3], 1))
    return method(exact, euler(), encode(given.clip), LatentMask(nothing, nothing))


def lifted_pixel_dds(given, **options):
    return split_correct_recombine(pixel_dds(given, **options))


def after(method, given, x):
    return jax.jit(bind(method, given))(State(x, (), KEY), LEVEL).x


def ends(method, given, steps):
    begin = start(KEY, SHAPE, euler())
    return jax.jit(partial(advance, bind(method, given)))(begin, flow_schedule(steps, 1.0)).x


def plain(x):
    return after(split_correct_recombine(none), pixels(), x)


def misfit(given, x):
    """Root mean square distance from the clip, over visible pixels."""
    seen = np.asarray(given.visible) > 0
    return float(jnp.sqrt(jnp.mean((given.decode(x) - given.clip)[seen] ** 2)))


def test_the_toy_is_its_own_inverse():
    np.testing.assert_allclose(decode(encode(pixels().clip)), pixels().clip, atol=1e-6)


@pytest.mark.parametrize(
    "make, steps, closer",
    [
        (partial(lifted_pixel_dds, gamma=5.0), 10, 4.0),
        (partial(dps, gamma=1.0), 100, 2.0),
        (partial(psld, gamma=1.0), 100, 2.0),
    ],
)
def test_visible_pixels_approach_the_clip(make, steps, closer):
    given = pixels()
    unguided = misfit(given, ends(split_correct_recombine(none), given, steps))
    assert misfit(given, ends(make(given), given, steps)) < unguided / closer


def test_pixel_dds_is_dds_where_the_pixels_are():
    given, x = pixels(), normal(0)
    prediction, zero = exact(x, LEVEL), jnp.zeros(SHAPE)
    mask = LatentMask(zero, zero)
    clean, noise = pixel_dds(given, gamma=3.0)(prediction, zero, mask, LEVEL, KEY)
    seen = given.visible[..., None]
    before = decode(prediction.clean)
    np.testing.assert_allclose(
        decode(clean), (before + 3 * seen * given.clip) / (1 + 3 * seen), atol=1e-5
    )
    np.testing.assert_allclose(0.4 * clean + 0.6 * noise, x, atol=1e-5)


def test_pixel_dds_pays_for_what_the_encoder_loses():
    """A decoder that dims, and an encoder that does not know it: even unseen pixels change."""
    given = pixels(jnp.zeros(CLIP[:3]), lambda latent: 0.9 * decode(latent))
    prediction, zero = exact(normal(0), LEVEL), jnp.zeros(SHAPE)
    clean = pixel_dds(given)(prediction, zero, LatentMask(zero, zero), LEVEL, KEY).clean
    np.testing.assert_allclose(clean, 0.9 * prediction.clean, atol=1e-6)


def test_dps_descends_the_gradient_through_model_and_decoder():
    """In closed form: the model is linear and the decoder orthogonal."""
    given, x = pixels(), normal(0)
    gain = 0.4 / (0.4**2 + 0.6**2)
    residual = given.visible[..., None] * (decode(gain * x) - given.clip)
    slope = gain * encode(residual) / jnp.linalg.norm(residual)
    np.testing.assert_allclose(after(dps(given, 0.7), given, x), plain(x) - 0.7 * slope, atol=1e-5)


def test_psld_descends_its_loss_by_finite_differences():
    """With a decoder that is not the encoder's inverse, so that the gluing says something."""
    given, x, gluing = pixels(decode=lambda latent: jnp.tanh(decode(latent))), normal(0), 0.3
    gain = 0.4 / (0.4**2 + 0.6**2)
    seen = given.visible[..., None]

    def loss(x):
        decoded = given.decode(gain * x)
        glued = gain * x - encode(seen * given.clip + (1 - seen) * decoded)
        return 0.7 * jnp.linalg.norm(seen * (decoded - given.clip)) + gluing * jnp.linalg.norm(
            glued
        )

    slope = plain(x) - after(psld(given, 0.7, gluing), given, x)
    for seed in range(3):
        way = normal(10 + seed)
        difference = (loss(x + 0.01 * way) - loss(x - 0.01 * way)) / 0.02
        np.testing.assert_allclose(jnp.sum(slope * way), difference, rtol=0.01, atol=2e-3)


@pytest.mark.parametrize("visible", [0.0, 1.0])
@pytest.mark.parametrize("make", [lifted_pixel_dds, dps, psld])
def test_finite_where_the_misfit_is_zero(make, visible):
    given = pixels(jnp.full(CLIP[:3], visible))
    gain = 0.4 / (0.4**2 + 0.6**2)
    assert jnp.isfinite(after(make(given), given, encode(given.clip) / gain)).all()


def test_dps_is_the_plain_step_where_nothing_is_visible():
    given, x = pixels(jnp.zeros(CLIP[:3])), normal(0)
    np.testing.assert_allclose(after(dps(given), given, x), plain(x), atol=1e-6)


@pytest.mark.parametrize("name", ["pixel_dds", "dps", "psld"])
def test_they_are_made_by_name_with_the_way_to_pixels(name):
    given = pixels()
    made = method(name, pixels=given, inner=3, gamma=2.0)
    direct = {"pixel_dds": lifted_pixel_dds, "dps": dps, "psld": psld}[name](given, gamma=2.0)
    np.testing.assert_allclose(
        after(made, given, normal(0)), after(direct, given, normal(0)), atol=1e-6
    )
