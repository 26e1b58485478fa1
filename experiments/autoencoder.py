"""The autoencoder on one clip, compiled once: inlined at every use, it takes minutes to compile."""

from functools import partial

import jax
from jaxtyping import Array, Float, PyTree

from ic_jax.models import wan_vae
from ic_jax.models.variants import Variant


@partial(jax.jit, static_argnums=0)
def encode(
    sizes: Variant, vae: PyTree, clip: Float[Array, "t h w 3"]
) -> Float[Array, "t2 h2 w2 c"]:
    """The latent of a clip in [-1, 1], of unit variance. Raises as `wan_vae.encode` does."""
    return wan_vae.encode(sizes.vae, vae, clip[None])[0]


@partial(jax.jit, static_argnums=0)
def decode(
    sizes: Variant, vae: PyTree, latent: Float[Array, "t h w c"]
) -> Float[Array, "t2 h2 w2 3"]:
    """The clip of a latent, clamped to [-1, 1]."""
    return wan_vae.decode(sizes.vae, vae, latent[None])[0]
