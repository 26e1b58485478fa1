"""Splash attention: the TPU's fused kernel, written in Pallas and shipped with JAX."""

from functools import partial
from math import gcd

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Float, Int

from .parts import Part, plain_part

_LANES = 128

# Rows of a tile, the keys' for heads of 128. All of a kernel's tiles fit into the 16 MiB of vector
# memory that the compiler grants without further flags.
_QUERIES = 1024
_KEYS = 2048

# Keys of a tile that are multiplied at once: the softmax of some goes on beside the products of
# others. By the cycles that libtpu schedules for a v5e, that saves a sixth of what tiles of 512
# keys, each in one product, would take.
_TOGETHER = 256

# Keys of a tile in the backward pass, whose scores take 2 MiB.
_KEYS_BACKWARD = 512


def splash(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    interpret: bool = False,
) -> Float[Array, "b l h d"]:
    """softmax(q kᵀ / √d) v in tiles that never leave the chip, with a float32 softmax.

    Tokens are padded to whole tiles and heads to whole lanes of 128; what is padded is
    attended to by nobody. `interpret` runs the kernel on any platform, slowly.
    """
    return _tiled(q, k, v, k.shape[1], interpret)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def splash_part(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Int[Array, ""],
    interpret: bool = False,
) -> Part:
    """`parts.plain_part` in such tiles, rounded to the dtype of `q`.

    The kernel that tells its sums has no gradient: that of `plain_part` stands in for it.
    """
    out, log_sums = _tiled(q, k, v, keys, interpret, with_log_sums=True)
    return out.astype(jnp.float32), log_sums


def _part_forward(q, k, v, keys, interpret):
    return splash_part(q, k, v, keys, interpret), (q, k, v, keys)


def _part_backward(interpret, known, cotangents):
    *arrays, keys = known
    _, transposed = jax.vjp(lambda q, k, v: plain_part(q, k, v, keys), *arrays)
    return *transposed(cotangents), None


splash_part.defvjp(_part_forward, _part_backward)


def _tiled(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: int | Int[Array, ""],
    interpret: bool,
    with_log_sums: bool = False,
) -> Float[Array, "b l h d"] | tuple[Float[Array, "b l h d"], Float[Array, "b l h"]]:
    """Attention to the first `keys` keys, and if asked, the logs of their exponentials' sums."""
    queries, head_dim = q.shape[1], q.shape[-1]
    block_q, padded_q = _tiles(queries, _QUERIES)
    lanes = -(-head_dim // _LANES) * _LANES
    block_kv, padded_kv = _tiles(k.shape[1], _KEYS * _LANES // lanes, _TOGETHER)
    attend = _kernel(block_q, block_kv, interpret, with_log_sums)
    segments = None
    if with_log_sums or padded_kv > keys:
        # Tokens attend to their own segment alone. Queries that are padding are cut off below.
        real = (jnp.arange(padded_kv) < keys).astype(jnp.int32)
        segments = kernels.SegmentIds(jnp.ones(padded_q, jnp.int32), real)

    def fitted(x: Float[Array, "b n h d"], tokens: int) -> Float[Array, "b h n2 d2"]:
        _, n, _, d = x.shape
        return jnp.moveaxis(jnp.pad(x, ((0, 0), (0, tokens - n), (0, 0), (0, lanes - d))), 2, 1)

    arrays = fitted(q * head_dim**-0.5, padded_q), fitted(k, padded_kv), fitted(v, padded_kv)
    out = jax.vmap(lambda q, k, v: attend(q, k, v, segments))(*arrays)
    real_rows = lambda x: jnp.moveaxis(x, 1, 2)[:, :queries]
    if not with_log_sums:
        return real_rows(out)[..., :head_dim]
    out, (log_sums,) = out
    return real_rows(out)[..., :head_dim], real_rows(log_sums)


def _tiles(tokens: int, most: int, unit: int = _LANES) -> tuple[int, int]:
    """The rows of a tile, whole units up to `most`, and those of all tiles: as few as will do."""
    count = -(-tokens // (most - most % unit))
    block = -(-tokens // (count * unit)) * unit
    return block, count * block


def _kernel(
    block_q: int, block_kv: int, interpret: bool, save_residuals: bool
) -> kernels.SplashAttentionKernel:
    backward = gcd(block_kv, _KEYS_BACKWARD)
    sizes = kernels.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_kv_compute=_TOGETHER,
        block_q_dkv=block_q,
        block_kv_dkv=backward,
        block_q_dq=block_q,
        block_kv_dq=backward,
    )
    # Every tile counts. JAX's own maker of kernels would go over all of them on the host to see.
    all_tiles = MaskInfo(None, None, None, None, None)
    return kernels.SplashAttentionKernel(
        all_tiles,
        all_tiles,
        all_tiles,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=save_residuals,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=None,
        interpret=interpret,
    )
