"""Frames that a window takes over are seen as they are, wherever in the world the camera stands."""

import jax
import jax.numpy as jnp
import numpy as np

from ic_jax.geometry.camera import camera
from ic_jax.shot import Shot


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
