"""What the evaluation says: tables, paired intervals, and a verdict per target."""

import importlib.metadata
import json
import platform
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from experiments.intervals import bootstrap
from experiments.rounding import rounded
from experiments.spectrum import FEWEST_GRADIENTS, OCTAVES
from experiments.tables import table

MAIN = "mean, bayes_draw"
PLAIN = "no consistency"
ROUND_TRIP = "VAE round trip of the filled warp"
TRUTH_TRIP = "VAE round trip of the truth"
DELIVERED = "mean, bayes_draw, seen pixels shown"
PUSH_PULL = "warp, push-pull"
OTHER_FRAMES = "warp, other frames, push-pull"
ARMS = {
    MAIN: ("mean", "bayes_draw"),
    PLAIN: ("mean", "none"),
    "mean, bayes_dds": ("mean", "bayes_dds"),
    "mean, dds": ("mean", "dds"),
    "response, bayes_dds": ("response", "bayes_dds"),
    "response, bayes_draw": ("response", "bayes_draw"),
    "response_open, bayes_draw": ("response_open", "bayes_draw"),
    "nearest, bayes_draw": ("nearest", "bayes_draw"),
    "min, bayes_draw": ("min", "bayes_draw"),
    "encoded, bayes_draw": ("encoded", "bayes_draw"),
}
"""Mask and consistency rule of everything that is sampled."""

# Half the usual width: frames of 64 x 96 pixels are small.
SEAM_PIXELS = 4
ROUND_TRIP_TARGET_DB = 25.0
VISIBLE_TARGET_DB = 1.5
COLUMNS = {
    "visible": "visible",
    "seam": "seam",
    "hole": "hole, one sample",
    "hole_of_mean": "hole, mean of n",
    "spectrum": "spectrum distance",
}

Records = list[dict]


class Facts(NamedTuple):
    """Where the numbers come from."""

    command: str
    steps: int
    trained: str


class Verdict(NamedTuple):
    target: str
    outcome: str  # Met, Not met, or Undecided where the interval holds both
    found: str


def report(records: Records, natural: list[float], facts: Facts) -> tuple[str, str]:
    """The page in Markdown and the raw numbers in JSON."""
    verdicts = judge(records)
    seconds = sum(record["seconds"] for record in records)
    device = f"{jax.devices()[0].device_kind} ({platform.processor() or platform.machine()})"
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "numpy"))
    page = "\n".join([
        "# Re-capture of held-out scenes with known true views", "",
        f"`{facts.command}`", "",
        f"{len(records)} scenes, {facts.steps} steps; model trained for {facts.trained}."
        f" {device}, {versions}, {seconds:.0f} seconds for the scenes.", "",
        f"Cameras in turn: {_cameras(records)}. Holes: {_spread(_each(records, 'holes'), 1e2, 0)}"
        " % of the pixels (mean / median / least). Cells are mean / median / worst.", "",
        "## Verdicts", "",
        *(f"- **{v.outcome}**: {v.target}. {v.found}." for v in verdicts),
        "", "## Autoencoder", "",
        "Round trip PSNR in dB. Held-out scenes: "
        f"{_spread(_each(records, 'round_trip_psnr_db'))}; held-out natural clips"
        f" ({len(natural)}): {_spread(np.array(natural))}.", "",
        "## Against the truth", "", *_table(records),
        f"PSNR in dB: higher is better. Hole: seen by less than a half; seam: seen, within"
        f" {SEAM_PIXELS} pixels of a hole, and part of visible. The first two rows are the warp"
        " itself; n is the number of samples whose mean, taken in pixels, fills the hole."
        " Spectrum distance in dB: lower is better, root mean square over octaves (boxes of"
        f" {', '.join(map(str, OCTAVES))} pixels) of the ratio of mean squared gradients inside"
        f" the hole, one sample each; octaves with fewer than {FEWEST_GRADIENTS} gradients are"
        " left out. The last row is the first method's samples as they are delivered: where the"
        " source saw a pixel, the warped pixel itself is shown.", "",
        "## Paired differences", "",
        "Mean gain over scenes with 95 % bootstrap intervals: positive where the first method has"
        " more PSNR or less spectrum distance; and the share of scenes in which it is.", "",
        *_differences(records),
        "![scenes](recapture.png)", "",
        "Last frames: truth, warp (holes magenta), push-pull, one sample, mean of samples.", "",
    ])  # fmt: skip
    raw = {
        "facts": facts._asdict(),
        "verdicts": [verdict._asdict() for verdict in verdicts],
        "natural_round_trip_psnr_db": natural,
        "scenes": records,
    }
    return page, json.dumps(rounded(raw)) + "\n"


# Figures --------------------------------------------------------------------------


def figure(records: Records, row: str, name: str, samples: int | None = None) -> np.ndarray:
    """One number per scene; the mean of the first `samples` samples, or of all."""
    values = [record["rows"][row][name] for record in records]
    if name == "hole_of_mean":
        values = [by_count[(samples or len(by_count)) - 1] for by_count in values]
    return np.array(values)


def gain(
    records: Records, better: str, than: str, name: str, samples: int | None = None
) -> np.ndarray:
    """How much better one row is than another, per scene: more PSNR, or less distance."""
    sign = -1 if name == "spectrum" else 1
    return sign * (
        figure(records, better, name, samples) - figure(records, than, name, samples)
    )


def count(records: Records, row: str) -> int:
    """How many samples a row has."""
    return len(records[0]["rows"][row]["hole_of_mean"])


def judge(records: Records) -> list[Verdict]:
    """The issue's targets, one by one."""
    trip = _each(records, "round_trip_psnr_db")
    n, few = count(records, MAIN), min(count(records, MAIN), count(records, PLAIN))
    visible = gain(records, MAIN, ROUND_TRIP, "visible")
    return [
        Verdict(f"VAE round trip of held-out scenes at least {ROUND_TRIP_TARGET_DB:.0f} dB",
                _outcome(trip.mean() >= ROUND_TRIP_TARGET_DB),
                f"{trip.mean():.2f} dB, {trip.mean() - ROUND_TRIP_TARGET_DB:+.2f} dB"),
        _beats(f"in holes, the mean of {n} samples beats push-pull in PSNR",
               _against_fixed(records, PUSH_PULL, n)),
        _beats("in holes, single samples are closer to the true gradient spectrum than push-pull",
               gain(records, MAIN, PUSH_PULL, "spectrum")),
        _beats(f"in holes, the mean of {few} samples beats that of {few} without consistency",
               gain(records, MAIN, PLAIN, "hole_of_mean", few)),
        _beats("single samples are closer to the true gradient spectrum than without consistency",
               gain(records, MAIN, PLAIN, "spectrum")),
        Verdict(f"in the visible region, within {VISIBLE_TARGET_DB} dB of the VAE round trip of"
                " the filled warp", _outcome(visible.mean() >= -VISIBLE_TARGET_DB),
                f"{bootstrap(visible)} dB, worst scene {visible.min():+.2f} dB"),
        *_continuous_mask(records),
    ]  # fmt: skip


def _against_fixed(records: Records, fixed: str, samples: int) -> np.ndarray:
    ours = figure(records, MAIN, "hole_of_mean", samples)
    return ours - figure(records, fixed, "hole_of_mean", 1)


def _beats(target: str, gains: np.ndarray) -> Verdict:
    """Decided when the interval of the mean gain leaves zero out."""
    interval = bootstrap(gains)
    outcome = _outcome(interval.mean > 0) if interval.decided else "Undecided"
    return Verdict(target, outcome, f"{interval} dB")


def _outcome(met: bool) -> str:
    return "Met" if met else "Not met"


def _continuous_mask(records: Records) -> list[Verdict]:
    """The best continuous mask against the best down-sampled one, in every region."""
    verdicts = []
    for name in ("visible", "seam", "hole"):
        best = lambda masks: max(
            (f"{mask}, bayes_draw" for mask in masks),
            key=lambda row: np.nanmean(figure(records, row, name)),
        )
        ours = best(("response", "response_open", "encoded"))
        theirs = best(("nearest", "mean", "min"))
        target = (
            f"the best continuous mask ({ours.split(',')[0]}) beats the best down-sampled one"
            f" ({theirs.split(',')[0]}) in PSNR: {name}"
        )
        verdicts.append(_beats(target, gain(records, ours, theirs, name)))
    return verdicts


# Layout ---------------------------------------------------------------------------


def _table(records: Records) -> list[str]:
    rows = []
    for row in records[0]["rows"]:
        samples = str(count(records, row)) if row in (*ARMS, DELIVERED) else "–"
        cells = []
        for name in COLUMNS:
            worst = np.nanmax if name == "spectrum" else np.nanmin
            cells.append(_spread(figure(records, row, name), worst=worst))
        rows.append([row, samples, *cells])
    return table(["", "n", *COLUMNS.values()], rows)


def _differences(records: Records) -> list[str]:
    n = count(records, MAIN)
    gains = [(ROUND_TRIP, "visible PSNR", gain(records, MAIN, ROUND_TRIP, "visible"))]
    for fixed in (PUSH_PULL, OTHER_FRAMES):
        gains += [
            (fixed, f"hole PSNR, mean of {n}", _against_fixed(records, fixed, n)),
            (fixed, "spectrum", gain(records, MAIN, fixed, "spectrum")),
        ]
    for rival in list(ARMS)[1:]:
        few = min(n, count(records, rival))
        gains += [
            (rival, "visible PSNR", gain(records, MAIN, rival, "visible")),
            (rival, "seam PSNR", gain(records, MAIN, rival, "seam")),
            (rival, f"hole PSNR, mean of {few}", gain(records, MAIN, rival, "hole_of_mean", few)),
            (rival, "spectrum", gain(records, MAIN, rival, "spectrum")),
        ]
    rows = []
    for rival, name, values in gains:
        won = f"{100 * np.nanmean(values > 0):.0f} %"
        rows.append([rival, name, str(bootstrap(values)), won])
    return table([f"{MAIN}, against", "in", "gain in dB", "scenes won"], rows)


def _each(records: Records, name: str) -> np.ndarray:
    return np.array([record[name] for record in records])


def _spread(
    values: np.ndarray, unit: float = 1.0, digits: int = 2, worst: Callable = np.nanmin
) -> str:
    three = np.nanmean(values), np.nanmedian(values), worst(values)
    return " / ".join(f"{unit * value:.{digits}f}" for value in three)


def _cameras(records: Records) -> str:
    return ", ".join(dict.fromkeys(record["camera"] for record in records))
