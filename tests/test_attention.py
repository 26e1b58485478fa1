import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.models import attention as module
from ic_jax.models.attention import attention


def draw(queries, keys, dtype=jnp.float32):
    rng = np.random.default_rng(0)
    shapes = ((2, queries, 3, 8), (2, keys, 3, 8), (2, keys, 3, 8))
    return [jnp.asarray(rng.standard_normal(s), dtype) for s in shapes]


def exact(q, k, v):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    scores = np.einsum("blhd,bmhd->bhlm", q, k) / np.sqrt(q.shape[-1])
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhlm,bmhd->blhd", weights, v)


@pytest.mark.parametrize("chunk", [1, 5, 7, 1000])
def test_equals_float64_attention_at_any_chunk_length(monkeypatch, chunk):
    q, k, v = draw(queries=35, keys=19)
    monkeypatch.setattr(module, "_SCORE_BUDGET", chunk * 2 * 3 * 19)
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(attention(q, k, v), exact(q, k, v), atol=1e-6)


def test_chunks_hold_no_full_score_matrix(monkeypatch):
    monkeypatch.setattr(module, "_SCORE_BUDGET", 4 * 2 * 3 * 32)
    jaxpr = str(jax.make_jaxpr(attention)(*draw(queries=64, keys=32)))
    assert "2,3,4,32" in jaxpr and "64,32" not in jaxpr


def test_gradient_is_the_same_in_chunks(monkeypatch):
    args = draw(queries=12, keys=9)
    gradient = jax.grad(lambda *a: jnp.sum(attention(*a) ** 2), argnums=(0, 1, 2))
    whole = gradient(*args)
    monkeypatch.setattr(module, "_SCORE_BUDGET", 5 * 2 * 3 * 9)
    for a, b in zip(gradient(*args), whole):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_bfloat16_keeps_its_dtype_and_a_float32_softmax():
    q, k, v = draw(queries=40, keys=300, dtype=jnp.bfloat16)
    out = attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), exact(q, k, v), atol=4e-3)
