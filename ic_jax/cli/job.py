"""What `recapture`, `inpaint` and every line of a batch are: a clip read, directed, delivered."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from .. import delivery
from ..director import Footage, timed
from ..errors import InputError
from ..output import check_replaceable, output_folder, write_result
from ..report import Labels
from ..settings import Settings
from ..video import IMAGE_SUFFIXES, Clip
from .console import report, rounded
from .generator import Generator, Run
from .resumption import state_file


class Material(NamedTuple):
    """What a job's files hold."""

    clip: Clip
    footage: Footage
    truth: UInt8[np.ndarray, "t h w 3"] | None = None


@runtime_checkable
class Job(Protocol):
    """A command that makes a clip."""

    name: ClassVar[str]
    labels: ClassVar[Labels]
    coverage: ClassVar[str]
    """What of which share was observed."""
    out: Path
    generator: Generator
    settings: Settings

    def check(self) -> None:
        """Raises InputError for what is wrong before any clip is read."""
        ...

    def read(self) -> Material:
        """Raises InputError where a file is missing or unfit."""
        ...

    def described(self) -> dict[str, Any]:
        """The options that are its own, as result.json records them."""
        ...

    def shown(self, run: Run, facts: Mapping[str, Any]) -> dict[str, str]:
        """What the contact sheet says of it."""
        ...


def carry_out(job: Job) -> None:
    """A job on its own, from its files to its folder and one line on the terminal.

    Raises:
        InputError: bad input; nothing was written.
    """
    job.check()
    check_place(job)
    seconds: dict[str, float] = {}
    with state_file(job.out, job.generator.resume) as state, output_folder(job.out) as folder:
        with timed(seconds, "read"):
            material = read(job)
        run = job.generator.run(material.footage, job.settings, seconds, state)
        facts = deliver(job, folder, material, run, seconds)
    report(job.out, facts, job.coverage)


def read(job: Job) -> Material:
    """What the job's files hold, once they are known to be such as a result can be written from.

    Raises:
        InputError: a file that is missing or unfit.
    """
    material = job.read()
    delivery.rehearse(material.clip)
    return material


def check_place(command: Any) -> None:
    """Raises InputError where a command may not put its results, or reads what they replace."""
    check_replaceable(command.out)
    # Unlike those of a Path, os.path's functions raise nothing for a name that cannot be.
    out = os.path.realpath(command.out)
    for _, path in _paths(command):
        if os.path.exists(path) and Path(os.path.realpath(path)).is_relative_to(out):
            raise InputError(
                f"{path}: lies in {command.out}, which would be replaced; give another out"
            )


def inputs(job: Job) -> dict[str, str]:
    """Tells the job's files from others of their names: a SHA-256 of each, by its option.

    A model and its calibration are known by other means.
    """
    files = {name: path for name, path in _paths(job) if name not in ("model", "calibration")}
    return {name: _sha256(path) for name, path in files.items()}


def _sha256(path: Path) -> str:
    if path.is_dir():  # of frames
        frames = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        held = repr([(file.name, _sha256(file)) for file in frames if file.name[0] != "."])
        return hashlib.sha256(held.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _paths(options: Any) -> Iterator[tuple[str, Path]]:
    """All that the options name, but for the place of the results."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from _paths(value)
        elif isinstance(value, Path) and field.name != "out":
            yield field.name, value
        elif field.name == "camera" and value.endswith(".json"):
            yield field.name, Path(value)


def deliver(
    job: Job,
    folder: Path,
    material: Material,
    run: Run,
    seconds: Mapping[str, float],
    more: Mapping[str, Any] = {},
) -> dict[str, Any]:
    """Writes all files of a result, and `more` into its record; returns what was measured."""
    clip, footage, truth = material
    took = {**seconds, **run.take.seconds}
    facts = delivery.measure(run.take, truth)
    with timed(took, "write"):
        title = job.generator.prompt or clip.path.name
        shown = job.shown(run, facts)
        delivery.write_take(folder, clip, run.take, truth, job.labels, title, shown)
    record = {
        "command": job.name,
        **job.described(),
        **delivery.describe(clip),
        **job.generator.record(run, footage),
        **facts,
        "seconds": rounded(took),
        **delivery.environment(),
        **more,
    }
    write_result(folder, record)
    return facts
