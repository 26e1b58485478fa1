"""What every method costs per step: calls of the model and of the autoencoder, time, memory.

    python -m experiments.costs

writes experiments/results/costs.md and .json. Calls are counted, not estimated: the step runs
once without compilation, with networks that count. FLOPs are counted in the program of a step, of
the small model and of Wan 2.1, backward passes and all. Time and memory are of the small model
here, all methods in turns, as shares of the plain sampler's.
"""

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array

from experiments.bench.side_by_side import in_turns, medians
from experiments.flops import matrix_flops
from experiments.tables import table
from ic_jax import pipeline
from ic_jax.course import Part
from ic_jax.delivery import environment
from ic_jax.latent_mask import LatentMask, Measurement
from ic_jax.model import Weights, expected_shapes, load_model
from ic_jax.models.variants import VARIANTS, Variant
from ic_jax.pipeline import Observation
from ic_jax.sampling.denoiser import split
from ic_jax.sampling.gibbs import gibbs
from ic_jax.sampling.methods import METHODS, method
from ic_jax.sampling.sampler import Pixels, State, start
from ic_jax.sampling.schedule import Level
from ic_jax.sampling.solvers import euler
from ic_jax.settings import Settings

SHAPE = 2, 4, 4, 3
LEVEL = Level(*(jnp.float32(value) for value in (0.6, 0.5, 600.0)))
NETWORKS = "model", "decode", "encode"
MODELS = "nano", "Wan2.1-T2V-1.3B"


def calls(name: str) -> Counter:
    """How often one step of a method calls each network."""
    counted: Counter = Counter()

    def counting(network: str, function: Callable) -> Callable:
        def call(*arguments):
            counted[network] += 1
            return function(*arguments)

        return call

    y = jnp.asarray(np.random.default_rng(0).standard_normal(SHAPE), jnp.float32)
    identity = lambda x: x
    pixels = Pixels(
        counting("encode", identity), counting("decode", identity), y, jnp.ones(SHAPE[:3]))
    denoise = counting("model", lambda x, level: split(x, 0.5 * x, level.sigma))
    mask = LatentMask(jnp.full(SHAPE, 0.7), jnp.full(SHAPE, 0.1))
    step = method(name, pixels=pixels)(denoise, euler(), y, mask)
    with jax.disable_jit():
        step(start(jax.random.key(0), SHAPE, euler()), LEVEL)
    return counted


def step(name: str, sizes: Variant) -> Callable[..., State]:
    """A step of the sampler as a function of weights and what `inputs` gives."""
    settings = Settings(consistency=name, solver="euler")
    return lambda *given: pipeline.proceed(sizes, settings, Part(), *given)


def inputs(sizes: Variant) -> tuple[Array, Observation, State, Level]:
    """Noise in place of a context and an observation; the state and a level of the schedule."""
    normal = lambda *shape: jax.random.normal(jax.random.key(0), shape)
    size = sizes.frames, sizes.height, sizes.width
    shape = sizes.vae.latent_shape(*size)
    mask = LatentMask(jnp.full(shape, 0.7), jnp.full(shape, 0.1))
    clip, visible = jnp.clip(normal(*size, 3), -1, 1), jnp.ones(size)
    seen = Observation(clip, visible, Measurement(clip, normal(*shape)), mask, None)
    context = normal(2, sizes.dit.text_len, sizes.dit.text_dim)
    state, levels = pipeline.begin(sizes, Settings(solver="euler"), jax.random.key(0))
    return context, seen, state, jax.tree.map(lambda leaf: jnp.asarray(leaf[12:13]), levels)


def compiled_step(name: str) -> tuple[jax.stages.Compiled, Callable[[], object]]:
    """One step of the small model, as an executable and the call that times it."""
    model = load_model()
    arguments = model.weights, *inputs(model.variant)
    program = jax.jit(step(name, model.variant)).lower(*arguments).compile()
    return program, lambda: program(*arguments)


def step_flops(name: str, sizes: Variant) -> int:
    """Of the matrix products and convolutions in a step; Gibbs' sweeps at their limit."""
    trees = expected_shapes(sizes)
    limit = signature(gibbs).parameters["inner"].default + 1
    given = Weights(trees["vae"], trees["dit"]), *jax.eval_shape(lambda: inputs(sizes))
    return matrix_flops(step(name, sizes), *given, trips=limit)


@dataclass
class Arguments:
    """Count, time and weigh one step of every method."""

    repeats: int = 20
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    programs, timed, raw = {}, {}, {}
    for name in METHODS:
        programs[name], timed[name] = compiled_step(name)
    seconds = medians(in_turns(timed, arguments.repeats))
    memory = {name: p.memory_analysis().temp_size_in_bytes for name, p in programs.items()}
    flops = {
        model: {name: step_flops(name, VARIANTS[model]) for name in METHODS} for model in MODELS
    }
    plain = " and ".join(f"{count['none']:.3g} ({model})" for model, count in flops.items())
    rows = []
    for name, entry in METHODS.items():
        counted = calls(name)
        raw[name] = {
            "calls": dict(counted), "seconds": seconds[name], "temporary_bytes": memory[name],
            "flops": {model: count[name] for model, count in flops.items()},
        }
        rows.append([
            name, entry.source, *(str(counted[network]) for network in NETWORKS),
            *(f"{count[name] / count['none']:.2f}" for count in flops.values()),
            f"{seconds[name] / seconds['none']:.2f}", f"{memory[name] / memory['none']:.2f}",
        ])  # fmt: skip
    made, titles = environment(), [f"FLOPs, {model}" for model in MODELS]
    text = "\n".join([
        "# What a step costs, by method", "", "`python -m experiments.costs`", "",
        f"{made['device']}; jax {made['versions']['jax']}. A guided call of the model counts as"
        " one. FLOPs: matrix products and convolutions of a step, over the plain sampler's"
        f" {plain}; gibbs at its limit. Time: median of {arguments.repeats} steps of the small"
        f" model, all methods in turns, over the plain sampler's {1e3 * seconds['none']:.1f} ms."
        " Memory: temporaries of the compiled step, over the plain sampler's"
        f" {memory['none'] / 2**20:.1f} MiB. The small model's autoencoder is large beside its"
        " transformer, so that methods which decode or differentiate look dearer here than at"
        " full size.", "",
        *table(["method", "source", *NETWORKS, *titles, "time", "memory"], rows),
        "`decode` and `encode` are calls inside the loop. Methods with gradients also run the"
        " backward pass of what they call. How small a plain correction is beside the model is"
        " measured in [overhead.md](overhead.md).", "",
    ])  # fmt: skip
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "costs.md").write_text(text)
    (arguments.results / "costs.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
