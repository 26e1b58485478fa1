"""Motion of a clip: whether it moves along with the scene, and as much as it should."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.ndimage import map_coordinates


class WarpError(NamedTuple):
    """Difference of each frame and the next one pulled back to it, for clips in [-1, 1]."""

    absolute: float
    squared: float


def pull_back(
    clip: Shaped[np.ndarray, "t h w c"], flow: Float[np.ndarray, "t-1 h w 2"]
) -> Float[np.ndarray, "t-1 h w c"]:
    """Each next frame on the grid of the one before it: bilinear, the nearest pixel outside."""
    rows, columns = np.mgrid[: clip.shape[1], : clip.shape[2]]
    pulled = [
        [map_coordinates(channel, (rows + y, columns + x), np.float64, order=1, mode="nearest")
         for channel in np.moveaxis(following, -1, 0)]
        for following, (x, y) in zip(clip[1:], np.moveaxis(flow, -1, 1), strict=True)]
    return np.moveaxis(np.array(pulled), 1, -1)


def warp_error(
    clip: Float[np.ndarray, "t h w 3"],
    flow: Float[np.ndarray, "t-1 h w 2"],
    valid: Bool[np.ndarray, "t-1 h w"],
) -> WarpError:
    """Mean absolute and mean squared temporal warp error over valid pixels; nan without any.

    Lai et al., "Learning blind video temporal consistency" (2018), with the scene's own motion
    instead of an estimated one. Read it beside the truth's own error, which interpolation and
    moving light keep above zero, and beside `motion_ratio`: blur lowers it.
    """
    difference = (pull_back(clip, flow) - clip[:-1])[valid]
    if not difference.size:
        return WarpError(float("nan"), float("nan"))
    return WarpError(float(np.abs(difference).mean()), float(np.square(difference).mean()))


def motion(clip: Float[np.ndarray, "t h w 3"], region: Bool[np.ndarray, "t h w"]) -> float:
    """Mean absolute difference of a pixel and itself in the next frame, both in the region.

    nan without such pixels. Flicker counts as well as motion.
    """
    change = np.abs(np.diff(np.asarray(clip, np.float64), axis=0))[region[:-1] & region[1:]]
    return float(change.mean()) if change.size else float("nan")


def motion_ratio(
    clip: Float[np.ndarray, "t h w 3"],
    truth: Float[np.ndarray, "t h w 3"],
    region: Bool[np.ndarray, "t h w"],
) -> float:
    """`motion` of a clip over that of the truth: below 1 it is stiller than it should be.

    nan where the truth does not change at all.
    """
    true = motion(truth, region)
    return motion(clip, region) / true if true else float("nan")
