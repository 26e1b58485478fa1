"""Smooth random pictures: what the edges of a made-up hole or of made-up depth follow."""

import numpy as np
from jaxtyping import Float
from scipy.ndimage import gaussian_filter


def smooth_noise(
    rng: np.random.Generator, height: int, width: int, grain: float
) -> Float[np.ndarray, "{height} {width}"]:
    """Gaussian noise of mean 0 and deviation 1, smooth over `grain` of the shorter side."""
    noise = rng.standard_normal((height, width))
    # "nearest" and "reflect" would make the rim of a picture rougher or flatter than its middle
    smooth = gaussian_filter(noise, grain * min(height, width), mode="wrap")
    return ((smooth - smooth.mean()) / smooth.std()).astype(np.float32)
