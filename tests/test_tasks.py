"""The studies' tasks: the same at every call, and honest about what is given and what is true."""

from dataclasses import replace
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.clip_files import ClipFile
from experiments.hole_shapes import LARGEST, SHAPES, SMALLEST, moving_hole
from experiments.motion import pull_back
from experiments.round_trip import there_and_back, with_made_up_depth
from experiments.tasks import TASKS, inpainting, recapture, reprojection
from ic_jax.errors import InputError
from ic_jax.geometry.camera import compose
from ic_jax.geometry.trajectory import trajectory
from ic_jax.models.variants import VARIANTS
from ic_jax.report import psnr_db
from ic_jax.video import write_video

SIZES = replace(VARIANTS["nano"], frames=9, height=32, width=48)
NUMBERS = range(3)


@jax.jit
def given(scene):
    """What a method is shown."""
    return scene.operator.apply(scene.clip)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def tasks(data):
    """Three of each kind."""
    return {kind: [make(SIZES, data, n) for n in NUMBERS] for kind, make in TASKS.items()}


@pytest.fixture
def own(tmp_path):
    """A user's clip with depth, and a copy of it without."""
    noise = np.random.default_rng(0).normal(size=(1, 40, 60, 3))
    smooth = np.clip(128 + 60 * np.sin(np.cumsum(noise, axis=2) / 4), 0, 255).astype(np.uint8)
    video, depth = tmp_path / "clip.mp4", tmp_path / "clip.npz"
    write_video(video, np.repeat(smooth, 9, axis=0), Fraction(24))
    surface = np.full((9, 40, 60), 3.0, np.float32)
    surface[:, 10:30, 20:40] = 2.0
    lens = [[50, 0, 30], [0, 50, 20], [0, 0, 1]]
    np.savez(depth, depth=surface, kind="metric", intrinsics=lens)
    with_depth = ClipFile("clip", video, (), caption="a pattern", depth=depth)
    return [with_depth, with_depth._replace(name="flat", depth=None)]


@pytest.mark.parametrize("kind", TASKS)
def test_a_task_is_the_same_at_every_call(tasks, data, kind):
    task, again = tasks[kind][1], TASKS[kind](SIZES, data, 1)
    assert (task.name, task.caption) == (again.name, again.caption)
    for a, b in zip(*map(jax.tree.leaves, (task[1:], again[1:])), strict=True):
        np.testing.assert_array_equal(a, b)


def test_names_are_unique_and_fit_for_files(tasks):
    names = [task.name for some in tasks.values() for task in some]
    assert len(set(names)) == len(names)
    assert all(name.replace("-", "").isalnum() for name in names)


@pytest.mark.parametrize("kind", TASKS)
def test_tasks_have_the_models_size_and_holes_to_fill(tasks, kind):
    for clip, operator, truth in ((*task.scene, task.truth) for task in tasks[kind]):
        assert clip.shape == truth.shape == (9, 32, 48, 3)
        assert operator.visible.shape == (9, 32, 48)
        assert jnp.abs(truth).max() <= 1
        assert operator.visible.min() >= 0 and operator.visible.max() <= 1
        assert 0.04 < 1 - operator.visible.mean() < 0.6


@pytest.mark.parametrize(
    "kind, least", [("recapture", 20), ("inpainting", 100), ("reprojection", 20)]
)
def test_what_is_visible_is_true(tasks, kind, least):
    for task in tasks[kind]:
        visible = np.asarray(task.scene.operator.visible > 0.99)
        shown, truth = np.asarray(given(task.scene)), np.asarray(task.truth)
        still = np.broadcast_to(truth.mean(axis=(0, 1, 2)), truth.shape)
        score = psnr_db(shown, truth, visible)
        assert score > least and score > psnr_db(still, truth, visible) + 3


def test_known_motion_is_the_truths(tasks):
    for task in (*tasks["recapture"], tasks["inpainting"][0]):
        flow, valid = task.flow
        truth = np.asarray(task.truth)
        explained = np.abs(pull_back(truth, flow) - truth[:-1])[valid].mean()
        assert explained < np.abs(np.diff(truth, axis=0))[valid].mean()


def test_real_clips_move_in_ways_unknown(tasks):
    assert tasks["inpainting"][1].flow is None
    assert all(task.flow is None for task in tasks["reprojection"])


@pytest.mark.parametrize("number", range(6))
def test_every_frame_loses_the_same_share(number):
    keep = moving_hole(number, 9, 32, 48)
    share = 1 - keep.mean((1, 2))
    assert set(np.unique(keep)) == {0, 1}
    # pixels at one distance from a box fall together
    assert share.min() > SMALLEST - 0.01 and share.max() < LARGEST + 0.06
    assert np.ptp(share) < 0.06


def test_holes_move_and_take_turns():
    holes = [moving_hole(number, 9, 32, 48) for number in range(2 * len(SHAPES))]
    assert all((hole[0] != hole[-1]).any() for hole in holes)
    assert len({hole.tobytes() for hole in holes}) == len(holes)


def test_a_round_trip_that_goes_nowhere_shows_everything(tasks):
    clip = tasks["reprojection"][0].truth
    footage = with_made_up_depth(clip, 0)
    scene = there_and_back(footage, footage.source)
    np.testing.assert_array_equal(scene.operator.visible, 1)
    np.testing.assert_allclose(given(scene), clip, atol=1e-5)


def test_a_round_trip_loses_what_left_the_frame(tasks):
    footage = with_made_up_depth(tasks["reprojection"][0].truth, 0)
    flat = footage._replace(depth=jnp.full_like(footage.depth, 2.0))
    path = trajectory("translate_right", 9, 2.0, 0.2)
    target = flat.source._replace(c2w=compose(flat.source.c2w[0], path))
    lost = 1 - there_and_back(flat, target).operator.visible[-1].mean(0)
    # the camera goes right by 0.4 before a wall at 2: it loses focal * 0.2 columns on the left
    columns = float(flat.source.intrinsics[0, 0, 0]) * 0.2
    np.testing.assert_allclose(lost.sum(), columns, atol=1)
    assert (lost[: int(columns) - 1] == 1).all() and (lost[int(columns) + 2 :] == 0).all()


def test_own_clips_go_through_every_study_that_has_a_truth_for_them(own, data):
    for number in range(2):
        hidden = inpainting(SIZES, data, number, own)
        back = reprojection(SIZES, data, number, own)
        assert hidden.name == f"inpainting-{number:04d}-{own[number].name}"
        assert back.name == f"reprojection-{number:04d}-{own[number].name}"
        assert hidden.caption == back.caption == "a pattern"
        np.testing.assert_array_equal(hidden.truth, back.truth)
        visible = np.asarray(back.scene.operator.visible > 0.99)
        assert 0.03 < 1 - visible.mean() < 0.6
        assert psnr_db(np.asarray(given(back.scene)), np.asarray(back.truth), visible) > 20


def test_no_other_view_of_own_clips_is_made_up(own, data):
    with pytest.raises(InputError, match="reprojection"):
        recapture(SIZES, data, 0, own)


def test_own_masks_are_used_where_they_say_enough(own, data, tmp_path):
    from PIL import Image

    large, small = np.zeros((2, 40, 60), np.uint8)
    large[10:30, 20:40] = small[10, 20] = 1
    for name, labels in (("large", large), ("small", small)):
        Image.fromarray(labels).save(tmp_path / f"{name}.png")
    annotated = [
        own[1]._replace(annotations=(tmp_path / f"{name}.png",) * 9) for name in ("large", "small")
    ]
    kept = [inpainting(SIZES, data, n, annotated).scene.operator.visible for n in range(2)]
    assert (kept[0] == kept[0][0]).all() and not kept[0][:, 8:24, 16:32].any()
    np.testing.assert_array_equal(kept[1], moving_hole(1, 9, 32, 48))


def test_a_size_that_no_natural_clip_has_is_refused(data):
    with pytest.raises(InputError, match="give --clips"):
        reprojection(replace(SIZES, height=2048, width=2048), data, 0)
