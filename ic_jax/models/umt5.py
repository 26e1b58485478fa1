"""The umT5 text encoder (arXiv 2304.09151): T5 v1.1 with position biases of each layer's own."""

from dataclasses import dataclass
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen import initializers as init
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PyTree

from .precision import dot_general, highest

PAD, EOS, BYTE_OFFSET = 0, 1, 3
BYTE_VOCAB = BYTE_OFFSET + 256


@dataclass(frozen=True)
class UMT5Config:
    """Sizes of an encoder; distances from `max_distance` on share the last bucket."""

    vocab: int
    dim: int
    ffn_dim: int
    heads: int
    head_dim: int
    layers: int
    buckets: int = 32
    max_distance: int = 128


def byte_ids(text: str) -> list[int]:
    """UTF-8 bytes as the token ids of ByT5 (arXiv 2105.13626): byte + 3."""
    return [byte + BYTE_OFFSET for byte in text.encode()]


def padded(ids: list[int], length: int) -> tuple[Int[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
    """Ids with an end mark (1) and padding (0), and the mask of what is not padding.

    A list that is too long is cut; the end mark stays.
    """
    ids = [*ids[: length - 1], EOS]
    padding = length - len(ids)
    return np.array(ids + [PAD] * padding, np.int32), np.arange(length) < len(ids)


def byte_tokens(text: str, length: int) -> tuple[Int[np.ndarray, " l"], Bool[np.ndarray, " l"]]:
    """`byte_ids`, `padded`."""
    return padded(byte_ids(text), length)


class UMT5Encoder(nn.Module):
    """Token ids to one embedding per token.

    Weights and matrix products may be bfloat16 (`dtype`); the residual stream, the norms and the
    softmax are float32.
    """

    config: UMT5Config
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"] | Int[Array, "b l"]
    ) -> Float[Array, "b l d"]:
        """Encode `tokens`; positions where `mask` is 0 are not attended to and become zeros."""
        cfg = self.config
        unit = init.normal(1.0)
        embed = nn.Embed(cfg.vocab, cfg.dim, embedding_init=unit, name="token_embedding")
        x = embed(tokens).astype(jnp.float32)
        buckets = jnp.asarray(relative_buckets(tokens.shape[1], cfg.buckets, cfg.max_distance))
        blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=cfg.layers,
        )
        x, _ = blocks(cfg, self.dtype, name="blocks")(x, mask, buckets)
        x = nn.RMSNorm(dtype=jnp.float32, name="norm")(x)
        return (x * mask[..., None]).astype(self.dtype)


def encode_by_layer(
    config: UMT5Config,
    params: PyTree,
    tokens: Int[np.ndarray, "b l"],
    mask: Bool[np.ndarray, "b l"],
    dtype: DTypeLike = jnp.float32,
) -> Float[Array, "b l d"]:
    """What `UMT5Encoder` returns, from `params` that stay on the host.

    The device holds one block at a time, 0.4 GB of umT5-XXL's 11, and of the embeddings only
    the rows in use.
    """
    x = jnp.asarray(params["token_embedding"]["embedding"][tokens], jnp.float32)
    buckets = relative_buckets(tokens.shape[1], config.buckets, config.max_distance)
    for n in range(config.layers):
        block = jax.tree.map(lambda leaf: leaf[n], params["blocks"])
        # Waiting keeps the host from sending the next blocks before this one is freed.
        x = jax.block_until_ready(_run_block(config, jnp.dtype(dtype), block, x, mask, buckets))
    x = nn.RMSNorm(dtype=jnp.float32).apply({"params": params["norm"]}, x)
    return (x * mask[..., None]).astype(dtype)


def relative_buckets(length: int, buckets: int, max_distance: int) -> Int[np.ndarray, "l l"]:
    """The bucket of every offset from a query (row) to a key (column).

    Half of the buckets are for keys that come later. Of each half, half are for one distance
    each and the others grow logarithmically up to `max_distance`.
    """
    offset = np.arange(length)[None, :] - np.arange(length)[:, None]
    distance = np.abs(offset)
    per_sign = buckets // 2
    exact = per_sign // 2
    # Base-2 logarithms are exact at powers of two, where a bucket begins.
    growth = np.log2(np.maximum(distance, 1) / exact) / np.log2(max_distance / exact)
    logarithmic = np.minimum(exact + (growth * (per_sign - exact)).astype(int), per_sign - 1)
    bucket = np.where(distance < exact, distance, logarithmic) + per_sign * (offset > 0)
    return bucket.astype(np.int32)


class _Block(nn.Module):
    config: UMT5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Array, buckets: Int[Array, "l l"]
    ) -> tuple[Float[Array, "b l d"], None]:
        y = nn.RMSNorm(dtype=jnp.float32, name="norm1")(x)
        x = x + _Attention(self.config, self.dtype, name="attn")(y, mask, buckets)
        y = nn.RMSNorm(dtype=jnp.float32, name="norm2")(x)
        return x + _FeedForward(self.config, self.dtype, name="ffn")(y), None


@partial(jax.jit, static_argnums=(0, 1))
def _run_block(config, dtype, params, x, mask, buckets):
    return _Block(config, dtype).apply({"params": params}, x, mask, buckets)[0]


class _Attention(nn.Module):
    config: UMT5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], mask: Array, buckets: Int[Array, "l l"]
    ) -> Float[Array, "b l d"]:
        cfg = self.config
        # T5 does not scale its scores: the initial scale of `q` does it instead.
        q, k, v = (
            self._project(name, std)(x)
            for name, std in (
                ("q", (cfg.dim * cfg.head_dim) ** -0.5),
                ("k", cfg.dim**-0.5),
                ("v", cfg.dim**-0.5),
            )
        )
        table = self.param("position_bias", init.normal(cfg.dim**-0.5), (cfg.buckets, cfg.heads))
        product = partial(jnp.einsum, precision=highest(self.dtype))
        scores = product("blhd,bmhd->bhlm", q, k, preferred_element_type=jnp.float32)
        scores = scores + jnp.moveaxis(table[buckets], -1, 0).astype(jnp.float32)
        scores = jnp.where(mask[:, None, None, :] != 0, scores, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(scores).astype(self.dtype)
        heads = product("bhlm,bmhd->blhd", weights, v)
        heads = heads.reshape(*heads.shape[:2], cfg.heads * cfg.head_dim)
        return _dense(cfg.dim, (cfg.heads * cfg.head_dim) ** -0.5, self.dtype, "o")(heads)

    def _project(self, name: str, std: float):
        cfg = self.config
        dense = _dense(cfg.heads * cfg.head_dim, std, self.dtype, name)
        return lambda x: dense(x).reshape(*x.shape[:2], cfg.heads, cfg.head_dim)


class _FeedForward(nn.Module):
    config: UMT5Config
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
        cfg = self.config
        gate = _dense(cfg.ffn_dim, cfg.dim**-0.5, self.dtype, "gate")(x)
        hidden = _dense(cfg.ffn_dim, cfg.dim**-0.5, self.dtype, "fc1")(x)
        hidden = hidden * nn.gelu(gate, approximate=True)
        return _dense(cfg.dim, cfg.ffn_dim**-0.5, self.dtype, "fc2")(hidden)


def _dense(features: int, std: float, dtype: DTypeLike, name: str) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias=False,
        dtype=dtype,
        precision=highest(dtype),
        kernel_init=init.normal(std),
        dot_general=dot_general,
        name=name,
    )
