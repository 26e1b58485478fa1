"""What consistency costs: the correction's time and FLOPs beside the denoiser's.

    python -m experiments.overhead

writes experiments/results/overhead.md and .json. Times are of the small model on this machine;
FLOPs are counted on paper, checked against XLA's own count, and carried over to Wan 2.1.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from experiments.bench.side_by_side import in_turns, medians
from experiments.tables import table
from ic_jax.cost import dit_flops
from ic_jax.latent_mask import LatentMask
from ic_jax.model import expected_shapes
from ic_jax.models.variants import VARIANTS, Variant
from ic_jax.models.wan_dit import DiTConfig, WanDiT
from ic_jax.sampling.consistency import Consistency, bayes_dds, dds
from ic_jax.sampling.denoiser import Prediction, guided
from ic_jax.sampling.renewals import bayes_draw
from ic_jax.sampling.schedule import Level

RULES = {"bayes_draw": bayes_draw(), "bayes_dds": bayes_dds(), "dds": dds()}
TARGET = 0.01
LOOP = 100  # corrections per timed call, in a scan as in the sampler
LARGE = "Wan2.1-T2V-1.3B"


# Counted --------------------------------------------------------------------------


def step_flops(config: DiTConfig, grid: tuple[int, int, int]) -> int:
    """The denoiser of one step: the prompt and no prompt, matrix products alone.

    Leaving out the rest makes the correction's share look larger than it is.
    """
    return 2 * dit_flops(config, grid)


def correction(rule: Consistency) -> Callable:
    """One correction as a function of arrays alone."""

    def apply(clean, noise, y, coverage, variance, sigma, key):
        level = Level(sigma, 0.9 * sigma, 1000 * sigma)
        return rule(Prediction(clean, noise), y, LatentMask(coverage, variance), level, key)

    return apply


def correction_shapes(grid: tuple[int, int, int], channels: int) -> list[jax.ShapeDtypeStruct]:
    full = jax.ShapeDtypeStruct((*grid, channels), jnp.float32)
    share = jax.ShapeDtypeStruct((*grid, 1), jnp.float32)
    return [full, full, full, share, full, jax.ShapeDtypeStruct((), jnp.float32)]


def correction_flops(rule: Consistency, grid: tuple[int, int, int], channels: int) -> int:
    """XLA's count: elementwise operations, and those that random numbers are made by."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    return round(_xla_flops(correction(rule), *correction_shapes(grid, channels), key))


def _xla_flops(function: Callable, *shapes) -> float:
    return jax.jit(function).lower(*shapes).compile().cost_analysis()["flops"]


def latent_grid(sizes: Variant) -> tuple[int, int, int]:
    return sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]


def counted_by_xla(sizes: Variant) -> float:
    """Our count of the denoiser divided by XLA's, for one block (XLA counts a loop once)."""
    config = replace(sizes.dit, num_layers=1)
    grid = latent_grid(sizes)
    params = expected_shapes(replace(sizes, dit=config))["dit"]
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32)
        for shape in ((1, *grid, 16), (1,), (1, config.text_len, config.text_dim))
    ]
    forward = lambda params, *inputs: WanDiT(config).apply({"params": params}, *inputs)
    return dit_flops(config, grid) / _xla_flops(forward, params, *shapes)


# Timed ----------------------------------------------------------------------------


def random_like(shapes, seed: int):
    """Arrays of the given shapes: time does not depend on what they hold."""
    rng = np.random.default_rng(seed)
    draw = lambda s: jnp.asarray(rng.random(s.shape, np.float32) / 10 + np.float32(0.01))
    return jax.tree.map(draw, shapes)


def time_step(sizes: Variant, repeats: int) -> dict[str, float]:
    """The guided denoiser, and each rule: in a loop, as in the sampler, and called by itself."""
    grid = latent_grid(sizes)
    shapes = expected_shapes(sizes)["dit"]
    params = random_like(shapes, 0)
    context = jnp.zeros((2, sizes.dit.text_len, sizes.dit.text_dim))
    arrays = random_like(correction_shapes(grid, sizes.dit.in_channels), 1)
    level = Level(jnp.float32(0.5), jnp.float32(0.45), jnp.float32(500.0))
    key = jax.random.key(0)

    @jax.jit
    def denoise(params, x):
        velocity = lambda x, t: WanDiT(sizes.dit).apply({"params": params}, x, t, context)
        return guided(velocity, sizes.guidance_scale)(x, level)

    calls = {"denoiser": lambda: denoise(params, arrays[0])}
    for name, rule in RULES.items():
        calls[name] = lambda apply=jax.jit(in_a_loop(rule)): apply(*arrays[:-1])
        calls[f"{name}, one call"] = lambda apply=jax.jit(correction(rule)): apply(*arrays, key)
    seconds = medians(in_turns(calls, repeats))
    return seconds | {name: seconds[name] / LOOP for name in RULES}


def in_a_loop(rule: Consistency) -> Callable:
    """`LOOP` corrections, each of the last one's result, at as many levels."""

    def apply(clean, noise, y, coverage, variance):
        def step(prediction, at):
            return correction(rule)(*prediction, y, coverage, variance, *at), None

        at = jnp.linspace(1.0, 0.1, LOOP), jax.random.split(jax.random.key(0), LOOP)
        return jax.lax.scan(step, Prediction(clean, noise), at)[0]

    return apply


@dataclass
class Arguments:
    """Measure the overhead of consistency."""

    repeats: int = 200
    results: Path = Path("experiments/results")


def _shares(seconds: dict[str, float], rule: str) -> list[str]:
    cells = []
    for name in (rule, f"{rule}, one call"):
        own, whole = seconds[name], seconds["denoiser"]
        cells.append(f"{1e3 * own:.3f} of {1e3 * whole:.1f} ms = {100 * own / whole:.2f} %")
    return cells


def main(arguments: Arguments) -> None:
    nano, large = VARIANTS["nano"], VARIANTS[LARGE]
    seconds = time_step(nano, arguments.repeats)
    rows, raw = [], {"seconds": seconds, "flops": {}, "our_count_over_xla": counted_by_xla(nano)}
    for name, sizes in (("nano", nano), (LARGE, large)):
        grid = latent_grid(sizes)
        denoiser = step_flops(sizes.dit, grid)
        for rule in RULES:
            extra = correction_flops(RULES[rule], grid, 16)
            raw["flops"][f"{name}, {rule}"] = {"denoiser": denoiser, "correction": extra}
            timed = _shares(seconds, rule) if name == "nano" else ["–", "–"]
            size = f"{sizes.frames}×{sizes.height}×{sizes.width}"
            counted = f"{extra:.3g} of {denoiser:.3g} = {100 * extra / denoiser:.2g} %"
            rows.append([f"{name} {size}", rule, *timed, counted])
    shares = [seconds[rule] / seconds["denoiser"] for rule in RULES]
    shares += [counts["correction"] / counts["denoiser"] for counts in raw["flops"].values()]
    verdict = "Met" if max(shares) <= TARGET else "Not met"
    text = "\n".join([
        "# Overhead of consistency, per sampling step", "",
        "`python -m experiments.overhead`", "",
        f"**{verdict}**: at most {100 * TARGET:.0f} % of the denoiser; the largest share found is"
        f" {100 * max(shares):.2f} %.", "",
        *table(["model and clip", "rule", "time in the loop", "time of a call by itself", "FLOPs"],
               rows),
        f"Median of {arguments.repeats} calls in turns on {jax.devices()[0].device_kind},"
        f" {jax.device_count()} device, jax {jax.__version__}. Denoiser: the prompt and no prompt"
        " in one batched call. The correction runs in a compiled loop, as it does in the sampler"
        f" (a {LOOP}th of {LOOP} in a row); called by itself from Python, which the sampler never"
        " does, it costs a dispatch as well.", "",
        "FLOPs of the denoiser are counted on paper, matrix products alone (our count over"
        f" XLA's for one block: {raw['our_count_over_xla']:.3f}); those of the correction by"
        " XLA. Besides these, consistency costs encodes before the loop: one of the filled"
        " warp, and eight for the response mask. Nothing is encoded inside it.", "",
    ])  # fmt: skip
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "overhead.md").write_text(text)
    (arguments.results / "overhead.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
