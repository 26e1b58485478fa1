"""Ring attention (arXiv 2310.01889): keys travel round the devices, queries stay."""

import jax
from jaxtyping import Array, Float

from ic_jax.models.attention import attention_to_part
from ic_jax.models.attention.parts import merge


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
        part = attention_to_part(q, k, v, real)
        answer = part if answer is None else merge(answer, part)
        if hop < size - 1:
            k, v = jax.lax.ppermute((k, v), axis, onward)
    return answer[0].astype(q.dtype)
