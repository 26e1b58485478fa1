"""Softmax attention to some of the keys, in a form that merges into attention to all of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..precision import highest

# Score entries held at once: 64 MiB in float32.
_SCORE_BUDGET = 1 << 24

# Instead of -inf, which would make a device that holds nothing but padding answer NaN.
_NEVER = -1e30

Part = tuple[Float[Array, "b l h d"], Float[Array, "b l h"]]
"""Attention to some of the keys, in float32, and the log of the sum of their exponentials."""


def plain_part(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Int[Array, ""],
) -> Part:
    """Attention to the first `keys` of m keys; where there are none, with a share of zero."""
    batch, queries, heads, head_dim = q.shape
    q = q * head_dim**-0.5
    in_float32 = {"preferred_element_type": jnp.float32, "precision": highest(q.dtype)}
    real = jnp.arange(k.shape[1]) < keys

    def attend(
        rows: Float[Array, "b ... h d"],
    ) -> tuple[Float[Array, "b ... h d"], Float[Array, "b ... h"]]:
        scores = jnp.einsum("b...hd,bmhd->b...hm", rows, k, **in_float32)
        scores = jnp.where(real, scores, _NEVER)
        top = scores.max(-1, keepdims=True)
        weights = jnp.exp(scores - top).astype(v.dtype)
        total = weights.sum(-1, keepdims=True, dtype=jnp.float32)
        out = jnp.einsum("b...hm,bmhd->b...hd", weights, v, **in_float32)
        return out / total, (top + jnp.log(total))[..., 0]

    chunk = max(1, _SCORE_BUDGET // (batch * heads * k.shape[1]))
    if chunk >= queries:
        return attend(q)
    # Rematerialised, or the backward pass would keep the scores of every chunk.
    by_query = jax.lax.map(jax.checkpoint(attend), jnp.moveaxis(q, 1, 0), batch_size=chunk)
    return tuple(jnp.moveaxis(part, 0, 1) for part in by_query)


def merge(one: Part, other: Part) -> Part:
    """Attention to both sets of keys, from attention to each."""
    (a, log_a), (b, log_b) = one, other
    log_sum = jnp.logaddexp(log_a, log_b)
    share_a, share_b = (jnp.exp(log - log_sum)[..., None] for log in (log_a, log_b))
    return share_a * a + share_b * b, log_sum
