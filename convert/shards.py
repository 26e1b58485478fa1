"""Which weight files of a folder belong together: single files, and complete sets of shards."""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ic_jax.errors import InputError
from ic_jax.model_folder import MANIFEST, read_manifest

from .keymap import State
from .source import SUFFIXES, read_state

# Weights in formats that are not read: better an error than a model without them.
_FOREIGN = (".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".sft", ".tflite")

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


@dataclass(frozen=True)
class Checkpoint:
    """The file of one network, or all of its shards, with the index that names them."""

    files: tuple[Path, ...]
    index: Path | None = None

    @property
    def name(self) -> Path:
        """What errors call it."""
        return self.files[0] if len(self.files) == 1 else self.index or self.files[0].parent

    def state(self) -> State:
        """Its tensors by key; raises InputError where the index tells of others."""
        for file in self.files:
            if not file.exists():
                raise InputError(f"{file} is missing: {self.index} lists it")
        state = read_state(self.files)
        if self.index is not None:
            self._check_index(_weight_map(self.index))
        return state

    def _check_index(self, weight_map: dict[str, str]) -> None:
        for file in self.files:
            found = read_state([file]).keys()
            listed = {key for key, name in weight_map.items() if name == file.name}
            if other := sorted(found ^ listed):
                raise InputError(
                    f"{file} is not the shard that {self.index.name} describes: {other[0]} is "
                    f"{'not listed there' if other[0] in found else 'missing'}; "
                    "download the whole set again"
                )


def find_checkpoints(source: Path) -> list[Checkpoint]:
    """Every network's weights in a folder and the folders below it; or the one file `source`.

    Looks at the `released_files` only. Raises InputError for an incomplete or mixed set of
    shards, for weights in a format that is not read, and where there are none.
    """
    if not source.exists():
        raise InputError(f"no such file or folder: {source}")
    if source.is_file():
        return [Checkpoint((source,))]
    folders: dict[Path, list[Path]] = defaultdict(list)
    for file in released_files(source):
        if file.suffix in _FOREIGN:
            raise InputError(f"{file}: {file.suffix} is not read; remove it or convert one file")
        if file.suffix in SUFFIXES or file.name.endswith(".index.json"):
            folders[file.parent].append(file)
    found = [checkpoint for files in folders.values() for checkpoint in _in_folder(files)]
    if not found:
        raise InputError(f"{source}: no weights ({', '.join(SUFFIXES)}) in this folder")
    return found


def released_files(source: Path) -> list[Path]:
    """The files of a folder and the folders below it, sorted.

    Passed over are hidden ones (download caches) and the models that were converted into them.
    """
    files = [
        file
        for file in sorted(source.rglob("*"))
        if not any(part.startswith(".") for part in file.relative_to(source).parts)
        and not file.is_dir()
    ]
    converted = {file.parent for file in files if file.name == MANIFEST and _is_ours(file.parent)}
    return [file for file in files if converted.isdisjoint(file.parents)]


def _is_ours(folder: Path) -> bool:
    try:
        read_manifest(folder)
    except InputError:
        return False
    return True


def _in_folder(files: list[Path]) -> Iterator[Checkpoint]:
    rest = {file.name: file for file in files if file.suffix in SUFFIXES}
    for index in (file for file in files if file.suffix == ".json"):
        names = sorted(set(_weight_map(index).values()))
        yield Checkpoint(tuple(index.with_name(name) for name in names), index)
        for name in names:
            rest.pop(name, None)
        _check_unlisted(index, rest)
    sets: dict[tuple[str, str], dict[str, Path]] = defaultdict(dict)
    for name, file in rest.items():
        if match := _SHARD.fullmatch(name):
            sets[match["stem"], match["suffix"]][name] = file
        else:
            yield Checkpoint((file,))
    for shards in sets.values():
        _check_complete(shards)
        yield Checkpoint(tuple(shards.values()))


def _check_unlisted(index: Path, rest: dict[str, Path]) -> None:
    stem, _, suffix = index.name.removesuffix(".index.json").rpartition(".")
    for name, file in rest.items():
        match = _SHARD.fullmatch(name)
        if match and (match["stem"], match["suffix"]) == (stem, f".{suffix}"):
            raise InputError(f"{file} is not in {index.name}: shards of two sets are mixed")


def _check_complete(shards: dict[str, Path]) -> None:
    matches = [_SHARD.fullmatch(name) for name in shards]
    first = next(iter(shards.values()))
    counts = {match["count"] for match in matches}
    if len(counts) > 1:
        raise InputError(
            f"{first.parent}: shards of two sets are mixed (of {' and of '.join(sorted(counts))})"
        )
    numbers = {int(match["number"]) for match in matches}
    if missing := sorted(set(range(1, int(counts.pop()) + 1)) - numbers):
        name = re.sub(r"-\d{5}-of", f"-{missing[0]:05d}-of", first.name)
        raise InputError(f"{first.with_name(name)} is missing: the set of shards is not complete")


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        names = weight_map.values()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{index} is damaged or not an index of shards") from error
    # Taken as names beside the index, so nothing else.
    if not names or not all(isinstance(name, str) and name == Path(name).name for name in names):
        raise InputError(f"{index} does not name shards beside it")
    return weight_map
