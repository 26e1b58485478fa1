"""`ic-jax recapture`: a clip from a new camera."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from .. import delivery
from ..model import BUNDLED
from ..report import RECAPTURE, Labels
from ..settings import Settings
from .generator import Generator, Run
from .job import Material, carry_out
from .source import Flat, Source


@dataclass(frozen=True)
class Recapture:
    """Show a clip from a new camera: keep what was seen, generate what was not."""

    name: ClassVar[str] = "recapture"
    labels: ClassVar[Labels] = RECAPTURE
    coverage: ClassVar[str] = "the new view was seen"

    source: Flat[Source] = field(default_factory=Source)
    out: Path = Path("recapture")
    """Folder of the results. An earlier result is replaced; anything else is left alone."""
    truth: Path | None = None
    """A video of the true new view, where it is known: adds PSNR by region."""
    generator: Flat[Generator] = field(default_factory=Generator)
    settings: Flat[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        carry_out(self if self.source.clip is not None else self._of_the_sample())

    def check(self) -> None:
        self.source.check()
        self.generator.check(self.settings)

    def read(self) -> Material:
        clip, shot = self.source.load()
        return Material(clip, shot, delivery.read_truth(self.truth, clip) if self.truth else None)

    def described(self) -> dict[str, Any]:
        return {**self.source.described(), "truth": self.truth}

    def shown(self, run: Run, facts: Mapping[str, Any]) -> dict[str, str]:
        shown = {
            "Camera": self.source.camera,
            "Model": run.model.name,
            "Coverage": f"{facts['coverage']:.0%}",
            "Visible part": delivery.in_decibels(facts.get("visible_psnr_db")),
            "Seed": str(self.generator.seed),
        }
        if "psnr_db" in facts:
            shown["Against truth"] = delivery.in_decibels(facts["psnr_db"].get("whole"))
        return shown

    def _of_the_sample(self) -> "Recapture":
        """Prompt and, from the one camera where it is known, truth of the bundled clip."""
        sample = json.loads((BUNDLED / "clip.json").read_text())
        known = (self.source.camera, self.source.amount) == (sample["camera"], None)
        return dataclasses.replace(
            self,
            generator=self.generator.prompted(sample["prompt"]),
            truth=self.truth or (BUNDLED / "clip_truth.mp4" if known else None),
        )
