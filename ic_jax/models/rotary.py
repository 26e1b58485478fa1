"""Rotary position embedding (arXiv 2104.09864) of tokens in space and time.

A pair of adjacent channels turns by the token's angle. What differs is how a pair's other half is
reached, for that may copy all tokens.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .precision import highest

_THETA = 10_000.0

RotaryTables = tuple[Float[Array, "l half"], Float[Array, "l half"]]


def rotary_tables(grid: tuple[int, ...], head_dim: int) -> RotaryTables:
    """Cosines and sines for tokens at (frame, row, column) of `grid`, one per channel pair.

    Rows and columns get 2 (head_dim // 6) channels each, frames the rest, and each axis has its
    own ladder of frequencies. Angles are made in float64 on the host.
    """
    spatial = 2 * (head_dim // 6)
    cosines, sines = [], []
    for axis, (size, width) in enumerate(zip(grid, (head_dim - 2 * spatial, spatial, spatial))):
        frequency = _THETA ** (-np.arange(0, width, 2) / width)
        shape = [1, 1, 1, width // 2]
        shape[axis] = size
        angle = np.outer(np.arange(size), frequency).reshape(shape)
        for parts, function in ((cosines, np.cos), (sines, np.sin)):
            table = function(angle).astype(np.float32)
            parts.append(jnp.broadcast_to(table, (*grid, width // 2)))
    cos, sin = (jnp.concatenate(parts, -1).reshape(-1, head_dim // 2) for parts in (cosines, sines))
    return cos, sin


def rotate(x: Float[Array, "b l h d"], tables: RotaryTables) -> Float[Array, "b l h d"]:
    """Turn every pair (a, b) of adjacent channels by its angle, in float32."""
    ways = {"cpu": rotate_pairs, "tpu": rotate_by_product}
    return jax.lax.platform_dependent(x, *tables, **ways, default=rotate_by_swapping)


def rotate_pairs(
    x: Float[Array, "b l h d"], cos: Float[Array, "l half"], sin: Float[Array, "l half"]
) -> Float[Array, "b l h d"]:
    """(a cos - b sin, a sin + b cos), taken apart and put together again."""
    cos, sin = cos[:, None, :], sin[:, None, :]
    a, b = jnp.moveaxis(x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2), -1, 0)
    turned = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return turned.reshape(x.shape).astype(x.dtype)


def rotate_by_swapping(
    x: Float[Array, "b l h d"], cos: Float[Array, "l half"], sin: Float[Array, "l half"]
) -> Float[Array, "b l h d"]:
    """The same, (a, b) cos + (b, a) (-sin, sin): a GPU makes it in one pass, and pairs in three."""
    channels = x.astype(jnp.float32)
    swapped = jnp.flip(channels.reshape(*x.shape[:-1], -1, 2), axis=-1).reshape(x.shape)
    cos, sin = (jnp.repeat(table, 2, axis=-1)[:, None, :] for table in (cos, sin))
    sign = np.tile(np.float32([-1, 1]), x.shape[-1] // 2)
    return (channels * cos + swapped * (sign * sin)).astype(x.dtype)


def rotate_by_product(
    x: Float[Array, "b l h d"], cos: Float[Array, "l half"], sin: Float[Array, "l half"]
) -> Float[Array, "b l h d"]:
    """The same, but a matrix of ±1 makes (-b, a) of each pair (a, b), which is exact.

    Channels lie in a TPU's lanes. Pairs in an axis of two come apart in six copies of all tokens.
    """
    quarter_turn = np.kron(np.eye(x.shape[-1] // 2), [[0, 1], [-1, 0]])
    turned = jnp.einsum(
        "blhd,de->blhe",
        x,
        quarter_turn.astype(x.dtype),
        precision=highest(x.dtype),
        preferred_element_type=jnp.float32,
    )
    cos, sin = (jnp.repeat(table, 2, axis=-1)[:, None, :] for table in (cos, sin))
    return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)
