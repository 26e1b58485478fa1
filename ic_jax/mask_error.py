"""How wrong a measurement is because of its holes, where the whole clip is known.

Whole clips get holes, are filled and encoded as in `recapture`; what differs from the encoding
of the whole clip is the error that a latent mask's v predicts.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .errors import InputError
from .geometry.camera import Camera, intrinsics_from_fov
from .geometry.trajectory import smoothstep
from .geometry.warp import warp_operator
from .latent_mask import coverage
from .model import Weights
from .models import wan_vae
from .models.variants import Variant
from .pipeline import Observation, Scene, latent_mask, observe
from .settings import Settings

BOXES = 3
# Masks with a variance of their own; the kernel's is fitted to errors, and needs no scale.
ASKED = ("probes", "response", "jacobian")
# Mean squared differences below it are those of float32.
ROUNDING = 1e-9


class MaskError(NamedTuple):
    """Of one clip, in squared latent units."""

    coverage: Float[np.ndarray, "t h w 1"]
    predicted: dict[str, Float[np.ndarray, "t h w c"]]
    """Each mask's v, as it is before any calibration."""
    actual: Float[np.ndarray, "t h w c"]
    """(E(filled) - E(whole))²."""


def random_holes(
    rng: np.random.Generator, frames: int, height: int, width: int
) -> Bool[np.ndarray, "t h w"]:
    """True in holes like those of a moved camera: a strip and a few boxes.

    The strip grows from one side to 10–30 % of the frame, as a view that turns away leaves it.
    Each box has 8–24 % of the frame's sides and drifts by up to 30 %, as what an object hides.
    """
    time = np.linspace(0.0, 1.0, frames)[:, None, None]
    down = ((np.arange(height) + 0.5) / height)[None, :, None]
    right = ((np.arange(width) + 0.5) / width)[None, None, :]
    side = (down, 1 - down, right, 1 - right)[rng.integers(4)]
    holes = np.broadcast_to(
        side < rng.uniform(0.1, 0.3) * smoothstep(time), (frames, height, width)
    )
    for _ in range(BOXES):
        start, drift = rng.uniform(0, 1, 2), rng.uniform(-0.3, 0.3, 2)
        half = rng.uniform(0.04, 0.12, 2)
        off_down, off_right = (
            np.abs(at - start[axis] - drift[axis] * time) for axis, at in enumerate((down, right))
        )
        holes = holes | ((off_down < half[0]) & (off_right < half[1]))
    return holes


def observe_with_holes(
    sizes: Variant,
    weights: Weights,
    clip: Float[Array, "t h w 3"],
    seen: Bool[Array, "t h w"],
    key: PRNGKeyArray,
) -> tuple[Observation, MaskError, Float[Array, "t2 h2 w2 c"]]:
    """What the pipeline observes of a clip of which `seen` is left, its error, and the truth.

    A warp from a camera to itself loses the rest, so that holes are filled as in `recapture`:
    from other frames first. Costs 26 encodes of the clip, the Jacobian's counted twice, and one
    more in an image model.
    """
    frames, height, width = seen.shape
    still = jnp.broadcast_to(jnp.eye(4), (frames, 4, 4))
    lens = jnp.broadcast_to(intrinsics_from_fov(60.0, height, width), (frames, 3, 3))
    operator, observation = _observe(sizes, weights, clip, seen, Camera(still, lens), key)
    y = observation.measurement
    predicted = {name: _variance(sizes, name, weights, operator, y, key) for name in ASKED}
    latent = _encode(sizes, weights, clip)
    error = MaskError(
        coverage(observation.visible, latent.shape), predicted, (y.latent - latent) ** 2
    )
    return observation, jax.device_get(error), latent


def variance_scales(errors: Sequence[MaskError]) -> dict[str, float]:
    """`variance_scale` of every mask that has one. Raises as it does."""
    scales = {name: variance_scale(errors, name) for name in ASKED}
    return scales | {"response_open": scales["response"]}  # another gate, the same variance


def variance_scale(errors: Sequence[MaskError], mask: str) -> float:
    """Actual over predicted error, of all latents whose own pixels are mostly seen.

    A ratio of means in which every latent is weighed by 1 / (1 + v): errors beyond a unit
    prior's variance change no fusion weight much, and shall not decide the scale alone.

    Raises:
        InputError: no hole could make a difference, as in clips of one colour.
    """
    actual = predicted = total = 0.0
    for error in errors:
        v = error.predicted[mask]
        weight = (error.coverage > 0.5) / (1 + v)
        total += weight.sum(dtype=float)
        actual += (weight * error.actual).sum(dtype=float)
        predicted += (weight * v).sum(dtype=float)
    if predicted <= ROUNDING * total:
        raise InputError("the clips show nothing that a hole could hide; give others")
    return float(actual / predicted)


@partial(jax.jit, static_argnums=0)
def _observe(sizes: Variant, weights: Weights, clip, seen, camera: Camera, key):
    depth = jnp.ones_like(seen, jnp.float32)
    operator = warp_operator(depth, camera, camera, keep=seen, edges=False)
    scene = Scene(clip, operator)
    return operator, observe(sizes, Settings(latent_mask="mean"), weights, scene, scene, key)


@partial(jax.jit, static_argnums=(0, 1))
def _variance(sizes: Variant, name: str, weights: Weights, operator, measurement, key):
    settings = Settings(latent_mask=name)
    return latent_mask(sizes, settings, weights, operator, measurement, key).variance


# On its own: inlined once more beside the mask's encodes, it would be compiled once more.
@partial(jax.jit, static_argnums=0)
def _encode(sizes: Variant, weights: Weights, clip: Float[Array, "t h w 3"]):
    return wan_vae.encode(sizes.vae, weights.vae, clip[None], chunk=sizes.chunk)[0]
