"""`python -m convert SOURCE OUT`: a released torch checkpoint into one of ours."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from ic_jax import checkpoint
from ic_jax.errors import InputError

from . import umt5, wan_dit, wan_vae
from .keymap import State, canonical, convert_state
from .source import read_state

MODELS = {"wan_dit": wan_dit, "wan_vae": wan_vae, "umt5": umt5}


def convert(source: Path, out: Path) -> dict:
    """Convert the file or folder `source` into the checkpoint `out`; returns its manifest."""
    state = read_state(source)
    name, layout = detect(state)
    model = MODELS[name]
    table = model.table(layout)
    config = model.config(canonical(state, table), layout)
    params = convert_state(state, table, model.target(config))
    manifest = {
        "model": name,
        "config": asdict(config),
        "layout": layout,
        "dtypes": sorted({str(tensor.dtype) for tensor in state.values()}),
        "source": source.name,
    }
    checkpoint.save(out, params, manifest)
    return manifest


def detect(state: State) -> tuple[str, str]:
    """Which model, in which layout of keys; raises InputError when none or several fit."""
    found = [
        (name, layout)
        for name, model in MODELS.items()
        for layout, probe in model.PROBES.items()
        if _has(state, probe, model, layout)
    ]
    if len(found) != 1:
        some = ", ".join(sorted(state)[:3])
        raise InputError(f"expected one Wan transformer, autoencoder or umT5; keys: {some}, ...")
    return found[0]


def _has(state: State, probe: str, model: ModuleType, layout: str) -> bool:
    return any(prefix + probe in state for prefix in ("", *model.table(layout).prefixes))


def main() -> int:
    """Entry point: exit code 2 and the reason on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m convert", description=__doc__)
    parser.add_argument("source", type=Path, help=".safetensors, .pth or a folder of shards")
    parser.add_argument("out", type=Path, help="a new folder (orbax), or a .safetensors file")
    args = parser.parse_args()
    try:
        manifest = convert(args.source, args.out)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: {manifest['model']} from {manifest['layout']} keys")
    return 0


if __name__ == "__main__":
    sys.exit(main())
