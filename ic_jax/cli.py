"""ic-jax: give a video a new camera, from the command line."""

import dataclasses
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from tqdm import tqdm

from . import delivery
from .director import Progress, direct, plan, resolve, timed, warp
from .errors import InputError
from .geometry.trajectory import TRAJECTORIES
from .model import BUNDLED, Model, load_model
from .output import output_folder, write_result
from .pipeline import Settings
from .shot import Shot, load_shot
from .video import Clip, read_video

# Bounds the memory of `ic-jax warp` and changes nothing else.
FRAMES_AT_ONCE = 8


@dataclass(frozen=True)
class Source:
    """A clip, its depth, and the camera that it is to be seen from."""

    clip: tyro.conf.Positional[Path | None] = None
    """A video, a GIF or a folder of frames; without it, the bundled sample."""
    depth: Path | None = None
    """Depth of every frame: .npz with depth, kind, intrinsics, c2w (see README), or .npy."""
    depth_kind: str | None = None
    """Of an .npy file: metric or relative."""
    fov: float | None = None
    """Horizontal field of view in degrees, for depth without intrinsics."""
    camera: str = "arc_left"
    """The new camera: the name of a path, or a JSON file of poses."""
    amount: float | None = None
    """How far a named path goes: degrees, or a fraction of the scene's depth."""

    def load(self) -> tuple[Clip, Shot]:
        """Raises InputError where a file is missing or unfit."""
        path, depth = self.clip or BUNDLED / "clip.mp4", self.depth
        if depth is None and self.clip is not None:
            raise InputError(f"{path}: its depth is needed too; pass --depth FILE.npz")
        clip = read_video(path)
        shot = load_shot(
            clip,
            depth or BUNDLED / "clip_depth.npz",
            self.camera,
            amount=self.amount,
            depth_kind=self.depth_kind,
            fov=self.fov,
        )
        return clip, shot

    def described(self) -> dict:
        """As result.json records it: a named path's own amount in place of None."""
        move = TRAJECTORIES.get(self.camera)
        amount = move.amount if move and self.amount is None else self.amount
        return dataclasses.asdict(self) | {"amount": amount}


Flat = tyro.conf.OmitArgPrefixes


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


@dataclass(frozen=True)
class Warp:
    """Geometry alone: what the new camera would see of the clip, at the clip's own size."""

    source: Flat[Source] = field(default_factory=Source)
    out: Path = Path("warp")
    """Folder of the results. An earlier result is replaced; anything else is left alone."""

    def run(self) -> None:
        seconds: dict[str, float] = {}
        with output_folder(self.out) as folder:
            with timed(seconds, "read"):
                clip, shot = self.source.load()
            with timed(seconds, "warp"):
                warped, visible = warp(shot, min(len(shot.frames), FRAMES_AT_ONCE))
            if not visible.any():
                raise InputError("the new camera sees nothing of the clip; use a smaller move")
            facts = {"coverage": round(float(visible.mean()), 4)}
            with timed(seconds, "write"):
                delivery.write_like(folder / "warped.mp4", warped, clip)
                delivery.write_like(folder / "visible.mp4", delivery.as_grey(visible), clip)
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


def report(out: Path, facts: dict) -> None:
    described = [f"{facts['coverage']:.0%} of the new view was seen"]
    if "visible_psnr_db" in facts:
        described.append(f"kept at {facts['visible_psnr_db']} dB")
    # An empty region, such as the holes of a view without any, has no PSNR.
    known = {name: value for name, value in facts.get("psnr_db", {}).items() if value == value}
    if known:
        by_region = ", ".join(f"{name} {value}" for name, value in known.items())
        described.append(f"against the true view: {by_region} dB")
    print("; ".join(described))
    print(f"results in {out}/")


def main() -> None:
    """Entry point: exit code 2 and one line for bad input."""
    # So that a run that is told to stop cleans up as on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    commands = {"recapture": Recapture, "warp": Warp}
    command = tyro.extras.subcommand_cli_from_dict(
        commands, prog="ic-jax", description=__doc__.partition(":")[2].strip().capitalize()
    )
    try:
        command.run()
    except InputError as error:
        print(f"ic-jax: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("ic-jax: stopped; nothing was written", file=sys.stderr)
        sys.exit(130)
