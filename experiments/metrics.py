"""How close a clip is to the truth: by region, in pixels, in structure and in latents."""

from functools import cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from scipy.ndimage import maximum_filter
from skimage.metrics import structural_similarity

from experiments.motion import motion_ratio, warp_error
from experiments.spectrum import spectrum_distance_db
from ic_jax.errors import InputError
from ic_jax.report import psnr_db


class Regions(NamedTuple):
    """Where pixels are compared. Hole and visible part the whole; the seam is in the visible."""

    visible: Bool[np.ndarray, "t h w"]
    seam: Bool[np.ndarray, "t h w"]
    hole: Bool[np.ndarray, "t h w"]
    whole: Bool[np.ndarray, "t h w"]


def regions(visible: Float[np.ndarray, "t h w"], seam: int = 8) -> Regions:
    """Holes are pixels seen by less than a half; the seam is what is seen within `seam` pixels.

    The distance is the larger of the two along rows and columns, within a frame.
    """
    hole = visible < 0.5
    near = maximum_filter(hole, size=(1, 2 * seam + 1, 2 * seam + 1), mode="constant", cval=False)
    return Regions(~hole, ~hole & near, hole, np.ones_like(hole))


def scores(
    clip: Float[np.ndarray, "t h w 3"],
    truth: Float[np.ndarray, "t h w 3"],
    where: Regions,
    flow: tuple[Float[np.ndarray, "t-1 h w 2"], Bool[np.ndarray, "t-1 h w"]] | None = None,
) -> dict[str, float]:
    """Everything that is asked of a clip in [-1, 1]; nan where there is nothing to ask.

    visible, seam, hole, whole (PSNR in dB) and ssim_*; spectrum, the hole's distance in dB;
    motion_*, over the truth's. With the true flow and where it is valid (`scene_motion`) also
    warp_error_*, mean absolute, and the same of the truth, which is not zero either. Names without
    a region are of the whole.
    """
    found = psnr_by_region(clip, truth, where)
    found |= {f"ssim_{name}": value for name, value in ssim_by_region(clip, truth, where).items()}
    found["spectrum"] = spectrum_distance_db(clip, truth, where.hole)
    for name, region in where._asdict().items():
        of = "" if name == "whole" else f"_{name}"
        found[f"motion{of}"] = motion_ratio(clip, truth, region)
        if flow is not None:
            known = flow[0], flow[1] & region[:-1]
            found[f"warp_error{of}"] = warp_error(clip, *known).absolute
            found[f"warp_error_of_truth{of}"] = warp_error(truth, *known).absolute
    return found


def psnr_by_region(
    clip: Float[np.ndarray, "t h w 3"], truth: Float[np.ndarray, "t h w 3"], where: Regions
) -> dict[str, float]:
    """PSNR in dB of clips in [-1, 1], per region; nan for a region without pixels."""
    return {name: psnr_db(clip, truth, mask) for name, mask in where._asdict().items()}


def ssim_by_region(
    clip: Float[np.ndarray, "t h w 3"], truth: Float[np.ndarray, "t h w 3"], where: Regions
) -> dict[str, float]:
    """Mean structural similarity of clips in [-1, 1], per region; nan without pixels.

    Wang et al., "Image quality assessment: from error visibility to structural similarity"
    (2004), per frame and colour channel. The window is Gaussian with a standard deviation of 1.5
    pixels, cut off at 11 x 11, so a pixel near a border of its region sees up to 5 pixels of the
    other side. Frames are mirrored at their edges and all their pixels count, for many holes
    lie there; the usual mean over a frame leaves 5 pixels at its edges out.
    """
    return _means(np.stack([_ssim_map(a, b) for a, b in zip(clip, truth, strict=True)]), where)


def lpips_by_region(
    clip: Float[np.ndarray, "t h w 3"], truth: Float[np.ndarray, "t h w 3"], where: Regions
) -> dict[str, float]:
    """Mean perceptual distance of clips in [-1, 1], per region; nan without pixels.

    Zhang et al., "The unreasonable effectiveness of deep features as a perceptual metric" (2018):
    the map of the package `lpips` with AlexNet, brought to the frame's size. Its features see
    far beyond a region's border. Tested with a stand-in for the network: its weights are a
    download, and no number of ours comes from them yet.

    Raises:
        InputError: the package is not installed.
    """
    try:
        import lpips
        import torch
    except ImportError:
        raise InputError("LPIPS needs the package lpips; pip install 'ic-jax[lpips]'") from None
    network = _lpips_network(lpips)

    def distance(frame, true_frame):
        pair = (torch.tensor(x, dtype=torch.float32).permute(2, 0, 1) for x in (frame, true_frame))
        with torch.no_grad():
            return network(*(x[None] for x in pair))[0, 0].numpy()

    return _means(np.stack([distance(a, b) for a, b in zip(clip, truth, strict=True)]), where)


def residual(
    latent: Float[np.ndarray, "t h w c"],
    measurement: Float[np.ndarray, "t h w c"],
    weight: Float[np.ndarray, "#t #h #w #c"],
) -> float:
    """How far a latent is from the measurement: weighted root mean square, normalised units.

    The weights are those by which the measurement is believed, in [0, 1] (a latent mask); nan
    where all are zero.
    """
    squared = np.square(np.asarray(latent, np.float64) - measurement)
    weight = np.broadcast_to(np.asarray(weight, np.float64), squared.shape)
    with np.errstate(invalid="ignore"):
        return float(np.sqrt((weight * squared).sum() / weight.sum()))


def _means(values, where):
    """Mean of a map over each region's pixels."""
    return {
        name: float(values[mask].mean()) if mask.any() else float("nan")
        for name, mask in where._asdict().items()
    }


def _ssim_map(frame, true_frame):
    # The paper's weights: Gaussian, and the population's covariance.
    pair = (np.asarray(x, np.float64) for x in (frame, true_frame))
    return structural_similarity(
        *pair, data_range=2.0, channel_axis=-1, full=True,
        gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
    )[1].mean(-1)  # fmt: skip


@cache
def _lpips_network(package):
    return package.LPIPS(net="alex", spatial=True, verbose=False).eval()
