"""A model small enough to compile in seconds, with random weights that make it say something."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from ic_jax.model import Weights, expected_shapes
from ic_jax.models.umt5 import UMT5Config
from ic_jax.models.variants import Variant
from ic_jax.models.wan_dit import DiTConfig
from ic_jax.models.wan_vae import VAEConfig

CHANNELS = 4
TINY = Variant(
    DiTConfig(
        dim=48,
        ffn_dim=64,
        num_heads=2,
        num_layers=2,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=16,
        text_len=8,
        freq_dim=32,
    ),
    VAEConfig(
        base=4,
        multipliers=(1, 2, 2),
        blocks=1,
        temporal=(True, True),
        latent_channels=CHANNELS,
        patch=2,
        latent_mean=(0.0,) * CHANNELS,
        latent_std=(1.0,) * CHANNELS,
    ),
    UMT5Config(vocab=259, dim=16, ffn_dim=32, heads=2, head_dim=8, layers=1),
    frames=5,
    height=16,
    width=32,
    steps=3,
    guidance_scale=2.0,
    shift=3.0,
    solver="euler",
    dtype="float32",
    chunk=None,  # in chunks the first frame is a program of its own: twice as much to compile
)


def random_like(shapes, seed=0):
    """Normal kernels of unit gain, gains about 1 and biases about 0."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        normal = rng.standard_normal(leaf.shape, np.float32)
        if leaf.ndim > 1:
            return normal * np.float32((leaf.size // leaf.shape[-1]) ** -0.5)
        return normal / 10 + (path[-1].key != "bias")

    return jax.tree.map(jnp.asarray, jax.tree.map_with_path(draw, shapes))


def tiny_weights(sizes=TINY):
    leaves, tree = _drawn(sizes)
    return jax.tree.unflatten(tree, leaves)


@cache  # asking a network for its shapes takes a second
def _drawn(sizes):
    return jax.tree.flatten(Weights(**random_like(expected_shapes(sizes))))


def tiny_context(seed=0, sizes=TINY):
    """What a text encoder might say of two prompts."""
    shape = (2, sizes.dit.text_len, sizes.dit.text_dim)
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)
