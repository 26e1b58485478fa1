"""How well prompts steer the small model: edits of held-out scenes, judged by a classifier.

    python -m experiments.adherence

writes experiments/results/adherence.md, .json and .png. Every task is done twice, with the object's
shadow under the mask and with the object alone. A third of the tasks chooses the guidance, the
others report it. Every edit's result is kept under .data/adherence, so that a run that was cut off
goes on where it stopped.
"""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
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

from experiments import classifier
from experiments.adherence_report import (
    GUIDANCES,
    NEW,
    NONE,
    NOTHING,
    OLD,
    Facts,
    Guidance,
    Part,
    best_guidance,
    report,
)
from experiments.autoencoder import decode, encode
from experiments.classifier import classify
from experiments.edit_scenes import EditTask, edit_tasks
from ic_jax.checkpoint import load
from ic_jax.choices import check, variance_scale
from ic_jax.geometry.mask import MaskOperator
from ic_jax.model import Model, find_model, load_model
from ic_jax.models.variants import Variant
from ic_jax.pipeline import Observation, Scene, finish, observe, sample
from ic_jax.report import psnr_db
from ic_jax.settings import Settings
from ic_jax.text import embed_prompts
from ic_jax.video import to_uint8

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path("experiments/results")
SHEET_TASKS = 8


@dataclass
class Arguments:
    """Measure how often an edit shows what its prompt asks for."""

    model: str = "nano"
    """"nano" or a folder of weights."""
    tasks: int = 75
    """Edits, of which the first third chooses the guidance and the others report it."""
    steps: int = 24
    latent_mask: str = Settings().latent_mask
    consistency: str = Settings().consistency
    data: Path = Path(".data")
    results: Path = RESULTS


class Arm(NamedTuple):
    """What the generator is told, against what, and how strongly."""

    prompt: str
    against: str
    scale: float


class Judged(NamedTuple):
    """One edit's numbers, and its last frame."""

    record: dict
    frame: UInt8[np.ndarray, "h w 3"]


# One edit -------------------------------------------------------------------------

_observe = jax.jit(observe, static_argnames=("sizes", "settings"))
_sample = jax.jit(sample, static_argnames=("sizes", "settings"))
_finish = jax.jit(finish, static_argnames="sizes")


def _round_trip(sizes, vae, clip: Float[Array, "t h w 3"]) -> Float[np.ndarray, "t h w 3"]:
    return np.asarray(decode(sizes, vae, encode(sizes, vae, clip)))


class Study(NamedTuple):
    """All that an edit's result depends on, besides the task's number and the arm."""

    model: Model
    judge: dict  # the classifier's parameters
    tasks: list[EditTask]
    contexts: dict[str, Float[np.ndarray, "l d"]]
    settings: Settings


class Source(NamedTuple):
    """What every arm of a task has in common."""

    observation: Observation
    round_trip_db: float  # outside the mask


def see(study: Study, number: int) -> Source:
    """Forget what is under the mask, encode the rest, and ask how far to trust each latent."""
    sizes, weights, task = study.model.variant, study.model.weights, study.tasks[number]
    clip, keep = jnp.asarray(task.clip), jnp.asarray(~task.regenerate, jnp.float32)
    scene = Scene(clip, MaskOperator(keep))
    observation = _observe(sizes, study.settings, weights, scene, scene, jax.random.key(number))
    trip = _round_trip(sizes, weights.vae, clip)
    return Source(observation, psnr_db(trip, task.clip, ~task.regenerate))


def judged(study: Study, number: int, arm: Arm, source: Source) -> Judged:
    """Make one edit, and say what it shows and what it cost outside the mask."""
    began, task = time.time(), study.tasks[number]
    sizes, weights = study.model.variant, study.model.weights
    texts = {NEW: task.captions[1], OLD: task.captions[0], NONE: "", NOTHING: ""}
    context = jnp.stack([study.contexts[texts[told]] for told in (arm.against, arm.prompt)])
    settings = replace(study.settings, guidance_scale=arm.scale)
    # all arms of a task start from the same noise
    key = jax.random.key(number)
    state = _sample(sizes, settings, weights, context, source.observation, key)
    clip = np.asarray(_finish(sizes, weights, state))
    record = {
        "task": number, **arm._asdict(), "asked": task.captions[1],
        "seen": classify(study.judge, clip, task.boxes)._asdict(),
        "before": task.looks[0]._asdict(), "after": task.looks[1]._asdict(),
        "outside_db": psnr_db(clip, task.clip, ~task.regenerate),
        "round_trip_outside_db": source.round_trip_db,
        "masked": float(task.regenerate.mean()), "seconds": time.time() - began,
    }  # fmt: skip
    return Judged(record, to_uint8(clip[-1]))


# All of them ----------------------------------------------------------------------


def kept(folder: Path, study: Study, number: int, arms: Sequence[Arm]) -> list[Judged]:
    """A task's stored results, one per arm; those that are missing are made and stored."""
    source = cache(partial(see, study, number))
    files = [folder / f"{number:03d}_{'_'.join(map(str, a))}.npz".replace(" ", "_") for a in arms]
    for file, arm in zip(files, arms):
        if not file.exists():
            made = judged(study, number, arm, source())
            partial_file = file.with_suffix(".partial.npz")
            np.savez(partial_file, record=json.dumps(made.record), frame=made.frame)
            partial_file.rename(file)
    return [_stored(file) for file in files]


def _stored(file: Path) -> Judged:
    with np.load(file) as stored:
        return Judged(json.loads(str(stored["record"])), stored["frame"])


def fingerprint(study: Study) -> str:
    """Changes with the weights, the judge, the tasks and every setting of the sampler."""
    recipe = study.model.variant, sorted(study.model.calibration.items()), study.settings
    digest = hashlib.sha256(repr(recipe).encode())
    boxes, captions = zip(*((task.boxes, task.captions) for task in study.tasks))
    digest.update(repr(captions).encode())
    masks = [task.regenerate for task in study.tasks]
    everything = study.model.weights, study.judge, study.contexts, boxes, masks
    for leaf in jax.tree.leaves(everything):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def prepare(arguments: Arguments) -> Study:
    """The model, the judge, the tasks with wide masks and their prompts' embeddings."""
    model = load_model(arguments.model)
    sizes = model.variant
    judge = classifier.trained(model, arguments.data)
    tasks = tasks_of(sizes, arguments.data, arguments.tasks, shadow=True)
    prompts = ["", *sorted({caption for task in tasks for caption in task.captions})]
    embedded = embed_prompts(find_model(arguments.model), sizes, prompts)
    contexts = dict(zip(prompts, np.asarray(embedded.context), strict=True))
    settings = Settings(
        latent_mask=arguments.latent_mask,
        consistency=arguments.consistency,
        steps=arguments.steps,
        variance_scale=variance_scale(model, arguments.latent_mask),
    )
    check(settings)
    return Study(model, judge, tasks, contexts, settings)


def tasks_of(sizes: Variant, data: Path, number: int, shadow: bool) -> list[EditTask]:
    """The tasks at the model's size, with the object's shadow under the mask or without."""
    size = sizes.frames, sizes.height, sizes.width
    return list(edit_tasks(data / "edits", number, *size, shadow))


def judge_the_judge(study: Study, data: Path) -> dict[str, list]:
    """Whether the classifier is right on true clips: its own test set, and these tasks'."""
    found = classifier.accuracy(study.judge, study.model, data)
    trip = partial(_round_trip, study.model.variant, study.model.weights.vae)
    found["true edits"] = _rights(study, lambda task: task.edited)
    found["true edits after the autoencoder"] = _rights(
        study, lambda task: trip(jnp.asarray(task.edited))
    )
    return {name: np.asarray(right).tolist() for name, right in found.items()}


def _rights(study, view):
    looks = [classify(study.judge, view(task), task.boxes) for task in study.tasks]
    return [np.equal(look, task.looks[1]) for look, task in zip(looks, study.tasks)]


def contact_sheet(
    study: Study, folder: Path, numbers: range, guidance: Guidance, path: Path
) -> None:
    """Last frames: the source with its mask, the true edit, and what each prompt made."""
    picks = np.unique(np.linspace(numbers[0], numbers[-1], SHEET_TASKS).astype(int))
    columns = ("source and mask", "true edit", NEW, OLD, NONE)
    figure, axes = plt.subplots(
        len(picks), len(columns), figsize=(2.4 * len(columns), 1.95 * len(picks)), squeeze=False
    )
    for row, number in zip(axes, picks, strict=True):
        task = study.tasks[number]
        masked = np.where(task.regenerate[-1, ..., None], 1.0, task.clip[-1])
        made = [one.frame for one in kept(folder, study, int(number), reported_arms(guidance))]
        shown = to_uint8(masked), to_uint8(task.edited[-1]), *made
        for axis, frame in zip(row, shown, strict=True):
            axis.imshow(frame, interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        row[0].set_xlabel(task.captions[1], fontsize=7, loc="left")
    for axis, label in zip(axes[0], columns, strict=True):
        axis.set_title(label, fontsize=10)
    figure.tight_layout(pad=0.5)
    figure.savefig(path, dpi=80)
    plt.close(figure)


def reported_arms(guidance: Guidance) -> tuple[Arm, ...]:
    """With no prompt there is nothing to be guided towards."""
    return Arm(NEW, *guidance), Arm(OLD, NOTHING, guidance.scale), Arm(NONE, NOTHING, 1.0)


def facts(arguments: Arguments) -> Facts:
    """The command that repeats this run, and how long the model was trained."""
    command = shlex.join(["python", "-m", "experiments.adherence", *sys.argv[1:]])
    _, manifest = load(find_model(arguments.model) / "vae.safetensors")
    stages = manifest["trained"].items()
    trained = ", ".join(f"{r['steps']} steps ({name}, {r['minutes']} min)" for name, r in stages)
    sampler = f"{arguments.latent_mask} mask, {arguments.consistency}, {arguments.steps} steps"
    return Facts(command, sampler, trained)


def run(study: Study, data: Path) -> tuple[Part, Path]:
    """Choose the guidance, then report it; also says where every edit is kept."""
    folder = data / "adherence" / fingerprint(study)
    folder.mkdir(parents=True, exist_ok=True)

    def records(numbers: range, arms: Sequence[Arm]) -> list[dict]:
        bar = tqdm(numbers, desc="tasks", mininterval=5)
        return [one.record for n in bar for one in kept(folder, study, n, arms)]

    choosing, reporting = shares(study)
    chosen = records(choosing, [Arm(NEW, *one) for one in GUIDANCES])
    guidance = best_guidance(chosen)
    return Part(chosen, records(reporting, reported_arms(guidance)), guidance), folder


def shares(study: Study) -> tuple[range, range]:
    """The tasks that choose the guidance, and those that report it."""
    third = len(study.tasks) // 3
    return range(third), range(third, len(study.tasks))


def main(arguments: Arguments) -> None:
    wide = prepare(arguments)
    with_shadow, folder = run(wide, arguments.data)
    narrow = tasks_of(wide.model.variant, arguments.data, arguments.tasks, shadow=False)
    object_alone, _ = run(wide._replace(tasks=narrow), arguments.data)
    rights = judge_the_judge(wide, arguments.data)
    text, summary = report(with_shadow, object_alone, rights, facts(arguments))
    arguments.results.mkdir(parents=True, exist_ok=True)
    (arguments.results / "adherence.md").write_text(text)
    (arguments.results / "adherence.json").write_text(summary)
    picture = arguments.results / "adherence.png"
    contact_sheet(wide, folder, shares(wide)[1], with_shadow.guidance, picture)
    print(text)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
