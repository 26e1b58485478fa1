"""`ic-jax calibrate`: how wrong a model is, measured on a user's own clips."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, Float, UInt8

from .. import delivery
from ..calibration import check_replaceable, to_record
from ..errors import InputError
from ..measure import measure, steps
from ..model import BUNDLED, find_model, identify, load_uncalibrated
from ..model_folder import MANIFEST, new_calibration
from ..models.variants import Variant, variant
from ..output import replaced_file
from ..text import embed_prompts
from ..video import find_videos, read_video
from .console import note, progress_bar

Store = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Calibrate:
    """Measure how wrong a model is on clips like yours, and keep that with the model."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of a converted model; or nano, the bundled one, with --out."""
    clips: Path
    """A video, or a folder of videos and of folders of frames. Each one's beginning is used."""
    prompts: Path | None = None
    """What clips show, as JSON: {"clip.mp4": "prompt"}. A clip that is not in it has none."""
    out: Path | None = None
    """A file for --calibration, in place of the model's folder."""
    draws: int = 2
    """Noises per clip, from 1 to 1000."""
    frames: int | None = None
    """Frames of each clip, 4k+1 and at least 9; without it, as many as the model was trained
    with."""
    height: int | None = None
    """Height that the model works at, in pixels, a multiple of 16; without it, the model's own."""
    width: int | None = None
    """Width that the model works at, likewise."""
    seed: int = 0
    """Same seed, same holes and noises: from 0 to 4294967295."""

    def run(self) -> None:
        self._check()
        folder = find_model(self.checkpoint)
        name, _ = identify(folder)
        sizes = variant(name).resized(self.frames, self.height, self.width)
        paths = find_videos(self.clips)
        prompts = _read_prompts(self.prompts, paths)
        with self._destination(folder) as store:
            clips = [_beginning(path, sizes) for path in paths]
            contexts = _contexts(folder, sizes, prompts)
            model = load_uncalibrated(folder)._replace(variant=sizes)
            with progress_bar(steps(len(clips), self.draws)) as progress:
                scales, arrays = measure(
                    model, clips, contexts, seed=self.seed, draws=self.draws, progress=progress
                )
            measured = {
                "variant": name,
                "clips": len(clips),
                "prompts": sum(map(bool, prompts)),
                "frames": sizes.frames,
                "height": sizes.height,
                "width": sizes.width,
                "draws": self.draws,
                "seed": self.seed,
                **delivery.environment(),
            }
            scales = {name: float(f"{scale:.4g}") for name, scale in scales.items()}
            store({"variance_scale": scales, **to_record(arrays), "measured": measured})
        error = arrays.clean_error
        half = float(error(jnp.float32(0.5)).mean())
        shown = ", ".join(f"{name} {scale}" for name, scale in scales.items())
        print(f"clips: {len(clips)}; clean error at half noise: {half:.2g}; scales of v: {shown}")

    def _check(self) -> None:
        for option, least, most in (("draws", 1, 1000), ("seed", 0, 2**32 - 1)):
            value = getattr(self, option)
            if not least <= value <= most:
                raise InputError(f"--{option} is {value}; give a number from {least} to {most}")

    @contextmanager
    def _destination(self, folder: Path) -> Iterator[Store]:
        """Where the record goes; that it can go there is known before anything is measured."""
        if self.out is not None:
            check_replaceable(self.out)
            replaces, place = self.out.exists(), self.out
            with replaced_file(self.out) as aside:
                yield lambda record: _write_json(aside, record)
        else:
            if not (folder / MANIFEST).exists():
                what = "the bundled model" if folder == BUNDLED else folder
                raise InputError(f"{what} is not written to; pass --out FILE.json")
            replaces, place = bool(identify(folder)[1]), folder / MANIFEST
            with new_calibration(folder) as store:
                yield store
        print(f"calibration in {place}" + (", in place of an earlier one" if replaces else ""))


def _write_json(file: Path, record: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=1) + "\n")


def _beginning(path: Path, sizes: Variant) -> UInt8[np.ndarray, "t h w 3"]:
    frames = read_video(path, sizes.frames).frames
    if len(frames) < sizes.frames:
        note(f"{path}: {len(frames)} frames; the last one is repeated up to {sizes.frames}")
    return frames


def _read_prompts(file: Path | None, clips: Sequence[Path]) -> list[str]:
    """One per clip. Raises InputError for a file of something else, or of other clips."""
    if file is None:
        return [""] * len(clips)
    try:
        prompts = json.loads(file.read_text())
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file; check the path of the prompts") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{file}: cannot be read as JSON") from error
    if not isinstance(prompts, dict) or not all(isinstance(p, str) for p in prompts.values()):
        raise InputError(f'{file}: give {{"clip.mp4": "prompt", ...}}')
    if strangers := sorted(prompts.keys() - {clip.name for clip in clips}):
        raise InputError(f"{file}: {strangers[0]} is none of the clips")
    return [prompts.get(clip.name, "") for clip in clips]


def _contexts(folder: Path, sizes: Variant, prompts: Sequence[str]) -> Float[Array, "n 2 l d"]:
    """[negative prompt, prompt] of every clip, each text encoded once."""
    different = list(dict.fromkeys([sizes.negative_prompt, *prompts]))
    context, cuts = embed_prompts(folder, sizes, different)
    for cut in cuts:
        note(cut)
    return jnp.stack([context[jnp.array([0, different.index(prompt)])] for prompt in prompts])
