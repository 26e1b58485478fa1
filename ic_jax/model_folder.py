"""A converted model on disk: one folder, one orbax checkpoint per network, one manifest.

    manifest.json   variant, and for every component its layout, sources and tensors
    dit/  vae/ ...  orbax folders; any orbax restores them, sharded where a pod wants that
    spiece.model    the tokenizer, beside the text encoder that needs it

The manifest knows the shape, dtype and checksum of every tensor, so that a folder that was
damaged, cut short or put together from two is refused on load.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from .checkpoint import checksum, shape_difference, shapes
from .errors import InputError
from .leafwise import Leaves, save_leaves, visit_leaves
from .output import replaced_file

MANIFEST = "manifest.json"


@contextmanager
def new_model_folder(path: str | Path) -> Iterator[Path]:
    """Yields an empty folder, which becomes `path` when the block ends well; else nothing is left.

    The block writes the components (`write_component`) and last the manifest (`write_manifest`).
    Raises InputError if `path` exists and is not an empty folder, or cannot be written.
    """
    path = Path(os.path.abspath(path))
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{path}: exists and is not an empty folder; choose another name")
    missing = [parent for parent in path.parents if not parent.exists()]
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        with _unwritable(path):
            aside.mkdir(parents=True)
        yield aside
        with _unwritable(path):
            os.replace(aside, path)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        for parent in missing:
            with suppress(OSError):  # never made, or somebody has begun to use it
                parent.rmdir()
        raise


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason})") from error


@contextmanager
def new_calibration(folder: str | Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """Yields a function that stores a calibration in the manifest, in place of an earlier one.

    The new manifest appears when the block ends well; nothing else of the folder is touched.

    Raises:
        InputError: no model folder of ours, or one that cannot be written; before the block.
    """
    manifest = read_manifest(folder)
    with replaced_file(Path(folder) / MANIFEST) as aside:
        yield lambda record: _write(aside, {**manifest, "calibration": dict(record)})


def write_component(path: Path, keys: Iterable[str], leaves: Leaves) -> dict[str, dict[str, Any]]:
    """Write one network, leaf by leaf, as the orbax folder `path`; returns its tensors' record.

    `leaves` are pairs of a "/"-joined key and an array, `keys` all their names in any order.
    The record, which belongs into the manifest as the component's "tensors", says dtype, shape
    and CRC-32 of every leaf. Raises InputError where the disk does not take it.
    """
    record: dict[str, dict[str, Any]] = {}

    def recorded() -> Iterator[tuple[str, np.ndarray]]:
        for key, leaf in leaves:
            leaf = np.asarray(leaf, order="C")
            record[key] = _described(leaf)
            yield key, leaf
            del leaf  # before the next one is made

    try:
        save_leaves(path, keys, recorded())
    except ValueError as error:
        if "Error writing" not in str(error):  # tensorstore's words for a full disk and its like
            raise
        reason = str(error).rpartition(": ")[2].partition(" [")[0]
        raise InputError(f"the {path.name} cannot be written: {reason}") from error
    return record


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, which makes the folder a model."""
    _write(folder / MANIFEST, manifest)


def _write(file: Path, manifest: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(manifest, indent=1) + "\n")


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """The manifest of the model in `folder`.

    {"variant": name, "components": {"dit": {"layout": ..., "dtype": ..., "parameters": n,
    "sources": [{"file", "bytes", "sha256"}], "tensors": {key: {"dtype", "shape", "crc32"}}}},
    "loras": [...], "calibration": {...}, "versions": {...}}

    Raises InputError for a folder that is missing, half-written, or not a model of ours.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        _check_manifest(manifest)
    except FileNotFoundError as error:
        raise InputError(
            f"{folder}: no {MANIFEST}, so half-written or not a model of ours; "
            "make one with `ic-jax convert`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder / MANIFEST}: damaged; convert the model again") from error
    return manifest


def load_component(
    folder: str | Path,
    name: str,
    target: PyTree | None = None,
    cast: Callable[[str, np.ndarray], Any] | None = None,
) -> PyTree:
    """The parameters of the network `name` ("dit", "vae", ...) of a model, in a nested dict.

    Leaves are read one at a time, checked, and passed to `cast(key, array)`, which returns what
    is kept, so that the stored and the cast weights never exist together. Without it they stay
    numpy arrays as stored. `target`, a tree of anything with shapes (`jax.eval_shape` makes
    one), must have exactly the same keys and shapes; this is checked before anything is read.

    Raises InputError for a folder without that network, for one whose files are missing,
    truncated or altered, and with a diff of the keys for one that does not fit `target`.
    """
    folder = Path(os.path.abspath(folder))
    return _load_checked(folder / name, component_tensors(folder, name, target), cast)


def component_tensors(
    folder: str | Path, name: str, target: PyTree | None = None
) -> dict[str, dict[str, Any]]:
    """The record of `write_component` for the network `name` of a model: no tensor is read.

    Raises InputError for a folder without that network, and with a diff of the keys for one
    that does not fit `target`.
    """
    components = read_manifest(folder)["components"]
    if name not in components:
        raise InputError(
            f"{folder}: has no {name}; it holds {', '.join(components)}: convert again from a "
            f"source with the {name} among its files"
        )
    tensors = components[name]["tensors"]
    if target is not None:
        stored = {key: tuple(tensor["shape"]) for key, tensor in tensors.items()}
        if difference := shape_difference(stored, shapes(target)):
            raise InputError(f"{Path(folder) / name} does not fit the model:\n{difference}")
    return tensors


def _load_checked(
    path: Path,
    tensors: Mapping[str, dict[str, Any]],
    cast: Callable[[str, np.ndarray], Any] | None,
) -> PyTree:
    kept = {}

    def keep(key: str, leaf: np.ndarray) -> None:
        if tensors.get(key) != _described(leaf):
            raise _damaged(path, f"{key} is not what was written")
        kept[key] = cast(key, leaf) if cast else leaf

    try:
        visit_leaves(path, keep)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).split("\n")[0]
        raise _damaged(path, reason) from error
    if missing := sorted(tensors.keys() - kept.keys()):
        raise _damaged(path, f"{missing[0]} is missing")
    return unflatten_dict(kept, sep="/")


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged ({reason}); convert the model again")


def _described(leaf: np.ndarray) -> dict[str, Any]:
    return {"dtype": str(leaf.dtype), "shape": list(leaf.shape), "crc32": checksum(leaf)}


def _check_manifest(manifest: dict[str, Any]) -> None:
    """Raises where the parts that loading relies on are not there."""
    if not isinstance(manifest["variant"], str):
        raise TypeError("variant")
    if not isinstance(manifest.get("calibration", {}), dict):
        raise TypeError("calibration")
    for component in manifest["components"].values():
        for tensor in component["tensors"].values():
            tensor["dtype"], tuple(tensor["shape"]), tensor["crc32"]
