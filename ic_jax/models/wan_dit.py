"""The Wan 2.1 diffusion transformer (arXiv 2503.20314): noisy latents to a velocity."""

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.linen import initializers as init
from jaxtyping import Array, DTypeLike, Float

from .layout import Layout
from .precision import dot_general, highest
from .rotary import RotaryTables, rotary_tables, rotate

IMAGE_TOKENS = 257
_EPS = 1e-6


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


class KeysValues(NamedTuple):
    """What queries attend to, split into heads; of all layers, along a leading axis."""

    keys: Float[Array, "*n b m h d"]
    values: Float[Array, "*n b m h d"]


class Prepared(NamedTuple):
    """What all steps of a clip have in common: made once, and a pytree like the weights."""

    text: KeysValues
    image: KeysValues | None
    tables: RotaryTables


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

    def setup(self):
        cfg = self.config
        self.patch_embedding = _dense(cfg.dim, self.dtype)
        self.time_embedding = _TimeEmbedding(cfg)
        self.text_embedding = _TextEmbedding(cfg, self.dtype)
        if cfg.image_dim is not None:
            self.image_embedding = _ImageEmbedding(cfg, self.dtype)
        over_layers = {
            "variable_axes": {"params": 0},
            "split_rngs": {"params": True},
            "length": cfg.num_layers,
        }
        everywhere = nn.broadcast
        self.blocks = nn.scan(
            nn.remat(_Block, prevent_cse=False) if self.remat else _Block,
            methods={
                "keys_values": over_layers | {"in_axes": (everywhere, everywhere)},
                "__call__": over_layers | {"in_axes": (everywhere, 0, 0, everywhere)},
            },
        )(cfg, self.dtype, self.layout)
        self.head = _Head(cfg, self.dtype)

    def __call__(
        self,
        x: Float[Array, "b f h w c"],
        timestep: Float[Array, " b"],
        context: Float[Array, "b l d"],
        image_context: Float[Array, "b m e"] | None = None,
    ) -> Float[Array, "b f h w c_out"]:
        """`prepare`, `velocity`."""
        prepared = self.prepare(x.shape[1:4], context, image_context)
        return self.velocity(x, timestep, prepared)

    def prepare(
        self,
        grid: tuple[int, ...],
        context: Float[Array, "b l d"],
        image_context: Float[Array, "b m e"] | None = None,
    ) -> Prepared:
        """What does not depend on the step, for latents of `grid`, (frames, rows, columns).

        `context` holds text embeddings with zeros for padding, up to `text_len`; padding takes
        part in attention, as in Wan. Keys are normalised, and the tables of the rotation made.
        """
        cfg = self.config
        context = jnp.pad(context, ((0, 0), (0, cfg.text_len - context.shape[1]), (0, 0)))
        context = self.text_embedding(context)
        if cfg.image_dim is not None:
            image_context = self.image_embedding(image_context)
        _, (text, image) = self.blocks.keys_values((), context, image_context)
        return Prepared(text, image, rotary_tables(self._patches(grid), cfg.head_dim))

    def velocity(
        self, x: Float[Array, "b f h w c"], timestep: Float[Array, " b"], prepared: Prepared
    ) -> Float[Array, "b f h w c_out"]:
        """Predict noise - clean for `x`, which carries any conditioning on its channel axis.

        `timestep` runs from 0 (clean) to 1000 (noise); `prepared` is for the same batch.
        """
        time, modulation = self.time_embedding(timestep)
        tokens = self._through(self._tokens(x), modulation, prepared)
        return self._latent(self.head(tokens, time), x.shape[1:4])

    def residual(
        self, x: Float[Array, "b f h w c"], timestep: Float[Array, " b"], prepared: Prepared
    ) -> Float[Array, "b l d"]:
        """What all blocks add to the tokens: nearly all of the work of `velocity`."""
        tokens = self._tokens(x)
        _, modulation = self.time_embedding(timestep)
        return self._through(tokens, modulation, prepared) - tokens

    def velocity_around(
        self,
        x: Float[Array, "b f h w c"],
        timestep: Float[Array, " b"],
        residual: Float[Array, "b l d"],
    ) -> Float[Array, "b f h w c_out"]:
        """`velocity`, if `residual` is that of the same inputs; it may be an older one's."""
        time, _ = self.time_embedding(timestep)
        return self._latent(self.head(self._tokens(x) + residual, time), x.shape[1:4])

    def _tokens(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b l d"]:
        pt, ph, pw = self.config.patch
        patches = rearrange(
            x, "b (f pt) (h ph) (w pw) c -> b (f h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw
        )
        return self.patch_embedding(patches).astype(jnp.float32)

    def _through(
        self, tokens: Float[Array, "b l d"], modulation: Float[Array, "b 6 d"], prepared: Prepared
    ) -> Float[Array, "b l d"]:
        text, image, tables = prepared
        return self.blocks(tokens, modulation, text, image, tables)[0]

    def _latent(
        self, patches: Float[Array, "b l p"], grid: tuple[int, ...]
    ) -> Float[Array, "b f h w c_out"]:
        (f, h, w), (pt, ph, pw) = self._patches(grid), self.config.patch
        return rearrange(
            patches,
            "b (f h w) (pt ph pw c) -> b (f pt) (h ph) (w pw) c",
            f=f, h=h, w=w, pt=pt, ph=ph, pw=pw,
        )  # fmt: skip

    def _patches(self, grid: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(n // p for n, p in zip(grid, self.config.patch, strict=True))


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
        return _dense(self.config.dim, self.dtype, "fc2", small)(_gelu(x))


class _ImageEmbedding(nn.Module):
    config: DiTConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, image_context: Float[Array, "b m e"]) -> Float[Array, "b m d"]:
        x = _affine_norm(1e-5, "norm1")(image_context)
        x = nn.gelu(_dense(self.config.image_dim, self.dtype, "fc1")(x), approximate=False)
        x = _dense(self.config.dim, self.dtype, "fc2")(x)
        return _affine_norm(1e-5, "norm2")(x).astype(self.dtype)


class _Block(nn.Module):
    config: DiTConfig
    dtype: DTypeLike
    layout: Layout

    def setup(self):
        cfg = self.config
        self.modulation = self.param("modulation", init.normal(cfg.dim**-0.5), (6, cfg.dim))
        self.norm = _layer_norm()
        self.self_attn = _SelfAttention(cfg, self.dtype, self.layout)
        self.cross_norm = _affine_norm(_EPS)
        self.cross_attn = _CrossAttention(cfg, self.dtype, self.layout)
        self.ffn_fc1 = _dense(cfg.ffn_dim, self.dtype)
        self.ffn_fc2 = _dense(cfg.dim, self.dtype)

    def keys_values(
        self,
        carry: tuple[()],
        context: Float[Array, "b t d"],
        image_context: Float[Array, "b m d"] | None,
    ) -> tuple[tuple[()], tuple[KeysValues, KeysValues | None]]:
        """The carry of the scan over layers is empty: they do not depend on each other."""
        return carry, self.cross_attn.keys_values(context, image_context)

    def __call__(
        self,
        x: Float[Array, "b l d"],
        modulation: Float[Array, "b 6 d"],
        text: KeysValues,
        image: KeysValues | None,
        tables: RotaryTables,
    ) -> tuple[Float[Array, "b l d"], None]:
        parts = jnp.split(self.modulation.astype(jnp.float32) + modulation, 6, axis=1)
        shift_attn, scale_attn, gate_attn, shift_ffn, scale_ffn, gate_ffn = parts

        x = self.layout.place(x)
        y = self.norm(x) * (1 + scale_attn) + shift_attn
        x = x + gate_attn * self.self_attn(y, tables)

        x = x + self.cross_attn(self.cross_norm(x), text, image)

        y = self.norm(x) * (1 + scale_ffn) + shift_ffn
        return x + gate_ffn * self.ffn_fc2(_gelu(self.ffn_fc1(y))), None


class _SelfAttention(nn.Module):
    config: DiTConfig
    dtype: DTypeLike
    layout: Layout

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], tables: RotaryTables) -> Float[Array, "b l d"]:
        heads = self.config.num_heads, self.config.head_dim
        q = _HeadsNorm(self.dtype, name="norm_q")(_Projection(heads, self.dtype, name="q")(x))
        k = _HeadsNorm(self.dtype, name="norm_k")(_Projection(heads, self.dtype, name="k")(x))
        v = _Projection(heads, self.dtype, name="v")(x)
        out = self.layout.attend(rotate(q, tables), rotate(k, tables), v)
        return _Projection((self.config.dim,), self.dtype, name="o")(out)


class _CrossAttention(nn.Module):
    """One query against text and, separately, image tokens; the two answers are added."""

    config: DiTConfig
    dtype: DTypeLike
    layout: Layout

    def setup(self):
        heads = self.config.num_heads, self.config.head_dim
        self.q, self.norm_q = _Projection(heads, self.dtype), _HeadsNorm(self.dtype)
        self.k, self.norm_k = _Projection(heads, self.dtype), _HeadsNorm(self.dtype)
        self.v = _Projection(heads, self.dtype)
        if self.config.image_dim is not None:
            self.k_img, self.norm_k_img = _Projection(heads, self.dtype), _HeadsNorm(self.dtype)
            self.v_img = _Projection(heads, self.dtype)
        self.o = _Projection((self.config.dim,), self.dtype)

    def keys_values(
        self, context: Float[Array, "b t d"], image_context: Float[Array, "b m d"] | None
    ) -> tuple[KeysValues, KeysValues | None]:
        text = KeysValues(self.norm_k(self.k(context)), self.v(context))
        if self.config.image_dim is None:
            return text, None
        keys = self.norm_k_img(self.k_img(image_context))
        return text, KeysValues(keys, self.v_img(image_context))

    def __call__(
        self, x: Float[Array, "b l d"], text: KeysValues, image: KeysValues | None
    ) -> Float[Array, "b l d"]:
        q = self.norm_q(self.q(x))
        out = self.layout.attend_context(q, *text)
        if image is not None:
            out = out + self.layout.attend_context(q, *image)
        return self.o(out)


class _Projection(nn.Module):
    """`nn.Dense`, to channels that are split into heads, or from there back."""

    outputs: tuple[int, ...]
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b l *inputs"]) -> Float[Array, "b l *outputs"]:
        features = prod(x.shape[2:]), prod(self.outputs)
        kernel = self.param("kernel", init.xavier_uniform(), features)
        bias = self.param("bias", init.zeros, features[1:])
        given = (array.astype(self.dtype) for array in (x, kernel, bias))
        ways = {"tpu": _product_split, "default": _product_whole}
        ways = {platform: partial(way, self.outputs) for platform, way in ways.items()}
        return jax.lax.platform_dependent(*given, **ways)


def _product_whole(
    outputs: tuple[int, ...],
    x: Float[Array, "b l *inputs"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"],
) -> Float[Array, "b l *outputs"]:
    """The bias is one vector: cuBLAS adds that, where one of heads would be written out for it."""
    x = x.reshape(*x.shape[:2], -1)
    made = dot_general(x, kernel, (((2,), (0,)), ((), ())), highest(x.dtype)) + bias
    return made.reshape(*x.shape[:2], *outputs)


def _product_split(
    outputs: tuple[int, ...],
    x: Float[Array, "b l *inputs"],
    kernel: Float[Array, "i o"],
    bias: Float[Array, " o"],
) -> Float[Array, "b l *outputs"]:
    """The matrix is split, not what it makes: a TPU copies that from one tiling to the other."""
    inputs = x.shape[2:]
    contracted = tuple(range(2, x.ndim)), tuple(range(len(inputs)))
    kernel, bias = kernel.reshape(*inputs, *outputs), bias.reshape(outputs)
    return dot_general(x, kernel, (contracted, ((), ())), highest(x.dtype)) + bias


class _HeadsNorm(nn.Module):
    """`nn.RMSNorm` over all heads together, in float32."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b l h e"]) -> Float[Array, "b l h e"]:
        heads = x.shape[2:]
        scale = self.param("scale", init.ones, (prod(heads),))
        x = x.astype(jnp.float32)
        square = jnp.mean(x * x, axis=(-2, -1), keepdims=True)
        return (x * (jax.lax.rsqrt(square + _EPS) * scale.reshape(heads))).astype(self.dtype)


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


def _gelu(x: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """By tanh. A CPU would round each of its steps to 16 bits, where cuBLAS takes it as it stands.

    As the end of a product, that is: in float32 it would be a pass of its own over the widest
    array of a block.
    """
    by_tanh = partial(nn.gelu, approximate=True)
    rounded_once = lambda x: by_tanh(x.astype(jnp.float32)).astype(x.dtype)
    return jax.lax.platform_dependent(x, cpu=rounded_once, default=by_tanh)


def _dense(
    features: int, dtype: DTypeLike, name: str | None = None, kernel_init=init.xavier_uniform()
) -> nn.Dense:
    return nn.Dense(
        features,
        dtype=dtype,
        precision=highest(dtype),
        kernel_init=kernel_init,
        dot_general=dot_general,
        name=name,
    )


# The fast variance, E[x²] - E[x]², loses digits.


def _layer_norm() -> nn.LayerNorm:
    return nn.LayerNorm(
        epsilon=_EPS, use_bias=False, use_scale=False, use_fast_variance=False, dtype=jnp.float32
    )


def _affine_norm(epsilon: float, name: str | None = None) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=jnp.float32, name=name)
