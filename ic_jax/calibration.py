"""What is measured about a model once, on clips whose truth is known, and stored with it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class CleanError(NamedTuple):
    """Mean squared error of the model's clean estimate, per noise level and channel."""

    sigma: Float[Array, " n"]
    """Rising, in [0, 1]."""
    variance: Float[Array, "n c"]
    """In squared latent units."""

    def __call__(self, sigma: Float[Array, ""]) -> Float[Array, " c"]:
        """r_σ², on the lines between the measured levels; constant beyond them."""
        return jax.vmap(lambda column: jnp.interp(sigma, self.sigma, column), 1)(self.variance)


class Calibration(NamedTuple):
    """The parts of a model's calibration that are arrays; None where it was not measured."""

    clean_error: CleanError | None = None
    kernel: Float[Array, "kt kh kw c"] | None = None
    """Local coverage to error variance (latent_mask.kernel)."""


def from_record(record: dict[str, Any]) -> Calibration:
    """The calibration as a model's manifest holds it."""
    error, kernel = record.get("clean_error"), record.get("kernel")
    return Calibration(
        error and CleanError(jnp.asarray(error["sigma"]), jnp.asarray(error["variance"])),
        None if kernel is None else jnp.asarray(kernel),
    )
