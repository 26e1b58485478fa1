"""`ic-jax recapture`: a clip from a new camera."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from .. import delivery
from ..director import direct, plan, resolve, timed
from ..model import BUNDLED, Model, load_model
from ..output import output_folder, write_result
from ..pipeline import Settings
from .console import progress_bar, report, rounded
from .source import Flat, Source


@dataclass(frozen=True)
class Recapture:
    """Show a clip from a new camera: keep what was seen, generate what was not."""

    source: Flat[Source] = field(default_factory=Source)
    out: Path = Path("recapture")
    """Folder of the results. An earlier result is replaced; anything else is left alone."""
    prompt: str = ""
    """What the clip shows. The bundled model reads the first 63 bytes."""
    negative_prompt: str = ""
    """What it should not show."""
    model: Path = Path("nano")
    """Folder of a model's weights; without it, the bundled small model."""
    truth: Path | None = None
    """A video of the true new view, where it is known: adds PSNR by region."""
    seed: int = 0
    """Same seed, same frames."""
    settings: Flat[Settings] = field(default_factory=Settings)

    def run(self) -> None:
        if self.source.clip is None:
            self = self._of_the_sample()
        seconds: dict[str, float] = {}
        with output_folder(self.out) as folder:
            with timed(seconds, "read"):
                clip, shot = self.source.load()
                truth = delivery.read_truth(self.truth, clip) if self.truth else None
            with timed(seconds, "load model"):
                model = load_model(self.model)
            settings = resolve(self.settings, model)
            with progress_bar(len(plan(model, shot)) * settings.steps) as advance:
                take = direct(
                    model,
                    settings,
                    shot,
                    prompt=self.prompt,
                    negative_prompt=self.negative_prompt,
                    seed=self.seed,
                    progress=advance,
                )
            seconds |= take.seconds
            facts = delivery.measure(take, truth)
            with timed(seconds, "write"):
                self._write(folder, clip, take, truth, model, facts)
            write_result(folder, self._record(clip, shot, model, settings, facts, seconds))
        report(self.out, facts)

    def _of_the_sample(self) -> "Recapture":
        """Prompt and, from the one camera where it is known, truth of the bundled clip."""
        sample = json.loads((BUNDLED / "clip.json").read_text())
        known = (self.source.camera, self.source.amount) == (sample["camera"], None)
        return dataclasses.replace(
            self,
            prompt=self.prompt or sample["prompt"],
            truth=self.truth or (BUNDLED / "clip_truth.mp4" if known else None),
        )

    def _write(self, folder, clip, take, truth, model: Model, facts) -> None:
        shown = {
            "Camera": self.source.camera,
            "Model": model.name,
            "Coverage": f"{facts['coverage']:.0%}",
            "Visible part": f"{facts['visible_psnr_db']:.1f} dB",
            "Seed": str(self.seed),
        }
        if "psnr_db" in facts:
            shown["Against truth"] = f"{facts['psnr_db']['whole']:.1f} dB"
        title = self.prompt or clip.path.name
        delivery.write_take(folder, clip, take, truth, title, shown)

    def _record(self, clip, shot, model: Model, settings: Settings, facts, seconds) -> dict:
        sizes = model.variant
        return {
            "command": "recapture",
            **self.source.described(),
            **delivery.describe(clip),
            "prompt": self.prompt,
            "negative_prompt": self.negative_prompt,
            "truth": self.truth,
            "model": model.name,
            "working_size": {"frames": sizes.frames, "height": sizes.height, "width": sizes.width},
            "windows": [[w.start, min(w.stop, len(shot.frames))] for w in plan(model, shot)],
            "seed": self.seed,
            "settings": dataclasses.asdict(settings),
            **facts,
            "seconds": rounded(seconds),
            **delivery.environment(),
        }
