"""Depth files: what is read, what is refused, and how edges and sizes are treated."""

import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.errors import InputError
from ic_jax.geometry.depth import (
    SKY,
    depth_edges,
    load_depth,
    resize_depth,
    save_depth,
    scene_radius,
)

DEPTH = np.linspace(1.0, 3.0, 2 * 4 * 6).reshape(2, 4, 6)
INTRINSICS = np.array([[5.0, 0, 3], [0, 5, 2], [0, 0, 1]])


def write(folder, **fields):
    path = folder / "depth.npz"
    np.savez(path, **fields)
    return path


def test_metric_depth_comes_back_with_its_cameras(tmp_path):
    c2w = np.stack([np.eye(4), np.eye(4)])
    c2w[1, 0, 3] = 0.5
    clip = load_depth(write(tmp_path, depth=DEPTH, kind="metric", intrinsics=INTRINSICS, c2w=c2w))
    np.testing.assert_allclose(clip.depth, DEPTH, rtol=1e-6)
    np.testing.assert_allclose(clip.camera.c2w, c2w)
    np.testing.assert_allclose(clip.camera.intrinsics[1], INTRINSICS)
    assert clip.depth.dtype == jnp.float32 and clip.kind == "metric"


def test_saved_depth_loads_again(tmp_path):
    first = load_depth(write(tmp_path, depth=DEPTH, kind="relative", intrinsics=INTRINSICS))
    save_depth(tmp_path / "again.npz", first)
    again = load_depth(tmp_path / "again.npz")
    assert again.kind == first.kind
    for ours, theirs in zip(again[:3], first[:3]):
        np.testing.assert_array_equal(ours, theirs)


def test_disparity_becomes_depth_by_its_scale_and_shift(tmp_path):
    disparity = (1 / DEPTH - 0.1) / 2
    path = write(tmp_path, depth=disparity, kind="disparity", scale=2.0, shift=0.1)
    np.testing.assert_allclose(load_depth(path, fov=60.0).depth, DEPTH, rtol=1e-5)


def test_npy_needs_its_kind_and_a_field_of_view(tmp_path):
    path = tmp_path / "depth.npy"
    np.save(path, DEPTH)
    assert load_depth(path, "metric", 60.0).depth.shape == DEPTH.shape
    with pytest.raises(InputError, match=r"pass --depth-kind metric\|relative, or"):
        load_depth(path, fov=60.0)
    with pytest.raises(InputError, match="--fov"):
        load_depth(path, "metric")


def test_disparity_is_offered_where_its_scale_and_shift_are(tmp_path):
    path = write(tmp_path, depth=DEPTH, scale=1.0, shift=0.0)
    with pytest.raises(InputError, match=r"metric\|relative\|disparity$"):
        load_depth(path, fov=60.0)


def test_a_field_of_view_that_nobody_would_heed_is_refused(tmp_path):
    path = write(tmp_path, depth=DEPTH, kind="metric", intrinsics=INTRINSICS)
    with pytest.raises(InputError, match="has intrinsics of its own; leave --fov out"):
        load_depth(path, fov=60.0)


def test_infinity_is_sky_beyond_any_parallax(tmp_path):
    depth = DEPTH.copy()
    depth[:, 0] = np.inf
    sky = load_depth(write(tmp_path, depth=depth, kind="metric"), fov=60.0).depth
    np.testing.assert_allclose(sky[:, 0], SKY * depth[:, 1:].max(), rtol=1e-6)
    np.testing.assert_allclose(sky[:, 1:], depth[:, 1:], rtol=1e-6)


def spoilt(value):
    depth = DEPTH.copy()
    depth[1, 2, 3:5] = value
    return depth


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"depth": spoilt(np.nan)}, "2 of 48 depths are not numbers above 0.*frame 1"),
        ({"depth": spoilt(0.0)}, "2 of 48"),
        ({"depth": spoilt(-1.0)}, "2 of 48"),
        ({"depth": spoilt(-np.inf)}, "2 of 48"),
        ({"depth": np.full_like(DEPTH, np.inf)}, "48 of 48"),
        ({"depth": spoilt(1e300)}, "2 of 48"),
        ({"depth": DEPTH[0]}, "give .frames, height, width."),
        ({"depth": DEPTH[:0]}, "give .frames, height, width."),
        ({"depth": DEPTH.astype(str)}, "real numbers"),
        ({"z": DEPTH}, "no array named depth"),
        ({"kind": "inverse"}, "unknown kind"),
        ({"kind": "disparity"}, "scale and shift"),
        ({"kind": "disparity", "scale": np.ones(2), "shift": 0.0}, "one finite number each"),
        ({"kind": "disparity", "scale": "a", "shift": 0.0}, "one finite number each"),
        ({"kind": "disparity", "scale": np.inf, "shift": 0.0} | {"depth": spoilt(0.0)}, "finite"),
        ({"kind": "disparity", "scale": 1e308, "shift": 0.0}, "48 of 48"),
        ({"kind": "disparity", "scale": 0.0, "shift": 0.0}, "48 of 48"),
        ({"intrinsics": np.zeros((3, 3))}, "singular"),
        ({"c2w": 2 * np.eye(4)}, "not a rigid"),
        ({"intrinsics": np.diag([0.2, 0.15, 1.0])}, "look normalised"),
        ({"c2w": np.stack([np.eye(4)] * 3)}, "c2w has shape"),
    ],
)
def test_invalid_depth_is_refused_in_one_line_with_the_file_name(tmp_path, fields, says):
    valid = {} if "z" in fields else {"depth": DEPTH}
    path = write(tmp_path, **(valid | {"kind": "metric", "intrinsics": INTRINSICS} | fields))
    with pytest.raises(InputError, match=says) as caught:
        load_depth(path)
    assert "depth.npz" in str(caught.value) and "\n" not in str(caught.value)


def test_a_kind_that_contradicts_the_file_is_refused(tmp_path):
    path = write(tmp_path, depth=DEPTH, kind="metric", intrinsics=INTRINSICS)
    with pytest.raises(InputError, match="says its kind is metric"):
        load_depth(path, "relative")


def test_a_file_is_what_it_holds_whatever_it_is_called(tmp_path):
    path = write(tmp_path, depth=DEPTH, kind="metric", intrinsics=INTRINSICS)
    np.testing.assert_allclose(load_depth(path.rename(tmp_path / "depth.npy")).depth, DEPTH, 1e-6)


def test_unreadable_files_are_refused(tmp_path):
    whole = write(tmp_path, depth=DEPTH, kind="metric").read_bytes()
    np.savez_compressed(tmp_path / "packed.npz", depth=DEPTH)
    packed = bytearray((tmp_path / "packed.npz").read_bytes())
    begins = 30 + sum(int.from_bytes(packed[at : at + 2], "little") for at in (26, 28))
    packed[begins] |= 0b110  # a kind of block that zlib does not know
    for name, content in [
        ("cut.npz", whole[: len(whole) // 2]),
        ("flipped.npz", packed),
        ("text.npz", b"depth"),
        ("text.npy", b"depth"),
        ("empty.npz", b""),
        ("image.png", b""),
    ]:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=name) as caught:
            load_depth(tmp_path / name, "metric" if name.endswith("npy") else None, 60.0)
        assert "pickle" not in str(caught.value)  # which NumPy would advise
    with pytest.raises(InputError, match="absent.npz"):
        load_depth(tmp_path / "absent.npz")


def test_poses_stay_the_files_own_and_cameras_are_measured_from_the_first(tmp_path):
    c2w = np.stack([np.eye(4), np.eye(4)])
    c2w[:, :3, 3] = [[1e6 + 0.25, -3e5, 7.0], [1e6 + 0.375, -3e5, 7.0]]
    write(tmp_path, depth=DEPTH, kind="metric", intrinsics=INTRINSICS, c2w=c2w)
    clip = load_depth(tmp_path / "depth.npz")
    save_depth(tmp_path / "again.npz", clip)
    np.testing.assert_array_equal(load_depth(tmp_path / "again.npz").c2w, c2w)
    np.testing.assert_array_equal(clip.origin, c2w[0, :3, 3])
    np.testing.assert_array_equal(clip.camera.c2w[:, :3, 3], [[0, 0, 0], [0.125, 0, 0]])


def test_radius_is_the_first_frames_depth_in_the_middle_whatever_the_rim():
    depth = np.full((2, 9, 9), 50.0, np.float32)
    depth[0, 3:6, 3:6] = 4.0
    depth[0, 4, 4] = 1000.0
    assert scene_radius(jnp.asarray(depth)) == 4.0


def test_resizing_invents_no_depth():
    depth = jnp.asarray(np.random.default_rng(0).choice([1.0, 5.0], (2, 12, 16)), jnp.float32)
    for height, width in ((6, 8), (5, 7), (30, 33)):
        resized = resize_depth(depth, height, width)
        assert resized.shape == (2, height, width)
        assert set(np.unique(resized)) <= {1.0, 5.0}


def test_edges_drop_the_far_rim_and_flying_pixels_only():
    row = np.array([2, 2, 2, 3, 4, 4, 4, 4.2], np.float32)
    depth = jnp.asarray(np.tile(row, (1, 3, 1)))
    kept = np.asarray(depth_edges(depth))[0, 1]
    # 3 flies between the surfaces, the first 4 lies beside it; 4 to 4.2 is one surface
    np.testing.assert_array_equal(kept, [1, 1, 1, 0, 0, 1, 1, 1])
