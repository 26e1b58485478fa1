"""Seconds per clip on machines that are not at hand: from counts of FLOPs, bytes and links.

    python -m experiments.bench.scaling

writes experiments/results/scaling.md and .json. Nothing is measured here. What the assumptions
are worth is seen from the share of peak that published runs of the same models imply.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import tyro

from experiments.studies_report import table
from ic_jax import cost
from ic_jax.models.variants import VARIANTS, Variant

MODELS = "Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B"
BF16, FLOAT32 = 2, 4

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


class Layout(NamedTuple):
    """clips × sequence chips; each weight is spread over `weights` of them and gathered for use."""

    clips: int
    sequence: int
    weights: int

    def __str__(self) -> str:
        return f"{self.clips} × {self.sequence} × {self.weights}"


# Work of one chip -----------------------------------------------------------------


def step_flops(sizes: Variant, layout: Layout) -> float:
    """FLOPs of one chip in one step: two calls of the transformer, with and without the prompt."""
    return 2 * cost.dit_flops(sizes.dit, _grid(sizes)) / layout.sequence


def step_bytes(sizes: Variant, layout: Layout) -> float:
    """Bytes that one chip moves to and from its memory in one step.

    All weights once; what matrix products read and write, in bf16, and as much again for norms,
    rotations and residual sums between them.
    """
    layers = cost.dit_layers(sizes.dit, _grid(sizes))
    activations = 2 * BF16 * 2 * sum(layer.values for layer in layers) / layout.sequence
    return BF16 * cost.parameters(layers) + activations


def vae_flops(sizes: Variant, layout: Layout) -> float:
    """FLOPs of one chip for an encode and a decode, rows of the frame over the sequence chips."""
    halves = cost.vae_layers(sizes.vae, (sizes.frames, sizes.height, sizes.width))
    return sum(map(cost.flops, halves)) / layout.sequence


# Bytes over links, and how long they take --------------------------------------


def exchange(sizes: Variant, layout: Layout, machine: Machine) -> tuple[str, float]:
    """How tokens attend across chips: the way, and the seconds of one step on the links."""
    n, rate = layout.sequence, CHIPS[machine.chip].link_rate
    if n == 1:
        return "-", 0.0
    tokens = cost.token_count(sizes.dit, _grid(sizes))
    shard = 2 * tokens / n * sizes.dit.dim * BF16  # both prompts' share of one tensor
    blocks = sizes.dit.num_layers
    if sizes.dit.num_heads % n:
        # Keys and values go once around, less the last hop, over one port.
        return "ring", blocks * (n - 1) * 2 * shard / rate
    # Queries, keys and values are exchanged, and the result back.
    if machine.group is None:
        return "Ulysses", blocks * 4 * shard * (n - 1) / n / rate
    # Half of all crosses the middle of the longest side, n / side links wide, in each direction:
    # n²/4 pairs of chips exchange shard / n each.
    return "Ulysses", blocks * 4 * shard * max(machine.group) / 4 / rate


def gather(sizes: Variant, layout: Layout, machine: Machine) -> float:
    """Seconds on the links to bring all weights together once per step."""
    stored = BF16 * cost.parameters(cost.dit_layers(sizes.dit, _grid(sizes)))
    arriving = stored * (layout.weights - 1) / layout.weights
    ways = 1 if machine.group is None else 2  # around a ring of neighbours in both directions
    return arriving / (ways * CHIPS[machine.chip].link_rate)


def _grid(sizes: Variant) -> tuple[int, int, int]:
    return sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]


# Memory and layout ----------------------------------------------------------------


def needed(sizes: Variant, layout: Layout) -> float:
    """Bytes of one chip: its share of weights, two blocks gathered, and the widest activations."""
    layers = cost.dit_layers(sizes.dit, _grid(sizes))
    encoder, decoder = cost.vae_layers(sizes.vae, (sizes.chunk, sizes.height, sizes.width))
    weights = BF16 * cost.parameters(layers) / layout.weights
    gathered = 2 * BF16 * cost.parameters(layers) / sizes.dit.num_layers * (layout.weights > 1)
    vae = FLOAT32 * (cost.parameters(encoder) + cost.parameters(decoder))
    work = max(
        cost.dit_memory(sizes.dit, _grid(sizes), 2, BF16),
        cost.vae_memory(encoder, chunked=True),
        cost.vae_memory(decoder, chunked=True),
    )
    return weights + gathered + vae + work / layout.sequence


def layouts(sizes: Variant, machine: Machine) -> dict[str, Layout]:
    """One clip per group of chips, for the shortest wait; and one per chip, where that fits.

    Weights are spread over as few chips as their memory allows.
    """
    group = min(8, machine.chips)
    wanted = {"soonest": (machine.chips // group, group), "most": (machine.chips, 1)}
    found = {}
    for aim, (clips, sequence) in wanted.items():
        spread = (Layout(clips, sequence, 2**k) for k in range(group.bit_length()))
        room = USABLE * CHIPS[machine.chip].memory
        fitting = [layout for layout in spread if needed(sizes, layout) <= room]
        if fitting:
            found[aim] = fitting[0]
    return found


# Prediction -----------------------------------------------------------------------


@dataclass(frozen=True)
class Prediction:
    """Seconds of one chip, in one step except where said."""

    way: str
    compute: float
    """At the chip's whole peak."""
    memory: float
    exchange: float
    gather: float
    autoencoder: float
    """Of a clip."""

    def clip(self, steps: int, share: float) -> float:
        """Seconds from a clip to its result at a share of peak; links wait for compute.

        Memory traffic hides behind compute, or compute behind it.
        """
        step = max(self.compute / share, self.memory) + self.exchange + self.gather
        return steps * step + self.autoencoder


def predict(sizes: Variant, layout: Layout, machine: Machine) -> Prediction:
    """What a step and the autoencoder cost on paper."""
    chip = CHIPS[machine.chip]
    way, seconds = exchange(sizes, layout, machine)
    return Prediction(
        way,
        step_flops(sizes, layout) / chip.flops,
        step_bytes(sizes, layout) / chip.memory_rate,
        seconds,
        gather(sizes, layout, machine),
        vae_flops(sizes, layout) / (AUTOENCODER * chip.flops),
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
    return 2 * cost.dit_flops(sizes.dit, grid) / run.seconds / peak


# Page -----------------------------------------------------------------------------


def rows(model: str) -> tuple[list[list[str]], list[dict]]:
    """The table of one model, and the same as numbers."""
    sizes = VARIANTS[model]
    shown, raw = [], []
    for name, machine in MACHINES.items():
        for aim, layout in layouts(sizes, machine).items():
            told = predict(sizes, layout, machine)
            best, modest = (told.clip(sizes.steps, share) for share in (AIM, MODEST))
            memory = needed(sizes, layout)
            shown.append([
                name, str(layout), told.way, f"{memory / 1e9:.1f}", f"{told.compute / AIM:.3f}",
                f"{told.memory:.3f}", f"{told.exchange:.3f}", f"{told.gather:.3f}",
                f"{told.autoencoder:.1f}", f"{best:.0f} to {modest:.0f}",
                f"{3600 * layout.clips / modest:.0f} to {3600 * layout.clips / best:.0f}",
            ])
            raw.append({
                "model": model, "machine": name, "aim": aim, "layout": layout._asdict(),
                "bytes": memory, **vars(told), "clip_seconds": [best, modest],
            })
    return shown, raw


HEAD = [
    "machine", "clips × sequence × weights", "attention", "GB per chip", "compute", "memory",
    "exchange", "gather", "encode, decode", "seconds per clip", "clips per hour",
]  # fmt: skip

ASSUMED = f"""
Assumptions, all of them:

* 81 frames of 480×832, the recommended number of steps, guidance as a batch of two. The mask
  `mean`, which asks the autoencoder nothing; the text encoder, loading and compiling are left out.
* FLOPs by `ic_jax.cost`: matrix products, 2 per multiply-add. *Compute* is a step at
  {AIM:.0%} of the bf16 peak; seconds per clip run from there to {MODEST:.0%}.
* *Memory*: all weights once a step, what matrix products read and write in bf16, and as much again
  between them; attention is fused. The larger of compute and memory counts.
* *Exchange*, per block and step: Ulysses where the heads divide by the sequence chips (queries,
  keys, values and the result, all to all; half of it crosses the middle of the grid), a ring where
  they do not (keys and values visit every chip). *Gather*: all weights once a step. Nothing of
  either overlaps with compute, which good programs do: the ring above all.
* A slice of a few chips has no wrap-around links. On a pod, groups of 2×4 chips work on a clip
  each, and groups have nothing to say to each other.
* The autoencoder splits by rows of the frame over the sequence chips and runs at
  {AUTOENCODER:.0%} of the bf16 peak: what 0.8 s for a decode of 720p on v6e-8 comes to
  (maxdiffusion, PR 464).
* Weights are spread over as few chips as leaves room: at most {USABLE:.0%} of a chip's memory.
  Two rows per machine: all chips of a group on one clip, and one clip per chip where that fits.
"""


def page(results: Path) -> str:
    """Writes the page and its numbers; returns the page."""
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
    (results / "scaling.md").write_text(text)
    (results / "scaling.json").write_text(json.dumps(raw, indent=1) + "\n")
    return text


@dataclass
class Arguments:
    """Predict seconds per clip on machines that are not at hand."""

    results: Path = Path("experiments/results")


if __name__ == "__main__":
    print(page(tyro.cli(Arguments).results))
