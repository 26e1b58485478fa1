"""The mask that was learnt beforehand: coverage, convolved."""

from functools import partial

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ic_jax.errors import InputError

from .mask import Encode, LatentMask, Measurement, Operator
from .shares import coverage

KERNEL = 3, 3, 3
"""Latent frames (the latent's own and those before it), rows and columns."""


def kernel(
    operator: Operator,
    encode: Encode,
    measurement: Measurement,
    key: PRNGKeyArray,
    *,
    weights: Float[Array, "kt kh kw c"] | None = None,
) -> LatentMask:
    """What holes of this shape have cost before: no encode at run time.

    v is the missing share of the latent's neighbourhood, convolved with non-negative `weights`
    per channel, which `kernel_fit.fit_kernel` found on clips whose truth is known; the last of
    the `kt` frames is the latent's own, as in a causal convolution. Estimates the mean squared
    error over clips, given the holes; a is the mean coverage. Fails where this clip is not like
    those: it cannot know that a hole is smooth or busy, or filled well or badly, and it adds
    up what two holes do although the second one adds less.

    Raises:
        InputError: no `weights`, because the model was not calibrated.
    """
    if weights is None:
        raise InputError("mask 'kernel' needs a calibrated model: run ic-jax calibrate")
    a = coverage(operator.visible, measurement.latent.shape)
    frames, height, width = weights.shape[:3]
    margins = (frames - 1, 0), (height // 2, height // 2), (width // 2, width // 2)
    convolve = partial(
        jax.lax.conv_general_dilated,
        window_strides=(1, 1, 1),
        padding=margins,
        dimension_numbers=("NTHWC", "THWIO", "NTHWC"),
        precision="highest",
    )
    return LatentMask(a, convolve(1 - a[None], weights[..., None, :])[0])
