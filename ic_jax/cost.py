"""What a model costs, counted on paper: parameters, FLOPs and memory.

XLA counts the body of a loop once however often it runs, and a model has to be judged before
its weights are at hand. Each network is listed here layer by layer, and one list serves all
three counts: the parameters, which can be checked exactly, vouch for the FLOPs.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from .models.clip_vision import CLIPVisionConfig
from .models.umt5 import UMT5Config
from .models.wan_dit import IMAGE_TOKENS, DiTConfig
from .models.wan_vae import VAEConfig

Grid = tuple[int, int, int]
"""Frames, rows and columns."""

FLOAT32 = 4


class Layer(NamedTuple):
    """One layer, applied to one clip. FLOPs are those of matrix products, 2 per multiply-add."""

    parameters: int
    flops: int = 0
    values: int = 0
    """Numbers that it reads and writes, weights aside."""
    kept: int = 0
    """Numbers of its input that the next chunk of frames needs again."""


def parameters(layers: Sequence[Layer]) -> int:
    """How many numbers a network stores."""
    return sum(layer.parameters for layer in layers)


def flops(layers: Sequence[Layer]) -> int:
    """FLOPs of one pass. Norms, rotations and activations are left out."""
    return sum(layer.flops for layer in layers)


def largest(layers: Sequence[Layer]) -> int:
    """Numbers that the widest layer reads and writes."""
    return max(layer.values for layer in layers)


# Layers ---------------------------------------------------------------------------


def _stored(count: int) -> Layer:
    """Gains, modulations and tables: parameters that enter no matrix product."""
    return Layer(count)


def _dense(inputs: int, outputs: int, rows: int, bias: bool = True) -> Layer:
    return Layer((inputs + bias) * outputs, 2 * rows * inputs * outputs, rows * (inputs + outputs))


def _conv(kernel: Grid, inputs: int, outputs: int, grid: Grid) -> Layer:
    """`grid` is that of the result. Zeros at the border are multiplied like anything else."""
    frames, *image = grid
    return _dense(prod(kernel) * inputs, outputs, prod(grid))._replace(
        values=prod(grid) * (inputs + outputs), kept=(kernel[0] - 1) * prod(image) * inputs
    )


def _attention(queries: int, keys: int, width: int) -> Layer:
    return Layer(0, 4 * queries * keys * width, 2 * (queries + keys) * width)


# The transformer ------------------------------------------------------------------


def dit_layers(config: DiTConfig, grid: Grid) -> list[Layer]:
    """A forward pass over one latent of `grid`, (t, h, w), whose keys are made anew each call."""
    tokens = token_count(config, grid)
    text, dim, patch = config.text_len, config.dim, prod(config.patch)
    return [
        _dense(patch * config.in_channels, dim, tokens),
        _dense(config.freq_dim, dim, 1),
        _dense(dim, dim, 1),
        _dense(dim, 6 * dim, 1),
        _dense(config.text_dim, dim, text),
        _dense(dim, dim, text),
        *(_image_embedding(config.image_dim, dim) if config.image_dim is not None else ()),
        *config.num_layers * list(_dit_block(config, tokens)),
        _stored(2 * dim),
        _dense(dim, patch * config.out_channels, tokens),
    ]


def _image_embedding(image_dim: int, dim: int) -> Iterator[Layer]:
    yield _stored(2 * image_dim)
    yield _dense(image_dim, image_dim, IMAGE_TOKENS)
    yield _dense(image_dim, dim, IMAGE_TOKENS)
    yield _stored(2 * dim)


def _dit_block(config: DiTConfig, tokens: int) -> Iterator[Layer]:
    dim = config.dim
    yield _stored(6 * dim)  # modulation
    yield from 4 * [_dense(dim, dim, tokens)]
    yield _stored(2 * dim)  # norms of queries and keys
    yield _attention(tokens, tokens, dim)
    yield _stored(2 * dim)  # the norm before cross-attention
    yield from 2 * [_dense(dim, dim, tokens)]
    yield _stored(dim)  # the norm of queries
    contexts = [config.text_len] + ([IMAGE_TOKENS] if config.image_dim is not None else [])
    for keys in contexts:
        yield from 2 * [_dense(dim, dim, keys)]
        yield _stored(dim)
        yield _attention(tokens, keys, dim)
    yield _dense(dim, config.ffn_dim, tokens)
    yield _dense(config.ffn_dim, dim, tokens)


def token_count(config: DiTConfig, grid: Grid) -> int:
    """How many patches a latent of `grid`, (t, h, w), is cut into."""
    return prod(n // p for n, p in zip(grid, config.patch, strict=True))


def dit_flops(config: DiTConfig, grid: Grid) -> int:
    """FLOPs of the network for one clip and one prompt; guidance runs it for two."""
    return flops(dit_layers(config, grid))


def dit_memory(config: DiTConfig, grid: Grid, batch: int, itemsize: int) -> int:
    """Estimate of the bytes of the activations of one call, whose `itemsize` is given.

    The float32 residual stream and its normalised copy stay while the widest layer runs.
    Attention is taken to be fused; in chunks of queries it needs up to 192 MiB more.
    """
    stream = 2 * FLOAT32 * token_count(config, grid) * config.dim
    return batch * (stream + itemsize * largest(dit_layers(config, grid)))


def reuse_memory(config: DiTConfig, grid: Grid, batch: int) -> tuple[int, int]:
    """Bytes that `--reuse` adds: to the sampler's state, exactly, and to its work, an estimate.

    The state holds what the blocks added to the tokens, in float32. While they run there are the
    tokens that they began with as well, and what they say now; at times XLA holds a third copy.
    """
    said = batch * FLOAT32 * token_count(config, grid) * config.dim
    return said, 2 * said


def block_memory(config: DiTConfig, itemsize: int) -> int:
    """Bytes of one block's weights, which a loop over stacked blocks copies out of their stack."""
    return itemsize * parameters(list(_dit_block(config, 0)))


def prepared_memory(config: DiTConfig, batch: int, itemsize: int) -> int:
    """Bytes of the keys and values of text and image, which are made once for all steps."""
    rows = config.text_len + (0 if config.image_dim is None else IMAGE_TOKENS)
    return 2 * config.num_layers * batch * rows * config.dim * itemsize


# The autoencoder ------------------------------------------------------------------


def vae_layers(config: VAEConfig, clip: Grid) -> tuple[list[Layer], list[Layer]]:
    """Encoder and decoder over a `clip` of (frames, height, width), or over one chunk of it."""
    levels = _levels(config, clip)
    return list(_encoder(config, levels)), list(_decoder(config, levels))


def vae_memory(layers: Sequence[Layer], chunked: bool) -> int:
    """Estimate of the bytes that one half needs for what its `layers` were listed for, in float32.

    With the block's input, the normalised copy and that with its past, XLA holds 3 to 4 times what
    a causal convolution reads and writes. Between chunks every causal layer keeps its last frames.
    """
    working = max((4 if layer.kept else 2) * layer.values for layer in layers)
    kept = sum(layer.kept for layer in layers) if chunked else 0
    return FLOAT32 * (working + kept)


def _levels(config: VAEConfig, clip: Grid) -> list[Grid]:
    """From pixels to latents. An odd length keeps its first frame; a later chunk has none."""
    t, h, w = clip
    levels = [(t, h // config.patch, w // config.patch)]
    for halves_time in config.temporal:
        t, h, w = levels[-1]
        levels.append((-(-t // 2) if halves_time else t, h // 2, w // 2))
    return levels


def _encoder(config: VAEConfig, levels: list[Grid]) -> Iterator[Layer]:
    widths = [config.base * m for m in config.multipliers]
    yield _conv((3, 3, 3), 3 * config.patch**2, config.base, levels[0])
    before = config.base
    for s, width in enumerate(widths):
        for _ in range(config.blocks):
            yield from _residual(before, width, levels[s])
            before = width
        if s < len(config.temporal):
            t, h, w = levels[s + 1]
            yield _conv((1, 3, 3), width, width, (levels[s][0], h, w))
            if config.temporal[s]:
                yield _conv((3, 1, 1), width, width, (levels[s][0] // 2, h, w))
    yield from _middle(widths[-1], levels[-1])
    yield _stored(widths[-1])
    moments = 2 * config.latent_channels
    yield _conv((3, 3, 3), widths[-1], moments, levels[-1])
    yield _conv((1, 1, 1), moments, moments, levels[-1])


def _decoder(config: VAEConfig, levels: list[Grid]) -> Iterator[Layer]:
    widths = [config.base * m for m in reversed(config.multipliers)]
    levels, temporal = levels[::-1], config.temporal[::-1]
    channels = config.latent_channels
    yield _conv((1, 1, 1), channels, channels, levels[0])
    yield _conv((3, 3, 3), channels, widths[0], levels[0])
    yield from _middle(widths[0], levels[0])
    before = widths[0]
    for s, width in enumerate(widths):
        for _ in range(config.blocks + 1):
            yield from _residual(before, width, levels[s])
            before = width
        if s < len(temporal):
            _, h, w = levels[s]
            if temporal[s]:
                yield _conv((3, 1, 1), width, 2 * width, (levels[s + 1][0] // 2, h, w))
            before = width // 2
            yield _conv((1, 3, 3), width, before, levels[s + 1])
    yield _stored(widths[-1])
    yield _conv((3, 3, 3), widths[-1], 3 * config.patch**2, levels[-1])


def _residual(before: int, width: int, grid: Grid) -> Iterator[Layer]:
    yield _stored(before)
    yield _conv((3, 3, 3), before, width, grid)
    yield _stored(width)
    yield _conv((3, 3, 3), width, width, grid)
    if before != width:
        yield _conv((1, 1, 1), before, width, grid)


def _middle(width: int, grid: Grid) -> Iterator[Layer]:
    frames, *image = grid
    positions = prod(image)
    yield from 2 * list(_residual(width, width, grid))
    yield _stored(width)
    yield _dense(width, 3 * width, prod(grid))
    yield from frames * [_attention(positions, positions, width)]
    yield _dense(width, width, prod(grid))


# Encoders of text and image -------------------------------------------------------


def umt5_layers(config: UMT5Config, length: int) -> list[Layer]:
    """The encoder over one prompt, padded to `length` tokens."""
    return [
        _stored((config.vocab + 1) * config.dim),  # with the last norm
        *config.layers * list(_umt5_block(config, length)),
    ]


def _umt5_block(config: UMT5Config, length: int) -> Iterator[Layer]:
    inner = config.heads * config.head_dim
    yield _stored(2 * config.dim + config.buckets * config.heads)
    yield from 3 * [_dense(config.dim, inner, length, bias=False)]
    yield _attention(length, length, inner)
    yield _dense(inner, config.dim, length, bias=False)
    yield from 2 * [_dense(config.dim, config.ffn_dim, length, bias=False)]
    yield _dense(config.ffn_dim, config.dim, length, bias=False)


def clip_layers(config: CLIPVisionConfig) -> list[Layer]:
    """The vision tower over one image, as far as Wan runs it."""
    dim, tokens = config.dim, config.tokens
    return [
        _dense(3 * config.patch**2, dim, tokens - 1, bias=False),
        _stored((1 + tokens + 2) * dim),  # class, positions and the first norm
        *config.layers * list(_clip_block(config)),
    ]


def _clip_block(config: CLIPVisionConfig) -> Iterator[Layer]:
    dim, tokens = config.dim, config.tokens
    yield _stored(4 * dim)  # two norms
    yield from 4 * [_dense(dim, dim, tokens)]
    yield _attention(tokens, tokens, dim)
    yield _dense(dim, config.ffn_dim, tokens)
    yield _dense(config.ffn_dim, dim, tokens)
