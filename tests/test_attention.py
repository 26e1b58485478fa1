import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.errors import InputError
from ic_jax.models import attention as package
from ic_jax.models.attention import KERNELS, attention, attention_to_part, kernel
from ic_jax.models.attention.chunks import chunked
from ic_jax.models.attention.parts import merge
from ic_jax.models.attention.tpu import splash, splash_part

interpreted = partial(splash, interpret=True)


def draw(queries, keys, dtype=jnp.float32, head_dim=8, heads=3):
    rng = np.random.default_rng(0)
    shapes = ((2, n, heads, head_dim) for n in (queries, keys, keys))
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def exact(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("blhd,bmhd->bhlm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhlm,bmhd->blhd", weights, v)


@pytest.mark.parametrize("length", [1, 5, 7, 35, 1000])
def test_equals_float64_attention_at_any_chunk_length(length):
    arrays = draw(queries=35, keys=19)
    with jax.default_matmul_precision("highest"):
        out = chunked(*arrays, scores=length * 19)
    np.testing.assert_allclose(out, exact(*arrays), atol=1e-6)


@pytest.mark.parametrize("queries, most, rows", [(64, 4 * 32, 4), (62, 150, 4), (9, 31, 1)])
def test_chunks_hold_no_more_scores_than_they_may(queries, most, rows):
    """Of at least one query."""
    in_chunks = partial(chunked, scores=most)
    jaxpr = str(jax.make_jaxpr(in_chunks)(*draw(queries=queries, keys=32)))
    found = {int(each) for each in re.findall(r"f32\[(\d+),32\]", jaxpr)}
    assert found == {rows}


def test_gradient_is_the_same_in_chunks():
    args = draw(queries=12, keys=9)
    whole, in_chunks = (
        jax.jit(jax.grad(lambda *a: jnp.sum(chunked(*a, scores=most) ** 2), argnums=(0, 1, 2)))
        for most in (1 << 20, 5 * 9)
    )
    for a, b in zip(in_chunks(*args), whole(*args)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("platform, rows", [("cpu", 512), ("cuda", 2048), ("tpu", 2048)])
def test_chunks_are_longer_where_a_launch_is_dear(platform, rows):
    x = jax.ShapeDtypeStruct((1, 16384, 1, 8), jnp.float32)
    program = jax.jit(attention).trace(x, x, x).lower(lowering_platforms=(platform,)).as_text()
    assert f"tensor<{rows}x16384xf32>" in program


@pytest.mark.parametrize("function", [attention, chunked, interpreted])
def test_bfloat16_keeps_its_dtype_and_a_float32_softmax(function):
    q, k, v = draw(queries=40, keys=300, dtype=jnp.bfloat16)
    out = function(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact(q, k, v), atol=4e-3)


# The TPU's kernel, interpreted --------------------------------------------------------


@pytest.mark.parametrize(
    "queries, keys, head_dim",
    [(130, 257, 80), (5, 512, 128), (1030, 3, 8)],
    ids=["image tokens, 80-wide heads", "text", "many tiles of queries"],
)
def test_splash_pads_tokens_and_heads_to_what_it_needs(queries, keys, head_dim):
    arrays = draw(queries, keys, head_dim=head_dim, heads=2)
    np.testing.assert_allclose(interpreted(*arrays), exact(*arrays), atol=1e-5)


def test_splash_goes_over_several_tiles_of_keys():
    arrays = draw(64, 2100, heads=1)
    np.testing.assert_allclose(interpreted(*arrays), exact(*arrays), atol=1e-5)


def test_tiles_are_as_few_as_will_do_and_pad_little():
    for tokens, expected in {1: (128, 128), 257: (384, 384), 1100: (640, 1280)}.items():
        assert package.tpu._tiles(tokens, 1024) == expected
    assert package.tpu._tiles(32760, 1024) == (1024, 32768)
    assert package.tpu._tiles(75600, 1024) == (1024, 75776)
    # Keys, by whole units; those of heads of 384, for which 682 fit.
    assert package.tpu._tiles(32760, 2048, 256) == (2048, 32768)
    assert package.tpu._tiles(8190, 682, 256) == (512, 8192)


def test_splash_has_the_gradient_of_what_is_not_padding():
    args = draw(queries=5, keys=130, heads=1)
    gradient = lambda f: jax.jit(jax.grad(lambda *a: jnp.sum(f(*a) ** 2), argnums=(0, 1, 2)))
    for a, b in zip(gradient(interpreted)(*args), gradient(chunked)(*args)):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_parts_that_splash_attends_to_merge():
    part = jax.jit(partial(splash_part, interpret=True))

    def in_parts(q, k, v):
        # No key at all, some of them, and the rest before padding.
        (first, second), (one, other) = jnp.split(k, 2, axis=1), jnp.split(v, 2, axis=1)
        none, some = (part(q, first, one, jnp.int32(n)) for n in (0, 130))
        return merge(merge(none, some), part(q, second, other, jnp.int32(3)))[0]

    def slopes(attend, *arrays):
        out, transposed = jax.vjp(attend, *arrays)
        return out, transposed(out)

    q, k, v = draw(queries=5, keys=260, heads=1)
    known = q, k[:, :133], v[:, :133]
    out, found = slopes(in_parts, q, k, v)
    np.testing.assert_allclose(out, exact(*known), atol=1e-5)
    for a, b in zip(found, slopes(chunked, *known)[1]):
        np.testing.assert_allclose(a[:, : b.shape[1]], b, atol=1e-5)
        assert not np.any(a[:, b.shape[1] :])  # padding


# The choice -----------------------------------------------------------------------------


def lowered(function, platform, dtype):
    shapes = [jax.ShapeDtypeStruct((2, 32760, 12, 128), dtype)]
    shapes += 2 * [jax.ShapeDtypeStruct((2, 512, 12, 128), dtype)]
    return jax.export.export(jax.jit(function), platforms=[platform])(*shapes).mlir_module()


def test_a_program_for_another_platform_gets_that_platforms_kernel():
    part = lambda q, k, v: attention_to_part(q, k, v, jnp.int32(500))
    for function in (attention, part):
        assert "tpu_custom_call" in lowered(function, "tpu", jnp.bfloat16)
    for platform, dtype in (("tpu", jnp.float32), ("cuda", jnp.bfloat16), ("cpu", jnp.bfloat16)):
        for function in (attention, part):
            assert "custom_call" not in lowered(function, platform, dtype)


def test_a_kernel_is_had_by_name_where_the_platform_has_it():
    assert "tpu_custom_call" in lowered(kernel("splash", "tpu"), "tpu", jnp.float32)
    assert "custom_call" not in lowered(kernel("chunked", "tpu"), "tpu", jnp.bfloat16)
    assert kernel("cudnn", "gpu") is KERNELS["cudnn"] and kernel("chunked") is chunked
    for name, platform, instead in (
        ("splash", None, "cpu; Layout() uses chunked there"),
        ("splash", "gpu", "gpu; Layout() uses chunked or cudnn there"),
        ("cudnn", "tpu", "tpu; Layout() uses chunked or splash there"),
    ):
        with pytest.raises(InputError) as refused:
            kernel(name, platform)
        assert str(refused.value) == f"attention {name} does not run on {instead}"
    with pytest.raises(InputError, match="unknown attention 'flash'; one of chunked, cudnn"):
        kernel("flash")


def test_on_a_gpu_16_bits_and_narrow_heads_go_to_cudnn(monkeypatch):
    called = []
    monkeypatch.setattr(package, "present", lambda: True)
    monkeypatch.setattr(package, "cudnn", lambda q, k, v: called.append(q.shape[-1]) or q)
    for dtype, head_dim in ((jnp.bfloat16, 80), (jnp.float32, 80), (jnp.bfloat16, 384)):
        jax.eval_shape(attention, *draw(4, 4, dtype, head_dim))
    assert called == [80]


@pytest.mark.parametrize(
    "version, capability, expected",
    [("cuda 12090", "9.0", True), ("cuda 12090", "7.5", False), ("rocm 6", "9.0", False)],
)
def test_cudnn_is_asked_only_where_it_has_the_kernel(monkeypatch, version, capability, expected):
    device = SimpleNamespace(compute_capability=capability)
    backend = SimpleNamespace(platform_version=version, local_devices=lambda: [device])
    monkeypatch.setattr(package.gpu, "get_backend", lambda: backend)
    assert package.gpu.present() == expected


def test_cudnn_gets_heads_of_a_multiple_of_8_and_the_scale_of_the_true_width(monkeypatch):
    def stand_in(q, k, v, scale, implementation):
        assert q.shape[-1] % 8 == 0 and implementation == "cudnn"
        return chunked(q * scale * q.shape[-1] ** 0.5, k, v)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    arrays = draw(7, 9, head_dim=13)
    np.testing.assert_allclose(KERNELS["cudnn"](*arrays), exact(*arrays), atol=1e-5)
