"""The Wan 2.1 diffusion transformer (arXiv 2503.20314): noisy latents to a velocity."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.linen import initializers as init
from jaxtyping import Array, DTypeLike, Float

from .layout import Layout

IMAGE_TOKENS = 257
_ROPE_THETA = 10_000.0
_EPS = 1e-6

RotaryTables = tuple[Float[Array, "l half"], Float[Array, "l half"]]


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of a transformer; `image_dim` is the width of CLIP tokens, None without that branch."""

    dim: int
    ffn_dim: int
    num_heads: int
    num_layers: int
    in_channels: int = 16
    out_channels: int = 16
    text_dim: int = 4096
    text_len: int = 512
    freq_dim: int = 256
    patch: tuple[int, int, int] = (1, 2, 2)
    image_dim: int | None = None

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.num_heads


class WanDiT(nn.Module):
    """Velocity of a noisy latent, given text and, in image models, CLIP tokens.

    Weights and matrix products may be bfloat16 (`dtype`). The residual stream, the norms, the
    modulation, the time embedding, the rotation of queries and keys and the softmax are float32.
    `remat` recomputes each block in the backward pass instead of keeping its activations.
    `layout` is for whoever spreads the work over devices.
    """

    config: DiTConfig
    dtype: DTypeLike = jnp.float32
    remat: bool = False
    layout: Layout = Layout()

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        timestep: Float[Array, " b"],
        context: Float[Array, "b l d"],
        image_context: Float[Array, "b m e"] | None = None,
    ) -> Float[Array, "b f h w c_out"]:
        """Predict noise - clean for `x`, which carries any conditioning on its channel axis.

        `timestep` runs from 0 (clean) to 1000 (noise). `context` holds text embeddings with
        zeros for padding, up to `text_len`; padding takes part in attention, as in Wan.
        """
        cfg = self.config
        grid = tuple(n // p for n, p in zip(x.shape[1:4], cfg.patch))
        pt, ph, pw = cfg.patch
        patches = rearrange(
            x, "b (f pt) (h ph) (w pw) c -> b (f h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw
        )
        tokens = _dense(cfg.dim, self.dtype, "patch_embedding")(patches).astype(jnp.float32)

        time, modulation = _TimeEmbedding(cfg, name="time_embedding")(timestep)
        context = jnp.pad(context, ((0, 0), (0, cfg.text_len - context.shape[1]), (0, 0)))
        context = _TextEmbedding(cfg, self.dtype, name="text_embedding")(context)
        if cfg.image_dim is not None:
            image_context = _ImageEmbedding(cfg, self.dtype, name="image_embedding")(image_context)

        blocks = nn.scan(
            nn.remat(_Block, prevent_cse=False) if self.remat else _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast,) * 4,
            length=cfg.num_layers,
        )(cfg, self.dtype, self.layout, name="blocks")
        tables = rotary_tables(grid, cfg.head_dim)
        tokens, _ = blocks(tokens, modulation, context, image_context, tables)

        out = _Head(cfg, self.dtype, name="head")(tokens, time)
        f, h, w = grid
        return rearrange(
            out,
            "b (f h w) (pt ph pw c) -> b (f pt) (h ph) (w pw) c",
            f=f, h=h, w=w, pt=pt, ph=ph, pw=pw,
        )  # fmt: skip


def time_sinusoid(timestep: Float[Array, " b"], features: int) -> Float[Array, "b features"]:
    """[cos(t f), sin(t f)] for frequencies f = 10000^(-2i / features), t in [0, 1000].

    Plain float32 products are 4e-5 off near t = 999. Here the angle of the integer part of t is
    counted in 2^-32 turns, where the overflow of an integer is exactly a whole turn.
    """
    half = features // 2
    frequency = 10_000.0 ** (-np.arange(half) / half)
    turns = np.round(frequency / (2 * np.pi) * 2.0**32).astype(np.uint32)
    whole = jnp.floor(timestep)
    wrapped = (whole.astype(jnp.uint32)[:, None] * turns).astype(jnp.int32)
    angle = wrapped.astype(jnp.float32) * np.float32(2 * np.pi * 2.0**-32)
    angle = angle + (timestep - whole)[:, None] * frequency.astype(np.float32)
    return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)


def rotary_tables(grid: tuple[int, ...], head_dim: int) -> RotaryTables:
    """Cosines and sines for tokens at (frame, row, column) of `grid`, one per channel pair.

    Rows and columns get 2 (head_dim // 6) channels each, frames the rest, and each axis has its
    own ladder of frequencies. Angles are made in float64 on the host.
    """
    spatial = 2 * (head_dim // 6)
    cosines, sines = [], []
    for axis, (size, width) in enumerate(zip(grid, (head_dim - 2 * spatial, spatial, spatial))):
        frequency = _ROPE_THETA ** (-np.arange(0, width, 2) / width)
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        angle = np.outer(np.arange(size), frequency).reshape(shape)
        for parts, function in ((cosines, np.cos), (sines, np.sin)):
            table = function(angle).astype(np.float32)
            parts.append(jnp.broadcast_to(table, (*grid, width // 2)))
    cos, sin = (jnp.concatenate(parts, -1).reshape(-1, head_dim // 2) for parts in (cosines, sines))
    return cos, sin


def rotate(x: Float[Array, "b l h d"], tables: RotaryTables) -> Float[Array, "b l h d"]:
    """Rotary position embedding (arXiv 2104.09864) of adjacent channel pairs, in float32."""
    cos, sin = (table[:, None, :] for table in tables)
    a, b = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), -1, 0)
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


class _TimeEmbedding(nn.Module):
    """The embedding for the head, and six modulation vectors for the blocks."""

    config: DiTConfig

    @nn.compact
    def __call__(
        self, timestep: Float[Array, " b"]
    ) -> tuple[Float[Array, "b d"], Float[Array, "b 6 d"]]:
        cfg = self.config
        small = init.normal(0.02)
        x = time_sinusoid(timestep.astype(jnp.float32), cfg.freq_dim)
        x = nn.silu(_dense(cfg.dim, jnp.float32, "fc1", small)(x))
        time = _dense(cfg.dim, jnp.float32, "fc2", small)(x)
        modulation = _dense(6 * cfg.dim, jnp.float32, "projection")(nn.silu(time))
        return time, modulation.reshape(-1, 6, cfg.dim)


class _TextEmbedding(nn.Module):
    config: DiTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, context: Float[Array, "b l t"]) -> Float[Array, "b l d"]:
        small = init.normal(0.02)
        x = _dense(self.config.dim, self.dtype, "fc1", small)(context)
        return _dense(self.config.dim, self.dtype, "fc2", small)(nn.gelu(x, approximate=True))


class _ImageEmbedding(nn.Module):
    config: DiTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image_context: Float[Array, "b m e"]) -> Float[Array, "b m d"]:
        x = _affine_norm("norm1", 1e-5)(image_context)
        x = nn.gelu(_dense(self.config.image_dim, self.dtype, "fc1")(x), approximate=False)
        x = _dense(self.config.dim, self.dtype, "fc2")(x)
        return _affine_norm("norm2", 1e-5)(x).astype(self.dtype)


class _Block(nn.Module):
    config: DiTConfig
    dtype: DTypeLike
    layout: Layout

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l d"],
        modulation: Float[Array, "b 6 d"],
        context: Float[Array, "b t d"],
        image_context: Float[Array, "b m d"] | None,
        tables: RotaryTables,
    ) -> tuple[Float[Array, "b l d"], None]:
        cfg = self.config
        own = self.param("modulation", init.normal(cfg.dim**-0.5), (6, cfg.dim))
        parts = jnp.split(own.astype(jnp.float32) + modulation, 6, axis=1)
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = parts

        x = self.layout.place(x)
        y = _layer_norm()(x) * (1 + scale_attn) + shift_attn
        attend = _SelfAttention(cfg, self.dtype, self.layout, name="self_attn")
        x = x + gate_attn * attend(y, tables)

        y = _affine_norm("cross_norm", _EPS)(x)
        attend = _CrossAttention(cfg, self.dtype, self.layout, name="cross_attn")
        x = x + attend(y, context, image_context)

        y = _layer_norm()(x) * (1 + scale_ffn) + shift_ffn
        y = nn.gelu(_dense(cfg.ffn_dim, self.dtype, "ffn_fc1")(y), approximate=True)
        return x + gate_ffn * _dense(cfg.dim, self.dtype, "ffn_fc2")(y), None


class _SelfAttention(nn.Module):
    config: DiTConfig
    dtype: DTypeLike
    layout: Layout

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], tables: RotaryTables) -> Float[Array, "b l d"]:
        heads = self.config.num_heads
        dim = self.config.dim
        q = _split(_rms_norm(self.dtype, "norm_q")(_dense(dim, self.dtype, "q")(x)), heads)
        k = _split(_rms_norm(self.dtype, "norm_k")(_dense(dim, self.dtype, "k")(x)), heads)
        v = _split(_dense(dim, self.dtype, "v")(x), heads)
        out = self.layout.attend(rotate(q, tables), rotate(k, tables), v)
        return _dense(dim, self.dtype, "o")(_merge(out))


class _CrossAttention(nn.Module):
    """One query against text and, separately, image tokens; the two answers are added."""

    config: DiTConfig
    dtype: DTypeLike
    layout: Layout

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l d"],
        context: Float[Array, "b t d"],
        image_context: Float[Array, "b m d"] | None,
    ) -> Float[Array, "b l d"]:
        heads = self.config.num_heads
        dim = self.config.dim

        def attend(tokens: Float[Array, "b m d"], suffix: str) -> Float[Array, "b l h e"]:
            k = _dense(dim, self.dtype, "k" + suffix)(tokens)
            k = _rms_norm(self.dtype, "norm_k" + suffix)(k)
            v = _dense(dim, self.dtype, "v" + suffix)(tokens)
            return self.layout.attend_context(q, _split(k, heads), _split(v, heads))

        q = _split(_rms_norm(self.dtype, "norm_q")(_dense(dim, self.dtype, "q")(x)), heads)
        out = attend(context, "")
        if self.config.image_dim is not None:
            out = out + attend(image_context, "_img")
        return _dense(dim, self.dtype, "o")(_merge(out))


class _Head(nn.Module):
    config: DiTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Float[Array, "b l d"], time: Float[Array, "b d"]
    ) -> Float[Array, "b l p"]:
        cfg = self.config
        own = self.param("modulation", init.normal(cfg.dim**-0.5), (2, cfg.dim))
        shift, scale = jnp.split(own.astype(jnp.float32) + time[:, None], 2, axis=1)
        x = _layer_norm()(x) * (1 + scale) + shift
        features = int(np.prod(cfg.patch)) * cfg.out_channels
        # Zeros at first: training starts from the velocity 0, whatever the blocks do.
        return _dense(features, jnp.float32, "linear", init.zeros)(x)


def _dense(
    features: int, dtype: DTypeLike, name: str, kernel_init=init.xavier_uniform()
) -> nn.Dense:
    # What is float32 by design stays so on GPU and TPU, whose default is a shorter mantissa.
    precision = "highest" if jnp.dtype(dtype) == jnp.float32 else None
    return nn.Dense(features, dtype=dtype, precision=precision, kernel_init=kernel_init, name=name)


# The fast variance, E[x²] - E[x]², loses digits.


def _layer_norm() -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=_EPS, use_bias=False, use_scale=False, use_fast_variance=False, dtype=jnp.float32
    )


def _affine_norm(name: str, epsilon: float) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, name=name)


def _rms_norm(dtype: DTypeLike, name: str) -> nn.RMSNorm:
    return nn.RMSNorm(epsilon=_EPS, dtype=dtype, name=name)


def _split(x: Float[Array, "b l d"], heads: int) -> Float[Array, "b l h e"]:
    return rearrange(x, "b l (h e) -> b l h e", h=heads)


def _merge(x: Float[Array, "b l h e"]) -> Float[Array, "b l d"]:
    return rearrange(x, "b l h e -> b l (h e)")
