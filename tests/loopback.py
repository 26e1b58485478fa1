"""One of several processes that stand for hosts: each has its own clips, and all share one.

Started by `test_parallel_hosts` with the coordinator's address, the number of processes, its own
number, and the folder to write to.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from tiny_transformer import on_mesh

from ic_jax import parallel
from ic_jax.leafwise import visit_leaves
from ic_jax.parallel import MeshShape

CLIPS = "c", "a", "b"
# Each with a prompt; and each with half of a ring.
SHAPES = MeshShape(prompts=2, sequence=4, weights=8), MeshShape(sequence=8, weights=4)


def main(coordinator, processes, process, folder):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append("to stop"))
    parallel.join(coordinator, int(processes), int(process), timeout=120)
    os.kill(os.getpid(), signal.SIGTERM)
    assert told == ["to stop"]  # JAX can take it for itself
    devices = f"{jax.local_device_count()} of {jax.device_count()} devices"
    for name in parallel.mine(CLIPS):
        (Path(folder) / name).write_text(f"{jax.process_index()}: {devices}")
    if jax.process_index() == 0:  # the others have nothing to read, and are not waited for
        leaves = {}
        visit_leaves(Path(folder) / "leaves.orbax", leaves.__setitem__)
        np.testing.assert_equal(leaves, {"a": np.arange(3)})
    found = [process_allgather(on_mesh(shape)[1], tiled=True) for shape in SHAPES]
    np.save(Path(folder) / f"{jax.process_index()}.npy", found)


if __name__ == "__main__":
    main(*sys.argv[1:])
