"""What devices send each other, counted on paper: bytes that one device receives.

Every device of a layout receives the same, and sends as much. n devices that exchange an array
of B bytes by all-to-all receive (n - 1) / n of it; those that gather B bytes, of which each holds
its part, as much; a hop of a ring brings a whole array.
"""

from math import prod
from typing import NamedTuple

from ic_jax.models.wan_dit import DiTConfig

from .mesh import RING, ULYSSES, MeshShape, axis_sizes

FLOAT32 = 4


class Traffic(NamedTuple):
    """Bytes that one device receives, by collective."""

    all_to_all: float = 0.0
    collective_permute: float = 0.0
    all_gather: float = 0.0

    def times(self, count: int) -> "Traffic":
        """The same, so many times over."""
        return Traffic(*(count * received for received in self))

    def plus(self, other: "Traffic") -> "Traffic":
        """Both."""
        return Traffic(*(a + b for a, b in zip(self, other)))


def attention_traffic(
    shape: MeshShape, config: DiTConfig, tokens: int, itemsize: int, prompts: int = 2
) -> Traffic:
    """One self-attention of one clip. `itemsize` is the bytes of a query's number.

    Queries, keys, values and results go by Ulysses; keys and values alone go round the ring, or on
    CUDA, as many bytes, by a gather.
    """
    sizes = axis_sizes(shape, config.num_heads)
    ring, ulysses = sizes[RING], sizes[ULYSSES]
    # One of these arrays on one device, whose tokens are padded to divide.
    array = _batch(shape, prompts) * -(-tokens // shape.sequence) * config.dim * itemsize
    return Traffic(
        all_to_all=4 * array * (ulysses - 1) / ulysses,
        collective_permute=2.0 * array * (ring - 1),
    )


def block_traffic(shape: MeshShape, config: DiTConfig, itemsize: int) -> Traffic:
    """The matrices that one block needs in every step: those of the text are used once a clip."""
    matrices = 6 * config.dim**2 + 2 * config.dim * config.ffn_dim
    return Traffic(all_gather=matrices * itemsize * (shape.weights - 1) / shape.weights)


def result_traffic(shape: MeshShape, config: DiTConfig, tokens: int, prompts: int = 2) -> Traffic:
    """The float32 velocity of all tokens and prompts: every device samples the whole latent."""
    padded = -(-tokens // shape.sequence) * shape.sequence
    velocity = prompts * padded * prod(config.patch) * config.out_channels * FLOAT32
    among = shape.sequence * prompts // _batch(shape, prompts)
    return Traffic(all_gather=velocity * (among - 1) / among)


def step_traffic(
    shape: MeshShape, config: DiTConfig, tokens: int, itemsize: int, prompts: int = 2
) -> Traffic:
    """One call of the transformer, guided by as many `prompts`, for one clip.

    Left out are the embeddings and the head: a few matrices more, once.
    """
    block = attention_traffic(shape, config, tokens, itemsize, prompts)
    block = block.plus(block_traffic(shape, config, itemsize))
    return block.times(config.num_layers).plus(result_traffic(shape, config, tokens, prompts))


def _batch(shape: MeshShape, prompts: int) -> int:
    """Prompts on one device."""
    return prompts // shape.prompts if prompts % shape.prompts == 0 else prompts
