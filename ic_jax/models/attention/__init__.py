"""Softmax attention: one function, and the kernel that suits the platform behind it.

name      platform     inputs                       padded inside
chunked   any          any                          nothing
cudnn     CUDA         16 bits, heads of up to 128  heads, to a multiple of 8
          (from Ampere)
splash    TPU          any                          tokens, to tiles; heads, to 128
"""

from collections.abc import Callable
from functools import partial

import jax
from jaxtyping import Array, Float, Int

from ic_jax.errors import InputError

from .chunks import FOR_ACCELERATOR, chunked
from .gpu import WIDEST, cudnn, present
from .parts import Part, plain_part
from .tpu import splash, splash_part

Attend = Callable[
    [Float[Array, "b l h d"], Float[Array, "b m h d"], Float[Array, "b m h d"]],
    Float[Array, "b l h d"],
]
"""Queries, keys and values to what is attended to."""

KERNELS: dict[str, Attend] = {"chunked": chunked, "cudnn": cudnn, "splash": splash}

_ONLY_ON = {"cudnn": ("gpu", "cuda"), "splash": ("tpu",)}


def attention(
    q: Float[Array, "b l h d"], k: Float[Array, "b m h d"], v: Float[Array, "b m h d"]
) -> Float[Array, "b l h d"]:
    """softmax(q kᵀ / √d) v over `m`, with a float32 softmax; the result has the dtype of `q`.

    16-bit inputs take the platform's fused kernel. Those multiply in 16 bits whatever they are
    given, so that float32 goes by `chunked`, which keeps all of its bits.
    """
    # The platform is known when a program is lowered, and not yet when it is traced: this process
    # may export for another one, or keep some arrays on its CPU. Other branches are dropped then.
    ways: dict[str, Attend] = {"cpu": chunked}
    if not _is_wide(q):
        ways["tpu"] = splash
    # A program for CUDA that is exported from elsewhere goes by `chunked`.
    if suits_cudnn(q):
        ways["cuda"] = cudnn
    in_long_chunks = partial(chunked, scores=FOR_ACCELERATOR)
    return jax.lax.platform_dependent(q, k, v, default=in_long_chunks, **ways)


def attention_to_part(
    q: Float[Array, "b l h d"],
    k: Float[Array, "b m h d"],
    v: Float[Array, "b m h d"],
    keys: Int[Array, ""],
) -> Part:
    """`attention` to the first `keys` keys, none of them at the least, for `parts.merge`.

    Of the fused kernels the TPU's alone tells its sums exactly. Of cuDNN's, JAX rounds the logs to
    the 16 bits of the queries: shares of 8192 keys each would be off by up to 3 %.
    """
    fused = {} if _is_wide(q) else {"tpu": splash_part}
    return jax.lax.platform_dependent(q, k, v, keys, default=plain_part, **fused)


def suits_cudnn(q: Float[Array, "b l h d"]) -> bool:
    """Whether `attention` to such queries is cuDNN's where it runs on CUDA in this process."""
    return present() and not _is_wide(q) and q.shape[-1] <= WIDEST


def _is_wide(q: Float[Array, "b l h d"]) -> bool:
    return q.dtype.itemsize > 2


def kernel(name: str, platform: str | None = None) -> Attend:
    """The implementation of that name, in place of `attention`'s own choice.

    The transformer takes it from the layout that `director.direct` and `pipeline` are given,
    as `Layout(attend=kernel("chunked"))`, and for text likewise as `attend_context`. `platform`
    is what it will run on, "cpu", "gpu", "cuda" or "tpu"; None for JAX's default.

    Raises:
        InputError: an unknown name, or a kernel that the platform does not have.
    """
    if name not in KERNELS:
        raise InputError(f"unknown attention {name!r}; one of {', '.join(KERNELS)}")
    platform = platform or jax.default_backend()
    there = [known for known in KERNELS if platform in _ONLY_ON.get(known, (platform,))]
    if name not in there:
        raise InputError(
            f"attention {name} does not run on {platform}; Layout() uses {' or '.join(there)} there"
        )
    return KERNELS[name]
