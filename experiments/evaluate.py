"""Re-capture held-out scenes whose new views are known, and compare with the truth.

    python -m experiments.evaluate

writes experiments/results/recapture.md, .json and .png. Every scene's result is kept under
.data/evaluate, so that a run that was cut off goes on where it stopped.
"""

import hashlib
import json
import shlex
import sys
import time
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from jaxtyping import Array, Float, UInt8
from tqdm import tqdm

from experiments.autoencoder import decode, encode
from experiments.evaluate_report import (
    ARMS,
    DELIVERED,
    MAIN,
    OTHER_FRAMES,
    PLAIN,
    PUSH_PULL,
    ROUND_TRIP,
    SEAM_PIXELS,
    TRUTH_TRIP,
    Facts,
    report,
)
from experiments.held_out import FIRST_TEST_SEED, NewView, stored_view
from experiments.metrics import psnr_by_region, regions
from experiments.natural_clips import natural_clips
from experiments.spectrum import spectrum_distance_db
from ic_jax import pipeline
from ic_jax.checkpoint import load
from ic_jax.choices import variance_scale
from ic_jax.composite import composite
from ic_jax.fill import push_pull
from ic_jax.latent_mask import MASKS, LatentMask
from ic_jax.model import BUNDLED, Model, find_model, load_model
from ic_jax.pipeline import Observation, Scene, observe
from ic_jax.report import psnr_db
from ic_jax.settings import Settings
from ic_jax.text import embed_prompts
from ic_jax.video import to_uint8

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path("experiments/results")
SHEET_SCENES = 6
PANELS = ("truth", "warp and its holes", "push-pull", "one sample", "mean of samples")


@dataclass
class Arguments:
    """Evaluate re-capture on scenes with known true views."""

    model: str = "nano"
    """"nano" or a folder of weights."""
    scenes: int = 50
    samples: int = 8
    """Samples of the method itself."""
    plain_samples: int = 4
    """Samples without consistency."""
    other_samples: int = 1
    """Samples of each other mask and rule."""
    steps: int = 24
    data: Path = Path(".data")
    results: Path = RESULTS


# One scene ------------------------------------------------------------------------

_observe = jax.jit(observe, static_argnames=("sizes", "settings"))
_composite = jax.jit(jax.vmap(composite, (0, None, None)))


@partial(jax.jit, static_argnames=("sizes", "settings"))
def sample(
    sizes, settings, weights, context, observation: Observation, keys
) -> Float[Array, "n t h w c"]:
    """One sampled latent per key, from the same observation."""

    one = lambda key: pipeline.sample(sizes, settings, weights, context, observation, key).x
    return jax.vmap(one)(keys)


def round_trip(model: Model, clip: Float[Array, "t h w 3"]) -> Float[np.ndarray, "t h w 3"]:
    """What the autoencoder makes of a clip."""
    sizes, vae = model.variant, model.weights.vae
    return np.asarray(decode(sizes, vae, encode(sizes, vae, clip)))


class Scored(NamedTuple):
    """A scene's numbers, and what it looks like at the end of the move."""

    record: dict
    panels: UInt8[np.ndarray, "panel h w 3"]


def evaluate_scene(model: Model, arguments: Arguments, number: int) -> Scored:
    """Every row of the table for one scene; all arms start from the same noise."""
    began, sizes = time.time(), model.variant
    seed = FIRST_TEST_SEED + number
    view = stored_view(
        arguments.data / "held_out", seed, number, sizes.frames, sizes.height, sizes.width
    )
    where = regions(np.asarray(view.operator.visible), SEAM_PIXELS)
    score = partial(scores, truth=np.asarray(view.truth), where=where)
    observation, arms = sample_arms(model, arguments, view, jax.random.key(seed))

    smooth = push_pull(observation.observed, view.operator.visible)
    filled = observation.measurement.clip
    rows = {
        PUSH_PULL: smooth[None],
        OTHER_FRAMES: filled[None],
        ROUND_TRIP: round_trip(model, filled)[None],
        TRUTH_TRIP: round_trip(model, view.truth)[None],
        **arms,
        DELIVERED: _composite(arms[MAIN], observation.observed, view.operator.visible),
    }
    record = {
        "seed": seed,
        "camera": view.camera,
        "amount": view.amount,
        "holes": float(where.hole.mean()),
        "round_trip_psnr_db": psnr_db(round_trip(model, view.clip), np.asarray(view.clip)),
        "rows": {name: score(clips) for name, clips in rows.items()},
        "seconds": time.time() - began,
    }
    holes = _with_holes(observation.observed, view.operator.visible)
    shown = view.truth, holes, smooth, arms[MAIN][0], arms[MAIN].mean(0)
    return Scored(record, np.stack([to_uint8(np.asarray(clip[-1])) for clip in shown]))


def sample_arms(
    model: Model, arguments: Arguments, view: NewView, key: Array
) -> tuple[Observation, dict[str, Float[np.ndarray, "n t h w 3"]]]:
    """Warp, fill and encode once; then one set of samples per mask and rule."""
    sizes, weights = model.variant, model.weights
    scene = Scene(view.clip, view.operator)
    observation = _observe(sizes, Settings(latent_mask="response"), weights, scene, scene, key)
    # scaled out here, so that a new calibration compiles nothing anew
    variance = variance_scale(model, "response") * observation.mask.variance
    response = observation.mask._replace(variance=variance)
    measurement = observation.measurement
    context = embed_prompts(find_model(arguments.model), sizes, ["", view.caption]).context
    counts = {MAIN: arguments.samples, PLAIN: arguments.plain_samples}
    keys = jax.random.split(key, arguments.samples)

    @cache
    def mask(name: str) -> LatentMask:
        if name == "response":
            found = response
        elif name == "response_open":
            found = response._replace(coverage=jnp.minimum(1, 2 * response.coverage))
        else:
            encoder = partial(encode, sizes, weights.vae)
            found = MASKS[name](view.operator, encoder, measurement, key)
        # one shape for all masks: one program for all
        return jax.tree.map(lambda part: jnp.broadcast_to(part, measurement.latent.shape), found)

    arms = {}
    for name, (construction, rule) in ARMS.items():
        settings = Settings(consistency=rule, steps=arguments.steps)
        told = observation._replace(mask=mask(construction))
        some = keys[: counts.get(name, arguments.other_samples)]
        latents = sample(sizes, settings, weights, context, told, some)
        arms[name] = np.stack([np.asarray(decode(sizes, weights.vae, x)) for x in latents])
    return observation, arms


def scores(clips: Float[np.ndarray, "n t h w 3"], truth, where) -> dict:
    """Mean over samples of each figure; and the hole's PSNR of the mean of the first 1, 2, … n."""
    clips = np.asarray(clips)
    single = [psnr_by_region(clip, truth, where) for clip in clips]
    means = np.cumsum(clips, axis=0) / np.arange(1, len(clips) + 1)[:, None, None, None, None]
    return {
        **{name: float(np.mean([one[name] for one in single])) for name in single[0]},
        "spectrum": float(np.mean([spectrum_distance_db(c, truth, where.hole) for c in clips])),
        "hole_of_mean": [psnr_db(mean, truth, where.hole) for mean in means],
    }


def _with_holes(warped, visible):
    """Holes in a colour that no scene has."""
    seen = np.asarray(visible)[..., None]
    return seen * np.asarray(warped) + (1 - seen) * np.array([1.0, -1.0, 1.0])


# All of them ----------------------------------------------------------------------


def fingerprint(model: Model, arguments: Arguments) -> str:
    """Changes with the weights and with every setting that a scene's result depends on."""
    recipe = model.variant, sorted(model.calibration.items()), ARMS, Settings()
    digest = hashlib.sha256(repr(recipe).encode())
    for leaf in jax.tree.leaves(model.weights):
        digest.update(np.asarray(leaf).tobytes())
    counts = arguments.samples, arguments.plain_samples, arguments.other_samples, arguments.steps
    digest.update(repr(counts).encode())
    return digest.hexdigest()[:12]


def kept(folder: Path, number: int, make) -> Scored:
    """The scene's stored result, or that of `make()`, stored."""
    file = folder / f"{number:03d}.npz"
    if not file.exists():
        scored = make()
        partial_file = file.with_suffix(".partial.npz")
        np.savez(partial_file, record=json.dumps(scored.record), panels=scored.panels)
        partial_file.rename(file)
        return scored
    with np.load(file) as stored:
        return Scored(json.loads(str(stored["record"])), stored["panels"])


def natural_round_trip(model: Model) -> list[float]:
    """The autoencoder's PSNR on the held-out natural clips."""
    sizes = model.variant
    clips = natural_clips("test", sizes.frames, sizes.height, sizes.width)
    floats = (clip.astype(np.float32) / 127.5 - 1 for clip in clips)
    return [psnr_db(round_trip(model, jnp.asarray(clip)), clip) for clip in floats]


def contact_sheet(scored: list[Scored], path: Path) -> None:
    """The last frame of scenes from the whole list: truth, warp, baseline and results."""
    picks = np.unique(np.linspace(0, len(scored) - 1, SHEET_SCENES).astype(int))
    figure, axes = plt.subplots(
        len(picks), len(PANELS), figsize=(2.4 * len(PANELS), 1.75 * len(picks)), squeeze=False
    )
    for axis, label in zip(axes[0], PANELS, strict=True):
        axis.set_title(label, fontsize=10)
    for row, pick in zip(axes, picks, strict=True):
        for axis, panel in zip(row, scored[pick].panels, strict=True):
            axis.imshow(panel, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_ylabel(scored[pick].record["camera"].replace("_", " "), fontsize=9)
    figure.tight_layout(pad=0.5)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def facts(arguments: Arguments) -> Facts:
    """The command that repeats this run, and how long the model was trained."""
    command = shlex.join(["python", "-m", "experiments.evaluate", *sys.argv[1:]])
    folder = BUNDLED if arguments.model == "nano" else Path(arguments.model)
    _, manifest = load(folder / "vae.safetensors")
    stages = manifest["trained"].items()
    trained = ", ".join(f"{r['steps']} steps ({name}, {r['minutes']} min)" for name, r in stages)
    return Facts(command, arguments.steps, trained)


def main(arguments: Arguments) -> None:
    model = load_model(arguments.model)
    folder = arguments.data / "evaluate" / fingerprint(model, arguments)
    folder.mkdir(parents=True, exist_ok=True)
    scored = [
        kept(folder, number, partial(evaluate_scene, model, arguments, number))
        for number in tqdm(range(arguments.scenes), desc="scenes", mininterval=5)
    ]
    records = [one.record for one in scored]
    natural = natural_round_trip(model)
    text, summary = report(records, natural, facts(arguments))
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "recapture.md").write_text(text)
    (arguments.results / "recapture.json").write_text(summary)
    contact_sheet(scored, arguments.results / "recapture.png")
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
