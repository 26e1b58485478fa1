"""A released checkpoint, as it was downloaded, into one model folder of ours."""

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ic_jax.errors import InputError
from ic_jax.model_folder import new_model_folder, write_component, write_manifest
from ic_jax.models.variants import variant
from ic_jax.tokenizer import load_tokenizer

from .choose import choose_variant, components_of, expert_of_lora, with_experts_told_apart
from .network import Network, recognise
from .shards import find_checkpoints, released_files

TOKENIZER = "spiece.model"

_READ_BYTES = 8 << 20

Advance = Callable[[str, int], None]
"""Told what is at work and how many bytes of it are done since the last call."""


@dataclass(frozen=True)
class Conversion:
    """What was found in a source, checked against the variants table; no tensor is read yet."""

    source: Path
    variant: str
    networks: tuple[Network, ...]
    tokenizer: Path | None
    loras: tuple[Path, ...]
    lora_scale: float

    @property
    def missing(self) -> list[str]:
        """What the variant needs and the source has not."""
        found = {network.component for network in self.networks}
        files = [TOKENIZER] if "umt5" in found and self.tokenizer is None else []
        return [name for name in components_of(variant(self.variant)) if name not in found] + files

    @property
    def bytes_to_write(self) -> int:
        return sum(network.bytes() for network in self.networks)

    @property
    def bytes_to_read(self) -> int:
        """Once more, for the checksums of the source files."""
        files = [file for network in self.networks for file in network.checkpoint.files]
        return sum(file.stat().st_size for file in (*files, *self.loras))


def plan_conversion(
    source: Path,
    variant_name: str | None = None,
    loras: Sequence[Path] = (),
    dtype: np.dtype | None = None,
    lora_scale: float = 1.0,
) -> Conversion:
    """Find every network in the file or folder `source`, and the variant that they make.

    `loras` are merged into the transformer, `lora_scale` times. `dtype` is that of every
    parameter that will be written, the source's for None; the autoencoder, which is always run
    in float32, keeps the source's. Reads the LoRAs, and of all else names, shapes and dtypes only.
    Raises InputError for anything that is not whole (see `find_checkpoints`, `recognise`,
    `choose_variant`, `merged`, `load_tokenizer`), and for a scale of no LoRA.
    """
    if lora_scale != 1 and not loras:
        raise InputError(f"a LoRA scale of {lora_scale:g}, and no LoRA: give its file with --lora")
    found = [recognise(checkpoint) for checkpoint in find_checkpoints(source)]
    networks = with_experts_told_apart(found)
    name = choose_variant(source, networks, variant_name)
    for lora in loras:
        expert = expert_of_lora(lora, networks)
        networks = [n.with_lora(lora, lora_scale) if n.component == expert else n for n in networks]
    if dtype is not None:  # after the LoRA, so that their sum is rounded once
        networks = [n if n.component == "vae" else n.cast(dtype) for n in networks]
    tokenizer = find_tokenizer(source)
    if tokenizer is not None:
        _check_tokenizer(tokenizer, networks)
    return Conversion(source, name, tuple(networks), tokenizer, tuple(loras), lora_scale)


def find_tokenizer(source: Path) -> Path | None:
    """The sentencepiece model of umT5; XLM-R's, in some folders, has another name.

    Raises InputError for two that differ.
    """
    files = released_files(source) if source.is_dir() else []
    found = [file for file in files if file.name == TOKENIZER]
    if len({file.read_bytes() for file in found}) > 1:
        raise InputError(f"{found[0]} and {found[1]} differ: keep the text encoder's own")
    return found[0] if found else None


def write_conversion(conversion: Conversion, out: Path, advance: Advance) -> dict[str, Any]:
    """Write the model folder `out`, whole or not at all; returns its manifest.

    Memory holds one parameter at a time, stacked over the blocks, and what is in flight to the
    disk. Raises InputError for keys or shapes that do not fit, before anything is written, for an
    `out` that exists, cannot be written or has too little room, and for a tensor that is not
    finite, when it is reached.
    """
    streams = [network.leaves() for network in conversion.networks]
    with new_model_folder(out) as folder:
        _check_room(out, folder, conversion.bytes_to_write)
        components = {
            network.component: _write(folder, network, stream, conversion.source, advance)
            for network, stream in zip(conversion.networks, streams)
        }
        if conversion.tokenizer is not None:
            shutil.copyfile(conversion.tokenizer, folder / TOKENIZER)
        manifest = {
            "variant": conversion.variant,
            "components": components,
            "loras": [
                _source_record(lora, lora.parent, advance) | {"scale": conversion.lora_scale}
                for lora in conversion.loras
            ],
            "calibration": {},
            "versions": {name: version(name) for name in ("ic-jax", "jax", "orbax-checkpoint")},
        }
        write_manifest(folder, manifest)
    return manifest


def _write(
    folder: Path,
    network: Network,
    stream: Iterator[tuple[str, np.ndarray]],
    source: Path,
    advance: Advance,
) -> dict[str, Any]:
    expected = network.shapes()

    def counted() -> Iterator[tuple[str, np.ndarray]]:
        for key, leaf in stream:
            done = leaf.nbytes
            yield key, leaf
            del leaf  # before the next one is made
            advance(network.component, done)

    tensors = write_component(folder / network.component, expected, counted())
    return {
        "layout": network.layout,
        "dtype": "+".join(sorted({tensor["dtype"] for tensor in tensors.values()})),
        "parameters": sum(map(prod, expected.values())),
        "sources": [_source_record(file, source, advance) for file in network.checkpoint.files],
        "tensors": tensors,
    }


def _source_record(file: Path, source: Path, advance: Advance) -> dict[str, Any]:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(_READ_BYTES):
            digest.update(block)
            advance(file.name, len(block))
    name = file.name if file == source else file.relative_to(source).as_posix()
    return {"file": name, "bytes": file.stat().st_size, "sha256": digest.hexdigest()}


def _check_tokenizer(tokenizer: Path, networks: Sequence[Network]) -> None:
    """Raises InputError for one that is not of the text encoder beside it."""
    for network in networks:
        if network.component == "umt5":
            load_tokenizer(tokenizer.parent, network.config)


def _check_room(out: Path, folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(f"{out}: needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free")
