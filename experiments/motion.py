"""Motion: where a scene's points truly go, and whether a clip moves along with them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Shaped
from scipy.ndimage import map_coordinates, maximum_filter, minimum_filter

from experiments.held_out import NewView
from experiments.metrics import Regions
from experiments.scene_render import Scene, object_poses, surfaces
from experiments.scenes import scene_of
from ic_jax.geometry.camera import Camera, pixel_centres, project, unproject

# Inverse depths that differ by more than this share belong to two surfaces.
SAME_SURFACE = 0.01
# Pixels of rounding in a flow that ends on the frame's edge.
SLACK = 1e-3


class Motion(NamedTuple):
    """Where what each pixel shows lies in the next frame."""

    flow: Float[np.ndarray, "t-1 h w 2"]
    """(x, y) in pixels: from frame t to frame t + 1, on the grid of frame t."""
    valid: Bool[np.ndarray, "t-1 h w"]
    """Where it is seen in both frames, away from outlines, whose pixels mix two motions."""


class WarpError(NamedTuple):
    """Difference of each frame and the next one pulled back to it, for clips in [-1, 1]."""

    absolute: float
    squared: float


# True motion ----------------------------------------------------------------------


def known_motion(
    scene: Scene, c2w: Float[Array, "t 4 4"], intrinsics: Float[Array, "3 3"],
    times: Float[Array, "t"], height: int, width: int,
) -> Motion:
    """The flow that `render` with the same arguments shows, of the room and of the objects.

    A point of a surface moves with its object's pose, or stays with the room. It is valid where
    the next frame shows the same object at the same depth; shadows and highlights, which move on
    their own, are not looked for.
    """
    depth, slots = surfaces(scene, c2w, intrinsics, times, height, width)
    camera = Camera(c2w, jnp.broadcast_to(intrinsics, (len(c2w), 3, 3)))
    points = jax.vmap(unproject, (None, 0, 0))(pixel_centres(height, width), depth, camera)
    poses = jax.vmap(object_poses, (None, 0))(scene.objects, times)
    points, slots, *poses = (np.asarray(leaf, np.float64) for leaf in (points, slots, *poses))
    moved = np.stack([
        _moved(points[t], slots[t].astype(int), *(pose[t : t + 2] for pose in poses))
        for t in range(len(times) - 1)])

    following = jax.tree.map(lambda leaf: leaf[1:], camera)
    there, depth_there = jax.vmap(project)(jnp.asarray(moved, jnp.float32), following)
    flow = np.asarray(there - pixel_centres(height, width), np.float64)

    shown = np.stack([_one_surface(slots), slots, 1 / np.asarray(depth, np.float64)], -1)
    one_surface, slots_there, inverse = np.moveaxis(pull_back(shown, flow), -1, 0)
    valid = (shown[:-1, ..., 0] == 1) & (one_surface > 1 - SLACK) & _inside(flow)
    valid &= np.abs(slots_there - slots[:-1]) < SLACK
    # Inverse depth is linear over the image of a plane, depth is not.
    valid &= np.abs(inverse * np.asarray(depth_there) - 1) < SAME_SURFACE
    return Motion(flow, valid)


def view_motion(seed: int, view: NewView) -> Motion:
    """The true motion in a held-out scene's new view; `seed` is the one it was made from."""
    frames, height, width, _ = view.truth.shape
    scene = scene_of(seed, frames, height, width)[0]
    target = view.operator.target
    times = jnp.linspace(0, 1, frames)
    return known_motion(scene, target.c2w, target.intrinsics[0], times, height, width)


def flow_magnitude(motion: Motion) -> float:
    """Mean length of the known flow in pixels per frame; nan where none is known."""
    lengths = np.linalg.norm(motion.flow, axis=-1)[motion.valid]
    return float(lengths.mean()) if lengths.size else float("nan")


# Motion of a clip -----------------------------------------------------------------


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


def warp_error_by_region(
    clip: Float[np.ndarray, "t h w 3"], motion: Motion, where: Regions
) -> dict[str, WarpError]:
    """`warp_error` of the pixels that start in each region."""
    return {
        name: warp_error(clip, motion.flow, motion.valid & region[:-1])
        for name, region in where._asdict().items()
    }


def motion_by_region(clip: Float[np.ndarray, "t h w 3"], where: Regions) -> dict[str, float]:
    """Mean absolute difference of a pixel and itself in the next frame, per region.

    Both must lie in the region; nan without such pixels. Flicker counts as well as motion.
    """
    change = np.abs(np.diff(np.asarray(clip, np.float64), axis=0)).mean(-1)
    stays = {name: region[:-1] & region[1:] for name, region in where._asdict().items()}
    return {
        name: float(change[mask].mean()) if mask.any() else float("nan")
        for name, mask in stays.items()
    }


def motion_ratio(
    clip: Float[np.ndarray, "t h w 3"], truth: Float[np.ndarray, "t h w 3"], where: Regions
) -> dict[str, float]:
    """`motion_by_region` of a clip over that of the truth: below 1 it is stiller than it should be.

    nan where the truth does not change at all.
    """
    ours, true = motion_by_region(clip, where), motion_by_region(truth, where)
    return {name: ours[name] / true[name] if true[name] else float("nan") for name in true}


def _moved(points, slots, centres, rotations):
    """World points of one frame at the next frame's time."""
    local = np.einsum("hwji,hwj->hwi", rotations[0][slots], points - centres[0][slots])
    moved = np.einsum("hwij,hwj->hwi", rotations[1][slots], local) + centres[1][slots]
    return np.where(slots[..., None] < 0, points, moved)


def _one_surface(slots):
    """Pixels whose eight neighbours show the same object."""
    size = (1, 3, 3)
    return maximum_filter(slots, size) == minimum_filter(slots, size)


def _inside(flow):
    rows, columns = np.mgrid[: flow.shape[1], : flow.shape[2]]
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    last_y, last_x = np.array(flow.shape[1:3]) - 1 + SLACK
    return (x >= -SLACK) & (x <= last_x) & (y >= -SLACK) & (y <= last_y)
