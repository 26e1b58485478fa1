"""Two or more programs on the same machine at the same time: seconds in turns, memory apart.

Other work on a machine slows whatever runs beside it. Calls are therefore taken in turns, every
other round backwards, and compared round by round. Memory is that of a process of its own.
"""

import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import jax

Call = Callable[[], object]
Times = dict[str, list[float]]


def in_turns(calls: dict[str, Call], rounds: int) -> Times:
    """Seconds of each call in each round, after one that is not counted.

    A call returns when its work is done, or what `jax.block_until_ready` can wait for.
    """
    times: Times = {name: [] for name in calls}
    for call in calls.values():
        jax.block_until_ready(call())
    for n in range(rounds):
        for name in list(calls)[:: 1 if n % 2 == 0 else -1]:
            began = time.perf_counter()
            jax.block_until_ready(calls[name]())
            times[name].append(time.perf_counter() - began)
    return times


def ratio(times: Times, name: str, reference: str) -> float:
    """Median over rounds of one call's seconds over those of `reference` in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def spread(seconds: Sequence[float]) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(seconds):.3g} s ({min(seconds):.3g} to {max(seconds):.3g})"


class Peak(NamedTuple):
    """Bytes of a process: with all loaded and nothing run yet, and at most from there on.

    On an accelerator they are those that its allocator has handed out.
    """

    rest: int
    most: int

    @property
    def rise(self) -> int:
        """What the call needed, compilation included, beside libraries, weights and inputs."""
        return self.most - self.rest


def peak_of(prepare: Callable[..., Call], *arguments) -> Peak:
    """Memory of the call that `prepare(*arguments)` makes, alone in a new process.

    `prepare` is a function of a module; what that module imports at its top is loaded by all.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_peak_of, prepare, *arguments).result()


def _peak_of(prepare: Callable[..., Call], *arguments) -> Peak:
    call = prepare(*arguments)
    gc.collect()
    if jax.default_backend() == "cpu":
        # ru_maxrss would keep the peak of the parent from before the child was its own program.
        Path("/proc/self/clear_refs").write_text("5")
        rest = _status("VmRSS")
        jax.block_until_ready(call())
        return Peak(rest, _status("VmHWM"))
    rest = _on_device("bytes_in_use", "memory_allocated")
    if (torch := sys.modules.get("torch")) and torch.cuda.is_available():
        # Weights may have been made in more bytes than they have now.
        torch.cuda.reset_peak_memory_stats()
    jax.block_until_ready(call())
    return Peak(rest, _on_device("peak_bytes_in_use", "max_memory_allocated"))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def _on_device(of_jax: str, of_torch: str) -> int:
    """A process runs one of the two libraries; the other has allocated nothing."""
    torch = sys.modules.get("torch")
    ours = (jax.local_devices()[0].memory_stats() or {}).get(of_jax, 0)
    return ours + (getattr(torch.cuda, of_torch)() if torch and torch.cuda.is_available() else 0)


def machine(*packages: str) -> str:
    """The device and the versions of `packages` and of JAX, in one line."""
    device = jax.devices()[0]
    name = _processor() if device.platform == "cpu" else device.device_kind
    versions = [f"{name} {version(name)}" for name in ("jax", "jaxlib", *packages)]
    return ", ".join([name, f"Python {platform.python_version()}", *versions])


def _processor() -> str:
    """The processor's name and cores, with what tells generations of unnamed ones apart."""
    report = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in report.splitlines() if ":" in line)
    name, model = (fields[key].strip() for key in ("Model name", "Model"))
    return f"{name} (model {model}), {fields['CPU(s)'].strip()} cores"


def publish(folder: Path, name: str, text: str, raw: object) -> None:
    """Write `name`.md and .json into the folder, and print the page."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.md").write_text(text)
    (folder / f"{name}.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(text)


def mebibytes(count: float) -> str:
    """Bytes as MiB."""
    return f"{count / 2**20:.0f} MiB"
