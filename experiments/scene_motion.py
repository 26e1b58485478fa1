"""Where the points of rendered scenes truly go from frame to frame."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from scipy.ndimage import maximum_filter, minimum_filter

from experiments.held_out import NewView
from experiments.motion import pull_back
from experiments.scene_render import Scene, object_poses, surfaces
from experiments.scenes import scene_of
from ic_jax.geometry.camera import Camera, pixel_centres, project, unproject

# Inverse depths that differ by more than this share belong to two surfaces.
SAME_SURFACE = 0.01
# Rounding: in pixels at the frame's edge, in shares of neighbours, in rotations.
SLACK = 1e-3


class Motion(NamedTuple):
    """Where what each pixel shows lies in the next frame."""

    flow: Float[np.ndarray, "pairs h w 2"]
    """(x, y) in pixels: from frame t to frame t + 1, on the grid of frame t."""
    valid: Bool[np.ndarray, "pairs h w"]
    """Where it is seen in both frames and looks the same, away from outlines, which mix motions."""


def known_motion(
    scene: Scene, c2w: Float[Array, "t 4 4"], intrinsics: Float[Array, "3 3"],
    times: Float[Array, "t"], height: int, width: int,
) -> Motion:
    """The flow that `render` with the same arguments shows, of the room and of the objects.

    A point of a surface moves with its object's pose, or stays with the room. It is valid where
    the next frame shows the same object at the same depth, unless the object turns: its shade
    does not turn with it. The outlines of moving shadows are not looked for.
    """
    depth, slots = (np.asarray(x) for x in surfaces(scene, c2w, intrinsics, times, height, width))
    camera = Camera(c2w, jnp.broadcast_to(intrinsics, (len(c2w), 3, 3)))
    pixels = pixel_centres(height, width)
    points = jax.vmap(unproject, (None, 0, 0))(pixels, depth, camera)
    centres, rotations = jax.vmap(object_poses, (None, 0))(scene.objects, times)
    moved = _moved(np.asarray(points), slots, *(np.asarray(x) for x in (centres, rotations)))
    following = jax.tree.map(lambda leaf: leaf[1:], camera)
    there, depth_there = jax.vmap(project)(jnp.asarray(moved, jnp.float32), following)
    flow = np.asarray(there - pixels, np.float64)
    seen = _seen_again(flow, depth, slots, np.asarray(depth_there))
    return Motion(flow, seen & ~_turning(slots, np.asarray(rotations)))


def view_motion(seed: int, view: NewView) -> Motion:
    """The true motion in a held-out scene's new view; `seed` is the one it was made from."""
    frames, height, width, _ = view.truth.shape
    scene = scene_of(seed, frames, height, width)[0]
    target = view.operator.target
    times = jnp.linspace(0, 1, frames)
    return known_motion(scene, target.c2w, target.intrinsics[0], times, height, width)


def _moved(points, slots, centres, rotations):
    """Where the points of every frame but the last are at the next frame's time."""
    moved = points[:-1].astype(np.float64)
    for t, frame in enumerate(moved):
        hit = slots[t] >= 0
        slot = slots[t][hit]
        local = np.einsum("nji,nj->ni", rotations[t, slot], frame[hit] - centres[t, slot])
        frame[hit] = np.einsum("nij,nj->ni", rotations[t + 1, slot], local) + centres[t + 1, slot]
    return moved


def _turning(slots, rotations):
    """Pixels of objects whose rotation is another in the next frame."""
    turns = np.abs(np.diff(rotations, axis=0)).max((2, 3)) > SLACK
    return np.stack([(now >= 0) & turn[now] for now, turn in zip(slots[:-1], turns, strict=True)])


def _seen_again(flow, depth, slots, depth_there):
    """Where the next frame shows the same surface at the depth that it moved to."""
    # Inverse depth is linear over the image of a plane, depth is not.
    shown = np.stack([_one_surface(slots), slots, 1 / depth], -1)
    one_surface, slots_there, inverse = np.moveaxis(pull_back(shown, flow), -1, 0)
    return (
        _inside(flow)
        & _one_surface(slots)[:-1]
        & (one_surface > 1 - SLACK)
        & (np.abs(slots_there - slots[:-1]) < SLACK)
        & (np.abs(inverse * depth_there - 1) < SAME_SURFACE)
    )


def _one_surface(slots):
    """Pixels whose eight neighbours show the same object."""
    size = (1, 3, 3)
    return maximum_filter(slots, size) == minimum_filter(slots, size)


def _inside(flow):
    rows, columns = np.mgrid[: flow.shape[1], : flow.shape[2]]
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    last_y, last_x = np.array(flow.shape[1:3]) - 1 + SLACK
    return (x >= -SLACK) & (x <= last_x) & (y >= -SLACK) & (y <= last_y)
