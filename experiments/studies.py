"""Every solver and every mask, on tasks whose truth is known.

    python -m experiments.studies recapture      # (b) methods x masks, new views with true frames
    python -m experiments.studies inpainting     # (c) methods x masks, holes with true pixels
    python -m experiments.studies reprojection   # (d) there and back again, on real clips
    python -m experiments.studies steps          # (e) quality against steps and cost
    python -m experiments.studies sweeps         # (f) gamma, windows, re-noising, refreshes

The first three run the full grid on a few tasks, then the best of it on many others. Every score
is kept under --data and read again, so that a run that was cut off goes on where it stopped.
Writes experiments/results/study_<name>.md, .json and .png. `--file mine.py` compares what this
file adds to METHODS, MASKS or SOLVERS with the default, and nothing else.
"""

import runpy
import shlex
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from tqdm import tqdm

from experiments.clips_data import chosen
from experiments.laboratory import REFERENCES, Laboratory
from experiments.studies_report import Page, Scores, overall, write
from experiments.tasks import TASKS
from ic_jax.errors import InputError
from ic_jax.latent_mask import MASKS
from ic_jax.sampling.methods import METHODS, options
from ic_jax.sampling.solvers import SOLVERS
from ic_jax.settings import Settings

DEFAULT = Settings()
RESULTS = Path("experiments/results")
GAMMAS = 0.3, 1.0, 3.0, 10.0, 30.0
STEPS = 4, 8, 16, 24, 50
COSTLY = "repaint", "langevin", "gibbs"


@dataclass
class Arguments:
    """Run one study."""

    study: tyro.conf.Positional[
        Literal["recapture", "inpainting", "reprojection", "steps", "sweeps"]
    ]
    model: str = "nano"
    """"nano" or a folder that `ic-jax convert` made."""
    screen: int = 3
    """Tasks of the full grid."""
    tasks: int = 50
    """Tasks of the finalists, or of every arm where there is no grid; none is of the grid."""
    finalists: int = 8
    """Methods that go on to them, each with its best mask, besides the default and none."""
    also: tuple[str, ...] = ()
    """More finalists, whatever the grid says of them, such as "mean, ddnm"."""
    clips: Path | None = None
    """Folder of your own videos to study instead (see experiments.clips_data)."""
    davis: Path | None = None
    """Your copy of DAVIS 2017 to study instead."""
    file: Path | None = None
    """Python file that adds methods, masks or solvers: they alone are compared with the default."""
    data: Path = Path(".data")
    results: Path = RESULTS


Arms = dict[str, Settings]


def label(arm: Settings) -> str:
    """The arm's name in tables: its mask and method, and whatever differs from the default."""
    parts = [arm.latent_mask, arm.consistency] if reads_mask(arm) else [arm.consistency]
    for name, value in vars(arm).items():
        if name not in ("latent_mask", "consistency") and value != getattr(DEFAULT, name):
            parts.append(f"{name} {value}")
    return ", ".join(parts)


def reads_mask(arm: Settings) -> bool:
    """Methods in pixels have the operator itself, and the plain generator has nothing."""
    return arm.consistency != "none" and "pixels" not in options(arm.consistency)


def named(arms: Iterable[Settings]) -> Arms:
    return {label(arm): arm for arm in arms}


def grid(lab: Laboratory) -> Arms:
    """Every mask with every method that reads one, and the others once."""
    masks = [name for name in MASKS if name != "kernel" or lab.model.weights.calibration.kernel
             is not None]
    pairs = [Settings(latent_mask=m, consistency=c) for c in METHODS for m in masks]
    alone = [Settings(latent_mask="mean", consistency=c) for c in METHODS]
    return named([a for a in pairs if reads_mask(a)] + [a for a in alone if not reads_mask(a)])


def run(
    lab: Laboratory, kind: str, arms: Arms, numbers: Iterable[int]
) -> Scores:
    """Figures of every arm on every task: arms first, so that each is compiled once."""
    todo = [(name, number) for name in arms for number in numbers]
    scores: Scores = {name: [] for name in arms}
    for name, number in tqdm(todo, desc=kind, mininterval=10):
        scores[name].append(lab.score(kind, number, arms[name]))
    return scores


def added(file: Path) -> list[Settings]:
    """The default with each method, mask and solver that a Python file registers.

    Raises:
        InputError: the file registers none.
    """
    tables = {"consistency": METHODS, "latent_mask": MASKS, "solver": SOLVERS}
    before = {option: set(table) for option, table in tables.items()}
    runpy.run_path(str(file))
    found = [
        replace(DEFAULT, **{option: name})
        for option, table in tables.items() for name in table if name not in before[option]
    ]
    if not found:
        raise InputError(f"{file}: adds nothing to METHODS, MASKS or SOLVERS; see README, Add a"
                         " method in 20 lines")
    return found


def tournament(lab: Laboratory, arguments: Arguments) -> Page:
    """The full grid on a few tasks; the best, the default and the plain generator on others."""
    kind, arms = arguments.study, grid(lab)
    if unknown := [name for name in arguments.also if name not in arms]:
        raise InputError(f"--also {unknown[0]!r}: no such arm; name a mask and a method, such as"
                         f" {label(DEFAULT)!r}, or one of those that read no mask")
    screened = run(lab, kind, arms, range(arguments.screen))
    ranked = sorted(arms, key=lambda name: -overall(screened[name]).mean())
    # One mask each: the same method with its second-best mask is hardly another finalist.
    best = {arms[name].consistency: name for name in reversed(ranked)}
    champions = sorted(best.values(), key=ranked.index)
    always = [label(DEFAULT), label(replace(DEFAULT, latent_mask="response")), "none"]
    finalists = [*always, *arguments.also, *champions[: arguments.finalists]]
    chosen = list(dict.fromkeys(finalists))
    numbers = range(arguments.screen, arguments.screen + arguments.tasks)
    finals = run(lab, kind, {name: arms[name] for name in chosen}, numbers)
    return Page(references(lab, kind, numbers) | finals, label(DEFAULT), screened)


def references(lab: Laboratory, kind: str, numbers: Iterable[int]) -> Scores:
    return {name: [lab.reference(kind, n, name) for n in numbers] for name in REFERENCES}


def steps(lab: Laboratory, arguments: Arguments) -> Page:
    """Solvers by number of steps, and methods that spend their calls of the model otherwise.

    Multistep solvers extrapolate from one estimate to the next, and draws stand in between.
    """
    arms = [
        Settings(consistency=name, solver=solver, steps=n)
        for name in ("bayes_dds", "bayes_draw")
        for solver in ("euler", "dpmpp_2m", "unipc")
        for n in STEPS
    ]
    # Two calls per step at half the steps, against one at all of them.
    arms += [
        Settings(consistency=name, steps=n // 2, inner=1) for name in COSTLY for n in STEPS[1:]
    ]
    return single(lab, arguments, named([DEFAULT, *arms]))


def sweeps(lab: Laboratory, arguments: Arguments) -> Page:
    """One setting at a time, away from the default."""
    dds = replace(DEFAULT, consistency="dds")
    arms = [
        DEFAULT,
        *(
            replace(DEFAULT, latent_mask=mask, clean_error=error)
            for mask in ("response", "response_open") for error in (None, "measured")
        ),
        *(replace(dds, gamma=gamma) for gamma in GAMMAS),
        *(replace(dds, gamma_schedule=name) for name in ("falling", "rising", "variance")),
        *(Settings(consistency="bayes_dds", noise=n) for n in ("recompute", "keep", "renew")),
        *(replace(DEFAULT, guided_from=sigma) for sigma in (0.95, 0.8)),
        *(replace(DEFAULT, guided_to=sigma) for sigma in (0.2, 0.5)),
        *(replace(DEFAULT, renoise=share) for share in (0.1, 0.3, 0.6)),
        *(replace(DEFAULT, refresh_at=sigma) for sigma in (0.9, 0.7, 0.5)),
    ]
    return single(lab, arguments, named(arms))


def single(lab: Laboratory, arguments: Arguments, arms: Arms) -> Page:
    """All arms on the same tasks: those of the study, or new views."""
    kind = arguments.study if arguments.study in TASKS else "recapture"
    numbers = range(arguments.screen, arguments.screen + arguments.tasks)
    scores = run(lab, kind, arms, numbers)
    return Page(references(lab, kind, numbers) | scores, label(DEFAULT), None)


STUDIES: dict[str, Callable[[Laboratory, Arguments], Page]] = {
    "recapture": tournament,
    "inpainting": tournament,
    "reprojection": tournament,
    "steps": steps,
    "sweeps": sweeps,
}


def main(arguments: Arguments) -> None:
    clips = chosen(arguments.clips, arguments.davis, arguments.data)
    file, name = arguments.file, arguments.study
    if file and not file.is_file():
        raise InputError(f"{file}: no such file; check the path of the methods")
    code = file.read_bytes() if file else b""
    lab = Laboratory(arguments.model, arguments.data, clips, code)
    if file is None:
        page = STUDIES[arguments.study](lab, arguments)
    else:
        plain = replace(DEFAULT, consistency="none")
        name += f"_{file.stem}"  # the study's own page stays as it is
        page = single(lab, arguments, named([DEFAULT, plain, *added(file)]))
    command = "python -m experiments.studies " + shlex.join(sys.argv[1:])
    write(page, name, command, lab.model, arguments.results)


if __name__ == "__main__":
    try:
        main(tyro.cli(Arguments))
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
