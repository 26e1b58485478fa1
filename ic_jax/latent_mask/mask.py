"""What a latent mask is, and what it is made from."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ic_jax.errors import InputError

Encode = Callable[[Float[Array, "t h w 3"]], Float[Array, "t2 h2 w2 c"]]


@runtime_checkable
class Operator(Protocol):
    """Anything that knows which share of each target pixel it has seen."""

    visible: Float[Array, "t h w"]


class Measurement(NamedTuple):
    """The filled clip and its normalised latent y."""

    clip: Float[Array, "t h w 3"]
    latent: Float[Array, "t2 h2 w2 c"]


class LatentMask(NamedTuple):
    """Coverage a in [0, 1] and error variance v in squared latent units.

    Both broadcast over the latent: an axis of size 1 means the same for every channel.
    """

    coverage: Float[Array, "*b t h w #c"]
    variance: Float[Array, "*b t h w #d"]

    def weight(self, r2: Float[Array, "*#s"] | float) -> Float[Array, "*b t h w #e"]:
        """h(r²), in [0, 1]; a itself where v = 0."""
        total = r2 + self.variance
        return self.coverage * jnp.where(self.variance > 0, r2 / jnp.where(total > 0, total, 1), 1)


def fitting(mask: LatentMask, latent: Float[Array, "t h w c"], name: str) -> LatentMask:
    """The mask, if both of its parts broadcast to the latent.

    Raises:
        InputError: they do not; `name` says whose mask it is.
    """
    for part, values in mask._asdict().items():
        pairs = zip(values.shape[::-1], latent.shape[::-1])
        if values.ndim != latent.ndim or any(side not in (1, whole) for side, whole in pairs):
            raise InputError(
                f"latent mask {name!r}: its {part} is {values.shape}, the latent {latent.shape};"
                " give every axis the latent's size, or 1"
            )
    return mask


MaskConstruction = Callable[[Operator, Encode, Measurement, PRNGKeyArray], LatentMask]
