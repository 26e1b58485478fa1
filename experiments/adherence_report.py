"""What the adherence study says: shares with intervals, and a verdict per target."""

import importlib.metadata
import json
import platform
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from experiments.intervals import bootstrap, wilson
from experiments.rounding import rounded
from experiments.scenes import COLOURS, SHAPES
from experiments.tables import table

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


class Part(NamedTuple):
    """The study with one kind of mask."""

    chosen: Records
    reported: Records
    guidance: Guidance


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
    with_shadow: Part, object_alone: Part, rights: dict[str, list], facts: Facts
) -> tuple[str, str]:
    """The page in Markdown and the raw numbers in JSON."""
    verdicts = judge(with_shadow, object_alone, rights)
    device = f"{jax.devices()[0].device_kind} ({platform.processor() or platform.machine()})"
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in ("jax", "flax", "numpy"))
    edits = [r for part in (with_shadow, object_alone) for r in part.chosen + part.reported]
    page = "\n".join([
        "# Do edits show what their prompts ask for?", "",
        f"`{facts.command}`", "",
        f"{facts.sampler}; model trained for {facts.trained}. {device}, {versions},"
        f" {sum(r['seconds'] for r in edits):.0f} seconds for {len(edits)} edits.", "",
        "A task is a held-out scene, a rough box in every frame, and a caption with one object's"
        " colour and shape replaced by others that nothing in the scene has. The box goes around"
        f" that object and the shadow it casts (mean {_masked(with_shadow)} of the pixels), or,"
        f" in the last part, around the object alone ({_masked(object_alone)}). What the object's"
        " box then holds is judged by a classifier of 8 colours and 4"
        f" shapes: chance is {100 / len(COLOURS) / len(SHAPES):.0f} %. One sample per task.", "",
        "## Verdicts", "",
        *(f"- **{'Met' if v.met else 'Not met'}**: {v.target}. {v.found}." for v in verdicts), "",
        "## The classifier on true clips", "", *_classifier_table(rights),
        "The first two rows are objects of clips that it was not trained on; the others are this"
        " study's scenes, with the object truly replaced.", "",
        *_part("the object and its shadow are masked", with_shadow),
        "![edits](adherence.png)", "",
        *_part("the object alone is masked", object_alone),
        "A shadow that stays in view tells the old shape to whoever looks. Success: the new"
        " colour and the new shape at once. Unchanged: the old colour and shape came back. Loss:"
        " PSNR outside the mask, against the source, below that of the autoencoder's round trip"
        " of the source: mean / worst. 95 % intervals: Wilson's for shares, bootstrap for paired"
        " differences.", "",
    ])  # fmt: skip
    raw = {
        "facts": facts._asdict(),
        "verdicts": [verdict._asdict() for verdict in verdicts],
        "classifier": rights,
        "with_shadow": {**with_shadow._asdict(), "guidance": with_shadow.guidance._asdict()},
        "object_alone": {**object_alone._asdict(), "guidance": object_alone.guidance._asdict()},
    }
    return page, json.dumps(rounded(raw)) + "\n"


def judge(with_shadow: Part, object_alone: Part, rights: dict[str, list]) -> list[Verdict]:
    """The issue's targets, one by one."""
    arms, narrow = _arms(with_shadow), _arms(object_alone)
    right = _share(np.array(rights["as rendered"]).all(1))
    new, none, alone = (
        _share(successes(found)) for found in (arms[NEW], arms[NONE], narrow[NEW])
    )
    loss = losses(arms[NEW])
    wanted = f"at least {_percent(SUCCESS_TARGET)} of the edits succeed"
    return [
        Verdict(f"the classifier is right on at least {_percent(CLASSIFIER_TARGET)} of true scenes",
                right.mean >= CLASSIFIER_TARGET, _shown(right)),
        Verdict(f"{wanted} where the object's shadow is masked as well",
                new.mean >= SUCCESS_TARGET, _shown(new)),
        Verdict(f"{wanted} where the object alone is masked",
                alone.mean >= SUCCESS_TARGET, _shown(alone)),
        Verdict("the interval lies above that without a prompt", new.low > none.high,
                f"{_shown(new)} against {_shown(none)}"),
        Verdict(f"outside the mask at most {LOSS_TARGET_DB:g} dB is lost",
                bool(loss.mean() <= LOSS_TARGET_DB),
                f"{loss.mean():.2f} dB on average, {loss.max():.2f} dB at worst"),
    ]  # fmt: skip


# Layout ---------------------------------------------------------------------------


def _part(name: str, part: Part) -> list[str]:
    arms, guided = _arms(part), {str(one): _guided(part.chosen, one) for one in GUIDANCES}
    return [
        f"## Where {name}", "",
        f"The guidance is chosen on tasks 0 to {_last(part.chosen)}: its scale, and whether the"
        " negative prompt is nothing or the clip's old caption.", "",
        *_arm_table("guidance", guided),
        f"The other tasks report it, {part.guidance}:", "", *_arm_table("told", arms),
        f"New prompt against no prompt, paired: {_gain(arms, NONE)} of the edits; against the old"
        f" prompt: {_gain(arms, OLD)}. The wrong shapes: {_confusions(arms[NEW])}.", "",
    ]  # fmt: skip


def _confusions(records: Records) -> str:
    """Where a wrong shape comes from: the object as it was, or another word of the caption."""
    wrong = [r for r in records if r["seen"]["shape"] != r["after"]["shape"]]
    old = sum(r["seen"]["shape"] == r["before"]["shape"] for r in wrong)
    other = sum(SHAPES[r["seen"]["shape"]] in r["asked"] for r in wrong)
    return (f"{len(wrong)}, of which {old} the object's old one and {other} that of another object"
            " of the scene")  # fmt: skip


def _arms(part: Part) -> dict[str, Records]:
    return {told: [r for r in part.reported if r["prompt"] == told] for told in (NEW, OLD, NONE)}


def _masked(part: Part) -> str:
    return _percent(np.mean([r["masked"] for r in part.reported]))


def _arm_table(title: str, arms: dict[str, Records]) -> list[str]:
    head, rows = [title, "n", "success", "colour", "shape", "unchanged", "loss in dB"], []
    for name, records in arms.items():
        colour, shape = agreement(records).T
        columns = successes(records), colour, shape, agreement(records, "before").all(1)
        loss = losses(records)
        rows.append([
            name, str(len(records)), *(_shown(_share(column)) for column in columns),
            f"{loss.mean():.2f} / {loss.max():.2f}",
        ])  # fmt: skip
    return table(head, rows)


def _classifier_table(rights: dict[str, list]) -> list[str]:
    rows = []
    for name, right in rights.items():
        colour, shape = np.array(right).T
        shares = (_shown(_share(column)) for column in (colour, shape, colour & shape))
        rows.append([name, str(len(right)), *shares])
    return table(["", "n", "colour", "shape", "both"], rows)


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
