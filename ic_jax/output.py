"""What a run writes: it appears whole or not at all, and replaces nobody's files."""

import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from ic_jax.errors import DISK_FULL, InputError

MADE_BY = "ic-jax"
RESULT = "result.json"


@contextmanager
def output_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder to write into, which becomes `path` when the block ends well.

    The last thing that the block writes is `write_result`. On any error, or Ctrl-C, nothing is
    left behind, parents included, and what was at `path` stays as it was.

    `path` may be absent, an empty folder, or an earlier result: a folder whose result.json says
    that we made it and lists every file in it. A folder that is there stays the same folder, for
    it may be a mount point, or where the user's shell stands.

    Raises:
      InputError: `path` holds anything else, is a link or a file, or cannot be written; or the
        disk is full, whatever the block was writing.
    """
    path = Path(os.path.abspath(path))
    _check_replaceable(path, path)
    beside = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.partial"
    inside = path / beside.name
    made = _make_parents(path)
    try:
        try:
            staging = _make_staging(beside, inside)
        except OSError as error:
            raise _unwritable(path, error) from error
        with _full_disk_told(path):
            yield staging
        if foreign := _foreign_files(staging):
            raise RuntimeError(f"{RESULT} does not list {foreign}: write_result comes last")
        _put_in_place(staging, path)
    except BaseException:
        for staging in (beside, inside):
            shutil.rmtree(staging, ignore_errors=True)
        _remove_empty(made)
        raise


@contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty file beside `path`, which becomes `path` when the block ends well.

    On any error what was at `path` stays as it was. Whether it may be replaced is for the caller
    to know.

    Raises:
      InputError: the file cannot be written, before the block is run; or the disk is full.
    """
    path = Path(os.path.abspath(path))
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    made = _make_parents(path)
    try:
        try:
            aside.touch()
        except OSError as error:
            raise _unwritable(path, error) from error
        with _full_disk_told(path):
            yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        _remove_empty(made)
        raise


def write_result(folder: Path, result: dict[str, Any]) -> None:
    """Writes result.json: the result, who made it, and the names of all files in the folder.

    Fractions and paths become text, arrays lists, and numbers that JSON lacks (inf, nan) null.
    """
    files = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    record = {"made_by": MADE_BY, **_plain(result), "files": sorted(files | {RESULT})}
    (folder / RESULT).write_text(json.dumps(record, indent=2, allow_nan=False) + "\n")


def holds_result(path: Path, name: str, value: Any) -> bool:
    """Whether a folder is a result of ours with all of its files, whose `name` is `value`."""
    try:
        record = json.loads((path / RESULT).read_text())
    except (OSError, ValueError):
        return False
    claimed = _claimed(path)
    whole = claimed and all((path / file).is_file() for file in claimed)
    return bool(whole) and record.get(name) == json.loads(json.dumps(_plain(value)))


def check_replaceable(path: str | os.PathLike) -> None:
    """Raises InputError where `output_folder` would, but for a place that cannot be written."""
    path = Path(os.path.abspath(path))
    _check_replaceable(path, path)


def check_writable(folder: str | os.PathLike) -> None:
    """Raises InputError where nothing could be written into a folder, which need not exist yet.

    It makes nothing: another host may be about to write there.
    """
    folder = Path(os.path.abspath(folder))
    try:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        fits = there.is_dir() and os.access(there, os.W_OK | os.X_OK)
    except OSError as error:
        raise _unwritable(folder, error) from error
    if not fits:
        raise InputError(f"{there}: is no folder that can be written into; choose another --out")


def _check_replaceable(found: Path, path: Path) -> None:
    """`found` is the folder to look into, `path` the name that the user knows it by."""
    try:
        if found.is_symlink() or (found.exists() and not found.is_dir()):
            raise InputError(f"{path}: is not a folder; choose another --out")
        foreign = _foreign_files(found) if found.exists() else []
    except OSError as error:
        raise _unwritable(path, error) from error
    if foreign:
        raise InputError(
            f"{path}: holds files that are not an earlier result ({foreign[0]}); "
            "choose another --out"
        )


def _foreign_files(folder: Path) -> list[str]:
    """Names of everything in a folder that its result.json does not claim. Follows no links."""
    claimed = _claimed(folder)
    if not claimed:  # its first level is enough: the folder may be somebody's home
        return sorted(entry.name for entry in folder.iterdir())
    present = {
        entry.relative_to(folder).as_posix()
        for entry in folder.rglob("*")
        if entry.is_symlink() or not entry.is_dir() or not any(entry.iterdir())
    }
    return sorted(present - claimed)


def _claimed(folder: Path) -> set[str]:
    try:
        record = json.loads((folder / RESULT).read_text())
        return set(record["files"]) if record["made_by"] == MADE_BY else set()
    except (OSError, ValueError, TypeError, KeyError):  # not JSON, or not JSON of ours
        return set()


def _make_parents(path: Path) -> list[Path]:
    """Makes the folders above `path`; returns those that were missing, innermost first."""
    missing = [parent for parent in path.parents if not parent.exists()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _remove_empty(missing)
        raise _unwritable(path, error) from error
    return missing


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):  # never made, or another run has begun to use it
            folder.rmdir()


def _make_staging(beside: Path, inside: Path) -> Path:
    """Makes the one of two folders from which files can be renamed to where `inside` lies.

    Only trying shows which: bind mounts have the device number of what is around them.
    """
    if not inside.parent.exists():
        beside.mkdir()
        return beside
    inside.mkdir()
    with suppress(OSError):
        return inside.rename(beside)
    return inside


def _put_in_place(staging: Path, path: Path) -> None:
    if not path.exists():
        staging.rename(path)
        return
    aside = staging.with_suffix(".replaced")
    with ExitStack() as undo:
        aside.mkdir()
        undo.callback(aside.rmdir)
        # result.json leaves first and arrives last: whoever finds it finds a whole result.
        for entry in sorted(path.iterdir(), key=lambda entry: entry.name != RESULT):
            if entry not in (staging, aside):
                _move(entry, aside, undo)
        _check_replaceable(aside, path)  # again: files may have been added during the run
        for entry in sorted(staging.iterdir(), key=lambda entry: entry.name == RESULT):
            _move(entry, path, undo)
        undo.pop_all()
    shutil.rmtree(aside)
    staging.rmdir()


def _move(entry: Path, folder: Path, undo: ExitStack) -> None:
    if os.path.lexists(target := folder / entry.name):  # rename would replace a file
        raise InputError(f"{target}: was written during the run; choose another --out")
    entry.rename(target)
    undo.callback(target.rename, entry)


@contextmanager
def _full_disk_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL:
            raise _unwritable(path, error) from error
        raise


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or type(error).__name__
    return InputError(f"{path}: cannot be written ({reason}); choose another --out")


def _plain(value: Any) -> Any:
    """The value in terms that JSON has."""
    match value:
        case dict():
            return {str(key): _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case np.ndarray() | np.generic():
            return _plain(value.tolist())
        case float():
            return value if math.isfinite(value) else None
        case Fraction() | Path():
            return str(value)
    return value
