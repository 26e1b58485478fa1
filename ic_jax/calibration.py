"""What is measured about a model once, on clips whose truth is known, and stored with it.

As the record in a model's manifest, or in a file of its own (`ic-jax calibrate --out`):

    {"variance_scale": {"response": 0.21, ...},
     "clean_error": {"sigma": [n levels], "variance": [n levels][c channels]},
     "kernel": [kt][kh][kw][c],
     "measured": {"variant": ..., "clips": ..., "seed": ..., "versions": ..., ...}}

All of it is optional: what was not measured has a default in closed form.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .errors import InputError


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


def to_record(calibration: Calibration) -> dict[str, Any]:
    """The arrays as JSON has them, in six digits; `from_record` reads them."""
    error, kernel = calibration
    record: dict[str, Any] = {}
    if error is not None:
        record["clean_error"] = {name: _digits(leaf) for name, leaf in error._asdict().items()}
    if kernel is not None:
        record["kernel"] = _digits(kernel)
    return record


def from_record(record: Mapping[str, Any], where: str | Path, channels: int) -> Calibration:
    """The arrays in the record that `where` holds, for latents of so many channels.

    Raises:
        InputError: a record that `ic-jax calibrate` would not have written, or of other latents.
    """
    try:
        return _checked(record, channels)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{where}: its calibration is unfit ({error}); make it again with `ic-jax calibrate`"
        ) from error


def load_record(path: str | Path, variant: str, channels: int) -> dict[str, Any]:
    """The record in a file that `ic-jax calibrate --out` wrote for the model `variant`.

    Raises:
        InputError: a missing or foreign file, or another model's.
    """
    record = _read(Path(path))
    measured = record["measured"]["variant"]
    if measured != variant:
        raise InputError(f"{path}: was measured on {measured}, and this model is {variant}")
    from_record(record, path, channels)
    return record


def check_replaceable(path: str | Path) -> None:
    """Raises InputError if `path` is no name for a record, or somebody else's file."""
    path = Path(path)
    if path.suffix != ".json":
        raise InputError(f"{path}: give a name that ends in .json")
    if path.exists():
        _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text())
        record["measured"]["variant"]
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; `ic-jax calibrate --out` makes one") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is no file that `ic-jax calibrate --out` wrote") from error
    return record


def _checked(record: Mapping[str, Any], channels: int) -> Calibration:
    """Raises ValueError and its like with what is wrong."""
    for mask, scale in record.get("variance_scale", {}).items():
        if not (isinstance(scale, int | float) and math.isfinite(scale) and scale >= 0):
            raise ValueError(f"variance_scale of {mask} is no number of 0 or more")
    error, kernel = record.get("clean_error"), record.get("kernel")
    if error is not None:
        error = CleanError(_levels(error["sigma"]), _variances(error["variance"], 2, channels))
        if len(error.sigma) != len(error.variance):
            raise ValueError(f"{len(error.sigma)} noise levels, {len(error.variance)} variances")
    return Calibration(error, None if kernel is None else _variances(kernel, 4, channels))


def _levels(values: Any) -> Float[Array, " n"]:
    sigma = np.asarray(values, np.float32)
    if sigma.ndim != 1 or not len(sigma) or not (np.diff(sigma) > 0).all():
        raise ValueError("its noise levels do not rise")
    if not (0 <= sigma[0] and sigma[-1] <= 1):
        raise ValueError("its noise levels are not in [0, 1]")
    return jnp.asarray(sigma)


def _variances(values: Any, axes: int, channels: int) -> Float[Array, "..."]:
    array = np.asarray(values, np.float32)
    if array.ndim != axes or array.shape[-1] != channels:
        raise ValueError(f"an array of shape {array.shape} for latents of {channels} channels")
    if not (np.isfinite(array).all() and (array >= 0).all()):
        raise ValueError("a variance is negative or not finite")
    return jnp.asarray(array)


def _digits(array: Float[Array, "..."] | Float[np.ndarray, "..."]) -> list:
    """float32 has no more than these to say."""
    rounded = [float(f"{value:.6g}") for value in np.ravel(array)]
    return np.reshape(rounded, np.shape(array)).tolist()
