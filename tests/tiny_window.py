"""A window of a batch that compiles at once."""

import jax
import jax.numpy as jnp

from ic_jax.batch import Window


def stand_in(sizes, settings, layout):
    """Takes what `batch.window` does, all of it, and gives back the scene.

    A context that is not finite makes its sample so.
    """

    def run(weights, scene, filler, context, key):
        given = weights, scene, filler, context, key
        taken = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(given))
        frames = jnp.clip(scene.clip + taken, 0, 255).astype(jnp.uint8)
        return Window(frames, jnp.isfinite(context).all())

    return run
