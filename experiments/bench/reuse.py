"""What timestep caching costs in quality, beside the plain way to fewer calls: fewer steps.

    python -m experiments.bench.reuse

writes experiments/results/bench_reuse.md and .json. All arms start from the same noise on the
same tasks (new views with true frames), with the small model. An arm that reuses takes as many
steps as the default but asks the model's blocks in some of them only; its rival takes as many
steps as the arm makes calls. Fidelity is to the default's own result, quality to the truth.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Bool, Float
from tqdm import tqdm

from experiments.bench.side_by_side import machine, publish
from experiments.intervals import bootstrap
from experiments.laboratory import Laboratory
from experiments.metrics import Regions, psnr_by_region, regions
from experiments.tables import table
from ic_jax import pipeline
from ic_jax.expert import expert, halves_of
from ic_jax.report import psnr_db
from ic_jax.sampling import caching
from ic_jax.sampling.methods import method
from ic_jax.sampling.sampler import State, advance
from ic_jax.sampling.schedule import Level
from ic_jax.sampling.solvers import SOLVERS
from ic_jax.settings import Settings, most_prompts
from ic_jax.text import embed_prompts

TASK = "recapture"
DEFAULT = "the default"
THRESHOLDS = 0.03, 0.12
MOST = 3  # reused in a row, in MagCache

Flags = Bool[np.ndarray, " steps"]


class Given(NamedTuple):
    """What a task gives to the sampler."""

    context: Array
    seen: pipeline.Observation
    key: Array


@cache
def given(lab: Laboratory, number: int) -> Given:
    sizes = lab.model.variant
    context = embed_prompts(lab.folder, sizes, ("", lab.task(TASK, number).caption)).context
    seen = lab.observed(TASK, number)._replace(mask=lab.masked(TASK, number, "mean"))
    return Given(context, seen, jax.random.fold_in(jax.random.key(0), number))


def sampler(lab: Laboratory, reused: Float[np.ndarray, " n"]) -> Callable[..., State]:
    """Any part of a run with the default settings, that asks the blocks but at `reused` levels."""
    sizes, settings = lab.model.variant, Settings()

    @jax.jit
    def go(weights, given: Given, state: State, levels: Level) -> State:
        told = given.context, given.seen.conditioning
        asked = expert(sizes, settings, "dit", weights, *told)
        halves = halves_of(asked, most_prompts(sizes, settings))
        consistent = method(settings.consistency, r2=pipeline.clean_variance(settings, weights))
        _, solver = SOLVERS[sizes.solver]
        step = caching.reusing(
            consistent, halves, reused, solver(), given.seen.measurement.latent, given.seen.mask)
        return advance(step, state, levels)

    return go


def begin(lab: Laboratory, steps: int, key: Array) -> tuple[State, Level]:
    """Noise, with room for what the blocks say."""
    return pipeline.begin(lab.model.variant, Settings(steps=steps, reuse=1), key)


def magnitude_ratios(lab: Laboratory, numbers: range, steps: int) -> Float[np.ndarray, " steps"]:
    """MagCache's calibration: the mean size of what the blocks add, over that a step before."""
    go = sampler(lab, np.zeros(0, np.float32))
    sizes = []
    for number in numbers:
        known = given(lab, number)
        state, levels = begin(lab, steps, known.key)
        sizes.append([])
        for n in range(steps):
            level = jax.tree.map(lambda leaf: leaf[n : n + 1], levels)
            state = go(lab.model.weights, known, state, level)
            said = state.memory[1]
            sizes[-1].append(float(jnp.linalg.norm(said, axis=-1).mean()))
    mean = np.mean(sizes, axis=0)
    return np.append(1.0, mean[1:] / mean[:-1])


def arms(lab: Laboratory, steps: int, calibration: range) -> dict[str, Flags]:
    """The flags of each arm, as many as it takes steps; True where it reuses."""
    found = {DEFAULT: np.zeros(steps, bool)}
    for reuse in (1, 2, 3):
        found[f"fixed, {reuse} in a row"] = caching.every(steps, reuse)
    ratios = magnitude_ratios(lab, calibration, steps)
    for threshold in THRESHOLDS:
        found[f"MagCache, error below {threshold}"] = caching.by_magnitude(
            ratios, threshold, MOST)
    for calls in sorted({calls_of(flags) for flags in found.values()} - {steps}, reverse=True):
        found[f"{calls} steps"] = np.zeros(calls, bool)
    return found


def calls_of(flags: Flags) -> int:
    """How often an arm asks the blocks."""
    return int((~flags).sum())


def decoded(lab: Laboratory, flags: Flags, numbers: range) -> list[np.ndarray]:
    """What an arm makes of every task."""
    clips, go = [], None
    for number in numbers:
        known = given(lab, number)
        state, levels = begin(lab, len(flags), known.key)
        go = go or sampler(lab, levels.sigma[flags])
        clips.append(lab.decode(go(lab.model.weights, known, state, levels).x))
    return clips


def quality(lab: Laboratory, number: int, clip: np.ndarray) -> dict[str, float]:
    """PSNR in dB to the true view, by region."""
    where = regions(np.asarray(lab.observed(TASK, number).visible))
    return psnr_by_region(clip, np.asarray(lab.task(TASK, number).truth), where)


def page(raw: dict[str, dict], model: str, made_on: str) -> str:
    """The page in Markdown, of what is stored of each arm."""
    rows, losses = [], []
    for name, arm in raw.items():
        calls, near = str(arm["steps"] - len(arm["reused"])), arm["near"]
        figures = {region: psnr(arm, region) for region in Regions._fields}
        means = [f"{np.nanmean(values):.2f}" for values in figures.values()]
        fidelity = f"{np.mean(near):.1f}" if near else "–"
        rows.append([name, str(arm["steps"]), calls, *means, fidelity])
        if name != DEFAULT:
            paired = [bootstrap(figures[r] - psnr(raw[DEFAULT], r)) for r in Regions._fields]
            shown = (f"**{one:+.3f}**" if one.decided else f"{one:+.3f}" for one in paired)
            losses.append([name, calls, *shown])
    tasks = len(raw[DEFAULT]["to_truth"])
    return "\n".join([
        "# Timestep caching: quality for calls", "", "`python -m experiments.bench.reuse`", "",
        f"{made_on}. Model {model}, {tasks} new views; PSNR in dB.", "",
        *table(["arm", "steps", "calls of the blocks", *Regions._fields, "to the default's"], rows),
        "## Against the default", "",
        "Difference of PSNR in dB, mean over views with 95 % paired bootstrap intervals. **Bold**:"
        " the interval leaves zero out.", "",
        *table(["arm", "calls of the blocks", *Regions._fields], losses),
    ])  # fmt: skip


def psnr(arm: dict, region: str) -> Float[np.ndarray, " tasks"]:
    """To the true view, per task; nan where a task has no such region."""
    return np.array([figures[region] for figures in arm["to_truth"]])


@dataclass
class Arguments:
    """Measure the quality cost of timestep caching."""

    model: str = "nano"
    tasks: int = 10
    calibration: int = 4
    """Further tasks, on which MagCache's ratios are measured."""
    data: Path = Path(".data")
    results: Path = Path("experiments/results")


def main(arguments: Arguments) -> None:
    lab = Laboratory(arguments.model, arguments.data)
    numbers = range(arguments.tasks)
    others = range(arguments.tasks, arguments.tasks + arguments.calibration)
    steps = lab.model.variant.steps
    found = arms(lab, steps, others)
    clips = {name: decoded(lab, flags, numbers) for name, flags in tqdm(found.items())}
    raw = {}
    for name, flags in found.items():
        figures = [quality(lab, number, clip) for number, clip in zip(numbers, clips[name])]
        near = [psnr_db(a, b) for a, b in zip(clips[name], clips[DEFAULT]) if name != DEFAULT]
        raw[name] = {
            "steps": len(flags), "reused": np.flatnonzero(flags).tolist(), "to_truth": figures,
            "near": near,
        }  # fmt: skip
    publish(arguments.results, "bench_reuse", page(raw, arguments.model, machine()), raw)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
