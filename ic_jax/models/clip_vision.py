"""The image encoder of image-to-video models: CLIP's vision transformer (arXiv 2103.00020)."""

from dataclasses import dataclass

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from flax.linen import initializers as init
from jaxtyping import Array, DTypeLike, Float, PyTree

from .attention import Attend, attention
from .precision import dot_general, highest

_EPS = 1e-5

# What CLIP's training images, in [0, 1], were normalised by.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)

# The free parameter of torch's bicubic kernel; other libraries take -0.5.
_CUBIC = -0.75


@dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of a tower; `layers` counts the blocks in use, one fewer than CLIP was trained with.

    `image` is the side of the square image and `patch` that of a patch, both in pixels.
    """

    dim: int
    ffn_dim: int
    heads: int
    layers: int
    image: int = 224
    patch: int = 14

    @property
    def tokens(self) -> int:
        """One for the whole image, then one per patch."""
        return 1 + (self.image // self.patch) ** 2


def encode_image(
    config: CLIPVisionConfig,
    params: PyTree,
    frame: Float[Array, "h w 3"],
    dtype: DTypeLike = jnp.float32,
    attend: Attend = attention,
) -> Float[Array, "m d"]:
    """Float32 tokens of a frame in [-1, 1] of any size: `image_context` of the transformer.

    `dtype` is that of the matrix products. Where there is no image, Wan puts zeros in their place.
    """
    pixels = preprocess(frame, config.image)
    return CLIPVision(config, dtype, attend).apply({"params": params}, pixels[None])[0]


def preprocess(frame: Float[Array, "h w 3"], size: int = 224) -> Float[Array, "s s 3"]:
    """A frame in [-1, 1], squeezed to a square whatever its aspect, in CLIP's units.

    Bicubic without antialiasing, as Wan does it; CLIP's own preprocessing crops instead.
    """
    rows, columns = (bicubic(length, size) for length in frame.shape[:2])
    square = jnp.einsum("ih,hwc,jw->ijc", rows, frame, columns, precision="highest")
    return (square / 2 + 0.5 - jnp.array(_MEAN)) / jnp.array(_STD)


def bicubic(length: int, size: int) -> Float[np.ndarray, "size length"]:
    """The matrix that resamples `length` values to `size`, pixel centres at +0.5.

    Cubic convolution over four taps (Keys, 1981); taps beyond an end read the end.
    """
    # torch rounds the ratio and the positions to float32: at 1280 pixels it shows (5e-4).
    ratio = float(np.float32(length / size))
    position = ((np.arange(size) + 0.5) * ratio - 0.5).astype(np.float32)
    below = np.floor(position).astype(int)
    matrix = np.zeros((size, length))
    for tap in range(-1, 3):
        weight = _cubic(np.abs(position - (below + tap)))
        np.add.at(matrix, (np.arange(size), np.clip(below + tap, 0, length - 1)), weight)
    return matrix.astype(np.float32)


def _cubic(x: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    inner = (_CUBIC + 2) * x**3 - (_CUBIC + 3) * x**2 + 1
    outer = _CUBIC * (x**3 - 5 * x**2 + 8 * x - 4)
    return np.where(x <= 1, inner, outer)


class CLIPVision(nn.Module):
    """Preprocessed images to the tokens that leave the last block in use.

    Weights and matrix products may be bfloat16 (`dtype`); the residual stream, the norms and the
    softmax are float32. `attend` is for whoever spreads the work over devices.
    """

    config: CLIPVisionConfig
    dtype: DTypeLike = jnp.float32
    attend: Attend = attention

    @nn.compact
    def __call__(self, pixels: Float[Array, "b s s 3"]) -> Float[Array, "b m d"]:
        """Encode images in CLIP's units. There is no norm at the end: Wan reads the raw stream."""
        cfg = self.config
        patches = rearrange(pixels, "b (h p) (w q) c -> b (h w) (p q c)", p=cfg.patch, q=cfg.patch)
        patches = _dense(cfg.dim, self.dtype, "patch_embedding", use_bias=False)(patches)
        small = init.normal(cfg.dim**-0.5)
        whole = self.param("class_embedding", small, (1, cfg.dim))
        whole = jnp.broadcast_to(whole, (len(pixels), 1, cfg.dim))
        positions = self.param("position_embedding", small, (cfg.tokens, cfg.dim))
        x = jnp.concatenate([whole, patches], axis=1, dtype=jnp.float32) + positions
        x = _layer_norm("pre_norm")(x)
        blocks = nn.scan(
            _Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=cfg.layers,
        )
        x, _ = blocks(cfg, self.dtype, self.attend, name="blocks")(x)
        return x


class _Block(nn.Module):
    config: CLIPVisionConfig
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> tuple[Float[Array, "b m d"], None]:
        y = _layer_norm("norm1")(x)
        x = x + _Attention(self.config, self.dtype, self.attend, name="attn")(y)
        y = _layer_norm("norm2")(x)
        return x + _FeedForward(self.config, self.dtype, name="ffn")(y), None


class _Attention(nn.Module):
    config: CLIPVisionConfig
    dtype: DTypeLike
    attend: Attend

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        cfg = self.config
        q, k, v = (
            rearrange(_dense(cfg.dim, self.dtype, name)(x), "b m (h d) -> b m h d", h=cfg.heads)
            for name in "qkv"
        )
        heads = rearrange(self.attend(q, k, v), "b m h d -> b m (h d)")
        return _dense(cfg.dim, self.dtype, "o")(heads)


class _FeedForward(nn.Module):
    config: CLIPVisionConfig
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b m d"]) -> Float[Array, "b m d"]:
        hidden = _dense(self.config.ffn_dim, self.dtype, "fc1")(x)
        hidden = nn.gelu(hidden, approximate=False)
        return _dense(self.config.dim, self.dtype, "fc2")(hidden)


def _dense(features: int, dtype: DTypeLike, name: str, use_bias: bool = True) -> nn.Dense:
    return nn.Dense(
        features,
        use_bias,
        dtype=dtype,
        precision=highest(dtype),
        dot_general=dot_general,
        name=name,
    )


def _layer_norm(name: str) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=_EPS, use_fast_variance=False, dtype=jnp.float32, name=name)
