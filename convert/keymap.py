"""The rule engine: a flat torch state into our nested parameters, with nothing left over.

A table pairs names of tensors. Every source key is used exactly once and every target leaf is
filled exactly once, so a table or a checkpoint that is wrong anywhere fails as a whole.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flax.traverse_util import unflatten_dict
from jaxtyping import PyTree

from ic_jax.checkpoint import Shape, shape_difference, shapes
from ic_jax.errors import InputError

State = Mapping[str, np.ndarray]
Transform = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Rule:
    """One tensor's two names; `{n}` in `source` counts blocks, which are stacked in front."""

    source: str
    target: str
    transform: Transform


@dataclass(frozen=True)
class Table:
    """The rules of one model in one layout of keys.

    Rules whose target the model at hand lacks (an optional branch) do not apply. `prefixes` may
    precede any key. `aliases` gives second names of a tensor, which must hold the same numbers.
    `ignored` lists keys, with `{n}` for any number, that stand for nothing in the network.
    """

    rules: tuple[Rule, ...]
    prefixes: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()


def same(x: np.ndarray) -> np.ndarray:
    """Stored alike in both."""
    return x


def transpose(x: np.ndarray) -> np.ndarray:
    """A matrix (out, in) to (in, out)."""
    return x.T


def convolution(x: np.ndarray) -> np.ndarray:
    """(out, in, [t,] h, w) to (t, h, w, in, out), with t = 1 for images."""
    return (x[:, :, None] if x.ndim == 4 else x).transpose(2, 3, 4, 1, 0)


def pointwise(x: np.ndarray) -> np.ndarray:
    """A 1×1 convolution as a matrix (in, out)."""
    return x[:, :, 0, 0].T


def patches(x: np.ndarray) -> np.ndarray:
    """A convolution whose stride is its kernel, as a matrix from flattened patches (t h w in)."""
    return convolution(x).reshape(-1, x.shape[0])


# What a layer of each kind stores: (source suffix, target leaf, transform).
LINEAR = ((".weight", "/kernel", transpose), (".bias", "/bias", same))
MATRIX = ((".weight", "/kernel", transpose),)
CONV = ((".weight", "/kernel", convolution), (".bias", "/bias", same))
POINTWISE = ((".weight", "/kernel", pointwise), (".bias", "/bias", same))
PATCHES = ((".weight", "/kernel", patches), (".bias", "/bias", same))
NORM = ((".weight", "/scale", same), (".bias", "/bias", same))
SCALE = ((".weight", "/scale", same),)
GAMMA = ((".gamma", "/gamma", np.ravel),)
EMBEDDING = ((".weight", "/embedding", same),)
TENSOR = ((".weight", "", same),)
# A parameter with a leading axis of one, for broadcasting over the batch.
MODULATION = (("", "", lambda x: x.reshape(x.shape[1:])),)


def rules(rows: Iterable[tuple], column: int) -> tuple[Rule, ...]:
    """Rules from rows (kind, our name, its name in each layout); `column` picks the layout."""
    return tuple(
        Rule(names[column] + suffix, target + leaf, transform)
        for kind, target, *names in rows
        for suffix, leaf, transform in kind
    )


def convert_state(state: State, table: Table, target: PyTree) -> dict:
    """The parameters that `table` makes from `state`, in the shapes of `target`.

    Raises InputError with a diff of key names when a key is missing (-), unknown (+), there
    twice or of the wrong shape, and ValueError for a table that does not cover the target.
    """
    wanted = shapes(target)
    applicable = [rule for rule in table.rules if rule.target in wanted]
    _check_table(applicable, wanted)
    sources = {rule: _source_keys(rule, wanted[rule.target]) for rule in applicable}
    state = canonical(state, table)
    _check_keys(state, [key for keys in sources.values() for key in keys])
    leaves, misshapen = {}, []
    for rule, keys in sources.items():
        parts = [_transformed(rule, state[key]) for key in keys]
        stacked = "{n}" in rule.source
        expected = wanted[rule.target][1:] if stacked else wanted[rule.target]
        wrong = [key for key, part in zip(keys, parts) if part is None or part.shape != expected]
        misshapen += [f"! {key} {state[key].shape} -> {rule.target} {expected}" for key in wrong]
        if not wrong:
            leaves[rule.target] = np.stack(parts) if stacked else parts[0]
    if misshapen:
        raise InputError("tensors of the wrong shape:\n" + "\n".join(misshapen))
    return unflatten_dict(leaves, sep="/")


def source_shape(state: State, table: Table, target: str) -> Shape:
    """Shape of the tensor that `table` reads for `target`, in the first block for stacked ones."""
    key = _source_of(table, target).replace("{n}", "0")
    if key not in state:
        raise InputError(f"keys do not match the model:\n- {key}")
    return state[key].shape


def block_count(state: State, table: Table, target: str) -> int:
    """How many blocks hold the tensor that `table` reads for `target`."""
    source = re.compile(_pattern(_source_of(table, target)))
    return sum(source.fullmatch(key) is not None for key in state)


def canonical(state: State, table: Table) -> State:
    """`state` without prefixes, aliases and ignored keys."""
    ignored = [re.compile(_pattern(key)) for key in table.ignored]
    found: dict[str, np.ndarray] = {}
    aliased: dict[str, np.ndarray] = {}
    for key, tensor in state.items():
        name = key.removeprefix(next((p for p in table.prefixes if key.startswith(p)), ""))
        if any(pattern.fullmatch(name) for pattern in ignored):
            continue
        names = aliased if name in table.aliases else found
        if name in names:
            raise InputError(f"duplicate key: {key} names {name} a second time")
        names[name] = tensor
    for alias, tensor in aliased.items():
        name = table.aliases[alias]
        if not np.array_equal(found.setdefault(name, tensor), tensor):
            raise InputError(f"duplicate key: {alias} and {name} are one tensor, but differ")
    return found


def _source_of(table: Table, target: str) -> str:
    return next(rule.source for rule in table.rules if rule.target == target)


def _pattern(key: str) -> str:
    return re.escape(key).replace(r"\{n\}", r"\d+")


def _source_keys(rule: Rule, shape: Shape) -> list[str]:
    if "{n}" not in rule.source:
        return [rule.source]
    return [rule.source.replace("{n}", str(n)) for n in range(shape[0])]


def _transformed(rule: Rule, tensor: np.ndarray) -> np.ndarray | None:
    try:
        return rule.transform(tensor)
    except (ValueError, IndexError):  # too few or too many axes
        return None


def _check_table(applicable: list[Rule], wanted: Mapping[str, Shape]) -> None:
    filled = Counter(rule.target for rule in applicable)
    difference = shape_difference({target: wanted[target] for target in filled}, wanted)
    twice = [target for target, times in filled.items() if times > 1]
    if difference or twice:
        raise ValueError(f"table does not cover the model:\n{difference}\nfilled twice: {twice}")


def _check_keys(state: State, expected: list[str]) -> None:
    twice = [key for key, times in Counter(expected).items() if times > 1]
    if twice:
        raise ValueError(f"table uses a source key twice: {twice}")
    missing = [f"- {key}" for key in expected if key not in state]
    unknown = [f"+ {key}" for key in sorted(state.keys() - set(expected))]
    if missing or unknown:
        raise InputError("keys do not match the model:\n" + "\n".join(missing + unknown))
