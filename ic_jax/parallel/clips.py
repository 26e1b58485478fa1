"""Many clips on many devices: the same function, one clip per device or per part of a mesh."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .mesh import CLIPS

OverClips = Callable[[PyTree, tuple[Any, ...]], PyTree]
"""Placed weights, and arguments with a leading clip axis, to results with one, on the host."""


def replicate(weights: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """A copy of the weights on every device, made once.

    Without it `pmap` would send them again at every call.
    """
    devices = devices or jax.local_devices()
    sharding = _one_per_device(devices)

    def place(leaf):
        # Shard by shard: the stacked array would need all copies on one device first.
        copies = [jax.device_put(leaf[None], device) for device in devices]
        shape = (len(devices), *leaf.shape)
        return jax.make_array_from_single_device_arrays(shape, sharding, copies)

    return jax.tree.map(place, weights)


def over_clips(
    function: Callable[..., PyTree], devices: Sequence[jax.Device] | None = None
) -> OverClips:
    """`function(weights, *clip)` over a leading clip axis, on all of this host's devices at once.

    The result takes weights from `replicate` and a tuple of clip arguments whose leaves
    have any number n ≥ 1 of clips. Clips run in rounds of one per device; the last round
    is filled up with its own last clip, whose results are dropped. A clip's result depends
    on that clip alone: not on its neighbours, their number, or the device it ran on.
    """
    devices = devices or jax.local_devices()
    mapped = jax.pmap(lambda weights, clip: function(weights, *clip), devices=devices)
    return _in_rounds(mapped, _one_per_device(devices))


def over_mesh(function: Callable[..., PyTree], mesh: Mesh) -> OverClips:
    """`over_clips` for a mesh, each of whose clips has several devices.

    It takes weights from `place`; `function` has the layout of the mesh (`sequence_layout`).
    """
    mapped = jax.jit(
        jax.vmap(lambda weights, clip: function(weights, *clip), (None, 0), spmd_axis_name=CLIPS)
    )
    return _in_rounds(mapped, NamedSharding(mesh, PartitionSpec(CLIPS)))


def _one_per_device(devices: Sequence[jax.Device]) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (CLIPS,)), PartitionSpec(CLIPS))


def _in_rounds(mapped: OverClips, sharding: NamedSharding) -> OverClips:
    """`mapped` over any number of clips, so many at a time as `sharding` has places for."""
    width = sharding.mesh.shape[CLIPS]

    def run(weights: PyTree, clips: tuple[Any, ...]) -> PyTree:
        count = jax.tree.leaves(clips)[0].shape[0]
        rounds = []
        for first in range(0, count, width):
            at = np.minimum(np.arange(first, first + width), count - 1)
            some = jax.device_put(jax.tree.map(lambda leaf: leaf[at], clips), sharding)
            # Off the devices at once: there is room for the next round then.
            rounds.append(jax.device_get(mapped(weights, some)))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rounds)
        return jax.tree.map(lambda leaf: leaf[:count], joined)

    return run
