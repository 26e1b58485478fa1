"""Softmax attention in plain XLA that never holds a large score matrix."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Scores held at once, as float32: up to 64 MiB in one go, and beyond that chunks of 8 MiB,
# which stay near the cores of a CPU.
_WHOLE = 1 << 24
_CHUNK = 1 << 21


def chunked(
    q: Float[Array, "b l h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b l h d"]:
    """softmax(q kᵀ / √d) v, head by head and by chunks of queries where it is large.

    The softmax is float32, and so are products of 16-bit inputs until they are summed.
    """
    q = q * q.shape[-1] ** -0.5
    batch, queries, heads, _ = q.shape
    keys = k.shape[1]
    if batch * heads * queries * keys <= _WHOLE:
        return _attend(q, k, v)
    # Rematerialised, or the backward pass would keep the scores of every chunk.
    attend = jax.checkpoint(lambda row, k, v: _attend(row[None, None, None], k, v)[0, 0, 0])

    def one_head(arrays):
        q, k, v = arrays
        k, v = k[None, :, None], v[None, :, None]
        return jax.lax.map(lambda row: attend(row, k, v), q, batch_size=max(1, _CHUNK // keys))

    by_head = lambda x: jnp.moveaxis(x, 2, 1).reshape(batch * heads, *x.shape[1::2])
    out = jax.lax.map(one_head, (by_head(q), by_head(k), by_head(v)))
    return jnp.moveaxis(out.reshape(batch, heads, queries, -1), 1, 2)


def _attend(
    q: Float[Array, "b l h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b l h d"]:
    scores = jnp.einsum("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores).astype(v.dtype)
    return jnp.einsum("bhlm,bmhd->blhd", weights, v)
