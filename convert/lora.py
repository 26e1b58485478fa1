"""LoRA files (arXiv 2106.09685) merged into a transformer's weights before they are converted.

The names that trainers write differ in three ways, which are told apart here: a prefix, the name
of the module (Wan's own or diffusers', kohya's with "_" for "."), and that of its two matrices.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from ic_jax.errors import InputError

from . import wan_dit
from .keymap import State, Tensor, canonical, listed

_PREFIXES = (
    "base_model.model.",
    "transformer.",
    "model.diffusion_model.",
    "diffusion_model.",
    "lora_unet__",
    "lora_unet_",
)

# The end of a key: what its tensor is, of which parameter of the module.
_ROLES = {
    ".lora_A.weight": ("down", ".weight"),
    ".lora_B.weight": ("up", ".weight"),
    ".lora_A.default.weight": ("down", ".weight"),
    ".lora_B.default.weight": ("up", ".weight"),
    ".lora_down.weight": ("down", ".weight"),
    ".lora_up.weight": ("up", ".weight"),
    ".alpha": ("alpha", ".weight"),
    # Whole differences, which extracted files add for norms and biases.
    ".diff": ("difference", ".weight"),
    ".diff_b": ("difference", ".bias"),
}


def merged(state: State, lora: State, scale: float = 1.0) -> State:
    """`state` of a transformer in any layout, each weight W read as W + scale·(alpha/rank)·B·A.

    The sum is made in float32 when a tensor is read, and rounded once: to the dtype that is asked
    for, or else the weight's own; alpha is the rank where the file has none. The keys of `state`
    lose their prefixes. Of the LoRA every tensor is read at the call. Raises InputError, listing
    them, for LoRA keys that the model lacks (+), halves without the other (-) and shapes that do
    not fit (!), for a LoRA of another model altogether, one that is not finite or changes
    nothing, and for a scale that is 0 or not finite.
    """
    if not math.isfinite(scale) or not scale:
        raise InputError(f"a LoRA cannot be added {scale} times: use a scale such as 1")
    layout = wan_dit.layout_of(state)
    base = canonical(state, wan_dit.table(layout))
    updates, unknown = _updates(lora, _modules(base, layout), base)
    if not updates:
        some = ", ".join(sorted(lora)[:3]) or "none"
        raise InputError(f"the LoRA touches nothing in this transformer; its keys: {some}, ...")
    problems = [f"+ {key}" for key in unknown]
    for key, update in updates.items():
        problems += update.problems(tuple(base[key].shape))
    if problems:
        lines = "\n".join(listed(problems))
        raise InputError(f"the LoRA does not fit the transformer:\n{lines}")
    # In lists, so that all of it is read: what is not finite shows before anything is written.
    if not any([update.changes() for update in updates.values()]):
        raise InputError(
            "the LoRA changes nothing: alpha or a matrix is 0 everywhere; leave it out"
        )
    sums = {key: _Sum(base[key], update, scale) for key, update in updates.items()}
    return {**base, **sums}


@dataclass(frozen=True)
class _Update:
    """What a LoRA file holds for one parameter: by role, the tensor and its key there."""

    tensors: Mapping[str, Tensor]
    keys: Mapping[str, str]

    def problems(self, shape: tuple[int, ...]) -> Iterator[str]:
        """One line for each thing that does not fit a parameter of this shape."""
        roles = self.tensors.keys()
        if roles == {"difference"}:
            fits = {"difference": tuple(self.tensors["difference"].shape) == shape}
        elif {"down", "up"} <= roles and "difference" not in roles:
            down, up = tuple(self.tensors["down"].shape), tuple(self.tensors["up"].shape)
            fits = {
                "down": len(shape) > 1 and down[1:] == shape[1:],
                "up": up == (*shape[:1], *down[:1], *(1,) * (len(shape) - 2)),
                "alpha": "alpha" not in roles or math.prod(self.tensors["alpha"].shape) == 1,
            }
        else:
            yield f"- one of down and up beside {', '.join(sorted(self.keys.values()))}"
            return
        for role, fit in fits.items():
            if not fit:
                found = tuple(self.tensors[role].shape)
                yield f"! {self.keys[role]} {found} for a weight {shape}"

    def changes(self) -> bool:
        """Whether no factor is 0, and so the sum another than the parameter."""
        return all([np.asarray(tensor).any() for tensor in self.tensors.values()])

    def delta(self) -> np.ndarray:
        """What is added to the parameter, in float32."""
        read = {role: np.asarray(t).astype(np.float32) for role, t in self.tensors.items()}
        if "difference" in read:
            return read["difference"]
        down, up = read["down"], read["up"]
        rank = down.shape[0]
        strength = read["alpha"].item() / rank if "alpha" in read else 1.0
        product = up.reshape(-1, rank) @ down.reshape(rank, -1)
        return strength * product.reshape(-1, *down.shape[1:])


@dataclass(frozen=True)
class _Sum:
    """A parameter and its update, added when the tensor is read."""

    parameter: Tensor
    update: _Update
    scale: float

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.parameter.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.parameter.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        out = self.scale * self.update.delta()
        out += np.asarray(self.parameter, np.float32)
        return out.astype(self.dtype if dtype is None else dtype, copy=False)


def _updates(
    lora: State, modules: Mapping[str, str], base: State
) -> tuple[dict[str, _Update], list[str]]:
    """The updates by the key they are for, and the keys that are for nothing in the model."""
    tensors: dict[str, dict[str, Tensor]] = defaultdict(dict)
    keys: dict[str, dict[str, str]] = defaultdict(dict)
    unknown = []
    for key in sorted(lora):
        name = key.removeprefix(next((p for p in _PREFIXES if key.startswith(p)), ""))
        end = next((end for end in _ROLES if name.endswith(end)), None)
        module = modules.get(name.removesuffix(end)) if end else None
        role, leaf = _ROLES[end] if end else ("", "")
        if module is None or module + leaf not in base:
            unknown.append(key)
            continue
        target = module + leaf
        if role in keys[target]:
            raise InputError(f"duplicate key: {key} and {keys[target][role]} are for one weight")
        tensors[target][role], keys[target][role] = lora[key], key
    return {target: _Update(tensors[target], keys[target]) for target in tensors}, unknown


def _modules(base: State, layout: str) -> dict[str, str]:
    """Every name of a module that a LoRA may use, to the module's name in `base`."""
    modules = {}
    for names in wan_dit.module_names(base, layout):
        for name in names.values():
            modules[name] = modules[name.replace(".", "_")] = names[layout]
    return modules
