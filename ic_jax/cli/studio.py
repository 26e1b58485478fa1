"""Where the jobs of a batch are made: read, run side by side, and delivered as they end."""

import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..batch import Reel, begin, side_by_side, window
from ..budget import full_device_told
from ..director import Take, timed
from ..errors import InputError, file_errors_told
from ..model import Model
from ..output import output_folder
from .clerk import Clerk
from .generator import Run, Told
from .job import Material, deliver, inputs, read
from .job_file import Line
from .prompts import Prompts
from .spread import Places


class Opened(NamedTuple):
    """A job whose clip is on its way through the model."""

    line: Line
    material: Material
    inputs: dict[str, str]
    told: Told
    seconds: dict[str, float]


class Studio(NamedTuple):
    """A model that lies where clips are made."""

    model: Model
    where: Places
    prompts: Prompts
    clerk: Clerk
    bar: tqdm
    failed: list[Line]
    """Those that could not be made. They do not keep the others from it."""

    def make(self, lines: Sequence[Line]) -> None:
        """Makes jobs of one command and the same settings.

        While the devices work, the files of as many jobs as they have places for are read
        ahead, and what has ended is written: the clerk may still be at it after this returns.
        """
        settings = lines[0].job.settings
        run = self.where.over(window(self.model.variant, settings, self.where.layout))
        left = {line.name: line for line in lines}
        opened: dict[str, Opened] = {}

        def reels() -> Iterator[Reel]:
            for line, material in self.clerk.ahead(_read, lines, self.where.count):
                try:
                    with full_device_told():
                        reel, opened[line.name] = self._opened(line, *material())
                except InputError as error:
                    self.clerk.later(self._refuse, left.pop(line.name), error)
                else:
                    yield reel

        made = side_by_side(self.model, settings, reels(), run, self.where.count)
        try:
            with full_device_told():
                for name, take in made:
                    ended, line = opened.pop(name), left.pop(name)
                    if isinstance(take, InputError):
                        self.clerk.later(self._refuse, line, take)
                    else:
                        self.clerk.later(self._deliver, ended, take)
        except InputError as error:
            # Anew: what was raised holds on to the arrays of the round.
            told = InputError(str(error))
            # One program makes them all: the others of these would need as much memory.
            for line in left.values():
                self.clerk.later(self._refuse, line, told)

    def _opened(
        self, line: Line, material: Material, inputs: dict[str, str], seconds: dict[str, float]
    ) -> tuple[Reel, Opened]:
        told = self.prompts.told(line.job.generator)
        context, seed = np.asarray(told.context), line.job.generator.seed
        reel = begin(self.model, line.name, material.footage, context, seed)
        return reel, Opened(line, material, inputs, told, seconds)

    def _deliver(self, opened: Opened, take: Take) -> None:
        line, material, inputs, told, seconds = opened
        run = Run(self.model, line.job.settings, take, told, None)
        more = {"devices": self.where.devices_each, "batch": line.record, "inputs": inputs}
        try:
            with file_errors_told(), full_device_told(), output_folder(line.job.out) as folder:
                deliver(line.job, folder, material, run, seconds, more)
        except InputError as error:
            self._refuse(line, error)
        else:
            self.bar.update()

    def _refuse(self, line: Line, error: InputError) -> None:
        self.failed.append(line)
        self.bar.update()
        self.bar.write(f"ic-jax: {line.where}: {error}", file=sys.stderr)


def _read(line: Line) -> tuple[Material, dict[str, str], dict[str, float]]:
    seconds: dict[str, float] = {}
    with timed(seconds, "read"), file_errors_told():
        # Before they are read: what changes in between is made anew by the next batch.
        known = inputs(line.job)
        return read(line.job), known, seconds
