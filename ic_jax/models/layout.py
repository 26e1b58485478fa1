"""The seam between the transformer and the devices that it is spread over."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array, Float

from .attention import Attend, attention

Place = Callable[[Float[Array, "b l d"]], Float[Array, "b l d"]]


def anywhere(tokens: Float[Array, "b l d"]) -> Float[Array, "b l d"]:
    """Leave the tokens where they are."""
    return tokens


@dataclass(frozen=True)
class Layout:
    """What the transformer leaves to whoever spreads it over devices; the default is one device.

    Static and hashable: `jax.jit` takes it as a static argument, and functions made anew for
    every call would compile anew.
    """

    attend: Attend = attention
    """Tokens to each other, after the rotation of queries and keys."""
    attend_context: Attend = attention
    """Tokens to text, and to an image."""
    place: Place = anywhere
    """The residual stream before every block: for a sharding constraint."""
