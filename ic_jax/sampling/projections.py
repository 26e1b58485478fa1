"""Rules of other papers that move the clean estimate and draw no noise.

All are diagonal in the latent mask. Where a paper has one mask in pixels, we have a share a and
an error variance v for every latent, and h = h(1) stands for the operator; y is the measurement
as encoded, at full strength. Being written for latents, these are reconstructions.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from ic_jax.latent_mask import LatentMask

from .consistency import GAMMA_SCHEDULES, Consistency, Latent, Noise, changed, weighted
from .denoiser import Prediction
from .schedule import Level


def ddnm(noise: Noise = "keep") -> Consistency:
    """clean ← clean + h (y - clean): only the null space is left to the model.

    Denoising Diffusion Null-Space Model (arXiv 2212.00490): clean - A⁺(A clean - A y) for
    A = diag(h > 0), whose pseudo-inverse is itself. Errors of the measurement scale the
    projection by h, where the paper's Σ (eq. 17) follows from σ and one variance. The noise
    is kept; the share η = 0.85 that the paper draws anew is the solver's `renoise`.
    """
    return weighted(lambda mask, level: mask.weight(1.0), noise)


def dds_attenuated(
    gamma: float = 5.0, gamma_schedule: str = "constant", noise: Noise = "recompute"
) -> Consistency:
    """clean ← (clean + γ h y) / (1 + γ h²): DDS for a y taken to be attenuated by the mask.

    The proximal step of Decomposed Diffusion Sampling (arXiv 2303.05754) with y itself as the
    data of the operator diag(h), y = h · z; `dds` takes h y as the data, y = z. So this one
    pulls to y / h: given h · z it is `dds` of z, and given z, as our y is, soft latents
    overshoot; y has its largest factor, √γ / 2, at h = 1/√γ. The two agree where h is 0 or 1.
    """

    def rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        h = mask.weight(1.0)
        strength = gamma * GAMMA_SCHEDULES[gamma_schedule](level.sigma)
        change = strength * h * (y - h * prediction.clean) / (1 + strength * h**2)
        return changed(prediction, change, level, noise, key)

    return rule


def flowchef(rate: float = 0.9, descents: int = 10) -> Consistency:
    """x ← x - rate ∇ ½ |h (clean(x) - y)|², `descents` times with the velocity held fixed.

    FlowChef (arXiv 2412.00100), which takes the velocity's Jacobian as 0: x, clean and noise all
    move by the same step, so the velocity is kept and x is not. For a diagonal operator all
    descents together are one weight, 1 - (1 - rate h²)^descents, exactly. The paper's loss is
    a mean over the elements, and its rates differ from task to task; ours is for each element,
    in (0, 2).
    """

    def rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        weight = 1 - (1 - rate * mask.weight(1.0) ** 2) ** descents
        change = weight * (y - prediction.clean)
        return Prediction(prediction.clean + change, prediction.noise + change)

    return rule


def trimmed(rule: Consistency | None = None, share: float = 0.8) -> Consistency:
    """`rule`, where the clean estimate is already near y: in the nearest `share` of each frame.

    NVS-Solver (arXiv 2405.15364): an element is guided if its |clean - y| is among the smallest
    of its frame's observed elements, since a large difference says that the warp is wrong. A
    soft mask counts with its coverage. The paper's own rule replaces clean by y and recomputes
    the noise (`ddnm` with that noise, our default); its share falls with σ and with the
    distance from the given view, by constants fitted to each path, for which ours is constant.
    """
    rule = rule or ddnm(noise="recompute")

    def trimmed_rule(
        prediction: Prediction, y: Latent, mask: LatentMask, level: Level, key: PRNGKeyArray
    ) -> Prediction:
        error = jnp.abs(prediction.clean - y)
        coverage = jnp.broadcast_to(mask.coverage, error.shape)
        kept = smallest(error, coverage, share)
        return rule(prediction, y, LatentMask(coverage * kept, mask.variance), level, key)

    return trimmed_rule


def smallest(
    values: Float[Array, "t h w c"], weights: Float[Array, "t h w c"], share: float
) -> Bool[Array, "t h w c"]:
    """Per frame, True at the smallest values that together make up this share of the weight."""
    flat, mass = (array.reshape(len(array), -1) for array in (values, weights))
    order = jnp.argsort(flat, axis=1)
    mass = jnp.take_along_axis(mass, order, axis=1)
    reached = jnp.cumsum(mass, axis=1)
    # By rank: compared by value, an element at the limit could fall out by a rounding error.
    kept = reached - mass < share * reached[:, -1:]
    return jnp.take_along_axis(kept, jnp.argsort(order, axis=1), axis=1).reshape(values.shape)
