"""`--devices`: one clip over several devices, cut up no further than their memory asks for."""

from math import gcd
from pathlib import Path

from ..budget import device_memory, need
from ..model import Weights, abstract_model
from ..models.layout import Layout
from ..models.variants import Variant
from ..parallel import choose, device_mesh, first_devices, sequence_layout, weight_shardings


def spread(folder: Path, sizes: Variant, prompts: int, count: int) -> tuple[Layout, Weights | None]:
    """How the transformer of a model runs on so many devices, and where each weight goes.

    Raises:
        InputError: more devices than there are, or not enough memory on them.
    """
    devices = first_devices(count)
    if count == 1:
        return Layout(), None
    # Not what is free just now: a run that is taken up again has to find the mesh it began on.
    known = [memory.limit for memory in map(device_memory, devices) if memory is not None]
    # The devices that a CPU pretends to have share the memory of the host.
    shared = count if devices[0].platform == "cpu" else 1
    room = min(known, default=2**63) // shared
    rows = gcd(sizes.dit.dim, sizes.dit.ffn_dim)
    given = {"prompts": prompts, "width": rows}
    shape = choose(need(sizes, prompts), count, room, sizes.dit.num_heads, **given)
    mesh = device_mesh(shape, sizes.dit.num_heads, devices)
    weights = abstract_model(folder).weights
    return sequence_layout(mesh), weight_shardings(weights, mesh, shape.weights)
