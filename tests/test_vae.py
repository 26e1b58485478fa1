"""The autoencoder against itself: chunked and whole, causal in time, jitted and not.

Parity with the reference implementation is in test_parity_vae.py.
"""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from tiny_model import random_like

from ic_jax.models.wan_vae import (
    VAEConfig,
    WanVAE,
    conv_at_once,
    conv_by_taps,
    conv_in_turn,
    decode,
    decode_bytes,
    encode,
)

FRAMES, SIZE = 9, 16
CONFIGS = {
    "wan": VAEConfig(base=8, blocks=1),
    "nano": VAEConfig(
        base=8,
        multipliers=(1, 2, 2),
        blocks=1,
        temporal=(True, True),
        latent_channels=4,
        patch=2,
        latent_mean=(0.1, 0.2, 0.3, 0.4),
        latent_std=(1.0, 2.0, 3.0, 4.0),
    ),
}


def noise(*shape):
    return np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)


class Model:
    def __init__(self, config):
        self.config = config
        clip = jax.ShapeDtypeStruct((1, 5, SIZE, SIZE, 3), np.float32)
        init = lambda clip: WanVAE(config).init(jax.random.key(0), clip)["params"]
        self.params = random_like(jax.eval_shape(init, clip))
        self._encode = jax.jit(encode, static_argnums=0, static_argnames="chunk")
        self._decode = jax.jit(decode, static_argnums=0, static_argnames="chunk")

    def encode(self, clip, chunk=None):
        return np.asarray(self._encode(self.config, self.params, clip, chunk=chunk))

    def decode(self, latent, chunk=None):
        return np.asarray(self._decode(self.config, self.params, latent, chunk=chunk))


@pytest.fixture(scope="module", params=CONFIGS)
def model(request):
    return Model(CONFIGS[request.param])


@pytest.fixture(scope="module")
def clip():
    return noise(1, FRAMES, SIZE, SIZE, 3)


@pytest.fixture(scope="module")
def latent(model):
    return 0.5 * noise(1, *model.config.latent_shape(FRAMES, SIZE, SIZE))


def test_latent_has_the_announced_shape(model, clip):
    assert (model.config.temporal_factor, model.config.spatial_factor) == (4, 8)
    assert model.encode(clip).shape[1:] == model.config.latent_shape(FRAMES, SIZE, SIZE)
    assert model.config.latent_shape(FRAMES, SIZE, SIZE)[:3] == (3, 2, 2)


def test_encoding_in_chunks_equals_encoding_whole(model, clip):
    whole = model.encode(clip)
    assert whole.std() > 0.05
    np.testing.assert_allclose(model.encode(clip, chunk=4), whole, atol=1e-5)


def test_decoding_in_chunks_equals_decoding_whole(model, latent):
    whole = model.decode(latent)
    assert whole.shape == (1, FRAMES, SIZE, SIZE, 3)
    assert np.abs(whole).max() <= 1 and whole.std() > 0.05
    np.testing.assert_allclose(model.decode(latent, chunk=1), whole, atol=1e-5)


def test_the_first_frame_alone_is_the_first_latent_of_the_clip(model, clip):
    np.testing.assert_allclose(model.encode(clip[:, :1]), model.encode(clip)[:, :1], atol=1e-5)


@pytest.mark.parametrize("frame, group", [(1, 1), (4, 1), (5, 2), (8, 2)])
def test_a_frame_reaches_its_own_latent_and_none_before(model, clip, frame, group):
    changed = clip.copy()
    changed[:, frame] *= -1
    moved = np.abs(model.encode(changed) - model.encode(clip)).max((0, 2, 3, 4))
    assert (moved[:group] == 0).all() and moved[group] > 1e-3


@pytest.mark.parametrize("group, frame", [(1, 1), (2, 5)])
def test_a_latent_reaches_its_own_frames_and_none_before(model, latent, group, frame):
    changed = latent.copy()
    changed[:, group] *= -1
    moved = np.abs(model.decode(changed) - model.decode(latent)).max((0, 2, 3, 4))
    assert (moved[:frame] == 0).all() and (moved[frame : frame + 4] > 1e-3).all()


def test_jit_changes_nothing(clip):
    model = Model(CONFIGS["nano"])
    plain = encode(model.config, model.params, jnp.asarray(clip[:, :1]))
    np.testing.assert_allclose(model.encode(clip[:, :1]), plain, atol=1e-5)


def test_latents_are_normalised_by_the_models_own_statistics(clip):
    model = Model(CONFIGS["nano"])
    raw = Model(replace(model.config, latent_mean=(0.0,) * 4, latent_std=(1.0,) * 4))
    mean, std = np.array(model.config.latent_mean), np.array(model.config.latent_std)
    first = clip[:, :1]
    np.testing.assert_allclose(model.encode(first) * std + mean, raw.encode(first), atol=1e-5)


@pytest.mark.parametrize("form", [conv_by_taps, conv_in_turn])
@pytest.mark.parametrize("kernel", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (1, 1, 1)])
@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1, 1), (1, 2, 2)])
def test_all_forms_of_the_convolution_are_the_same_sum(form, kernel, strides):
    window = strides, tuple((n // 2, n - 1 - n // 2) for n in kernel[1:])
    x, *weights = (jnp.asarray(noise(*s)) for s in ((2, 5, 8, 6, 3), (*kernel, 3, 4), (4,)))
    whole, same = (f(x, *weights, *window) for f in (conv_at_once, form))
    assert whole.shape == same.shape
    np.testing.assert_allclose(same, whole, atol=1e-5)


@pytest.mark.parametrize("moving", [(0,), (1, 2), (0, 1, 2)])
def test_images_in_turn_have_the_derivatives_of_all_at_once(moving):
    window = (2, 1, 1), ((1, 1), (1, 1))
    given = [jnp.asarray(noise(*shape)) for shape in ((2, 5, 8, 6, 3), (3, 3, 3, 3, 4), (4,))]
    found = []
    for form in (conv_at_once, conv_in_turn):

        def energy(*moved, form=form):
            put = dict(zip(moving, moved, strict=True))
            return jnp.sum(form(*(put.get(n, x) for n, x in enumerate(given)), *window) ** 2)

        moved = tuple(given[n] for n in moving)
        gradient = jax.grad(energy, argnums=tuple(range(len(moving))))(*moved)
        found.append((gradient, jax.jvp(energy, moved, moved)[1]))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3), *found)


def test_decoded_bytes_are_the_nearest_to_the_clip(model, latent):
    run = jax.jit(partial(decode_bytes, model.config, chunk=1))
    frames = np.asarray(run(model.params, latent))
    assert frames.dtype == np.uint8 and len(np.unique(frames)) > 30
    levels = (model.decode(latent, chunk=1) + 1) * 127.5
    np.testing.assert_allclose(frames, levels, atol=0.501)


def shared_by_rows(function, config, params, x):
    """The program on one device, and on eight that share the rows of every frame."""
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    over_rows = NamedSharding(mesh, PartitionSpec(None, None, "rows"))
    place = lambda frames: jax.lax.with_sharding_constraint(frames, over_rows)
    everywhere = jax.device_put((params, x), NamedSharding(mesh, PartitionSpec()))

    alone = jax.jit(partial(function, config)).lower(params, x).compile()
    spread = jax.jit(partial(function, config, place=place)).lower(*everywhere).compile()
    np.testing.assert_allclose(spread(*everywhere), alone(params, x), atol=1e-5)
    return alone, spread


def test_devices_can_share_the_rows_of_what_is_encoded():
    """Thirty rows of latents on eight devices: they need not divide."""
    model = Model(CONFIGS["nano"])
    clip = noise(1, 5, 240, 32, 3)
    programs = shared_by_rows(partial(encode, chunk=4), model.config, model.params, clip)
    alone, spread = (p.memory_analysis().temp_size_in_bytes for p in programs)
    assert spread < alone / 3


def test_devices_can_share_the_rows_of_what_is_decoded():
    model = Model(CONFIGS["nano"])
    latent = noise(1, 2, 10, 2, model.config.latent_channels)
    shared_by_rows(partial(decode, chunk=1), model.config, model.params, latent)
