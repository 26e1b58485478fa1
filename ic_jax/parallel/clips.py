"""Many clips on many devices: the same function, one clip per device or per part of a mesh."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.stages import Lowered
from jaxtyping import PyTree

from .mesh import CLIPS


@dataclass(frozen=True)
class OverClips:
    """Placed weights, and arguments with a leading clip axis, to results with one, on the host.

    Any number n ≥ 1 of clips runs in rounds of as many as there are places; the last round is
    filled up with its own last clip, whose results are dropped.
    """

    mapped: Callable[..., PyTree]
    """One round, jitted."""
    sharding: NamedSharding
    """Of what belongs to each clip."""

    def __call__(self, weights: PyTree, clips: tuple[Any, ...]) -> PyTree:
        count, width = jax.tree.leaves(clips)[0].shape[0], self._width
        rounds = []
        for first in range(0, count, width):
            at = np.minimum(np.arange(first, first + width), count - 1)
            some = jax.device_put(jax.tree.map(lambda leaf: leaf[at], clips), self.sharding)
            # Off the devices at once: there is room for the next round then.
            rounds.append(jax.device_get(self.mapped(weights, some)))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts), *rounds)
        return jax.tree.map(lambda leaf: leaf[:count], joined)

    def lower(self, weights: PyTree, clip: tuple[Any, ...]) -> Lowered:
        """A round, ready to be compiled, from the shapes of placed weights and of one clip."""
        some = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(
                (self._width, *leaf.shape), leaf.dtype, sharding=self.sharding
            ),
            clip,
        )
        return self.mapped.lower(weights, some)

    @property
    def _width(self) -> int:
        return self.sharding.mesh.shape[CLIPS]


def on_every(devices: Sequence[jax.Device]) -> NamedSharding:
    """A copy on each of these devices."""
    return NamedSharding(_in_line(devices), PartitionSpec())


def replicate(weights: PyTree, devices: Sequence[jax.Device] | None = None) -> PyTree:
    """A copy of the weights on every device, made once.

    Without it `pmap` would send them again at every call. `load_model` with `on_every` as its
    shardings comes to the same, and no device ever holds a second copy.
    """
    return jax.device_put(weights, on_every(devices or jax.local_devices()))


def over_clips(
    function: Callable[..., PyTree], devices: Sequence[jax.Device] | None = None
) -> OverClips:
    """`function(weights, *clip)` over a leading clip axis, on all of this host's devices at once.

    The result takes weights from `replicate` and a tuple of clip arguments, and runs a clip on
    each device at a time. A clip's result depends on that clip alone: not on its neighbours,
    their number, or the device it ran on.
    """
    devices = devices or jax.local_devices()
    mapped = jax.pmap(
        lambda weights, clip: function(weights, *clip), in_axes=(None, 0), devices=devices
    )
    return OverClips(mapped, NamedSharding(_in_line(devices), PartitionSpec(CLIPS)))


def over_mesh(function: Callable[..., PyTree], mesh: Mesh) -> OverClips:
    """`over_clips` for a mesh of this host's devices, several of which each clip has.

    It takes weights from `place`; `function` has the layout of the mesh (`sequence_layout`).
    """
    mapped = jax.jit(
        jax.vmap(lambda weights, clip: function(weights, *clip), (None, 0), spmd_axis_name=CLIPS)
    )
    return OverClips(mapped, NamedSharding(mesh, PartitionSpec(CLIPS)))


def _in_line(devices: Sequence[jax.Device]) -> Mesh:
    return Mesh(np.array(devices), (CLIPS,))
