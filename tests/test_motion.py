"""Warp error and motion against shifts that are known; the scenes' flow against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from experiments import held_out, scenes
from experiments.motion import motion, motion_ratio, pull_back, warp_error
from experiments.scene_motion import known_motion, view_motion
from ic_jax.report import psnr_db

T, H, W = 4, 48, 64
FOCAL = 50.0
INTRINSICS = jnp.array([[FOCAL, 0, W / 2], [0, FOCAL, H / 2], [0, 0, 1]])
TIMES = jnp.linspace(0, 0.3, T)


def sliding(rows, columns):
    """A smooth picture that moves by whole pixels per frame, and its flow where it stays inside."""
    picture = gaussian_filter(np.random.default_rng(0).normal(size=(90, 90, 3)), (1, 1, 0))
    clip = np.stack([
        picture[20 - rows * t : 20 - rows * t + H, 20 - columns * t : 20 - columns * t + W]
        for t in range(T)
    ])  # fmt: skip
    flow = np.broadcast_to(np.array([columns, rows], float), (T - 1, H, W, 2))
    y, x = np.mgrid[:H, :W]
    inside = (y + rows >= 0) & (y + rows < H) & (x + columns >= 0) & (x + columns < W)
    return clip, flow, np.broadcast_to(inside, (T - 1, H, W))


def at(*position):
    """A camera that looks along +z."""
    return jnp.eye(4).at[:3, 3].set(jnp.array(position))


def demo(objects=True):
    scene = scenes.demo_scene()
    if objects:
        return scene
    return scene._replace(objects=scene.objects._replace(present=jnp.zeros(3, bool)))


def motion_of(scene, c2w):
    """One shape for all, so that tracing is compiled once."""
    return known_motion(scene, c2w, INTRINSICS, TIMES, H, W)


# Measures -------------------------------------------------------------------------


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, 3), (-1, 2)])
def test_the_next_frame_pulled_back_along_a_shift_is_the_frame(shift):
    clip, flow, valid = sliding(*shift)
    assert warp_error(clip, flow, valid) == pytest.approx((0, 0), abs=1e-12)


def test_half_a_pixel_is_the_mean_of_two_neighbours():
    clip = np.random.default_rng(1).normal(size=(2, H, W, 3))
    pulled = pull_back(clip, np.full((1, H, W, 2), [0.5, 0.0]))
    np.testing.assert_allclose(pulled[0, :, :-1], (clip[1, :, :-1] + clip[1, :, 1:]) / 2)


def test_a_clip_that_stands_still_while_the_scene_moves_has_the_error_of_a_shift():
    clip, flow, valid = sliding(0, 3)
    still = np.repeat(clip[:1], T, axis=0)
    change = (clip[0, :, 3:] - clip[0, :, :-3]).astype(float)
    error = warp_error(still, flow, valid)
    assert error.absolute == pytest.approx(np.abs(change).mean())
    assert error.squared == pytest.approx(np.square(change).mean())


def test_what_is_not_valid_does_not_count():
    clip, flow, valid = sliding(0, 2)
    spoilt = clip.copy()
    spoilt[:, :10] += 1.0 + np.arange(T)[:, None, None, None]
    assert warp_error(spoilt, flow, valid).absolute > 0.1
    below = valid & (np.arange(H) >= 10)[:, None]
    assert warp_error(spoilt, flow, below).absolute == pytest.approx(0, abs=1e-12)
    assert np.isnan(warp_error(clip, flow, np.zeros_like(valid))).all()


def test_a_moved_square_changes_the_two_strips_that_it_leaves_and_enters():
    clip = np.zeros((2, H, W, 3))
    clip[0, 10:20, 10:20] = clip[1, 10:20, 13:23] = 1.0
    everywhere = np.ones((2, H, W), bool)
    assert motion(clip, everywhere) == pytest.approx(2 * 3 * 10 / (H * W))
    inside = np.zeros_like(everywhere)
    inside[:, 10:20, 13:20] = True
    assert motion(clip, inside) == 0


def test_stillness_and_half_the_contrast_show_in_the_ratio():
    clip, *_ = sliding(1, 1)
    everywhere = np.ones((T, H, W), bool)
    assert motion_ratio(clip, clip, everywhere) == 1
    assert motion_ratio(clip / 2, clip, everywhere) == pytest.approx(0.5)
    still = np.repeat(clip[:1], T, axis=0)
    assert motion_ratio(still, clip, everywhere) == 0
    assert np.isnan(motion_ratio(clip, still, everywhere))
    assert np.isnan(motion_ratio(clip, clip, ~everywhere))


# The scenes' own flow -------------------------------------------------------------


def test_a_still_camera_in_a_room_without_objects_sees_no_flow():
    flow, valid = motion_of(demo(objects=False), jnp.tile(at(0.2, -0.4, -2.5), (T, 1, 1)))
    assert valid.all()
    assert np.abs(flow).max() < 1e-3


def test_a_wall_flows_as_far_as_parallax_says():
    steps = 0.1 * np.arange(T)
    flow, valid = motion_of(demo(objects=False), jnp.stack([at(x, -0.5, -2.5) for x in steps]))
    distance = float(demo().room[1, 2]) + 2.5
    # rows that look straight ahead see the back wall
    middle = flow[:, H // 2, W // 2 - 5 : W // 2 + 5]
    np.testing.assert_allclose(middle[..., 0], -FOCAL * 0.1 / distance, rtol=1e-3)
    np.testing.assert_allclose(middle[..., 1], 0, atol=1e-3)
    assert valid.mean() > 0.9


def test_a_still_camera_sees_only_the_moving_object_flow():
    scene = demo()
    c2w = jnp.tile(at(0.0, -0.4, -2.75), (T, 1, 1))
    flow, valid = motion_of(scene, c2w)
    moves = np.linalg.norm(flow, axis=-1) > 0.05
    poses = [scenes.object_poses(scene.objects, time)[0][0] for time in TIMES]
    for t in range(T - 1):
        ball = np.median(flow[t][moves[t] & valid[t]], axis=0)
        distance = poses[t][2] + 2.75 - 0.42  # of the ball's near side
        lift = FOCAL * (poses[t + 1][1] - poses[t][1]) / distance
        np.testing.assert_allclose(ball, [0, lift], atol=0.12 * abs(lift))
    assert 0.02 < (moves & valid).mean() < 0.2


def test_what_hides_behind_an_object_or_leaves_the_frame_is_not_valid():
    steps = 0.15 * np.arange(T)
    c2w = jnp.stack([at(x, -0.4, -2.75) for x in steps])
    with_objects, without = motion_of(demo(), c2w), motion_of(demo(objects=False), c2w)
    hidden = without.valid & ~with_objects.valid
    assert hidden.any()
    leaves = np.arange(W) + 0.5 + without.flow[..., 0] < 0
    assert leaves.any() and not without.valid[leaves].any()


@pytest.mark.parametrize("seed", [3, 4])
def test_a_rendered_clip_follows_its_true_flow(seed):
    scene, c2w, intrinsics = scenes.scene_of(seed, T, H, W)
    flow, valid = known_motion(scene, c2w, intrinsics, TIMES, H, W)
    clip = np.asarray(scenes.render(scene, c2w, intrinsics, TIMES, H, W)[0])
    followed = psnr_db(pull_back(clip, flow), clip[:-1], valid)
    assert followed > psnr_db(clip[1:], clip[:-1], valid) + 6
    assert valid.mean() > 0.6

    empty = scene._replace(objects=demo(objects=False).objects)
    flow, valid = known_motion(empty, c2w, intrinsics, TIMES, H, W)
    clip = np.asarray(scenes.render(empty, c2w, intrinsics, TIMES, H, W)[0])
    soft = gaussian_filter(clip, (0, 1, 1, 0))  # bilinear steps cost sharp textures 10 dB
    assert psnr_db(pull_back(soft, flow), soft[:-1], valid) > 38
    assert valid.mean() > 0.85


def test_an_object_that_turns_is_not_valid_for_its_shade_stays():
    scene = demo()
    spins = scene.objects.motion.at[1].set(scenes.MOTIONS.index("spin"))
    amount = scene.objects.amount.at[1].set(0.5)
    spun = scene._replace(objects=scene.objects._replace(motion=spins, amount=amount))
    c2w = jnp.tile(at(0.0, -0.4, -2.75), (T, 1, 1))
    still, turning = motion_of(scene, c2w), motion_of(spun, c2w)
    lost = still.valid & ~turning.valid
    assert lost.mean() > 0.02
    assert np.linalg.norm(turning.flow[lost], axis=-1).max() > 0.2
    assert np.array_equal(still.valid[~lost], turning.valid[~lost])


def test_a_new_views_flow_is_that_of_its_own_camera():
    frames = jnp.linspace(0, 1, T)
    seed = held_out.FIRST_CALIBRATION_SEED
    scene, c2w, intrinsics = scenes.scene_of(seed, T, H, W)
    source = held_out.Camera(c2w, jnp.broadcast_to(intrinsics, (T, 3, 3)))
    target = held_out.Camera(c2w[::-1], source.intrinsics)
    operator = held_out.WarpOperator(None, None, source, target, None, None)
    clip = jnp.zeros((T, H, W, 3))
    view = held_out.NewView(clip, operator, clip, "", "", 0.0)
    found = view_motion(seed, view)
    expected = known_motion(scene, c2w[::-1], intrinsics, frames, H, W)
    np.testing.assert_array_equal(found.flow, expected.flow)
    np.testing.assert_array_equal(found.valid, expected.valid)
