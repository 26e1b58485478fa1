"""The latent mask: how far each latent of the measurement can be trusted.

A hole in pixels does not become a hole in latents. The encoder spreads it over space,
forward in time and unevenly over channels. So the mask carries two numbers for every
latent: the observed share a, and the variance v of the error that the hole's unknown
content causes. Fused with an estimate of variance r², the measurement gets the weight

    h(r²) = a · r² / (r² + v)

which at r² = 1 is a static, continuous, C-channel mask like the paper's.

Every construction has the signature (operator, encode, measurement, key) -> LatentMask,
is pure, and runs under jit. InverseCrafter (arXiv 2512.05672) does not publish its
formula: `encoded` is the plainest reading of its text, and all of these are reconstructions.

                    encodes     knows
    nearest … min   0           which pixels are missing
    kernel          0           and what such holes cost other clips
    encoded         3           how far black and white reach
    probes          8           how far colours reach
    jacobian        2 a probe   how steep the encoder is here
    response        1 a fill    what the clip's own contents would do here
"""

from functools import partial

from ic_jax.registry import Registry

from .colours import encoded, probes
from .contents import CONTENTS, response
from .linear import jacobian
from .mask import Encode, LatentMask, MaskConstruction, Measurement, Operator, fitting
from .offline import KERNEL, kernel
from .shares import coverage, downsample, frame_groups

__all__ = [
    "CONTENTS",
    "Encode",
    "KERNEL",
    "LatentMask",
    "MASKS",
    "MaskConstruction",
    "Measurement",
    "Operator",
    "coverage",
    "downsample",
    "encoded",
    "fitting",
    "frame_groups",
    "jacobian",
    "kernel",
    "probes",
    "response",
]

MASKS = Registry[MaskConstruction](
    nearest=partial(downsample, how="nearest"),
    mean=partial(downsample, how="mean"),
    min=partial(downsample, how="min"),
    encoded=encoded,
    probes=probes,
    response=response,
    response_open=partial(response, opening=2.0),
    jacobian=jacobian,
    kernel=kernel,
)
