from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_oracles as oracles
from perturbation import unmoved

from convert import wan_dit
from convert.keymap import convert_state
from ic_jax.models.attention import attention
from ic_jax.models.layout import Layout
from ic_jax.models.rotary import rotary_tables, rotate_by_product, rotate_by_swapping, rotate_pairs
from ic_jax.models.wan_dit import (
    DiTConfig,
    WanDiT,
    time_sinusoid,
)

TOLERANCE = 1e-4
SMALL = DiTConfig(dim=48, ffn_dim=32, num_heads=2, num_layers=2, text_dim=16, text_len=12)
# Image models in diffusers split the context at exactly 512 text tokens.
CONFIGS = {
    "text": SMALL,
    "image": replace(SMALL, in_channels=36, image_dim=4, text_len=512),
    "head_dim 128": replace(SMALL, dim=128, num_heads=1),
}
# Whole and fractional steps; the last is where float32 angles are worst.
TIMESTEPS = (37.5, 999.0)


def inputs(config):
    """Latent, timestep, context and, for image models, CLIP tokens."""
    rng = np.random.default_rng(1)
    shapes = [(2, 3, 4, 6, config.in_channels), (2, config.text_len, config.text_dim)]
    if config.image_dim is not None:
        shapes.append((2, 257, config.image_dim))
    latent, *contexts = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes)
    return latent, jnp.array(TIMESTEPS), *contexts


def oracle(config):
    return oracles.transformer(config.num_heads, config.head_dim, config.image_dim)


def expected(model, latent, timestep, *contexts):
    latent, timestep, *contexts = (torch.tensor(np.array(x)) for x in (latent, timestep, *contexts))
    with torch.no_grad():
        out = model(latent.permute(0, 4, 1, 2, 3), timestep, *contexts, return_dict=False)[0]
    return out.permute(0, 2, 3, 4, 1).numpy()


def apply(config, params, *args, **fields):
    return jax.jit(WanDiT(config, **fields).apply)({"params": params}, *args)


def converted(config, state):
    return convert_state(state, wan_dit.table("diffusers"), wan_dit.target(config))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_equals_diffusers_in_every_layout(config):
    model = oracle(config)
    state = oracles.state_of(model)
    params = converted(config, state)
    args = inputs(config)
    with jax.default_matmul_precision("highest"):
        out = apply(config, params, *args)
    assert np.abs(out - expected(model, *args)).max() < TOLERANCE
    assert 0.3 < np.sqrt(np.mean(out**2)) < 3

    original = oracles.in_original_layout(state, "wan_dit")
    packed = {f"model.diffusion_model.{key}": tensor for key, tensor in original.items()}
    for relaid in (original, packed):
        again = convert_state(relaid, wan_dit.table("original"), wan_dit.target(config))
        jax.tree.map(np.testing.assert_array_equal, again, params)


@pytest.mark.parametrize("form", ["text", "image"])
def test_every_tensor_moves_the_output(form):
    config = CONFIGS[form]
    params = converted(config, oracles.state_of(oracle(config)))
    args = inputs(config)
    run = lambda p: WanDiT(config).apply({"params": p}, *args)
    assert unmoved(run, params, 10 * TOLERANCE, stacked="blocks") == []


def test_short_context_is_padded_with_zeros_that_are_attended_to():
    params = converted(SMALL, oracles.state_of(oracle(SMALL)))
    latent, timestep, context = inputs(SMALL)
    whole = apply(SMALL, params, latent, timestep, context.at[:, 5:].set(0))
    short = apply(SMALL, params, latent, timestep, context[:, :5])
    np.testing.assert_array_equal(whole, short)
    unpadded = apply(replace(SMALL, text_len=5), params, latent, timestep, context[:, :5])
    assert np.abs(unpadded - short).max() > 10 * TOLERANCE


def test_recomputing_blocks_changes_no_gradient():
    params = converted(SMALL, oracles.state_of(oracle(SMALL)))
    args = inputs(SMALL)

    def gradient(remat):
        loss = lambda p: jnp.mean(WanDiT(SMALL, remat=remat).apply({"params": p}, *args) ** 2)
        return jax.jit(jax.grad(loss))(params)

    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    jax.tree.map(close, gradient(False), gradient(True))


def test_bfloat16_stays_near_float32():
    params = converted(SMALL, oracles.state_of(oracle(SMALL)))
    args = inputs(SMALL)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), params)
    out = apply(SMALL, params, *args)
    rough = apply(SMALL, half, *args, dtype=jnp.bfloat16)
    assert rough.dtype == jnp.float32
    assert np.sqrt(np.mean((rough - out) ** 2)) < 0.03 * np.sqrt(np.mean(out**2))


@pytest.mark.parametrize("form", ["text", "image"])
def test_what_was_prepared_serves_every_step(form):
    config = CONFIGS[form]
    params = {"params": converted(config, oracles.state_of(oracle(config)))}
    latent, timestep, *contexts = inputs(config)
    network = WanDiT(config)
    prepare = jax.jit(partial(network.apply, method="prepare"), static_argnums=1)
    velocity = jax.jit(partial(network.apply, method="velocity"))
    prepared = prepare(params, latent.shape[1:4], *contexts)
    assert prepared.text.keys.shape == (2, 2, config.text_len, 2, 24)
    for noisy, at in ((latent, timestep), (0.5 * latent, timestep / 2)):
        whole = jax.jit(network.apply)(params, noisy, at, *contexts)
        np.testing.assert_allclose(velocity(params, noisy, at, prepared), whole, atol=1e-6)
    hlo = velocity.lower(params, latent, timestep, prepared).as_text()
    assert f"x{config.text_dim}x{config.dim}x" not in hlo


def test_a_layout_attends_and_places_the_tokens():
    params = jax.jit(WanDiT(SMALL).init)(jax.random.key(0), *inputs(SMALL))
    seen = []

    def noted(name, function):
        def call(*arrays):
            seen.append((name, *(array.shape for array in arrays)))
            return function(*arrays)

        return call

    layout = Layout(
        noted("tokens", attention), noted("context", attention), noted("place", lambda x: x)
    )
    jax.eval_shape(WanDiT(SMALL, layout=layout).apply, params, *inputs(SMALL))
    tokens, text = (2, 18, 2, 24), (2, 12, 2, 24)
    assert set(seen) == {
        ("place", (2, 18, 48)),
        ("tokens", tokens, tokens, tokens),
        ("context", tokens, text, text),
    }


def test_time_sinusoid_is_exact_to_a_millionth():
    steps = np.float32([0, 0.37, 37.5, 321.77, 500.123, 833, 999, 999.94, 1000])
    frequency = 10_000.0 ** (-np.arange(128) / 128)
    angle = steps.astype(np.float64)[:, None] * frequency
    exact = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    sinusoid = jax.jit(time_sinusoid, static_argnums=1)(steps, 256)
    np.testing.assert_allclose(sinusoid, exact, atol=1e-6)


@pytest.mark.parametrize("dtype, rtol", [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
@pytest.mark.parametrize("way", [rotate_by_product, rotate_by_swapping])
def test_platforms_rotate_alike(way, dtype, rtol):
    x, tables = (
        jax.random.normal(jax.random.key(0), (2, 18, 3, 24), dtype),
        rotary_tables((3, 2, 3), 24),
    )
    by_pairs, found = rotate_pairs(x, *tables), way(x, *tables)
    assert found.dtype == dtype
    by_pairs, found = (np.float32(turned) for turned in (by_pairs, found))
    np.testing.assert_allclose(found, by_pairs, rtol=rtol, atol=1e-6)


def test_untrained_model_predicts_zero():
    args = inputs(SMALL)
    params = jax.jit(WanDiT(SMALL).init)(jax.random.key(0), *args)["params"]
    assert not np.any(apply(SMALL, params, *args))
