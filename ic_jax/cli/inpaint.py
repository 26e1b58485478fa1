"""`ic-jax inpaint`: a part of a clip made anew."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from .. import delivery
from ..director import timed
from ..edit import load_edit
from ..errors import InputError
from ..model import BUNDLED
from ..output import output_folder, write_result
from ..report import INPAINT
from ..settings import Settings
from ..video import read_video
from .console import report, rounded
from .generator import Generator, Run
from .resumption import state_file
from .source import Flat


@dataclass(frozen=True)
class Inpaint:
    """Make a part of a clip anew from a prompt, and keep the rest."""

    clip: tyro.conf.Positional[Path | None] = None
    """A video, a GIF or a folder of frames; without it, the bundled sample."""
    mask: Path | None = None
    """What to make anew, in white: a video, a folder of frames, or one image for all frames."""
    out: Path = Path("inpaint")
    """Folder of the results. An earlier result is replaced; anything else is left alone."""
    generator: Flat[Generator] = field(default_factory=Generator)
    settings: Flat[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        if self.clip is None:
            self = self._of_the_sample()
        if self.mask is None:
            raise InputError(f"{self.clip}: what is to be made anew? pass --mask FILE, white there")
        seconds: dict[str, float] = {}
        resume = self.generator.resume
        with state_file(self.out, resume) as state, output_folder(self.out) as folder:
            with timed(seconds, "read"):
                clip = read_video(self.clip)
                edit = load_edit(clip, self.mask)
            run = self.generator.run(edit, self.settings, seconds, state)
            seconds |= run.take.seconds
            facts = delivery.measure(run.take, None)
            with timed(seconds, "write"):
                title = self.generator.prompt or clip.path.name
                shown = self._shown(run, facts)
                delivery.write_take(folder, clip, run.take, None, INPAINT, title, shown)
            record = {
                "command": "inpaint",
                "mask": self.mask,
                **delivery.describe(clip),
                **self.generator.record(run, edit),
                **facts,
                "seconds": rounded(seconds),
                **delivery.environment(),
            }
            write_result(folder, record)
        report(self.out, facts, "the clip was kept")

    def _of_the_sample(self) -> "Inpaint":
        """The bundled clip, a mask around its ball, and what is to stand there instead of it."""
        sample = json.loads((BUNDLED / "clip.json").read_text())
        generator = self.generator.prompted(sample["edit"])
        mask = self.mask or BUNDLED / "clip_mask.mp4"
        return dataclasses.replace(self, clip=BUNDLED / "clip.mp4", mask=mask, generator=generator)

    def _shown(self, run: Run, facts: dict) -> dict[str, str]:
        return {
            "Model": run.model.name,
            "Kept": f"{facts['coverage']:.0%}",
            "Kept part": f"{facts['visible_psnr_db']:.1f} dB",
            "Seed": str(self.generator.seed),
        }
