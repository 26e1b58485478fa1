"""`ic-jax info`: what a model is and what it costs at a given size, before anything runs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jax
import tyro

from .. import cost
from ..budget import Budget, fits, most_parts, networks, predict
from ..checkpoint import load
from ..errors import InputError
from ..model import BUNDLED
from ..model_folder import MANIFEST, read_manifest
from ..models.variants import VARIANTS, Variant, variant
from ..settings import Settings, most_prompts

WIDTH = 100
CARDS = 80, 24, 16


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
    devices: int = 1
    """Devices that share one clip: its tokens, its rows and, where they are cut, the weights."""
    json: bool = False
    """Print everything as JSON, with exact numbers."""

    def run(self) -> None:
        record = describe(self.checkpoint, self.frames, self.height, self.width, self.devices)
        print(json.dumps(record, indent=1) if self.json else as_table(record))


# Facts ----------------------------------------------------------------------------


def describe(
    checkpoint: str,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    devices: int = 1,
) -> dict[str, Any]:
    """Everything that `info` shows, as JSON-serialisable numbers: FLOPs and bytes.

    Memory is an estimate (`budget`) for one clip at a time, with fused attention, on each of
    so many devices. The text encoder stays in the host's memory and visits the device one block
    at a time.

    Raises:
        InputError: neither a model's folder nor its name, or a size that does not divide.
    """
    if not 1 <= devices <= 4096:
        raise InputError(f"--devices is {devices}; give a number from 1 to 4096")
    model = _find(checkpoint)
    sizes = variant(model["variant"]).resized(frames, height, width)
    grid = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)
    calls = most_prompts(sizes, Settings())
    return {
        **model,
        "size": {"frames": sizes.frames, "height": sizes.height, "width": sizes.width},
        "latent": list(grid),
        "tokens": cost.token_count(sizes.dit, grid[:3]),
        "steps": sizes.steps,
        "calls_per_step": calls,
        "flops": _flops(sizes, calls),
        "devices": devices,
        "memory": _memory(sizes, calls, model["components"], devices),
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
    try:
        components = {
            name: _recorded(folder / name, part) for name, part in manifest["components"].items()
        }
        loras = [str(lora["file"]) for lora in manifest.get("loras", [])]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{folder / MANIFEST}: damaged; convert the model again") from error
    return {
        "checkpoint": str(folder),
        "variant": manifest["variant"],
        "components": components,
        "loras": loras,
        "calibration": manifest.get("calibration", {}),
    }


def _recorded(folder: Path, part: Mapping[str, Any]) -> dict[str, Any]:
    """A component by its manifest, which somebody may have edited."""
    return {
        "parameters": int(part["parameters"]),
        "dtype": str(part["dtype"]),
        "bytes": sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()),
        "layout": str(part["layout"]),
        "files": [str(source["file"]) for source in part["sources"]],
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
        for part, layers in networks(variant(name)).items()
    }
    return {
        "checkpoint": None,
        "variant": name,
        "components": components,
        "loras": [],
        "calibration": {},
    }


def _flops(sizes: Variant, calls: int) -> dict[str, int]:
    encoder, decoder = cost.vae_layers(sizes.vae, (sizes.frames, sizes.height, sizes.width))
    whole = {name: cost.flops(layers) for name, layers in networks(sizes).items()}
    counts = {
        "denoiser": whole["dit"],
        "sampling": sizes.steps * calls * whole["dit"],
        "encode": cost.flops(encoder),
        "decode": cost.flops(decoder),
        "text_encoder": calls * whole["umt5"],
    }
    return counts | ({"image_encoder": whole["clip"]} if "clip" in whole else {})


def _memory(
    sizes: Variant, calls: int, components: Mapping[str, Mapping[str, Any]], devices: int
) -> dict[str, Any]:
    """By how the transformer's weights lie on the devices: a copy on each, or cut if they can be.

    Into the most parts of a run, which has fewer where there is room.
    """
    parameters = {name: part["parameters"] for name, part in components.items()}
    of = partial(predict, sizes, calls, parameters=parameters, devices=devices)
    most = most_parts(sizes, calls, devices)
    ways = {"copied": 1} | ({"cut": most} if most > 1 else {})
    return {
        way: _budget_record(of(parts=parts), of(parts=parts, reuse=True))
        for way, parts in ways.items()
    }


def _budget_record(plain: Budget, reusing: Budget) -> dict[str, Any]:
    cards = {f"{card} GB": fits(plain.peak, card) for card in CARDS}
    more = reusing.phases["sample"] - plain.phases["sample"]
    return {**plain._asdict(), "more_with_reuse": more, "peak": plain.peak, "fits": cards}


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
        *_fit_rows(record),
        "",
        "calibration: " + _calibration(record["calibration"]),
        "FLOPs count matrix products; memory is an estimate for one clip with fused attention.",
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
    return ", ".join(names) if len(names) < 2 else f"{len(names)} files, {names[0]} ..."


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
    if (devices := record["devices"]) > 1:
        share = record["flops"]["sampling"] // devices
        rows.append((f"sampling, on each of {devices} devices", _flop_count(share)))
    return [("work", "FLOPs"), *rows]


def _memory_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """A column for each way in which the weights may lie."""
    ways, devices = record["memory"].values(), record["devices"]
    titles = ("",) if devices == 1 else tuple(f"weights {way}" for way in record["memory"])
    first = next(iter(ways))
    rows = [("memory of the device" if devices == 1 else f"of each of {devices}", *titles)]

    def add(title: str, *path: str) -> None:
        rows.append((title, *(_bytes(reduce(getitem, path, way)) for way in ways)))

    for name in first["weights"]:
        add(f"weights, {name}", "weights", name)
    if first["umt5_block"]:
        add("weights, umt5: one block at a time", "umt5_block")
    for name in first["phases"]:
        add(f"work: {name}", "phases", name)
    add("at most at once", "peak")
    add("work: sample, more with --reuse", "more_with_reuse")
    for name in first["host"]:
        add(f"host's memory, {name}", "host", name)
    return rows


def _fit_rows(record: Mapping[str, Any]) -> list[str]:
    """One line for each way."""
    several = len(record["memory"]) > 1
    return [
        f"fits{f', weights {way}' if several else ''}: "
        + ", ".join(f"{card} {verdict}" for card, verdict in budget["fits"].items())
        for way, budget in record["memory"].items()
    ]


def _calibration(values: Mapping[str, Any]) -> str:
    """Numbers, the names of tables, and what all of it was measured on."""
    named = {name: value for name, value in values.items() if name != "measured"}
    parts = [f"{k} {v}" if isinstance(v, int | float) else k for k, v in named.items()]
    clips = values.get("measured", {}).get("clips")
    measured = "" if clips is None else f" (measured on {clips} clips)"
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
