"""Held-out scenes, each seen by a new camera whose true view is known."""

from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from experiments.scenes import caption, render, scene_of
from ic_jax.geometry.camera import Camera, compose
from ic_jax.geometry.depth import scene_radius
from ic_jax.geometry.trajectory import TRAJECTORIES, trajectory
from ic_jax.geometry.warp import WarpOperator, warp_operator

FIRST_TEST_SEED = 1_000_000
FIRST_CALIBRATION_SEED = 2_000_000  # neither trained on nor evaluated on

CAMERAS = ("arc_left", "arc_right", "zoom_out", "translate_left", "translate_right")
# Amounts are tried as multiples of the camera path's default.
MULTIPLES = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
SMALLEST_HOLES, LARGEST_HOLES = 0.06, 0.28

_operator = jax.jit(warp_operator)
_OPERATOR = jax.tree.structure(WarpOperator(0, 0, Camera(0, 0), Camera(0, 0), 0, 0))


class NewView(NamedTuple):
    """A scene's clip, its warp to a new camera, and what that camera truly sees."""

    clip: Float[Array, "t h w 3"]
    operator: WarpOperator
    truth: Float[Array, "t h w 3"]
    caption: str
    camera: str
    amount: float


def stored_view(
    folder: Path, seed: int, number: int, frames: int, height: int, width: int
) -> NewView:
    """`new_view`, rendered once and read from `folder` afterwards."""
    file = folder / f"{frames}x{height}x{width}_{seed}_{number}.npz"
    if not file.exists():
        view = new_view(seed, number, frames, height, width)
        folder.mkdir(parents=True, exist_ok=True)
        partial_file = file.with_suffix(".partial.npz")
        leaves, names = jax.tree.leaves(view.operator), (view.caption, view.camera)
        np.savez(partial_file, view.clip, view.truth, names, view.amount, *leaves)
        partial_file.rename(file)
    with np.load(file) as stored:
        clip, truth, (caption, camera), amount, *leaves = (stored[name] for name in stored)
    operator = jax.tree.unflatten(_OPERATOR, map(jnp.asarray, leaves))
    return NewView(
        jnp.asarray(clip), operator, jnp.asarray(truth), str(caption), str(camera), float(amount)
    )


def new_view(seed: int, number: int, frames: int, height: int, width: int) -> NewView:
    """Scene `seed` from the `number`-th of the cameras in turn.

    The wanted share of holes runs through 6 to 28 % in an order without pattern; of six
    amounts, the one that comes nearest to it, judged by every fourth frame, is taken.
    """
    scene, c2w, intrinsics = scene_of(seed, frames, height, width)
    times = jnp.linspace(0, 1, frames)
    show = partial(render, scene, intrinsics=intrinsics, times=times, height=height, width=width)
    clip, depth = show(c2w)
    source = Camera(c2w, jnp.broadcast_to(intrinsics, (frames, 3, 3)))
    name = CAMERAS[number % len(CAMERAS)]
    amounts = TRAJECTORIES[name].amount * np.array(MULTIPLES)
    targets = [_moved(source, name, depth, amount) for amount in amounts]
    holes = np.array([_share_of_holes(depth, source, target) for target in targets])
    golden = (number * 0.618034) % 1  # low-discrepancy: every run of numbers covers the range
    best = np.argmin(np.abs(holes - SMALLEST_HOLES - golden * (LARGEST_HOLES - SMALLEST_HOLES)))
    truth, _ = show(targets[best].c2w)
    operator = _operator(depth, source, targets[best])
    return NewView(clip, operator, truth, caption(scene), name, float(amounts[best]))


def _share_of_holes(depth: Float[Array, "t h w"], source: Camera, target: Camera) -> float:
    sparse = jax.tree.map(lambda leaf: leaf[::4], (depth, source, target))
    return 1 - float(_operator(*sparse).visible.mean())


def _moved(source: Camera, name: str, depth: Float[Array, "t h w"], amount: float) -> Camera:
    path = trajectory(name, len(source.c2w), scene_radius(depth), float(amount))
    return source._replace(c2w=compose(source.c2w[0], path))
