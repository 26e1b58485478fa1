"""One device or many: clips side by side, and one clip spread over a mesh.

    mesh = device_mesh(shape, sizes.dit.num_heads)
    weights = place(weights, mesh, shape.weights)
    recapture(sizes, settings, weights, scene, context, key, sequence_layout(mesh))

is all that a clip on many devices takes, under `jax.jit` with the layout static.
"""

from .choice import Need, choose, per_device
from .clips import OverClips, on_every, over_clips, over_mesh, replicate
from .hosts import barrier, join, mine
from .mesh import MeshShape, check, device_mesh, first_devices
from .placement import beside, place, weight_shardings
from .sequence import sequence_layout

__all__ = [
    "MeshShape",
    "Need",
    "OverClips",
    "barrier",
    "beside",
    "check",
    "choose",
    "device_mesh",
    "first_devices",
    "join",
    "mine",
    "on_every",
    "over_clips",
    "over_mesh",
    "per_device",
    "place",
    "replicate",
    "sequence_layout",
    "weight_shardings",
]
