"""How exactly float32 is multiplied, which JAX leaves to the platform unless it is asked.

Bits of the mantissa that enter a product; the sum is float32 in any case:

asked for          CPU   GPU (from Ampere)   TPU
nothing            24    11 (TF32)            8 (bfloat16, one pass)
HIGH               24    11                  16 (three passes)
HIGHEST            24    24                  24 (six passes)
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.lax import DotDimensionNumbers, Precision
from jaxtyping import Array, DTypeLike, Float

# A quarter of a v5e's vector memory, in bytes: a larger matrix would be copied within HBM.
_ON_CHIP = 32 << 20


def highest(dtype: DTypeLike) -> Precision | None:
    """For products in `dtype`: what is float32 by design stays so; 16 bits have none to lose."""
    return Precision.HIGHEST if jnp.dtype(dtype) == jnp.float32 else None


def high() -> Precision | None:
    """For the autoencoder, whose work is large: as PyTorch convolves in float32 on a GPU.

    There it is what JAX does anyway. On a TPU it takes three passes: one would round what 8-bit
    frames come from to 8 bits. Of a run's FLOPs at 480p the autoencoder's are 1.5 % (1.3B, 50
    steps of two calls) or 0.3 % (14B).

    JAX's own setting rules where there is one. JAX_DEFAULT_MATMUL_PRECISION=highest gives parity
    with float32, for twice the passes on a TPU, and on a GPU without the tensor cores, at a
    seventh of their peak (H100); =bfloat16 gives one pass on a TPU.
    """
    return None if jax.config.jax_default_matmul_precision else Precision.HIGH


def dot_general(
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    contracted: DotDimensionNumbers,
    precision: Precision | None = None,
    preferred_element_type: DTypeLike | None = None,
) -> Float[Array, "..."]:
    """`jax.lax.dot_general`; on a CPU, 16 bits go by its 16-bit units, if it has any.

    XLA asks them for float32 results alone. For 16-bit ones it widens both matrices first, which
    takes 5 times as long where there is AMX. The sum is float32, and rounded once, in either case.

    On a TPU, a layer's matrix that fits on the chip is cut out of the stack of all layers first.
    XLA would have the product do it, in tiles that by its own estimate take 1.5 times as long
    (1536×8960 on a v5e).
    """
    product = partial(
        jax.lax.dot_general,
        dimension_numbers=contracted,
        precision=precision,
        preferred_element_type=preferred_element_type,
    )
    if preferred_element_type is not None or a.dtype.itemsize > 2:
        return product(a, b)
    rounded = lambda a, b: product(a, b, preferred_element_type=jnp.float32).astype(a.dtype)
    cut_first = lambda a, b: product(a, jax.lax.optimization_barrier(b))
    on_tpu = cut_first if b.size * b.dtype.itemsize <= _ON_CHIP else product
    return jax.lax.platform_dependent(a, b, cpu=rounded, tpu=on_tpu, default=product)
