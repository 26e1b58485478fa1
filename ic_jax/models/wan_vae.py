"""The Wan video autoencoder: causal in time, 4×8×8 smaller, one clip or one chunk at a time.

A clip of 4k+1 frames becomes k+1 latent frames. The first frame stands alone and
every later latent holds four frames; nothing ever looks into the future. A chunk
therefore needs only what the causal convolutions have seen just before it, and the
whole clip is the special case of a single chunk: the same code serves both
(`Stream`), and `encode` / `decode` take the chunk length as an argument.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import compress

import jax
import jax.numpy as jnp
from einops import rearrange, repeat
from flax import linen as nn
from jax.custom_derivatives import SymbolicZero
from jaxtyping import Array, Float, PyTree, UInt8

from .attention import attention
from .frames import to_bytes
from .layout import Place, anywhere
from .precision import high

WAN21_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
WAN21_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip


@dataclass(frozen=True)
class VAEConfig:
    """Sizes of a Wan 2.1 autoencoder; the defaults are the released model's."""

    base: int = 96
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2  # residual blocks per encoder stage; the decoder has one more
    temporal: tuple[bool, ...] = (False, True, True)  # which down-samplers also halve time
    latent_channels: int = 16
    patch: int = 1  # pixels folded into channels before the first convolution (as in Wan 2.2)
    latent_mean: tuple[float, ...] = WAN21_MEAN
    latent_std: tuple[float, ...] = WAN21_STD

    @property
    def spatial_factor(self) -> int:
        """Pixels per latent along height and width."""
        return self.patch * 2 ** len(self.temporal)

    @property
    def temporal_factor(self) -> int:
        """Frames per latent, after the first frame."""
        return 2 ** sum(self.temporal)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(t, h, w, c) of the latent of a clip of 4k+1 frames."""
        f = self.spatial_factor
        t = (frames - 1) // self.temporal_factor + 1
        return t, height // f, width // f, self.latent_channels


class Stream:
    """What each causal convolution has seen of the clip so far.

    `past` maps a layer to its last frames and is empty at the clip's beginning;
    `next` collects the same for the chunk after this one. Its shapes never change
    after the first chunk, so it can be the carry of a `lax.scan`.
    """

    def __init__(self, past: dict[str, Array] | None = None):
        self.past = past or {}
        self.next: dict[str, Array] = {}

    @property
    def first(self) -> bool:
        """Whether the chunk at hand begins the clip."""
        return not self.past

    def extend(
        self, layer: nn.Module, x: Float[Array, "b t h w c"], frames: int
    ) -> Float[Array, "b t2 h w c"]:
        """x with the `frames` frames before it in front: zeros where the clip begins."""
        name = "/".join(layer.path)
        blank = jnp.zeros((x.shape[0], frames, *x.shape[2:]), x.dtype)
        x = jnp.concatenate([self.past.get(name, blank), x], axis=1)
        self.next[name] = x[:, x.shape[1] - frames :]
        return x


def per_frame(
    function: Callable[[Float[Array, "n ..."]], Float[Array, "n ..."]], x: Float[Array, "b t ..."]
) -> Float[Array, "b t ..."]:
    """Apply a function of images to every frame."""
    y = function(x.reshape(-1, *x.shape[2:]))
    return y.reshape(*x.shape[:2], *y.shape[1:])


Padding = tuple[tuple[int, int], tuple[int, int]]


class Conv(nn.Module):
    """A convolution with kernel (kt, kh, kw), valid in time.

    Frames that are missing in front are zeros: of a kernel longer than x, the last taps act.
    """

    features: int
    kernel: tuple[int, int, int]
    strides: tuple[int, int, int] = (1, 1, 1)
    padding: Padding | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t2 h2 w2 d"]:
        kt, kh, kw = self.kernel
        init = nn.initializers.variance_scaling(1.0, "fan_in", "truncated_normal")
        kernel = self.param("kernel", init, (kt, kh, kw, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        kernel, bias = kernel[-x.shape[1] :].astype(x.dtype), bias.astype(x.dtype)
        padding = self.padding or ((kh // 2, kh // 2), (kw // 2, kw // 2))
        # The platform is known when a program is lowered, and not yet when it is traced.
        return jax.lax.platform_dependent(
            x,
            kernel,
            bias,
            cpu=lambda *given: conv_in_turn(*given, self.strides, padding),
            default=lambda *given: conv_at_once(*given, self.strides, padding),
        )


def conv_at_once(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    bias: Float[Array, "d"],
    strides: tuple[int, int, int],
    padding: Padding,
) -> Float[Array, "b t2 h2 w2 d"]:
    """One convolution in three dimensions, valid in time; `padding` is of height and width."""
    layout = ("NDHWC", "DHWIO", "NDHWC")
    window = {"window_strides": strides, "padding": ((0, 0), *padding)}
    y = jax.lax.conv_general_dilated(
        x, kernel, **window, dimension_numbers=layout, precision=high()
    )
    return y + bias


def conv_by_taps(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    bias: Float[Array, "d"],
    strides: tuple[int, int, int],
    padding: Padding,
) -> Float[Array, "b t2 h2 w2 d"]:
    """The same sum, one convolution of images per tap in time: a CPU differentiates it faster."""
    taps = len(kernel)
    ends = [x.shape[1] - taps + 1 + k for k in range(taps)]
    conv = partial(_conv_images, strides=strides, padding=padding)
    tap = lambda k: per_frame(lambda y: conv(y, kernel[k]), x[:, k : ends[k] : strides[0]])
    return sum(map(tap, range(taps))) + bias


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def conv_in_turn(
    x: Float[Array, "b t h w c"],
    kernel: Float[Array, "kt kh kw c d"],
    bias: Float[Array, "d"],
    strides: tuple[int, int, int],
    padding: Padding,
) -> Float[Array, "b t2 h2 w2 d"]:
    """The same sum, one image and one tap in time after the other: what a CPU does best.

    It is as fast as one convolution per tap or faster, and in a loop XLA neither takes a copy of
    every tap's weights out of the stream's loop nor has more than one image at work.
    """
    taps = len(kernel)
    frames = (x.shape[1] - taps) // strides[0] + 1
    at = partial(jax.lax.dynamic_index_in_dim, keepdims=False)
    conv = partial(_conv_images, strides=strides, padding=padding)

    def add(n: Array, y: Array) -> Array:
        frame, tap = n // taps, n % taps
        part = conv(at(x, frame * strides[0] + tap, 1), at(kernel, tap))
        return jax.lax.dynamic_update_index_in_dim(y, at(y, frame, 1) + part, frame, 1)

    b, *image = jax.eval_shape(conv, x[:, 0], kernel[0]).shape
    # Adds nothing, but has XLA wait for x: it would set up the sums of all layers in advance.
    nothing = x[:, -1:, :1, :1, :1] > jnp.inf
    return jax.lax.fori_loop(
        0, frames * taps, add, jnp.broadcast_to(bias + nothing, (b, frames, *image))
    )


@partial(conv_in_turn.defjvp, symbolic_zeros=True)
def _(strides: tuple[int, int, int], padding: Padding, primals: tuple, tangents: tuple):
    """XLA's gradients of convolutions in a loop are slow: those of `conv_by_taps` it is."""
    moves = [not isinstance(tangent, SymbolicZero) for tangent in tangents]

    def by_taps(*moved: Array) -> Array:
        moved = iter(moved)
        given = (next(moved) if m else x for m, x in zip(moves, primals, strict=True))
        return conv_by_taps(*given, strides, padding)

    moving = tuple(compress(primals, moves)), tuple(compress(tangents, moves))
    return conv_in_turn(*primals, strides, padding), jax.jvp(by_taps, *moving)[1]


def _conv_images(
    images: Float[Array, "n h w c"],
    kernel: Float[Array, "kh kw c d"],
    strides: tuple[int, int, int],
    padding: Padding,
) -> Float[Array, "n h2 w2 d"]:
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        images, kernel, strides[1:], padding, dimension_numbers=layout
    )


class CausalConv(nn.Module):
    """A 3×3×3 convolution that sees two frames back and none ahead."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], stream: Stream) -> Float[Array, "b t h w d"]:
        seen = stream.extend(self, x, 2)
        alone = stream.first and x.shape[1] == 1
        return Conv(self.features, (3, 3, 3), name="conv")(x if alone else seen)


class ChannelNorm(nn.Module):
    """Unit RMS over channels at every position, times a gain."""

    @nn.compact
    def __call__(self, x: Float[Array, "... c"]) -> Float[Array, "... c"]:
        gamma = self.param("gamma", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        square = jnp.sum(y * y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.maximum(square, 1e-24)) * (x.shape[-1] ** 0.5 * gamma)
        return y.astype(x.dtype)


class ResidualBlock(nn.Module):
    """Twice norm, SiLU and causal convolution, added to the input."""

    features: int

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], stream: Stream) -> Float[Array, "b t h w d"]:
        y = CausalConv(self.features, name="conv1")(nn.silu(ChannelNorm(name="norm1")(x)), stream)
        y = CausalConv(self.features, name="conv2")(nn.silu(ChannelNorm(name="norm2")(y)), stream)
        if x.shape[-1] != self.features:
            x = Conv(self.features, (1, 1, 1), name="shortcut")(x)
        return x + y


class AttentionBlock(nn.Module):
    """One head over the positions of each frame; frames do not mix."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
        b, t, h, w, c = x.shape
        y = rearrange(ChannelNorm(name="norm")(x), "b t h w c -> (b t) (h w) 1 c")
        dense = partial(nn.Dense, dtype=x.dtype, precision=high())
        q, k, v = jnp.split(dense(3 * c, name="qkv")(y), 3, axis=-1)
        y = dense(c, name="out")(attention(q, k, v))
        return x + y.reshape(b, t, h, w, c)


class Downsample(nn.Module):
    """Halve height and width; with `temporal`, every later pair of frames becomes one."""

    temporal: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], stream: Stream
    ) -> Float[Array, "b t2 h2 w2 c"]:
        c = x.shape[-1]
        x = Conv(c, (1, 3, 3), (1, 2, 2), ((0, 1), (0, 1)), name="spatial")(x)
        if not self.temporal:
            return x
        time = Conv(c, (3, 1, 1), (2, 1, 1), name="time")
        if not stream.first:
            return time(stream.extend(self, x, 1))
        # The first frame passes untouched; the window that ends on it is never formed.
        stream.extend(self, x, 1)
        return jnp.concatenate([x[:, :1], time(x)], axis=1) if x.shape[1] > 1 else _touch(time, x)


class Upsample(nn.Module):
    """Double height and width; with `temporal`, every frame but the clip's first becomes two."""

    features: int
    temporal: bool

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], stream: Stream
    ) -> Float[Array, "b t2 h2 w2 d"]:
        if self.temporal:
            time = Conv(2 * x.shape[-1], (3, 1, 1), name="time")
            # The first frame is neither doubled nor ever seen by this convolution.
            head, rest = (x[:, :1], x[:, 1:]) if stream.first else (x[:, :0], x)
            rest = stream.extend(self, rest, 2)
            if rest.shape[1] > 2:
                rest = rearrange(time(rest), "b t h w (two c) -> b (t two) h w c", two=2)
                x = jnp.concatenate([head, rest], axis=1)
            else:
                x = _touch(time, head)
        x = repeat(x, "b t h w c -> b t (h 2) (w 2) c")
        return Conv(self.features, (1, 3, 3), name="spatial")(x)


def _touch(layer: nn.Module, x: Array) -> Array:
    """x itself, having made sure that an unused layer still owns its parameters."""
    if layer.is_initializing():
        layer(jnp.zeros((1, 3, *x.shape[2:]), x.dtype))
    return x


class Middle(nn.Module):
    """Residual, attention, residual: the coarsest level of either half."""

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], stream: Stream) -> Float[Array, "b t h w c"]:
        x = ResidualBlock(x.shape[-1], name="block0")(x, stream)
        x = AttentionBlock(name="attention")(x)
        return ResidualBlock(x.shape[-1], name="block1")(x, stream)


class Encoder(nn.Module):
    """Pixels (patched) to mean and log-variance of the latent, before the last projection."""

    config: VAEConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t h w c"], stream: Stream
    ) -> Float[Array, "b t2 h2 w2 d"]:
        cfg = self.config
        x = CausalConv(cfg.base, name="conv_in")(x, stream)
        for s, multiplier in enumerate(cfg.multipliers):
            for j in range(cfg.blocks):
                x = ResidualBlock(cfg.base * multiplier, name=f"stage{s}_block{j}")(x, stream)
            if s < len(cfg.temporal):
                x = Downsample(cfg.temporal[s], name=f"stage{s}_down")(x, stream)
        x = Middle(name="middle")(x, stream)
        x = nn.silu(ChannelNorm(name="norm_out")(x))
        return CausalConv(2 * cfg.latent_channels, name="conv_out")(x, stream)


class Decoder(nn.Module):
    """The latent, after its first projection, to pixels (patched)."""

    config: VAEConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "b t h w c"], stream: Stream
    ) -> Float[Array, "b t2 h2 w2 d"]:
        cfg = self.config
        widths = [cfg.base * m for m in reversed(cfg.multipliers)]
        x = CausalConv(widths[0], name="conv_in")(z, stream)
        x = Middle(name="middle")(x, stream)
        for s, width in enumerate(widths):
            for j in range(cfg.blocks + 1):
                x = ResidualBlock(width, name=f"stage{s}_block{j}")(x, stream)
            if s < len(cfg.temporal):
                up = Upsample(width // 2, cfg.temporal[::-1][s], name=f"stage{s}_up")
                x = up(x, stream)
        x = nn.silu(ChannelNorm(name="norm_out")(x))
        return CausalConv(3 * cfg.patch**2, name="conv_out")(x, stream)


class WanVAE(nn.Module):
    """Both halves with their 1×1×1 projections, on raw (not normalised) latents.

    Reference: Wan 2.1 technical report (arXiv 2503.20314), "Wan-VAE".
    """

    config: VAEConfig

    def setup(self):
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)
        self.quant = Conv(2 * self.config.latent_channels, (1, 1, 1))
        self.post_quant = Conv(self.config.latent_channels, (1, 1, 1))

    def moments(
        self, clip: Float[Array, "b t h w 3"], stream: Stream
    ) -> list[Float[Array, "b t2 h2 w2 c"]]:
        """Mean and log-variance of the latent."""
        p = self.config.patch
        # Channel order of Wan 2.2's patches: colour, then column, then row.
        x = rearrange(clip, "b t (h p) (w q) c -> b t h w (c q p)", p=p, q=p)
        return jnp.split(self.quant(self.encoder(x, stream)), 2, axis=-1)

    def reconstruct(
        self, z: Float[Array, "b t h w c"], stream: Stream
    ) -> Float[Array, "b t2 h2 w2 3"]:
        """The clip of a raw latent, not clamped."""
        p = self.config.patch
        x = self.decoder(self.post_quant(z), stream)
        return rearrange(x, "b t h w (c q p) -> b t (h p) (w q) c", p=p, q=p)

    def __call__(self, clip: Float[Array, "b t h w 3"]) -> Float[Array, "b t h w 3"]:
        """Every parameter once, for `init`."""
        mean, _ = self.moments(clip, Stream())
        return self.reconstruct(mean, Stream())


Step = Callable[[Array, dict[str, Array] | None], tuple[Array, dict[str, Array]]]


def _streamed(step: Step, x: Array, chunk: int | None) -> Array:
    """`step(frames, past)` over x: whole, or its first frame and then `chunk` frames at a time."""
    if chunk is None or x.shape[1] == 1:
        return step(x, None)[0]
    # Cut out first: XLA would lay out all of x, and on a TPU pad it 16 times, as the first
    # convolution wants its one frame.
    head, past = step(jax.lax.optimization_barrier(x[:, :1]), None)
    chunks = rearrange(x[:, 1:], "b (n chunk) h w c -> n b chunk h w c", chunk=chunk)
    _, tail = jax.lax.scan(lambda past, frames: step(frames, past)[::-1], past, chunks)
    return jnp.concatenate([head, rearrange(tail, "n b t h w c -> b (n t) h w c")], axis=1)


def encode(
    config: VAEConfig,
    params: PyTree,
    clip: Float[Array, "b t h w 3"],
    *,
    chunk: int | None = None,
    place: Place = anywhere,
) -> Float[Array, "b t2 h2 w2 z"]:
    """The normalised latent mean of clips in [-1, 1].

    `t` is 4k+1 and height and width are multiples of `config.spatial_factor`. `chunk`
    (a multiple of 4 that divides t - 1) bounds the memory to that many frames and
    changes nothing else; None runs the clip whole. `place` is put around every chunk's frames:
    a sharding constraint over h, for one, has devices share the rows of a frame. Convolutions
    then exchange rows with their neighbours, and the one attention gathers its keys and values.

    Raises:
        ValueError: a length or a size of which the latent would lose a part.
    """
    _, t, h, w, _ = clip.shape
    if (t - 1) % config.temporal_factor or h % config.spatial_factor or w % config.spatial_factor:
        raise ValueError(f"a clip of {t} frames of {w}x{h} does not divide into latents")

    def step(frames: Array, past: dict[str, Array] | None):
        stream = Stream(past)
        network = WanVAE(config)
        mean, _ = network.apply({"params": params}, place(frames), stream, method="moments")
        return mean, stream.next

    mean = _streamed(step, clip, chunk)
    return (mean - jnp.array(config.latent_mean)) / jnp.array(config.latent_std)


def decode(
    config: VAEConfig,
    params: PyTree,
    latent: Float[Array, "b t h w z"],
    *,
    chunk: int | None = None,
    place: Place = anywhere,
) -> Float[Array, "b t2 h2 w2 3"]:
    """The clip of a normalised latent, clamped to [-1, 1].

    `t` is k+1 for a clip of 4k+1 frames. `chunk` counts latent frames and must divide t - 1;
    None runs the clip whole. `place` is put around every chunk's latents and frames, as in
    `encode`.
    """
    return _decoded(config, params, latent, chunk, place, lambda frames: frames)


def decode_bytes(
    config: VAEConfig,
    params: PyTree,
    latent: Float[Array, "b t h w z"],
    *,
    chunk: int | None = None,
    place: Place = anywhere,
) -> UInt8[Array, "b t2 h2 w2 3"]:
    """What `decode` makes, as bytes: the float clip, four times their size, never exists whole."""
    return _decoded(config, params, latent, chunk, place, to_bytes)


def _decoded(
    config: VAEConfig,
    params: PyTree,
    latent: Array,
    chunk: int | None,
    place: Place,
    finish: Callable[[Array], Array],
) -> Array:
    def step(z: Array, past: dict[str, Array] | None):
        stream = Stream(past)
        network = WanVAE(config)
        frames = network.apply({"params": params}, place(z), stream, method="reconstruct")
        return finish(place(jnp.clip(frames, -1.0, 1.0))), stream.next

    z = latent * jnp.array(config.latent_std) + jnp.array(config.latent_mean)
    return _streamed(step, z, chunk)
