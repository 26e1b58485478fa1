"""`ic-jax warmup`: compile before there is anything to run."""

import time
from dataclasses import dataclass, field
from typing import Literal

import jax

from .. import programs
from ..director import check, resolve
from ..edit import Edit
from ..errors import InputError
from ..model import abstract_model, calibrated
from ..settings import Settings
from ..shot import Shot
from .compile_cache import VARIABLE
from .generator import Chosen
from .source import Flat

FOOTAGE = {"recapture": Shot, "inpaint": Edit}


@dataclass(frozen=True)
class Warmup:
    """Compile what a run will need, so that it starts at once; no weights are read.

    Give the options of the run. What depends on the clip's own size is left to its first run.
    """

    command: Literal["recapture", "inpaint", "both"] = "both"
    """What is to be run."""
    chosen: Flat[Chosen] = field(default_factory=Chosen)
    settings: Flat[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        check(self.settings)
        folder = jax.config.jax_compilation_cache_dir
        if not folder or not jax.config.jax_enable_compilation_cache:
            raise InputError(f"nothing that is compiled would be kept; set {VARIABLE} to a folder")
        found = self.chosen.find()
        model = abstract_model(found.folder)._replace(variant=found.sizes)
        model = calibrated(model, found.calibration, found.where)
        for command in FOOTAGE if self.command == "both" else (self.command,):
            footage = FOOTAGE[command]
            settings = resolve(self.settings, model, footage is Edit)
            for name, program in programs.lowered(model, settings, footage):
                began = time.perf_counter()
                memory = program.compile().memory_analysis().temp_size_in_bytes
                took = time.perf_counter() - began
                print(f"{command}, {name}: {took:.1f} s, works in {memory / 2**30:.2f} GiB")
        print(f"compiled programs in {folder}")
