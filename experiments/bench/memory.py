"""Memory of one call, in a process that loads nothing but what the call needs.

    python -m experiments.bench.memory

reads a pickled function and its arguments, calls what the function makes of them, and prints what
it held. This module loads neither JAX nor torch, so that a process of one has not the other.
"""

import ctypes
import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


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


def peak_of(prepare: Callable[..., Callable[[], object]], *arguments) -> Peak:
    """Memory of the call that `prepare(*arguments)` makes, alone in a new process.

    `prepare` is a function of a module: what that imports at its top is loaded, and so is what
    `arguments` are made of.
    """
    found = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((prepare, arguments)),
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        check=True,
    )
    return Peak(*json.loads(found.stdout.splitlines()[-1]))


def middle(peaks: list[Peak]) -> Peak:
    """Of processes that did the same: what torch holds differs by a fifth from one to the next."""
    return sorted(peaks, key=lambda peak: peak.most)[len(peaks) // 2]


def measured(call: Callable[[], object]) -> Peak:
    """Memory of a call in this process, by the library that is loaded."""
    gc.collect()
    jax, torch = (sys.modules.get(library) for library in ("jax", "torch"))
    if jax and jax.default_backend() == "gpu":
        statistics = jax.local_devices()[0].memory_stats
        rest = statistics()["bytes_in_use"]
        jax.block_until_ready(call())
        return Peak(rest, statistics()["peak_bytes_in_use"])
    if torch and torch.cuda.is_available():
        # Weights may have been made in more bytes than they have now.
        torch.cuda.reset_peak_memory_stats()
        rest = torch.cuda.memory_allocated()
        call()
        return Peak(rest, torch.cuda.max_memory_allocated())
    # Neither side is charged for what loading has freed.
    ctypes.CDLL(None).malloc_trim(0)
    # ru_maxrss would keep the peak of the parent from before the child was its own program.
    Path("/proc/self/clear_refs").write_text("5")
    rest = _status("VmRSS")
    result = call()
    if jax:
        jax.block_until_ready(result)
    return Peak(rest, _status("VmHWM"))


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


if __name__ == "__main__":
    prepare, arguments = pickle.load(sys.stdin.buffer)
    print(json.dumps(measured(prepare(*arguments))))
