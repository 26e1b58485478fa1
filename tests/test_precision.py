"""Products in 16 bits, by what XLA makes of them where."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.models.precision import dot_general
from ic_jax.models.wan_dit import DiTConfig, WanDiT

LAST_WITH_FIRST = (((1,), (0,)), ((), ()))
TINY = DiTConfig(dim=24, ffn_dim=32, num_heads=2, num_layers=1, text_dim=8, text_len=4)


def made_by(function, *given, platform, operation):
    """Types of what such operations of the program make."""
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*given)
    found = re.findall(rf"stablehlo\.{operation} .*tensor<[\dx]*(\w+)>", exported.mlir_module())
    assert found
    return set(found)


def transformer():
    """One in bfloat16, and what it is applied to."""
    network = WanDiT(TINY, dtype=jnp.bfloat16)
    given = matrix(1, 1, 4, 4, 16, dtype="float32"), jnp.zeros(1), matrix(1, 4, 8, dtype="bfloat16")
    return network.apply, jax.eval_shape(network.init, jax.random.key(0), *given), *given


def matrix(*shape, dtype):
    return jnp.asarray(np.random.default_rng(len(shape)).standard_normal(shape), dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_sum_is_rounded_once(dtype):
    a, b = matrix(5, 300, dtype=dtype), matrix(300, 7, dtype=dtype)
    found = jax.jit(lambda a, b: dot_general(a, b, LAST_WITH_FIRST))(a, b)
    exact = np.asarray(a, np.float64) @ np.asarray(b, np.float64)
    half_a_step = float(jnp.finfo(dtype).eps) / 2
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=1.01 * half_a_step)


@pytest.mark.parametrize(("platform", "made"), [("cpu", "f32"), ("cuda", "bf16"), ("tpu", "bf16")])
def test_only_a_cpu_is_asked_for_float32(platform, made):
    product = lambda a, b: dot_general(a, b, LAST_WITH_FIRST)
    shapes = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((4, 8), (8, 2)))
    assert made_by(product, *shapes, platform=platform, operation="dot_general") == {made}


def test_float32_is_multiplied_as_ever():
    ours = lambda a, b: dot_general(a, b, LAST_WITH_FIRST)
    plain = lambda a, b: jax.lax.dot_general(a, b, LAST_WITH_FIRST)
    a, b = matrix(3, 4, dtype="float32"), matrix(4, 5, dtype="float32")
    assert str(jax.make_jaxpr(ours)(a, b)) == str(jax.make_jaxpr(plain)(a, b))


def test_no_product_of_the_transformer_makes_16_bits_on_a_cpu():
    assert made_by(*transformer(), platform="cpu", operation="dot_general") == {"f32"}


@pytest.mark.parametrize(("platform", "steps"), [("cpu", "f32"), ("cuda", "bf16"), ("tpu", "bf16")])
def test_gelu_is_rounded_once_on_a_cpu_and_left_to_the_product_elsewhere(platform, steps):
    assert made_by(*transformer(), platform=platform, operation="tanh") == {steps}


def test_it_can_be_differentiated():
    a, b = matrix(3, 4, dtype="bfloat16"), matrix(4, 5, dtype="bfloat16")
    total = lambda a: dot_general(a, b, LAST_WITH_FIRST).astype(jnp.float32).sum()
    expected = np.asarray(b, np.float64).sum(1)
    np.testing.assert_allclose(np.asarray(jax.grad(total)(a), np.float64)[0], expected, rtol=0.02)
