"""`ic-jax recapture`: a clip from a new camera."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from .. import delivery
from ..director import timed
from ..model import BUNDLED
from ..output import output_folder, write_result
from ..report import RECAPTURE
from ..settings import Settings
from .console import report, rounded
from .generator import Generator, Run
from .resumption import state_file
from .source import Flat, Source


@dataclass(frozen=True)
class Recapture:
    """Show a clip from a new camera: keep what was seen, generate what was not."""

    source: Flat[Source] = field(default_factory=Source)
    out: Path = Path("recapture")
    """Folder of the results. An earlier result is replaced; anything else is left alone."""
    truth: Path | None = None
    """A video of the true new view, where it is known: adds PSNR by region."""
    generator: Flat[Generator] = field(default_factory=Generator)
    settings: Flat[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        if self.source.clip is None:
            self = self._of_the_sample()
        seconds: dict[str, float] = {}
        resume = self.generator.resume
        with state_file(self.out, resume) as state, output_folder(self.out) as folder:
            with timed(seconds, "read"):
                clip, shot = self.source.load()
                truth = delivery.read_truth(self.truth, clip) if self.truth else None
            run = self.generator.run(shot, self.settings, seconds, state)
            seconds |= run.take.seconds
            facts = delivery.measure(run.take, truth)
            with timed(seconds, "write"):
                title = self.generator.prompt or clip.path.name
                shown = self._shown(run, facts)
                delivery.write_take(folder, clip, run.take, truth, RECAPTURE, title, shown)
            record = {
                "command": "recapture",
                **self.source.described(),
                **delivery.describe(clip),
                "truth": self.truth,
                **self.generator.record(run, shot),
                **facts,
                "seconds": rounded(seconds),
                **delivery.environment(),
            }
            write_result(folder, record)
        report(self.out, facts)

    def _of_the_sample(self) -> "Recapture":
        """Prompt and, from the one camera where it is known, truth of the bundled clip."""
        sample = json.loads((BUNDLED / "clip.json").read_text())
        known = (self.source.camera, self.source.amount) == (sample["camera"], None)
        return dataclasses.replace(
            self,
            generator=self.generator.prompted(sample["prompt"]),
            truth=self.truth or (BUNDLED / "clip_truth.mp4" if known else None),
        )

    def _shown(self, run: Run, facts: dict) -> dict[str, str]:
        shown = {
            "Camera": self.source.camera,
            "Model": run.model.name,
            "Coverage": f"{facts['coverage']:.0%}",
            "Visible part": f"{facts['visible_psnr_db']:.1f} dB",
            "Seed": str(self.generator.seed),
        }
        if "psnr_db" in facts:
            shown["Against truth"] = f"{facts['psnr_db']['whole']:.1f} dB"
        return shown
