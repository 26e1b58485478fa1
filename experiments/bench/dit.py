"""A step of the transformer against diffusers', with the same random weights and inputs.

    python -m experiments.bench.dit

writes experiments/results/bench_dit.md and .json. Without a GPU it compares a middle-sized
transformer and a single block of the 1.3B model, in float32 and in bfloat16, and the bundled model
as it runs there; it leaves the rows of the full ones open. With one it compares the 1.3B model at
480×832×81 and a single block of the 14B one, in bfloat16, with torch.compile as well.

Ours is one call of `velocity`, on text that was prepared before: what a sampler's step costs.
diffusers embeds the text in every call; "ours, text included" does so too.
"""

import os
import statistics
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

# Two libraries share a GPU here: JAX must not take most of it at the start.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax.traverse_util import flatten_dict, unflatten_dict

from experiments.bench.memory import Peak, middle, peak_of
from experiments.bench.side_by_side import (
    Call,
    Times,
    in_turns,
    machine,
    mebibytes,
    publish,
    ratio,
    spread,
)
from experiments.tables import table
from ic_jax.cost import dit_flops, token_count
from ic_jax.heap import hand_back_after_compiling
from ic_jax.model import matrices_as
from ic_jax.models.precision import dot_general
from ic_jax.models.variants import VARIANTS
from ic_jax.models.wan_dit import DiTConfig, WanDiT

OPEN = "open: no GPU here"
FULL = (21, 60, 104)  # the latent of 81 frames of 480×832

OURS, WITH_TEXT = "ours", "ours, text included"
EAGER, COMPILED = "diffusers", "diffusers, torch.compile"

# At most these shares of their time, and on a GPU at least this share of the matmul peak.
TARGETS = {"cpu": {EAGER: 1.0}, "gpu": {EAGER: 1 / 1.3, COMPILED: 1 / 1.1}}
OF_PEAK = 0.5
PROCESSES = 3  # in which each peak is weighed


class Case(NamedTuple):
    """A transformer, the latent that it is run on, and in which precision."""

    config: DiTConfig
    grid: tuple[int, int, int]
    dtype: str
    batch: int = 1
    """2 as with guidance, which asks for two prompts at once."""


_MIDDLE = DiTConfig(dim=384, ffn_dim=1536, num_heads=3, num_layers=8)
_SMALL, _LARGE = VARIANTS["Wan2.1-T2V-1.3B"].dit, VARIANTS["Wan2.1-T2V-14B"].dit
_BLOCK = replace(_SMALL, num_layers=1)
SHORT = (3, 60, 104)  # the latent of 9 such frames
CASES = {
    "mid-size": Case(_MIDDLE, SHORT, "float32"),
    "mid-size, 16 bits": Case(_MIDDLE, SHORT, "bfloat16"),
    "a block of 1.3B": Case(_BLOCK, SHORT, "float32"),
    "a block of 1.3B, 16 bits": Case(_BLOCK, SHORT, "bfloat16"),
    "bundled": Case(VARIANTS["nano"].dit, (5, 8, 12), "float32", batch=2),
}
GPU_CASES = {
    "1.3B": Case(_SMALL, FULL, "bfloat16", batch=2),
    "a block of 14B": Case(replace(_LARGE, num_layers=1), FULL, "bfloat16", batch=2),
}


class Result(NamedTuple):
    """What came of one case."""

    times: Times
    peaks: dict[str, Peak]
    first: dict[str, float]
    """Seconds of each program's first call, in which JAX and torch.compile compile."""
    difference: float
    """Root mean square of ours minus theirs, over that of theirs."""
    matmul: dict[str, float]
    """FLOP/s of large matrix products here, by either library."""

    @property
    def peak_rate(self) -> float:
        """What the machine can do, as far as either library shows it."""
        return max(self.matmul.values())


# The two sides --------------------------------------------------------------------


def inputs(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Latents, channels last, timesteps and text."""
    rng = np.random.default_rng(0)
    cfg = case.config
    latent = rng.standard_normal((case.batch, *case.grid, cfg.in_channels), np.float32)
    text = rng.standard_normal((case.batch, cfg.text_len, cfg.text_dim), np.float32)
    return latent, np.full(case.batch, 500, np.float32), text


def our_calls(case: Case, params) -> dict[str, Call]:
    """A step on prepared text, and one that prepares it itself."""
    network = WanDiT(case.config, dtype=jnp.dtype(case.dtype))
    latent, timestep, text = map(jnp.asarray, inputs(case))
    text = text.astype(case.dtype)
    prepare = jax.jit(partial(network.apply, method="prepare"), static_argnums=1)
    step = jax.jit(partial(network.apply, method="velocity"))
    whole = jax.jit(network.apply)
    prepared = jax.block_until_ready(prepare({"params": params}, case.grid, text))
    return {
        OURS: lambda: step({"params": params}, latent, timestep, prepared),
        WITH_TEXT: lambda: whole({"params": params}, latent, timestep, text),
    }


def their_sizes(cfg: DiTConfig) -> dict[str, Any]:
    """A configuration in diffusers' words."""
    return {
        "num_attention_heads": cfg.num_heads,
        "attention_head_dim": cfg.head_dim,
        "in_channels": cfg.in_channels,
        "out_channels": cfg.out_channels,
        "text_dim": cfg.text_dim,
        "freq_dim": cfg.freq_dim,
        "ffn_dim": cfg.ffn_dim,
        "num_layers": cfg.num_layers,
        "cross_attn_norm": True,
        "patch_size": cfg.patch,
    }


def converted(case: Case, module):
    """diffusers' weights as ours, by the converter that users have."""
    from convert import wan_dit
    from convert.keymap import convert_state

    state = {key: tensor.float().cpu().numpy() for key, tensor in module.state_dict().items()}
    tree = convert_state(state, wan_dit.table("diffusers"), wan_dit.target(case.config))
    return placed(case, tree)


def placed(case: Case, tree):
    """Weights as `load_model` has them: norms, modulation and time embedding stay in float32."""
    cast, leaves = matrices_as(case.dtype), flatten_dict(tree, sep="/").items()
    return unflatten_dict({key: jnp.asarray(cast(key, leaf)) for key, leaf in leaves}, sep="/")


def our_call_alone(case: Case) -> Call:
    """A step with weights of its own, as `ic-jax` runs it; they may hold anything."""
    hand_back_after_compiling()
    shapes = jax.eval_shape(WanDiT(case.config).init, jax.random.key(0), *inputs(case))["params"]
    params = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.01, np.float32), shapes)
    return our_calls(case, jax.block_until_ready(placed(case, params)))[OURS]


# Measuring ------------------------------------------------------------------------


def measure(case: Case, rounds: int, compiles: bool) -> Result:
    """Both sides on the same weights, in turns; `compiles` asks torch.compile too."""
    from experiments.bench import by_diffusers

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    sizes, given = their_sizes(case.config), inputs(case)
    module = by_diffusers.transformer(sizes, case.dtype, device)
    calls, alone = our_calls(case, converted(case, module)), {OURS: (our_call_alone, case)}
    for name, compiled in {EAGER: False, COMPILED: True}.items():
        if compiles or not compiled:
            calls[name] = by_diffusers.transformer_call(module, case.dtype, given, compiled)
            alone[name] = by_diffusers.transformer_alone, sizes, case.dtype, device, given, compiled
    first = {name: _seconds(call) for name, call in calls.items()}
    apart = difference(calls[OURS](), by_diffusers.channels_last(calls[EAGER]()))
    times = in_turns(calls, rounds)
    matmul = matmul_rates(case.dtype)
    peaks = {name: middle([peak_of(*prepare) for _ in range(PROCESSES)])
             for name, prepare in alone.items()}  # fmt: skip
    return Result(times, peaks, first, apart, matmul)


def _seconds(call: Call) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def difference(ours: jax.Array, theirs: np.ndarray) -> float:
    """Root mean square of the difference over that of theirs."""
    a = np.asarray(ours, np.float32)
    return float(np.sqrt(np.mean((a - theirs) ** 2) / np.mean(theirs**2)))


def matmul_rates(dtype: str, size: int | None = None, rounds: int = 5) -> dict[str, float]:
    """FLOP/s of a square matrix product by either library, the best of `rounds`."""
    import torch

    on_gpu = jax.default_backend() == "gpu"
    size = size or (8192 if on_gpu else 2048)
    a = jnp.ones((size, size), dtype)
    b = torch.ones(size, size, dtype=getattr(torch, dtype), device="cuda" if on_gpu else "cpu")

    def by_torch():
        product = b @ b
        if on_gpu:
            torch.cuda.synchronize()
        return product

    # As the network asks for them.
    product = jax.jit(partial(dot_general, contracted=(((1,), (0,)), ((), ()))))
    times = in_turns({"JAX": lambda: product(a, a), "torch": by_torch}, rounds)
    return {library: 2 * size**3 / min(seconds) for library, seconds in times.items()}


# The page -------------------------------------------------------------------------


def rows(name: str, case: Case, result: Result) -> list[list[str]]:
    """One line per program."""
    work = case.batch * dit_flops(case.config, case.grid)
    lines = []
    for program, seconds in result.times.items():
        rate = work / statistics.median(seconds)
        peak = result.peaks.get(program)
        lines.append([
            name, program, spread(seconds), f"{ratio(result.times, program, EAGER):.2f}",
            f"{rate / 1e12:.3g}", f"{100 * rate / result.peak_rate:.0f} %",
            "–" if peak is None else mebibytes(peak.rise),
            "–" if peak is None else mebibytes(peak.most),
            f"{result.first[program]:.1f} s",
        ])  # fmt: skip
    return lines


def open_rows(name: str) -> list[list[str]]:
    """What a GPU is needed for."""
    return [[name, program, OPEN, *6 * ["–"]] for program in (OURS, WITH_TEXT, EAGER, COMPILED)]


def verdicts(name: str, case: Case, result: Result, platform: str) -> list[str]:
    """One line per target."""
    found = {other: ratio(result.times, OURS, other) for other in TARGETS[platform]}
    lines = [
        _verdict(found[other] <= most, f"{name}: at most {most:.2f} of the time of {other}",
                 f"{found[other]:.2f}")
        for other, most in TARGETS[platform].items()
    ]
    if platform == "cpu":
        mine, other = (result.peaks[program].most for program in (OURS, EAGER))
        lines.append(_verdict(
            mine < other, f"{name}: a lower peak of the process than {EAGER}",
            f"{mebibytes(mine)} to {mebibytes(other)}"))
    if platform == "gpu":
        seconds = statistics.median(result.times[OURS])
        share = case.batch * dit_flops(case.config, case.grid) / seconds / result.peak_rate
        lines.append(_verdict(
            share >= OF_PEAK, f"{name}: {OF_PEAK:.0%} of the matmul peak", f"{share:.0%}"))
    return lines


def _verdict(met: bool, target: str, found: str) -> str:
    return f"* **{'Met' if met else 'Not met'}**: {target} (found: {found})."


HEADER = [
    "transformer", "program", "median of a step (least to most)", "over diffusers", "TFLOP/s",
    "of matmul", "memory of a call", "peak of the process", "first call",
]  # fmt: skip


def page(results: dict[str, Result], cases: dict[str, Case], rounds: int) -> str:
    lines = [line for name in results for line in rows(name, cases[name], results[name])]
    lines += [line for name in GPU_CASES if name not in results for line in open_rows(name)]
    platform = jax.default_backend()
    told = [line for name in results
            for line in verdicts(name, cases[name], results[name], platform)]
    facts = [_facts(name, cases[name], result) for name, result in results.items()]
    return "\n".join([
        "# A step of the transformer, beside diffusers", "",
        "`python -m experiments.bench.dit`", "",
        machine("flax", "torch", "diffusers") + ".", "",
        *told, "",
        *table(HEADER, lines),
        *facts, "",
        f"{rounds} rounds in turns in one process; ratios are medians over rounds, below 1 is"
        " faster than diffusers. TFLOP/s are those of an analytic count of matrix products, the"
        " text's included, over the median. Memory of a call is what the process (on a GPU, the"
        " allocator) held at most in its first call, compilation included, beyond weights,"
        " inputs and libraries; each side is weighed in processes of its own, which have not loaded"
        f" the other: the one in the middle of {PROCESSES}. What loading freed is handed back to"
        " the system on either side, and on ours what compiling freed, as `ic-jax` does.", "",
    ])  # fmt: skip


def _facts(name: str, case: Case, result: Result) -> str:
    cfg = case.config
    rates = [f"{rate / 1e12:.3g} TFLOP/s by {library}" for library, rate in result.matmul.items()]
    return (
        f"* {name}: {cfg.num_layers} layer{'s' if cfg.num_layers > 1 else ''} of {cfg.dim},"
        f" {cfg.num_heads} heads of {cfg.head_dim},"
        f" feed-forward {cfg.ffn_dim}, {token_count(cfg, case.grid)} tokens,"
        f" {cfg.text_len} text tokens, batch {case.batch}, {case.dtype}. Ours differs from"
        f" diffusers by {result.difference:.1g} (root mean square, relative)."
        f" Large matrix products alone reach {' and '.join(rates)} here."
    )


@dataclass
class Arguments:
    """Measure a step of the transformer."""

    rounds: int = 7
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    on_gpu = jax.default_backend() == "gpu"
    cases = GPU_CASES if on_gpu else CASES
    results = {name: measure(case, arguments.rounds, on_gpu) for name, case in cases.items()}
    text = page(results, cases, arguments.rounds)
    raw = {
        name: result._asdict() | {"peaks": {k: p._asdict() for k, p in result.peaks.items()}}
        for name, result in results.items()
    }
    raw["machine"] = machine("flax", "torch", "diffusers")
    publish(arguments.results, "bench_dit", text, raw)


if __name__ == "__main__":
    # By a name that other processes can import.
    from experiments.bench import dit

    dit.main(tyro.cli(dit.Arguments))
