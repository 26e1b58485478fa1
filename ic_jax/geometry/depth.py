"""Depth of a clip: reading and writing it, its scale, its edges.

The npz file holds

    depth       [T, H, W]  z-depth, infinite for sky, or disparity: see kind
    kind        "metric": metres or any known unit;
                "relative": depth up to an unknown scale (not shift), harmless here because
                camera paths are measured in units of the scene's own depth;
                "disparity": depth is 1 / (scale * disparity + shift)
    scale, shift           two numbers, for disparity only
    intrinsics  [3, 3] or [T, 3, 3], optional: pixels of this depth's own size
    c2w         [4, 4] or [T, 4, 4], optional: camera to world; absent, the camera stands still

Affine-invariant disparity, as many networks give it, has no known shift and bends the scene
if one is guessed, so the file has to state it.
"""

import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ic_jax.errors import InputError
from ic_jax.geometry.camera import Camera, camera, intrinsics_from_fov

KINDS = ("metric", "relative", "disparity")

# Neighbours whose depths differ by more than this fraction lie on different surfaces.
RELATIVE_JUMP = 0.1

# How many times as far as the farthest finite depth infinity counts: beyond any parallax.
SKY = 1000.0

# What numpy raises of files that are damaged, beside OSError; RuntimeError if they are encrypted.
_NUMPY_ERRORS = (
    ValueError, TypeError, EOFError, KeyError, IndexError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


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


def load_depth(path: str | Path, kind: str | None = None, fov: float | None = None) -> DepthClip:
    """Depth and cameras from an npz file (schema above), or from an npy file of depth alone.

    Args:
        path: the file.
        kind: the kind of an npy file, which cannot state its own; None for npz.
        fov: horizontal field of view in degrees, for a file without intrinsics.

    Raises:
        InputError: a file that cannot be read, a missing or contradicting declaration, a
            wrong shape, an invalid camera, or a depth that is not above 0 at every pixel of
            every frame.
    """
    path = Path(path)
    fields = _read_arrays(path)
    try:
        return _depth_clip(fields, kind, fov)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def save_depth(path: str | Path, clip: DepthClip) -> None:
    """Write depth as npz, so that `load_depth` reads the same values back."""
    # what the clip holds is depth by now, whatever it was made from
    kind = "relative" if clip.kind == "disparity" else clip.kind
    np.savez_compressed(path, depth=clip.depth, intrinsics=clip.intrinsics, c2w=clip.c2w, kind=kind)


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


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix not in (".npz", ".npy"):
        raise InputError(f"{path}: depth comes as .npz or .npy, not {path.suffix or 'this'}")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            return {"depth": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except OSError as error:
        raise InputError(f"{path}: cannot read the depth ({error.strerror or error})") from None
    except _NUMPY_ERRORS as error:
        # NumPy's own words would have the user unpickle whatever it is.
        writer = "numpy.savez" if path.suffix == ".npz" else "numpy.save"
        message = f"{path}: not a readable {path.suffix} file of numbers; write it with {writer}"
        raise InputError(message) from error


def _depth_clip(fields: dict[str, np.ndarray], kind: str | None, fov: float | None) -> DepthClip:
    if "depth" not in fields:
        raise InputError(f"no array named depth (it holds {', '.join(fields) or 'nothing'})")
    kind = _declared_kind(fields, kind)
    values = fields["depth"]
    if values.ndim != 3 or not values.size:
        raise InputError(f"depth has shape {values.shape}; give [frames, height, width]")
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InputError(f"depth is of type {values.dtype}; give real numbers")
    with np.errstate(all="ignore"):
        depth = _with_sky(_to_depth(values.astype(np.float64), kind, fields)).astype(np.float32)
    _check_depth(depth)
    frames, height, width = depth.shape
    c2w, intrinsics = fields.get("c2w", np.eye(4)), _intrinsics(fields, fov, height, width)
    view = camera(c2w, intrinsics, frames, size=(height, width))
    c2w = np.broadcast_to(c2w.astype(np.float64), view.c2w.shape)
    return DepthClip(jnp.asarray(depth), view.intrinsics, c2w, kind)


def _declared_kind(fields: dict[str, np.ndarray], kind: str | None) -> str:
    stated = str(fields["kind"]) if "kind" in fields else None
    if stated and kind and stated != kind:
        raise InputError(f"the file says its kind is {stated}, the command says {kind}")
    if not (stated or kind):
        if {"scale", "shift"} <= fields.keys():
            raise InputError(f"the depth's kind is not stated; pass --depth-kind {'|'.join(KINDS)}")
        raise InputError(
            "the depth's kind is not stated; pass --depth-kind metric|relative, or where nearer is"
            " larger (Depth Anything, DepthCrafter) give disparity with scale and shift in an npz"
        )
    if (stated or kind) not in KINDS:
        raise InputError(f"unknown kind of depth {stated or kind!r}; one of {', '.join(KINDS)}")
    return stated or kind


def _to_depth(values: np.ndarray, kind: str, fields: dict[str, np.ndarray]) -> np.ndarray:
    if kind != "disparity":
        return values
    if not {"scale", "shift"} <= fields.keys():
        raise InputError(
            "disparity needs the numbers scale and shift in an npz: 1 / depth is"
            " scale * disparity + shift"
        )
    try:
        scale, shift = (float(fields[name].item()) for name in ("scale", "shift"))
    except (TypeError, ValueError):
        scale = shift = np.nan
    if not np.isfinite([scale, shift]).all():
        raise InputError("scale and shift of disparity are one finite number each")
    return 1 / (scale * values + shift)


def _with_sky(depth: np.ndarray) -> np.ndarray:
    farthest = depth.max(where=np.isfinite(depth), initial=0.0)
    return np.where(np.isposinf(depth), SKY * farthest, depth)


def _check_depth(depth: np.ndarray) -> None:
    bad = ~(np.isfinite(depth) & (depth > 0))
    if bad.any():
        first = bad.any((1, 2)).argmax()
        raise InputError(
            f"{bad.sum()} of {bad.size} depths are not numbers above 0, the first in frame"
            f" {first}; fill them, far pixels such as sky with infinity"
        )


def _intrinsics(
    fields: dict[str, np.ndarray], fov: float | None, height: int, width: int
) -> np.ndarray | Float[Array, "3 3"]:
    if "intrinsics" in fields:
        if fov is not None:
            raise InputError("has intrinsics of its own; leave --fov out")
        return fields["intrinsics"]
    if fov is None:
        raise InputError("no intrinsics; pass --fov with the horizontal field of view in degrees")
    return intrinsics_from_fov(fov, height, width)
