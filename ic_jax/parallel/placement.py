"""Where the weights lie on a mesh."""

from functools import partial

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from ic_jax.errors import InputError
from ic_jax.model import Weights
from ic_jax.sampling.caching import apart

from .mesh import kept_spec, weight_axes

_CUT = "dit", "dit_low"


def weight_shardings(weights: Weights, mesh: Mesh, shards: int = 1) -> Weights:
    """A sharding for every leaf of `weights`, of which only shapes matter (`abstract_model`).

    The matrices of the transformers are cut into `shards` parts, as `mesh.check` allows, along
    the axis that is summed over; XLA brings those of a block together when it comes to the
    block. All else is on every device. `load_model` takes what this returns.

    Raises:
        InputError: the axes of the mesh, or the matrices of the blocks, do not divide so.
    """
    possible, everywhere = weight_axes(mesh.shape), NamedSharding(mesh, PartitionSpec())
    if shards not in possible:
        known = ", ".join(map(str, possible))
        raise InputError(f"layout: cannot cut the weights into {shards}; give one of {known}")
    axes = possible[shards]

    def place(path, leaf) -> NamedSharding:
        name = [entry.key for entry in path]
        if shards == 1 or name[-1] != "kernel":
            return everywhere
        # The last but one axis is the input of a matrix, alone or in a stack of layers.
        *stack, rows, _ = leaf.shape
        if rows % shards == 0:
            return NamedSharding(mesh, PartitionSpec(*[None] * len(stack), axes))
        if name[0] == "blocks":
            raise InputError(
                f"layout: matrices of {rows} rows cannot be cut into {shards}; "
                "give another number for weights"
            )
        return everywhere

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

    Raises:
        InputError: the axes of the mesh, or the matrices of the blocks, do not divide so.
    """
    shardings = weight_shardings(weights, mesh, shards)
    return jax.tree.map(_put, weights, shardings)


def beside(weights: Weights, tree: PyTree) -> PyTree:
    """`tree`, of arrays or of shapes, on the device of the weights or on all of their mesh.

    Only answers that steps reuse are cut up. A program leaves its results there. One that is first
    given arrays from elsewhere, and then its own results, would be compiled twice.
    """
    sharding = jax.tree.leaves(weights.dit)[0].sharding

    def put(where: NamedSharding | None, leaf: PyTree) -> PyTree:
        if isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf.update(sharding=where)
        return jax.device_put(leaf, where)

    if not isinstance(sharding, NamedSharding):
        return jax.tree.map(partial(put, None), tree)
    mesh = sharding.mesh
    cut = lambda leaf: put(NamedSharding(mesh, kept_spec(mesh.shape, leaf.shape)), leaf)
    return apart(cut, partial(put, NamedSharding(mesh, PartitionSpec())), tree)


def _put(leaf: PyTree, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
