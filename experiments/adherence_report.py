"""What the adherence study says: shares with intervals, and a verdict per target."""

import importlib.metadata
import json
import platform
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from experiments.intervals import bootstrap, wilson
from experiments.scenes import COLOURS, SHAPES

NEW, OLD, NONE = "new prompt", "old prompt", "no prompt"
NOTHING = "nothing"


class Guidance(NamedTuple):
    """How strongly a prompt is told, and against which: `NOTHING`, or the clip's `OLD` one."""

    against: str
    scale: float

    def __str__(self) -> str:
        return f"{self.scale:g} against {self.against}"


GUIDANCES = tuple(Guidance(NOTHING, scale) for scale in (1.5, 3.0, 5.0)) + tuple(
    Guidance(OLD, scale) for scale in (2.0, 3.0, 5.0))
"""What there is to choose from."""

CLASSIFIER_TARGET = 0.95
SUCCESS_TARGET = 0.70
LOSS_TARGET_DB = 1.0

Records = list[dict]


class Facts(NamedTuple):
    """Where the numbers come from."""

    command: str
    sampler: str
    trained: str


class Verdict(NamedTuple):
    target: str
    met: bool
    found: str


def best_guidance(records: Records) -> Guidance:
    """The guidance with most successes; the weaker one of equals, and the earlier one of those."""
    return max(GUIDANCES, key=lambda one: (successes(_guided(records, one)).sum(), -one.scale))


def agreement(records: Records, wanted: str = "after") -> Bool[np.ndarray, "n 2"]:
    """Whether what is seen has the wanted colour and the wanted shape."""
    return np.array(
        [[r["seen"][part] == r[wanted][part] for part in ("colour", "shape")] for r in records]
    )


def successes(records: Records) -> Bool[np.ndarray, " n"]:
    """Whether an edit shows the new colour and the new shape at once."""
    return agreement(records).all(1)


def losses(records: Records) -> Float[np.ndarray, " n"]:
    """PSNR outside the mask that an edit has less than the autoencoder's round trip, in dB."""
    return np.array([r["round_trip_outside_db"] - r["outside_db"] for r in records])


def report(
    chosen: Records, reported: Records, guidance: Guidance, rights: dict[str, list], facts: Facts
) -> tuple[str, str]:
    """The page in Markdown and the raw numbers in JSON."""
    arms = {prompt: [r for r in reported if r["prompt"] == prompt] for prompt in (NEW, OLD, NONE)}
    verdicts = judge(arms, rights)
    device = f"{jax.devices()[0].device_kind} ({platform.processor() or platform.machine()})"
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "numpy"))
    seconds = sum(r["seconds"] for r in chosen + reported)
    guided = {str(one): _guided(chosen, one) for one in GUIDANCES}
    page = "\n".join([
        "# Do edits show what their prompts ask for?", "",
        f"`{facts.command}`", "",
        f"{facts.sampler}; model trained for {facts.trained}. {device}, {versions},"
        f" {seconds:.0f} seconds for {len(chosen) + len(reported)} edits.", "",
        "A task is a held-out scene, a rough box around one of its objects in every frame"
        f" (mean {100 * np.mean([r['masked'] for r in reported]):.0f} % of the pixels), and a"
        " caption with that object's colour and shape replaced by others that nothing in the"
        " scene has. What the box then holds is judged by a classifier of 8 colours and 4"
        f" shapes: chance is {100 / len(COLOURS) / len(SHAPES):.0f} %. One sample per task.", "",
        "## Verdicts", "",
        *(f"- **{'Met' if v.met else 'Not met'}**: {v.target}. {v.found}." for v in verdicts), "",
        "## The classifier on true clips", "", *_classifier_table(rights),
        "The first two rows are objects of clips that it was not trained on; the others are this"
        " study's scenes, with the object truly replaced.", "",
        f"## Choosing the guidance (tasks 0 to {_last(chosen)})", "",
        "Its scale, and whether the negative prompt is nothing or the clip's old caption.", "",
        *_arm_table("guidance", guided),
        f"## Reported: {guidance}, on the other tasks", "", *_arm_table("told", arms),
        "Success: the new colour and the new shape at once. Unchanged: the old colour and shape"
        " came back. Loss: PSNR outside the mask, against the source, below that of the"
        " autoencoder's round trip of the source: mean / worst. 95 % intervals: Wilson's for"
        " shares, bootstrap for paired differences.", "",
        f"New prompt against no prompt, paired: {_gain(arms, NONE)} of the edits; against the old"
        f" prompt: {_gain(arms, OLD)}.", "",
        "![edits](adherence.png)", "",
    ])  # fmt: skip
    raw = {
        "facts": facts._asdict(),
        "verdicts": [verdict._asdict() for verdict in verdicts],
        "guidance": guidance._asdict(),
        "classifier": rights,
        "choosing": chosen,
        "reporting": reported,
    }
    return page, json.dumps(_rounded(raw)) + "\n"


def judge(arms: dict[str, Records], rights: dict[str, list]) -> list[Verdict]:
    """The issue's targets, one by one."""
    right = _share(np.array(rights["as rendered"]).all(1))
    new, none = _share(successes(arms[NEW])), _share(successes(arms[NONE]))
    loss = losses(arms[NEW])
    return [
        Verdict(f"the classifier is right on at least {_percent(CLASSIFIER_TARGET)} of true scenes",
                right.mean >= CLASSIFIER_TARGET, _shown(right)),
        Verdict(f"at least {_percent(SUCCESS_TARGET)} of the edits succeed",
                new.mean >= SUCCESS_TARGET, _shown(new)),
        Verdict("the interval lies above that without a prompt", new.low > none.high,
                f"{_shown(new)} against {_shown(none)}"),
        Verdict(f"outside the mask at most {LOSS_TARGET_DB:g} dB is lost",
                bool(loss.mean() <= LOSS_TARGET_DB),
                f"{loss.mean():.2f} dB on average, {loss.max():.2f} dB at worst"),
    ]  # fmt: skip


# Layout ---------------------------------------------------------------------------


def _arm_table(title: str, arms: dict[str, Records]) -> list[str]:
    rows = [[title, "n", "success", "colour", "shape", "unchanged", "loss in dB"], ["---"] * 7]
    for name, records in arms.items():
        colour, shape = agreement(records).T
        columns = successes(records), colour, shape, agreement(records, "before").all(1)
        loss = losses(records)
        rows.append([
            name, str(len(records)), *(_shown(_share(column)) for column in columns),
            f"{loss.mean():.2f} / {loss.max():.2f}",
        ])  # fmt: skip
    return [*_lines(rows), ""]


def _classifier_table(rights: dict[str, list]) -> list[str]:
    rows = [["", "n", "colour", "shape", "both"], ["---"] * 5]
    for name, right in rights.items():
        colour, shape = np.array(right).T
        shares = (_shown(_share(column)) for column in (colour, shape, colour & shape))
        rows.append([name, str(len(right)), *shares])
    return [*_lines(rows), ""]


def _guided(records: Records, guidance: Guidance) -> Records:
    return [r for r in records if (r["against"], r["scale"]) == guidance]


def _gain(arms, than):
    mean, low, high = bootstrap(successes(arms[NEW]) * 1.0 - successes(arms[than]))
    return f"{100 * mean:+.0f} % [{100 * low:+.0f}, {100 * high:+.0f}]"


def _share(values):
    return wilson(int(np.sum(values)), len(values))


def _shown(share):
    return f"{100 * share.mean:.0f} % [{100 * share.low:.0f}, {100 * share.high:.0f}]"


def _percent(share):
    return f"{100 * share:.0f} %"


def _last(records):
    return max(record["task"] for record in records)


def _lines(rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in rows]


def _rounded(value):
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value
