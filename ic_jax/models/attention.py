"""Softmax attention that never holds a large score matrix."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Implementation = Literal["chunked", "cudnn"]

Attend = Callable[
    [Float[Array, "b l h d"], Float[Array, "b m h d"], Float[Array, "b m h d"]],
    Float[Array, "b l h d"],
]
"""Queries, keys and values to what is attended to."""

# Score entries held at once: 64 MiB in float32.
_SCORE_BUDGET = 1 << 24


def attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    impl: Implementation | None = None,
) -> Float[Array, "b l h d"]:
    """softmax(q kᵀ / √d) v over `m`, with a float32 softmax; the result has the dtype of `q`.

    `impl` None takes cuDNN's fused kernel where it applies (16-bit inputs on a GPU), and
    otherwise a loop over chunks of queries that materialises a bounded number of scores.
    """
    if impl is None:
        impl = "cudnn" if _cudnn_applies(q) else "chunked"
    if impl == "cudnn":
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
    return _chunked(q, k, v)


def _cudnn_applies(q: Float[Array, "b l h d"]) -> bool:
    head_dim = q.shape[-1]
    half = q.dtype in (jnp.bfloat16, jnp.float16)
    return jax.default_backend() == "gpu" and half and head_dim % 8 == 0 and head_dim <= 128


def _chunked(
    q: Float[Array, "b l h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b l h d"]:
    batch, queries, heads, head_dim = q.shape
    q = q * head_dim**-0.5

    def attend(rows: Float[Array, "b ... h d"]) -> Float[Array, "b ... h d"]:
        scores = jnp.einsum("b...hd,bmhd->b...hm", rows, k, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores).astype(v.dtype)
        return jnp.einsum("b...hm,bmhd->b...hd", weights, v)

    chunk = max(1, _SCORE_BUDGET // (batch * heads * k.shape[1]))
    if chunk >= queries:
        return attend(q)
    # Rematerialised, or the backward pass would keep the scores of every chunk.
    by_query = jax.lax.map(jax.checkpoint(attend), jnp.moveaxis(q, 1, 0), batch_size=chunk)
    return jnp.moveaxis(by_query, 0, 1)
