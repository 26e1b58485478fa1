"""Which row of the variants table a set of networks is, and which of two experts leads."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ic_jax.errors import InputError
from ic_jax.models.variants import VARIANTS, Variant, variant

from .network import Network

_NOISE = {"high_noise": "dit", "low_noise": "dit_low"}


def with_experts_told_apart(networks: Sequence[Network]) -> list[Network]:
    """The networks with the low-noise transformer of two as "dit_low"; one of each component.

    Wan's own folders say high_noise and low_noise. diffusers' `transformer` leads at high noise
    and its `transformer_2` follows; VideoX-Fun means the opposite by these names, so they are
    believed only with diffusers' keys.
    """
    dits = [network for network in networks if network.component == "dit"]
    named = [
        replace(network, component="dit_low") if _is_low(network) else network
        for network in networks
    ]
    for component, count in Counter(network.component for network in named).items():
        if count > 1:
            same = [str(n.checkpoint.name) for n in named if n.component == component]
            advice = (
                "name the folders of two experts high_noise_model and low_noise_model"
                if len(dits) == 2
                else "keep one"
            )
            raise InputError(f"{' and '.join(same)} both hold a {component}: {advice}")
    return named


def choose_variant(source: Path, networks: Sequence[Network], name: str | None) -> str:
    """The one row of the variants table that has these sizes.

    Where several have, `name` decides, or else the folder's name. Raises InputError with the
    candidates where neither does, and with the sizes that were found where no row has them.
    """
    rows = VARIANTS if name is None else {name: variant(name)}
    for network in networks:
        if not any(_size_of(row, network) == network.config for row in rows.values()):
            whose = "any known model" if name is None else name
            raise InputError(f"{network.checkpoint.name}: not of {whose}: {_sizes(network)}")
    fitting = [row for row in rows if _fits(rows[row], networks)]
    likely = [row for row in fitting if _has_two(networks) == (rows[row].boundary is not None)]
    candidates = _named_by(source, likely or fitting)
    if not candidates:
        parts = ", ".join(network.component for network in networks)
        raise InputError(f"{source}: {parts} are not parts of one model")
    if len(candidates) > 1:
        raise InputError(f"{source}: could be {' or '.join(candidates)}; pass --variant NAME")
    return candidates[0]


def expert_of_lora(lora: Path, networks: Sequence[Network]) -> str:
    """The component that a LoRA file is for: of two experts, the one that its name says."""
    dits = [network.component for network in networks if network.component in ("dit", "dit_low")]
    if not dits:
        raise InputError(f"{lora}: there is no transformer to merge it into")
    if len(dits) == 1:
        return dits[0]
    said = [name for noise, name in _NOISE.items() if noise in _names(lora)]
    if len(said) != 1:
        raise InputError(f"{lora}: for which expert? put high_noise or low_noise into its name")
    return said[0]


def components_of(row: Variant) -> list[str]:
    """What a whole model of this variant consists of."""
    experts = ["dit"] if row.boundary is None else ["dit", "dit_low"]
    return [*experts, "vae", "umt5", *(["clip"] if row.clip else [])]


def _is_low(network: Network) -> bool:
    return network.component == "dit" and (
        "low_noise" in _names(network.checkpoint.files[0])
        or (network.layout == "diffusers" and _folder(network) == "transformer_2")
    )


def _has_two(networks: Sequence[Network]) -> bool:
    """Whether one of two experts is here, as far as names and number tell."""
    return any(
        network.component == "dit_low"
        or (network.component == "dit" and "high_noise" in _names(network.checkpoint.files[0]))
        for network in networks
    )


def _fits(row: Variant, networks: Sequence[Network]) -> bool:
    if _has_two(networks) and row.boundary is None:
        return False
    return all(_size_of(row, network) == network.config for network in networks)


def _size_of(row: Variant, network: Network):
    return getattr(row, network.component.removesuffix("_low"))


def _sizes(network: Network) -> str:
    sizes = asdict(network.config)
    shown = [f"{key} {value}" for key, value in sizes.items() if isinstance(value, int)]
    return f"{network.component} with {', '.join(shown)}"


def _named_by(source: Path, candidates: list[str]) -> list[str]:
    """Those whose every word is in the name of the folder, or else of one further out."""
    if len(candidates) > 1:
        for part in reversed(source.absolute().parts):
            named = [row for row in candidates if _words(row) <= _words(part)]
            if named:
                return named
    return candidates


def _words(name: str) -> set[str]:
    return set(re.split(r"[-_ ]+", name.lower()))


def _folder(network: Network) -> str:
    return network.checkpoint.files[0].absolute().parent.name


def _names(file: Path) -> str:
    """Those that may tell an expert: of the file and of the two folders around it."""
    return "/".join(file.absolute().parts[-3:]).lower().replace("-", "_")
