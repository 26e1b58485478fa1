"""Edits whose success is known: one object of a held-out scene becomes another.

A task is a clip, a user's rough mask over one object, and a caption that gives that object a
colour and a shape which nothing in the scene has. The same scene, rendered with the object
replaced and everything else as it was, shows what a success looks like.
"""

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from experiments.scene_render import Scene, object_map
from experiments.scenes import COLOURS, PAINT, SHAPES, caption, render, scene_of

# Not trained on, not evaluated on by experiments.evaluate, not calibrated on.
FIRST_EDIT_SEED = 3_000_000
SMALLEST_OBJECT = 120  # pixels in every frame, 2 % of a small frame: what a user would point at
MARGIN = 6  # pixels that the mask's box goes beyond what it is drawn around
VISIBLE = 0.04  # of two: a change of five levels of a byte


class Look(NamedTuple):
    """What an edit changes about an object."""

    colour: int  # index into COLOURS
    shape: int  # index into SHAPES


class EditTask(NamedTuple):
    """One edit. `regenerate` is the user's mask.

    Boxes are the object's with a margin, [top, left, bottom, right) per frame.
    """

    clip: Float[np.ndarray, "t h w 3"]
    regenerate: Bool[np.ndarray, "t h w"]
    boxes: Int[np.ndarray, "t 4"]
    edited: Float[np.ndarray, "t h w 3"]
    captions: tuple[str, str]  # of the clip and of the edited clip
    looks: tuple[Look, Look]  # the object's, before and after


def edit_tasks(
    folder: Path, number: int, frames: int, height: int, width: int, shadow: bool
) -> Iterator[EditTask]:
    """The first `number` tasks, each rendered once and read from `folder` afterwards."""
    return islice(_all_tasks(folder, frames, height, width, shadow), number)


def object_boxes(which: Int[np.ndarray, "t h w"]) -> dict[int, Int[np.ndarray, "t 4"]]:
    """Tight boxes of the objects of which `SMALLEST_OBJECT` pixels show in every frame, by slot."""
    shown = {slot: which == slot for slot in range(which.max() + 1)}
    large = {s: m for s, m in shown.items() if (m.sum((1, 2)) >= SMALLEST_OBJECT).all()}
    return {slot: np.stack([_box(frame) for frame in mask]) for slot, mask in large.items()}


def grown(boxes: Int[np.ndarray, "t 4"], margin: int, height: int, width: int):
    """Boxes with a margin, cut at the frame."""
    wider = boxes + margin * np.array([-1, -1, 1, 1])
    return np.clip(wider, 0, [height, width, height, width])


def box_mask(boxes: Int[np.ndarray, "t 4"], height: int, width: int) -> Bool[np.ndarray, "t h w"]:
    """True inside each frame's box."""
    top, left, bottom, right = (side[:, None, None] for side in boxes.T)
    row, column = np.mgrid[:height, :width]
    return (row >= top) & (row < bottom) & (column >= left) & (column < right)


def traces(
    scene: Scene, slot: int, clip: Float[np.ndarray, "t h w 3"], view: tuple
) -> Int[np.ndarray, "t 4"]:
    """Tight boxes of all that an object changes in a clip: its shadow on the room and on others."""
    objects = scene.objects
    without = scene._replace(objects=objects._replace(present=objects.present.at[slot].set(False)))
    change = np.abs(clip - np.asarray(render(without, *view)[0])).max(-1)
    return np.stack([_box(frame > VISIBLE) for frame in change])


def replaced(scene: Scene, slot: int, look: Look) -> Scene:
    """The scene with one object of another colour and shape, on the same path and floor.

    Balls and cubes are as high as they are wide; cylinders and cones a quarter higher, which is
    in the middle of what `sample_scene` draws.
    """
    objects = scene.objects
    tall = 1.0 if SHAPES[look.shape] in ("ball", "cube") else 1.25
    half = objects.half_size[slot, 0] * jnp.array([1.0, tall, 1.0])
    # y points down: a lower object's centre is nearer to the floor
    position = objects.position.at[slot, 1].add(objects.half_size[slot, 1] - half[1])
    return scene._replace(objects=objects._replace(
        shape=objects.shape.at[slot].set(look.shape),
        colour=objects.colour.at[slot].set(look.colour),
        albedo=objects.albedo.at[slot].set(PAINT[look.colour]),
        half_size=objects.half_size.at[slot].set(half), position=position))


def edit_task(
    seed: int, frames: int, height: int, width: int, shadow: bool = False
) -> EditTask | None:
    """The task that a seed stands for; None where no object is large enough.

    The mask is a box around the object; with `shadow`, around the shadow that it casts as well.
    """
    scene, c2w, intrinsics = scene_of(seed, frames, height, width)
    view = c2w, intrinsics, jnp.linspace(0, 1, frames), height, width
    boxes = object_boxes(np.asarray(object_map(scene, *view)))
    if not boxes:
        return None
    rng = np.random.default_rng(seed)
    slot = int(rng.choice(sorted(boxes)))
    present = np.flatnonzero(scene.objects.present)
    unused = (np.setdiff1d(range(len(names)), np.asarray(values)[present]) for names, values in (
        (COLOURS, scene.objects.colour), (SHAPES, scene.objects.shape)))
    after = Look(*(int(rng.choice(choices)) for choices in unused))
    before = Look(int(scene.objects.colour[slot]), int(scene.objects.shape[slot]))
    changed, clip = replaced(scene, slot, after), np.asarray(render(scene, *view)[0])
    rough = grown(boxes[slot], MARGIN, height, width)
    regenerate = box_mask(rough, height, width)
    if shadow:
        wide = grown(traces(scene, slot, clip, view), MARGIN, height, width)
        regenerate |= box_mask(wide, height, width)
    return EditTask(
        clip, regenerate, rough, np.asarray(render(changed, *view)[0]),
        (caption(scene), caption(changed)), (before, after))


def _all_tasks(folder, frames, height, width, shadow):
    folder.mkdir(parents=True, exist_ok=True)
    for seed in count(FIRST_EDIT_SEED):
        file = folder / f"{frames}x{height}x{width}_{seed}{'_shadow' * shadow}.npz"
        if not file.exists():
            task = edit_task(seed, frames, height, width, shadow)
            partial_file = file.with_suffix(".partial.npz")
            np.savez_compressed(partial_file, **task._asdict() if task else {})
            partial_file.rename(file)
        with np.load(file) as stored:
            if stored.files:
                yield _restored(stored)


def _restored(stored):
    parts = {name: stored[name] for name in EditTask._fields}
    parts["captions"] = tuple(map(str, parts["captions"]))
    parts["looks"] = tuple(Look(*map(int, look)) for look in parts["looks"])
    return EditTask(**parts)


def _box(shown: Bool[np.ndarray, "h w"]) -> Int[np.ndarray, "4"]:
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
