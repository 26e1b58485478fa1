"""How many devices share what: the shape of a mesh, and the mesh."""

from collections.abc import Mapping, Sequence
from itertools import chain, combinations
from math import gcd, prod
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, PartitionSpec

from ic_jax.errors import InputError

CLIPS, PROMPTS, RING, ULYSSES = AXES = "clips", "prompts", "ring", "ulysses"

TOKENS = RING, ULYSSES
"""The axes that one clip's tokens are spread over."""

# Rows of the autoencoder's convolutions.
_WINDOW = 3


class MeshShape(NamedTuple):
    """What is shared by how many devices, of which there are clips × prompts × sequence."""

    clips: int = 1
    """Clips that run side by side."""
    prompts: int = 1
    """2 gives the prompt and the negative prompt devices of their own."""
    sequence: int = 1
    """Devices among which the tokens of a clip are divided."""
    weights: int = 1
    """Devices that share one copy of the transformer; see `weight_axes`."""

    @property
    def devices(self) -> int:
        """How many devices it takes."""
        return self.clips * self.prompts * self.sequence


def axis_sizes(shape: MeshShape, heads: int) -> dict[str, int]:
    """The size of each of `AXES`.

    As much of the sequence as divides the heads is left to Ulysses, whose traffic shrinks as
    devices are added; the rest is a ring, whose traffic does not.
    """
    ulysses = gcd(shape.sequence, heads)
    return dict(zip(AXES, (shape.clips, shape.prompts, shape.sequence // ulysses, ulysses)))


def weight_axes(sizes: Mapping[str, int]) -> dict[int, tuple[str, ...]]:
    """Into how many parts the weights can be cut, in order, and along which axes of these sizes.

    Inner axes before outer ones: the parts of a copy are close to each other then.
    """
    inner = [axis for axis in reversed(AXES) if sizes[axis] > 1]
    found: dict[int, tuple[str, ...]] = {}
    for some in chain.from_iterable(combinations(inner, n) for n in range(len(inner) + 1)):
        found.setdefault(prod(sizes[axis] for axis in some), tuple(reversed(some)))
    return dict(sorted(found.items()))


def shares_rows(devices: int, rows: int, latent_rows: int) -> bool:
    """Whether devices can share so many rows of frames or latents, of so many rows of latents.

    JAX takes no constraint that does not divide. And where a convolution makes fewer rows than
    its window has, or than there are devices, XLA (of jaxlib 0.10) can cut the window instead of
    the rows, and add up what is there several times: the result is multiplied by a whole number.
    The autoencoder's convolutions make no fewer rows than the latents have.
    """
    return rows % devices == 0 and latent_rows >= max(devices, _WINDOW)


def kept_spec(sizes: Mapping[str, int], shape: tuple[int, ...]) -> PartitionSpec:
    """How an array of (prompts, tokens, channels) is cut up from one program to the next.

    Inside of a program XLA pads tokens that do not divide. Between programs the parts have to be
    of one size: there it is the channels then that are cut, or if need be, nothing.
    """
    prompts, *others = shape
    # XLA leaves axes of one device out of what it says of its results, and so do we: or the
    # program that takes a result were not the one that was compiled ahead of it.
    apart, among = (
        tuple(axis for axis in axes if sizes[axis] > 1) for axes in ((PROMPTS,), TOKENS)
    )
    devices = prod(sizes[axis] for axis in among)
    cut = next((n for n, size in enumerate(others) if size % devices == 0), None)
    return PartitionSpec(
        apart or None if prompts % sizes[PROMPTS] == 0 else None,
        *(among or None if n == cut else None for n in range(len(others))),
    )


def check(shape: MeshShape, heads: int, available: int) -> None:
    """Raises InputError for a shape that `available` devices and so many heads cannot have."""
    for name, size in shape._asdict().items():
        if size < 1:
            raise InputError(f"layout: {name} is {size}; give 1 or more")
    if shape.prompts > 2:
        raise InputError(f"layout: prompts is {shape.prompts}; a clip has two, give 1 or 2")
    if shape.devices > available:
        product = f"clips {shape.clips} x prompts {shape.prompts} x sequence {shape.sequence}"
        raise InputError(
            f"layout: {product} takes {shape.devices} devices, and there are {available}; "
            "make one of them smaller"
        )
    possible = weight_axes(axis_sizes(shape, heads))
    if shape.weights not in possible:
        known = ", ".join(map(str, possible))
        raise InputError(
            f"layout: this mesh cannot cut the weights into {shape.weights}; give one of {known}"
        )


def device_mesh(shape: MeshShape, heads: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `AXES` for a transformer of so many heads, over the first of `devices`.

    None takes all devices, those of other hosts among them.

    Raises:
        InputError: more devices than there are, or weights that do not divide so.
    """
    devices = jax.devices() if devices is None else devices
    check(shape, heads, len(devices))
    sizes = axis_sizes(shape, heads)
    # Automatic axes: the model is written for one device, and XLA finds out what moves where.
    kinds = (AxisType.Auto,) * len(AXES)
    sides, devices = tuple(sizes.values()), list(devices[: shape.devices])
    try:
        return jax.make_mesh(sides, AXES, kinds, devices=devices)
    except (AssertionError, NotImplementedError, ValueError):
        # Some of a TPU's chips that are no block of its grid, sides that the grid's cannot be cut
        # into, or several slices: in the order of their numbers, neighbours come first as well.
        return Mesh(np.array(devices).reshape(sides), AXES, axis_types=kinds)


def first_devices(count: int | None = None) -> list[jax.Device]:
    """So many of this host's devices, or all of them.

    Raises:
        InputError: fewer than one, or more than there are.
    """
    devices = jax.local_devices()
    if count is not None and not 1 <= count <= len(devices):
        raise InputError(f"--devices is {count}; give a number from 1 to {len(devices)}")
    return devices[:count]
