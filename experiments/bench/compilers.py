"""Whether a run fits a machine that is not at hand, by that machine's own compiler.

    pip install -e '.[experiments,tpu,cuda]' && python -m experiments.bench.compilers

writes experiments/results/bench_compilers.md and .json. XLA compiles for a TPU's topology, or for
a GPU, that is only described to it, lays out every buffer, and on a TPU refuses what a chip's
memory cannot hold. Every program of a re-capture is compiled at full size, with the layout that
`--devices` would choose there. Nothing is run: what stands here of time is how long compiling
took.
"""

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import NamedTuple

# JAX itself stays on the CPU; libtpu is told what it would ask Google's cloud for.
os.environ.update(JAX_PLATFORMS="cpu", TPU_SKIP_MDS_QUERY="1", TPU_WORKER_HOSTNAMES="localhost")
os.environ["TPU_ACCELERATOR_TYPE"] = "v5litepod-8"
# Without a GPU nothing can be tried out.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0"

import jax
import numpy as np
import tyro
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from experiments.bench.side_by_side import publish
from experiments.tables import table
from ic_jax import programs
from ic_jax.budget import need, weight_rows
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
PAGE = "bench_compilers"
COMPILERS = "jax", "jaxlib", "libtpu", "jax-cuda13-pjrt"


class Machine(NamedTuple):
    """A TPU's slice or a GPU, as its compiler is told of it, and what one device can hold."""

    platform: str
    topology: str
    memory: float
    """GiB: as libtpu says it of a program that is too large, or as nvidia-smi says it."""
    described: str = ""
    """A GPU, in the words of XLA's `GpuTargetConfigProto`."""

    def devices(self, count: int) -> list[jax.Device]:
        """So many of them, none of which need be there."""
        if not self.described:
            return topologies.get_topology_desc(self.topology, self.platform).devices[:count]
        options = {"target_config": self.described, "topology": f"1x1x{count}"}
        return topologies.get_topology_desc(self.topology, self.platform, **options).devices


def gpu(name: str, mebibytes: int, capability: tuple[int, int], **apart: int | float) -> Machine:
    """`apart` is what tells NVIDIA's GPUs apart, by the names that XLA has for it."""
    alike = {
        "threads_per_block_limit": 1024, "threads_per_warp": 32, "fpus_per_core": 128,
        "shared_memory_per_block": 48 << 10, "block_dim_limit_x": (1 << 31) - 1,
        "block_dim_limit_y": (1 << 16) - 1, "block_dim_limit_z": (1 << 16) - 1,
        "registers_per_core_limit": 1 << 16, "registers_per_block_limit": 1 << 16,
        "device_memory_size": mebibytes << 20,
    }  # fmt: skip
    fields = [f"{field}: {value}" for field, value in (alike | apart).items()]
    major, minor = capability
    fields.append(f"cuda_compute_capability {{ major: {major} minor: {minor} }}")
    described = [
        f"gpu_device_info {{ {' '.join(fields)} }}", f'device_description_str: "NVIDIA {name}"',
        'platform_name: "CUDA"', "dnn_version_info { major: 9 }",
    ]  # fmt: skip
    return Machine("cuda", name, mebibytes / 1024, "\n".join(described))


MACHINES = {
    "v5e": Machine("tpu", "v5e:2x4", 15.75),
    "RTX 4090": gpu(
        "RTX 4090", 24564, capability=(8, 9), core_count=128,
        threads_per_core_limit=1536, shared_memory_per_core=100 << 10,
        shared_memory_per_block_optin=99 << 10, l2_cache_size=72 << 20,
        memory_bandwidth=1_008_000_000_000, clock_rate_ghz=2.52,
    ),
    "H100": gpu(
        "H100", 81559, capability=(9, 0), core_count=132,
        threads_per_core_limit=2048, shared_memory_per_core=228 << 10,
        shared_memory_per_block_optin=227 << 10, l2_cache_size=50 << 20,
        memory_bandwidth=3_352_000_000_000, clock_rate_ghz=1.98,
    ),
}  # fmt: skip


class Case(NamedTuple):
    """One clip of 81 frames of 480×832, on so many devices."""

    model: str
    machine: str
    devices: int


CASES = [
    Case("Wan2.1-T2V-1.3B", "RTX 4090", 1),
    Case("Wan2.1-T2V-14B", "H100", 1),
    Case("Wan2.2-T2V-A14B", "H100", 1),
    Case("Wan2.1-T2V-1.3B", "H100", 8),
    Case("Wan2.1-T2V-14B", "H100", 8),
    Case("Wan2.1-T2V-1.3B", "v5e", 1),
    Case("Wan2.1-T2V-1.3B", "v5e", 8),
    Case("Wan2.1-T2V-14B", "v5e", 8),
]

# The programs that the budget counts, in its order.
COUNTED = "observe", "sample", "finish"


class Compiled(NamedTuple):
    """A program by its compiler: bytes on each device."""

    program: str
    temporaries: int
    peak: int
    """With what it takes and makes, and all weights, those that it has no use for as well."""
    seconds: float


# One clip on some devices ---------------------------------------------------------


def layout_of(case: Case) -> MeshShape:
    """What `--devices` chooses where each device has this much memory."""
    sizes, memory = VARIANTS[case.model], int(MACHINES[case.machine].memory * GIB)
    if case.devices == 1:
        return MeshShape()
    return choose(
        need(sizes, PROMPTS), case.devices, memory, sizes.dit.num_heads, prompts=PROMPTS,
        width=weight_rows(sizes),
    )  # fmt: skip


def placed(sizes: Variant, shape: MeshShape, devices: list) -> tuple[Weights, Layout]:
    """Weights as `load_model` has them, as shapes, and where they lie."""
    cast, trees = matrices_as(sizes.dtype), expected_shapes(sizes)

    def stored(path, leaf):
        name = "/".join(entry.key for entry in path)
        return jax.ShapeDtypeStruct(leaf.shape, cast(name, np.zeros(0, leaf.dtype)).dtype)

    others = {name: jax.tree.map_with_path(stored, trees[name]) for name in trees if name != "vae"}
    weights = Weights(vae=trees["vae"], **others)
    if len(devices) == 1:
        put = partial(_lying, where=SingleDeviceSharding(devices[0]))
        return jax.tree.map(put, weights), Layout()
    mesh = device_mesh(shape, sizes.dit.num_heads, devices)
    where = weight_shardings(weights, mesh, shape.weights)
    return jax.tree.map(_lying, weights, where), sequence_layout(mesh)


def _lying(leaf: jax.ShapeDtypeStruct, where) -> jax.ShapeDtypeStruct:
    return leaf.update(sharding=where)


def measure(sizes: Variant, shape: MeshShape, devices: Sequence[jax.Device]) -> list[Compiled]:
    """Every program of a window, compiled for devices that need not be there."""
    weights, layout = placed(sizes, shape, list(devices))
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
    """Bytes on one device of the weights that a program was given and does not take."""
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
    "model", "devices", "clips × prompts × sequence × weights", "program", "works in", "peak",
    "of", "by the budget", "budget over peak", "compiled in",
]  # fmt: skip


def rows(case: Case, found: list[Compiled]) -> list[list[str]]:
    shape, memory = layout_of(case), MACHINES[case.machine].memory
    said = predicted(VARIANTS[case.model], shape)
    gib = lambda size: f"{size / GIB:.2f}"

    def counted(each: Compiled) -> tuple[str, str]:
        if (size := said.get(each.program)) is None:
            return "–", "–"
        return gib(size), f"{size / each.peak:.2f}"

    return [
        [
            case.model, f"{case.devices} {case.machine}", " × ".join(map(str, shape)), each.program,
            gib(each.temporaries), gib(each.peak), f"{memory:.2f}", *counted(each),
            f"{each.seconds:.0f} s",
        ]
        for each in found
    ]  # fmt: skip


def page(results: dict[Case, list[Compiled]], compiler: str) -> str:
    lines = [line for case, found in results.items() for line in rows(case, found)]
    fit = [max(each.peak for each in found) <= MACHINES[case.machine].memory * GIB
           for case, found in results.items()]  # fmt: skip
    return "\n".join([
        "# What the compilers of machines that are not at hand make of a re-capture", "",
        "`python -m experiments.bench.compilers`", "",
        f"{compiler}; compiled ahead of time on a CPU, run nowhere.", "",
        f"{sum(fit)} of {len(fit)} cases fit. One clip of 81 frames of 480×832; all memory in GiB,"
        " on each device.", "",
        *table(HEADER, lines), "",
        "*Works in* are a program's temporaries. *Peak* has with them what it takes and makes, and"
        " all weights. The *budget* is what `ic-jax info` counts on paper and `--devices` chooses"
        " a layout by. A case that `--only` left out stays as an earlier run has found it.",
        "", "What it cannot say of a GPU: which of cuDNN's convolutions and cuBLAS's products win"
        " there, and how much memory those work in. And attention is the one in plain XLA, for JAX"
        " writes cuDNN's down only where there is a GPU; that one works in less.", "",
    ])  # fmt: skip


@dataclass(frozen=True)
class Arguments:
    """Compile a re-capture for machines that need not be there."""

    only: str = ""
    """Cases whose model, devices and machine match this regular expression, as in "1.3B 8 v5e".
    Others stay as an earlier run with the same compilers has found them."""
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    chosen = [
        case for case in CASES
        if re.search(arguments.only, f"{case.model} {case.devices} {case.machine}")
    ]  # fmt: skip
    compiler = ", ".join(f"{name} {version(name)}" for name in COMPILERS)
    results = found_before(arguments.results / f"{PAGE}.json", compiler)
    for case in chosen:
        print(case, flush=True)
        devices = MACHINES[case.machine].devices(case.devices)
        results[case] = measure(VARIANTS[case.model], layout_of(case), devices)
        # After every case: compiling an autoencoder takes minutes.
        results = {each: results[each] for each in CASES if each in results}
        record = [case._asdict() | {"programs": [each._asdict() for each in found]}
                  for case, found in results.items()]  # fmt: skip
        raw = {"compiler": compiler, "cases": record}
        publish(arguments.results, PAGE, page(results, compiler), raw)


def found_before(file: Path, compiler: str) -> dict[Case, list[Compiled]]:
    """What a run with other cases has left, if by the same compilers."""
    raw = json.loads(file.read_text()) if file.is_file() else {}
    if raw.get("compiler") != compiler:
        return {}
    return {
        Case(each["model"], each["machine"], each["devices"]):
            [Compiled(**program) for program in each["programs"]]
        for each in raw["cases"]
    }  # fmt: skip


if __name__ == "__main__":
    main(tyro.cli(Arguments))
