"""One clip over many devices: each holds some of the tokens, and some rows of its frames."""

from functools import cache, partial
from math import prod

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Shaped

from ic_jax.models.attention import attention, suits_cudnn
from ic_jax.models.layout import Layout

from .mesh import PROMPTS, RING, TOKENS, ULYSSES, kept_spec, shares_rows
from .ring import ring_attention


@cache
def sequence_layout(mesh: Mesh) -> Layout:
    """What `pipeline.recapture` needs to run on `mesh`; the same object for the same mesh."""
    return Layout(
        attend=partial(_attend, mesh),
        attend_context=partial(_attend_context, mesh),
        place=partial(_place, mesh),
        keep=partial(_keep, mesh),
        rows=partial(_share_rows, mesh),
        whole=partial(_gather, mesh),
    )


def _attend(
    mesh: Mesh,
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
) -> Float[Array, "b l h d"]:
    tokens = q.shape[1]
    spec = _spec(mesh, len(q))
    spread = jax.shard_map(
        partial(_exchange, tokens=tokens),
        mesh=mesh,
        in_specs=spec,
        out_specs=spec,
        check_vma=False,  # fused kernels do not say along which axes their results differ
    )
    return spread(*(_padded(mesh, x) for x in (q, k, v)))[:, :tokens]


def _exchange(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b l h d"],
    v: Float[Array, "b l h d"],
    tokens: int,
) -> Float[Array, "b l h d"]:
    """Ulysses (arXiv 2309.14509): all heads of some tokens become some heads of more tokens.

    What these tokens still lack is in the ring. Both at once are USP (arXiv 2405.07719). cuDNN has
    no answer to a part of the keys that could be merged (`attention_to_part`), and gets all.
    """
    q, k, v = jax.lax.all_to_all((q, k, v), ULYSSES, split_axis=2, concat_axis=1, tiled=True)
    ring = jax.lax.axis_size(RING)
    if ring > 1 and suits_cudnn(q):
        # As many bytes arrive as would go round, but at once, and all have to be held.
        (k, v), ring = jax.lax.all_gather((k, v), RING, axis=1, tiled=True), 1
    if ring == 1:
        out = attention(q, k[:, :tokens], v[:, :tokens])
    else:
        out = ring_attention(q, k, v, RING, tokens)
    return jax.lax.all_to_all(out, ULYSSES, split_axis=1, concat_axis=2, tiled=True)


def _attend_context(
    mesh: Mesh,
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
) -> Float[Array, "b l h d"]:
    """Every device has all of the text, or of the image, and asks nobody."""
    spec = _spec(mesh, len(q))
    whole = PartitionSpec(spec[0])
    spread = jax.shard_map(
        attention, mesh=mesh, in_specs=(spec, whole, whole), out_specs=spec, check_vma=False
    )
    return spread(_padded(mesh, q), k, v)[:, : q.shape[1]]


def _place(mesh: Mesh, tokens: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """Spread. JAX takes no constraint that does not divide, but XLA shards what was padded."""
    sharding = NamedSharding(mesh, _spec(mesh, len(tokens)))
    padded = jax.lax.with_sharding_constraint(_padded(mesh, tokens), sharding)
    return padded[:, : tokens.shape[1]]


def _keep(mesh: Mesh, tokens: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    sharding = NamedSharding(mesh, kept_spec(mesh.shape, tokens.shape))
    return jax.lax.with_sharding_constraint(tokens, sharding)


def _share_rows(
    mesh: Mesh, x: Float[Array, "b t h w c"], latent_rows: int
) -> Float[Array, "b t h w c"]:
    """Among all devices of a clip, where they can."""
    axes = PROMPTS, *TOKENS
    if not shares_rows(prod(mesh.shape[axis] for axis in axes), x.shape[2], latent_rows):
        return x
    over_rows = NamedSharding(mesh, PartitionSpec(None, None, axes))
    return jax.lax.with_sharding_constraint(x, over_rows)


def _gather(mesh: Mesh, x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


def _spec(mesh: Mesh, batch: int) -> PartitionSpec:
    """Without guidance there is one prompt, and the second half of the devices repeats it."""
    return PartitionSpec(PROMPTS if batch % mesh.shape[PROMPTS] == 0 else None, TOKENS)


def _padded(mesh: Mesh, x: Float[Array, "b l ..."]) -> Float[Array, "b m ..."]:
    """With as many tokens more as make them divide."""
    after = -x.shape[1] % _shards(mesh)
    return jnp.pad(x, ((0, 0), (0, after), *((0, 0),) * (x.ndim - 2))) if after else x


def _shards(mesh: Mesh) -> int:
    return mesh.shape[RING] * mesh.shape[ULYSSES]
