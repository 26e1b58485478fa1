"""What the small generator learns from: latents, captions and object shares of rendered scenes.

    python -m experiments.nano_latents

A scene is one seed, rendered and encoded once, as it is and mirrored. Clips are few, for they are
dear; stills are many: what a word looks like is learned from many different pictures, and a
generator that sees too few learns them by heart (held-out scenes tell: it knew the shapes of the
stills that it was trained on two to three times better than those of others).
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
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from experiments.scene_render import object_map
from experiments.scenes import caption, render, scene_of
from ic_jax.checkpoint import load
from ic_jax.latent_mask import coverage
from ic_jax.models import wan_vae
from ic_jax.models.variants import VARIANTS

NANO = VARIANTS["nano"]
FIRST_STILL_SEED = 10_000
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


def _joined(data, name, seeds, frames):
    files = [np.load(file) for file in _files(data, name, seeds, frames)]
    captions = [text for file in files for text in json.loads(str(file["captions"]))]
    join = lambda key: np.concatenate([file[key] for file in files])
    return Examples(join("latents"), join("objects"), captions)


def _files(data: Path, name: str, seeds: range, frames: int) -> Iterator[Path]:
    """One file per chunk of seeds, made where it is missing."""
    vae, _ = load(data / "vae.safetensors")
    folder = data / "latents"
    folder.mkdir(exist_ok=True)
    for i in tqdm(range(0, len(seeds), CHUNK), desc=name, mininterval=10):
        chunk = seeds[i : i + CHUNK]
        file = folder / f"{name}_{chunk.start:06d}_{chunk.stop:06d}.npz"
        if not file.exists():
            partial_file = file.with_suffix(".partial.npz")
            np.savez(partial_file, **_encoded(vae, chunk, frames))
            partial_file.rename(file)
        yield file


def _encoded(vae: PyTree, seeds: range, frames: int) -> dict:
    found = [_example(vae, seed, frames) for seed in seeds]
    texts = [_said(seed, mirrored) for seed in seeds for mirrored in (False, True)]
    latents, objects = (np.concatenate([np.asarray(a) for a in part]) for part in zip(*found))
    return {"latents": latents, "objects": objects, "captions": json.dumps(texts)}


@partial(jax.jit, static_argnames="frames")
def _example(
    vae: PyTree, seed, frames: int
) -> tuple[Float[Array, "2 t h w c"], Float[Array, "2 t h w"]]:
    """A scene and its mirror image: latents, and shares of their own pixels that show an object.

    A still is any one frame of the scene's clip.
    """
    height, width = NANO.height, NANO.width
    scene, c2w, intrinsics = scene_of(seed, NANO.frames, height, width)
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


def _said(seed: int, mirrored: bool) -> str:
    text = caption(scene_of(seed, NANO.frames, NANO.height, NANO.width)[0])
    if not mirrored:
        return text
    return re.sub(r"\b(left|right)\b", lambda side: _OTHER_SIDE[side[0]], text)


if __name__ == "__main__":
    arguments = tyro.cli(Arguments)
    for make in (clips, stills):
        print(f"{make.__name__}: {make(arguments).latents.shape}")
