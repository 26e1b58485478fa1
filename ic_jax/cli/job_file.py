"""A file of jobs: a JSON object in each line, with the names of the commands' own options."""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints
from unicodedata import category

from ..errors import InputError, file_errors_told
from .console import note
from .inpaint import Inpaint
from .job import Job, check_place
from .recapture import Recapture

COMMANDS = {"recapture": Recapture, "inpaint": Inpaint}

# What all jobs of a batch have in common is said once, on the command line.
SHARED = {"model", "calibration", "frames", "height", "width", "devices", "resume"}

# Bytes: file systems take 255, and a folder has a longer name until it is whole.
LONGEST = 200

_KINDS = {
    str: "a text",
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}

T = TypeVar("T")


class Line(NamedTuple):
    """One job, and where it stands."""

    where: str
    job: Job
    record: dict[str, Any]
    """What its result follows from, as result.json has it."""

    @property
    def name(self) -> str:
        """Of its folder among the results."""
        return self.job.out.name


def read_jobs(file: Path, folder: Path) -> list[Line]:
    """The jobs of a file, whose results go into folders of `folder`.

    Raises:
        InputError: no jobs, or some that cannot be run. Each of them was named in a line.
    """
    try:
        # Not splitlines: a prompt may hold what it takes for the end of a line.
        texts = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is no text"
        raise InputError(f"{file}: cannot be read ({reason}); give a file of JSON lines") from error
    places = {f"{file}, line {n}": text for n, text in enumerate(texts, 1) if text.strip()}
    if not places:
        raise InputError(f"{file}: holds no job; give a JSON object in each line")
    first: dict[str, str] = {}

    def read(where: str) -> Line:
        line = Line(where, *_parsed(places[where], folder))
        if line.name in first:
            raise InputError(
                f"out is {line.name!r}, as in {first[line.name]}; give one of them another"
            )
        first[line.name] = where
        return line

    return each(list(places), lambda where: where, read)


def each(items: Sequence[Any], where: Callable[[Any], str], check: Callable[[Any], T]) -> list[T]:
    """What `check` makes of every item.

    Raises:
        InputError: it refused some. Each of them was named in a line.
    """
    made, refused = [], 0
    for item in items:
        try:
            with file_errors_told():
                made.append(check(item))
        except InputError as error:
            note(f"{where(item)}: {error}")
            refused += 1
    if refused:
        raise InputError(f"{refused} of {len(items)} jobs cannot be run; nothing was written")
    return made


def _parsed(text: str, folder: Path) -> tuple[Job, dict[str, Any]]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError("is not JSON; give an object such as {...} in one line") from error
    if not isinstance(given, dict):
        raise InputError("is no JSON object; give one such as {...}")
    name = given.get("command")
    if not isinstance(name, str) or name not in COMMANDS:
        raise InputError(f"command is {name!r}; give {' or '.join(COMMANDS)}")
    command = COMMANDS[name]
    options = {name: value for name, value in given.items() if name != "command"}
    _check(command, options)
    options["out"] = str(folder / _name(options))
    job = _filled(command, options)
    job.check()
    check_place(job)
    return job, {"job": given}


def _check(command: type, options: Mapping[str, Any]) -> None:
    known = _kinds(command)
    for name in options:
        if name in SHARED:
            raise InputError(f"{name} is the same for all jobs; give it on the command line")
        if name not in known:
            near = difflib.get_close_matches(name, known.keys() - SHARED, n=1, cutoff=0.0)[0]
            raise InputError(f"unknown {name!r}; did you mean {near}?")
        value = _typed(name, known[name], options[name])
        if isinstance(value, Path) and name != "out" and not value.exists():
            raise InputError(f"{name}: {value}: no such file or folder")
    if not options.get("clip"):
        raise InputError("has no clip; give the path of a video or of a folder of frames")


def _name(options: Mapping[str, Any]) -> str:
    """Of the folder: `out`, or the name of the clip."""
    name = options.get("out") or Path(options["clip"]).stem
    controls = any(category(letter) in ("Cc", "Cs") for letter in name)
    if not name or name != Path(name).name or name.startswith(".") or controls:
        raise InputError(f"out is {name!r}; give a plain name, of a folder in --out")
    if len(name.encode()) > LONGEST:
        raise InputError(f"out has {len(name.encode())} bytes; give a name of {LONGEST} at most")
    return name


def _kinds(options: type) -> dict[str, Any]:
    """The type of every option by its name, as the command line has them."""
    kinds, hints = {}, get_type_hints(options)
    for field in dataclasses.fields(options):
        kind = hints[field.name]
        kinds |= _kinds(kind) if dataclasses.is_dataclass(kind) else {field.name: kind}
    return kinds


def _filled(options: type[T], given: Mapping[str, Any]) -> T:
    """The options with these values, and else with their defaults."""
    values, hints = {}, get_type_hints(options)
    for field in dataclasses.fields(options):
        name, kind = field.name, hints[field.name]
        if dataclasses.is_dataclass(kind):
            values[name] = _filled(kind, given)
        elif name in given:
            values[name] = _typed(name, kind, given[name])
    return options(**values)


def _typed(name: str, kind: Any, value: Any) -> Any:
    """A value of JSON as an option of this type."""
    kinds = get_args(kind) or (kind,)
    if type(value) in kinds:
        return value
    if Path in kinds and isinstance(value, str):
        return Path(value)
    if float in kinds and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    wanted = " or ".join(_KINDS[kind] for kind in kinds)
    raise InputError(f"{name} is {json.dumps(value)}; give {wanted}")
