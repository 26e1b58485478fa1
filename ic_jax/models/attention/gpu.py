"""cuDNN's fused attention, for NVIDIA's GPUs."""

import jax
import jax.numpy as jnp
from jax.extend.backend import get_backend
from jaxtyping import Array, Float

# The widest head that all of its supported GPUs take; a width must be a multiple of 8.
WIDEST = 128

# Ampere. JAX asks no older GPU whether it can, and would fail when the program runs.
_OLDEST = (8, 0)


def present() -> bool:
    """Whether this process runs on CUDA, where alone JAX can write the call down, and can run it.

    GPUs before Ampere have no fused attention in cuDNN.
    """
    backend = get_backend()
    if "cuda" not in backend.platform_version:
        return False
    capability = backend.local_devices()[0].compute_capability
    return tuple(map(int, capability.split("."))) >= _OLDEST


def cudnn(
    q: Float[Array, "b l h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b l h d"]:
    """softmax(q kᵀ / √d) v of 16-bit inputs and heads up to `WIDEST`, with a float32 softmax.

    It takes any number of tokens; heads are padded with zeros.
    """
    head_dim = q.shape[-1]
    fitted = (jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, -head_dim % 8))) for x in (q, k, v))
    out = jax.nn.dot_product_attention(*fitted, scale=head_dim**-0.5, implementation="cudnn")
    return out[..., :head_dim]
