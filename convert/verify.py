"""Whether a converted model is the model that it was converted from.

Two questions, which fail independently: are the numbers the same, and do they do the same? Every
tensor is exported and compared bit by bit with the source's. Then each module runs, here and in
torch, on the same small input. The torch side is filled from the source without our tables (see
`torch_reference`); a slip in these would cancel in the first comparison and shows in the second.

Memory: one network as it is stored, and one block of it in float32 on either side.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import PyTree

from ic_jax.checkpoint import Shape
from ic_jax.errors import InputError
from ic_jax.model_folder import load_component, read_manifest

from .choose import with_experts_told_apart
from .folder import TOKENIZER, find_tokenizer
from .keymap import canonical, export_state
from .network import Network, recognise
from .shards import find_checkpoints
from .side_by_side import module_differences

TOLERANCE = 1e-4
"""Of a module's output, relative to its size (both by root mean square): float32 in another order
gives some 1e-6, a tensor in the wrong place 1e-2 and more."""

Report = Callable[[str], None]


@dataclass
class Comparison:
    """What was compared: modules by names like "dit.blocks.7", tensors by the source's keys."""

    modules: dict[str, float] = field(default_factory=dict)
    """Relative difference of the output of each."""
    tensors: int = 0
    differing: dict[str, float] = field(default_factory=dict)
    """Tensors that are not the source's, and their largest difference."""

    @property
    def trusted(self) -> bool:
        """Whether all tensors are equal and all modules agree."""
        return not self.differing and not self._disagreeing()

    def verdict(self) -> str:
        """One line for a person: trust it or not, and why."""
        if self.differing:
            name, worst = max(self.differing.items(), key=lambda item: item[1])
            others = _and_others(len(self.differing) - 1, "tensor")
            return f"{name} differs by {worst:.2g}{others}: do NOT use this conversion."
        if disagreeing := self._disagreeing():
            name = next(iter(disagreeing))
            others = _and_others(len(disagreeing) - 1, "module")
            return (
                f"{name} computes something else (off by {disagreeing[name]:.2g}){others}: "
                "do NOT use this conversion."
            )
        worst = max(self.modules.values())
        return (
            f"All {self.tensors} tensors are equal and all {len(self.modules)} modules agree "
            f"to {worst:.1g}: trust this conversion."
        )

    def _disagreeing(self) -> dict[str, float]:
        # Written so that NaN disagrees.
        return {name: e for name, e in self.modules.items() if not e <= TOLERANCE}


def _and_others(count: int, what: str) -> str:
    return "" if count == 0 else f", and {count} more {what}{'s' if count > 1 else ''}"


def verify(checkpoint: Path, source: Path, report: Report) -> Comparison:
    """Compare the model folder `checkpoint` with the released files that it was made from.

    `report` is given one line per component.

    Raises:
        InputError: a folder that is missing or damaged, a source of another model, networks or a
            tokenizer that only one of the two has, and a model with LoRA files merged into it,
            which has no equal.
    """
    manifest = read_manifest(checkpoint)
    if manifest.get("loras"):
        raise InputError(
            f"{checkpoint}: LoRA files are merged into it; verify a conversion without them"
        )
    found = with_experts_told_apart([recognise(each) for each in find_checkpoints(source)])
    networks = {network.component: network for network in found}
    _check_whole(checkpoint, source, networks, manifest["components"])
    for name, part in manifest["components"].items():
        _check_alike(checkpoint, source, name, networks, part["tensors"])
    comparison = Comparison()
    for name, part in manifest["components"].items():
        params = load_component(checkpoint, name)
        report(_compare(params, _as_converted(networks[name], part["tensors"]), comparison))
    return comparison


def _check_whole(
    checkpoint: Path,
    source: Path,
    networks: Mapping[str, Network],
    components: Mapping[str, Any],
) -> None:
    if lacking := [name for name in networks if name not in components]:
        raise InputError(
            f"{checkpoint}: has no {', '.join(lacking)}, and {source} has; convert it again, or "
            "verify against only what it was converted from"
        )
    theirs, ours = find_tokenizer(source), checkpoint / TOKENIZER
    if theirs and not (ours.exists() and ours.read_bytes() == theirs.read_bytes()):
        raise InputError(f"{ours}: missing, or not {theirs}; convert the model again")


def _check_alike(
    checkpoint: Path,
    source: Path,
    name: str,
    networks: Mapping[str, Network],
    stored: Mapping[str, Mapping[str, Any]],
) -> None:
    if name not in networks:
        raise InputError(f"{source}: has no {name}, and {checkpoint} has; give all of its sources")
    found: dict[str, Shape] = networks[name].shapes()
    if {key: tuple(tensor["shape"]) for key, tensor in stored.items()} != found:
        raise InputError(
            f"{networks[name].checkpoint.name}: a {name} of other sizes than the one in "
            f"{checkpoint}, so not what that was converted from"
        )


def _as_converted(network: Network, stored: Mapping[str, Mapping[str, Any]]) -> Network:
    """The network of the source, in the dtype of a conversion that changed it."""
    dtypes = {tensor["dtype"] for tensor in stored.values()}
    if len(dtypes) > 1:  # kept as they were
        return network
    return network.cast(np.dtype(dtypes.pop()))


def _compare(params: PyTree, network: Network, comparison: Comparison) -> str:
    """Adds one network's tensors and modules to `comparison`; says how it went in one line."""
    name = network.component
    tensors = {f"{name}.{key}": gap for key, gap in _tensor_gaps(params, network)}
    modules = {f"{name}.{key}": gap for key, gap in module_differences(params, network)}
    differing = {key: gap for key, gap in tensors.items() if gap}
    comparison.tensors += len(tensors)
    comparison.differing |= differing
    comparison.modules |= modules
    worst = max(modules, key=modules.get)
    return (
        f"{name}: {len(tensors)} tensors, {len(differing) or 'none'} different; {len(modules)} "
        f"modules, largest difference {modules[worst]:.1g} in {worst.removeprefix(f'{name}.')}"
    )


def _tensor_gaps(params: PyTree, network: Network) -> Iterator[tuple[str, float]]:
    """Every tensor by the source's key, and its largest difference; 0 for the same bits."""
    expected = canonical(network.state, network.table)
    for key, tensor in export_state(params, network.table):
        source = np.ascontiguousarray(np.asarray(expected[key]))
        same = source.dtype == tensor.dtype and np.array_equal(_bits(source), _bits(tensor))
        yield key, 0.0 if same else _gap(source, tensor)


def _bits(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)


def _gap(source: np.ndarray, tensor: np.ndarray) -> float:
    """The largest difference: infinite for NaN, above 0 where only the bits of 0 differ."""
    largest = float(np.finfo(np.float32).tiny)
    # In parts, because umT5's embedding in float64 is 8 GB.
    for a, b in zip(np.array_split(source.ravel(), 64), np.array_split(tensor.ravel(), 64)):
        gap = np.abs(a.astype(np.float64) - b.astype(np.float64))
        largest = max(largest, float(np.nan_to_num(gap, nan=np.inf).max(initial=0)))
    return largest
