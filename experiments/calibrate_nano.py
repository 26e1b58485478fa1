"""Measure how wrong the bundled model is, and store it with the model.

    python -m experiments.calibrate_nano

What `ic-jax calibrate` does for a converted model, on rendered scenes with their captions and on
natural clips that were neither trained on nor are evaluated on. The weights stay as they are.
Run it after `experiments.train_nano export`; takes minutes.
"""

from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

from experiments.held_out import FIRST_CALIBRATION_SEED, stored_view
from experiments.natural_clips import natural_clips
from ic_jax.calibration import to_record
from ic_jax.checkpoint import load, save
from ic_jax.delivery import environment
from ic_jax.measure import measure, steps
from ic_jax.model import BUNDLED, load_uncalibrated
from ic_jax.text import embed_prompts
from ic_jax.video import to_uint8


@dataclass
class Arguments:
    """Calibrate the bundled model."""

    scenes: int = 24
    natural: int = 2
    """Clips of each of the 6 training sources: the test sources are for the studies."""
    draws: int = 2
    seed: int = 0
    data: Path = Path(".data")


def main(arguments: Arguments) -> None:
    model = load_uncalibrated("nano")
    sizes = model.variant
    size = sizes.frames, sizes.height, sizes.width
    views = [
        stored_view(arguments.data / "held_out", FIRST_CALIBRATION_SEED + i, i, *size)
        for i in tqdm(range(arguments.scenes), desc="scenes")
    ]
    natural = natural_clips("train", *size, per_source=arguments.natural)
    clips = [*(to_uint8(np.asarray(view.clip)) for view in views), *natural]
    captions = [*(view.caption for view in views), *[""] * len(natural)]
    nothing, *told = embed_prompts(BUNDLED, sizes, ["", *captions]).context
    contexts = jnp.stack([jnp.stack([nothing, one]) for one in told])
    with tqdm(total=steps(len(clips), arguments.draws), mininterval=5) as bar:
        scales, arrays = measure(
            model, clips, contexts, seed=arguments.seed, draws=arguments.draws,
            progress=lambda stage, done: bar.update(done),
        )  # fmt: skip
    measured = {
        "variant": model.name, "clips": len(clips), "draws": arguments.draws,
        "seed": arguments.seed, **environment(),
    }  # fmt: skip
    scales = {name: float(f"{scale:.4g}") for name, scale in scales.items()}
    record = {"variance_scale": scales, **to_record(arrays), "measured": measured}
    for name in ("vae.safetensors", "generator.safetensors"):
        weights, manifest = load(BUNDLED / name)
        save(BUNDLED / name, weights, manifest | {"calibration": record})
    print(f"{len(clips)} clips; scales of v: {scales}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
