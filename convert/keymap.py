"""The rule engine: a flat torch state into our nested parameters, and back, with nothing left over.

A table pairs names of tensors. Every source tensor is used exactly once and every target leaf is
filled exactly once, so a table or a checkpoint that is wrong anywhere fails as a whole.
"""

import hashlib
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PyTree

from ic_jax.checkpoint import Shape, shape_difference, shapes
from ic_jax.errors import InputError

from .transforms import Kind, Transform


@runtime_checkable
class Tensor(Protocol):
    """What an array shows before it is read; a numpy array, or one that still lies on disk."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...

    def __array__(self, dtype=None, copy=None) -> np.ndarray: ...


State = Mapping[str, Tensor]


@dataclass(frozen=True)
class Part:
    """The `index`th of `of` tensors that a layout stores as one, along the first axis."""

    name: str
    index: int = 0
    of: int = 1


@dataclass(frozen=True)
class Rule:
    """One tensor's two names; `{n}` in the source's counts blocks, which are stacked in front."""

    source: Part
    target: str
    transform: Transform

    @property
    def stacked(self) -> bool:
        """Whether the target is one array over all blocks."""
        return "{n}" in self.source.name


@dataclass(frozen=True)
class Table:
    """The rules of one model in one layout of keys.

    Rules whose target the model at hand lacks (an optional branch) do not apply. `prefixes` may
    precede any key. `aliases` gives second names of a tensor, which must hold the same bits.
    `ignored` lists keys, with `{n}` for any number and `*` for anything, that stand for nothing
    in the network, and so do blocks beyond the target's, up to `spare_blocks` of them; `foreign`
    keys in the same notation give away a model that we do not have.
    """

    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    spare_blocks: int = 0
    foreign: Mapping[str, str] = field(default_factory=dict)


def rules(rows: Iterable[tuple], column: int) -> tuple[Rule, ...]:
    """Rules from rows (kind, our name, its name in each layout); `column` picks the layout.

    A name is a string, or a `Part` where the layout stores several of our tensors as one.
    """
    return tuple(_rules(rows, column))


def _rules(rows: Iterable[tuple], column: int) -> Iterator[Rule]:
    kind: Kind
    for kind, target, *names in rows:
        name = names[column]
        part = name if isinstance(name, Part) else Part(name)
        for suffix, leaf, transform in kind:
            source = Part(part.name + suffix, part.index, part.of)
            yield Rule(source, target + leaf, transform)


def convert_state(state: State, table: Table, target: PyTree) -> dict:
    """The parameters that `table` makes from `state`, all in memory; raises as `leaves` does."""
    return unflatten_dict(dict(leaves(state, table, target)), sep="/")


def leaves(state: State, table: Table, target: PyTree) -> Iterator[tuple[str, np.ndarray]]:
    """One finished parameter after another, by "/"-joined key, in the shapes of `target`.

    Names, shapes and dtypes are checked at the call, before any tensor is read; then no more is
    held at a time than one parameter and one tensor. Raises InputError with a diff of key names
    when a key is missing (-), unknown (+), there twice or of the wrong shape, and ValueError for
    a table that does not cover the target.
    """
    wanted = shapes(target)
    applicable = [rule for rule in table.rules if rule.target in wanted]
    _check_table(applicable, wanted)
    sources = {rule: _source_keys(rule, wanted[rule.target]) for rule in applicable}
    tensors, aliased = _named(state, table)
    spare = _spare_keys(table, applicable, wanted)
    _check_keys(tensors.keys() - spare, sources)
    _check_shapes(tensors, sources, wanted)
    _check_dtypes(tensors, sources)
    _check_aliases(aliased, tensors, table)
    return (
        (rule.target, _leaf(rule, [tensors[key] for key in keys], wanted[rule.target]))
        for rule, keys in sources.items()
    )


def export_state(params: PyTree, table: Table) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that `table` would make `params` from, by key: the inverse of `leaves`."""
    flat = flatten_dict(params, sep="/")
    parts: dict[str, list[Rule]] = defaultdict(list)
    for rule in table.rules:
        if rule.target in flat:
            parts[rule.source.name].append(rule)
    for name, together in parts.items():
        together = sorted(together, key=lambda rule: rule.source.index)
        arrays = [(np.asarray(flat[rule.target]), rule.transform.inverse) for rule in together]
        blocks = range(len(arrays[0][0])) if together[0].stacked else [...]
        for n in blocks:
            tensors = [inverse(array[n]) for array, inverse in arrays]
            whole = np.concatenate(tensors) if len(tensors) > 1 else tensors[0]
            yield name.replace("{n}", str(n)), np.ascontiguousarray(whole)


def source_shape(state: State, table: Table, target: str) -> Shape:
    """Shape of the tensor that `table` reads for `target`, in the first block for stacked ones."""
    key = _source_of(table, target).replace("{n}", "0")
    if key not in state:
        raise InputError(f"keys do not match the model:\n- {key}")
    return tuple(state[key].shape)


def block_count(state: State, table: Table, target: str) -> int:
    """How many blocks hold the tensor that `table` reads for `target`."""
    source = _pattern(_source_of(table, target))
    return sum(source.fullmatch(key) is not None for key in state)


def canonical(state: State, table: Table) -> State:
    """`state` without prefixes, aliases and ignored keys; no tensor is read.

    Raises InputError for a name that is there twice, and for a model that we do not have.
    """
    tensors, _ = _named(state, table)
    return tensors


def listed(lines: Sequence[str], most: int = 20) -> list[str]:
    """What a message shows of `lines`, of which a foreign checkpoint may give a thousand."""
    more = len(lines) - most
    return [*lines[:most], f"... and {more} more"] if more > 0 else list(lines)


def unsupported(model: str, evidence: str) -> InputError:
    """The error for a checkpoint of a `model` that we do not have."""
    return InputError(f"this is a {model} checkpoint, which is not supported ({evidence})")


def _named(state: State, table: Table) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors by their one name, and those that stand under an alias, by that."""
    ignored = [_pattern(key) for key in table.ignored]
    foreign = [(_pattern(key), model) for key, model in table.foreign.items()]
    names: dict[str, str] = {}
    found: dict[str, Tensor] = {}
    aliased: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = key.removeprefix(next((p for p in table.prefixes if key.startswith(p)), ""))
        for pattern, model in foreign:
            if pattern.fullmatch(name):
                raise unsupported(model, key)
        if any(pattern.fullmatch(name) for pattern in ignored):
            continue
        if names.setdefault(name, key) != key:
            raise InputError(f"duplicate key: {key} and {names[name]} both name {name}")
        (aliased if name in table.aliases else found)[name] = tensor
    return {table.aliases[name]: tensor for name, tensor in aliased.items()} | found, aliased


def _source_of(table: Table, target: str) -> str:
    return next(rule.source.name for rule in table.rules if rule.target == target)


def _pattern(key: str) -> re.Pattern:
    return re.compile(re.escape(key).replace(r"\{n\}", r"\d+").replace(r"\*", ".*"))


def _source_keys(rule: Rule, shape: Shape) -> list[str]:
    if not rule.stacked:
        return [rule.source.name]
    return [rule.source.name.replace("{n}", str(n)) for n in range(shape[0])]


def _spare_keys(table: Table, applicable: Iterable[Rule], wanted: Mapping[str, Shape]) -> set[str]:
    return {
        rule.source.name.replace("{n}", str(wanted[rule.target][0] + n))
        for rule in applicable
        if rule.stacked
        for n in range(table.spare_blocks)
    }


def _leaf(rule: Rule, tensors: list[Tensor], shape: Shape) -> np.ndarray:
    out = np.empty(shape, tensors[0].dtype)
    for n, tensor in enumerate(tensors):
        out[n if rule.stacked else ...] = _transformed(rule, np.asarray(tensor))
    return out


def _transformed(rule: Rule, tensor: np.ndarray) -> np.ndarray:
    part = np.split(tensor, rule.source.of)[rule.source.index]
    return rule.transform.forward(part)


def _shape_after(rule: Rule, shape: Shape) -> Shape | None:
    """What the rule makes of a tensor of this shape; None if it has too few or too many axes."""
    # One element seen through zero strides: costs nothing at any size.
    dummy = np.broadcast_to(np.zeros((), np.int8), shape)
    try:
        return _transformed(rule, dummy).shape
    except (ValueError, IndexError):
        return None


def _check_table(applicable: list[Rule], wanted: Mapping[str, Shape]) -> None:
    filled = Counter(rule.target for rule in applicable)
    difference = shape_difference({target: wanted[target] for target in filled}, wanted)
    twice = [target for target, times in filled.items() if times > 1]
    if difference or twice:
        raise ValueError(f"table does not cover the model:\n{difference}\nfilled twice: {twice}")
    used = defaultdict(list)
    for rule in applicable:
        used[rule.source.name].append((rule.source.index, rule.source.of))
    for name, parts in used.items():
        of = parts[0][1]
        if sorted(parts) != [(index, of) for index in range(of)]:
            raise ValueError(f"table does not use a source once: {name}, parts {parts}")


def _check_keys(found: Set[str], sources: Mapping[Rule, list[str]]) -> None:
    expected = dict.fromkeys(key for keys in sources.values() for key in keys)
    missing = [f"- {key}" for key in expected if key not in found]
    unknown = [f"+ {key}" for key in sorted(found - expected.keys())]
    if missing or unknown:
        # Both sides in either case: one often explains the other.
        both = listed(missing, 10) + listed(unknown, 10)
        raise InputError("keys do not match the model:\n" + "\n".join(both))


def _check_shapes(
    state: State, sources: Mapping[Rule, list[str]], wanted: Mapping[str, Shape]
) -> None:
    misshapen = []
    for rule, keys in sources.items():
        expected = wanted[rule.target][1:] if rule.stacked else wanted[rule.target]
        for key in keys:
            shape = tuple(state[key].shape)
            if _shape_after(rule, shape) != expected:
                misshapen.append(f"! {key} {shape} -> {rule.target} {expected}")
    if misshapen:
        raise InputError("tensors of the wrong shape:\n" + "\n".join(listed(misshapen)))


def _check_dtypes(state: State, sources: Mapping[Rule, list[str]]) -> None:
    mixed = []
    for keys in sources.values():
        common = Counter(state[key].dtype for key in keys).most_common(1)[0][0]
        others = [key for key in keys if state[key].dtype != common]
        mixed += [f"! {key} {state[key].dtype}, elsewhere {common}" for key in others]
    if mixed:
        lines = "\n".join(listed(mixed))
        raise InputError(f"blocks that are stored with different dtypes:\n{lines}")


def _check_aliases(aliased: State, tensors: State, table: Table) -> None:
    for alias, tensor in aliased.items():
        name = table.aliases[alias]
        if tensor is not tensors[name] and _fingerprint(tensor) != _fingerprint(tensors[name]):
            raise InputError(f"duplicate key: {alias} and {name} are one tensor, but differ")


def _fingerprint(tensor: Tensor) -> tuple:
    """Enough to compare two large tensors without holding both."""
    array = np.ascontiguousarray(np.asarray(tensor))
    digest = hashlib.sha256(array.view(np.uint8).reshape(-1)).hexdigest()
    return array.shape, str(array.dtype), digest
