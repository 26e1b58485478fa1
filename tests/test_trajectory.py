"""Camera paths: they go where their names say, and files are read or refused."""

import json

import numpy as np
import pytest

from ic_jax.errors import InputError
from ic_jax.geometry.camera import camera, intrinsics_from_fov
from ic_jax.geometry.trajectory import TRAJECTORIES, load_trajectory, trajectory

RADIUS = 4.0
EYE = np.eye(4).tolist()


@pytest.mark.parametrize("name", TRAJECTORIES)
def test_paths_are_rigid_and_start_at_the_source(name):
    poses = np.asarray(trajectory(name, 5, RADIUS), np.float64)
    np.testing.assert_allclose(poses[0], np.eye(4), atol=1e-7)
    rotations = poses[:, :3, :3]
    np.testing.assert_allclose(rotations @ rotations.transpose(0, 2, 1), [np.eye(3)] * 5, atol=1e-6)
    assert name == "static" or np.abs(poses[-1] - np.eye(4)).max() > 0.1


@pytest.mark.parametrize(
    "name, axis, sign",
    [
        ("arc_left", 0, -1),
        ("arc_right", 0, 1),
        ("arc_up", 1, -1),
        ("arc_down", 1, 1),
        ("translate_left", 0, -1),
        ("translate_right", 0, 1),
        ("translate_up", 1, -1),
        ("translate_down", 1, 1),
        ("zoom_in", 2, 1),
        ("zoom_out", 2, -1),
    ],
)
def test_moves_go_where_they_say(name, axis, sign):
    position = trajectory(name, 3, RADIUS)[-1, :3, 3]
    assert sign * position[axis] == max(np.abs(position)) > 0


@pytest.mark.parametrize(
    "name, axis, sign",
    [("pan_left", 0, -1), ("pan_right", 0, 1), ("tilt_up", 1, -1), ("tilt_down", 1, 1)],
)
def test_turns_look_where_they_say_and_stay_in_place(name, axis, sign):
    pose = np.asarray(trajectory(name, 3, RADIUS, 10.0)[-1])
    assert np.isclose(sign * pose[axis, 2], np.sin(np.radians(10)), atol=1e-6)
    assert not pose[:3, 3].any()


@pytest.mark.parametrize("name", ["arc_left", "arc_right", "arc_up", "arc_down"])
def test_arcs_keep_looking_at_the_centre_from_the_same_distance(name):
    for pose in np.asarray(trajectory(name, 4, RADIUS, 40.0)):
        centre = pose[:3, :3].T @ ([0, 0, RADIUS] - pose[:3, 3])
        np.testing.assert_allclose(centre, [0, 0, RADIUS], atol=1e-5)


def test_amounts_of_moves_are_fractions_of_the_radius():
    assert np.isclose(trajectory("zoom_in", 2, RADIUS, 0.5)[-1, 2, 3], 0.5 * RADIUS)


def test_progress_is_monotone_and_at_rest_at_both_ends():
    depth = np.asarray(trajectory("zoom_in", 9, RADIUS))[:, 2, 3]
    steps = np.diff(depth)
    assert (steps > 0).all()
    assert steps[0] < steps[4] / 2 and steps[-1] < steps[4] / 2


@pytest.mark.parametrize(
    "arguments, says",
    [
        (("arc_lefft", 3, RADIUS), "did you mean arc_left"),
        (("zoom_in", 0, RADIUS), "at least one frame"),
        (("zoom_in", 3, 0.0), "radius"),
        (("zoom_in", 3, RADIUS, float("inf")), "finite"),
        (("zoom_in", 3, RADIUS, 1e39), "zoom_in is 1e.39, .* farther than float32 goes"),
        (("arc_left", 3, 3e38, 180.0), "farther than float32 goes"),
        (("zoom_in", 3, RADIUS, 1e308), "farther than float32 goes"),
        (("static", 3, RADIUS, 5.0), "static has no amount; leave --amount out"),
    ],
)
def test_impossible_paths_are_refused(arguments, says):
    with pytest.raises(InputError, match=says):
        trajectory(*arguments)


def test_an_amount_of_nothing_is_what_a_path_to_nowhere_has():
    np.testing.assert_array_equal(trajectory("static", 3, RADIUS, 0.0), [np.eye(4)] * 3)


def write(folder, fields):
    path = folder / "path.json"
    path.write_text(fields if isinstance(fields, str) else json.dumps(fields))
    return path


def test_file_scales_its_intrinsics_to_the_working_size(tmp_path):
    intrinsics = [[100, 0, 64], [0, 90, 36], [0, 0, 1]]
    fields = {"c2w": [EYE, EYE], "intrinsics": intrinsics, "width": 128, "height": 72}
    loaded = load_trajectory(write(tmp_path, fields), size=(36, 65))
    assert loaded.c2w.shape == (2, 4, 4)
    expected = [[100 * 65 / 128, 0, 32.5], [0, 45, 18], [0, 0, 1]]
    np.testing.assert_allclose(loaded.intrinsics[1], expected)


def test_a_byte_order_mark_is_no_part_of_a_file(tmp_path):
    path = write(tmp_path, "\ufeff" + json.dumps({"c2w": [EYE], "intrinsics": SQUARE}))
    np.testing.assert_array_equal(load_trajectory(path).intrinsics[0], SQUARE)


def test_file_without_intrinsics_takes_the_sources(tmp_path):
    source = intrinsics_from_fov(60.0, 36, 64)
    loaded = load_trajectory(write(tmp_path, {"c2w": [EYE]}), source)
    np.testing.assert_array_equal(loaded.intrinsics[0], source)


SQUARE = [[50, 0, 32], [0, 50, 18], [0, 0, 1]]
NORMALISED = [[0.9, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]]
LONG = [[3e38, 0, 0], [0, 3e38, 0], [0, 0, 1]]
FAR = [[1, 0, 0, 1e300], *EYE[1:]]


@pytest.mark.parametrize(
    "fields, says",
    [
        ("{not json", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
        ([EYE], "give a JSON object"),
        ({"poses": [EYE]}, "give a JSON object"),
        ({"c2w": []}, "give a list of 4x4"),
        ({"c2w": EYE}, "give a list of 4x4"),
        ({"c2w": [[1, 2], [3]]}, "not a regular list"),
        ({"c2w": ["a"]}, "not a regular list"),
        ({"c2w": [[10**400]]}, "not a regular list"),
        ({"c2w": [EYE]}, 'no "intrinsics"'),
        ({"c2w": [SQUARE], "intrinsics": SQUARE}, "c2w has shape"),
        ({"c2w": [(2 * np.eye(4)).tolist()], "intrinsics": SQUARE}, "not a rigid"),
        ({"c2w": [EYE], "intrinsics": [[0] * 3] * 3}, "singular"),
        ({"c2w": [FAR], "intrinsics": SQUARE}, "c2w holds a number that is not finite"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "width": 64e290, "height": 36e290}, "singular"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "width": 36, "height": 64}, "36x64 and the clip is"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "widht": 64}, "'widht'; did you mean width?"),
        ({"c2w": [EYE], "intrinsic": SQUARE}, "unknown 'intrinsic'; did you mean intrinsics?"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "width": 1e-300, "height": 36}, "come together"),
        ({"c2w": [EYE], "intrinsics": NORMALISED}, r"look normalised \(fx 0.9, cx 0.5\); .*64x36"),
        ({"c2w": [EYE], "intrinsics": NORMALISED, "width": 640, "height": 360}, "of 640x360"),
        ({"c2w": [EYE], "intrinsics": LONG, "width": 16, "height": 9}, "not finite"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "width": 64}, "come together"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "width": 64, "height": 0}, "come together"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "width": 64, "height": 36.5}, "whole pixels"),
        ({"c2w": [EYE], "intrinsics": SQUARE, "width": [64], "height": [36]}, "come together"),
    ],
)
def test_malformed_files_are_refused_in_one_line_with_their_name(tmp_path, fields, says):
    with pytest.raises(InputError, match=says) as caught:
        load_trajectory(write(tmp_path, fields), size=(36, 64))
    assert "path.json" in str(caught.value) and "\n" not in str(caught.value)


def test_poses_are_counted_before_the_sources_intrinsics_are_laid_beside_them(tmp_path):
    path, source = write(tmp_path, {"c2w": [EYE] * 2}), camera(np.eye(4), np.eye(3), 3)
    with pytest.raises(InputError, match="path.json: 2 poses for a clip of 3 frames"):
        load_trajectory(path, source.intrinsics, frames=3)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="absent.json"):
        load_trajectory(tmp_path / "absent.json")
