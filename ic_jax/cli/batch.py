"""`ic-jax batch`: many clips on the devices of one host, and shared out among hosts."""

import dataclasses
import json
import sys
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jax
import tyro
from tqdm import tqdm

from .. import text
from ..budget import check_fits, check_host_fits, device_memory, full_device_told, host_memory
from ..errors import InputError, file_errors_told
from ..model import calibrated, fingerprint, load_uncalibrated
from ..output import check_writable, holds_result
from ..parallel import barrier, join, mine
from ..settings import most_prompts
from .clerk import clerk
from .console import note
from .generator import Chosen, Found
from .inpaint import Inpaint
from .job import inputs
from .job_file import Line, each, read_jobs
from .prompts import read_prompts
from .source import Flat
from .spread import Places, places
from .studio import Studio


@dataclass(frozen=True)
class Batch:
    """Make many clips with one model, which is loaded once.

    Every device has a clip of its own, or every few where one has too little memory. What --out
    holds already, of the same files, is not made again: a run that was stopped goes on by the
    same command. Exit code 1 if some jobs failed, 2 if none was tried.
    """

    jobs: tyro.conf.Positional[Path]
    """A job in each line: {"command": "recapture", "clip": "a.mp4", "depth": "a.npz", ...}."""
    out: Path = Path("batch")
    """Folder of the results, one folder for each, named by its "out" or else by its clip."""
    chosen: Flat[Chosen] = field(default_factory=Chosen)
    devices: int | None = None
    """Devices of this host to use; without it, all."""
    pod: bool = False
    """Share the jobs with all hosts of this TPU pod, SLURM job or Kubernetes job."""
    coordinator: str | None = None
    """Share them with hosts that JAX does not find by itself: host:port of process 0."""
    num_processes: int | None = None
    """How many processes there are then."""
    process_id: int | None = None
    """Which of them this is."""
    join_timeout: int = 120
    """Seconds to wait until process 0 listens, and again until all processes have met."""

    def run(self) -> None:
        self._join()
        try:
            with file_errors_told(), full_device_told():
                failed = self._share()
        except InputError as error:
            note(str(error))
            barrier()  # the other hosts would end with this one
            sys.exit(2)
        except jax.errors.JaxRuntimeError:  # such as a device that failed
            barrier()
            raise
        barrier()
        if failed:
            sys.exit(1)

    def _share(self) -> int:
        """Makes this host's jobs; returns how many failed."""
        lines, found = read_jobs(self.jobs, self.out), self.chosen.find()
        lines = self._resolved(lines, found)
        own = set(mine(line.name for line in lines))
        lines = [line for line in lines if line.name in own]
        made = each(lines, lambda line: line.where, _is_made)
        left = [line for line, there in zip(lines, made, strict=True) if not there]
        failed = 0
        if left:
            check_writable(self.out)
            with _stopped_in_one_line():
                failed = self._make(left, found)
        print(
            f"made {len(left) - failed}, failed {failed}, "
            f"there before {len(lines) - len(left)}; results in {self.out}/"
        )
        return failed

    def _join(self) -> None:
        cluster = self.coordinator, self.num_processes, self.process_id
        if self.pod or cluster != (None, None, None):
            join(*cluster, timeout=self.join_timeout)

    def _resolved(self, lines: Sequence[Line], found: Found) -> list[Line]:
        """With all settings, which depend on the model, though not on its weights."""
        sizes = found.sizes
        common = {
            "model": [found.name, fingerprint(found.folder)],
            "calibration": zlib.crc32(json.dumps(found.calibration).encode()),
            "size": [sizes.frames, sizes.height, sizes.width],
        }

        def resolved(line: Line) -> Line:
            settings = found.resolve(line.job.settings, isinstance(line.job, Inpaint))
            generator = dataclasses.replace(line.job.generator, **vars(self.chosen))
            if generator.context is not None:
                text.load_context(generator.context, sizes)
            job = dataclasses.replace(line.job, generator=generator, settings=settings)
            return line._replace(job=job, record=line.record | common)

        return each(lines, lambda line: line.where, resolved)

    def _make(self, lines: list[Line], found: Found) -> int:
        """Makes jobs; returns how many failed."""
        alike: dict[tuple, list[Line]] = {}
        for line in lines:
            alike.setdefault((line.job.name, line.job.settings), []).append(line)
        where = self._places(list(alike.values()), found)
        prompts = read_prompts(found.folder, found.sizes, [line.job.generator for line in lines])
        model = load_uncalibrated(found.folder, where.shardings)._replace(variant=found.sizes)
        model = calibrated(model, found.calibration, found.where)
        failed: list[Line] = []
        with tqdm(total=len(lines), unit="clip", leave=False) as bar, clerk(where.count) as at_work:
            studio = Studio(model, where, prompts, at_work, bar, failed)
            for some in alike.values():
                studio.make(some)
        return len(failed)

    def _places(self, alike: Sequence[Sequence[Line]], found: Found) -> Places:
        """Says what may not fit, and refuses what cannot."""
        jobs = [line.job for lines in alike for line in lines]
        prompts = {most_prompts(found.sizes, job.settings) for job in jobs}
        reuse = any(job.settings.reuse for job in jobs)
        if any(job.generator.context is None for job in jobs):
            check_host_fits(found.name, found.sizes, host_memory())
        most = max(map(len, alike))
        where = places(found.folder, found.sizes, prompts, self.devices, most, reuse)
        if where.count * where.devices_each == 1:
            memory = device_memory(jax.local_devices()[0])
            if warning := check_fits(found.name, found.sizes, max(prompts), memory, reuse):
                note(warning)
        return where


def _is_made(line: Line) -> bool:
    """Whether its result is there, of the same options, model and files."""
    holds = partial(holds_result, line.job.out)
    # Earlier versions kept no word of the files; what they made stays.
    return holds("batch", line.record) and (
        holds("inputs", None) or holds("inputs", inputs(line.job))
    )


@contextmanager
def _stopped_in_one_line() -> Iterator[None]:
    """What was made stays, unlike in other commands."""
    try:
        yield
    except KeyboardInterrupt:
        note("stopped; the same command goes on with the jobs that are left")
        sys.exit(130)
