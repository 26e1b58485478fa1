"""A window of a batch that compiles at once."""

import jax
import jax.numpy as jnp


def stand_in(sizes, settings, layout):
    """Takes what `batch.window` does, all of it, and gives back the scene."""

    def run(weights, scene, *others):
        taken = sum(jnp.sum(leaf) for leaf in jax.tree.leaves((weights, scene, others)))
        return jnp.clip(scene.clip + taken, 0, 255).astype(jnp.uint8)

    return run
