"""Ring attention (arXiv 2310.01889): keys travel round the devices, queries stay."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ic_jax.models.precision import highest

# Score entries held at once: 64 MiB in float32.
_SCORE_BUDGET = 1 << 24

# Instead of -inf, which would make a device that holds nothing but padding answer NaN.
_NEVER = -1e30

Partial = tuple[Float[Array, "b l h d"], Float[Array, "b l h"]]
"""Attention to some of the keys, in float32, and the log of the sum of their exponentials."""


def ring_attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    axis: str,
    keys: int,
) -> Float[Array, "b l h d"]:
    """Attention of this device's queries to the keys of all devices along the mesh's `axis`.

    For use inside `jax.shard_map`. Device i holds keys i m ... (i + 1) m - 1; those from `keys`
    on are padding. The result has the dtype of `q`.
    """
    size, me, held = jax.lax.axis_size(axis), jax.lax.axis_index(axis), k.shape[1]
    onward = [(i, (i + 1) % size) for i in range(size)]
    answer = None
    # Not a loop of XLA's: the next keys travel while these are being attended to.
    for hop in range(size):
        real = keys - (me - hop) % size * held
        part = partial_attention(q, k, v, real)
        answer = part if answer is None else merge(answer, part)
        if hop < size - 1:
            k, v = jax.lax.ppermute((k, v), axis, onward)
    return answer[0].astype(q.dtype)


def merge(one: Partial, other: Partial) -> Partial:
    """Attention to both sets of keys, from attention to each."""
    (a, log_a), (b, log_b) = one, other
    log_sum = jnp.logaddexp(log_a, log_b)
    share_a, share_b = (jnp.exp(log - log_sum)[..., None] for log in (log_a, log_b))
    return share_a * a + share_b * b, log_sum


def partial_attention(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Int[Array, ""],
) -> Partial:
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
        weights = jnp.exp(scores - top)
        total = weights.sum(-1, keepdims=True)
        weights = weights.astype(v.dtype)
        out = jnp.einsum("b...hm,bmhd->b...hd", weights, v, **in_float32)
        return out / total, (top + jnp.log(total))[..., 0]

    chunk = max(1, _SCORE_BUDGET // (batch * heads * k.shape[1]))
    if chunk >= queries:
        return attend(q)
    by_query = jax.lax.map(attend, jnp.moveaxis(q, 1, 0), batch_size=chunk)
    return tuple(jnp.moveaxis(part, 0, 1) for part in by_query)
