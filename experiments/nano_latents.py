"""What the small generator learns from: latents, captions and object shares of rendered scenes.

    python -m experiments.nano_latents

A scene is one seed, rendered and encoded once, as it is and mirrored. Clips are few, for they are
dear; stills are many: what a word looks like is learned from many different pictures, and a
generator that sees too few learns them by heart (held-out scenes tell: it knew the shapes of the
stills that it was trained on two to three times better than those of others). Siblings are stills
that differ in nothing but which object has which shape: what changes is what the words say.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Array, ArrayLike, Float, Int, PyTree
from tqdm import tqdm

from experiments.scene_render import object_map
from experiments.scenes import SHAPES, Scene, caption, render, reshaped, scene_of
from ic_jax.checkpoint import load
from ic_jax.latent_mask import coverage
from ic_jax.models import wan_vae
from ic_jax.models.variants import VARIANTS

NANO = VARIANTS["nano"]
FIRST_STILL_SEED, FIRST_SIBLING_SEED = 10_000, 100_000
SIBLINGS = len(SHAPES)  # so that each object has every shape once
_OTHER_SIDE = {"left": "right", "right": "left"}
CHUNK = 500  # scenes in one file; a run that was cut off goes on with the next


@dataclass
class Arguments:
    """Render and encode the scenes; a file that is there is not made again."""

    data: Path = Path(".data")
    clips: int = 7_500
    """Whole clips, from seed 0."""
    stills: int = 45_000
    """One frame each, of other scenes."""
    sibling_scenes: int = 10_000
    """One frame each, of yet other scenes, once for every turn of their objects' shapes."""


class Examples(NamedTuple):
    """Latents of unit size, the share of each that shows an object, and what a user would say."""

    latents: Float[np.ndarray, "n t h w c"]
    objects: Float[np.ndarray, "n t h w"]
    captions: list[str]


def clips(arguments: Arguments) -> Examples:
    seeds = range(arguments.clips)
    return _joined(arguments.data, "clips", seeds, NANO.frames)


def stills(arguments: Arguments) -> Examples:
    seeds = range(FIRST_STILL_SEED, FIRST_STILL_SEED + arguments.stills)
    return _joined(arguments.data, "stills", seeds, 1)


def siblings(arguments: Arguments) -> Examples:
    """Stills in groups of `SIBLINGS` that follow each other."""
    seeds = range(FIRST_SIBLING_SEED, FIRST_SIBLING_SEED + arguments.sibling_scenes)
    return _joined(arguments.data, "siblings", seeds, 1, turns=SIBLINGS)


def turned(scene: Scene, turn: Int[ArrayLike, ""]) -> Scene:
    """The scene with every object's shape `turn` further on in one order of all shapes.

    Each turn gives no two objects the same shape, as in the scene itself; all of them give each
    object every shape once.
    """
    shape = scene.objects.shape
    order = jnp.append(shape, sum(range(len(SHAPES))) - shape.sum())
    return reshaped(scene, jnp.roll(order, -turn)[: len(shape)])


def _joined(data, name, seeds, frames, turns=1):
    files = [np.load(file) for file in _files(data, name, seeds, frames, turns)]
    captions = [text for file in files for text in json.loads(str(file["captions"]))]
    join = lambda key: np.concatenate([file[key] for file in files])
    return Examples(join("latents"), join("objects"), captions)


def _files(data: Path, name: str, seeds: range, frames: int, turns: int) -> Iterator[Path]:
    """One file per chunk of seeds, made where it is missing."""
    vae, _ = load(data / "vae.safetensors")
    folder = data / "latents"
    folder.mkdir(exist_ok=True)
    for i in tqdm(range(0, len(seeds), CHUNK), desc=name, mininterval=10):
        chunk = seeds[i : i + CHUNK]
        file = folder / f"{name}_{chunk.start:06d}_{chunk.stop:06d}.npz"
        if not file.exists():
            partial_file = file.with_suffix(".partial.npz")
            np.savez(partial_file, **_encoded(vae, chunk, frames, turns))
            partial_file.rename(file)
        yield file


def _encoded(vae: PyTree, seeds: range, frames: int, turns: int) -> dict:
    """A seed's turns, then the same mirrored, then the next seed's."""
    found = [[_example(vae, seed, turn, frames) for turn in range(turns)] for seed in seeds]
    # [seed][turn][latents, objects][mirrored] -> [latents, objects][seed, mirrored, turn]
    latents, objects = (
        np.concatenate([np.swapaxes([turn[part] for turn in scene], 0, 1) for scene in found])
        for part in (0, 1)
    )
    flat = lambda a: a.reshape(-1, *a.shape[2:])
    texts = [
        _said(seed, turn, mirrored)
        for seed in seeds for mirrored in (False, True) for turn in range(turns)
    ]  # fmt: skip
    return {"latents": flat(latents), "objects": flat(objects), "captions": json.dumps(texts)}


@partial(jax.jit, static_argnames="frames")
def _example(
    vae: PyTree, seed, turn, frames: int
) -> tuple[Float[Array, "2 t h w c"], Float[Array, "2 t h w"]]:
    """A scene and its mirror image: latents, and shares of their own pixels that show an object.

    A still is any one frame of the scene's clip.
    """
    height, width = NANO.height, NANO.width
    scene, c2w, intrinsics = scene_of(seed, NANO.frames, height, width)
    scene = turned(scene, turn)
    latest = NANO.frames - frames
    first = jax.random.randint(jax.random.fold_in(jax.random.key(seed), 1), (), 0, latest + 1)
    cut = lambda a: jax.lax.dynamic_slice_in_dim(a, first, frames)
    times = cut(jnp.linspace(0, 1, NANO.frames))
    clip, _ = render(scene, cut(c2w), intrinsics, times, height, width)
    clip = jnp.round((clip + 1) * 127.5) / 127.5 - 1  # as a file would hold it
    shown = object_map(scene, cut(c2w), intrinsics, times, height, width) >= 0
    t, h, w, _ = NANO.vae.latent_shape(frames, height, width)
    share = coverage(shown.astype(jnp.float32), (t, h, w))[..., 0]
    both = jnp.stack([clip, clip[:, :, ::-1]])
    return wan_vae.encode(NANO.vae, vae, both), jnp.stack([share, share[:, :, ::-1]])


def _said(seed: int, turn: int, mirrored: bool) -> str:
    scene, *_ = scene_of(seed, NANO.frames, NANO.height, NANO.width)
    text = caption(turned(scene, turn))
    if not mirrored:
        return text
    return re.sub(r"\b(left|right)\b", lambda side: _OTHER_SIDE[side[0]], text)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments)
    for make in (clips, stills, siblings):
        print(f"{make.__name__}: {make(arguments).latents.shape}")
