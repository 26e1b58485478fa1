"""What the study of masks says: tables, paired intervals, verdicts and a plot."""

import importlib.metadata
import json
import platform
from pathlib import Path

import jax
import matplotlib
import numpy as np
from scipy.stats import spearmanr

from experiments.masks_fusion import (
    DECODED,
    FIXED,
    GAUSSIAN,
    NO_GATE,
    NO_MEASUREMENT,
    NO_PRIOR,
    ONE_CHANNEL,
    SIGMAS,
    SMALLEST,
    WHITE,
    WITH_VARIANCE,
    Calibration,
    Half,
    Study,
    fit_table,
    fixed,
    negative_log_likelihood,
    prior_facts,
    real_db,
    visible_pairs,
    white_db,
)
from experiments.masks_verdicts import REFERENCE, REGIONS, Rows, against, claims
from experiments.tables import table
from ic_jax.latent_mask import MASKS

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

DISTANCES = (4, 8, 16, 32)  # pixels from a hole

def report(
    results: Path,
    command: str,
    shipped: str,
    calibration: Calibration,
    known: Half,
    test: Half,
    pixels: list[dict[str, np.ndarray]],
    seconds: dict[str, float],
) -> None:
    """The page, the raw numbers and the plot.

    `pixels` is PSNR per arm, [level of noise, region], one per test clip; `seconds` what each
    mask takes.
    """
    contamination = {how: reach(some) for how, some in test.items()}
    prediction = predictions(known[shipped], test[shipped], calibration, shipped)
    white = {how: white_table(some, calibration, how) for how, some in test.items()}
    real = {how: real_table(some, calibration, how) for how, some in test.items()}
    facts = {sigma: prior_facts(test[shipped], sigma) for sigma in SIGMAS}
    decoded = {name: np.stack([one[name] for one in pixels]) for name in DECODED}
    verdicts = claims(contamination, white, prediction, calibration, decoded, shipped)
    scale = calibration.scales[REFERENCE]

    results.mkdir(parents=True, exist_ok=True)
    reliability(*visible_pairs(test[shipped], REFERENCE), scale[shipped], results / "masks.png")
    raw = {
        "variance_scale": {n: round(s[shipped], 4) for n, s in calibration.scales.items()},
        "scales_by_fill": calibration.scales,
        "latent_mse_by_distance": contamination,
        "prediction": prediction,
        "clean_error": {sigma: v.tolist() for sigma, v in calibration.clean_error.items()},
        "prior": {sigma: one._asdict() for sigma, one in facts.items()},
        "fusion_db": _means(white),
        "fusion_db_real_prior": _means(real),
        "decoded_psnr_db": {
            name: dict(zip(REGIONS, np.nanmean(v, (0, 1)), strict=True))
            for name, v in decoded.items()
        },
        "seconds": seconds,
        "claims": verdicts,
    }
    short = lambda text: float(f"{float(text):.4g}")
    rounded = json.loads(json.dumps(raw, default=float), parse_float=short)
    (results / "masks.json").write_text(json.dumps(rounded, indent=1) + "\n")

    fills = list(test)
    by_fill = lambda scores: [
        [name, *(_db(scores[how], name) for how in fills)]
        for name in scores[shipped] if any(name in scores[how] for how in fills)
    ]  # fmt: skip
    text = "\n".join([
        "# Latent masks on known truth", "", f"`{command}`", "",
        f"Nano model; {len(known[shipped])} clips calibrate, {len(test[shipped])} others are shown"
        " below (rendered scenes with real warps and natural clips with the same holes; neither"
        " was trained on). Latent units: variance 1."
        f" {_device()}.", "",
        f"**Scale of the response's variance: {scale[shipped]:.3f}** (with the fill in use; "
        + ", ".join(f"{how} {value:.2f}" for how, value in scale.items())
        + "). ![reliability](masks.png)", "",
        "## Every mask against the response mask", "",
        f"Each less `{REFERENCE}`, with the fill in use ({shipped}, then push-pull), paired over"
        " clips, 95 % bootstrap intervals. Latent error in dB: lower is better. PSNR of the"
        " decoded fusion against the truth's own round trip: higher is better. A verdict is"
        " passed where the interval leaves zero out. Where the gate is min(1, 2a), coverage counts"
        " below one half alone.", "",
        *table(
            ["mask", "latent, white error", "latent, generator's error", "seam PSNR", "whole PSNR",
             "encodes", "seconds"],
            against(white[shipped], real[shipped], decoded, seconds),
        ),
        "## How far a hole reaches", "",
        "Mean squared latent error in latents that hold no hole, by the pixels between them and"
        " the nearest one.", "",
        *table(
            ["fill", "0–4", "4–8", "8–16", "16–32"],
            [[how, *(f"{x:.2g}" for x in contamination[how])] for how in fills],
        ),
        "## Who predicts the error", "",
        f"Visible latents (mean coverage above ½), fill: {shipped}, then push-pull. Spearman's"
        " rank correlation of prediction and squared error; Gaussian negative log-likelihood in"
        " nats, through a table of 12 bins fitted on the calibration clips, and for the variance"
        " itself at scale 1 → calibrated.", "",
        *table(["mask", "Spearman", "NLL by table", "NLL of v", "scale"],
               _prediction_rows(prediction)),
        "## What it is worth: an estimate with white error", "",
        "Latent error in dB of (1 - h) estimate + h measurement, the estimate wrong by white"
        f" noise: mean over deviations r = {', '.join(map(str, WHITE))}, and over clips, holes"
        " included.", "",
        *table(["weight", *fills], by_fill(white)),
        "## What it is worth: the generator's own estimate", "",
        "The same, with the clean estimate that the generator makes of the noised true latent,"
        " told the caption (natural clips: nothing), and with r² per noise level and channel from"
        f" the calibration clips. Mean over σ = {', '.join(map(str, SIGMAS))}. The generator sees"
        " the noised truth inside holes as well, so its error there is that of hard content, not"
        " of a hole it has had to invent.", "",
        *table(["σ", "error², seen latents", "hidden latents", "ratio",
                "correlation of neighbours in a row", "in time", "with the measurement's error"],
               _prior_rows(facts)),
        *table(["weight", *fills], by_fill(real)),
        "## Decoded", "",
        "PSNR in dB of the fusion with the generator's estimate, decoded, against the truth's own"
        " round trip; fill in use, mean over σ and clips; seam: seen, within 8 pixels of a hole."
        " The last columns are the seam by noise level.", "",
        *table(["weight", *REGIONS, *(f"seam, σ = {sigma}" for sigma in SIGMAS)],
               _decoded_rows(decoded)),
        "## A first study's claims", "",
        "Differences in dB are of the table with white error (negative: the claim's first is"
        " better), with 95 % paired bootstrap intervals over clips.", "",
        *table(["claim", "here", "verdict"], verdicts),
    ])  # fmt: skip
    (results / "masks.md").write_text(text)
    print(text)


# The numbers ----------------------------------------------------------------------


def reach(some: list[Study]) -> list[float]:
    """Mean squared error in latents without a hole of their own, by distance to one."""
    error = np.concatenate([(study.error**2).mean(-1).ravel() for study in some])
    distance = np.concatenate([study.distance.ravel() for study in some])
    bounds = zip((0, *DISTANCES[:-1]), DISTANCES, strict=True)
    return [float(np.mean(error[(distance > low) & (distance <= high)])) for low, high in bounds]


def predictions(known: list[Study], test: list[Study], calibration: Calibration, how: str) -> dict:
    """How well each mask predicts the error, as it is and through a table of 12 bins."""
    found = {}
    for name in MASKS:
        predicted, actual = visible_pairs(test, name)
        table = fit_table(*visible_pairs(known, name))
        found[name] = {
            "spearman": float(spearmanr(predicted, actual).statistic),
            "nll_table": negative_log_likelihood(table(predicted), actual),
        }
        if name in WITH_VARIANCE:
            scale = calibration.scales[name][how]
            found[name] |= {
                "nll": negative_log_likelihood(scale * predicted, actual),
                "nll_scale_1": negative_log_likelihood(predicted, actual),
                "scale": scale,
            }
    return found


def white_table(some: list[Study], calibration: Calibration, how: str) -> dict[str, np.ndarray]:
    """Latent error of every weight, per case, with white errors."""
    names = NO_MEASUREMENT, NO_PRIOR, *MASKS, ONE_CHANNEL, NO_GATE, "oracle"
    found = {n: white_db(some, w) for n, w in calibration.arms(how, names).items()}
    return found | {FIXED: _best_fixed(lambda w: white_db(some, w), calibration, how)}


def real_table(some: list[Study], calibration: Calibration, how: str) -> dict[str, np.ndarray]:
    """The same with the generator's."""
    names = NO_MEASUREMENT, NO_PRIOR, *MASKS, ONE_CHANNEL, NO_GATE, GAUSSIAN, "oracle"
    priors = calibration.real()
    found = {n: real_db(some, w, priors) for n, w in calibration.arms(how, names).items()}
    return found | {FIXED: _best_fixed(lambda w: real_db(some, w, priors), calibration, how)}


def _best_fixed(score, calibration: Calibration, how: str) -> np.ndarray:
    """The best of the fixed weights, chosen on the very clips it is shown on."""
    scale = calibration.scales[REFERENCE][how]
    return min((score(fixed(REFERENCE, scale, r**2)) for r in WHITE), key=np.mean)


# The page -------------------------------------------------------------------------


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


def _prediction_rows(prediction: dict) -> Rows:
    rows = []
    for name, row in prediction.items():
        cells = ["–", "–"]
        if "nll" in row:
            cells = [f"{row['nll_scale_1']:.2f} → {row['nll']:.2f}", f"{row['scale']:.2f}"]
        rows.append([name, f"{row['spearman']:.2f}", f"{row['nll_table']:.2f}", *cells])
    return rows


def _prior_rows(facts: dict) -> Rows:
    return [
        [f"{sigma}", f"{f.variance_seen:.3f}", f"{f.variance_hidden:.3f}",
         f"{f.variance_hidden / f.variance_seen:.2f}", f"{f.across:.2f}", f"{f.along:.2f}",
         f"{f.measured:.2f}"]
        for sigma, f in facts.items()
    ]  # fmt: skip


def _decoded_rows(decoded: dict[str, np.ndarray]) -> Rows:
    seam = REGIONS.index("seam")
    return [
        [name, *(f"{x:.2f}" for x in (*np.nanmean(v, (0, 1)), *np.nanmean(v[..., seam], 0)))]
        for name, v in decoded.items()
    ]


def _db(table: dict[str, np.ndarray], name: str) -> str:
    return f"{table[name].mean():.2f}" if name in table else ""


def _means(tables: dict[str, dict[str, np.ndarray]]) -> dict:
    return {how: {name: v.mean() for name, v in table.items()} for how, table in tables.items()}


def _device() -> str:
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "numpy", "scipy"))
    processor = platform.processor() or platform.machine()
    return f"{jax.devices()[0].device_kind} ({processor}), {versions}"
