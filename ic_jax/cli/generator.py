"""What `recapture` and `inpaint` share: a model, a prompt, a size, and the run itself."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import text
from ..director import Footage, Take, direct, plan, resolve, timed
from ..model import Model, find_model, identify, load_model
from ..models.variants import Variant, variant
from ..pipeline import Settings
from .console import note, progress_bar


class Run(NamedTuple):
    """A take, and all that it was made with."""

    model: Model
    settings: Settings
    take: Take
    notes: list[str]


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

        Raises:
            InputError: a model, a size or a setting that does not exist or does not fit.
        """
        folder = find_model(self.model)
        sizes = variant(identify(folder)[0]).resized(self.frames, self.height, self.width)
        with timed(seconds, "text"):
            context, notes = self._context(folder, sizes)
        for line in notes:
            note(line)
        with timed(seconds, "load model"):
            model = load_model(folder)._replace(variant=sizes)
        settings = resolve(settings, model)
        with progress_bar(len(plan(model, footage)) * settings.steps) as progress:
            take = direct(model, settings, footage, context, seed=self.seed, progress=progress)
        return Run(model, settings, take, notes)

    def record(self, run: Run, footage: Footage) -> dict[str, Any]:
        """As result.json has it."""
        sizes = run.model.variant
        return {
            **{name: getattr(self, name) for name in ("prompt", "negative_prompt", "context")},
            "notes": run.notes,
            "model": run.model.name,
            "working_size": {"frames": sizes.frames, "height": sizes.height, "width": sizes.width},
            "windows": [
                [w.start, min(w.stop, len(footage.frames))] for w in plan(run.model, footage)
            ],
            "seed": self.seed,
            "settings": dataclasses.asdict(run.settings),
        }

    def _context(self, folder: Path, sizes: Variant) -> tuple[jax.Array, list[str]]:
        """[negative prompt, prompt], embedded; and what there is to say about them."""
        if self.context is not None:
            context, _ = text.load_context(self.context, sizes)
            return jnp.asarray(context), []
        negative = self.negative_prompt
        if negative is None:
            negative = sizes.negative_prompt
        return tuple(text.embed_prompts(folder, sizes, [negative, self.prompt]))
