"""The seam between the networks and the devices that they are spread over."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, Shaped

from .attention import Attend, attention

Place = Callable[[Shaped[Array, "b ..."]], Shaped[Array, "b ..."]]
"""The same array with a sharding constraint."""


Rows = Callable[[Shaped[Array, "b t h w c"], int], Shaped[Array, "b t h w c"]]
"""A place for the rows of frames or latents, given how many rows the latents have."""


def anywhere(x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """Leave it where it is."""
    return x


def unshared(x: Shaped[Array, "b t h w c"], latent_rows: int) -> Shaped[Array, "b t h w c"]:
    """Leave it where it is."""
    return x


@dataclass(frozen=True)
class Layout:
    """What networks leave to whoever spreads them over devices; the default is one device.

    Static and hashable: `jax.jit` takes it as a static argument, and functions made anew for
    every call would compile anew.
    """

    attend: Attend = attention
    """Tokens to each other, after the rotation of queries and keys."""
    attend_context: Attend = attention
    """Tokens to text and to an image, and those of an image to each other."""
    place: Place = anywhere
    """The residual stream of the transformer before every block."""
    keep: Place = anywhere
    """What is remembered of the tokens from one step to the next."""
    rows: Rows = unshared
    """Frames and latents that the autoencoder works on: devices share rows."""
    whole: Place = anywhere
    """The same before and after it: outside, every device has all of a clip."""
