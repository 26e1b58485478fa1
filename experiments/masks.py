"""Which mask knows best how wrong the measured latents are? And the scale of its variance.

    python -m experiments.masks --vae .data/vae.safetensors

needs the autoencoder alone. Clips whose truth is known get the holes of real warps, are filled
and encoded; the error is what the encoding of the whole clip says it is. The first half
calibrates, the second half (other scenes, other natural clips) is what the tables show. Writes
experiments/results/masks.md, masks.json (whose `response_scale` the exporter stores with the
model) and masks.png.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import tyro
from jaxtyping import Array, Float
from scipy.ndimage import distance_transform_edt
from scipy.stats import spearmanr
from tqdm import tqdm

from experiments.held_out import FIRST_CALIBRATION_SEED, stored_view
from experiments.intervals import bootstrap
from experiments.natural_clips import natural_clips
from ic_jax.checkpoint import load
from ic_jax.fill import fill, push_pull
from ic_jax.geometry.camera import Camera, intrinsics_from_fov
from ic_jax.geometry.warp import WarpOperator, warp_operator
from ic_jax.latent_mask import MASKS, LatentMask, Measurement, coverage, frame_groups
from ic_jax.models import wan_vae
from ic_jax.models.variants import VARIANTS

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

RESULTS = Path("experiments/results")
NANO = VARIANTS["nano"]
FILLS = ("black", "grey", "push-pull", "other frames")
SHIPPED = "other frames"
DISTANCES = (4, 8, 16, 32)  # pixels from a hole
PRIORS = (0.1, 0.3, 0.6, 1.0)  # r: how wrong the generator's own estimate may be
SMALLEST = 1e-6  # variances below it are the encoder's rounding


class Case(NamedTuple):
    """A true clip, the warp whose holes it gets, and the source that fills them."""

    truth: Float[Array, "t h w 3"]
    operator: WarpOperator
    source: Float[Array, "t h w 3"]


class Study(NamedTuple):
    """What one fill of one case leaves, per latent (or broadcasting over channels)."""

    error: Float[np.ndarray, "t h w c"]
    """(E(filled) - E(truth))²."""
    masks: dict[str, LatentMask]
    coverage: Float[np.ndarray, "t h w 1"]
    distance: Float[np.ndarray, "t h w"]
    """Pixels to the nearest hole in the latent's own frames; nan in latents that touch one."""


# Cases ----------------------------------------------------------------------------


def cases(data: Path, scenes: int, natural: int) -> tuple[list[Case], list[Case]]:
    """Calibration and test cases: each `scenes` rendered and about `natural` natural clips.

    A scene's truth is the new camera's true view, so that its holes and what other frames
    know of them are real, while the warp's own small errors stay out of the comparison. A
    natural clip takes over the holes of a scene, as an inpainting task.
    """
    size = NANO.frames, NANO.height, NANO.width
    views = [
        stored_view(data / "held_out", FIRST_CALIBRATION_SEED + i, i, *size)
        for i in tqdm(range(2 * scenes), desc="scenes", mininterval=5)
    ]
    rendered = [Case(view.truth, view.operator, view.clip) for view in views]
    # 4 test sources, one after the other: two for calibration, two others for the test
    clips = jnp.asarray(natural_clips("test", *size, per_source=-(-natural // 2)), jnp.float32)
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
    return Case(clip, operator, clip)


_still_operator = jax.jit(warp_operator)


# Measurements ---------------------------------------------------------------------


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


# The encoder is compiled once here and once inside the response's loop: inlined at every use,
# it takes minutes to compile.
@jax.jit
def _encode(params, clip):
    return wan_vae.encode(NANO.vae, params, clip[None])[0]


@jax.jit
def _response(params, operator, measurement, key):
    return MASKS["response"](operator, partial(_encode, params), measurement, key)


_fill = jax.jit(fill)


def measure(params, case: Case, key: Array, how: str):
    """Squared error of the measurement, and every construction's opinion of it."""
    encode = partial(_encode, params)
    clip = filled(case, how)
    measurement = Measurement(clip, encode(clip))
    error = (measurement.latent - encode(case.truth)) ** 2
    others = {name: construct for name, construct in MASKS.items() if name != "response"}
    masks = {name: f(case.operator, encode, measurement, key) for name, f in others.items()}
    return error, masks | {"response": _response(params, case.operator, measurement, key)}


def studies(params, some: list[Case], seed: int) -> dict[str, list[Study]]:
    """Every fill of every case."""
    found = {how: [] for how in FILLS}
    for number, case in enumerate(tqdm(some, desc="encode", mininterval=5)):
        visible = np.asarray(case.operator.visible)
        key = jax.random.key(seed + number)
        for how in FILLS:
            error, masks = jax.device_get(measure(params, case, key, how))
            share = np.asarray(coverage(visible, error.shape))
            found[how].append(Study(error, masks, share, _distance(visible, error.shape)))
    return found


def _distance(visible, shape):
    t, h, w, _ = shape
    groups = np.asarray(frame_groups(visible, t)).min(1)
    apart = np.stack([
        distance_transform_edt(group > 0.999) if (group <= 0.999).any()
        else np.full(group.shape, np.inf) for group in groups
    ])  # fmt: skip
    blocks = apart.reshape(t, h, groups.shape[1] // h, w, groups.shape[2] // w).min((2, 4))
    return np.where(blocks > 0, blocks, np.nan)


# What is compared -----------------------------------------------------------------


def visible_pairs(some: list[Study], mask: str) -> tuple[np.ndarray, np.ndarray]:
    """Predicted and actual squared error of all latents whose own pixels are mostly seen.

    A mask without variance predicts by its missing share, 1 - a, in no unit.
    """
    predicted, actual = [], []
    for study in some:
        a, v = study.masks[mask]
        guess = v if np.any(v > 0) else 1 - a
        seen = np.broadcast_to(study.coverage > 0.5, study.error.shape)
        predicted.append(np.broadcast_to(guess, study.error.shape)[seen])
        actual.append(study.error[seen])
    return np.concatenate(predicted), np.concatenate(actual)


def best_scale(predicted: np.ndarray, actual: np.ndarray) -> float:
    """Ratio of means, with every latent weighed by 1 / (1 + v): errors beyond a unit prior's
    variance change no fusion weight much, and shall not decide the scale alone."""
    weight = 1 / (1 + predicted)
    return float((weight * actual).sum() / (weight * predicted).sum())


class Table(NamedTuple):
    """Mean squared error by bins of a mask's prediction: any proxy becomes a variance."""

    edges: np.ndarray
    variance: np.ndarray

    def __call__(self, predicted: np.ndarray) -> np.ndarray:
        return self.variance[np.searchsorted(self.edges, predicted, side="right")]


def fit_table(predicted: np.ndarray, actual: np.ndarray, bins: int = 12) -> Table:
    """Bins with as many latents each, less those that ties make empty."""
    edges = np.unique(np.quantile(predicted, np.linspace(0, 1, bins + 1)[1:-1]))
    at = np.searchsorted(edges, predicted, side="right")
    count = np.bincount(at, minlength=len(edges) + 1)
    total = np.bincount(at, actual, minlength=len(edges) + 1)
    return Table(edges, np.maximum(total / np.maximum(count, 1), SMALLEST))


def negative_log_likelihood(variance: np.ndarray, actual: np.ndarray) -> float:
    """Mean of ½ (log 2πv + e²/v), in nats: lower is better."""
    variance = np.maximum(variance, SMALLEST)
    return float(0.5 * np.mean(np.log(2 * np.pi * variance) + actual / variance))


def fused_db(weight, error, r: float) -> float:
    """Latent error in dB of (1 - w) prior + w measurement, the prior being wrong by r: exact."""
    return 10 * np.log10(np.mean((1 - weight) ** 2 * r**2 + weight**2 * error))


def fusion_db(some: list[Study], weight) -> np.ndarray:
    """Mean over priors of `fused_db`, per case; `weight` is a function of (study, r)."""
    return np.array([
        np.mean([fused_db(weight(study, r), study.error, r) for r in PRIORS]) for study in some
    ])  # fmt: skip


def by_mask(name: str, scale: float = 1.0, channels: bool = True):
    """A mask's own weight h(r²), its variance scaled and, if asked, averaged over channels."""

    def weight(study: Study, r: float):
        a, v = study.masks[name]
        v = scale * (v if channels else v.mean(-1, keepdims=True))
        return np.asarray(LatentMask(a, v).weight(r**2))

    return weight


def static(name: str, scale: float, r: float):
    """The same mask, its weight fixed at one assumed prior."""
    timed = by_mask(name, scale)
    return lambda study, _: timed(study, r)


def reach(some: list[Study]) -> list[float]:
    """Mean squared error in latents without a hole of their own, by distance to one."""
    error = np.concatenate([study.error.mean(-1).ravel() for study in some])
    distance = np.concatenate([study.distance.ravel() for study in some])
    bounds = zip((0, *DISTANCES[:-1]), DISTANCES, strict=True)
    return [error[(distance > low) & (distance <= high)].mean() for low, high in bounds]


# The report -----------------------------------------------------------------------


def reliability(predicted, actual, scale: float, path: Path) -> None:
    """Predicted variance against actual squared error, before and after scaling."""
    order = np.argsort(predicted)
    bins = [b for b in np.array_split(order, 24) if predicted[b].mean() > SMALLEST]
    x = np.array([predicted[b].mean() for b in bins])
    y = np.array([actual[b].mean() for b in bins])
    figure, axes = plt.subplots(figsize=(5, 4.6), dpi=110)
    axes.loglog(x, y, "o--", color="0.6", label="as computed (scale 1)")
    axes.loglog(scale * x, y, "o-", color="C0", label=f"calibrated (scale {scale:.2f})")
    span = [min(y.min(), x.min()), max(y.max(), x.max())]
    axes.loglog(span, span, color="k", linewidth=0.8, label="perfect")
    axes.set_xlabel("predicted error variance v")
    axes.set_ylabel("actual mean squared error")
    axes.set_title("Visible latents of the test clips, 24 equal bins", fontsize=10)
    axes.legend(frameon=False, fontsize=9)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def interval(values) -> str:
    mean, low, high = bootstrap(values)
    return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]"


def rows_of(table: list[list[str]], header: str) -> list[str]:
    columns = header.split(" | ")
    lines = [columns, ["---"] * len(columns), *table]
    return ["| " + " | ".join(line) + " |" for line in lines] + [""]


def calibrate(calibration: dict[str, list[Study]]) -> dict[str, float]:
    """The scale of the response's variance, per fill."""
    return {how: best_scale(*visible_pairs(calibration[how], "response")) for how in FILLS}


def prediction_table(calibration, test) -> tuple[list[list[str]], dict]:
    """How well each mask predicts the error, as it is and through a table of 12 bins."""
    rows, raw = [], {}
    for name in MASKS:
        known, seen = visible_pairs(calibration, name), visible_pairs(test, name)
        rank = spearmanr(*seen).statistic
        through = negative_log_likelihood(fit_table(*known)(seen[0]), seen[1])
        raw[name] = {"spearman": float(rank), "nll_table": through}
        scaled = "–"
        if name == "response":
            raw[name]["nll"] = negative_log_likelihood(best_scale(*known) * seen[0], seen[1])
            raw[name]["nll_scale_1"] = negative_log_likelihood(*seen)
            scaled = f"{raw[name]['nll_scale_1']:.2f} → {raw[name]['nll']:.2f}"
        rows.append([name, f"{rank:.2f}", f"{through:.2f}", scaled])
    return rows, raw


def fusion_table(test, scales) -> tuple[list[list[str]], dict]:
    """Latent error after an ideal fusion, each mask with each fill."""
    arms = {name: {how: by_mask(name) for how in FILLS} for name in MASKS if name != "response"}
    for label, channels in (("response", True), ("response, one channel", False)):
        arms[label] = {how: by_mask("response", scales[how], channels) for how in FILLS}
    fixed = {
        r: fusion_db(test[SHIPPED], static("response", scales[SHIPPED], r)).mean() for r in PRIORS
    }
    best = min(fixed, key=fixed.get)
    arms["response, best fixed weight"] = {
        how: static("response", scales[how], best) for how in FILLS
    }
    raw = {
        label: {how: fusion_db(test[how], weights[how]) for how in FILLS}
        for label, weights in arms.items()
    }
    rows = [[label, *(f"{raw[label][how].mean():.2f}" for how in FILLS)] for label in raw]
    return rows, raw


def claims(contamination, fusion, prediction, scale) -> list[list[str]]:
    """The first study's claims, judged by this one's numbers."""
    db = lambda a, b, how=SHIPPED: fusion[a][how] - fusion[b][how]

    def wins(values) -> str:
        _, low, high = bootstrap(values)
        return "confirmed" if high < 0 else "overturned" if low > 0 else "undecided"

    ratio = np.array(contamination["black"][:3]) / np.array(contamination["push-pull"][:3])
    fills = fusion["response"][SHIPPED] - fusion["response"]["push-pull"]
    ranks = {name: np.nan_to_num(row["spearman"]) for name, row in prediction.items()}
    best_coverage = min(("nearest", "mean", "min"), key=lambda n: fusion[n][SHIPPED].mean())
    channel = db("response", "response, one channel")
    return [
        ["push-pull contaminates 20 to 45 times less than black",
         f"{ratio.min():.0f} to {ratio.max():.0f} times within 16 pixels",
         "confirmed" if ratio.min() >= 20 else "weaker" if ratio.min() > 1 else "overturned"],
        ["other frames first is a better fill than push-pull alone", f"{interval(fills)} dB",
         wins(fills)],
        ["a weight that follows the noise level beats the best fixed one (by 1.3 dB)",
         f"{interval(db('response', 'response, best fixed weight'))} dB",
         wins(db("response", "response, best fixed weight"))],
        [f"the response beats coverage alone (best here: {best_coverage})",
         f"{interval(db('response', best_coverage))} dB", wins(db("response", best_coverage))],
        ["the mask's own encoding is worse than mean down-sampling",
         f"{interval(db('mean', 'encoded'))} dB", wins(db("mean", "encoded"))],
        ["the response ranks the errors best", f"Spearman {ranks['response']:.2f} against "
         f"{max(v for k, v in ranks.items() if k != 'response'):.2f} of the next",
         "confirmed" if max(ranks, key=ranks.get) == "response" else "overturned"],
        ["channels matter little with a good fill (0.2 dB)", f"{interval(channel)} dB",
         "confirmed" if abs(channel.mean()) <= 0.5 else "overturned"],
        ["the raw variance overstates the error 2 to 3 times", f"{1 / scale:.1f} times",
         "overturned" if scale > 1 else "weaker" if scale > 1 / 2 else
         "confirmed" if scale >= 1 / 3 else "stronger"],
    ]  # fmt: skip


@dataclass
class Arguments:
    """Compare latent masks on known truth; calibrate the response mask."""

    data: Path = Path(".data")
    """Folder of what training left, and of rendered scenes."""
    vae: Path = Path(".data/vae.safetensors")
    """The autoencoder's weights."""
    scenes: int = 12
    """Rendered clips in each half."""
    natural: int = 6
    """Natural clips in each half."""
    results: Path = RESULTS


def measure_all(arguments: Arguments) -> tuple[dict[str, list[Study]], ...]:
    """The studies of the calibration and of the test clips."""
    params, _ = load(arguments.vae)
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    halves = cases(arguments.data, arguments.scenes, arguments.natural)
    return tuple(studies(params, half, 1000 * i) for i, half in enumerate(halves))


def publish(results: Path, calibration, test, seconds: float) -> None:
    """Tables, raw numbers and the plot."""
    scales = calibrate(calibration)
    scale = scales[SHIPPED]
    contamination = {how: reach(test[how]) for how in FILLS}
    prediction_rows, prediction = prediction_table(calibration[SHIPPED], test[SHIPPED])
    fusion_rows, fusion = fusion_table(test, scales)
    verdicts = claims(contamination, fusion, prediction, scale)

    results.mkdir(parents=True, exist_ok=True)
    seen = visible_pairs(test[SHIPPED], "response")
    reliability(*seen, scale, results / "masks.png")
    raw = {
        "response_scale": round(scale, 4),
        "scales_by_fill": scales,
        "latent_mse_by_distance": contamination,
        "prediction": prediction,
        "fusion_db": {k: {how: v.mean() for how, v in by.items()} for k, by in fusion.items()},
        "claims": verdicts,
    }
    short = lambda text: float(f"{float(text):.4g}")
    rounded = json.loads(json.dumps(raw, default=float), parse_float=short)
    (results / "masks.json").write_text(json.dumps(rounded, indent=1) + "\n")

    reach_rows = [[how, *(f"{x:.2g}" for x in contamination[how])] for how in FILLS]
    text = "\n".join([
        "# Latent masks on known truth", "",
        "`python -m experiments.masks`", "",
        f"Nano autoencoder, {NANO.frames}×{NANO.height}×{NANO.width};"
        f" {len(calibration[SHIPPED])} clips calibrate, {len(test[SHIPPED])} others are shown"
        " below (rendered scenes with real warps and natural clips with the same holes; neither"
        " was trained on). Latent units: variance 1."
        f" {jax.devices()[0].device_kind}, jax {jax.__version__},"
        f" {seconds:.0f} seconds.", "",
        f"**Scale of the response's variance: {scale:.3f}** (with the fill in use; "
        + ", ".join(f"{how} {value:.2f}" for how, value in scales.items())
        + "). ![reliability](masks.png)", "",
        "## How far a hole reaches", "",
        "Mean squared latent error in latents that hold no hole, by the pixels between them and"
        " the nearest one.", "",
        *rows_of(reach_rows, "fill | 0–4 | 4–8 | 8–16 | 16–32"),
        "## Who predicts the error", "",
        f"Visible latents (mean coverage above ½), fill: {SHIPPED}, then push-pull. Spearman's"
        " rank correlation of prediction and squared error; Gaussian negative log-likelihood in"
        " nats, through a table of 12 bins fitted on the calibration clips, and for the variance"
        " itself at scale 1 → calibrated.", "",
        *rows_of(prediction_rows, "mask | Spearman | NLL by table | NLL of v"),
        "## What it is worth", "",
        "Latent error in dB (lower is better) of (1 - h) prior + h measurement with h as shipped:"
        f" mean over priors wrong by r = {', '.join(map(str, PRIORS))}, and over clips, holes"
        " included.", "",
        *rows_of(fusion_rows, "mask | " + " | ".join(FILLS)),
        "## A first study's claims", "",
        "Differences in dB are this table's (negative: the claim's first is better), with 95 %"
        " paired bootstrap intervals over clips.", "",
        *rows_of(verdicts, "claim | here | verdict"),
    ])  # fmt: skip
    (results / "masks.md").write_text(text)
    print(text)


def main(arguments: Arguments) -> None:
    began = time.time()
    calibration, test = measure_all(arguments)
    publish(arguments.results, calibration, test, time.time() - began)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
