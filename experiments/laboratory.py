"""One arm on one task: observe, mask, sample, decode, score. What was scored is kept on disk.

What is kept knows the weights, the sizes, the calibration, the settings and the user's own file
of methods, but not the code of this package: after a change to one of its methods or masks,
remove the folder `laboratory` under --data.

An arm is a `Settings`; a task has a known truth (experiments/tasks.py). All arms of a task start
from the same noise, so that differences between them are paired.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from zlib import crc32

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments import autoencoder
from experiments.clip_files import ClipFile
from experiments.metrics import regions, residual, scores
from experiments.tasks import TASKS, Task
from ic_jax import pipeline
from ic_jax.choices import variance_scale
from ic_jax.latent_mask import LatentMask
from ic_jax.model import Model, find_model, load_model
from ic_jax.pipeline import Observation
from ic_jax.settings import Settings
from ic_jax.text import embed_prompts

# Compiled once each and called often; masks have one shape for all, so that the sampler is
# compiled once per method and not once per mask.
_observe = jax.jit(pipeline.observe, static_argnums=(0, 1))
_mask = jax.jit(pipeline.latent_mask, static_argnums=(0, 1))
_sample = jax.jit(pipeline.sample, static_argnums=(0, 1))
_PLAIN = Settings(latent_mask="mean")


class Laboratory:
    """A model, the tasks it is tried on, and everything it has scored so far."""

    def __init__(
        self,
        model: str | Path,
        data: Path,
        clips: Sequence[ClipFile] | None = None,
        code: bytes = b"",
    ):
        """`code` is what else the arms depend on: what was scored with other code is not read."""
        self.clips = clips
        self.folder = find_model(model)
        self.model: Model = load_model(model)
        self.data = data
        self.kept = data / "laboratory" / digest(self.model, clips, code)
        self.kept.mkdir(parents=True, exist_ok=True)
        self.task = lru_cache(64)(self.task)
        self.observed = lru_cache(64)(self.observed)
        self.masked = lru_cache(512)(self.masked)

    def score(self, kind: str, number: int, arm: Settings) -> dict:
        """The arm's figures on a task; made once, then read."""
        return self._keep(kind, number, repr(arm), lambda: self._score(kind, number, arm))

    def reference(self, kind: str, number: int, name: str) -> dict:
        """The figures of what needs no generator, one of `REFERENCES`."""
        make = REFERENCES[name]
        return self._keep(kind, number, name, lambda: self._judge(kind, number, make))

    # The steps ------------------------------------------------------------------------

    def task(self, kind: str, number: int) -> Task:
        return TASKS[kind](self.model.variant, self.data, number, self.clips)

    def observed(self, kind: str, number: int) -> Observation:
        """Its mask is not yet the arm's."""
        sizes, weights = self.model.variant, self.model.weights
        scene = self.task(kind, number).scene
        return _observe(sizes, _PLAIN, weights, scene, scene, _key(kind, number))

    def masked(self, kind: str, number: int, name: str) -> LatentMask:
        """As calibrated, of the latent's own shape."""
        sizes, weights = self.model.variant, self.model.weights
        observation = self.observed(kind, number)
        settings = Settings(latent_mask=name)
        operator = self.task(kind, number).scene.operator
        key = _key(kind, number)
        a, v = _mask(sizes, settings, weights, operator, observation.measurement, key)
        v = variance_scale(self.model, name) * v
        shape = observation.measurement.latent.shape
        return LatentMask(jnp.broadcast_to(a, shape), jnp.broadcast_to(v, shape))

    def sampled(self, kind: str, number: int, arm: Settings) -> Float[Array, "t h w c"]:
        sizes, weights = self.model.variant, self.model.weights
        caption = self.task(kind, number).caption
        context = embed_prompts(self.folder, sizes, ("", caption)).context
        mask = self.masked(kind, number, arm.latent_mask)
        observation = self.observed(kind, number)._replace(mask=mask)
        how = replace(arm, latent_mask="mean")  # made above: one program for all masks
        return _sample(sizes, how, weights, context, observation, _key(kind, number)).x

    def encode(self, clip: Float[Array, "t h w 3"]) -> Float[Array, "t2 h2 w2 c"]:
        return autoencoder.encode(self.model.variant, self.model.weights.vae, clip)

    def decode(self, latent: Float[Array, "t2 h2 w2 c"]) -> Float[np.ndarray, "t h w 3"]:
        return np.asarray(autoencoder.decode(self.model.variant, self.model.weights.vae, latent))

    # The figures ------------------------------------------------------------------------

    def _score(self, kind: str, number: int, arm: Settings) -> dict:
        latent = self.sampled(kind, number, arm)
        y = self.observed(kind, number).measurement.latent
        # The same weight for all arms, or each would be judged by its own mask.
        weight = self.masked(kind, number, "mean").weight(1.0)
        found = self._judge(kind, number, lambda lab, *_: lab.decode(latent))
        return found | {"residual": residual(*map(np.asarray, (latent, y, weight)))}

    def _judge(self, kind: str, number: int, make: Callable) -> dict:
        task, observation = self.task(kind, number), self.observed(kind, number)
        clip = np.asarray(make(self, task, observation))
        where = regions(np.asarray(observation.visible))
        return scores(clip, np.asarray(task.truth), where, task.flow)

    def _keep(self, kind: str, number: int, what: str, make: Callable[[], dict]) -> dict:
        name = hashlib.sha256(what.encode()).hexdigest()[:16]
        file = self.kept / f"{kind}_{number:03d}" / f"{name}.json"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            partial_file = file.with_suffix(".partial")
            partial_file.write_text(json.dumps({"what": what, "figures": make()}))
            partial_file.rename(file)
        return json.loads(file.read_text())["figures"]


REFERENCES: dict[str, Callable[[Laboratory, Task, Observation], Array]] = {
    "the filled measurement itself": lambda lab, task, seen: seen.measurement.clip,
    "its round trip through the autoencoder": lambda lab, task, seen: lab.decode(
        seen.measurement.latent),
    "the truth's round trip: the ceiling": lambda lab, task, seen: lab.decode(
        lab.encode(task.truth)),
}
"""Rows that no sampler takes part in."""


def digest(model: Model, clips: Sequence[ClipFile] | None = None, code: bytes = b"") -> str:
    """Changes with the weights, the sizes, the calibration, the user's clips and their code."""
    found = hashlib.sha256(repr((model.variant, clips)).encode())
    found.update(json.dumps(model.calibration, sort_keys=True).encode())
    for leaf in jax.tree.leaves(model.weights):
        found.update(np.asarray(leaf).tobytes())
    found.update(code)
    return found.hexdigest()[:12]


def _key(kind: str, number: int) -> Array:
    return jax.random.fold_in(jax.random.key(crc32(kind.encode())), number)
