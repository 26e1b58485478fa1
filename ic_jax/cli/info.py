"""`ic-jax info`: what a model is and what it costs at a given size, before anything runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from .. import cost
from ..checkpoint import load
from ..errors import InputError
from ..model import BUNDLED
from ..model_folder import read_manifest
from ..models.variants import VARIANTS, Variant, variant

WIDTH = 100


@dataclass(frozen=True)
class Info:
    """What a model is, and what it costs at a given size; no network is run."""

    checkpoint: tyro.conf.Positional[str] = "nano"
    """Folder of a converted model, nano, or a model's name alone, such as Wan2.1-T2V-1.3B."""
    frames: int | None = None
    """Length of the clip, 4k+1; without it, the model's own."""
    height: int | None = None
    """Of a frame, in pixels: a multiple of 16; without it, the model's own."""
    width: int | None = None
    """Likewise."""
    json: bool = False
    """Print everything as JSON, with exact numbers."""

    def run(self) -> None:
        record = describe(self.checkpoint, self.frames, self.height, self.width)
        print(json.dumps(record, indent=1) if self.json else as_table(record))


# Facts ----------------------------------------------------------------------------


def describe(
    checkpoint: str, frames: int | None = None, height: int | None = None, width: int | None = None
) -> dict[str, Any]:
    """Everything that `info` shows, as JSON-serialisable numbers: FLOPs and bytes.

    Memory is an estimate for one clip at a time, on one device, with fused attention. The text
    encoder stays in the host's memory and visits the device one block at a time.

    Raises:
        InputError: neither a model's folder nor its name, or a size that does not divide.
    """
    model = _find(checkpoint)
    sizes = variant(model["variant"]).resized(frames, height, width)
    grid = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)
    return {
        **model,
        "size": {"frames": sizes.frames, "height": sizes.height, "width": sizes.width},
        "latent": list(grid),
        "tokens": cost.token_count(sizes.dit, grid[:3]),
        "steps": sizes.steps,
        "calls_per_step": _calls_per_step(sizes),
        "flops": _flops(sizes),
        "memory": _memory(sizes, model["components"]),
    }


def _find(checkpoint: str) -> dict[str, Any]:
    folder = BUNDLED if checkpoint == "nano" else Path(checkpoint)
    if (folder / "vae.safetensors").exists():
        return _two_files(folder)
    if folder.is_dir():
        return _converted(folder)
    if checkpoint in VARIANTS:
        return _by_name(checkpoint)
    names = ", ".join(VARIANTS)
    raise InputError(f"{checkpoint}: neither a model's folder nor a model's name ({names})")


def _converted(folder: Path) -> dict[str, Any]:
    manifest = read_manifest(folder)
    components = {
        name: {
            "parameters": part["parameters"],
            "dtype": part["dtype"],
            "bytes": sum(f.stat().st_size for f in (folder / name).rglob("*") if f.is_file()),
            "layout": part["layout"],
            "files": [source["file"] for source in part["sources"]],
        }
        for name, part in manifest["components"].items()
    }
    return {
        "checkpoint": str(folder),
        "variant": manifest["variant"],
        "components": components,
        "loras": [lora["file"] for lora in manifest.get("loras", [])],
        "calibration": manifest.get("calibration", {}),
    }


def _two_files(folder: Path) -> dict[str, Any]:
    """The bundled model's layout: the autoencoder, and the transformer with its text encoder."""
    components: dict[str, dict[str, Any]] = {}
    for file in (folder / "vae.safetensors", folder / "generator.safetensors"):
        tensors, manifest = load(file)
        parts = {"vae": tensors} if file.stem == "vae" else tensors
        components |= {name: _held(tree, file.name) for name, tree in parts.items()}
    return {
        "checkpoint": "nano" if folder == BUNDLED else str(folder),
        "variant": manifest.get("variant", "nano"),
        "components": components,
        "loras": [],
        "calibration": manifest.get("calibration", {}),
    }


def _held(tree: Any, file: str) -> dict[str, Any]:
    leaves = jax.tree.leaves(tree)
    return {
        "parameters": sum(leaf.size for leaf in leaves),
        "dtype": ", ".join(sorted({str(leaf.dtype) for leaf in leaves})),
        "bytes": sum(leaf.nbytes for leaf in leaves),
        "layout": "ic_jax",
        "files": [file],
    }


def _by_name(name: str) -> dict[str, Any]:
    """What can be said of a model without its files."""
    unknown = {"dtype": None, "bytes": None, "layout": None, "files": []}
    components = {
        part: {"parameters": cost.parameters(layers), **unknown}
        for part, layers in _networks(variant(name)).items()
    }
    return {
        "checkpoint": None,
        "variant": name,
        "components": components,
        "loras": [],
        "calibration": {},
    }


def _networks(sizes: Variant) -> dict[str, list[cost.Layer]]:
    """The layers of each component, over one clip, one prompt and one image."""
    clip = (sizes.frames, sizes.height, sizes.width)
    encoder, decoder = cost.vae_layers(sizes.vae, clip)
    dit = cost.dit_layers(sizes.dit, sizes.vae.latent_shape(*clip)[:3])
    networks = {"dit": dit}
    if sizes.boundary is not None:
        networks["dit_low"] = dit
    networks |= {"vae": encoder + decoder, "umt5": cost.umt5_layers(sizes.umt5, sizes.dit.text_len)}
    if sizes.clip is not None:
        networks["clip"] = cost.clip_layers(sizes.clip)
    return networks


def _calls_per_step(sizes: Variant) -> int:
    """Guidance asks for the prompt and for the negative prompt."""
    scales = {sizes.guidance_scale, sizes.guidance_scale_low}
    return 1 if scales <= {1.0, None} else 2


def _flops(sizes: Variant) -> dict[str, int]:
    encoder, decoder = cost.vae_layers(sizes.vae, (sizes.frames, sizes.height, sizes.width))
    networks = {name: cost.flops(layers) for name, layers in _networks(sizes).items()}
    counts = {
        "denoiser": networks["dit"],
        "sampling": sizes.steps * _calls_per_step(sizes) * networks["dit"],
        "encode": cost.flops(encoder),
        "decode": cost.flops(decoder),
        "text_encoder": _calls_per_step(sizes) * networks["umt5"],
    }
    return counts | ({"image_encoder": networks["clip"]} if "clip" in networks else {})


def _memory(sizes: Variant, components: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    stored = {
        name: part["parameters"] * jnp.dtype("float32" if name == "vae" else sizes.dtype).itemsize
        for name, part in components.items()
    }
    grid = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]
    chunk = (sizes.chunk or sizes.frames, sizes.height, sizes.width)
    encoder, decoder = cost.vae_layers(sizes.vae, chunk)
    chunked = sizes.chunk is not None
    itemsize = jnp.dtype(sizes.dtype).itemsize
    activations = {
        "denoiser": cost.dit_memory(sizes.dit, grid, _calls_per_step(sizes), itemsize),
        "encode": cost.vae_memory(encoder, chunked),
        "decode": cost.vae_memory(decoder, chunked),
    }
    weights = {name: size for name, size in stored.items() if name != "umt5"}
    host = {name: size for name, size in stored.items() if name == "umt5"}
    # The text encoder has come and gone before the other networks are loaded.
    block = _umt5_block(sizes) * itemsize if host else 0
    peak = max(block, sum(weights.values()) + max(activations.values()))
    return {
        "weights": weights,
        "umt5_block": block,
        "activations": activations,
        "peak": peak,
        "host": host,
    }


def _umt5_block(sizes: Variant) -> int:
    """Parameters of one block of the text encoder."""
    none, one = (
        cost.parameters(cost.umt5_layers(replace(sizes.umt5, layers=layers), sizes.dit.text_len))
        for layers in (0, 1)
    )
    return one - none


# Shown ----------------------------------------------------------------------------


def as_table(record: Mapping[str, Any]) -> str:
    """The record for people, in lines of at most 100 characters."""
    place = f"  ({record['checkpoint']})" if record["checkpoint"] else "  (by name: no files read)"
    t, h, w, c = record["latent"]
    size = record["size"]
    lines = [
        record["variant"] + place,
        "",
        *_columns(_component_rows(record)),
        *(f"LoRA  {lora}" for lora in record["loras"]),
        "",
        f"{size['frames']} frames of {size['width']}x{size['height']}: "
        f"latent {t}x{h}x{w}x{c}, {record['tokens']:,} tokens",
        "",
        *_columns(_flops_rows(record)),
        "",
        *_columns(_memory_rows(record)),
        "",
        "calibration: " + _calibration(record["calibration"]),
        "FLOPs count matrix products; memory is an estimate for one device with fused attention.",
    ]
    return "\n".join(line if len(line) <= WIDTH else line[: WIDTH - 1] + "…" for line in lines)


def _component_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows = [("component", "parameters", "stored as", "on disk", "source")]
    for name, part in record["components"].items():
        source = f"{part['layout']}: {_files(part['files'])}" if part["layout"] else "-"
        disk = "-" if part["bytes"] is None else _bytes(part["bytes"])
        rows.append((name, f"{part['parameters']:,}", part["dtype"] or "-", disk, source))
    return rows


def _files(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{len(names)} files, {names[0]} ..."


def _flops_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    calls = record["calls_per_step"]
    shown = {
        "denoiser": "denoiser, one call",
        "sampling": f"sampling, {record['steps']} steps of {calls}",
        "encode": "encode the clip",
        "decode": "decode the clip",
        "text_encoder": f"encode {calls} prompts" if calls > 1 else "encode a prompt",
        "image_encoder": "encode a frame (CLIP)",
    }
    rows = [(shown[name], _flop_count(count)) for name, count in record["flops"].items()]
    return [("work", "FLOPs"), *rows]


def _memory_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    memory = record["memory"]
    rows = [("memory of the device", "")]
    rows += [(f"weights, {name}", _bytes(size)) for name, size in memory["weights"].items()]
    if memory["umt5_block"]:
        rows.append(("weights, umt5: one block at a time", _bytes(memory["umt5_block"])))
    rows += [(f"working on {name}", _bytes(size)) for name, size in memory["activations"].items()]
    rows.append(("at most at once", _bytes(memory["peak"])))
    host = [(f"host's memory, {name}", _bytes(size)) for name, size in memory["host"].items()]
    return [*rows, *host]


def _calibration(values: Mapping[str, Any]) -> str:
    """Numbers, the names of tables, and what all of it was measured on."""
    named = {name: value for name, value in values.items() if name != "measured"}
    parts = [f"{k} {v}" if isinstance(v, int | float) else k for k, v in named.items()]
    clips = values.get("measured", {}).get("clips")
    measured = "" if clips is None else f" (measured on {clips} of the user's clips)"
    return ", ".join(parts) + measured if parts else "none; closed-form defaults are used"


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Numbers to the right, everything else to the left."""
    widths = [max(map(len, column)) for column in zip(*rows)]

    def cell(text: str, width: int, column: int) -> str:
        numbers = all(row[column][:1].isdigit() or row[column] in ("-", "") for row in rows[1:])
        return text.rjust(width) if numbers else text.ljust(width)

    return [
        "  ".join(cell(text, widths[i], i) for i, text in enumerate(row)).rstrip() for row in rows
    ]


def _flop_count(count: int) -> str:
    return _scaled(count, 1000, ("", "k", "M", "G", "T", "P", "E"))


def _bytes(size: int) -> str:
    return _scaled(size, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))


def _scaled(count: int, base: int, units: Sequence[str]) -> str:
    """Three significant digits and a unit."""
    power = sum(count >= base**n for n in range(1, len(units)))
    value = count / base**power
    digits = max(0, 2 - int(math.log10(max(value, 1))))
    return f"{value:.{digits}f} {units[power]}".rstrip()
