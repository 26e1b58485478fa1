"""h-control's refinement: resample what is not observed, until it agrees with what is."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ic_jax.latent_mask import LatentMask

from .consistency import Latent, moved
from .denoiser import Denoiser, Prediction
from .renewals import replacement
from .sampler import Method, State, Step
from .schedule import Level
from .solvers import Solver, first_order

Patch = tuple[int, int, int]


def gibbs(inner: int = 4, patch: Patch = (2, 4, 4), mixed: float = 0.9) -> Method:
    """Hard replacement, with up to `inner` sweeps over the unobserved part at every level.

    Wang et al., "h-control" (arXiv 2605.11871): the observed part is held while the rest is
    resampled at the same noise level, in turns x → clean → x, so that what is generated
    answers to what is seen at the same σ; 3-D patches that have mixed are frozen.

    The abstract is all that we could read, so this is a reconstruction. Ours are: a sweep
    draws x = (1-σ) clean + σ ε anew around the model's clean estimate (a mean stands where
    Gibbs has a draw, hence "pseudo"; spread is lost by it); a patch has `mixed` once the mean
    square change of its clean estimate is no less than that fraction of the change before;
    the size of a patch, in latents; and a continuous mask, which keeps the share h of the
    noise that agrees with the measurement and renews the rest, as √(1-h²). Sweeps end early
    when every patch is frozen or observed, so `inner` is a limit and not the cost.
    """

    def method(denoise: Denoiser, solver: Solver, y: Latent, mask: LatentMask) -> Step:
        h = jnp.broadcast_to(mask.weight(1.0), y.shape)
        solver = first_order(solver)

        def step(state: State, level: Level) -> State:
            key, sweeps_key, replace_key, solver_key = jax.random.split(state.key, 4)

            def sweep(carry):
                count, x, last, last_change, active = carry
                prediction = denoise(x, level)
                change = patch_mean((prediction.clean - last.clean) ** 2, 1 - h, patch)
                change = jnp.where(count > 0, change, jnp.inf)
                active = active & ((count == 0) | (change < mixed * last_change))
                sweep_key = jax.random.fold_in(sweeps_key, count)
                clean, noise = moved(prediction, h, y, level, "recompute", sweep_key)
                fresh = jax.random.normal(sweep_key, x.shape)
                noise = h * noise + jnp.sqrt(1 - h**2) * fresh
                resampled = (1 - level.sigma) * clean + level.sigma * noise
                # The last call of the model is the outer step's: x stays as it was seen.
                goes_on = spread(active, patch, x.shape) & (count < inner)
                x = jnp.where(goes_on, resampled, x)
                return count + 1, x, prediction, change, active

            def unfinished(carry):
                count, *_, active = carry
                return (count == 0) | ((count <= inner) & active.any())

            begin = _begin(state.x, h, patch)
            _, _, prediction, _, _ = jax.lax.while_loop(unfinished, sweep, begin)
            prediction = replacement(prediction, y, mask, level, replace_key)
            return State(*solver.update(state.memory, prediction, level, solver_key), key)

        return step

    return method


def _begin(x: Latent, h: Latent, patch: Patch):
    """Nothing swept; every patch active that has something to resample."""
    active = patch_sum(1 - h, patch) > 0
    none = jnp.full(active.shape, jnp.inf, x.dtype)
    return jnp.zeros((), int), x, Prediction(x, x), none, active


def patch_mean(values: Latent, weight: Latent, patch: Patch) -> Float[Array, "t2 h2 w2"]:
    """The weighted mean over each 3-D patch and all channels; 0 where nothing has weight."""
    total = patch_sum(weight, patch)
    return patch_sum(weight * values, patch) / jnp.where(total > 0, total, 1)


def patch_sum(values: Latent, patch: Patch) -> Float[Array, "t2 h2 w2"]:
    """The sum over each patch; those at the far edges may be cut."""
    padding = [(0, -size % side) for size, side in zip(values.shape, patch)]
    padded = jnp.pad(values, [*padding, (0, 0)])
    blocks = [n for size, side in zip(padded.shape, patch) for n in (size // side, side)]
    return padded.reshape(*blocks, -1).sum((1, 3, 5, 6))


def spread(
    active: Bool[Array, "t2 h2 w2"], patch: Patch, shape: tuple[int, ...]
) -> Bool[Array, "t h w 1"]:
    """What holds for a patch, for each of its latents."""
    for axis, side in enumerate(patch):
        active = jnp.repeat(active, side, axis)
    t, h, w, _ = shape
    return active[:t, :h, :w, None]
