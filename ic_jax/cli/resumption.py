"""What `--resume` keeps: the state of a run, in a file beside its results, until it has ended."""

import glob
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from .. import midway
from ..director import Keep, Midway
from ..errors import InputError
from .console import note

# A state of 480p is about a gigabyte: written this often, it costs a few per cent of the time.
SECONDS = 60.0

# Windows has no SIGHUP.
STOPPING = [getattr(signal, n) for n in ("SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, n)]


@contextmanager
def state_file(out: Path, wanted: bool) -> Iterator[Path | None]:
    """Yields OUT.resume where it is wanted; once the block ends well the file is gone.

    So are those that were being written when a run was killed: each is as large.
    """
    if not wanted:
        yield None
        return
    out = Path(os.path.abspath(out))
    file = out.parent / f"{out.name}.resume"  # with_name has no name for /
    yield file
    for left in (file, *file.parent.glob(f".{glob.escape(file.name)}.*.part")):
        left.unlink(missing_ok=True)


@contextmanager
def kept(file: Path | None, run: Mapping[str, Any] | None, steps: int) -> Iterator[Keep]:
    """Yields what writes the state of a run after a step: now and then, and when told to stop.

    From the first step of a window to its last, of `steps`, signals that stop a run wait for the
    step at hand; their second time they act at once. So they do between windows, where decoding
    and encoding take long, but after the last step the state is kept whatever the time. Without
    a file nothing is kept, and they act as ever.
    """
    if file is None:
        yield lambda at: None
        return
    signals, written = _Signals(), time.monotonic()
    last = farewell = None

    def keep(at: Midway) -> None:
        nonlocal written, last, farewell
        if (told := signals.came()) is not None:
            midway.save(file, at, run)
            farewell = f"stopped {where(at)}; the same command goes on from {file}"
            sys.exit(128 + told)
        if at.step == steps or time.monotonic() - written >= SECONDS:
            if _saved_or_noted(file, at, run):
                last = where(at)
            written = time.monotonic()
        if at.step == steps:
            signals.act_at_once()
            if signals.heard is not None:  # while the state was written
                sys.exit(128 + signals.heard)

    try:
        yield keep
    except (KeyboardInterrupt, SystemExit):
        if farewell is None and last is not None:
            farewell = f"the same command goes on {last}, from {file}"
        raise
    finally:
        signals.act_at_once()
        if farewell is not None:
            note(farewell)


def where(at: Midway) -> str:
    """For people, who count windows from one."""
    return f"after step {at.step} of window {len(at.finished) + 1}"


def _saved_or_noted(file: Path, at: Midway, run: Mapping[str, Any]) -> bool:
    """A disk that is full now need not end a run that has hours to go."""
    try:
        midway.save(file, at, run)
    except InputError as error:
        note(f"the state of the run was not kept: {error}")
        return False
    return True


class _Signals:
    """Those that stop a run, held back from when they are first asked for until one comes."""

    def __init__(self) -> None:
        self._heard: list[int] = []
        self._handlers: dict[int, Any] = {}

    @property
    def heard(self) -> int | None:
        """The first that has come, if one has."""
        return self._heard[0] if self._heard else None

    def came(self) -> int | None:
        """The same, and from now on they are held back."""
        if not self._handlers and not self._heard:
            for number in filter(_is_heeded, STOPPING):
                self._handlers[number] = signal.signal(number, self._hear)
        return self.heard

    def act_at_once(self) -> None:
        """As they did before."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)
        self.act_at_once()
        if number not in (signal.SIGINT, signal.SIGTERM):
            # A terminal that is closed says so twice, which is nobody's impatience.
            signal.signal(number, signal.SIG_IGN)


def _is_heeded(number: int) -> bool:
    return signal.getsignal(number) is not signal.SIG_IGN
