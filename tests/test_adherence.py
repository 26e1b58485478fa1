"""Edit tasks, the classifier's crops and the study's arithmetic."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import adherence_report
from experiments.adherence_report import (
    GUIDANCES,
    NEW,
    NONE,
    NOTHING,
    OLD,
    Facts,
    Guidance,
    Part,
    best_guidance,
    report,
)
from experiments.classifier import FRAMES as CROP_FRAMES
from experiments.classifier import SIDE, classify, crops, normalised, train
from experiments.edit_scenes import (
    FIRST_EDIT_SEED,
    SMALLEST_OBJECT,
    Look,
    box_mask,
    edit_task,
    edit_tasks,
    grown,
    object_boxes,
    replaced,
)
from experiments.held_out import FIRST_CALIBRATION_SEED, FIRST_TEST_SEED
from experiments.intervals import wilson
from experiments.make_edit_sample import ball_mask
from experiments.scene_render import object_map
from experiments.scenes import COLOURS, SHAPES, caption, render, scene_of
from ic_jax.model import BUNDLED
from ic_jax.video import read_video

SIZE = FRAMES, HEIGHT, WIDTH = 5, 64, 96  # at full size, where objects are large
RED, BLUE = COLOURS.index("red"), COLOURS.index("blue")


@pytest.fixture(scope="module")
def view():
    """A scene with its cameras and times."""
    scene, c2w, intrinsics = scene_of(FIRST_EDIT_SEED, *SIZE)
    return scene, (c2w, intrinsics, jnp.linspace(0, 1, FRAMES), HEIGHT, WIDTH)


@pytest.fixture(scope="module")
def task():
    tasks = (edit_task(FIRST_EDIT_SEED + i, *SIZE) for i in range(20))
    return next(task for task in tasks if task is not None)


# Scenes -----------------------------------------------------------------------------


def test_object_map_marks_the_pixels_that_change_with_an_object(view):
    scene, cameras = view
    which = np.asarray(object_map(scene, *cameras))
    before = np.asarray(render(scene, *cameras)[0])
    for slot in np.flatnonzero(scene.objects.present):
        # A look at albedo alone: neither shadows nor shape change.
        objects = scene.objects
        dark = objects._replace(albedo=objects.albedo.at[slot].multiply(0.1))
        after = np.asarray(render(scene._replace(objects=dark), *cameras)[0])
        changed = np.abs(after - before).max(-1) > 0.02
        assert changed[which == slot].mean() > 0.99
        # antialiasing alone carries an object beyond the pixels whose centres show it
        assert (changed & (which != slot)).sum() < 0.4 * (which == slot).sum()


def test_replacement_has_its_new_look_and_stands_on_the_same_floor(view):
    scene, _ = view
    slot = int(np.flatnonzero(scene.objects.present)[0])
    for shape in range(len(SHAPES)):
        changed = replaced(scene, slot, Look(BLUE, shape)).objects
        foot = lambda objects: objects.position[slot, 1] + objects.half_size[slot, 1]
        assert np.isclose(foot(changed), foot(scene.objects), atol=1e-6)
        assert (changed.colour[slot], changed.shape[slot]) == (BLUE, shape)
        others = np.arange(3) != slot
        for old, new in zip(scene.objects, changed):
            assert np.array_equal(old[others], new[others])


def test_task_asks_for_a_look_that_nothing_in_the_scene_has(task):
    before, after = task.looks
    assert f"{COLOURS[before.colour]} {SHAPES[before.shape]}" in task.captions[0]
    assert f"{COLOURS[after.colour]} {SHAPES[after.shape]}" in task.captions[1]
    assert COLOURS[after.colour] not in task.captions[0]
    assert SHAPES[after.shape] not in task.captions[0]


def test_task_mask_holds_the_object_before_and_after(task):
    difference = np.abs(task.edited - task.clip).max(-1) > 0.3
    assert difference.any((1, 2)).all()
    # what is left outside is shadow: nearly all strong change lies in the box
    assert difference[task.regenerate].sum() > 0.8 * difference.sum()
    assert np.array_equal(task.regenerate, box_mask(task.boxes, HEIGHT, WIDTH))


def test_wide_mask_holds_the_shadow_too():
    change = lambda task: np.abs(task.edited - task.clip).max(-1) > 0.1
    shadows_outside = 0
    for seed in range(FIRST_EDIT_SEED, FIRST_EDIT_SEED + 4):
        narrow, wide = (edit_task(seed, *SIZE, shadow=shadow) for shadow in (False, True))
        if narrow is None:
            continue
        assert np.array_equal(wide.boxes, narrow.boxes)
        assert (wide.regenerate >= narrow.regenerate).all()
        outside = change(narrow) & ~narrow.regenerate
        shadows_outside += outside.any()
        # a new object's shadow may be longer than the old one's
        assert (outside & ~wide.regenerate).sum() <= 0.2 * outside.sum()
    assert shadows_outside


def test_edit_seeds_are_new(tmp_path):
    assert FIRST_EDIT_SEED > FIRST_CALIBRATION_SEED > FIRST_TEST_SEED
    first = lambda: [t.captions for t in edit_tasks(tmp_path, 2, *SIZE, shadow=False)]
    captions = first(), first()
    assert captions[0] == captions[1]
    assert len(list(tmp_path.glob("*.npz"))) >= 2


def test_boxes_are_tight_and_only_of_objects_large_in_every_frame():
    which = np.full((2, 40, 40), -1)
    which[:, 5:17, 8:20] = 0
    which[0, 20:39, 20:39] = 1  # gone in the second frame
    assert SMALLEST_OBJECT <= 12 * 12
    boxes = object_boxes(which)
    assert list(boxes) == [0]
    assert np.array_equal(boxes[0], [[5, 8, 17, 20]] * 2)
    assert np.array_equal(box_mask(boxes[0], 40, 40), which == 0)
    assert np.array_equal(grown(boxes[0], 7, 40, 26), [[0, 1, 24, 26]] * 2)


def test_bundled_mask_is_exactly_the_box_after_decoding():
    frames = read_video(BUNDLED / "clip_mask.mp4").frames
    assert np.array_equal(frames.mean(-1) > 127, ball_mask(*frames.shape[:3]))


# The classifier -----------------------------------------------------------------------


def test_crop_of_a_whole_square_box_is_the_box_itself():
    clip = np.random.default_rng(0).uniform(-1, 1, (5, SIDE + 8, SIDE + 6, 3)).astype(np.float32)
    box = np.tile([3, 2, 3 + SIDE, 2 + SIDE], (5, 1))
    assert np.allclose(crops(clip, box), clip[:, 3 : 3 + SIDE, 2 : 2 + SIDE], atol=1e-5)


def test_crop_moves_with_its_box():
    clip = np.random.default_rng(0).uniform(-1, 1, (5, 64, 64, 3)).astype(np.float32)
    box = np.tile([10, 12, 30, 40], (5, 1))
    moved = crops(np.roll(clip, (5, 7), axis=(1, 2)), box + np.array([5, 7, 5, 7]))
    assert np.allclose(moved, crops(clip, box), atol=1e-4)


def test_crop_holds_nothing_from_outside_its_box():
    clip = np.random.default_rng(0).uniform(-1, 1, (5, 64, 64, 3)).astype(np.float32)
    box = np.tile([20, 20, 40, 40], (5, 1))
    # bilinear sampling reaches half a pixel further
    near = box_mask(box + [-1, -1, 1, 1], 64, 64)[..., None]
    assert np.array_equal(crops(clip, box), crops(np.where(near, clip, np.float32(1)), box))


def test_training_tells_colours_apart():
    looks = np.tile([[0, 1], [1, 1]], (32, 1))
    images = np.zeros((64, CROP_FRAMES, SIDE, SIDE, 3), np.uint8)
    images[looks[:, 0] == 0, ..., 0] = 200
    images[looks[:, 0] == 1, ..., 2] = 200
    params = train(images, looks, steps=20)
    box = np.tile([0, 0, 32, 32], (5, 1))
    for red, blue, colour in ((200, 0, 0), (0, 200, 1)):
        clip = np.broadcast_to(np.array([red, 0, blue], np.uint8), (5, 32, 32, 3))
        assert classify(params, np.asarray(normalised(clip)), box) == Look(colour, 1)


# The report ---------------------------------------------------------------------------


def record(number, prompt, against, scale, seen, loss=0.5):
    look = lambda colour, shape: {"colour": colour, "shape": shape}
    return {
        "task": number, "prompt": prompt, "against": against, "scale": scale,
        "asked": "a blue cube", "masked": 0.2,
        "seen": look(*seen), "before": look(RED, 0), "after": look(BLUE, 1),
        "outside_db": 24.0 - loss, "round_trip_outside_db": 24.0, "seconds": 1.0,
    }  # fmt: skip


def some(n, right, *told, loss=0.5):
    return [record(i, *told, (BLUE, 1) if i < right else (RED, 0), loss) for i in range(n)]


def part(right, none, loss=0.5):
    counts = zip(GUIDANCES, (2, 7, 7, 3, 7, 7), strict=True)
    chosen = [r for guidance, k in counts for r in some(10, k, NEW, *guidance)]
    reported = some(20, right, NEW, NOTHING, 3.0, loss=loss)
    reported += some(20, 0, OLD, NOTHING, 3.0) + some(20, none, NONE, NOTHING, 1.0)
    return Part(chosen, reported, best_guidance(chosen))


def study(right, none, loss=0.5, alone=10):
    rights = {"as rendered": [[True, True]] * 100}
    facts = Facts("x", "24 steps", "y")
    text, raw = report(part(right, none, loss), part(alone, 2), rights, facts)
    return text, json.loads(raw)


def test_guidance_is_chosen_by_success_and_the_weaker_of_equals():
    assert Guidance(**study(16, 2)[1]["with_shadow"]["guidance"]) == Guidance(NOTHING, 3.0)


def test_verdicts_follow_the_counts():
    met = lambda *counts: [v["met"] for v in study(*counts)[1]["verdicts"]]
    assert met(16, 2) == [True, True, False, True, True]
    assert met(13, 2) == [True, False, False, True, True]
    assert met(15, 12) == [True, True, False, False, True]
    assert met(15, 12, 1.2, 14) == [True, True, True, False, False]


def test_wrong_shapes_are_told_apart():
    looks = {"the old one": (BLUE, 0), "another's": (BLUE, 3), "nobody's": (BLUE, 2)}
    found = [record(i, NEW, NOTHING, 3.0, look) for i, look in enumerate(looks.values())]
    found = [{**one, "asked": "a blue cube and a red cone"} for one in found]
    text = adherence_report._confusions(found)
    assert text.startswith("3, of which 1 the object's old one and 1 that of another")


def test_report_shows_colour_and_shape_alone():
    half = [record(i, NEW, NOTHING, 3.0, (BLUE, 0)) for i in range(4)]
    assert np.array_equal(adherence_report.agreement(half), [[True, False]] * 4)
    assert not adherence_report.successes(half).any()


def test_wilson_matches_a_published_value_and_keeps_a_width_at_the_ends():
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I
    interval = wilson(81, 263)
    assert np.allclose(interval, (81 / 263, 0.2553, 0.3662), atol=1e-4)
    low = wilson(0, 20)
    assert low.mean == 0 and abs(low.low) < 1e-9 and np.isclose(low.high, 0.1611, atol=1e-4)


def test_captions_fit_and_bytes_become_unit_floats(task):
    assert all(len(text) <= 63 for text in task.captions)
    ends = normalised(np.array([0, 255], np.uint8))
    assert np.array_equal(ends, [-1, 1])


def test_caption_of_the_clip_is_the_scenes_own(view):
    scene, _ = view
    found = edit_task(FIRST_EDIT_SEED, *SIZE)
    assert found is None or found.captions[0] == caption(scene)
