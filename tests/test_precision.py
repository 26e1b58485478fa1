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


def results(function, platform, *shapes):
    """Types of what the program's products make."""
    exported = jax.export.export(jax.jit(function), platforms=[platform])(*shapes)
    found = re.findall(r"stablehlo\.dot_general .*-> tensor<[\dx]*(\w+)>", exported.mlir_module())
    assert found
    return set(found)


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
    shapes = (jax.ShapeDtypeStruct(shape, "bfloat16") for shape in ((4, 8), (8, 2)))
    assert results(lambda a, b: dot_general(a, b, LAST_WITH_FIRST), platform, *shapes) == {made}


def test_float32_is_multiplied_as_ever():
    ours = lambda a, b: dot_general(a, b, LAST_WITH_FIRST)
    plain = lambda a, b: jax.lax.dot_general(a, b, LAST_WITH_FIRST)
    a, b = matrix(3, 4, dtype="float32"), matrix(4, 5, dtype="float32")
    assert str(jax.make_jaxpr(ours)(a, b)) == str(jax.make_jaxpr(plain)(a, b))


def test_no_product_of_the_transformer_makes_16_bits_on_a_cpu():
    network = WanDiT(TINY, dtype=jnp.bfloat16)
    given = matrix(1, 1, 4, 4, 16, dtype="float32"), jnp.zeros(1), matrix(1, 4, 8, dtype="bfloat16")
    variables = network.init(jax.random.key(0), *given)
    assert results(network.apply, "cpu", variables, *given) == {"f32"}


def test_it_can_be_differentiated():
    a, b = matrix(3, 4, dtype="bfloat16"), matrix(4, 5, dtype="bfloat16")
    total = lambda a: dot_general(a, b, LAST_WITH_FIRST).astype(jnp.float32).sum()
    expected = np.asarray(b, np.float64).sum(1)
    np.testing.assert_allclose(np.asarray(jax.grad(total)(a), np.float64)[0], expected, rtol=0.02)
