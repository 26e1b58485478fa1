"""`ic-jax warp`: geometry alone, in seconds."""

from dataclasses import dataclass, field
from pathlib import Path

from .. import delivery
from ..budget import full_device_told
from ..director import look, timed
from ..framing import FRAMES_AT_ONCE
from ..output import output_folder, write_result
from .console import progress_bar, report, rounded
from .job import check_place
from .source import Flat, Source


@dataclass(frozen=True)
class Warp:
    """Geometry alone: what the new camera would see of the clip, at the clip's own size."""

    source: Flat[Source] = field(default_factory=Source)
    out: Path = Path("warp")
    """Folder of the results. An earlier result is replaced; anything else is left alone."""

    def run(self) -> None:
        self.source.check()
        check_place(self)
        seconds: dict[str, float] = {}
        with full_device_told("give a shorter or smaller clip"), output_folder(self.out) as folder:
            with timed(seconds, "read"):
                clip, shot = self.source.load()
            rounds = -(-len(clip.frames) // FRAMES_AT_ONCE)
            with progress_bar(rounds + 2) as progress:
                with timed(seconds, "warp"):
                    warped, visible = look(shot, progress)
                facts = {"coverage": round(float(visible.mean()), 4)}
                with timed(seconds, "write"):
                    delivery.write_like(folder / "warped.mp4", warped, clip)
                    progress("write", 1)
                    delivery.write_like(folder / "visible.mp4", delivery.as_grey(visible), clip)
                    progress("write", 1)
            record = {
                "command": "warp",
                **self.source.described(),
                **delivery.describe(clip),
                **facts,
                "seconds": rounded(seconds),
                **delivery.environment(),
            }
            write_result(folder, record)
        report(self.out, facts)
