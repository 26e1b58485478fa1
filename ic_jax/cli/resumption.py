"""What `--resume` keeps: the state of a run, in a file beside its results, until it has ended."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .. import midway
from ..director import Keep, Midway
from ..errors import InputError
from .console import note

# A state of 480p is about a gigabyte: written this often, it costs a few per cent of the time.
SECONDS = 60.0


@contextmanager
def state_file(out: Path, wanted: bool) -> Iterator[Path | None]:
    """Yields OUT.resume where it is wanted; once the block ends well the file is gone."""
    if not wanted:
        yield None
        return
    out = Path(os.path.abspath(out))
    file = out.parent / f"{out.name}.resume"  # with_name has no name for /
    yield file
    file.unlink(missing_ok=True)


@contextmanager
def kept(file: Path | None, run: Mapping[str, Any] | None) -> Iterator[Keep]:
    """Yields what writes the state of a run after a step: now and then, and when told to stop.

    From the first step on, SIGTERM and Ctrl-C wait for the step at hand; their second time
    they act at once. Without a file nothing is kept, and they act as ever.
    """
    if file is None:
        yield lambda at: None
        return
    written, farewell = time.monotonic(), None

    def keep(at: Midway) -> None:
        nonlocal written, farewell
        told = signals()
        if told is not None:
            midway.save(file, at, run)
            farewell = f"stopped {where(at)}; the same command goes on from {file}"
            sys.exit(128 + told)
        if time.monotonic() - written >= SECONDS:
            _save_or_note(file, at, run)
            written = time.monotonic()

    try:
        with _deferred() as signals:
            yield keep
    finally:
        if farewell is not None:
            note(farewell)


def where(at: Midway) -> str:
    """For people, who count windows from one."""
    return f"after step {at.step} of window {len(at.finished) + 1}"


def _save_or_note(file: Path, at: Midway, run: Mapping[str, Any]) -> None:
    """A disk that is full now need not end a run that has hours to go."""
    try:
        midway.save(file, at, run)
    except InputError as error:
        note(f"the state of the run was not kept: {error}")


@contextmanager
def _deferred() -> Iterator[Callable[[], int | None]]:
    """Yields a function that says which signal has come; it begins to listen when first asked."""
    came: list[int] = []
    handlers: dict[int, Any] = {}

    def act_as_before() -> None:
        while handlers:
            signal.signal(*handlers.popitem())

    def hear(number: int, frame: Any) -> None:
        came.append(number)
        act_as_before()

    def told() -> int | None:
        if not handlers and not came:
            for number in (signal.SIGTERM, signal.SIGINT):
                handlers[number] = signal.signal(number, hear)
        return came[0] if came else None

    try:
        yield told
    finally:
        act_as_before()
