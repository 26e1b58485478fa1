"""Many clips on many devices: the same function, one clip per device at a time."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def replicate(weights: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """A copy of the weights on every device, made once.

    Without it `pmap` would send them again at every call.
    """
    devices = devices or jax.local_devices()
    sharding = NamedSharding(Mesh(np.array(devices), ("clips",)), PartitionSpec("clips"))

    def place(leaf):
        # Shard by shard: the stacked array would need all copies on one device first.
        copies = [jax.device_put(leaf[None], device) for device in devices]
        shape = (len(devices), *leaf.shape)
        return jax.make_array_from_single_device_arrays(shape, sharding, copies)

    return jax.tree.map(place, weights)


def over_clips(
    function: Callable[..., PyTree], devices: Sequence[jax.Device] | None = None
) -> Callable[[PyTree, PyTree], PyTree]:
    """`function(weights, *clip)` over a leading clip axis, on all devices at once.

    The result takes weights from `replicate` and a tuple of clip arguments whose leaves
    have any number n ≥ 1 of clips. Clips run in rounds of one per device; the last round
    is filled up with its own last clip, whose results are dropped. A clip's result depends
    on that clip alone: not on its neighbours, their number, or the device it ran on.
    """
    devices = devices or jax.local_devices()
    mapped = jax.pmap(lambda weights, clip: function(weights, *clip), devices=devices)

    def run(weights: PyTree, clips: tuple[Any, ...]) -> PyTree:
        count, width = jax.tree.leaves(clips)[0].shape[0], len(devices)
        rounds = []
        for first in range(0, count, width):
            at = np.minimum(np.arange(first, first + width), count - 1)
            done = mapped(weights, jax.tree.map(lambda leaf: leaf[at], clips))
            rounds.append(jax.device_get(done))  # room on the devices for the next round
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rounds)
        return jax.tree.map(lambda leaf: leaf[:count], joined)

    return run
