"""A run that was stopped, on disk: one file, written whole, that only its own run goes on from."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, PyTree

from . import checkpoint, programs
from .choices import resolve
from .director import Footage, Midway, Run
from .edit import Edit
from .errors import InputError
from .model import Model
from .pipeline import Observation
from .sampling.sampler import State
from .settings import Settings

KIND = "midway"


def identity(
    weights: str,
    model: Model,
    settings: Settings,
    footage: Footage,
    context: Float[Array, "2 l d"],
    seed: int,
) -> dict[str, Any]:
    """All that a run's frames follow from, as JSON has it, in the words of the command line.

    `weights` tells models of the same name apart (`model.fingerprint`).
    """
    sizes = model.variant
    return {
        "model": [model.name, weights],
        "calibration": model.calibration,
        "size": [sizes.frames, sizes.height, sizes.width],
        "settings": asdict(settings),
        "clip": _sums(footage),
        "prompt": _sums(context),
        "seed": seed,
    }


def save(path: Path, midway: Midway, run: Mapping[str, Any]) -> None:
    """Keep `midway` of the run with this identity in the file `path`, in place of an earlier one.

    Raises:
        InputError: the place cannot be written; an earlier file is as it was.
    """
    window = jax.tree.leaves(_plain(midway.seen, midway.state))
    tree = {"window": _numbered(window), "finished": _numbered(midway.finished)}
    record = {"kind": KIND, "run": dict(run), "windows": len(midway.finished), "step": midway.step}
    checkpoint.save(path, tree, record)


def load(
    path: Path, run: Mapping[str, Any], model: Model, settings: Settings, footage: Footage
) -> Midway:
    """What `save` has kept, on the host, for `director.direct` with the same arguments.

    Raises:
        InputError: a file that is damaged, or is of another run.
    """
    tree, record = _read(path)
    if differing := [name for name in run if record["run"].get(name) != run[name]]:
        raise InputError(
            f"{path}: is of another run, which differs in {', '.join(differing)}; "
            "remove it to begin anew, or choose another --out"
        )
    expected = jax.eval_shape(_plain, *programs.abstract_window(model, settings, type(footage)))
    leaves, structure = jax.tree.flatten(expected)
    if checkpoint.shapes(tree["window"]) != checkpoint.shapes(_numbered(leaves)):
        raise _unfit(path)
    stored = [tree["window"][str(n)] for n in range(len(leaves))]
    seen, state = jax.tree.unflatten(structure, stored)
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    finished = [tree["finished"][str(n)] for n in range(record["windows"])]
    whose = Run(resolve(settings, model, isinstance(footage, Edit)), run["seed"])
    return Midway(finished, seen, state, record["step"], whose)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    try:
        tree, record = checkpoint.load(path)
    except InputError as error:
        raise _unfit(path) from error
    if record.get("kind") != KIND:
        raise _unfit(path)
    return tree, record


def _unfit(path: Path) -> InputError:
    return InputError(
        f"{path}: is damaged, or no state of a run; remove it to begin anew, "
        "or choose another --out"
    )


def _plain(seen: Observation, state: State) -> tuple[Observation, State]:
    """With the key as the numbers that it is made of, which a file can hold."""
    return seen, state._replace(key=jax.random.key_data(state.key))


def _numbered(leaves: Sequence[Any]) -> dict[str, Any]:
    return {str(n): leaf for n, leaf in enumerate(leaves)}


def _sums(tree: PyTree) -> list[int]:
    return [checkpoint.checksum(np.asarray(leaf)) for leaf in jax.tree.leaves(tree)]
