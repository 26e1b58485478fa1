"""A model, measured on clips: all that `calibration` has a place for."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from . import framing
from .calibration import Calibration
from .choices import resolve
from .clean_error import LEVELS, measure_clean_error
from .director import Progress
from .kernel_fit import fit_kernel
from .mask_error import observe_with_holes, random_holes, variance_scales
from .model import Model
from .models.frames import from_bytes
from .models.variants import Variant
from .settings import Settings


def measure(
    model: Model,
    clips: Sequence[UInt8[np.ndarray, "_t _h _w 3"]],
    contexts: Float[Array, "n 2 l d"],
    *,
    seed: int = 0,
    draws: int = 1,
    progress: Progress = lambda stage, steps: None,
) -> tuple[dict[str, float], Calibration]:
    """The scale of every mask's v, and the arrays of the calibration.

    Of every clip the first window is used, and of its frames the largest part in the middle
    with the model's aspect: padding would be pixels that nobody can get wrong. A clip that is
    too short repeats its last frame. `contexts` embeds the [negative prompt, prompt] of each.
    An image model is told what `direct` would tell it: what the holes leave. Costs, per clip,
    the encodes of `observe_with_holes`, and `draws` · LEVELS calls of the denoiser; `progress`
    hears of `steps`.

    Raises:
        InputError: clips in which holes make no difference.
    """
    sizes, weights = model.variant, model.weights
    key, noise_key = jax.random.split(jax.random.key(seed))
    errors, latents, told = [], [], []
    for index, frames in enumerate(clips):
        clip = from_bytes(jnp.asarray(_window(frames, sizes)))
        holes = random_holes(np.random.default_rng((seed, index)), *clip.shape[:3])
        one = jax.random.fold_in(key, index)
        seen = jnp.asarray(~holes)
        observation, error, latent = observe_with_holes(sizes, weights, clip, seen, one)
        errors.append(error)
        latents.append(latent)
        told.append(observation.conditioning)
        progress("encode", 1)
    scales = variance_scales(errors)
    clean_error = measure_clean_error(
        sizes,
        resolve(Settings(), model),
        weights,
        jnp.stack(latents),
        contexts,
        noise_key,
        conditioning=jax.tree.map(lambda *leaves: jnp.stack(leaves), *told),
        draws=draws,
        progress=lambda done: progress("denoise", done),
    )
    kernel = fit_kernel([e.coverage for e in errors], [e.actual for e in errors])
    return scales, Calibration(clean_error, jnp.asarray(kernel))


def _window(frames: UInt8[np.ndarray, "n H W 3"], sizes: Variant) -> UInt8[np.ndarray, "t h w 3"]:
    height, width = frames.shape[1:3]
    scale = min(height / sizes.height, width / sizes.width)
    crop = max(1, round(sizes.height * scale)), max(1, round(sizes.width * scale))
    top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
    frames = framing.take(frames, range(sizes.frames))
    frames = frames[:, top : top + crop[0], left : left + crop[1]]
    return framing.to_working(frames, framing.fit(crop, (sizes.height, sizes.width)))


def steps(clips: int, draws: int) -> int:
    """What `measure` counts."""
    return clips * (1 + draws * LEVELS)
