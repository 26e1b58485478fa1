"""What a checkpoint is: which network, in which layout of keys, of which sizes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from math import prod
from pathlib import Path
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import PyTree

from ic_jax.checkpoint import Shape, shapes
from ic_jax.errors import InputError

from . import clip_vision, umt5, wan_dit, wan_vae
from .keymap import State, Table, canonical, leaves
from .lora import merged
from .shards import Checkpoint
from .source import cast_state, read_state

MODELS = {"dit": wan_dit, "vae": wan_vae, "umt5": umt5, "clip": clip_vision}

_WEIGHTS = tuple(np.dtype(kind) for kind in (ml_dtypes.bfloat16, np.float16, np.float32))


@dataclass(frozen=True)
class Network:
    """One network as it lies in the source: its tensors are still on disk."""

    component: str
    """Which part of a model: "dit", "dit_low" (the low-noise one of two), "vae", "umt5", "clip"."""
    layout: str
    config: Any
    """The sizes that the shapes show: DiTConfig, VAEConfig, UMT5Config or CLIPVisionConfig."""
    state: State
    checkpoint: Checkpoint

    @property
    def table(self) -> Table:
        return _model(self.component).table(self.layout)

    def shapes(self) -> dict[str, Shape]:
        """The shape of every parameter, by "/"-joined key."""
        return shapes(_target(self.component, self.config))

    def bytes(self) -> int:
        """The size of all parameters."""
        tensors = canonical(self.state, self.table)
        return sum(prod(tensor.shape) * tensor.dtype.itemsize for tensor in tensors.values())

    def leaves(self) -> Iterator[tuple[str, np.ndarray]]:
        """The parameters one after another, by "/"-joined key.

        Raises at the call, before anything is read, as `keymap.leaves` does.
        """
        with _naming(self.checkpoint.name):
            return leaves(self.state, self.table, _target(self.component, self.config))

    def cast(self, dtype: np.dtype) -> "Network":
        """The same with every tensor turned into `dtype` as it is read."""
        return replace(self, state=cast_state(self.state, dtype))

    def with_lora(self, file: Path, scale: float) -> "Network":
        """The same transformer and `scale` times the LoRA `file`; raises where it does not fit."""
        with _naming(file):
            return replace(self, state=merged(self.state, read_state([file]), scale))


def recognise(checkpoint: Checkpoint) -> Network:
    """The network that `checkpoint` holds, by its keys and never by its name.

    Raises InputError, naming the file, for one that is not known here, belongs to a relative
    that is not supported, or is stored in a dtype that weights do not come back from.
    """
    state = checkpoint.state()
    with _naming(checkpoint.name):
        component, layout = _detect(state)
        tensors = canonical(state, MODELS[component].table(layout))
        for key, tensor in tensors.items():
            if tensor.dtype not in _WEIGHTS:
                kinds = ", ".join(map(str, _WEIGHTS))
                raise InputError(f"{key} is {tensor.dtype}: use the release in {kinds}")
        config = MODELS[component].config(tensors, layout)
    return Network(component, layout, config, state, checkpoint)


def _model(component: str) -> ModuleType:
    return MODELS[component.removesuffix("_low")]


@cache
def _target(component: str, config: Any) -> PyTree:
    return _model(component).target(config)  # traces the whole network


def _detect(state: State) -> tuple[str, str]:
    found = [
        (component, layout)
        for component, model in MODELS.items()
        for layout, probe in model.PROBES.items()
        if any(prefix + probe in state for prefix in ("", *model.table(layout).prefixes))
    ]
    if len(found) != 1:
        some = ", ".join(sorted(state)[:3])
        raise InputError(
            "expected the keys of one Wan transformer or autoencoder, umT5 encoder or CLIP; "
            f"found {some}, ..."
        )
    return found[0]


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors from inside the block begin with the file that they are about."""
    try:
        yield
    except InputError as error:
        message = str(error)
        raise InputError(message if str(path) in message else f"{path}: {message}") from error
