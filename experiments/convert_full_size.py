"""A checkpoint of full size, made up, through conversion and loading: seconds and memory.

    python -m experiments.convert_full_size

writes experiments/results/convert_full_size.md and .json. The source has the released keys,
shapes, dtypes and shards of Wan2.1-T2V-1.3B with random numbers in them; it is converted and
loaded by processes of their own, whose memory is watched, and one block of the loaded model is
held against diffusers'. The files, about 6 GB (28 GB with --text), are removed afterwards.
"""

import json
import multiprocessing
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import gettempdir

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import tyro
from safetensors.numpy import load_file, save_file

from convert import umt5, wan_dit, wan_vae
from convert.folder import plan_conversion, write_conversion
from convert.keymap import export_state
from experiments.tables import table
from ic_jax.model_folder import load_component, read_manifest
from ic_jax.models.variants import VARIANTS
from ic_jax.models.wan_dit import WanDiT

NAME = "Wan2.1-T2V-1.3B"
SIZES = VARIANTS[NAME]
SHARD_BYTES = 1 << 30
GIB = 1 << 30
POOL = 1 << 25  # random numbers drawn; every tensor is a stretch of them, from its own start
BLOCK = 17  # the one that is compared
LATENT = (2, 16, 24)  # frames, rows and columns of the comparison
TOLERANCE = 1e-4


@dataclass
class Arguments:
    """Convert and load a synthetic checkpoint of full size."""

    folder: Path = Path(gettempdir()) / "convert_full_size"
    """Where the synthetic files go for the time of the run."""
    text: bool = False
    """The text encoder as well: 11 GB more on each side."""
    results: Path = Path("experiments/results")


# The source -----------------------------------------------------------------------


def source_shapes(model, config) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the release, from the table run backwards over nothing."""
    nothing = lambda leaf: np.broadcast_to(np.zeros((), np.int8), leaf.shape)
    empty = jax.tree.map(nothing, model.target(config))
    return {key: tensor.shape for key, tensor in export_state(empty, model.table("original"))}


def tensors(model, config, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    """Random numbers of about the size of trained ones."""
    pool = np.random.default_rng(0).standard_normal(POOL, np.float32)
    for n, (key, shape) in enumerate(source_shapes(model, config).items()):
        count, start = int(np.prod(shape)), 7919 * n % (POOL // 2)
        stretch = pool[start : start + count] if count <= POOL // 2 else np.resize(pool, count)
        if len(shape) > 1 and "modulation" not in key and "gamma" not in key:
            numbers = stretch * (count // shape[0]) ** -0.5
        else:
            numbers = 0.1 * stretch + ("gamma" in key or ("norm" in key and "weight" in key))
        yield key, numbers.reshape(shape).astype(dtype)


def make_source(folder: Path, text: bool) -> None:
    """The release's files: sharded safetensors, and pickles of the other networks."""
    import torch

    folder.mkdir(parents=True)
    shards, size = [{}], 0
    for key, tensor in tensors(wan_dit, SIZES.dit, np.dtype(ml_dtypes.bfloat16)):
        if size + tensor.nbytes > SHARD_BYTES:
            shards, size = [*shards, {}], 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    stem, weight_map = "diffusion_pytorch_model", {}
    for n, shard in enumerate(shards):
        name = f"{stem}-{n + 1:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name)
        weight_map |= dict.fromkeys(shard, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))

    def as_torch(model, config, dtype):
        pairs = tensors(model, config, np.dtype(np.float32))
        return {key: torch.from_numpy(tensor).to(dtype) for key, tensor in pairs}

    torch.save(as_torch(wan_vae, SIZES.vae, torch.float32), folder / "Wan2.1_VAE.pth")
    if text:
        encoder = as_torch(umt5, SIZES.umt5, torch.bfloat16)
        torch.save(encoder, folder / "models_t5_umt5-xxl-enc-bf16.pth")


# Measured -------------------------------------------------------------------------


def measured(work: Callable[..., dict], *arguments) -> dict:
    """What `work` returns, with its seconds and memory, from a fresh process."""
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_watched, args=(send, work, arguments))
    process.start()
    send.close()
    result = receive.recv()
    process.join()
    return result


def _watched(send, work: Callable[..., dict], arguments: tuple) -> None:
    done, peak, before = threading.Event(), [0], _status("RssAnon")

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _status("RssAnon"))

    watcher = threading.Thread(target=watch)
    watcher.start()
    began = time.perf_counter()
    result = work(*arguments)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    send.send(
        result
        | {
            "seconds": round(seconds, 1),
            "anonymous_before": before,
            "anonymous_peak": peak[0],
            "resident_peak": _status("VmHWM"),
        }
    )


def _status(field: str) -> int:
    """Bytes, by a field of proc(5): RssAnon is what the process itself holds, VmHWM the most that
    was ever resident, mapped files included; ru_maxrss would be inherited from the parent.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def convert(source: Path, out: Path) -> dict:
    write_conversion(plan_conversion(source), out, lambda what, done: None)
    components = read_manifest(out)["components"]
    leaves = [tensor for part in components.values() for tensor in part["tensors"].values()]
    return {
        "parameters": {name: part["parameters"] for name, part in components.items()},
        "largest": max(
            int(np.prod(leaf["shape"])) * jnp.dtype(leaf["dtype"]).itemsize for leaf in leaves
        ),
    }


def load(out: Path) -> dict:
    """The transformer as stored, every tensor checked."""
    params = load_component(out, "dit", wan_dit.target(SIZES.dit))
    return {"bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(params))}


def compare(source: Path, out: Path) -> dict:
    """Largest difference to diffusers of the model with one block, at full width, in float32.

    diffusers gets the source's tensors by its own renaming.
    """
    import torch
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    jax.config.update("jax_default_matmul_precision", "highest")
    cfg = replace(SIZES.dit, num_layers=1)
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, *LATENT, cfg.in_channels), np.float32)
    context = rng.standard_normal((1, cfg.text_len, cfg.text_dim), np.float32)

    def of_one_block(key: str, leaf: np.ndarray) -> np.ndarray:
        kept = leaf[BLOCK : BLOCK + 1] if key.startswith("blocks/") else leaf
        return kept.astype(np.float32)

    params = load_component(out, "dit", wan_dit.target(SIZES.dit), of_one_block)
    ours = WanDiT(cfg).apply({"params": params}, x, jnp.full(1, 500.0), context)
    del params

    state = {}
    for file in sorted(source.glob("*.safetensors")):
        for key, tensor in load_file(file).items():
            if not key.startswith("blocks.") or key.startswith(f"blocks.{BLOCK}."):
                name = key.replace(f"blocks.{BLOCK}.", "blocks.0.")
                state[name] = torch.from_numpy(tensor.astype(np.float32))
    model = WanTransformer3DModel(
        num_attention_heads=cfg.num_heads, ffn_dim=cfg.ffn_dim, num_layers=1, text_dim=cfg.text_dim
    )
    model.load_state_dict(convert_wan_transformer_to_diffusers(state), strict=True)
    with torch.no_grad():
        latent = torch.from_numpy(x).permute(0, 4, 1, 2, 3)
        theirs = model.eval()(latent, torch.tensor([500.0]), torch.from_numpy(context)).sample
    theirs = theirs.permute(0, 2, 3, 4, 1).numpy()
    return {
        "largest_difference": float(np.abs(np.asarray(ours) - theirs).max()),
        "output_std": float(theirs.std()),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


# Reported -------------------------------------------------------------------------


def report(raw: dict) -> str:
    converted, loaded, compared = raw["convert"], raw["load"], raw["compare"]
    bound = converted["largest"] + 2 * GIB
    within = "Within" if converted["anonymous_peak"] <= bound else "Beyond"
    agrees = "Agrees" if compared["largest_difference"] <= TOLERANCE else "Disagrees"
    measures = "anonymous_before", "anonymous_peak", "resident_peak"
    row = lambda name, r: [
        name, f"{r['seconds']} s", *(f"{r[measure] / GIB:.2f}" for measure in measures)
    ]
    count = sum(converted["parameters"].values())
    parts = ", ".join(f"{name} {n:,}" for name, n in converted["parameters"].items())
    return "\n".join([
        "# Converting a checkpoint of full size", "",
        f"`{raw['command']}`", "",
        f"Synthetic files with the keys, shapes, dtypes and shards of {NAME}:"
        f" {count:,} parameters ({parts}).", "",
        f"**{within}** the bound on host memory, the largest stacked tensor"
        f" ({converted['largest'] / GIB:.2f} GiB) and 2 GiB more: {bound / GIB:.2f} GiB.", "",
        *table(
            ["", "time", "anonymous memory before, GiB", "at its peak, GiB",
             "peak with file pages, GiB"],
            [row("convert to a model folder", converted),
             row("load the transformer, as stored", loaded)],
        ),
        "Each ran in a process of its own. Anonymous memory (RssAnon, sampled every 20 ms) is what"
        " the process itself holds; the last column (VmHWM) also counts pages of mapped files,"
        " which the kernel takes back when they are needed elsewhere. Converting reads every source"
        " twice, once for its sha256; loading checks every tensor and ends with"
        f" {loaded['bytes'] / GIB:.2f} GiB of weights in memory.", "",
        f"**{agrees}** with diffusers' own reading of the source: the network with its block"
        f" {BLOCK} alone, at full width and in float32, differs by at most"
        f" {compared['largest_difference']:.1e} where the output's standard deviation is"
        f" {compared['output_std']:.2f} (tolerance {TOLERANCE:.0e}).", "",
        f"{raw['device']}; {', '.join(f'{k} {v}' for k, v in raw['versions'].items())}."
        " Other work shared the machine, so the times are upper bounds.", "",
    ])  # fmt: skip


def main(arguments: Arguments) -> None:
    source, out = arguments.folder / NAME, arguments.folder / "converted"
    if arguments.folder.exists():
        raise SystemExit(f"{arguments.folder} exists; give an unused --folder")
    packages = ("jax", "numpy", "orbax-checkpoint", "safetensors", "torch", "diffusers")
    try:
        make_source(source, arguments.text)
        raw = {
            "command": "python -m experiments.convert_full_size" + arguments.text * " --text",
            "convert": measured(convert, source, out),
            "load": measured(load, out),
            "compare": measured(compare, source, out),
            "device": f"{_processor()}, {os.cpu_count()} cores",
            "versions": {"python": platform.python_version()}
            | {package: version(package) for package in packages},
        }
    finally:
        shutil.rmtree(arguments.folder, ignore_errors=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "convert_full_size.md").write_text(report(raw))
    (arguments.results / "convert_full_size.json").write_text(json.dumps(raw, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
