"""The autoencoder beside diffusers': the same weights, the same clip, in turns on one machine.

    python -m experiments.bench.vae

writes experiments/results/bench_vae.md and .json. Where JAX has a GPU, both sides run on it:
give --frames 81 --height 480 --width 832.
"""

import os
import shlex
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

from experiments.bench import memory, side_by_side
from experiments.bench.memory import Peak, middle
from experiments.bench.side_by_side import Call, mebibytes
from experiments.overhead import random_like
from experiments.tables import table
from ic_jax.heap import hand_back_after_compiling
from ic_jax.models.wan_vae import VAEConfig, WanVAE, decode, encode

TARGET = 1.2
CHUNK = 4  # frames at a time, as the reference takes them
PROCESSES = 5  # in which each peak is weighed

OURS, COMPILED, THEIRS = "ic_jax", "ic_jax, compiled before", "diffusers"
HALVES = "encode", "decode"

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
    """One half with weights of its own, as `ic-jax` runs it, in a process that has no torch."""
    hand_back_after_compiling()
    frame = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(WanVAE(config(base)).init, jax.random.key(0), frame)["params"]
    return ours(base, size, random_like(shapes, 0))[half]


# Both -----------------------------------------------------------------------------


def in_their_units(base: int, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same clip and latent; diffusers' autoencoder takes latents as they are before scaling."""
    sizes = config(base)
    latent = given["decode"] * np.float32(sizes.latent_std) + np.float32(sizes.latent_mean)
    return given | {"decode": latent}


def converted(module: Any, base: int) -> Any:
    """The network's weights for ours, by `ic-jax convert`'s tables."""
    from convert import wan_vae
    from convert.keymap import convert_state

    state = {key: tensor.cpu().numpy() for key, tensor in module.state_dict().items()}
    tree = convert_state(state, wan_vae.table("diffusers"), wan_vae.target(config(base)))
    return jax.tree.map(jnp.asarray, tree)


def difference(half: str, base: int, ours: Any, theirs: np.ndarray) -> float:
    """Largest difference of the results, in latent units or of [-1, 1]."""
    if half == "encode":
        sizes = config(base)
        theirs = (theirs - np.float32(sizes.latent_mean)) / np.float32(sizes.latent_std)
    return float(np.abs(np.asarray(ours) - theirs).max())


def compare(base: int, size: Size, rounds: int) -> dict[str, dict[str, Any]]:
    """Seconds in turns, memory apart, and how far apart the results are, for either half."""
    from experiments.bench import by_diffusers

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    module = by_diffusers.autoencoder(base, device)
    mine = ours(base, size, converted(module, base))
    given = in_their_units(base, inputs(base, size))
    found = {}
    for half in HALVES:
        other = by_diffusers.autoencoder_call(module, half, given[half])
        times = side_by_side.in_turns({OURS: mine[half], THEIRS: other}, rounds)
        apart = difference(half, base, mine[half](), by_diffusers.channels_last(other()))
        ratio = side_by_side.ratio(times, OURS, THEIRS)
        found[half] = {"seconds": times, "ratio": ratio, "difference": apart}
    del module, mine, other
    for half, record in found.items():
        alone = by_diffusers.autoencoder_alone, half, base, device, given[half]
        first, again = weigh(ours_alone, half, base, size)
        theirs = [memory.peak_of(*alone) for _ in range(2 * PROCESSES)]
        record["peaks"] = {OURS: first, COMPILED: again, THEIRS: theirs}
    return found


def weigh(prepare: Callable[..., Call], *arguments) -> tuple[list[Peak], list[Peak]]:
    """Memory of a call in pairs of processes: what the first compiles, the second finds on disk."""
    pairs = []
    for _ in range(PROCESSES):
        with TemporaryDirectory() as programs:
            with patch.dict(os.environ, JAX_COMPILATION_CACHE_DIR=programs):
                pairs.append([memory.peak_of(prepare, *arguments) for _ in range(2)])
    first, again = zip(*pairs, strict=True)
    return list(first), list(again)


def page(found: dict[str, dict[str, Any]], base: int, size: Size, rounds: int) -> str:
    rows = []
    for half, record in found.items():
        for name, peaks in record["peaks"].items():
            seconds = record["seconds"].get(name)
            ratio = record["ratio"] if name == OURS else 1
            least, most = (mebibytes(end(peak.most for peak in peaks)) for end in (min, max))
            rows.append([
                half, name, *(("–", "–") if seconds is None else
                              (side_by_side.spread(seconds), f"{ratio:.3g}")),
                f"{mebibytes(middle(peaks).most)} ({least} to {most})",
                mebibytes(middle(peaks).rise),
            ])  # fmt: skip
    slowest = max(record["ratio"] for record in found.values())
    peaks = [{name: middle(each).most for name, each in record["peaks"].items()}
             for record in found.values()]  # fmt: skip
    lower = all(each[OURS] < each[THEIRS] for each in peaks)
    verdict = "Met" if slowest <= TARGET and lower else "Not met"
    frames, height, width = size
    gpu = [] if jax.default_backend() == "gpu" else ["On a GPU: open, no GPU here.", ""]
    apart = max(record["difference"] for record in found.values())
    return "\n".join([
        "# The autoencoder beside diffusers'", "",
        f"`{shlex.join(['python', '-m', 'experiments.bench.vae', *sys.argv[1:]])}`", "",
        f"**{verdict}**: at most {TARGET} times diffusers' seconds"
        f" (found: {slowest:.2f}), at a lower peak of memory (found: {'yes' if lower else 'no'}).",
        "", *table(["", "", "seconds", "ratio", "peak of the process (least to most)",
                    "of which the call"], rows),
        f"{side_by_side.machine('torch', 'diffusers')}. {frames} frames of {height}×{width},"
        f" base width {base}, float32, the same random weights; ours in chunks of {CHUNK} frames,"
        f" as diffusers does by itself. Median (least to most) of {rounds} rounds in turns; the"
        f" ratio is the median over rounds. Results differ by at most {apart:.1g}.",
        "", *gpu, "Memory is that of processes of one call each, which load one of the two"
        f" libraries and not the other: the process in the middle of {PROCESSES}, and of"
        f" {2 * PROCESSES} of diffusers', which differ most. What the call needs counts from when"
        " libraries, weights and inputs are loaded, and has compilation in it. What loading freed"
        " is handed back to the system on either side, and on ours what compiling freed, as"
        f" `ic-jax` does. *{COMPILED}*: processes that find JAX's programs in the persistent"
        " cache, as every run but the first does. The verdict is on the peak with compilation.",
        "",
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
    # By a name that other processes can import.
    from experiments.bench import vae

    vae.main(tyro.cli(vae.Arguments))
