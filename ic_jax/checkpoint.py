"""Parameters on disk: an orbax folder or one safetensors file, written whole or not at all."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors.numpy import save_file

from .errors import InputError

Shape = tuple[int, ...]


def save(path: str | Path, params: PyTree, manifest: Mapping[str, Any]) -> None:
    """Write nested-dict `params` and a JSON-serialisable `manifest` to `path`.

    A name that ends in .safetensors makes one file with "/"-joined keys, and replaces an older
    file; any other makes an orbax folder. The checkpoint appears under `path` only when it is
    complete. Raises InputError if the folder exists or the place cannot be written.
    """
    path = Path(path).absolute()
    as_file = path.suffix == ".safetensors"
    if not as_file and path.exists():
        raise InputError(f"{path} exists: choose another folder or remove it first")
    params = jax.device_get(params)
    write = _write_file if as_file else _write_folder
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_aside(path, lambda aside: write(aside, params, manifest))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def load(path: str | Path, target: PyTree | None = None) -> tuple[PyTree, dict[str, Any]]:
    """The parameters, as numpy arrays in a nested dict, and the manifest stored at `path`.

    `target`, a tree of anything with shapes (`jax.eval_shape` makes one), must have exactly the
    same keys and shapes. Raises InputError for a missing, damaged or foreign checkpoint, and
    with a diff of the keys for one that does not fit `target`.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise InputError(f"no checkpoint at {path}")
    params, manifest = _read_folder(path) if path.is_dir() else _read_file(path)
    if target is not None:
        difference = shape_difference(shapes(params), shapes(target))
        if difference:
            raise InputError(f"{path} does not fit the model:\n{difference}")
    return params, manifest


def shapes(tree: PyTree) -> dict[str, Shape]:
    """The shape of every leaf of a nested dict, by "/"-joined key."""
    return {key: tuple(leaf.shape) for key, leaf in flatten_dict(tree, sep="/").items()}


def shape_difference(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    """One line per key that is missing (-), unknown (+) or of another shape (both); "" if none."""
    missing = [f"- {key} {expected[key]}" for key in expected if found.get(key) != expected[key]]
    unknown = [f"+ {key} {found[key]}" for key in found if expected.get(key) != found[key]]
    return "\n".join(sorted(missing + unknown, key=lambda line: line[2:]))


def _write_aside(path: Path, write: Callable[[Path], None]) -> None:
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(aside)
        os.replace(aside, path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def _write_file(path: Path, params: PyTree, manifest: Mapping[str, Any]) -> None:
    # A transposed view would otherwise be stored in the wrong order.
    flat = {k: np.ascontiguousarray(v) for k, v in flatten_dict(params, sep="/").items()}
    save_file(flat, path, metadata={"manifest": json.dumps(manifest)})


def _read_file(path: Path) -> tuple[PyTree, dict[str, Any]]:
    try:
        with safetensors.safe_open(path, "np") as file:
            manifest = (file.metadata() or {}).get("manifest")
            flat = {key: file.get_tensor(key) for key in file.keys()}
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error
    if manifest is None:
        raise InputError(f"{path} is not a checkpoint of ours: convert it with `python -m convert`")
    return unflatten_dict(flat, sep="/"), json.loads(manifest)


def _write_folder(path: Path, params: PyTree, manifest: Mapping[str, Any]) -> None:
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(path / "params", params)
    (path / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _read_folder(path: Path) -> tuple[PyTree, dict[str, Any]]:
    try:
        manifest = json.loads((path / "manifest.json").read_text())
        with ocp.PyTreeCheckpointer() as checkpointer:
            return checkpointer.restore(path / "params"), manifest
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is damaged or not a checkpoint of ours: {reason}") from error
