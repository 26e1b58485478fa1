"""Where the weights lie on a mesh."""

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ic_jax.model import Weights

from .mesh import weight_axes

_CUT = "dit", "dit_low"


def weight_shardings(weights: Weights, mesh: Mesh, shards: int = 1) -> Weights:
    """A sharding for every leaf of `weights`, of which only shapes matter (`abstract_model`).

    The matrices of the transformers are cut into `shards` parts along the axis that is summed
    over, where that divides; XLA brings those of a block together when it comes to the block.
    All else is on every device. `load_model` takes what this returns.

    Raises:
        KeyError: `shards` that `mesh.check` refuses.
    """
    axes = weight_axes(mesh.shape)[shards]

    def place(path, leaf) -> NamedSharding:
        # The last but one axis is the input of a matrix, alone or in a stack of layers.
        matrix = path[-1].key == "kernel" if shards > 1 else False
        if matrix and leaf.shape[-2] % shards == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * (len(leaf.shape) - 2), axes))
        return NamedSharding(mesh, PartitionSpec())

    everywhere = NamedSharding(mesh, PartitionSpec())
    return Weights(
        **{
            name: jax.tree.map_with_path(place, tree)
            if name in _CUT
            else jax.tree.map(lambda leaf: everywhere, tree)
            for name, tree in weights._asdict().items()
        }
    )


def place(weights: Weights, mesh: Mesh, shards: int = 1) -> Weights:
    """The weights on the devices of `mesh`, each matrix of a transformer in so many parts.

    On a mesh of several hosts, every host calls it with all of the weights.
    """
    shardings = weight_shardings(weights, mesh, shards)
    return jax.tree.map(_put, weights, shardings)


def _put(leaf: PyTree, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
