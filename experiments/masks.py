"""Which mask knows best how wrong the measured latents are, and what is it worth?

    python -m experiments.masks

Clips whose truth is known get the holes of real warps, are filled and encoded; the error is what
the encoding of the whole clip says it is. The first half calibrates (scenes, natural clips), the
second half (others) is what the tables show. No sampling: the measurement is fused once with an
estimate of known quality, and the result decoded, so that the masks are compared and nothing else.
Writes experiments/results/masks.md, .json and .png. What was measured of each case is kept under
.data/masks, so that a run that was cut off goes on where it stopped.
"""

import hashlib
import shlex
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float
from scipy.ndimage import distance_transform_edt
from tqdm import tqdm

from experiments.autoencoder import decode, encode
from experiments.held_out import FIRST_CALIBRATION_SEED, stored_view
from experiments.masks_fusion import DECODED, SIGMAS, Calibration, Study, calibrate, fused_errors
from experiments.masks_report import report
from experiments.metrics import psnr_by_region, regions
from experiments.natural_clips import natural_clips
from ic_jax.expert import denoiser_of, expert
from ic_jax.fill import fill, push_pull
from ic_jax.geometry.camera import Camera, intrinsics_from_fov
from ic_jax.geometry.warp import WarpOperator, warp_operator
from ic_jax.latent_mask import MASKS, LatentMask, MaskConstruction, Measurement, frame_groups
from ic_jax.model import Model, find_model, load_model
from ic_jax.sampling.schedule import TRAIN_TIMESTEPS, Level
from ic_jax.settings import Settings
from ic_jax.text import embed_prompts

FILLS = ("black", "grey", "push-pull", "other frames")
SHIPPED = "other frames"
# The content of the hole decides; the others are the same for every fill.
BY_FILL = ("response", "jacobian")
# Made from the others' results, on the calibration half.
FITTED = ("kernel", "response_open")  # from coverage, and from what the response says


@dataclass
class Arguments:
    """Compare latent masks on known truth; calibrate the response mask."""

    model: str = "nano"
    """"nano" or a folder of weights."""
    scenes: int = 8
    """Rendered clips in each half."""
    natural: int = 4
    """Natural clips in each half."""
    data: Path = Path(".data")
    """Folder of rendered scenes, and of what was measured before."""
    results: Path = Path("experiments/results")


# Cases ----------------------------------------------------------------------------


class Case(NamedTuple):
    """A true clip, the warp whose holes it gets, and the source that fills them."""

    truth: Float[Array, "t h w 3"]
    operator: WarpOperator
    source: Float[Array, "t h w 3"]
    caption: str


def cases(model: Model, arguments: Arguments) -> tuple[list[Case], list[Case]]:
    """Calibration and test cases: each `scenes` rendered and about `natural` natural clips.

    A scene's truth is the new camera's true view, so that its holes and what other frames
    know of them are real, while the warp's own small errors stay out of the comparison. A
    natural clip takes over the holes of a scene, as an inpainting task, and has no caption.
    """
    sizes, scenes = model.variant, arguments.scenes
    size = sizes.frames, sizes.height, sizes.width
    views = [
        stored_view(arguments.data / "held_out", FIRST_CALIBRATION_SEED + i, i, *size)
        for i in tqdm(range(2 * scenes), desc="scenes", mininterval=5)
    ]
    rendered = [Case(view.truth, view.operator, view.clip, view.caption) for view in views]
    # 4 test sources, one after the other: two for calibration, two others for the test
    per_source = -(-arguments.natural // 2)
    clips = jnp.asarray(natural_clips("test", *size, per_source=per_source), jnp.float32)
    clips = clips / 127.5 - 1
    patterns = [case.operator.visible for case in rendered]
    borrowed = [_inpainting(clip, patterns[i % len(patterns)]) for i, clip in enumerate(clips)]
    half = len(borrowed) // 2
    return rendered[:scenes] + borrowed[:half], rendered[scenes:] + borrowed[half:]


def _inpainting(clip: Float[Array, "t h w 3"], visible: Float[Array, "t h w"]) -> Case:
    frames, height, width = visible.shape
    still = jnp.broadcast_to(jnp.eye(4), (frames, 4, 4))
    lens = jnp.broadcast_to(intrinsics_from_fov(60, height, width), (frames, 3, 3))
    camera = Camera(still, lens)
    operator = _still_operator(jnp.ones_like(visible), camera, camera, keep=visible > 0.5)
    return Case(clip, operator, clip, "")


_still_operator = jax.jit(warp_operator)


# Measurements ---------------------------------------------------------------------

_fill = jax.jit(fill)


@partial(jax.jit, static_argnums=(0, 1))
def _mask(name: str, sizes, vae, operator, measurement: Measurement, key: Array) -> LatentMask:
    return MASKS[name](operator, partial(encode, sizes, vae), measurement, key)


@partial(jax.jit, static_argnums=0)
def _clean(sizes, weights, context, x: Float[Array, "t h w c"], level: Level):
    denoise = denoiser_of(expert(sizes, Settings(), "dit", weights, context, None))
    return denoise(x, level).clean


def oracle(truth: Float[Array, "t h w c"]) -> MaskConstruction:
    """The mask that knows the true latent: v is this very measurement's squared error."""

    def construct(operator, encode, measurement: Measurement, key: Array) -> LatentMask:
        a, _ = MASKS["mean"](operator, encode, measurement, key)
        return LatentMask(a, (measurement.latent - truth) ** 2)

    return construct


def filled(case: Case, how: str) -> Float[Array, "t h w 3"]:
    """The true clip with its holes filled in one of the four ways."""
    visible = case.operator.visible[..., None]
    content = {
        "black": lambda: -jnp.ones_like(case.truth),
        "grey": lambda: jnp.zeros_like(case.truth),
        "push-pull": lambda: push_pull(case.truth, case.operator.visible),
        "other frames": lambda: _fill(
            case.operator, case.source, case.truth * visible, case.operator.visible
        ),
    }[how]()
    return visible * case.truth + (1 - visible) * content


def measure(model: Model, case: Case, context: Float[Array, "2 l d"], key: Array) -> dict:
    """Every fill's error, every construction's opinion of it, and the generator's own error."""
    sizes, weights = model.variant, model.weights
    truth = encode(sizes, weights.vae, case.truth)
    found = {"truth": truth, "visible": case.operator.visible}
    masks, seconds = {}, {}
    for how in FILLS:
        clip = filled(case, how)
        measurement = Measurement(clip, encode(sizes, weights.vae, clip))
        found[f"error/{how}"] = measurement.latent - truth
        masks[f"{how}/oracle"] = oracle(truth)(case.operator, None, measurement, key)
        for name in (name for name in MASKS if name not in FITTED):
            if how == FILLS[0] or name in BY_FILL:
                began = time.time()
                made = _mask(name, sizes, weights.vae, case.operator, measurement, key)
                masks[f"{how}/{name}"] = jax.block_until_ready(made)
                seconds[name] = time.time() - began
            else:
                masks[f"{how}/{name}"] = masks[f"{FILLS[0]}/{name}"]
    noise = jax.random.normal(key, truth.shape)
    for sigma in SIGMAS:
        level = Level(*jnp.float32([sigma, 0, TRAIN_TIMESTEPS * sigma]))
        x = (1 - sigma) * truth + sigma * noise
        found[f"prior/{sigma}"] = _clean(sizes, weights, context, x, level) - truth
    for name, (a, v) in masks.items():
        found |= {f"coverage/{name}": a, f"variance/{name}": v}
    return jax.device_get(found | {f"seconds/{name}": s for name, s in seconds.items()})


def study(found: dict[str, np.ndarray], how: str) -> Study:
    """One fill of what was measured."""
    names = (*(name for name in MASKS if name not in FITTED), "oracle")
    error = found[f"error/{how}"]
    masks = {
        name: LatentMask(found[f"coverage/{how}/{name}"], found[f"variance/{how}/{name}"])
        for name in names
    }
    a, v = masks["response"]
    return Study(
        truth=found["truth"],
        error=error,
        priors={sigma: found[f"prior/{sigma}"] for sigma in SIGMAS},
        masks=masks | {"response_open": LatentMask(np.minimum(2 * a, 1), v)},
        visible=found["visible"],
        distance=_distance(found["visible"], error.shape),
    )


def _distance(visible, shape):
    t, h, w, _ = shape
    groups = np.asarray(frame_groups(visible, t)).min(1)
    apart = np.stack([
        distance_transform_edt(group > 0.999) if (group <= 0.999).any()
        else np.full(group.shape, np.inf) for group in groups
    ])  # fmt: skip
    blocks = apart.reshape(t, h, groups.shape[1] // h, w, groups.shape[2] // w).min((2, 4))
    return np.where(blocks > 0, blocks, np.nan)


def decoded(model: Model, one: Study, calibration: Calibration) -> dict[str, np.ndarray]:
    """PSNR by region of every fusion, decoded, against the truth's own round trip.

    Per arm: [level of noise, region].
    """
    clip = lambda latent: np.asarray(decode(model.variant, model.weights.vae, latent))
    where, ceiling = regions(one.visible), clip(one.truth)
    scores = lambda e: list(psnr_by_region(clip(one.truth + e), ceiling, where).values())
    return {
        name: np.array([scores(e) for e in fused_errors(one, weight, calibration.real())])
        for name, weight in calibration.arms(SHIPPED, DECODED).items()
    }


# All of them ----------------------------------------------------------------------


def kept(file: Path, make) -> dict[str, np.ndarray]:
    """What is stored, or what `make()` returns, stored."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_suffix(".partial.npz")
        np.savez(partial_file, **{name.replace("/", "|"): leaf for name, leaf in make().items()})
        partial_file.rename(file)
    with np.load(file) as stored:
        return {name.replace("|", "/"): stored[name] for name in stored}


def fingerprint(model: Model, *more) -> str:
    """Changes with the weights, and with all else that the results depend on."""
    digest = hashlib.sha256(repr((model.variant, *MASKS, FILLS, SIGMAS, *more)).encode())
    for leaf in jax.tree.leaves(model.weights._replace(calibration=None)):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


def measure_all(model: Model, arguments: Arguments, folder: Path) -> list[list[dict]]:
    """What was measured of the calibration and of the test clips."""
    halves = cases(model, arguments)
    prompts = ["", *(case.caption for half in halves for case in half)]
    nothing, *captions = embed_prompts(find_model(arguments.model), model.variant, prompts).context
    bar = tqdm(total=len(captions), desc="measure", mininterval=5)
    found = []
    for half in halves:
        found.append([])
        for case in half:
            number = bar.n
            context = jnp.stack([nothing, captions[number]])
            make = partial(measure, model, case, context, jax.random.key(number))
            found[-1].append(kept(folder / f"case_{number:03d}.npz", make))
            bar.update()
    return found


def main(arguments: Arguments) -> None:
    model = load_model(arguments.model)
    folder = arguments.data / "masks" / fingerprint(model, arguments.scenes, arguments.natural)
    found = measure_all(model, arguments, folder)
    halves = [{how: [study(one, how) for one in half] for how in FILLS} for half in found]
    calibration, (known, test) = calibrate(halves)
    mark = fingerprint(model, repr(calibration), DECODED)
    pixels = [
        kept(folder / f"decoded_{mark}_{i:03d}.npz", partial(decoded, model, one, calibration))
        for i, one in enumerate(tqdm(test[SHIPPED], desc="decode", mininterval=5))
    ]
    seconds = {
        name: float(np.median([one[f"seconds/{name}"] for half in found for one in half]))
        for name in MASKS if name not in FITTED
    }  # fmt: skip
    command = shlex.join(["python", "-m", "experiments.masks", *sys.argv[1:]])
    report(arguments.results, command, SHIPPED, calibration, known, test, pixels, seconds)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
