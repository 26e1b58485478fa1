"""What a study says: a table, paired gains over the default with intervals, and a plot."""

import json
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from jaxtyping import Float

from experiments.intervals import bootstrap
from experiments.rounding import rounded
from experiments.tables import table
from ic_jax.delivery import environment
from ic_jax.model import Model

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

Scores = dict[str, list[dict]]

REGIONS = ("visible", "seam", "hole")
GAINS = (*REGIONS, "spectrum")  # a blur wins PSNR in a hole, and loses there
COLUMNS = {
    "visible": ("visible", "{:.2f}"),
    "seam": ("seam", "{:.2f}"),
    "hole": ("hole", "{:.2f}"),
    "ssim_whole": ("SSIM", "{:.3f}"),
    "spectrum": ("spectrum", "{:.2f}"),
    "residual": ("residual", "{:.3f}"),
    "warp_error": ("warp error", "{:.3f}"),
    "motion": ("motion", "{:.2f}"),
}
LEGEND = (
    "PSNR in dB where the source saw the pixel (visible), within 8 pixels of a hole (seam, a part"
    " of visible) and in holes; one sample per task, before any composite. SSIM: of whole frames."
    " Spectrum: distance of the hole's gradient spectrum from the true one in dB, lower is sharper"
    " in the right measure. Residual: RMS in latent units between the sample and the measurement"
    " where latents were seen. Warp error: mean change in [0, 2] between a frame and the next one"
    " pulled back along the true motion. Motion: mean change from frame to frame over the truth's;"
    " below 1 is too still, and stillness flatters the warp error."
)


class Page(NamedTuple):
    """What a study found, and what it was looking for it among."""

    scores: Scores
    default: str
    screened: Scores | None


def figure(scores: list[dict], name: str) -> Float[np.ndarray, " n"]:
    """One number per task; nan where it has none."""
    return np.array([np.nan if one.get(name) is None else one[name] for one in scores], float)


def overall(scores: list[dict]) -> Float[np.ndarray, " n"]:
    """What arms are screened by: the mean PSNR of visible, seam and hole, per task."""
    return np.nanmean([figure(scores, name) for name in REGIONS], axis=0)


def write(page: Page, name: str, command: str, model: Model, results: Path) -> None:
    """results/study_<name>.md, .json and .png."""
    results.mkdir(parents=True, exist_ok=True)
    stem = results / f"study_{name}"
    made = environment()
    text = "\n".join([
        f"# Study: {name}", "", f"`{command.strip()}`", "",
        f"Model {model.name}; {made['device']}; "
        + ", ".join(f"{package} {version}" for package, version in made["versions"].items()), "",
        *_screen(page), "## On the tasks", "",
        f"{len(page.scores[page.default])} tasks. {LEGEND}", "",
        *_table(page.scores), f"## Against the default: {page.default}", "",
        "Gain in dB, of PSNR or towards the true spectrum, mean over tasks, with 95 % paired"
        " bootstrap intervals; all arms start from the same noise. **Bold**: the interval leaves"
        " zero out. A hole filled with the mean of what could be there wins PSNR and loses its"
        " spectrum.", "",
        *_gains(page), f"![gains](study_{name}.png)", "",
    ])  # fmt: skip
    _plot(page, stem.with_suffix(".png"))
    raw = {"command": command, "made": made, **page._asdict()}
    stem.with_suffix(".json").write_text(json.dumps(rounded(raw)) + "\n")
    stem.with_suffix(".md").write_text(text)
    print(text)


def _screen(page: Page) -> list[str]:
    """The grid of all methods and masks, and who went on."""
    if page.screened is None:
        return []
    tasks = len(next(iter(page.screened.values())))
    split = {name: (name.split(", ") * 2)[:2] for name in page.screened}
    alone = {name for name in page.screened if ", " not in name}
    masks = list(dict.fromkeys(mask for n, (mask, _) in split.items() if n not in alone))
    methods = list(dict.fromkeys(method for _, method in split.values()))

    def cell(name: str) -> str:
        if name not in page.screened:
            return ""
        value = f"{overall(page.screened[name]).mean():.2f}"
        return f"**{value}**" if name in page.scores else value

    rows = [
        [m, *(cell(f"{mask}, {m}") for mask in masks), cell(m) if m in alone else ""]
        for m in methods
    ]
    return [
        "## Screening", "",
        f"Mean PSNR of visible, seam and hole over {tasks} tasks that are not among those below."
        " **Bold** went on to them: the best methods, each with its best mask, the default, the"
        " default with the response mask, the plain generator, and what the command names. The"
        " rest was screened out for scoring lower here, and for nothing else: so few tasks do not"
        " rank what lies closer together than 0.3 dB or so.",
        "", *table(["method", *masks, "no mask"], rows),
    ]  # fmt: skip


def _table(scores: Scores) -> list[str]:
    shown = [name for name in COLUMNS if any(_known(some, name) for some in scores.values())]
    rows = [
        [row, *(_cell(some, name) for name in shown)] for row, some in scores.items()
    ]
    return table(["", *(COLUMNS[name][0] for name in shown)], rows)


def _known(scores: list[dict], name: str) -> bool:
    return bool(np.isfinite(figure(scores, name)).any())


def _cell(scores: list[dict], name: str) -> str:
    if not _known(scores, name):
        return "–"
    return COLUMNS[name][1].format(np.nanmean(figure(scores, name)))


def _gains(page: Page) -> list[str]:
    rows = []
    for row in page.scores:
        if row != page.default:
            rows.append([row, *(_interval(gain(page, row, name)) for name in GAINS)])
    return table(["", *GAINS], rows)


def gain(page: Page, row: str, name: str) -> Float[np.ndarray, " n"]:
    """How much better one row is than the default, per task."""
    more = figure(page.scores[row], name) - figure(page.scores[page.default], name)
    return -more if name == "spectrum" else more


def _interval(values: Float[np.ndarray, " n"]) -> str:
    found = bootstrap(values)
    if np.isnan(found.mean):
        return "–"  # equal to the truth, or nothing there
    return f"**{found}**" if found.decided else str(found)


def _plot(page: Page, path: Path) -> None:
    """Every arm's paired gain, region by region; what is decibels away would hide the rest."""
    sampled = [row for row, some in page.scores.items() if _known(some, "residual")]
    rows = [row for row in sampled or page.scores if row not in (page.default, "none")]
    figure_, axes = plt.subplots(
        1, len(GAINS), figsize=(13, 1.2 + 0.26 * len(rows)), sharey=True, dpi=100
    )
    for axis, name in zip(axes, GAINS, strict=True):
        found = np.array([bootstrap(gain(page, row, name)) for row in rows])
        at = np.arange(len(rows))
        axis.errorbar(
            found[:, 0], at, xerr=np.abs(found[:, 1:] - found[:, :1]).T, fmt="o", markersize=4
        )
        axis.axvline(0, color="k", linewidth=0.8)
        axis.set_title(f"{name}: gain in dB", fontsize=9)
        axis.grid(axis="y", alpha=0.3)
        axis.set_yticks(at, rows, fontsize=8)
    axes[0].invert_yaxis()
    figure_.tight_layout()
    figure_.savefig(path)
    plt.close(figure_)
