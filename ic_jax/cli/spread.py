"""Who works on what: one clip over several devices, or clips side by side.

Both are cut up no further than memory asks for.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from jaxtyping import PyTree

from ..budget import CERTAIN, Memory, device_memory, doubt, need, weight_rows
from ..model import Weights, abstract_model
from ..models.layout import Layout
from ..models.variants import Variant
from ..parallel import (
    MeshShape,
    OverClips,
    choose,
    device_mesh,
    first_devices,
    on_every,
    over_clips,
    over_mesh,
    per_device,
    sequence_layout,
    weight_shardings,
)
from .console import note


class Places(NamedTuple):
    """How clips run side by side."""

    count: int
    """Of clips at a time."""
    devices_each: int
    layout: Layout
    """Of the transformer, over the devices of a clip."""
    shardings: Weights
    """For loading the weights."""
    over: Callable[[Callable[..., PyTree]], OverClips]
    """Makes a function of one clip one of many."""


def spread(
    folder: Path, sizes: Variant, prompts: int, count: int, reuse: bool = False
) -> tuple[Layout, Weights | None]:
    """How the transformer of a model runs on so many devices, and where each weight goes.

    `prompts` and `reuse` are those of a run, as its memory is counted.

    Raises:
        InputError: more devices than there are, or not enough memory on them.
    """
    devices = first_devices(count)
    if count == 1:
        return Layout(), None
    return _on_mesh(folder, sizes, _shape(sizes, {prompts}, reuse, devices), devices)


def places(
    folder: Path,
    sizes: Variant,
    prompts: set[int],
    count: int | None,
    clips: int,
    reuse: bool = False,
) -> Places:
    """How so many clips, asked with one prompt or two each, run on `count` devices or on all.

    `pmap` where a device can have a clip and all weights; else a mesh of several for each.

    Raises:
        InputError: more devices than there are, or not enough memory on them.
    """
    devices = first_devices(count)
    shape = _shape(sizes, prompts, reuse, devices, clips) if len(devices) > 1 else MeshShape()
    each = shape.devices // shape.clips
    if each == shape.weights == 1:
        shardings = Weights(**dict.fromkeys(Weights._fields, on_every(devices)))
        return Places(shape.clips, each, Layout(), shardings, partial(over_clips, devices=devices))
    layout, shardings = _on_mesh(folder, sizes, shape, devices)
    mesh = device_mesh(shape, sizes.dit.num_heads, devices)
    return Places(shape.clips, each, layout, shardings, partial(over_mesh, mesh=mesh))


def _shape(
    sizes: Variant, prompts: set[int], reuse: bool, devices: Sequence[jax.Device], clips: int = 1
) -> MeshShape:
    """Says what may not fit, and refuses what cannot."""
    room, count = _memory_of_each(devices), len(devices)
    needed = need(sizes, max(prompts), reuse)
    given = {"clips": clips, "prompts": min(prompts), "width": weight_rows(sizes)}
    # Not what is free just now: a run that is taken up again has to find the mesh it began on.
    shape = choose(needed, count, room.limit, sizes.dit.num_heads, **given, certain=CERTAIN)
    each = f"each of {count} devices"
    if warning := doubt("the model", sizes, per_device(needed, shape), room.free, each):
        note(warning)
    return shape


def _memory_of_each(devices: Sequence[jax.Device]) -> Memory:
    known = [memory for memory in map(device_memory, devices) if memory is not None]
    limit, free = map(min, zip(Memory(2**63, 2**63), *known))
    # The devices that a CPU pretends to have share the memory of the host.
    shared = len(devices) if devices[0].platform == "cpu" else 1
    return Memory(limit // shared, free // shared)


def _on_mesh(
    folder: Path, sizes: Variant, shape: MeshShape, devices: Sequence[jax.Device]
) -> tuple[Layout, Weights]:
    mesh = device_mesh(shape, sizes.dit.num_heads, devices)
    weights = abstract_model(folder).weights
    return sequence_layout(mesh), weight_shardings(weights, mesh, shape.weights)
