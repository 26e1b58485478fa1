"""Frames that a window takes over are seen as they are, wherever the camera stands; bad input."""

import json
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
    "depth, focal, last, says",
    [
        (1e-42, 20.0, 2e38, "scene's centre is 0; give it in units"),
        (3e38, 20.0, 2e38, "scene's centre is inf; give it in units"),
        (3.0, 3e38, 2e38, "its cameras, moved by zoom_in, are not finite"),
        (3.0, 20.0, -2e38, "its cameras, moved by zoom_in, are not finite"),
    ],
)
def test_depth_at_the_edge_of_float32_is_named(tmp_path, depth, focal, last, says):
    file = tmp_path / "depth.npz"
    far = np.stack([np.eye(4)] * 2)
    far[:, 2, 3] = 2e38, last
    lens = np.diag([focal, focal, 1.0])
    values = np.full((2, 6, 8), depth, np.float32)
    np.savez(file, depth=values, kind="metric", intrinsics=lens, c2w=far)
    clip = Clip(np.zeros((2, 12, 16, 3), np.uint8), Fraction(8), Fraction(1), Path("clip.mp4"))
    with pytest.raises(InputError, match=f"depth.npz: .*{says}"):
        load_shot(clip, file, "zoom_in")


@pytest.mark.parametrize("new_view", ["arc_left", "path.json"])
def test_a_warp_does_not_depend_on_where_the_world_has_its_origin(tmp_path, new_view):
    """As where poses are in a map's metres, of which float32 holds no fractions."""
    frames = np.random.default_rng(0).integers(0, 256, (2, 12, 16, 3), np.uint8)
    clip = Clip(frames, Fraction(8), Fraction(1), Path("clip.mp4"))
    depth = (3 + 0.3 * np.sin(np.arange(16) / 4) + np.zeros((2, 12, 1))).astype(np.float32)
    lens = np.array([[20.0, 0, 8], [0, 20, 6], [0, 0, 1]])
    warped = []
    for origin in ([0.0, 0.0, 0.0], [1e6 + 0.1, -5e5 + 0.2, 1e6 + 0.3]):
        source, target = np.stack([np.eye(4)] * 2), np.stack([np.eye(4)] * 2)
        source[:, :3, 3], target[:, :3, 3] = origin, origin
        source[1, 0, 3] += 0.123
        target[:, 1, 3] += 0.456
        np.savez(tmp_path / "depth.npz", depth=depth, kind="metric", intrinsics=lens, c2w=source)
        (tmp_path / "path.json").write_text(json.dumps({"c2w": target.tolist()}))
        name = str(tmp_path / new_view) if new_view.endswith("json") else new_view
        operator = load_shot(clip, tmp_path / "depth.npz", name).operator()
        warped.append((operator.apply(jnp.asarray(frames / 255, jnp.float32)), operator.visible))
    for here, there in zip(*warped):
        np.testing.assert_allclose(here, there, atol=1e-4)
