"""Seconds per clip on machines that are not at hand: from counts of FLOPs, bytes and links.

    python -m experiments.bench.scaling

writes experiments/results/scaling.md and .json. Nothing is measured here. What the assumptions
are worth is seen from the share of peak that published runs of the same models imply.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from experiments.bench.side_by_side import publish
from experiments.tables import table
from ic_jax import cost
from ic_jax.budget import need
from ic_jax.errors import InputError
from ic_jax.models.variants import VARIANTS, Variant
from ic_jax.parallel.choice import choose, per_device
from ic_jax.parallel.mesh import ULYSSES, MeshShape, axis_sizes
from ic_jax.parallel.traffic import step_traffic

MODELS = "Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B"
PROMPTS = 2
BF16 = 2

# What may be filled with weights and activations; the rest is the runtime's.
USABLE = 0.9
# Of the chips' bf16 peak: what we aim at, and about what published JAX runs reach (see CHECKS).
AIM, MODEST = 0.5, 0.28
# The autoencoder's, from 0.8 s for a decode of 81 frames of 720p on v6e-8 (maxdiffusion, PR 464).
AUTOENCODER = 0.1


class Chip(NamedTuple):
    """A chip by its vendor's data sheet: FLOP/s in bf16 without sparsity, bytes, bytes/s."""

    flops: float
    memory: float
    memory_rate: float
    link_rate: float
    """Out of one port, one way."""
    source: str


_CLOUD = "docs.cloud.google.com/tpu/docs"
CHIPS = {
    "v5e": Chip(197e12, 16e9, 819e9, 50e9, f"{_CLOUD}/v5e (ICI 400 GB/s both ways, 4 ports)"),
    "v5p": Chip(459e12, 95e9, 2765e9, 100e9, f"{_CLOUD}/v5p (ICI 1200 GB/s both ways, 6 ports)"),
    "v6e": Chip(918e12, 32e9, 1638e9, 100e9, f"{_CLOUD}/v6e (ICI 800 GB/s both ways, 4 ports)"),
    "H100": Chip(
        989e12, 80e9, 3350e9, 450e9, "NVIDIA's H100 SXM data sheet (NVLink 900 GB/s both ways)"),
}  # fmt: skip


class Machine(NamedTuple):
    """Chips, in groups that work on one clip: a grid with links between neighbours, or a switch."""

    chip: str
    chips: int
    group: tuple[int, ...] | None
    """The grid's sides; None for a switch that joins all."""


MACHINES = {
    "v5e-8": Machine("v5e", 8, (2, 4)),
    # Google counts the cores of v5p, two per chip: v5p-8 has four chips.
    "v5p-8 (4 chips)": Machine("v5p", 4, (2, 2)),
    "v6e-8": Machine("v6e", 8, (2, 4)),
    "8×H100": Machine("H100", 8, None),
    "v5e-256 pod": Machine("v5e", 256, (2, 4)),
    "v6e-256 pod": Machine("v6e", 256, (2, 4)),
}


# Work of one chip -----------------------------------------------------------------


def step_flops(sizes: Variant, shape: MeshShape) -> float:
    """FLOPs of one chip in one step: two calls of the transformer, with and without the prompt."""
    return PROMPTS * cost.dit_flops(sizes.dit, _grid(sizes)) / _among(shape)


def step_bytes(sizes: Variant, shape: MeshShape) -> float:
    """Bytes that one chip moves to and from its memory in one step.

    All weights once; what matrix products read and write, in bf16, and as much again for norms,
    rotations and residual sums between them.
    """
    layers = cost.dit_layers(sizes.dit, _grid(sizes))
    activations = 2 * BF16 * 2 * sum(layer.values for layer in layers) / _among(shape)
    return BF16 * cost.parameters(layers) + activations


def vae_flops(sizes: Variant, shape: MeshShape) -> float:
    """FLOPs of one chip for an encode and a decode, of its share of the rows."""
    halves = cost.vae_layers(sizes.vae, (sizes.frames, sizes.height, sizes.width))
    return sum(map(cost.flops, halves)) / _among(shape)


def _grid(sizes: Variant) -> tuple[int, int, int]:
    return sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]


def _among(shape: MeshShape) -> int:
    """The chips that work on one clip."""
    return shape.prompts * shape.sequence


# Links ----------------------------------------------------------------------------


def links(sizes: Variant, shape: MeshShape, machine: Machine) -> dict[str, float]:
    """Seconds of one step that a chip waits for what others send, by collective."""
    tokens = cost.token_count(sizes.dit, _grid(sizes))
    traffic = step_traffic(shape, sizes.dit, tokens, BF16)
    rate = CHIPS[machine.chip].link_rate
    ulysses = axis_sizes(shape, sizes.dit.num_heads)[ULYSSES]
    crowding, ways = 1.0, 1
    if machine.group is not None and ulysses > 1:
        # Half of all that is exchanged crosses the middle of the longest side: each link there
        # carries side / 4 of what a chip holds, of which the chip receives 1 - 1 / ulysses.
        side = min(max(machine.group), ulysses)
        crowding = side / 4 * ulysses / (ulysses - 1)
    if machine.group is not None:
        ways = 2  # what is gathered comes around a line of neighbours from both sides
    return {
        "all-to-all": crowding * traffic.all_to_all / rate,
        "ring": traffic.collective_permute / rate,
        "gather": traffic.all_gather / (ways * rate),
    }


# Layout ---------------------------------------------------------------------------


def layouts(sizes: Variant, machine: Machine) -> list[MeshShape]:
    """For the shortest wait, and for the most clips side by side: as `parallel.choose` has it."""
    group = min(8, machine.chips)
    fitting = [shape for n in (1, 2, 4, 8) if n <= group for shape in _chosen(sizes, machine, n)]
    ends = dict.fromkeys((fitting[0], fitting[-1]))
    return [shape._replace(clips=shape.clips * machine.chips // group) for shape in ends]


def _chosen(sizes: Variant, machine: Machine, clips: int) -> list[MeshShape]:
    """The shape for so many clips on one group of chips, if there is one that fits."""
    group, room = min(8, machine.chips), int(USABLE * CHIPS[machine.chip].memory)
    try:
        return [choose(need(sizes, PROMPTS), group, room, sizes.dit.num_heads, clips)]
    except InputError:
        return []


# Prediction -----------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Seconds of one chip, in one step except where said."""

    compute: float
    """At the chip's whole peak."""
    memory: float
    links: dict[str, float]
    autoencoder: float
    """Of a clip."""

    def clip(self, steps: int, share: float) -> float:
        """Seconds from a clip to its result at a share of peak; links wait for compute.

        Memory traffic hides behind compute, or compute behind it.
        """
        step = max(self.compute / share, self.memory) + sum(self.links.values())
        return steps * step + self.autoencoder


def predict(sizes: Variant, shape: MeshShape, machine: Machine) -> Prediction:
    """What a step and the autoencoder cost on paper."""
    chip = CHIPS[machine.chip]
    return Prediction(
        step_flops(sizes, shape) / chip.flops,
        step_bytes(sizes, shape) / chip.memory_rate,
        links(sizes, shape, machine),
        vae_flops(sizes, shape) / (AUTOENCODER * chip.flops),
    )


class Published(NamedTuple):
    """Somebody's run of the same network, to judge a share of peak by."""

    run: str
    model: str
    size: tuple[int, int, int]
    chip: str
    chips: int
    seconds: float
    """Per step of two calls."""


CHECKS = (
    Published("Wan 2.1 14B, 1×H100, 50 steps in 1838 s (its authors)",
              "Wan2.1-T2V-14B", (81, 720, 1280), "H100", 1, 1837.9 / 50),
    Published("Wan 2.1 14B, 8×H100, 50 steps in 288 s (its authors)",
              "Wan2.1-T2V-14B", (81, 720, 1280), "H100", 8, 287.9 / 50),
    Published("I2V 14B, 1×H100, diffusers, 9.77 s a step (LightX2V's README)",
              "Wan2.1-I2V-14B", (81, 480, 832), "H100", 1, 9.77),
    Published("I2V 14B, 1×H100, LightX2V, 5.18 s a step (its README)",
              "Wan2.1-I2V-14B", (81, 480, 832), "H100", 1, 5.18),
    Published("Wan 2.2 I2V 14B, v6e-8, 40 steps in 252 s (maxdiffusion, PR 376)",
              "Wan2.2-I2V-A14B", (81, 720, 1280), "v6e", 8, 251.5 / 40),
)  # fmt: skip


def implied(run: Published) -> float:
    """The share of peak at which the counted FLOPs take the published seconds."""
    sizes = VARIANTS[run.model]
    grid = sizes.vae.latent_shape(*run.size)[:3]
    peak = run.chips * CHIPS[run.chip].flops
    return PROMPTS * cost.dit_flops(sizes.dit, grid) / run.seconds / peak


# Page -----------------------------------------------------------------------------


def rows(model: str) -> tuple[list[list[str]], list[dict]]:
    """The table of one model, and the same as numbers."""
    sizes = VARIANTS[model]
    shown, raw = [], []
    for name, machine in MACHINES.items():
        for shape in layouts(sizes, machine):
            told = predict(sizes, shape, machine)
            best, modest = (told.clip(sizes.steps, share) for share in (AIM, MODEST))
            memory = per_device(need(sizes, PROMPTS), shape)
            shown.append([
                name, " × ".join(map(str, shape)), f"{memory / 1e9:.1f}",
                f"{told.compute / AIM:.3f}", f"{told.memory:.3f}",
                *(f"{seconds:.3f}" for seconds in told.links.values()),
                f"{told.autoencoder:.1f}", f"{best:.0f} to {modest:.0f}",
                f"{3600 * shape.clips / modest:.0f} to {3600 * shape.clips / best:.0f}",
            ])
            raw.append({
                "model": model, "machine": name, "layout": shape._asdict(), "bytes": memory,
                **vars(told), "clip_seconds": [best, modest],
            })
    return shown, raw


HEAD = [
    "machine", "clips × prompts × sequence × weights", "GB per chip", "compute", "memory",
    "all-to-all", "ring", "gather", "encode, decode", "seconds per clip", "clips per hour",
]  # fmt: skip

ASSUMED = f"""
Assumptions, all of them:

* 81 frames of 480×832, the recommended number of steps, guided by two prompts. The mask `mean`,
  which asks the autoencoder nothing; the text encoder, loading and compiling are left out.
* Layouts are those that `ic_jax.parallel.choose` picks at {USABLE:.0%} of a chip's memory: once
  for one clip on all chips (of a group of eight, on a pod), and once for as many clips side by
  side as there are chips. Chips are clips × prompts × sequence; weights says how many of them
  share a copy of the transformer. Groups of a pod have nothing to say to each other. `ic-jax batch`
  takes all memory that JAX reports, and the chips of one host, so that its layout can differ.
* *Compute*: FLOPs by `ic_jax.cost` (matrix products, 2 per multiply-add) at {AIM:.0%} of the bf16
  peak; seconds per clip run from there to {MODEST:.0%}.
* *Memory*: all weights once a step, what matrix products read and write in bf16, and as much again
  between them; attention is fused. The larger of compute and memory counts.
* *All-to-all*, *ring* and *gather*: bytes by `ic_jax.parallel.traffic`. In an all-to-all, half of
  everything crosses the middle of the grid; a hop of a ring uses one port, a gather two. A slice
  of a few chips has no wrap-around links. Nothing overlaps with compute, as good programs have it.
* *Encode, decode*: {AUTOENCODER:.0%} of the bf16 peak, which is what 0.8 s for a decode of 720p on
  v6e-8 comes to (maxdiffusion, PR 464). The chips of a clip share the rows of its frames.
* *GB per chip*: weights and the largest part of a run, by `ic_jax.budget`; each chip of a clip has
  all of its pixels, and warps and fills them itself.
"""


def page() -> tuple[str, list[dict]]:
    """The page, and its numbers."""
    raw, sections = [], []
    for model in MODELS:
        shown, numbers = rows(model)
        raw += numbers
        steps = VARIANTS[model].steps
        sections += [f"## {model}, {steps} steps", "", *table(HEAD, shown)]
    chips = [
        [name, f"{c.flops / 1e12:.0f}", f"{c.memory / 1e9:.0f}", f"{c.memory_rate / 1e9:.0f}",
         f"{c.link_rate / 1e9:.0f}", c.source]
        for name, c in CHIPS.items()
    ]  # fmt: skip
    checks = [[run.run, f"{implied(run):.0%}"] for run in CHECKS]
    text = "\n".join([
        "# Seconds per clip, on paper", "", "`python -m experiments.bench.scaling`", "",
        "**None of this is measured.** Seconds in the tables are of one chip in one step, except"
        " for the autoencoder's and the last two columns, which are of a clip.", "",
        *sections, ASSUMED,
        "## Chips", "", *table(
            ["chip", "bf16 TFLOP/s", "memory GB", "memory GB/s", "one port, one way GB/s",
             "source"], chips),
        "## What share of peak others reach", "",
        "Published seconds against FLOPs counted here; runs of several chips include their links.",
        "", *table(["run", "share of bf16 peak"], checks),
    ])  # fmt: skip
    return text, raw


@dataclass
class Arguments:
    """Predict seconds per clip on machines that are not at hand."""

    results: Path = Path("experiments/results")


if __name__ == "__main__":
    publish(tyro.cli(Arguments).results, "scaling", *page())
