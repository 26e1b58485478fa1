"""The page, the numbers and the plot of `experiments.gaussian`."""

import importlib.metadata
import json
import platform
from pathlib import Path
from typing import NamedTuple

import jax
import matplotlib

from experiments import tables

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

DISTANCES = ("mean", "covariance", "w2")
CURVES = ("correlated, full", "correlated, partial")
OURS = "bayes_dds"

Distances = dict[str, dict[str, float]]


class Facts(NamedTuple):
    """How the study was run."""

    samples: int
    measurements: int
    dimensions: int
    correlation: float
    seconds: float


class Record(NamedTuple):
    """One method with its options at one number of steps, on every problem."""

    label: str
    steps: int
    inner: int | None
    calls_per_step: float
    distances: Distances

    @property
    def calls(self) -> float:
        """Calls of the denoiser for one sample."""
        return self.calls_per_step * self.steps


def publish(
    folder: Path, facts: Facts, chance: Distances, table: list[Record], curve: list[Record]
) -> None:
    """Write gaussian.md, .json and .png."""
    folder.mkdir(parents=True, exist_ok=True)
    plot(chance, curve, folder / "gaussian.png")
    raw = {
        "facts": facts._asdict(),
        "chance": chance,
        "table": [row._asdict() for row in table],
        "curve": [row._asdict() for row in curve],
    }
    short = json.loads(json.dumps(raw), parse_float=lambda text: float(f"{float(text):.4g}"))
    (folder / "gaussian.json").write_text(json.dumps(short, indent=1) + "\n")
    text = page(facts, chance, table, curve)
    (folder / "gaussian.md").write_text(text)
    print(text)


def page(facts: Facts, chance: Distances, table: list[Record], curve: list[Record]) -> str:
    """The page in Markdown."""
    device = f"{jax.devices()[0].device_kind} ({platform.processor() or platform.machine()})"
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "numpy"))
    lines = [
        "# Every method against an exact posterior", "",
        "`python -m experiments.gaussian`", "",
        f"clean ~ N(m, C) in {facts.dimensions} dimensions, y = clean + error with a variance of"
        " its own at every position, and E(clean | x) itself as the denoiser. Diagonal: C is;"
        f" correlated: neighbours by {facts.correlation}, in rows and columns. Full: all"
        " positions are measured; partial: half of them, the others have a = 0. Methods come"
        " with their defaults, `r2` is the exact diagonal of Var(clean | x), steps are Euler's."
        f" {facts.samples} samples for each of {facts.measurements} measurements; {device},"
        f" {versions}, {facts.seconds:.0f} seconds.", "",
        "**mean**: error of the samples' mean in posterior standard deviations (root mean"
        " square). **cov**: error of their covariance (relative Frobenius norm). **W2**: squared"
        " 2-Wasserstein distance over the posterior's trace, so that 1 is every sample at the"
        " true mean. Chance: the same of as many exact samples. Calls: of the denoiser, per"
        " step.", "",
        "## Verdicts", "", *verdicts(chance, table, curve), "",
    ]  # fmt: skip
    for problem in chance:
        lines += [f"## {problem.capitalize()}", "", *comparison(problem, chance, table)]
    return "\n".join(lines + ["## What refinement buys", "", *bought(chance, curve), ""])


# Parts of the page --------------------------------------------------------------------


def verdicts(chance: Distances, table: list[Record], curve: list[Record]) -> list[str]:
    """What the numbers say, a line per question."""
    small = max(row.steps for row in table)
    lines = []
    for problem, by_chance in chance.items():
        w2 = _w2(_only(table, OURS, small), problem)
        lines.append(
            f"- {problem.capitalize()}: Bayes-DDS in {small} steps ends at W2 {_short(w2)},"
            f" {w2 / by_chance['w2']:.3g} times chance. {_leaders(table, problem)}"
        )
    for problem in CURVES:
        steps_alone = _nearest([row for row in curve if row.label == OURS], problem)
        lines.append(
            f"- {problem.capitalize()}: more steps bring Bayes-DDS to {_cost(steps_alone, problem)}"
            f" at best; of all that the curve holds, {_cost(_nearest(curve, problem), problem)}."
        )
    return lines


def _leaders(table: list[Record], problem: str) -> str:
    parts = []
    for steps in sorted({row.steps for row in table}, reverse=True):
        rows = sorted((r for r in table if r.steps == steps), key=lambda row: _w2(row, problem))
        names = ", ".join(f"{row.label} ({_short(_w2(row, problem))})" for row in rows[:3])
        parts.append(f"Nearest in {steps} steps: {names}.")
    return " ".join(parts)


def _nearest(rows: list[Record], problem: str) -> Record:
    return min(rows, key=lambda row: _w2(row, problem))


def _cost(row: Record, problem: str) -> str:
    inner = "" if row.inner is None else f", inner {row.inner}"
    return f"{_short(_w2(row, problem))} ({row.label}{inner}, {row.calls:.0f} calls)"


def _w2(row: Record, problem: str) -> float:
    return row.distances[problem]["w2"]


def comparison(problem: str, chance: Distances, table: list[Record]) -> list[str]:
    """All methods on one problem."""
    steps = sorted({row.steps for row in table}, reverse=True)
    heads = [f"{name}, {n} steps" for n in steps for name in ("mean", "cov", "W2")]
    rows = [["chance", "", *_cells(chance[problem]) * len(steps)]]
    for label in dict.fromkeys(row.label for row in table):
        found = [_only(table, label, n) for n in steps]
        cells = [cell for row in found for cell in _cells(row.distances[problem])]
        rows.append([label, f"{found[0].calls_per_step:.3g}", *cells])
    return tables.table(["method", "calls", *heads], rows)


def bought(chance: Distances, curve: list[Record]) -> list[str]:
    """W2 against calls of the denoiser, more steps beside more work within each."""
    rows = [["chance", "", "", "", *(_short(chance[p]["w2"]) for p in CURVES)]]
    for row in curve:
        w2 = [_short(_w2(row, problem)) for problem in CURVES]
        cells = [row.label, str(row.steps), str(row.inner or "–"), f"{row.calls:.0f}"]
        rows.append(cells + w2)
    heads = ["method", "steps", "inner", "calls", *(f"W2, {problem}" for problem in CURVES)]
    return [*tables.table(heads, rows), "![W2 against calls](gaussian.png)"]


def plot(chance: Distances, curve: list[Record], path: Path) -> None:
    """One panel per correlated problem."""
    figure, panels = plt.subplots(1, len(CURVES), figsize=(11, 4.2), sharey=True)
    for panel, problem in zip(panels, CURVES):
        for label in dict.fromkeys(row.label for row in curve):
            rows = [row for row in curve if row.label == label]
            calls = [row.calls for row in rows]
            panel.loglog(calls, [_w2(row, problem) for row in rows], "o-", label=label)
        panel.axhline(chance[problem]["w2"], color="black", ls=":", label="chance")
        panel.set(title=problem, xlabel="calls of the denoiser per sample")
    panels[0].set_ylabel("W2² / trace of the posterior")
    panels[0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _only(table: list[Record], label: str, steps: int) -> Record:
    (row,) = (row for row in table if row.label == label and row.steps == steps)
    return row


def _cells(distances: dict[str, float]) -> list[str]:
    return [_short(distances[name]) for name in DISTANCES]


def _short(value: float) -> str:
    return f"{value:.2g}" if value < 100 else f"{value:.0f}"
