"""Depth of a clip: its cameras, its scale, its edges. `ic_jax.depth_file` reads and writes it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ic_jax.geometry.camera import Camera

# Neighbours whose depths differ by more than this fraction lie on different surfaces.
RELATIVE_JUMP = 0.1


class DepthClip(NamedTuple):
    """z-depth per frame, with the cameras that saw it. `kind` is the file's declaration.

    `c2w` is in the file's own world, and in float64 if it was read from one.
    """

    depth: Float[Array, "t h w"]
    intrinsics: Float[Array, "t 3 3"]
    c2w: Float[Array | np.ndarray, "t 4 4"]
    kind: str

    @property
    def origin(self) -> Float[np.ndarray, "3"]:
        """Where in the file's world the first camera stands."""
        return np.asarray(self.c2w, np.float64)[0, :3, 3]

    @property
    def camera(self) -> Camera:
        """The cameras that saw it, one per frame, in a world that has its origin at `origin`."""
        c2w = np.array(self.c2w, np.float64)
        c2w[:, :3, 3] -= self.origin
        with np.errstate(over="ignore"):
            return Camera(jnp.asarray(c2w.astype(np.float32)), self.intrinsics)


def scene_radius(depth: Float[Array, "t h w"]) -> float:
    """Depth of the scene's centre: the median over the middle third of the first frame."""
    _, height, width = depth.shape
    middle = depth[0, height // 3 : height - height // 3, width // 3 : width - width // 3]
    return float(jnp.median(middle))


def resize_depth(
    depth: Float[Array | np.ndarray, "t h w"], height: int, width: int
) -> Float[Array | np.ndarray, "t {height} {width}"]:
    """Resize by the nearest sample, never a blend: a mean of two depths is a surface nobody saw."""
    _, old_height, old_width = depth.shape
    rows = (np.arange(height) + 0.5) * old_height / height
    columns = (np.arange(width) + 0.5) * old_width / width
    return depth[:, rows.astype(int)][:, :, columns.astype(int)]


def depth_edges(
    depth: Float[Array, "t h w"], relative_jump: float = RELATIVE_JUMP
) -> Bool[Array, "t h w"]:
    """Which pixels to keep: False on the far side of a depth edge.

    The rule: a pixel is dropped where its depth is more than (1 + relative_jump) times the
    nearest depth in its 3x3 window. This takes the flying pixels that a blurred edge leaves
    between two surfaces, and the one-pixel rim of background that holds the foreground's
    colour and would stay behind as a ghost. The foreground's own rim stays.
    """
    nearest = jax.lax.reduce_window(depth, jnp.inf, jax.lax.min, (1, 3, 3), (1, 1, 1), "SAME")
    return depth <= (1 + relative_jump) * nearest
