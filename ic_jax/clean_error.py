"""How wrong the model's clean estimate is: r_σ², per noise level and channel.

Latents of whole clips are noised and given to the model as the sampler would give them: its
expert of that level, its guidance and prompt, its timestep. r_σ² is what `bayes_dds` weighs the
measurement against; a trained model knows more of a clip than a unit Gaussian does.
"""

from collections.abc import Callable
from functools import partial

import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .calibration import CleanError
from .conditioning import Conditioning
from .course import stages
from .expert import denoiser_of, expert
from .model import Weights
from .models.variants import Variant
from .sampling.schedule import Level
from .sampling.solvers import SOLVERS
from .settings import Settings

LEVELS = 12


def measure_clean_error(
    sizes: Variant,
    settings: Settings,
    weights: Weights,
    latents: Float[Array, "n t h w c"],
    contexts: Float[Array, "n 2 l d"],
    key: PRNGKeyArray,
    *,
    conditioning: Conditioning | None = None,
    draws: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> CleanError:
    """Mean of (clean - z)² over positions, clips and `draws` noises, at `LEVELS` levels.

    The levels are equal parts of the solver's own schedule before its shift, so from about 1 to
    1 / LEVELS; at 0 the estimate is x itself, without error. `contexts` embeds the
    [negative prompt, prompt] of each clip; an image model needs `conditioning` as well, with the
    same leading axis. Costs draws · n · LEVELS calls of the denoiser, of which `progress` hears
    one by one; each noise serves all levels, which leaves a smoother curve.
    """
    schedule, _ = SOLVERS[settings.solver or sizes.solver]
    parts = stages(sizes, settings, schedule(LEVELS, 1.0))
    total = np.zeros((LEVELS, latents.shape[-1]))
    for clip, (latent, context) in enumerate(zip(latents, contexts, strict=True)):
        told = jax.tree.map(lambda leaf: leaf[clip], conditioning)
        for draw in range(draws):
            noise_key = jax.random.fold_in(jax.random.fold_in(key, clip), draw)
            noise = jax.random.normal(noise_key, latent.shape)
            ask = partial(_mean_squared_error, sizes, settings)
            rows = []
            for part, levels in parts:
                for row in zip(*levels):
                    error = ask(part.expert, weights, latent, noise, context, told, Level(*row))
                    rows.append(np.asarray(error))
                    progress(1)
            total += rows
    sigma = np.concatenate([levels.sigma for _, levels in parts])
    rising = np.append(sigma, 0.0)[::-1]
    variance = np.concatenate([total / (draws * len(latents)), np.zeros_like(total[:1])])[::-1]
    return CleanError(*(jax.numpy.asarray(leaf, np.float32) for leaf in (rising, variance)))


@partial(jax.jit, static_argnums=(0, 1, 2))
def _mean_squared_error(
    sizes: Variant,
    settings: Settings,
    name: str,
    weights: Weights,
    latent: Float[Array, "t h w c"],
    noise: Float[Array, "t h w c"],
    context: Float[Array, "2 l d"],
    conditioning: Conditioning | None,
    level: Level,
) -> Float[Array, " c"]:
    denoise = denoiser_of(expert(sizes, settings, name, weights, context, conditioning))
    x = (1 - level.sigma) * latent + level.sigma * noise
    return ((denoise(x, level).clean - latent) ** 2).mean((0, 1, 2))
