"""`python -m convert.export MODEL OUT`: a converted model back into safetensors, key by key.

What comes out are the tensors that went in, bit for bit if the conversion kept their dtype. Only
weights are written: configuration files are the release's own.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from ic_jax.checkpoint import write_tensors
from ic_jax.errors import InputError
from ic_jax.model_folder import load_component, new_model_folder, read_manifest

from .folder import TOKENIZER
from .keymap import export_state
from .network import MODELS

# Where each layout keeps the networks, if not below our name, and what it calls their files.
_FOLDERS = {
    "original": {"dit_low": "low_noise_model"},
    "diffusers": {
        "dit": "transformer",
        "dit_low": "transformer_2",
        "umt5": "text_encoder",
        "clip": "image_encoder",
    },
}
_STEMS = {"dit": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model"}

_SHARD_BYTES = 4 << 30

Tensors = Iterable[tuple[str, np.ndarray]]


def export_model(model: Path, out: Path, layout: str) -> list[str]:
    """Write every network of the model folder `model` below the new folder `out`.

    `layout` is "original" or "diffusers"; text and image encoders then have transformers' keys.
    Memory holds one network and one shard of it. Returns the names of the networks. Raises
    InputError for a model that is missing or damaged, and an `out` that exists.
    """
    names = list(read_manifest(model)["components"])
    with new_model_folder(out) as folder:
        for name in names:
            network = MODELS[name.removesuffix("_low")]
            table = network.table(layout if layout in network.PROBES else "transformers")
            place = folder / _FOLDERS[layout].get(name, name)
            place.mkdir()
            stem = _STEMS.get(name.removesuffix("_low"), "model")
            write_shards(place, stem, export_state(load_component(model, name), table))
        if (model / TOKENIZER).exists():
            shutil.copyfile(model / TOKENIZER, folder / TOKENIZER)
    return names


def write_shards(folder: Path, stem: str, tensors: Tensors) -> None:
    """Write `tensors` as one safetensors file, or as several with the index that names them."""
    parts = []
    for part in _shards(tensors):
        parts.append((list(part), sum(tensor.nbytes for tensor in part.values())))
        write_tensors(folder / str(len(parts)), part, {"format": "pt"})
    if len(parts) == 1:
        (folder / "1").rename(folder / f"{stem}.safetensors")
        return
    weight_map = {}
    for n, (keys, _) in enumerate(parts, start=1):
        file = f"{stem}-{n:05d}-of-{len(parts):05d}.safetensors"
        (folder / str(n)).rename(folder / file)
        weight_map |= dict.fromkeys(keys, file)
    index = {"metadata": {"total_size": sum(b for _, b in parts)}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def _shards(tensors: Tensors) -> Iterator[dict[str, np.ndarray]]:
    shard: dict[str, np.ndarray] = {}
    size = 0
    for key, tensor in tensors:
        if shard and size + tensor.nbytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[key] = tensor
        size += tensor.nbytes
    yield shard


def main() -> int:
    """Entry point: exit code 2 and the reason on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m convert.export", description=__doc__)
    parser.add_argument("model", type=Path, help="a folder that `ic-jax convert` made")
    parser.add_argument("out", type=Path, help="a new folder")
    parser.add_argument("--layout", choices=_FOLDERS, default="original", help="whose keys")
    args = parser.parse_args()
    try:
        names = export_model(args.model, args.out, args.layout)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {', '.join(names)} with {args.layout} keys")
    return 0


if __name__ == "__main__":
    sys.exit(main())
