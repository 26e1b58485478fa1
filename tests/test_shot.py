"""Frames that a window takes over are seen as they are, wherever the camera stands; bad input."""

from fractions import Fraction
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.errors import InputError
from ic_jax.geometry.camera import camera
from ic_jax.shot import Shot, load_shot
from ic_jax.video import Clip


def test_held_frames_pass_the_warp_untouched_and_count_as_seen():
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 256, (4, 12, 16, 3), np.uint8)
    known = rng.integers(0, 256, (2, 12, 16, 3), np.uint8)
    intrinsics = np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    pose = np.eye(4)
    pose[:3, 3] = [3e4, -2e4, 5e4]
    source = camera(pose, intrinsics, 4)
    pose[0, 3] += 2.0
    target = camera(pose, intrinsics, 4)
    depth, keep = np.full((4, 12, 16), 8.0, np.float32), np.ones((4, 12, 16), bool)
    keep[:, :, :3] = False  # padding, which held frames show as well
    shot = jax.tree.map(np.asarray, Shot(frames, depth, source, target, keep))
    held = shot.hold(known)
    operator = held.operator()
    np.testing.assert_array_equal(operator.visible[:2], 1.0)
    shown = operator.apply(jnp.asarray(held.frames, jnp.float32))
    np.testing.assert_array_equal(shown[:2], known.astype(np.float32))
    np.testing.assert_array_equal(operator.visible[2:], shot.operator().visible[2:])


@pytest.mark.parametrize(
    "depth, focal, camera, amount, says",
    [
        (1e-42, 20.0, "zoom_in", None, "scene's centre is 0; give it in units"),
        (3e38, 20.0, "zoom_in", None, "scene's centre is inf; give it in units"),
        (3.0, 3e38, "static", None, "its cameras, moved by static, are not finite"),
        (2e29, 20.0, "zoom_in", 1e9, "its cameras, moved by zoom_in, are not finite"),
    ],
)
def test_depth_at_the_edge_of_float32_is_named(tmp_path, depth, focal, camera, amount, says):
    file = tmp_path / "depth.npz"
    far = np.eye(4)
    far[2, 3] = 2e38
    lens = np.diag([focal, focal, 1.0])
    values = np.full((2, 6, 8), depth, np.float32)
    np.savez(file, depth=values, kind="metric", intrinsics=lens, c2w=far)
    clip = Clip(np.zeros((2, 12, 16, 3), np.uint8), Fraction(8), Fraction(1), Path("clip.mp4"))
    with pytest.raises(InputError, match=f"depth.npz: .*{says}"):
        load_shot(clip, file, camera, amount=amount)
