"""What the terminal shows: a progress bar, and one line about the result."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from ..director import Progress


def note(line: str) -> None:
    """Something that the user should know, and that stops nothing."""
    tqdm.write(f"ic-jax: {line}", file=sys.stderr)  # above a bar that is being drawn


def rounded(seconds: dict[str, float]) -> dict[str, float]:
    return {stage: round(value, 2) for stage, value in seconds.items()}


@contextmanager
def progress_bar(steps: int) -> Iterator[Progress]:
    with tqdm(total=steps, unit="step", leave=False) as bar:

        def advance(stage: str, done: int) -> None:
            bar.set_description(stage)
            bar.update(done)

        yield advance
        bar.leave = True  # a run that failed shows its one line of error and no bar


def report(out: Path, facts: dict, what: str = "the new view was seen") -> None:
    described = [f"{facts['coverage']:.0%} of {what}"]
    if "visible_psnr_db" in facts:
        described.append(f"kept at {facts['visible_psnr_db']} dB")
    if known := facts.get("psnr_db"):
        by_region = ", ".join(f"{name} {value}" for name, value in known.items())
        described.append(f"against the true view: {by_region} dB")
    print("; ".join(described))
    print(f"results in {out}/")
