"""What `recapture` and `inpaint` share: a model, a prompt, a size, and the run itself."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from .. import text
from ..budget import check_fits, check_host_fits, device_memory, host_memory
from ..calibration import from_record, load_record
from ..choices import check, resolve
from ..director import Footage, Take, check_seed, direct, plan, timed
from ..edit import Edit
from ..errors import InputError
from ..midway import identity, load
from ..model import Model, Weights, calibrated, find_model, fingerprint, identify, load_uncalibrated
from ..models.variants import Variant, variant
from ..settings import Settings, most_prompts
from .console import note, progress_bar
from .resumption import kept, where
from .spread import spread


class Run(NamedTuple):
    """A take, and all that it was made with."""

    model: Model
    settings: Settings
    take: Take
    told: "Told"
    resumed: str | None
    """Where it was taken up again."""


class Told(NamedTuple):
    """Prompts as the generator reads them."""

    context: Float[Array | np.ndarray, "2 l d"]
    prompts: tuple[str, str]
    """The negative one first."""
    cuts: list[str]


class Found(NamedTuple):
    """What is known of a model before any of its weights are read."""

    folder: Path
    name: str
    sizes: Variant
    calibration: dict[str, Any]
    where: Path
    """Where the calibration is from."""

    def resolve(self, settings: Settings, editing: bool) -> Settings:
        """`choices.resolve`, which asks for no weights."""
        without = Model(self.name, self.sizes, Weights(vae={}, dit={}), self.calibration)
        return resolve(settings, without, editing)


@dataclass(frozen=True)
class Chosen:
    """A model, and the size that it works at."""

    model: Path = Path("nano")
    """Folder of a model that `ic-jax convert` made; without it, the bundled small model."""
    calibration: Path | None = None
    """A file that `ic-jax calibrate --out` wrote, in place of the model's own calibration."""
    frames: int | None = None
    """Frames in a window, 4k+1 and at least 9; without it, as many as the model was trained
    with."""
    height: int | None = None
    """Height that the model works at, in pixels, a multiple of 16; without it, the model's own.
    The result has the clip's."""
    width: int | None = None
    """Width that the model works at, likewise."""

    def find(self) -> Found:
        """Raises InputError for a model or a size that does not exist."""
        folder = find_model(self.model)
        name, record = identify(folder)
        sizes = variant(name).resized(self.frames, self.height, self.width)
        channels = sizes.vae.latent_channels
        if self.calibration is not None:
            record = load_record(self.calibration, name, channels)
            return Found(folder, name, sizes, record, self.calibration)
        from_record(record, folder, channels)
        return Found(folder, name, sizes, record, folder)


@dataclass(frozen=True)
class Generator(Chosen):
    """A model, what it is told, and how it runs."""

    prompt: str = ""
    """What the result shows. The bundled model reads the first 63 bytes."""
    negative_prompt: str | None = None
    """What it should not show; without it, the model's own."""
    context: Path | None = None
    """Prompts that `ic-jax embed` has encoded: the text encoder is not loaded."""
    seed: int = 0
    """Same seed, same frames: from 0 to 4294967295."""
    devices: int = 1
    """Devices that share the clip. The model's weights are cut up where memory asks for it."""
    resume: bool = False
    """Keep the state of the run in OUT.resume, and go on from there if it was stopped."""

    def run(
        self,
        footage: Footage,
        settings: Settings,
        seconds: dict[str, float],
        state: Path | None = None,
    ) -> Run:
        """Encode the prompts, free the text encoder, load the model, and direct.

        What can be wrong without them is looked at before any weights are read. `state` is
        where the run is kept while it goes on, and what it goes on from.

        Raises:
            InputError: a model, a size or a setting that does not exist or does not fit.
        """
        found, settings, prompts = self._checked(settings, isinstance(footage, Edit))
        reuse = settings.reuse > 0
        layout, shardings = spread(found.folder, found.sizes, prompts, self.devices, reuse)
        with timed(seconds, "text"):
            told = self._told(found.folder, found.sizes)
        for line in told.cuts:
            note(line)
        with timed(seconds, "load model"):
            model = load_uncalibrated(found.folder, shardings)._replace(variant=found.sizes)
            model = calibrated(model, found.calibration, found.where)
        known = model, settings, footage
        run_identity = begun = None
        if state is not None:
            run_identity = identity(fingerprint(found.folder), *known, told.context, self.seed)
            run_identity["devices"] = self.devices
            begun = load(state, run_identity, *known) if state.exists() else None
        if begun is not None:
            note(f"going on {where(begun)}")
        steps = len(plan(model, footage)) * settings.steps
        # The bar ends first: what is said of the run stands below it.
        with kept(state, run_identity, settings.steps) as keep, progress_bar(steps) as progress:
            take = direct(
                *known,
                told.context,
                seed=self.seed,
                progress=progress,
                midway=begun,
                keep=keep,
                layout=layout,
            )
        return Run(model, settings, take, told, where(begun) if begun else None)

    def check(self, settings: Settings) -> None:
        """Raises InputError for what is wrong whatever the model."""
        check(settings)
        check_seed(self.seed)
        if self.context is not None and (self.prompt or self.negative_prompt is not None):
            raise InputError(f"{self.context}: holds the prompts; leave --prompt out")

    def asked(self, sizes: Variant) -> tuple[str, str]:
        """Negative prompt and prompt, where there is no context."""
        negative = self.negative_prompt
        return sizes.negative_prompt if negative is None else negative, self.prompt

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
            "devices": self.devices,
            "resumed": run.resumed,
            "settings": dataclasses.asdict(run.settings),
        }

    def _checked(self, settings: Settings, editing: bool) -> tuple[Found, Settings, int]:
        """The model, all settings, and how many prompts it is asked with at a time.

        Says what may not fit.
        """
        found = self.find()
        settings = found.resolve(settings, editing)
        prompts = most_prompts(found.sizes, settings)
        if self.context is None:
            check_host_fits(found.name, found.sizes, host_memory())
        if self.devices == 1:  # more of them are chosen by their memory
            memory = device_memory(jax.local_devices()[0])
            reuse = settings.reuse > 0
            if warning := check_fits(found.name, found.sizes, prompts, memory, reuse):
                note(warning)
        return found, settings, prompts

    def _told(self, folder: Path, sizes: Variant) -> Told:
        if self.context is not None:
            context, prompts = text.load_context(self.context, sizes)
            return Told(context, prompts, [])
        prompts = self.asked(sizes)
        context, cuts = text.embed_prompts(folder, sizes, prompts)
        return Told(context, prompts, cuts)
