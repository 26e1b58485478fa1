"""Softmax attention in plain XLA that never holds a large score matrix."""

from math import ceil

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..precision import highest

# 32 MiB in float32: enough for products of matrices to reach their speed on a CPU.
FOR_CPU = 1 << 23
# 128 MiB: keys are read again for every chunk, and a launch costs as much as 10⁶ scores.
FOR_ACCELERATOR = 1 << 25


def chunked(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    scores: int = FOR_CPU,
) -> Float[Array, "b l h d"]:
    """softmax(q kᵀ / √d) v, head by head and by chunks of queries where it is large.

    The softmax is float32, and so are products of 16-bit inputs until they are summed. At most
    `scores` entries of the matrix q kᵀ are held at once, or those of one query if they are more;
    all heads go together up to half of them.
    """
    q = q * q.shape[-1] ** -0.5
    batch, queries, heads, width = q.shape
    keys = k.shape[1]
    if batch * heads * queries * keys <= scores // 2:
        return jax.vmap(jax.vmap(_one_head, in_axes=1, out_axes=1))(q, k, v)
    # Rematerialised, or the backward pass would keep the scores of every chunk.
    attend = jax.checkpoint(_one_head)
    size = ceil(queries / ceil(queries / max(1, scores // keys)))

    def by_chunks(arrays):
        q, k, v = arrays
        chunks = jnp.pad(q, ((0, -queries % size), (0, 0))).reshape(-1, size, width)
        return jax.lax.map(lambda some: attend(some, k, v), chunks).reshape(-1, width)[:queries]

    heads_first = lambda x: jnp.moveaxis(x, 2, 1).reshape(batch * heads, *x.shape[1::2])
    out = jax.lax.map(by_chunks, (heads_first(q), heads_first(k), heads_first(v)))
    return jnp.moveaxis(out.reshape(batch, heads, queries, width), 1, 2)


def _one_head(
    q: Float[Array, "l d"], k: Float[Array, "m d"], v: Float[Array, "m d"]
) -> Float[Array, "l d"]:
    in_float32 = {"preferred_element_type": jnp.float32, "precision": highest(q.dtype)}
    scores = jnp.einsum("ld,md->lm", q, k, **in_float32)
    shares = jnp.exp(scores - jax.lax.stop_gradient(scores.max(-1, keepdims=True)))
    # Rounded before they are summed, too: a CPU then never writes them out in float32.
    shares = shares.astype(v.dtype)
    out = jnp.einsum("lm,md->ld", shares, v, **in_float32)
    # Divided last: there are fewer values than scores.
    return (out / shares.sum(-1, keepdims=True, dtype=jnp.float32)).astype(v.dtype)
