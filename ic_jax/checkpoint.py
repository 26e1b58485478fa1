"""Parameters in one safetensors file of ours, written whole or not at all.

For models small enough to be held in memory twice; a converted one is a `model_folder`.
"""

import json
import os
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree
from safetensors.numpy import save_file

from .errors import InputError

Shape = tuple[int, ...]


def save(path: str | Path, params: PyTree, manifest: Mapping[str, Any]) -> None:
    """Write nested-dict `params` and a JSON-serialisable `manifest` to the file `path`.

    Keys are "/"-joined. An older file is replaced once the new one is complete. Raises
    InputError if the place cannot be written.
    """
    path = Path(path).absolute()
    # A transposed view would otherwise be stored in the wrong order.
    flat = {
        key: np.asarray(leaf, order="C")
        for key, leaf in flatten_dict(jax.device_get(params), sep="/").items()
    }
    checksums = {key: checksum(leaf) for key, leaf in flat.items()}
    metadata = {"manifest": json.dumps(manifest), "checksums": json.dumps(checksums)}
    metadata["manifest_checksum"] = _text_sum(metadata["manifest"])
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(aside, flat, metadata)
        os.replace(aside, path)
    except (OSError, safetensors.SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot write {path}: {reason}") from error
    finally:
        with suppress(OSError):  # renamed, or never made
            aside.unlink()


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """One safetensors file, as readable as any file that its user makes."""
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata=dict(metadata))
    path.chmod(mode)  # the library lets nobody else read it


def load(path: str | Path, target: PyTree | None = None) -> tuple[PyTree, dict[str, Any]]:
    """The parameters, as numpy arrays in a nested dict, and the manifest stored in `path`.

    `target`, a tree of anything with shapes (`jax.eval_shape` makes one), must have exactly the
    same keys and shapes. Raises InputError for a missing, damaged or foreign file, and with a
    diff of the keys for one that does not fit `target`.
    """
    path = Path(path).absolute()
    if not path.exists():
        raise InputError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            flat = {key: file.get_tensor(key) for key in file.keys()}
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error
    if "manifest" not in metadata:
        raise InputError(f"{path} is not a checkpoint of ours: convert it with `ic-jax convert`")
    manifest = _checked(path, flat, metadata)
    params = unflatten_dict(flat, sep="/")
    if target is not None:
        difference = shape_difference(shapes(params), shapes(target))
        if difference:
            raise InputError(f"{path} does not fit the model:\n{difference}")
    return params, manifest


def checksum(leaf: np.ndarray) -> int:
    """CRC-32 of the array's bytes in C order."""
    return zlib.crc32(np.asarray(leaf, order="C").reshape(-1).view(np.uint8))


def shapes(tree: PyTree) -> dict[str, Shape]:
    """The shape of every leaf of a nested dict, by "/"-joined key."""
    return {key: tuple(leaf.shape) for key, leaf in flatten_dict(tree, sep="/").items()}


def shape_difference(found: Mapping[str, Shape], expected: Mapping[str, Shape]) -> str:
    """One line per key that is missing (-), unknown (+) or of another shape (both); "" if none."""
    missing = [f"- {key} {expected[key]}" for key in expected if found.get(key) != expected[key]]
    unknown = [f"+ {key} {found[key]}" for key in found if expected.get(key) != found[key]]
    return "\n".join(sorted(missing + unknown, key=lambda line: line[2:]))


def _checked(
    path: Path, flat: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> dict[str, Any]:
    """The manifest, once it and all tensors are found to be what was written."""
    text = metadata["manifest"]
    # Each of the sums may be missing: the file is older than they are.
    if metadata.get("manifest_checksum", _text_sum(text)) != _text_sum(text):
        raise InputError(f"{path} is damaged: its manifest is not what was written")
    try:
        manifest, sums = json.loads(text), json.loads(metadata.get("checksums", "{}"))
    except ValueError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    for key, leaf in flat.items():
        if "checksums" in metadata and checksum(leaf) != sums.get(key):
            raise InputError(f"{path} is damaged: {key} is not what was written")
    return manifest


def _text_sum(text: str) -> str:
    return str(zlib.crc32(text.encode()))
