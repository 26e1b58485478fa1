"""`ic-jax warmup`: compile before there is anything to run."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import jax
from jax.stages import Compiled

from .. import programs
from ..batch import abstract_clip, window
from ..choices import check
from ..edit import Edit
from ..errors import InputError
from ..model import Model, Weights, abstract_model, calibrated
from ..settings import Settings, most_prompts
from ..shot import Shot
from .compile_cache import VARIABLE, made, tell_of_trouble
from .generator import Chosen, Found
from .source import Flat
from .spread import places, spread

FOOTAGE = {"recapture": Shot, "inpaint": Edit}


@dataclass(frozen=True)
class Warmup:
    """Compile what a run will need, so that it starts at once; no weights are read.

    Give the options of the run, on the machine that it will run on. What depends on the clip's
    own size is left to its first run.
    """

    command: Literal["recapture", "inpaint", "both"] = "both"
    """What is to be run."""
    devices: int | None = None
    """Devices of the run; without it one, or all for a batch."""
    batch: int | None = None
    """Compile for `ic-jax batch`: as many jobs as it has of one command and the same settings."""
    chosen: Flat[Chosen] = field(default_factory=Chosen)
    settings: Flat[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        check(self.settings)
        folder = _kept_in()
        unkept: list[str] = []
        tell_of_trouble(unkept.append)
        compiled = self._of_one_clip() if self.batch is None else self._of_a_batch()
        began = time.perf_counter()
        for name, program in compiled:
            if unkept:  # the rest would be compiled in vain
                raise InputError(unkept[0])
            memory = program.memory_analysis().temp_size_in_bytes
            took = time.perf_counter() - began
            print(f"{name}: {took:.1f} s, works in {memory / 2**30:.2f} GiB")
            began = time.perf_counter()
        print(f"compiled programs in {folder}")

    def _of_one_clip(self) -> Iterator[tuple[str, Compiled]]:
        found = self.chosen.find()
        devices = 1 if self.devices is None else self.devices
        reuse = self.settings.reuse > 0
        for command, settings in self._resolved(found).items():
            prompts = most_prompts(found.sizes, settings)
            layout, shardings = spread(found.folder, found.sizes, prompts, devices, reuse)
            model = _abstract(found, shardings)
            for name, program in programs.compiled(model, settings, FOOTAGE[command], layout):
                yield f"{command}, {name}", program

    def _of_a_batch(self) -> Iterator[tuple[str, Compiled]]:
        if self.batch < 1:
            raise InputError(f"--batch is {self.batch}; give 1 or more")
        found = self.chosen.find()
        resolved = self._resolved(found)
        prompts = {most_prompts(found.sizes, settings) for settings in resolved.values()}
        reuse = self.settings.reuse > 0
        where = places(found.folder, found.sizes, prompts, self.devices, self.batch, reuse)
        model = _abstract(found, where.shardings)
        for command, settings in resolved.items():
            run = where.over(window(found.sizes, settings, where.layout))
            clip = abstract_clip(found.sizes, FOOTAGE[command])
            name = f"{command}, {where.count} clips at a time"
            yield name, run.lower(model.weights, clip).compile()

    def _resolved(self, found: Found) -> dict[str, Settings]:
        """The settings of each command."""
        commands = tuple(FOOTAGE) if self.command == "both" else (self.command,)
        return {name: found.resolve(self.settings, name == "inpaint") for name in commands}


def _kept_in() -> str:
    """Raises InputError where nothing that is compiled would be kept: JAX itself only warns."""
    folder = jax.config.jax_compilation_cache_dir
    if not folder or not jax.config.jax_enable_compilation_cache:
        raise InputError(f"nothing that is compiled would be kept; set {VARIABLE} to a folder")
    try:
        if "://" not in folder:  # a bucket is JAX's own affair
            made(Path(folder))
    except OSError as error:
        raise InputError(
            f"{folder}: nothing that is compiled can be kept there ({error.strerror}); "
            f"set {VARIABLE} to another folder"
        ) from error
    return folder


def _abstract(found: Found, shardings: Weights | None) -> Model:
    """As a run would load it, of shapes that lie where it would put the weights."""
    model = abstract_model(found.folder)._replace(variant=found.sizes)
    if shardings is not None:
        lying = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)
        everywhere = jax.tree.broadcast(shardings, model.weights)
        model = model._replace(weights=jax.tree.map(lying, model.weights, everywhere))
    return calibrated(model, found.calibration, found.where)
