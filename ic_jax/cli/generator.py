"""What `recapture` and `inpaint` share: a model, a prompt, a size, and the run itself."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from jaxtyping import Array, Float

from .. import text
from ..calibration import from_record, load_record
from ..director import Footage, Take, check, direct, plan, resolve, timed
from ..edit import Edit
from ..errors import InputError
from ..model import Model, calibrated, find_model, identify, load_uncalibrated
from ..models.variants import Variant, variant
from ..pipeline import Settings
from .console import note, progress_bar


class Run(NamedTuple):
    """A take, and all that it was made with."""

    model: Model
    settings: Settings
    take: Take
    told: "Told"


class Told(NamedTuple):
    """Prompts as the generator reads them."""

    context: Float[Array, "2 l d"]
    prompts: tuple[str, str]
    """The negative one first."""
    cuts: list[str]


@dataclass(frozen=True)
class Generator:
    """A model, what it is told, and at which size it works."""

    model: Path = Path("nano")
    """Folder of a model that `ic-jax convert` made; without it, the bundled small model."""
    prompt: str = ""
    """What the result shows. The bundled model reads the first 63 bytes."""
    negative_prompt: str | None = None
    """What it should not show; without it, the model's own."""
    context: Path | None = None
    """Prompts that `ic-jax embed` has encoded: the text encoder is not loaded."""
    calibration: Path | None = None
    """A file that `ic-jax calibrate --out` wrote, in place of the model's own calibration."""
    frames: int | None = None
    """Frames in a window; without it, as many as the model was trained with."""
    height: int | None = None
    """Height that the model works at, in pixels. The result has the clip's own."""
    width: int | None = None
    """Width that the model works at, in pixels."""
    seed: int = 0
    """Same seed, same frames."""

    def run(self, footage: Footage, settings: Settings, seconds: dict[str, float]) -> Run:
        """Encode the prompts, free the text encoder, load the model, and direct.

        What can be wrong without them is looked at before any weights are read.

        Raises:
            InputError: a model, a size or a setting that does not exist or does not fit.
        """
        check(settings)
        if not 0 <= self.seed < 2**63:
            raise InputError(f"--seed is {self.seed}; give a number from 0 to 2^63 - 1")
        folder = find_model(self.model)
        name, record = identify(folder)
        sizes = variant(name).resized(self.frames, self.height, self.width)
        channels = sizes.vae.latent_channels
        if self.calibration is None:
            from_record(record, folder, channels)
        else:
            record = load_record(self.calibration, name, channels)
        with timed(seconds, "text"):
            told = self._told(folder, sizes)
        for line in told.cuts:
            note(line)
        with timed(seconds, "load model"):
            model = load_uncalibrated(folder)._replace(variant=sizes)
            model = calibrated(model, record, self.calibration or folder)
        settings = resolve(settings, model, isinstance(footage, Edit))
        with progress_bar(len(plan(model, footage)) * settings.steps) as progress:
            take = direct(model, settings, footage, told.context, seed=self.seed, progress=progress)
        return Run(model, settings, take, told)

    def prompted(self, prompt: str) -> "Generator":
        """The same with this prompt, unless it has one already."""
        if self.prompt or self.context is not None:
            return self
        return dataclasses.replace(self, prompt=prompt)

    def record(self, run: Run, footage: Footage) -> dict[str, Any]:
        """As result.json has it."""
        sizes = run.model.variant
        negative, prompt = run.told.prompts
        return {
            "prompt": prompt,
            "negative_prompt": negative,
            "cut": run.told.cuts,
            "context": self.context,
            "model": run.model.name,
            "calibration": self.calibration,
            "working_size": {"frames": sizes.frames, "height": sizes.height, "width": sizes.width},
            "windows": [
                [w.start, min(w.stop, len(footage.frames))] for w in plan(run.model, footage)
            ],
            "seed": self.seed,
            "settings": dataclasses.asdict(run.settings),
        }

    def _told(self, folder: Path, sizes: Variant) -> Told:
        if self.context is not None:
            if self.prompt or self.negative_prompt is not None:
                raise InputError(f"{self.context}: holds the prompts; leave --prompt out")
            context, prompts = text.load_context(self.context, sizes)
            return Told(context, prompts, [])
        negative = self.negative_prompt
        prompts = (sizes.negative_prompt if negative is None else negative), self.prompt
        context, cuts = text.embed_prompts(folder, sizes, prompts)
        return Told(context, prompts, cuts)
