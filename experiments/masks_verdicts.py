"""Verdicts of the study of masks: every mask against the response mask, and older claims."""

import numpy as np

from experiments.intervals import bootstrap
from experiments.masks_fusion import COVERAGE, FIXED, NO_GATE, ONE_CHANNEL
from ic_jax.latent_mask import MASKS

REFERENCE = "response"
SAME_VARIANCE = ("response", "response_open")  # under two gates
REGIONS = ("visible", "seam", "hole", "whole")  # as experiments.metrics.regions has them
# Of the others, none.
ENCODES = {"encoded": 3, "probes": 8, "response": 8, "response_open": 8, "jacobian": 8}

Rows = list[list[str]]


def by_clip(psnr: np.ndarray, region: str) -> np.ndarray:
    """Mean over noise levels of [clip, level, region]."""
    return psnr[:, :, REGIONS.index(region)].mean(1)


def claims(contamination, white, prediction, calibration, decoded, shipped) -> Rows:
    """The first study's claims, judged by this one's numbers."""
    of = white[shipped]
    db = lambda a, b: of[a] - of[b]
    ratio = np.array(contamination["black"][:3]) / np.array(contamination["push-pull"][:3])
    fills = of["response"] - white["push-pull"]["response"]
    best_coverage = min(COVERAGE, key=lambda name: of[name].mean())
    channel = db("response", ONE_CHANNEL)
    overstated = 1 / calibration.scales["response"][shipped]
    wins = lambda values: verdict(values, "confirmed", "overturned")
    gate = by_clip(decoded[NO_GATE], "hole") - by_clip(decoded["response"], "hole")
    return [
        ["push-pull contaminates 20 to 45 times less than black",
         f"{ratio.min():.0f} to {ratio.max():.0f} times within 16 pixels",
         "confirmed" if ratio.min() >= 20 else "weaker" if ratio.min() > 1 else "overturned"],
        ["other frames first is a better fill than push-pull alone", f"{bootstrap(fills)} dB",
         wins(fills)],
        ["a weight that follows the noise level beats the best fixed one (by 1.3 dB)",
         f"{bootstrap(db('response', FIXED))} dB", wins(db("response", FIXED))],
        [f"the response beats coverage alone (best here: {best_coverage})",
         f"{bootstrap(db('response', best_coverage))} dB", wins(db("response", best_coverage))],
        ["the mask's own encoding is worse than mean down-sampling",
         f"{bootstrap(db('mean', 'encoded'))} dB", wins(db("mean", "encoded"))],
        ranking(prediction),
        ["channels matter little with a good fill (0.2 dB)", f"{bootstrap(channel)} dB",
         "confirmed" if abs(channel.mean()) <= 0.5 else "overturned"],
        ["the raw variance overstates the error 2 to 3 times", f"{overstated:.1f} times",
         "overturned" if overstated < 1 else "weaker" if overstated < 2 else
         "confirmed" if overstated <= 3 else "stronger"],
        ["the gate costs latent error (by 0.7 dB)", f"{bootstrap(db(NO_GATE, 'response'))} dB",
         wins(db(NO_GATE, "response"))],
        ["… and saves decoded holes (8 dB at r = 0.3)", f"{bootstrap(gate)} dB PSNR without it",
         wins(gate)],
    ]  # fmt: skip


def ranking(prediction: dict[str, dict]) -> list[str]:
    """Whether the response's variance ranks the errors better than any other mask does."""
    ranks = {name: np.nan_to_num(row["spearman"]) for name, row in prediction.items()}
    own = ranks["response"]
    next_best = max(value for name, value in ranks.items() if name not in SAME_VARIANCE)
    return ["the response ranks the errors best",
            f"Spearman {own:.2f} against {next_best:.2f} of the next",
            "confirmed" if own > next_best else "overturned"]  # fmt: skip


def against(white, real, decoded, seconds) -> Rows:
    """Every construction less the response; seam and whole are means over noise levels."""
    seam, whole = (
        {name: by_clip(psnr, region) for name, psnr in decoded.items()}
        for region in ("seam", "whole")
    )
    rows = []
    others = (name for name in MASKS if name != REFERENCE)
    for name in (*others, ONE_CHANNEL, NO_GATE, "oracle"):
        cells = [judged(by[name] - by[REFERENCE], "better", "worse") for by in (white, real)]
        cells += [judged(by[name] - by[REFERENCE], "worse", "better") for by in (seam, whole)]
        encodes = str(ENCODES.get(name, 0)) if name in MASKS else ""
        time = f"{seconds[name]:.2f}" if name in seconds else ""
        rows.append([name, *cells, encodes, time])
    return [*rows, [REFERENCE, *[""] * 4, str(ENCODES[REFERENCE]), f"{seconds[REFERENCE]:.2f}"]]


def verdict(values, below: str, above: str) -> str:
    """`below` or `above` zero, if the interval of the mean leaves zero out."""
    _, low, high = bootstrap(values)
    return below if high < 0 else above if low > 0 else "undecided"


def judged(values, below: str, above: str) -> str:
    return f"{bootstrap(values)} {verdict(values, below, above)}"
