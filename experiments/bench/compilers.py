"""Whether a run fits a TPU, by the TPU's own compiler, with no TPU at hand.

    pip install -e '.[experiments,tpu]' && python -m experiments.bench.tpu

writes experiments/results/bench_tpu.md and .json. libtpu compiles for a topology that is only
described to it, lays out every buffer, and refuses what a chip's memory cannot hold. Every program
of a re-capture is compiled at full size, with the layout that `--devices` would choose there.
Nothing is run: what stands here of time is how long compiling took.
"""

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import gcd, prod
from pathlib import Path
from typing import NamedTuple

# JAX itself stays on the CPU; libtpu is told what it would ask Google's cloud for.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments.bench.side_by_side import publish
from experiments.tables import table
from ic_jax import programs
from ic_jax.budget import need
from ic_jax.choices import resolve
from ic_jax.model import Model, Weights, expected_shapes, matrices_as
from ic_jax.models.layout import Layout
from ic_jax.models.variants import VARIANTS, Variant
from ic_jax.parallel import MeshShape, device_mesh, sequence_layout, weight_shardings
from ic_jax.parallel.choice import choose, per_device
from ic_jax.settings import Settings
from ic_jax.shot import Shot

GIB = 2**30
PROMPTS = 2


class Slice(NamedTuple):
    """Chips joined by links, as libtpu names them, and what one of them can hold."""

    topology: str
    memory: float
    """GiB, as libtpu says it of a program that is too large."""


SLICES = {
    "v5e": Slice("v5e:2x4", 15.75),
}


class Case(NamedTuple):
    """One clip of 81 frames of 480×832, on so many chips."""

    model: str
    slice: str
    chips: int


CASES = [
    Case("Wan2.1-T2V-1.3B", "v5e", 1),
    Case("Wan2.1-T2V-1.3B", "v5e", 8),
    Case("Wan2.1-T2V-14B", "v5e", 8),
]

# The programs that the budget counts, in its order.
COUNTED = "observe", "sample", "finish"


class Compiled(NamedTuple):
    """A program by its compiler: bytes on each chip."""

    program: str
    temporaries: int
    peak: int
    """With what it takes and makes, and all weights, those that it has no use for as well."""
    seconds: float


# One clip on some chips -----------------------------------------------------------


def layout_of(case: Case) -> MeshShape:
    """What `--devices` chooses where each device has this much memory."""
    sizes, memory = VARIANTS[case.model], int(SLICES[case.slice].memory * GIB)
    if case.chips == 1:
        return MeshShape()
    return choose(
        need(sizes, PROMPTS), case.chips, memory, sizes.dit.num_heads, prompts=PROMPTS,
        width=gcd(sizes.dit.dim, sizes.dit.ffn_dim),
    )  # fmt: skip


def placed(sizes: Variant, shape: MeshShape, chips: list) -> tuple[Weights, Layout]:
    """Weights as `load_model` has them, as shapes, and where they lie."""
    cast, trees = matrices_as(sizes.dtype), expected_shapes(sizes)

    def stored(path, leaf):
        name = "/".join(entry.key for entry in path)
        return jax.ShapeDtypeStruct(leaf.shape, cast(name, np.zeros(0, leaf.dtype)).dtype)

    weights = Weights(vae=trees["vae"], dit=jax.tree.map_with_path(stored, trees["dit"]))
    if len(chips) == 1:
        put = partial(_lying, where=SingleDeviceSharding(chips[0]))
        return jax.tree.map(put, weights), Layout()
    mesh = device_mesh(shape, sizes.dit.num_heads, chips)
    where = weight_shardings(weights, mesh, shape.weights)
    return jax.tree.map(_lying, weights, where), sequence_layout(mesh)


def _lying(leaf: jax.ShapeDtypeStruct, where) -> jax.ShapeDtypeStruct:
    return leaf.update(sharding=where)


def measure(sizes: Variant, shape: MeshShape, chips: Sequence[jax.Device]) -> list[Compiled]:
    """Every program of a window, compiled for chips that need not be there."""
    weights, layout = placed(sizes, shape, list(chips))
    model = Model("abstract", sizes, weights, {})
    found, began = [], time.perf_counter()
    for name, program in programs.compiled(model, resolve(Settings(), model), Shot, layout):
        seconds = time.perf_counter() - began
        kind, memory = name.split(",")[0], program.memory_analysis()
        made = memory.output_size_in_bytes - memory.alias_size_in_bytes
        taken = memory.argument_size_in_bytes + unused(program, weights)
        peak = taken + memory.temp_size_in_bytes + made
        found.append(Compiled(kind, memory.temp_size_in_bytes, peak, seconds))
        print(found[-1], flush=True)
        began = time.perf_counter()
    return found


def unused(program: jax.stages.Compiled, weights: Weights) -> int:
    """Bytes on one chip of the weights that a program was given and does not take."""
    positional, _ = program.input_shardings
    (taken,) = (argument for argument in positional if isinstance(argument, Weights))
    left = lambda leaf, where: 0 if where is not None else _on_one(leaf)
    return sum(jax.tree.leaves(jax.tree.map(left, weights, taken)))


def _on_one(leaf: jax.ShapeDtypeStruct) -> int:
    return prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize


def predicted(sizes: Variant, shape: MeshShape) -> dict[str, int]:
    """The bytes by `ic_jax.budget`, of the programs that it counts."""
    whole = need(sizes, PROMPTS)
    return {
        program: per_device(whole._replace(phases=(phase,)), shape)
        for program, phase in zip(COUNTED, whole.phases, strict=True)
    }


# The page -------------------------------------------------------------------------

HEADER = [
    "model", "chips", "clips × prompts × sequence × weights", "program", "works in", "peak",
    "of", "by the budget", "budget over peak", "compiled in",
]  # fmt: skip


def rows(case: Case, found: list[Compiled]) -> list[list[str]]:
    shape, memory = layout_of(case), SLICES[case.slice].memory
    said = predicted(VARIANTS[case.model], shape)
    gib = lambda size: f"{size / GIB:.2f}"

    def counted(each: Compiled) -> tuple[str, str]:
        if (size := said.get(each.program)) is None:
            return "–", "–"
        return gib(size), f"{size / each.peak:.2f}"

    return [
        [
            case.model, f"{case.chips} {case.slice}", " × ".join(map(str, shape)), each.program,
            gib(each.temporaries), gib(each.peak), f"{memory:.2f}", *counted(each),
            f"{each.seconds:.0f} s",
        ]
        for each in found
    ]  # fmt: skip


def page(results: dict[Case, list[Compiled]], compiler: str) -> str:
    lines = [line for case, found in results.items() for line in rows(case, found)]
    fit = [max(each.peak for each in found) <= SLICES[case.slice].memory * GIB
           for case, found in results.items()]  # fmt: skip
    return "\n".join([
        "# What a TPU's compiler makes of a re-capture", "",
        "`python -m experiments.bench.tpu`", "",
        f"{compiler}; compiled ahead of time on a CPU, run nowhere.", "",
        f"{sum(fit)} of {len(fit)} cases fit. One clip of 81 frames of 480×832; all memory in GiB,"
        " on each chip.", "",
        *table(HEADER, lines), "",
        "*Works in* are a program's temporaries. *Peak* has with them what it takes and makes, and"
        " all weights. The *budget* is what `ic-jax info` counts on paper and `--devices` chooses"
        " a layout by.", "",
    ])  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Compile a re-capture for TPUs."""

    only: str = ""
    """Cases whose model, chips and slice match this regular expression, as in "1.3B 8 v5e"."""
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    chosen = [
        case for case in CASES
        if re.search(arguments.only, f"{case.model} {case.chips} {case.slice}")
    ]  # fmt: skip
    results = {}
    for case in chosen:
        print(case, flush=True)
        slice_of = topologies.get_topology_desc(SLICES[case.slice].topology, "tpu")
        chips = slice_of.devices[: case.chips]
        results[case] = measure(VARIANTS[case.model], layout_of(case), chips)
        record = [case._asdict() | {"programs": [each._asdict() for each in found]}
                  for case, found in results.items()]  # fmt: skip
        # After every case: compiling an autoencoder takes minutes.
        compiler = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "libtpu"))
        publish(arguments.results, "bench_tpu", page(results, compiler), {"cases": record})


if __name__ == "__main__":
    main(tyro.cli(Arguments))
