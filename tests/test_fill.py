"""What fills a hole: colours that other frames saw, then a smooth continuation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax import fill as module
from ic_jax.geometry.camera import camera
from ic_jax.geometry.warp import WarpOperator, warp_operator

SIZES = [(7, 13), (1, 6)]
FRAMES, HEIGHT, WIDTH = 5, 16, 24
FOCAL, DEPTH = 20.0, 4.0
# Pixels that a plane at DEPTH moves by from one frame to the next.
STEP = 3

fill, from_other_frames, push_pull = (
    jax.jit(f) for f in (module.fill, module.from_other_frames, module.push_pull)
)


def holed(size, share=0.4):
    """A clip of noise and its weights, some of them partial; the second frame is all hole."""
    rng = np.random.default_rng(0)
    clip = rng.uniform(-1, 1, (3, *size, 3)).astype(np.float32)
    weight = (rng.uniform(size=(3, *size)) > share).astype(np.float32)
    weight[:, 0, 0], weight[:, -1, -1] = 1, 0.3
    weight[1] = 0
    return clip, weight


@pytest.mark.parametrize("size", SIZES)
def test_observed_pixels_are_untouched(size):
    clip, weight = holed(size)
    filled = np.asarray(push_pull(clip, weight))
    np.testing.assert_array_equal(filled[weight == 1], clip[weight == 1])


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_stays_constant_whatever_stood_in_the_hole(size):
    clip, weight = holed(size, share=0.8)
    clip[...] = np.where(weight[..., None] > 0, 0.3, 100.0)
    np.testing.assert_allclose(push_pull(clip, weight)[::2], 0.3, rtol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_fills_stay_within_the_colours_of_their_frame(size):
    clip, weight = holed(size)
    clip[weight == 0] = -100.0
    filled = np.asarray(push_pull(clip, weight))
    for t in (0, 2):
        seen = clip[t][weight[t] > 0]
        assert (filled[t] >= seen.min(0) - 1e-5).all()
        assert (filled[t] <= seen.max(0) + 1e-5).all()


def test_a_frame_without_any_observation_is_finite():
    clip, weight = holed(SIZES[0])
    assert np.isfinite(push_pull(clip, weight)[1]).all()


def test_a_fill_follows_its_surroundings():
    clip, weight = holed(SIZES[0])
    clip[...] = np.linspace(-1, 1, clip.shape[2])[:, None]
    weight[...] = 1
    weight[:, 2:5, 4:9] = 0
    assert np.abs(push_pull(clip, weight) - clip).max() < 0.4


def texture(frame):
    """The plane's colours at the pixels of a camera that has moved by `frame` steps."""
    x = np.arange(WIDTH) + 0.5 + STEP * frame
    y = np.arange(HEIGHT) + 0.5
    waves = [np.sin(x / 5), np.cos(x / 7 + 1), np.sin(x / 4 + 2)]
    return np.stack([wave * np.cos(y / 6)[:, None] for wave in waves], -1) * 0.8


@pytest.fixture(scope="module")
def slide():
    """A camera slides along a textured plane; the target stays at the middle frame's pose.

    Frame f sees the plane shifted by whole pixels, so every frame's warp is exact and covers
    only a part of the target's view, which all frames together cover.
    """
    intrinsics = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    poses = np.tile(np.eye(4), (FRAMES, 1, 1))
    poses[:, 0, 3] = STEP * DEPTH / FOCAL * np.arange(FRAMES)
    source = camera(poses, intrinsics, FRAMES)
    target = camera(poses[FRAMES // 2], intrinsics, FRAMES)
    clip = jnp.asarray(np.stack([texture(f) for f in range(FRAMES)]), jnp.float32)
    depth = jnp.full((FRAMES, HEIGHT, WIDTH), DEPTH, jnp.float32)
    operator = jax.jit(warp_operator)(depth, source, target)
    return operator, clip, jax.jit(WarpOperator.apply)(operator, clip)


def test_other_frames_give_back_the_true_colours(slide):
    operator, clip, warped = slide
    hole = np.asarray(operator.visible) < 0.5
    assert 0.1 < hole.mean() < 0.5
    found, weight = from_other_frames(operator, clip, warped, operator.visible)
    truth = texture(FRAMES // 2)
    np.testing.assert_allclose(weight, 1.0, atol=1e-3)
    np.testing.assert_allclose(found, np.stack([truth] * FRAMES), atol=2e-3)
    smooth = np.asarray(push_pull(warped, operator.visible))
    assert np.abs(smooth - truth)[hole].mean() > 0.1


def test_the_nearest_frame_that_sees_a_place_fills_it(slide):
    operator, clip, _ = slide
    number = np.arange(FRAMES, dtype=np.float32)[:, None, None, None] / FRAMES
    numbered = jnp.asarray(np.broadcast_to(number, clip.shape))
    warped = jax.jit(WarpOperator.apply)(operator, numbered)
    found, _ = from_other_frames(operator, numbered, warped, operator.visible)
    visible = np.asarray(operator.visible)
    hidden = (visible[0] == 0) & (visible[1] == 1)
    assert hidden.any()
    np.testing.assert_allclose(np.asarray(found[0])[hidden], 1 / FRAMES, atol=1e-3)


def test_a_depth_edge_that_the_operator_keeps_may_fill(slide):
    operator, clip, _ = slide
    step = np.array(operator.depth)
    step[:, :, WIDTH // 2 :] *= 2
    still = operator._replace(depth=jnp.asarray(step), source=operator.target)
    nothing = jnp.zeros_like(clip)
    _, weight = from_other_frames(still, clip, nothing, nothing[..., 0])
    np.testing.assert_allclose(weight, 1, atol=1e-3)


def test_what_was_observed_is_kept_even_where_other_frames_disagree(slide):
    operator, clip, warped = slide
    seen = np.asarray(operator.visible) == 1
    measured = np.where(seen[..., None], np.float32(0.123), warped)
    filled = np.asarray(fill(operator, clip, measured, operator.visible))
    np.testing.assert_array_equal(filled[seen], np.float32(0.123))
    assert np.abs(filled[~seen] - 0.123).mean() > 0.1


def test_where_no_frame_looks_the_fill_goes_on_smoothly(slide):
    operator, clip, _ = slide
    away = operator.target._replace(c2w=operator.target.c2w.at[:, 0, 3].add(4.0))
    operator = jax.jit(warp_operator)(operator.depth, operator.source, away)
    visible = np.asarray(operator.visible)
    assert (visible.sum((1, 2)) == 0).any() and (visible[-1].sum() > 0)
    warped = jax.jit(WarpOperator.apply)(operator, clip)
    _, weight = from_other_frames(operator, clip, warped, operator.visible)
    unseen = np.asarray(weight) == 0
    assert unseen.any()
    filled = np.asarray(fill(operator, clip, warped, operator.visible))
    assert np.abs(filled).max() <= 0.8 + 1e-5
    assert filled[-1][unseen[-1]].std() > 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 6), (5, 7)])
def test_a_level_is_read_back_by_linear_interpolation(size):
    coarse = jax.random.normal(jax.random.key(0), (2, *size, 3))
    expected = jax.image.resize(coarse, (2, 2 * size[0], 2 * size[1], 3), "linear")
    found = module._doubled(module._doubled(coarse, axis=1), axis=2)
    np.testing.assert_allclose(found, expected, atol=1e-6)
