"""How time, memory and compilation grow: with tokens, frames, steps, batch, and depth.

    python -m experiments.bench.growth

writes experiments/results/growth.md, .png and .json. Exponents are fitted by least squares to
logarithms. Memory is what the compiled program sets aside beside its arguments and results.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro

from experiments.bench.side_by_side import in_turns, machine, publish
from experiments.overhead import random_like
from experiments.tables import table
from ic_jax import cost, pipeline
from ic_jax.course import Part
from ic_jax.latent_mask import LatentMask, Measurement
from ic_jax.model import Weights, expected_shapes
from ic_jax.models.variants import VARIANTS, Variant
from ic_jax.models.wan_vae import VAEConfig, WanVAE, decode_bytes, encode
from ic_jax.pipeline import Observation
from ic_jax.settings import Settings

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

NANO = VARIANTS["nano"]
VAE = VAEConfig(base=24)  # Wan's, at a quarter of its widths
FRAME = 64, 96
CHUNK = 4

Program = tuple[Callable, tuple]
"""A function to be jitted, and its arguments."""


class Axis(NamedTuple):
    """Sizes of one kind, and the program at each."""

    program: Callable[[int], Program]
    flops: Callable[[int], int]
    timed: tuple[int, ...]
    weighed: tuple[int, ...]
    """Compiled and not run."""
    what: str
    expected: tuple[str, str]
    """The exponents of time and of memory that the design asks for."""


# Programs -------------------------------------------------------------------------


def of_tokens(count: int) -> Variant:
    """The small model over five frames of latents, at 120 n² tokens."""
    n = round((count / 120) ** 0.5)
    return replace(NANO, height=n * NANO.height, width=n * NANO.width)


def sampling(sizes: Variant, steps: int, batch: int) -> Program:
    """`steps` of the sampler over `batch` clips."""
    rng = np.random.default_rng(0)
    normal = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    latent = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)
    mask = LatentMask(jnp.full(latent, 0.7), jnp.full(latent, 0.1))
    unused = jnp.zeros((1, 1, 1, 3))  # pixels, which the method does not ask for
    measurement = Measurement(unused, normal(*latent))
    seen = Observation(unused, unused[..., 0], measurement, mask, None)
    settings = Settings(steps=steps)
    state, levels = pipeline.begin(sizes, settings, jax.random.key(0))
    weights = Weights(**random_like(expected_shapes(sizes), 0))
    context = normal(2, sizes.dit.text_len, sizes.dit.text_dim)

    def run(weights, context, seen, state, levels):
        one = lambda seen, state: pipeline.proceed(
            sizes, settings, Part(), weights, context, seen, state, levels
        )
        return jax.vmap(one)(seen, state)

    clips = jax.tree.map(lambda leaf: jnp.stack(batch * [leaf]), (seen, state))
    return run, (weights, context, *clips, levels)


def autoencoding(frames: int) -> Program:
    """Encode, and decode to bytes, in chunks of four frames."""
    example = jax.ShapeDtypeStruct((1, 5, 16, 16, 3), jnp.float32)
    shapes = jax.eval_shape(WanVAE(VAE).init, jax.random.key(0), example)["params"]
    clip = jnp.zeros((1, frames, *FRAME, 3))

    def run(params, clip):
        latent = encode(VAE, params, clip, chunk=CHUNK)
        return decode_bytes(VAE, params, latent, chunk=CHUNK // VAE.temporal_factor)

    return run, (random_like(shapes, 0), clip)


def _step_flops(sizes: Variant) -> int:
    grid = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]
    return 2 * cost.dit_flops(sizes.dit, grid)


def _vae_flops(frames: int) -> int:
    return sum(map(cost.flops, cost.vae_layers(VAE, (frames, *FRAME))))


def axes(least: bool) -> dict[str, Axis]:
    """The axes; at their smallest to try the program out."""
    few = lambda sizes: sizes[:2] if least else sizes
    return {
        "tokens": Axis(
            lambda n: sampling(of_tokens(n), 1, 1), lambda n: _step_flops(of_tokens(n)),
            few((480, 1080, 1920, 4320)), few((1920, 4320, 12_000, 30_720)),
            "one guided step of one clip", ("as FLOPs", "1"),
        ),
        "frames": Axis(
            autoencoding, _vae_flops, few((9, 17, 33, 65)), few((33, 65, 129)),
            "encode and decode of a clip", ("1", "0, but for a copy of the result"),
        ),
        "steps": Axis(
            lambda n: sampling(NANO, n, 1), lambda n: n * _step_flops(NANO),
            few((2, 4, 8, 16, 32)), few((2, 8, 32)),
            "the sampler over one clip", ("1", "0"),
        ),
        "batch": Axis(
            lambda n: sampling(NANO, 2, n), lambda n: 2 * n * _step_flops(NANO),
            few((1, 2, 4, 8)), few((1, 2, 4, 8)),
            "two steps of the sampler over clips at once", ("1", "1"),
        ),
    }  # fmt: skip


# Measured -------------------------------------------------------------------------


def compiled(program: Program) -> tuple[jax.stages.Compiled, float]:
    """The executable, and the seconds that lowering and compiling took."""
    run, given = program
    began = time.perf_counter()
    executable = jax.jit(run).lower(*given).compile()
    return executable, time.perf_counter() - began


def measured(axis: Axis, rounds: int) -> dict[str, dict[int, float]]:
    """Median seconds at the timed sizes, in turns; bytes of temporaries at the weighed ones."""
    calls, weighed = {}, {}
    for n in sorted({*axis.timed, *axis.weighed}):
        program = axis.program(n)
        executable, _ = compiled(program)
        if n in axis.timed:
            calls[str(n)] = lambda run=executable, given=program[1]: run(*given)
        if n in axis.weighed:
            weighed[n] = executable.memory_analysis().temp_size_in_bytes
    times = in_turns(calls, rounds)
    return {"seconds": {int(n): median(values) for n, values in times.items()}, "bytes": weighed}


def compile_seconds(sizes: Sequence[int], rounds: int) -> dict[str, dict[int, float]]:
    """Median seconds of lowering and compiling against blocks and against steps, in turns."""
    deep = lambda n: sampling(replace(NANO, dit=replace(NANO.dit, num_layers=n)), 2, 1)
    long = lambda n: sampling(NANO, n, 1)
    compiled(deep(1))  # the first of a process pays for what all share
    times = {"depth": {n: [] for n in sizes}, "steps": {n: [] for n in sizes}}
    for _ in range(rounds):
        for n in sizes:
            times["depth"][n].append(compiled(deep(n))[1])
            times["steps"][n].append(compiled(long(n))[1])
    return {name: {n: median(of) for n, of in found.items()} for name, found in times.items()}


def exponent(points: dict[int, float]) -> float:
    """The slope of log y over log x."""
    x, y = (np.log(np.array(list(part), float)) for part in (points, points.values()))
    return float(np.polyfit(x, y, 1)[0])


# Page -----------------------------------------------------------------------------


def plot(found: dict, path: Path) -> None:
    """Time, FLOPs and memory per axis over their least, and compilation."""
    figure, panels = plt.subplots(1, 5, figsize=(15, 3.6), layout="constrained")
    for panel, (name, axis) in zip(panels, axes(least=False).items()):
        record = found["axes"][name]
        seconds, held = record["seconds"], record["bytes"]
        flops = {n: axis.flops(n) for n in seconds}
        panel.loglog(*_over_least(flops), ":", color="0.5", label="FLOPs")
        panel.loglog(*_over_least(seconds), "o-", label=f"time ∝ n^{exponent(seconds):.2f}")
        panel.loglog(*_over_least(held), "s--", label=f"memory ∝ n^{exponent(held):.2f}")
        panel.set(xlabel=name, title=axis.what, ylim=(0.7, 100))
        _ticks(panel, sorted({*seconds, *held}))
    for name, points in found["compile"].items():
        panels[4].semilogx(*zip(*points.items()), "o-", label=f"against {name}")
    panels[4].set(xlabel="blocks, or steps", ylabel="seconds", title="compiling the sampler")
    panels[4].set_ylim(bottom=0)
    _ticks(panels[4], list(points))
    panels[0].set_ylabel("times the least")
    for panel in panels:
        panel.title.set_fontsize(9)
        panel.legend(fontsize=8, loc="upper left" if panel is not panels[4] else "lower left")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _over_least(points: dict[int, float]) -> tuple[list[int], list[float]]:
    least = min(points.values())
    return list(points), [value / least for value in points.values()]


def _ticks(panel, sizes: Sequence[int]) -> None:
    """The measured sizes, in plain numbers; those too near to the next are left unnamed."""
    named = [n for n, after in zip(sizes, [*sizes[1:], np.inf]) if after / n > 1.4]
    panel.set_xticks(named, [f"{n:,}" for n in named], fontsize=7)
    panel.minorticks_off()


def page(found: dict, rounds: int) -> str:
    rows, listed = [], []
    for name, axis in axes(least=False).items():
        record = found["axes"][name]
        flops = {n: axis.flops(n) for n in record["seconds"]}
        time_expected, memory_expected = axis.expected
        rows.append([
            name, axis.what, f"{exponent(record['seconds']):.2f}", f"{exponent(flops):.2f}",
            time_expected, f"{exponent(record['bytes']):.2f}", memory_expected,
        ])  # fmt: skip
        listed.append(
            f"* **{name}**: "
            + ", ".join(f"{n}: {1e3 * s:.3g} ms" for n, s in record["seconds"].items())
            + "; "
            + ", ".join(f"{n}: {b / 2**20:.3g} MiB" for n, b in record["bytes"].items())
        )
    flat = [
        [name, *(f"{n}: {s:.2f} s" for n, s in points.items())]
        for name, points in found["compile"].items()
    ]
    width = max(map(len, flat))
    head = ["against", *((width - 1) * [""])]
    return "\n".join([
        "# Growth", "", "`python -m experiments.bench.growth`", "", "![](growth.png)", "",
        *table(["n", "program", "time ∝ n^", "FLOPs ∝ n^", "wanted", "memory ∝ n^", "wanted"],
               rows),
        "Seconds and bytes:", "", *listed, "",
        "## Compiling", "", "Lowering and compiling the sampler, without a cache:", "",
        *table(head, [row + (width - len(row)) * [""] for row in flat]),
        "One scan over blocks and one over steps: neither number is in the program's size.", "",
        f"{machine()}. The small model at random weights; medians of {rounds} rounds in which the"
        " sizes of an axis take turns. FLOPs are counted on paper over the timed sizes. Memory is"
        " what the compiled program sets aside, also at sizes that are too large to run here.", "",
    ])  # fmt: skip


@dataclass
class Arguments:
    """Measure how time, memory and compilation grow."""

    rounds: int = 3
    least: bool = False
    """Two sizes per axis, to see that it runs."""
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    shown = axes(arguments.least).items()
    found = {"axes": {name: measured(axis, arguments.rounds) for name, axis in shown}}
    few = (2, 4) if arguments.least else (2, 8, 32)
    found["compile"] = compile_seconds(few, arguments.rounds)
    text = page(found, arguments.rounds)
    publish(arguments.results, "growth", text, found)
    plot(found, arguments.results / "growth.png")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
