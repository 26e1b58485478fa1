"""Pinhole cameras: where a pixel's ray goes, and where a point of space lands.

Axes are OpenCV's: x to the right, y down, z forward, seen from the camera. A pose `c2w`
maps camera coordinates to world coordinates, so its last column is the camera's position.
Intrinsics are in pixels, and the centre of the top-left pixel is (0.5, 0.5). Depth is
z-depth: the coordinate along the optical axis, not the length of the ray.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ic_jax.errors import InputError

# How far R Rᵀ may be from the identity: files hold poses in a few printed digits.
RIGID_TOLERANCE = 1e-3
# Intrinsics of a unit picture have the principal point within what would be the first pixel, and
# focal lengths that would see all but the whole half-space: below this share of the picture.
SHORTEST_FOCAL = 0.05
# A picture of another size is taken for the same view up to this difference in aspect.
ASPECT_TOLERANCE = 0.02


class Camera(NamedTuple):
    """One camera, or one per frame of a clip. Build it with `camera`: this checks nothing."""

    c2w: Float[Array, "*t 4 4"]
    intrinsics: Float[Array, "*t 3 3"]


def camera(
    c2w: ArrayLike,
    intrinsics: ArrayLike,
    frames: int,
    *,
    origin: ArrayLike = 0.0,
    size: tuple[int, int] | None = None,
) -> Camera:
    """A checked camera per frame, from poses and intrinsics given once or per frame.

    Far from its origin float32 has no digits left for a world's details. Cameras that are used
    together, source and target, need the same `origin`.

    Args:
        c2w: [4, 4] or [frames, 4, 4], camera to world, in the units of the depth.
        intrinsics: [3, 3] or [frames, 3, 3], in pixels of the image that they belong to.
        frames: number of frames of the result.
        origin: [3], the point of c2w's world that becomes its origin, subtracted in float64.
        size: (height, width) of that image, if known.

    Raises:
        InputError: a shape that does not fit, a number that is not finite in float32, a pose
            that is not a rigid transform, intrinsics without a positive focal length, or ones
            that cannot be in pixels of an image of that size.
    """
    poses = _per_frame("c2w", c2w, 4, frames)
    poses[:, :3, 3] -= origin
    matrices = _per_frame("intrinsics", intrinsics, 3, frames)
    _check_finite("c2w", poses)
    _check_finite("intrinsics", matrices)
    _check_rigid(poses)
    _check_intrinsics(matrices)
    if size is not None:
        _check_in_pixels(matrices, *size)
    return Camera(jnp.asarray(poses, jnp.float32), jnp.asarray(matrices, jnp.float32))


def intrinsics_from_fov(fov_degrees: float, height: int, width: int) -> Float[Array, "3 3"]:
    """Square pixels, the optical axis through the middle, and a horizontal field of view.

    Raises:
        InputError: the field of view is not between 0 and 180 degrees, or so small that float32
            has no focal length for it.
    """
    with np.errstate(all="ignore"):
        focal = np.float32(0.5 * width / np.tan(0.5 * np.radians(fov_degrees)))
    if not (0 < fov_degrees < 180 and np.isfinite(focal)):
        raise InputError(f"the field of view is {fov_degrees} degrees; give one such as 60")
    return jnp.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], jnp.float32)


def same_aspect(found: tuple[int, int], wanted: tuple[int, int]) -> bool:
    """Whether two (height, width) may show the same picture, up to `ASPECT_TOLERANCE`."""
    return abs(wanted[0] / found[0] * found[1] / wanted[1] - 1) <= ASPECT_TOLERANCE


def scale_intrinsics(
    intrinsics: Float[Array, "*t 3 3"],
    scale_x: float,
    scale_y: float,
    offset_x: float = 0.0,
    offset_y: float = 0.0,
) -> Float[Array, "*t 3 3"]:
    """Intrinsics after an image is resized by the scales, then cropped.

    The offsets are the left and top margins cut off, in pixels of the resized image
    (negative: padding added). Pixel centres at +0.5 make this a plain product.
    """
    change = jnp.array([[scale_x, 0, -offset_x], [0, scale_y, -offset_y], [0, 0, 1]])
    return compose(change, intrinsics)


def compose(outer: Float[Array, "*a n n"], inner: Float[Array, "*b n n"]) -> Float[Array, "..."]:
    """Matrix product at full precision: a TPU's default would move pixels by whole pixels."""
    return jnp.matmul(outer, inner, precision=jax.lax.Precision.HIGHEST)


def pixel_centres(height: int, width: int) -> Float[Array, "{height} {width} 2"]:
    """(x, y) of every pixel's centre."""
    x, y = jnp.meshgrid(jnp.arange(width) + 0.5, jnp.arange(height) + 0.5)
    return jnp.stack([x, y], axis=-1)


def unproject(
    pixels: Float[Array, "h w 2"], depth: Float[Array, "h w"], camera: Camera
) -> Float[Array, "h w 3"]:
    """World points at the given depth behind the pixels of one camera."""
    rays = jnp.stack([*jnp.moveaxis(pixels, -1, 0), jnp.ones_like(depth)], axis=-1)
    points = _apply(jnp.linalg.inv(camera.intrinsics), rays) * depth[..., None]
    return _apply(camera.c2w[:3, :3], points) + camera.c2w[:3, 3]


def project(
    points: Float[Array, "h w 3"], camera: Camera
) -> tuple[Float[Array, "h w 2"], Float[Array, "h w"]]:
    """Pixels and depth of world points in one camera.

    The depth is negative behind the camera; the pixels mean something only where it is
    positive, and are finite everywhere except on the camera's own plane.
    """
    local = _apply(camera.c2w[:3, :3].T, points - camera.c2w[:3, 3])
    depth = local[..., 2]
    image = _apply(camera.intrinsics, local)
    return image[..., :2] / depth[..., None], depth


def _apply(matrix: Float[Array, "3 3"], points: Float[Array, "h w 3"]) -> Float[Array, "h w 3"]:
    """Written out: full precision on every device, and four times faster on a CPU than a dot."""
    x, y, z = jnp.moveaxis(points, -1, 0)
    return jnp.stack([row[0] * x + row[1] * y + row[2] * z for row in matrix], axis=-1)


def _per_frame(name: str, values: ArrayLike, size: int, frames: int) -> np.ndarray:
    try:
        values = np.asarray(values).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError):
        raise InputError(f"{name} is not an array of numbers") from None
    wanted = ((size, size), (frames, size, size))
    if values.shape not in wanted:
        raise InputError(f"{name} has shape {values.shape}; give {wanted[0]} or {wanted[1]}")
    return np.array(np.broadcast_to(values, wanted[1]))


def _check_finite(name: str, values: np.ndarray) -> None:
    with np.errstate(over="ignore"):
        finite = np.isfinite(values.astype(np.float32)).all()
    if not finite:
        raise InputError(f"{name} holds a number that is not finite in float32")


def _check_rigid(poses: np.ndarray) -> None:
    rotation = poses[:, :3, :3]
    gram_error = np.abs(rotation @ rotation.transpose(0, 2, 1) - np.eye(3)).max((1, 2))
    last_row_error = np.abs(poses[:, 3] - [0, 0, 0, 1]).max(1)
    bad = (np.maximum(gram_error, last_row_error) > RIGID_TOLERANCE) | (np.linalg.det(rotation) < 0)
    if bad.any():
        raise InputError(
            f"c2w of frame {bad.argmax()} is not a rigid transform; give a rotation without scale"
            " or mirror, a translation, and the last row 0 0 0 1"
        )


def _check_intrinsics(matrices: np.ndarray) -> None:
    focal = np.minimum(matrices[:, 0, 0], matrices[:, 1, 1])
    last_row_error = np.abs(matrices[:, 2] - [0, 0, 1]).max(1)
    # To XLA a subnormal number is 0.
    bad = (
        (focal < np.finfo(np.float32).tiny)
        | (last_row_error > RIGID_TOLERANCE)
        | (np.linalg.det(matrices) <= 0)
    )
    if bad.any():
        raise InputError(
            f"intrinsics of frame {bad.argmax()} are singular or not a camera's;"
            " give [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels, fx and fy above 0"
        )


def _check_in_pixels(matrices: np.ndarray, height: int, width: int) -> None:
    (fx, fy), (cx, cy) = matrices[:, (0, 1), (0, 1)].T, matrices[:, :2, 2].T
    first_pixel = (np.minimum(cx, cy) >= 0) & (np.maximum(cx, cy) <= 1)
    bad = first_pixel & (fx < SHORTEST_FOCAL * width) & (fy < SHORTEST_FOCAL * height)
    if bad.any():
        frame = bad.argmax()
        raise InputError(
            f"intrinsics of frame {frame} look normalised (fx {fx[frame]:g}, cx {cx[frame]:g});"
            f" give them in pixels of an image of {width}x{height}"
        )
