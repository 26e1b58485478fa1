"""A clip with its depth, and the camera it is to be seen from: files in, arrays out."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from . import framing
from .depth_file import load_depth
from .errors import InputError
from .geometry.camera import Camera, compose, same_aspect, scale_intrinsics
from .geometry.depth import DepthClip, resize_depth, scene_radius
from .geometry.trajectory import load_trajectory, trajectory
from .geometry.warp import WarpOperator, warp_operator
from .video import Clip

# Of a scene's centre, so that float32 holds its products with focal lengths and amounts.
FARTHEST = 1e30

_warp_operator = jax.jit(warp_operator)


class Shot(NamedTuple):
    """Frames, their z-depth and the two cameras, all of one size and length.

    Both cameras are in the same world; `load_shot` puts its origin where the first source camera
    stands, because float32 has no digits for details far from it. Its axes stay the file's.
    `keep` is False where a pixel is no part of the scene (padding).
    """

    frames: UInt8[np.ndarray, "t h w 3"]
    depth: Float[np.ndarray, "t h w"]
    source: Camera
    target: Camera
    keep: Bool[np.ndarray, "t h w"]

    def operator(self) -> WarpOperator:
        """The warp from the source cameras to the target cameras."""
        depth, source, target, keep = jax.tree.map(jnp.asarray, self[1:])
        return _warp_operator(depth, source, target, keep=keep)

    def to_working(self, fit: framing.Fit) -> "Shot":
        """The shot as a model of fixed size sees it; its padding is no part of the scene."""
        cameras = (
            camera._replace(
                intrinsics=jnp.asarray(
                    framing.intrinsics_to_working(np.asarray(camera.intrinsics), fit)
                )
            )
            for camera in (self.source, self.target)
        )
        keep = np.broadcast_to(framing.inside(fit), (len(self.frames), *fit.working))
        return Shot(
            framing.to_working(self.frames, fit),
            framing.depth_to_working(self.depth, fit),
            *cameras,
            keep=keep,
        )

    def take(self, window: range) -> "Shot":
        """The frames of one window; past the end the last frame repeats."""
        return jax.tree.map(lambda leaf: framing.take(np.asarray(leaf), window), self)

    def hold(self, known: UInt8[np.ndarray, "n h w 3"]) -> "Shot":
        """The shot, whose first n frames are known in the new view already.

        They become frames that the target camera took itself: the warp leaves them as they
        are and counts them as observed, by the same operator as everything else. That camera
        stands at the origin in them, for far from it float32 has no digits left for depth 1.
        """
        n = len(known)
        replaced = lambda old, new: np.concatenate([np.asarray(new), np.asarray(old)[n:]])
        origin = np.broadcast_to(np.eye(4, dtype=np.float32), (n, 4, 4))
        lens = self.target.intrinsics[:n]
        return Shot(
            replaced(self.frames, known),
            replaced(self.depth, np.ones((n, *self.depth.shape[1:]), np.float32)),
            Camera(replaced(self.source.c2w, origin), replaced(self.source.intrinsics, lens)),
            self.target._replace(c2w=replaced(self.target.c2w, origin)),
            replaced(self.keep, np.ones((n, *self.keep.shape[1:]), bool)),
        )


def load_shot(
    clip: Clip,
    depth_path: str | Path,
    camera: str,
    *,
    amount: float | None = None,
    depth_kind: str | None = None,
    depth_scale: float | None = None,
    depth_shift: float | None = None,
    fov: float | None = None,
) -> Shot:
    """A clip, its depth (`depth_file.load_depth`), and a camera: a path's name or a JSON file's.

    Raises:
        InputError: depth or camera that cannot be read or do not fit the clip.
    """
    frames, height, width, _ = clip.frames.shape
    depth = _fitted(
        load_depth(depth_path, depth_kind, fov, depth_scale, depth_shift), clip, depth_path
    )
    source = depth.camera
    if camera.endswith(".json"):
        if amount is not None:
            raise InputError(f"{camera}: a camera file has no amount; leave --amount out")
        target = load_trajectory(camera, depth.intrinsics, (height, width), frames, depth.origin)
    else:
        path = trajectory(camera, frames, _radius(depth, depth_path), amount)
        target = Camera(compose(source.c2w[0], path), depth.intrinsics)
    if not all(np.isfinite(leaf).all() for leaf in (*source, *target)):
        raise InputError(
            f"{depth_path}: its cameras, moved by {camera}, are not finite in float32;"
            " give them in units that bring them nearer to 1"
        )
    keep = np.ones((frames, height, width), bool)
    return Shot(clip.frames, np.asarray(depth.depth), source, target, keep)


def _radius(depth: DepthClip, path: str | Path) -> float:
    radius = scene_radius(depth.depth)
    if not 1 / FARTHEST < radius < FARTHEST:
        raise InputError(
            f"{path}: the depth at the scene's centre is {radius:g};"
            " give it in units that bring it nearer to 1"
        )
    return radius


def _fitted(depth: DepthClip, clip: Clip, path: str | Path) -> DepthClip:
    """Depth at the clip's own size."""
    frames, height, width, _ = clip.frames.shape
    if len(depth.depth) != frames:
        raise InputError(
            f"{path}: {len(depth.depth)} frames of depth for {frames} frames in {clip.path}"
        )
    found = depth.depth.shape[1:]
    scale_y, scale_x = height / found[0], width / found[1]
    if not same_aspect(tuple(found), (height, width)):
        raise InputError(
            f"{path}: depth is {found[1]}x{found[0]} and {clip.path} is {width}x{height};"
            " give depth of the clip's aspect"
        )
    return depth._replace(
        depth=resize_depth(depth.depth, height, width),
        intrinsics=scale_intrinsics(depth.intrinsics, scale_x, scale_y),
    )
