"""How torch and Flax store the same tensor: every transform beside its inverse."""

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import numpy as np


@dataclass(frozen=True)
class Transform:
    """A torch tensor to ours, and back to the same bits."""

    forward: Callable[[np.ndarray], np.ndarray]
    inverse: Callable[[np.ndarray], np.ndarray]


# Stored alike in both.
same = Transform(lambda x: x, lambda x: x)

# A matrix (out, in) as (in, out).
transpose = Transform(np.transpose, np.transpose)

# (out, in, t, h, w) as (t, h, w, in, out).
convolution = Transform(
    lambda x: x.transpose(2, 3, 4, 1, 0),
    lambda x: x.transpose(4, 3, 0, 1, 2),
)

# (out, in, h, w) as (1, h, w, in, out): a convolution of single frames.
image_convolution = Transform(
    lambda x: x.transpose(2, 3, 1, 0)[None],
    lambda x: x[0].transpose(3, 2, 0, 1),
)

# A 1×1 convolution (out, in, 1, 1) as a matrix (in, out).
pointwise = Transform(
    lambda x: x.transpose(2, 3, 1, 0).reshape(x.shape[1::-1]),
    lambda x: x.T[:, :, None, None],
)

# A parameter with a leading axis of one, for broadcasting over the batch.
unbatched = Transform(lambda x: x.reshape(x.shape[1:]), lambda x: x[None])


def channels(axes: int) -> Transform:
    """A vector that torch stores with `axes` axes of one behind it."""
    ones = (1,) * axes
    return Transform(lambda x: x.reshape(_leading(x, ones)), lambda x: x.reshape(-1, *ones))


def patches(*kernel: int) -> Transform:
    """A convolution whose stride is its kernel, as a matrix from flattened patches (t h w in)."""

    def forward(x: np.ndarray) -> np.ndarray:
        outputs, inputs = _leading(x, kernel)
        return np.moveaxis(x, (1, 0), (-2, -1)).reshape(prod(kernel) * inputs, outputs)

    def inverse(x: np.ndarray) -> np.ndarray:
        return np.moveaxis(x.reshape(*kernel, -1, x.shape[1]), (-2, -1), (1, 0))

    return Transform(forward, inverse)


def _leading(x: np.ndarray, trailing: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in front of `trailing`; ValueError if x does not end so."""
    size = x.ndim - len(trailing)
    if x.shape[size:] != trailing:
        raise ValueError(f"expected a shape that ends in {trailing}, found {x.shape}")
    return x.shape[:size]


# What a layer of each kind stores: (source suffix, target leaf, transform).
Kind = tuple[tuple[str, str, Transform], ...]

LINEAR: Kind = ((".weight", "/kernel", transpose), (".bias", "/bias", same))
MATRIX: Kind = ((".weight", "/kernel", transpose),)
CONV: Kind = ((".weight", "/kernel", convolution), (".bias", "/bias", same))
IMAGE_CONV: Kind = ((".weight", "/kernel", image_convolution), (".bias", "/bias", same))
POINTWISE: Kind = ((".weight", "/kernel", pointwise), (".bias", "/bias", same))
NORM: Kind = ((".weight", "/scale", same), (".bias", "/bias", same))
SCALE: Kind = ((".weight", "/scale", same),)
GAMMA: Kind = ((".gamma", "/gamma", channels(3)),)
IMAGE_GAMMA: Kind = ((".gamma", "/gamma", channels(2)),)
EMBEDDING: Kind = ((".weight", "/embedding", same),)
TENSOR: Kind = ((".weight", "", same),)
MODULATION: Kind = (("", "", unbatched),)
