"""Camera paths: where the new camera is at every frame.

A named path is relative to the first source camera. Its pose at frame t maps coordinates of
the new camera to coordinates of the first source camera (OpenCV axes: x right, y down,
z forward), so the new camera's own pose is

    c2w_new[t] = c2w_source[0] @ trajectory(...)[t]

It starts at the identity, moves smoothly and arrives at `amount` in the last frame. Lengths
are in units of the depth, and amounts of moves are fractions of `radius`, the depth of the
scene's centre: paths therefore look the same whatever the depth's unknown scale.
Left, right, up and down say where the *camera* goes or turns; the picture moves the other way.
"""

import difflib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from ic_jax.errors import InputError
from ic_jax.geometry.camera import Camera, camera, same_aspect, scale_intrinsics

RIGHT = np.array([1.0, 0.0, 0.0])
DOWN = np.array([0.0, 1.0, 0.0])
FORWARD = np.array([0.0, 0.0, 1.0])

FIELDS = ("c2w", "intrinsics", "width", "height")


class Move(NamedTuple):
    """A path as a function: pose(progressed amount, radius), its default amount and unit."""

    pose: Callable[[float, float], np.ndarray]
    amount: float
    unit: str


def smoothstep(time: np.ndarray) -> np.ndarray:
    """Ease in and out: 3t² - 2t³, at rest at both ends of [0, 1]."""
    return time * time * (3 - 2 * time)


def _translate(direction: np.ndarray) -> Callable[[float, float], np.ndarray]:
    def pose(fraction: float, radius: float) -> np.ndarray:
        matrix = np.eye(4)
        matrix[:3, 3] = fraction * radius * direction
        return matrix

    return pose


def _turn(axis: np.ndarray) -> Callable[[float, float], np.ndarray]:
    """Rotation in place by an angle in degrees about an axis (Rodrigues' formula)."""
    x, y, z = axis
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])

    def pose(degrees: float, radius: float) -> np.ndarray:
        angle = np.radians(degrees)
        matrix = np.eye(4)
        matrix[:3, :3] += np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
        return matrix

    return pose


def _arc(axis: np.ndarray) -> Callable[[float, float], np.ndarray]:
    """Rotation about the point on the optical axis at `radius`, looking at it all the way."""
    turn = _turn(axis)

    def pose(degrees: float, radius: float) -> np.ndarray:
        matrix = turn(degrees, radius)
        centre = radius * FORWARD
        matrix[:3, 3] = centre - matrix[:3, :3] @ centre
        return matrix

    return pose


TRAJECTORIES = {
    "static": Move(_translate(0 * FORWARD), 0.0, "none"),
    "zoom_in": Move(_translate(FORWARD), 0.25, "fraction of the radius"),
    "zoom_out": Move(_translate(-FORWARD), 0.25, "fraction of the radius"),
    "arc_left": Move(_arc(DOWN), 15.0, "degrees"),
    "arc_right": Move(_arc(-DOWN), 15.0, "degrees"),
    "arc_up": Move(_arc(-RIGHT), 15.0, "degrees"),
    "arc_down": Move(_arc(RIGHT), 15.0, "degrees"),
    "pan_left": Move(_turn(-DOWN), 10.0, "degrees"),
    "pan_right": Move(_turn(DOWN), 10.0, "degrees"),
    "tilt_up": Move(_turn(RIGHT), 10.0, "degrees"),
    "tilt_down": Move(_turn(-RIGHT), 10.0, "degrees"),
    "translate_left": Move(_translate(-RIGHT), 0.15, "fraction of the radius"),
    "translate_right": Move(_translate(RIGHT), 0.15, "fraction of the radius"),
    "translate_up": Move(_translate(-DOWN), 0.15, "fraction of the radius"),
    "translate_down": Move(_translate(DOWN), 0.15, "fraction of the radius"),
}


def trajectory(
    name: str,
    frames: int,
    radius: float,
    amount: float | None = None,
) -> Float[Array, "{frames} 4 4"]:
    """Poses of the new camera relative to the first source camera, one per frame.

    Args:
        name: a key of `TRAJECTORIES`.
        frames: number of poses; a single frame stays at the identity.
        radius: depth of the scene's centre, in units of the depth (see `scene_radius`).
        amount: how far the last frame is, in the path's unit; None for its default.

    Raises:
        InputError: an unknown name (the nearest is suggested), no frames, a radius that is
            not positive, an amount that is not finite or leads where float32 has no numbers,
            or one of a path that goes nowhere.
    """
    move = _named(name)
    amount = move.amount if amount is None else amount
    if frames < 1:
        raise InputError(f"a camera path needs at least one frame, not {frames}")
    if not (np.isfinite(radius) and radius > 0):
        raise InputError(f"the radius of a camera path must be above 0, not {radius}")
    if not np.isfinite(amount):
        raise InputError(f"the amount of camera path {name} must be a finite number, not {amount}")
    if amount and move.unit == "none":
        raise InputError(f"camera path {name} has no amount; leave --amount out")
    progress = smoothstep(np.linspace(0.0, 1.0, frames))
    with np.errstate(all="ignore"):
        poses = np.stack([move.pose(amount * fraction, radius) for fraction in progress])
        poses = poses.astype(np.float32)
    if not np.isfinite(poses).all():
        raise InputError(
            f"the amount of camera path {name} is {amount}, at a radius of {radius:g}: farther than"
            " float32 goes; give a smaller one"
        )
    return jnp.asarray(poses)


def load_trajectory(
    path: str | Path,
    intrinsics: Float[Array, "*t 3 3"] | None = None,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    origin: ArrayLike = 0.0,
) -> Camera:
    """A camera per frame from a JSON file.

        {"c2w": [[[...4], [...4], [...4], [...4]], ...one per frame],
         "intrinsics": [[fx, 0, cx], [0, fy, cy], [0, 0, 1]],
         "width": 1280, "height": 720}

    `c2w` is camera to world with OpenCV axes, in the units of the depth and in the world that
    the depth file's own `c2w` refers to (without one, the source camera is the world's origin).
    `intrinsics` may be one matrix, one per frame, or absent. `width` and `height` say which
    image size they belong to; without them it is the clip's own. Nothing else may be in it.

    Args:
        path: the file.
        intrinsics: used when the file has none, usually the source's.
        size: (height, width) of the clip, to which the intrinsics are scaled.
        frames: number of frames of the clip; None takes as many as there are poses.
        origin: [3], the point of the file's world that becomes its origin (`DepthClip.origin`).

    Raises:
        InputError: the file is missing, is not such a JSON, holds an invalid camera, or is for
            a clip of another length or aspect.
    """
    fields = _read_json(Path(path))
    try:
        return _camera_from(fields, intrinsics, size, frames, origin)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _named(name: str) -> Move:
    if name not in TRAJECTORIES:
        nearest = difflib.get_close_matches(name, TRAJECTORIES, n=1, cutoff=0.0)[0]
        raise InputError(
            f"unknown camera path {name!r}; did you mean {nearest}?"
            f" (known: {', '.join(TRAJECTORIES)})"
        )
    return TRAJECTORIES[name]


def _read_json(path: Path) -> dict:
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: cannot read the camera path ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from None
    if not isinstance(fields, dict) or "c2w" not in fields:
        raise InputError(f'{path}: give a JSON object with "c2w": a list of 4x4 matrices')
    if unknown := [name for name in fields if name not in FIELDS]:
        nearest = difflib.get_close_matches(unknown[0], FIELDS, n=1, cutoff=0.0)[0]
        raise InputError(f"{path}: unknown {unknown[0]!r}; did you mean {nearest}?")
    return fields


def _camera_from(
    fields: dict,
    intrinsics: Float[Array, "*t 3 3"] | None,
    size: tuple[int, int] | None,
    frames: int | None,
    origin: ArrayLike,
) -> Camera:
    c2w = _numbers("c2w", fields["c2w"])
    if c2w.ndim != 3 or not len(c2w):
        raise InputError(f'"c2w" has shape {c2w.shape}; give a list of 4x4 matrices')
    if frames not in (None, len(c2w)):
        raise InputError(f"{len(c2w)} poses for a clip of {frames} frames; give one per frame")
    if "intrinsics" not in fields:
        if intrinsics is None:
            raise InputError('no "intrinsics"; add them: [[fx, 0, cx], [0, fy, cy], [0, 0, 1]]')
        return camera(c2w, intrinsics, len(c2w), origin=origin)
    found = _file_size(fields) if {"width", "height"} & fields.keys() else size
    given = _numbers("intrinsics", fields["intrinsics"])
    result = camera(c2w, given, len(c2w), origin=origin, size=found)
    if size in (None, found):
        return result
    if not same_aspect(found, size):
        raise InputError(
            f'"width" and "height" are {found[1]}x{found[0]} and the clip is'
            f" {size[1]}x{size[0]}; give a camera of the clip's aspect"
        )
    scale_y, scale_x = (clip / file for clip, file in zip(size, found))
    scaled = scale_intrinsics(result.intrinsics, scale_x, scale_y)
    return camera(c2w, scaled, len(c2w), origin=origin)


def _file_size(fields: dict) -> tuple[int, int]:
    size = _numbers("height and width", [fields.get("height"), fields.get("width")])
    if size.ndim != 1 or not (np.isfinite(size) & (size >= 1) & (size == np.floor(size))).all():
        raise InputError('"width" and "height" come together, and are whole pixels from 1 on')
    return tuple(map(int, size))


def _numbers(name: str, values: object) -> np.ndarray:
    try:
        return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f'"{name}" is not a regular list of numbers') from None
