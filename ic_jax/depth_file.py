"""Depth from files: our own, and those that the field's tools write. Nothing in one is guessed.

An npz file holds

    depth       [T, H, W]  z-depth, infinite for sky, or disparity: see kind
    kind        "metric": metres or any known unit;
                "relative": depth up to an unknown scale (not shift), harmless here because
                camera paths are measured in units of the scene's own depth;
                "disparity": depth is 1 / (scale * disparity + shift)
    scale, shift           two numbers, for disparity only
    intrinsics  [3, 3] or [T, 3, 3], optional: pixels of this depth's own size
    c2w         [4, 4] or [T, 4, 4], optional: camera to world, in units of the depth; 3x4
                without the last row; absent, the camera stands still

Some arrays have a second name, `ALSO_CALLED`. An npy file is depth alone, and so is a folder of
16-bit grey PNGs, whose whole numbers need a unit. Kind, scale, shift and a field of view may be
told beside a file that does not state them.

Affine-invariant disparity, as many networks give it, has no known shift and bends the scene
if one is guessed, so it has to be stated.
"""

import warnings
import zipfile
import zlib
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt16
from PIL import Image

from .errors import InputError
from .geometry.camera import camera, intrinsics_from_fov
from .geometry.depth import DepthClip
from .video import PILLOW_ERRORS, find_images

KINDS = ("metric", "relative", "disparity")

# What MegaSaM calls them, and Video Depth Anything the first.
ALSO_CALLED = {"depth": "depths", "intrinsics": "intrinsic", "c2w": "cam_c2w"}

# Cameras as well, but which way they go is for their writer to know: a file with these alone
# would seem to have none, and its camera to stand still.
_OTHER_POSES = ("extrinsics", "w2c", "cam_w2c", "poses")

# How many times as far as the farthest finite depth infinity counts: beyond any parallax.
SKY = 1000.0

# What numpy raises of files that are damaged, beside OSError; RuntimeError if they are encrypted.
_NUMPY_ERRORS = (
    ValueError, TypeError, EOFError, KeyError, IndexError, RuntimeError,
    zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def load_depth(
    path: str | Path,
    kind: str | None = None,
    fov: float | None = None,
    scale: float | None = None,
    shift: float | None = None,
) -> DepthClip:
    """Depth and cameras from an npz file (above), an npy file, or a folder of 16-bit grey PNGs.

    Args:
        path: the file, or the folder, whose PNGs are taken in natural order.
        kind: one of `KINDS`, where the file does not state its own.
        fov: horizontal field of view in degrees, for a file without intrinsics.
        scale: of metric and relative depth, what one unit of the values is: 0.001 for PNGs in
            millimetres. Of disparity, as in an npz, where the file does not state it.
        shift: of disparity, likewise.

    Raises:
        InputError: a file that cannot be read, a missing or contradicting declaration, two
            arrays for one thing, a wrong shape, an invalid camera, or a depth that is not above
            0 at every pixel of every frame.
    """
    path = Path(path)
    try:
        if not path.exists():
            raise InputError("no such file or folder; check the path of the depth")
        if path.is_dir():
            if kind == "metric" and scale is None:
                raise InputError("metric PNGs need their unit; pass --depth-scale, 0.001 for mm")
            fields = {"depth": _read_pngs(path)}
        else:
            fields = _read_arrays(path)
        return _depth_clip(fields, kind, fov, scale, shift)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read the depth ({error.strerror or error})") from None


def save_depth(path: str | Path, clip: DepthClip) -> None:
    """Write depth as npz, so that `load_depth` reads the same values back."""
    # what the clip holds is depth by now, whatever it was made from
    kind = "relative" if clip.kind == "disparity" else clip.kind
    np.savez_compressed(path, depth=clip.depth, intrinsics=clip.intrinsics, c2w=clip.c2w, kind=kind)


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    if path.suffix not in (".npz", ".npy"):
        exr = "; convert EXR to .npz first" if path.suffix.lower() in (".exr", ".zip") else ""
        what = path.suffix or "this"
        raise InputError(f"depth comes as .npz, .npy or a folder of PNGs, not {what}{exr}")
    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.ndarray):
                return {"depth": loaded}
            # It reads what it is asked for: frames that lie beside the depth stay on the disk.
            return {name: loaded[held] for name, held in _used(loaded.files).items()}
    except (InputError, OSError):
        raise
    except _NUMPY_ERRORS as error:
        # NumPy's own words would have the user unpickle whatever it is.
        writer = "numpy.savez" if path.suffix == ".npz" else "numpy.save"
        message = f"not a readable {path.suffix} file of numbers; write it with {writer}"
        raise InputError(message) from error


def _used(held: list[str]) -> dict[str, str]:
    """The names of the schema, each with what the file calls it."""
    used = {name: name for name in ("kind", "scale", "shift") if name in held}
    for name, other in ALSO_CALLED.items():
        if name in held and other in held:
            raise InputError(f"holds both {name} and {other}; leave one of them out")
        used |= {name: found for found in (name, other) if found in held}
    if "depth" not in used:
        raise InputError(f"no array named depth (it holds {', '.join(held) or 'nothing'})")
    if "c2w" not in used and (others := [name for name in _OTHER_POSES if name in held]):
        raise InputError(
            f"its {others[0]} are not read; give them as c2w, camera to world, or leave them out"
            " where the camera stands still"
        )
    return used


def _read_pngs(folder: Path) -> UInt16[np.ndarray, "t h w"]:
    images = [_read_png(file) for file in find_images(folder)]
    if not images:
        exr = any(folder.glob("*.exr"))
        raise InputError("holds no PNGs" + "; convert EXR to .npz first" * exr)
    if len({image.shape for image in images}) > 1:
        raise InputError("holds PNGs of several sizes; all frames must have one")
    return np.stack(images)


def _read_png(file: Path) -> UInt16[np.ndarray, "h w"]:
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(file) as image:
            # Of 16 bits of colour Pillow makes 8, so that these are all that it has of more.
            if image.format == "PNG" and image.mode.startswith("I"):
                return np.asarray(image).astype(np.uint16)
            found = f"{image.format}, {image.mode}"
    except PILLOW_ERRORS as error:
        raise InputError(f"{file.name} is not a readable image; write it again") from error
    raise InputError(
        f"{file.name} is no 16-bit grey PNG ({found}): pictures of depth, grey or coloured, hold"
        " too little of it; write the values themselves"
    )


def _depth_clip(
    fields: dict[str, np.ndarray],
    kind: str | None,
    fov: float | None,
    scale: float | None,
    shift: float | None,
) -> DepthClip:
    kind = _declared_kind(fields, kind)
    values = fields["depth"]
    if values.ndim != 3 or not values.size:
        raise InputError(f"depth has shape {values.shape}; give [frames, height, width]")
    if not np.issubdtype(values.dtype, np.number) or np.iscomplexobj(values):
        raise InputError(f"depth is of type {values.dtype}; give real numbers")
    if kind != "disparity" and (shift is not None or {"scale", "shift"} & fields.keys()):
        raise InputError(
            f"a shift, or a scale in the file, is of disparity, and its kind is {kind}"
        )
    scale, shift = _declared(fields, "scale", scale), _declared(fields, "shift", shift)
    with np.errstate(all="ignore"):
        depth = _to_depth(values.astype(np.float64), kind, scale, shift)
        depth = _with_sky(depth).astype(np.float32)
    _check_depth(depth)
    frames, height, width = depth.shape
    c2w, intrinsics = _poses(fields), _intrinsics(fields, fov, height, width)
    view = camera(c2w, intrinsics, frames, size=(height, width))
    c2w = np.broadcast_to(c2w.astype(np.float64), view.c2w.shape)
    return DepthClip(jnp.asarray(depth), view.intrinsics, c2w, kind)


def _declared_kind(fields: dict[str, np.ndarray], kind: str | None) -> str:
    stated = str(fields["kind"]) if "kind" in fields else None
    if stated and kind and stated != kind:
        raise InputError(f"the file says its kind is {stated}, the command says {kind}")
    if not (stated or kind):
        raise InputError(
            f"the depth's kind is not stated; pass --depth-kind {'|'.join(KINDS)}, the last where"
            " nearer is larger (Depth Anything, DepthCrafter)"
        )
    if (stated or kind) not in KINDS:
        raise InputError(f"unknown kind of depth {stated or kind!r}; one of {', '.join(KINDS)}")
    return stated or kind


def _declared(fields: dict[str, np.ndarray], name: str, told: float | None) -> float | None:
    """A number of the file or of the command."""
    try:
        stated = float(fields[name].item()) if name in fields else told
    except (TypeError, ValueError):
        stated = np.nan
    if stated is not None and not np.isfinite(stated):
        raise InputError(f"{name} of its depth is one finite number")
    # A file may hold it in fewer digits.
    if told is not None and not np.isclose(stated, told):
        raise InputError(f"the file says its {name} is {stated:g}, the command says {told:g}")
    return stated


def _to_depth(
    values: Float[np.ndarray, "t h w"], kind: str, scale: float | None, shift: float | None
) -> Float[np.ndarray, "t h w"]:
    if kind != "disparity":
        return values if scale is None else scale * values
    if scale is None or shift is None:
        raise InputError(
            "disparity needs its scale and shift, in the npz or as --depth-scale and"
            " --depth-shift: 1 / depth is scale * disparity + shift"
        )
    return 1 / (scale * values + shift)


def _with_sky(depth: Float[np.ndarray, "t h w"]) -> Float[np.ndarray, "t h w"]:
    farthest = depth.max(where=np.isfinite(depth), initial=0.0)
    return np.where(np.isposinf(depth), SKY * farthest, depth)


def _check_depth(depth: Float[np.ndarray, "t h w"]) -> None:
    bad = ~(np.isfinite(depth) & (depth > 0))
    if bad.any():
        first = bad.any((1, 2)).argmax()
        raise InputError(
            f"{bad.sum()} of {bad.size} depths are not numbers above 0, the first in frame"
            f" {first}; fill them, far pixels such as sky with infinity"
        )


def _poses(fields: dict[str, np.ndarray]) -> np.ndarray:
    c2w = fields.get("c2w", np.eye(4))
    if c2w.shape[-2:] != (3, 4):
        return c2w
    last = np.broadcast_to(np.array([[0, 0, 0, 1]], c2w.dtype), (*c2w.shape[:-2], 1, 4))
    return np.concatenate([c2w, last], axis=-2)


def _intrinsics(
    fields: dict[str, np.ndarray], fov: float | None, height: int, width: int
) -> np.ndarray | Float[np.ndarray, "3 3"]:
    if "intrinsics" in fields:
        if fov is not None:
            raise InputError("has intrinsics of its own; leave --fov out")
        return fields["intrinsics"]
    if fov is None:
        raise InputError("no intrinsics; pass --fov with the horizontal field of view in degrees")
    return np.asarray(intrinsics_from_fov(fov, height, width))
