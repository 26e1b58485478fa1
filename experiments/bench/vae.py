"""The autoencoder beside diffusers': the same weights, the same clip, in turns on one machine.

    python -m experiments.bench.vae

writes experiments/results/bench_vae.md and .json. Where JAX has a GPU, both sides run on it:
give --frames 81 --height 480 --width 832. torch is imported only where it is used: memory is
weighed in processes of one side each.
"""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

# Two libraries share a GPU here: JAX must not take most of it at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench import side_by_side
from experiments.bench.side_by_side import Call, Peak, mebibytes
from experiments.overhead import random_like
from experiments.studies_report import table
from ic_jax.models.wan_vae import VAEConfig, WanVAE, decode, encode

TARGET = 1.2
CHUNK = 4  # frames at a time, as the reference takes them
PROCESSES = 3  # in which each peak is weighed

Size = tuple[int, int, int]


def config(base: int) -> VAEConfig:
    """The released autoencoder, or one of other widths."""
    return VAEConfig(base=base)


def inputs(base: int, size: Size) -> dict[str, np.ndarray]:
    """A clip to encode and a latent to decode, channels last."""
    rng = np.random.default_rng(0)
    shape = config(base).latent_shape(*size)
    return {
        "encode": rng.uniform(-1, 1, (1, *size, 3)).astype(np.float32),
        "decode": rng.standard_normal((1, *shape)).astype(np.float32),
    }


# Ours -----------------------------------------------------------------------------


def ours(base: int, size: Size, params: Any) -> dict[str, Call]:
    """Encode and decode by this package, compiled when first called."""
    given = {half: jnp.asarray(x) for half, x in inputs(base, size).items()}
    chunks = {"encode": CHUNK, "decode": CHUNK // config(base).temporal_factor}

    def call(half: str, function: Callable) -> Call:
        run = jax.jit(lambda params, x: function(config(base), params, x, chunk=chunks[half]))
        return lambda: run(params, given[half])

    return {"encode": call("encode", encode), "decode": call("decode", decode)}


def ours_alone(half: str, base: int, size: Size) -> Call:
    """One half with weights of its own, in a process that has no torch."""
    frame = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(WanVAE(config(base)).init, jax.random.key(0), frame)["params"]
    return ours(base, size, random_like(shapes, 0))[half]


# Theirs ---------------------------------------------------------------------------


def reference(base: int) -> Any:
    """diffusers' network, with random weights."""
    import torch
    from diffusers import AutoencoderKLWan

    torch.manual_seed(0)
    return AutoencoderKLWan(base_dim=base).eval().requires_grad_(False)


def theirs(base: int, size: Size, module: Any) -> dict[str, Call]:
    """Encode and decode by diffusers, in float32 and in its own chunks."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    module = module.to(device)
    sizes = config(base)
    given = inputs(base, size)
    given["decode"] = given["decode"] * np.float32(sizes.latent_std) + np.float32(sizes.latent_mean)
    given = {half: torch.tensor(x).movedim(-1, 1).contiguous().to(device)
             for half, x in given.items()}  # fmt: skip
    run = {
        "encode": lambda: module.encode(given["encode"]).latent_dist.mode(),
        "decode": lambda: module.decode(given["decode"]).sample,
    }

    def call(half: str) -> Call:
        def waited() -> torch.Tensor:
            with torch.inference_mode():
                result = run[half]()
            if result.is_cuda:
                torch.cuda.synchronize()
            return result

        return waited

    return {half: call(half) for half in run}


def theirs_alone(half: str, base: int, size: Size) -> Call:
    """One half, in a process of its own."""
    return theirs(base, size, reference(base))[half]


# Both -----------------------------------------------------------------------------


def converted(module: Any, base: int) -> Any:
    """The network's weights for ours, by `ic-jax convert`'s tables."""
    from convert import wan_vae
    from convert.keymap import convert_state

    state = {key: tensor.numpy() for key, tensor in module.state_dict().items()}
    tree = convert_state(state, wan_vae.table("diffusers"), wan_vae.target(config(base)))
    return jax.tree.map(jnp.asarray, tree)


def difference(half: str, base: int, ours: Any, theirs: Any) -> float:
    """Largest difference of the results, in latent units or of [-1, 1]."""
    theirs = theirs.movedim(1, -1).cpu().numpy()
    if half == "encode":
        sizes = config(base)
        theirs = (theirs - np.float32(sizes.latent_mean)) / np.float32(sizes.latent_std)
    return float(np.abs(np.asarray(ours) - theirs).max())


def compare(base: int, size: Size, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds in turns, memory apart, and how far apart the results are, for either half."""
    module = reference(base)
    mine, other = ours(base, size, converted(module, base)), theirs(base, size, module)
    found = {}
    for half in ("encode", "decode"):
        times = side_by_side.in_turns({"ic_jax": mine[half], "diffusers": other[half]}, rounds)
        apart = difference(half, base, mine[half](), other[half]())
        ratio = side_by_side.ratio(times, "ic_jax", "diffusers")
        found[half] = {"seconds": times, "ratio": ratio, "difference": apart}
    del module, mine, other
    for half, record in found.items():
        weighed = {"ic_jax": weigh(ours_alone, half, base, size),
                   "diffusers": weigh(theirs_alone, half, base, size)}  # fmt: skip
        for n, key in enumerate(("peak", "again")):
            record[key] = {name: peaks[n] for name, peaks in weighed.items()}
    return found


def weigh(prepare: Callable[..., Call], half: str, base: int, size: Size) -> list[Peak]:
    """Memory of a call in two processes: what the first compiles, the second finds on disk.

    Peaks differ from process to process, torch's by a fifth: each is the median of `PROCESSES`.
    """
    peaks = []
    for _ in range(PROCESSES):
        with TemporaryDirectory() as programs:
            with patch.dict(os.environ, JAX_COMPILATION_CACHE_DIR=programs):
                pair = [side_by_side.peak_of(prepare, half, base, size) for _ in range(2)]
        peaks.append(pair)
    return [sorted(same, key=lambda peak: peak.most)[PROCESSES // 2] for same in zip(*peaks)]


def page(found: dict[str, dict[str, Any]], base: int, size: Size, rounds: int) -> str:
    rows = []
    for half, record in found.items():
        for name, seconds in record["seconds"].items():
            peak, again = record["peak"][name], record["again"][name]
            rows.append([
                half, name, side_by_side.spread(seconds),
                f"{record['ratio']:.2f}" if name == "ic_jax" else "1",
                *(mebibytes(n) for n in (peak.most, peak.rise, again.most, again.rise)),
            ])  # fmt: skip
    slowest = max(record["ratio"] for record in found.values())
    lower = all(r["peak"]["ic_jax"].most < r["peak"]["diffusers"].most for r in found.values())
    verdict = "Met" if slowest <= TARGET and lower else "Not met"
    frames, height, width = size
    gpu = [] if jax.default_backend() == "gpu" else ["On a GPU: open, no GPU here.", ""]
    apart = max(record["difference"] for record in found.values())
    return "\n".join([
        "# The autoencoder beside diffusers'", "",
        f"`{' '.join(['python -m experiments.bench.vae', *sys.argv[1:]])}`", "",
        f"**{verdict}**: at most {TARGET} times diffusers' seconds"
        f" (found: {slowest:.2f}), at a lower peak of memory (found: {'yes' if lower else 'no'}).",
        "", *table(["", "", "seconds", "ratio", "peak of the process", "of which the call",
                    "peak, once compiled", "of which the call"], rows),
        f"{side_by_side.machine('torch', 'diffusers')}. {frames} frames of {height}×{width},"
        f" base width {base}, float32, the same random weights; ours in chunks of {CHUNK} frames,"
        f" as diffusers does by itself. Median (least to most) of {rounds} rounds in turns; the"
        f" ratio is the median over rounds. Results differ by at most {apart:.1g}.",
        "", *gpu, f"Memory is of processes of one call each, the median of {PROCESSES}. What the"
        " call needs counts from when libraries, weights and inputs are loaded, and has compilation"
        " in it: the C library keeps what that freed. *Once compiled* is of processes that find"
        " JAX's programs in the persistent cache, as every run but the first does; torch compiles"
        " nothing. The verdict is on the peak with compilation.", "",
    ])  # fmt: skip


@dataclass
class Arguments:
    """Time and weigh encode and decode beside diffusers."""

    base: int = 96
    frames: int = 9
    height: int = 112
    width: int = 192
    rounds: int = 3
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    size = arguments.frames, arguments.height, arguments.width
    found = compare(arguments.base, size, arguments.rounds)
    text = page(found, arguments.base, size, arguments.rounds)
    for record in found.values():
        record["median"] = {name: median(values) for name, values in record["seconds"].items()}
    side_by_side.publish(arguments.results, "bench_vae", text, found)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
