"""Two or more programs on the same machine at the same time: seconds in turns.

Other work on a machine slows whatever runs beside it. Calls are therefore taken in turns, every
other round backwards, and compared round by round.
"""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

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


def medians(times: Times) -> dict[str, float]:
    """The median seconds of each call."""
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def ratio(times: Times, name: str, reference: str) -> float:
    """Median over rounds of one call's seconds over those of `reference` in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times[reference], strict=True))


def spread(seconds: Sequence[float]) -> str:
    """The median, and the least and the most."""
    return f"{statistics.median(seconds):.3g} s ({min(seconds):.3g} to {max(seconds):.3g})"


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
