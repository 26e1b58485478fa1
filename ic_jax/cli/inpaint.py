"""`ic-jax inpaint`: a part of a clip made anew."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tyro

from ..delivery import in_decibels
from ..edit import load_edit
from ..errors import InputError
from ..model import BUNDLED
from ..report import INPAINT, Labels
from ..settings import Settings
from .generator import Generator, Run
from .job import Material, carry_out
from .source import Flat, check_rate, read_clip


@dataclass(frozen=True)
class Inpaint:
    """Make a part of a clip anew from a prompt, and keep the rest."""

    name: ClassVar[str] = "inpaint"
    labels: ClassVar[Labels] = INPAINT
    coverage: ClassVar[str] = "the clip was kept"

    clip: tyro.conf.Positional[Path | None] = None
    """A video, a GIF or a folder of frames; without it, the bundled sample."""
    fps: float | None = None
    """Frames per second of a folder of frames, from 1 to 1000; without it, 24. A file states its
    own."""
    mask: Path | None = None
    """What to make anew, in white: a video, a folder of frames, or one image for all frames.
    What is transparent in an image is not."""
    out: Path = Path("inpaint")
    """Folder of the results. An earlier result is replaced; anything else is left alone."""
    generator: Flat[Generator] = field(default_factory=Generator)
    settings: Flat[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        carry_out(self if self.clip is not None else self._of_the_sample())

    def check(self) -> None:
        check_rate(self.clip, self.fps)
        if self.mask is None:
            raise InputError(f"{self.clip}: what is to be made anew? pass --mask FILE, white there")
        self.generator.check(self.settings)

    def read(self) -> Material:
        clip = read_clip(self.clip, self.fps)
        return Material(clip, load_edit(clip, self.mask))

    def described(self) -> dict[str, Any]:
        return {"mask": self.mask}

    def shown(self, run: Run, facts: Mapping[str, Any]) -> dict[str, str]:
        return {
            "Model": run.model.name,
            "Kept": f"{facts['coverage']:.0%}",
            "Kept part": in_decibels(facts.get("visible_psnr_db")),
            "Seed": str(self.generator.seed),
        }

    def _of_the_sample(self) -> "Inpaint":
        """The bundled clip, a mask around its ball, and what is to stand there instead of it."""
        sample = json.loads((BUNDLED / "clip.json").read_text())
        generator = self.generator.prompted(sample["edit"])
        mask = self.mask or BUNDLED / "clip_mask.mp4"
        return dataclasses.replace(self, clip=BUNDLED / "clip.mp4", mask=mask, generator=generator)
