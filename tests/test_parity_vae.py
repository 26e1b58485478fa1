import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_oracles as oracles
from perturbation import unmoved

from convert import wan_vae
from convert.keymap import convert_state
from ic_jax.models.wan_vae import VAEConfig, decode, encode

TOLERANCE = 2e-5
CONFIG = VAEConfig(base=8)


@pytest.fixture(scope="module")
def model():
    return oracles.vae()


@pytest.fixture(scope="module")
def statistics(model):
    """Mean and spread of the latents, as diffusers knows them."""
    return np.float32(model.config.latents_mean), np.float32(model.config.latents_std)


def converted(state, layout):
    return convert_state(state, wan_vae.table(layout), wan_vae.target(CONFIG))


@pytest.fixture(scope="module")
def params(model):
    return converted(oracles.state_of(model), "diffusers")


def clip(frames, size):
    pixels = np.random.default_rng(0).uniform(-1, 1, (1, frames, size, size, 3))
    return jnp.asarray(pixels, jnp.float32)


def latent(frames, size):
    normal = np.random.default_rng(1).standard_normal((1, frames, size, size, 16))
    return jnp.asarray(normal, jnp.float32)


def to_torch(x):
    return torch.tensor(np.array(x)).permute(0, 4, 1, 2, 3)


def to_numpy(x):
    return x.permute(0, 2, 3, 4, 1).numpy()


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


def test_encode_equals_diffusers(model, params, statistics):
    mean, std = statistics
    with torch.no_grad():
        expected = to_numpy(model.encode(to_torch(clip(9, 32))).latent_dist.mode())
    with jax.default_matmul_precision("highest"):
        out = jax.jit(encode, static_argnums=0)(CONFIG, params, clip(9, 32))
    np.testing.assert_allclose(out, (expected - mean) / std, atol=TOLERANCE)
    assert 0.3 < rms(out) < 3


def test_decode_equals_diffusers(model, params, statistics):
    mean, std = statistics
    with torch.no_grad():
        raw = to_torch(latent(3, 4) * std + mean)
        expected = to_numpy(model.decode(raw).sample)
    with jax.default_matmul_precision("highest"):
        out = jax.jit(decode, static_argnums=0)(CONFIG, params, latent(3, 4))
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)
    assert 0.3 < rms(out) < 3


def test_both_layouts_make_the_same_parameters(model, params):
    original = oracles.in_original_layout(oracles.state_of(model), "wan_vae")
    assert len(original) == 194
    jax.tree.map(np.testing.assert_array_equal, converted(original, "original"), params)
    below_model = {f"model.{key}": tensor for key, tensor in original.items()}
    jax.tree.map(np.testing.assert_array_equal, converted(below_model, "original"), params)


def test_every_tensor_moves_the_output(params):
    def run(p):
        parts = encode(CONFIG, p, clip(5, 16)), decode(CONFIG, p, latent(2, 2))
        return jnp.concatenate([part.ravel() for part in parts])

    assert unmoved(run, params, 10 * TOLERANCE) == []
