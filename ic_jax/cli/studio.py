"""Where the jobs of a batch are made: read, run side by side, and delivered as they end."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from ..batch import Reel, begin, side_by_side, window
from ..director import timed
from ..errors import InputError
from ..model import Model
from ..output import output_folder
from .generator import Run, Told
from .job import Material, deliver
from .job_file import Line
from .spread import Places


class Studio(NamedTuple):
    """A model that lies where clips are made."""

    model: Model
    where: Places
    told: Mapping[str, Told]
    """By the names of the jobs."""
    bar: tqdm

    def make(self, lines: Sequence[Line]) -> int:
        """Makes jobs of one command and the same settings; returns how many failed.

        Each one's files are read when there is a place for it, so that memory holds no more.
        """
        settings = lines[0].job.settings
        run = self.where.over(window(self.model.variant, settings, self.where.layout))
        opened: dict[str, tuple[Line, Material, dict[str, float]]] = {}
        failed: list[Line] = []

        def reels() -> Iterator[Reel]:
            for line in lines:
                with self._in_one_line(line, failed):
                    seconds: dict[str, float] = {}
                    with timed(seconds, "read"):
                        material = line.job.read()
                    context = np.asarray(self.told[line.name].context)
                    seed = line.job.generator.seed
                    reel = begin(self.model, line.name, material.footage, context, seed)
                    opened[line.name] = line, material, seconds
                    yield reel

        for name, take in side_by_side(self.model, settings, reels(), run, self.where.count):
            line, material, seconds = opened.pop(name)
            result = Run(self.model, settings, take, self.told[name], None)
            more = {"devices": self.where.devices_each, "batch": line.record}
            with self._in_one_line(line, failed), output_folder(line.job.out) as folder:
                deliver(line.job, folder, material, result, seconds, more)
                self.bar.update()
        return len(failed)

    @contextmanager
    def _in_one_line(self, line: Line, failed: list[Line]) -> Iterator[None]:
        """A job that fails does not keep the others from being made."""
        try:
            yield
        except InputError as error:
            failed.append(line)
            self.bar.update()
            self.bar.write(f"ic-jax: {line.where}: {error}", file=sys.stderr)
