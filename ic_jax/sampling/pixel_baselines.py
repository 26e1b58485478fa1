"""What latent masks avoid: the way to pixels in every step, there and back or by gradients.

Baselines. They look at `Pixels`, not at the latent mask; under `jax.jit` the gradients of
`dps` and `psld` go through the caller's own model and decoder, with the memory that takes.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ic_jax.latent_mask import LatentMask

from .consistency import Consistency, Latent, Noise, changed
from .denoiser import Denoiser, Prediction
from .sampler import Method, Pixels, State, Step
from .schedule import Level
from .solvers import Solver

Scalar = Float[Array, ""]


def pixel_dds(pixels: Pixels, gamma: float = 5.0, noise: Noise = "recompute") -> Consistency:
    """DDS where the measurement was made: decode, (p + γ m² c) / (1 + γ m²), encode.

    Decomposed Diffusion Sampling (arXiv 2303.05754) with the pixel mask m and the clip c, as
    SVI and VISION-XL use it for video. Costs a decode and an encode per step, and whatever
    the encoder does not give back of its own decoding is lost in every one of them.
    """

    def rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        strength = gamma * pixels.visible[..., None] ** 2
        decoded = pixels.decode(prediction.clean)
        target = decoded + strength / (1 + strength) * (pixels.clip - decoded)
        change = pixels.encode(target) - prediction.clean
        return changed(prediction, change, level, noise, key)

    return rule


def dps(pixels: Pixels, gamma: float = 1.0) -> Method:
    """After the solver's step, x' ← x' - γ ∇ₓ ‖m (D(clean(x)) - c)‖.

    Chung et al., "Diffusion Posterior Sampling" (arXiv 2209.14687), algorithm 1, through model
    and decoder: the gradient of the norm, as in the authors' code, which is half of that of the
    square divided by the norm. γ is the code's scale, about 1 with its 1000 steps; with fewer
    it acts less. Costs a decode, and both backwards, per step.
    """

    def misfit(clean: Latent) -> Scalar:
        return _norm(_residual(pixels, pixels.decode(clean)))

    return _descending(misfit, gamma)


def psld(pixels: Pixels, gamma: float = 1.0, gluing: float = 0.1) -> Method:
    """`dps`, and a pull towards latents that encoding and decoding leave as they are.

    Rout et al., "Solving Linear Inverse Problems Provably via Posterior Sampling with Latent
    Diffusion Models" (arXiv 2307.00619), algorithm 2: to DPS's norm it adds `gluing` times
    ‖clean - E(m c + (1-m) D(clean))‖. Norms, not squares, as in the authors' code. Costs a
    decode and an encode, and everything backwards, per step.
    """

    def misfit(clean: Latent) -> Scalar:
        decoded = pixels.decode(clean)
        residual = _residual(pixels, decoded)
        glued = clean - pixels.encode(decoded - residual)
        return gamma * _norm(residual) + gluing * _norm(glued)

    return _descending(misfit, 1.0)


def _residual(pixels: Pixels, decoded: Float[Array, "t h w 3"]) -> Float[Array, "t h w 3"]:
    return pixels.visible[..., None] * (decoded - pixels.clip)


def _norm(values: Float[Array, "..."]) -> Scalar:
    # The gradient of a norm is not finite at zero.
    return jnp.sqrt(jnp.sum(values**2) + 1e-12)


def _descending(misfit: Callable[[Latent], Scalar], rate: float) -> Method:
    """The plain step, and then one down the gradient of `misfit` at the clean estimate."""

    def method(denoise: Denoiser, solver: Solver, y: Latent, mask: LatentMask) -> Step:
        def step(state: State, level: Level) -> State:
            key, solver_key = jax.random.split(state.key)

            def estimate(x: Latent) -> tuple[Scalar, Prediction]:
                prediction = denoise(x, level)
                return misfit(prediction.clean), prediction

            slope, prediction = jax.grad(estimate, has_aux=True)(state.x)
            x, memory = solver.update(state.memory, prediction, level, solver_key)
            return State(x - rate * slope, memory, key)

        return step

    return method
