"""The mask that linearises the encoder about the filled clip."""

import jax
from jaxtyping import PRNGKeyArray

from .contents import clouds
from .mask import Encode, LatentMask, Measurement, Operator
from .shares import coverage


def jacobian(
    operator: Operator,
    encode: Encode,
    measurement: Measurement,
    key: PRNGKeyArray,
    *,
    probes: int = 4,
) -> LatentMask:
    """First-order sensitivity of every latent to the hidden pixels.

    v is the mean of (J (hidden ∘ z))² over random z, where J is the encoder's Jacobian at the
    filled clip: Hutchinson's estimate of diag(J Σ Jᵀ), Σ being the covariance of z. Estimates
    the error's variance if the hidden pixels differ from the fill by z. White z would be the
    plain estimate, of the rows' energy Σ J²; but an encoder averages, so it lets white noise
    cancel where real errors, alike from pixel to pixel, add up (4 times too small in our small
    model, while the ranks are as good). z is noise at every scale, as varied as the clip, which
    is rather more than a good fill is wrong by. a is the mean coverage. Costs 2 encodes per
    probe (`jax.jvp`), one probe at a time. Fails where the content is far from the fill (the
    encoder is not linear), and is noisy: n probes put each v off by a factor of 1 ± √(2/n).
    """
    hidden = 1 - operator.visible[..., None]
    clip = measurement.clip

    def squared_change(key: PRNGKeyArray):
        z = hidden * clip.std((0, 1, 2)) * clouds(clip.shape, key)
        return jax.jvp(encode, (clip,), (z,))[1] ** 2

    v = jax.lax.map(squared_change, jax.random.split(key, probes)).mean(0)
    return LatentMask(coverage(operator.visible, measurement.latent.shape), v)
