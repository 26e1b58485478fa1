"""Put what was seen back over what was generated, with a soft seam.

The latents of the visible part are held by the sampler, but the decoder that shows them
is lossy. Where the warp saw a pixel outright, the warped pixel itself can be shown. It
hides the decoder's loss and nothing else, so measure before as well as after.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def composite(
    generated: Float[Array, "t h w 3"],
    warped: Float[Array, "t h w 3"],
    visible: Float[Array, "t h w"],
    feather: int = 1,
) -> Float[Array, "t h w 3"]:
    """The warped clip where it was seen, the generated one in holes and across their edge.

    The seam is a ramp of about 2·`feather` pixels on the visible side: a hole's own pixels are
    never taken from the warp.
    """
    share = seam(visible, feather)[..., None]
    return share * warped + (1 - share) * generated


def seam(visible: Float[Array, "t h w"], feather: int) -> Float[Array, "t h w"]:
    """`visible`, shrunk by `feather` pixels and then blurred by as much: 0 in every hole."""
    window = (1, 2 * feather + 1, 2 * feather + 1)
    over = lambda x, first, op: jax.lax.reduce_window(x, first, op, window, (1, 1, 1), "SAME")
    shrunk = over(visible, jnp.inf, jax.lax.min)
    # Written down, for XLA folds what it can count, on the host: a minute where frames are large.
    full = lambda n: np.convolve(np.ones(n), np.ones(window[1]))
    # Not "same", which is as long as the longer of the two: a frame may be narrower than the seam.
    rows, columns = (full(n)[feather : feather + n] for n in visible.shape[1:])
    return over(shrunk, 0.0, jax.lax.add) / np.float32(np.outer(rows, columns))
