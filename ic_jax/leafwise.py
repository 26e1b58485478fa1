"""Orbax one tensor at a time, for networks that do not fit into memory twice, or even once.

What is written is an ordinary orbax checkpoint of arrays: orbax itself restores it, sharded over
devices where its user asks for that.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import unflatten_dict

# Small enough that the few chunks in flight at a time do not count beside a stacked tensor.
_CHUNK_BYTES = 64 << 20

Leaves = Iterable[tuple[str, np.ndarray]]


def save_leaves(path: Path, keys: Iterable[str], leaves: Leaves) -> None:
    """Write `leaves`, pairs of a "/"-joined key and an array, to the new orbax folder `path`.

    `keys` names all of them beforehand, in any order. Each leaf is written before the next is
    drawn from the iterator, so that they need not exist together.
    """
    tree = unflatten_dict({key: _Promised(key) for key in keys}, sep="/")
    with _checkpointer(_Promised, _OneByOne(leaves=leaves)) as checkpointer:
        checkpointer.save(path, args=ocp.args.PyTreeSave(tree))


def visit_leaves(path: Path, visit: Callable[[str, np.ndarray], None]) -> None:
    """Call `visit(key, array)` for every leaf of the orbax folder `path`, read one at a time."""
    with _checkpointer(np.ndarray, _OneByOne(visit=visit)) as checkpointer:
        checkpointer.restore(path)


@dataclass(frozen=True)
class _Promised:
    """Stands for a leaf while orbax lays out the tree."""

    key: str


class _OneByOne(ocp.type_handlers.NumpyHandler):
    """Orbax's own handler of numpy arrays, which is given all leaves, fed with one at a time."""

    def __init__(self, leaves: Leaves = (), visit: Callable[[str, np.ndarray], None] | None = None):
        super().__init__(deepcopy_host_arrays=False)
        self._leaves = leaves
        self._visit = visit

    def memory_size(self, values: Sequence[_Promised]) -> list[tuple[int, int]]:
        return [(0, 0)] * len(values)  # for orbax's log only; a promise has no size

    async def serialize(self, values, infos, args=None):
        places = {promised.key: info for promised, info in zip(values, infos)}
        chunked = [ocp.SaveArgs(chunk_byte_size=_CHUNK_BYTES)]
        for key, leaf in self._leaves:
            for written in await super().serialize([leaf], [places.pop(key)], chunked):
                _wait_for(written)
            del leaf  # before the next one is drawn
        if places:
            raise ValueError(f"leaves that never came: {sorted(places)}")
        return []

    async def deserialize(self, infos, args=None):
        for info in infos:
            (leaf,) = await super().deserialize([info])
            self._visit(info.name.replace(".", "/"), leaf)
            del leaf  # before the next one is read
        return [np.zeros(0)] * len(infos)  # orbax measures what it thinks it restored


def _by_itself() -> ocp.options.MultiprocessingOptions:
    """Else orbax lets all hosts wait for each other, of which some may have nothing to read."""
    host = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=host, active_processes={host}, barrier_sync_key_prefix=f"host {host}"
    )


def _wait_for(written) -> None:
    try:
        written.result()
    except KeyboardInterrupt:
        # The write goes on in a thread; no file may appear after its folder was removed.
        written.result()
        raise


@contextmanager
def _checkpointer(kind: type, handler: _OneByOne) -> Iterator[ocp.Checkpointer]:
    logger = logging.getLogger("absl")
    level = logger.level
    # Orbax warns of what is meant (no OCDBT, no device arrays) and logs what it then raises.
    logger.setLevel(logging.CRITICAL)
    try:
        registry = ocp.type_handlers.create_type_handler_registry((kind, handler))
        # Plain zarr folders, one for each leaf: OCDBT would gather far more in memory.
        given = {"type_handler_registry": registry, "multiprocessing_options": _by_itself()}
        whole = ocp.PyTreeCheckpointHandler(use_ocdbt=False, **given)
        with ocp.Checkpointer(whole, multiprocessing_options=_by_itself()) as checkpointer:
            yield checkpointer
    finally:
        logger.setLevel(level)
