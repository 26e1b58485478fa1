"""Depth files: what is read, of our own and of others, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ic_jax.depth_file import ALSO_CALLED, SKY, load_depth, save_depth
from ic_jax.errors import InputError
from ic_jax.geometry.camera import intrinsics_from_fov

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
    with pytest.raises(InputError, match=r"pass --depth-kind metric\|relative\|disparity"):
        load_depth(path, fov=60.0)
    with pytest.raises(InputError, match="--fov"):
        load_depth(path, "metric")


def test_scale_and_shift_of_disparity_are_told_where_the_file_does_not_state_them(tmp_path):
    disparity = (1 / DEPTH - 0.1) / 2
    np.save(tmp_path / "depth.npy", disparity)
    path = write(tmp_path, depths=disparity, scale=np.float32(2.0), shift=np.float32(0.1))
    for file, told in (tmp_path / "depth.npy", (2.0, 0.1)), (path, ()), (path, (2.0, 0.1)):
        clip = load_depth(file, "disparity", 60.0, *told)
        np.testing.assert_allclose(clip.depth, DEPTH, rtol=1e-5)
    with pytest.raises(InputError, match="says its shift is 0.1, the command says 0.2"):
        load_depth(path, "disparity", 60.0, 2.0, 0.2)
    with pytest.raises(InputError, match="--depth-scale and --depth-shift"):
        load_depth(tmp_path / "depth.npy", "disparity", 60.0, 2.0)
    with pytest.raises(InputError, match="shift of its depth is one finite number"):
        load_depth(tmp_path / "depth.npy", "disparity", 60.0, 2.0, np.inf)


def test_a_unit_of_depth_is_told(tmp_path):
    np.save(tmp_path / "depth.npy", (1000 * DEPTH).astype(np.int32))
    found = load_depth(tmp_path / "depth.npy", "metric", 60.0, 0.001).depth
    np.testing.assert_allclose(found, DEPTH, atol=1e-3)
    with pytest.raises(InputError, match="a shift, or a scale in the file, is of disparity"):
        load_depth(tmp_path / "depth.npy", "metric", 60.0, shift=0.1)
    stated = write(tmp_path, depth=DEPTH, kind="relative", scale=2.0, intrinsics=INTRINSICS)
    with pytest.raises(InputError, match="is of disparity, and its kind is relative"):
        load_depth(stated)


def test_names_of_other_tools_are_read_and_their_frames_are_not(tmp_path):
    """As MegaSaM writes it, with poses as others do: without the last row."""
    c2w = np.stack([np.eye(4, dtype=np.float32)] * 2)
    c2w[1, 0, 3] = 0.5
    frames = np.array([print], object)  # not to be read without running what it holds
    for poses in c2w, c2w[:, :3], c2w[1], c2w[1, :3]:
        path = write(
            tmp_path,
            images=frames,
            depths=DEPTH.astype(np.float16),
            intrinsic=INTRINSICS,
            cam_c2w=poses,
        )
        clip = load_depth(path, "relative")
        np.testing.assert_allclose(clip.depth, DEPTH, rtol=1e-3)
        np.testing.assert_array_equal(clip.camera.intrinsics, [INTRINSICS] * 2)
        np.testing.assert_array_equal(clip.c2w[1], c2w[1])


@pytest.mark.parametrize("name, other", ALSO_CALLED.items())
def test_two_names_for_one_thing_are_refused(tmp_path, name, other):
    given = {"depth": DEPTH, "intrinsics": INTRINSICS, "c2w": np.eye(4)}
    path = write(tmp_path, kind="metric", **given, **{other: given[name]})
    with pytest.raises(InputError, match=f"holds both {name} and {other}; leave one"):
        load_depth(path)


@pytest.mark.parametrize("name", ["extrinsics", "w2c"])
def test_a_camera_does_not_stand_still_because_its_poses_go_the_other_way(tmp_path, name):
    given = {"depth": DEPTH, "kind": "metric", "intrinsics": INTRINSICS, name: np.eye(4)[:3]}
    with pytest.raises(InputError, match=f"its {name} are not read; give them as c2w"):
        load_depth(write(tmp_path, **given))
    assert load_depth(write(tmp_path, c2w=np.eye(4), **given)).depth.shape == DEPTH.shape


@pytest.fixture
def pngs(tmp_path):
    """Millimetres, in frames whose names sort otherwise than they count."""
    folder = tmp_path / "pngs"
    folder.mkdir()
    for name, frame in zip(("2", "10"), np.round(1000 * DEPTH).astype(np.uint16)):
        Image.fromarray(frame).save(folder / f"{name}.png")
    return folder


def test_pngs_of_16_bits_are_depth_in_a_unit_or_disparity(pngs):
    millimetres = np.round(1000 * DEPTH)
    found = load_depth(pngs, "metric", 60.0, 0.001)
    np.testing.assert_allclose(found.depth, millimetres / 1000, rtol=1e-6)
    np.testing.assert_array_equal(found.camera.intrinsics[0], intrinsics_from_fov(60.0, 4, 6))
    np.testing.assert_array_equal(load_depth(pngs, "relative", 60.0).depth, millimetres)
    near = load_depth(pngs, "disparity", 60.0, 1 / 65535, 0.01).depth
    np.testing.assert_allclose(near, 1 / (millimetres / 65535 + 0.01), rtol=1e-6)


@pytest.mark.parametrize(
    "told, says",
    [
        ((), "kind is not stated"),
        (("metric", 60.0), "need their unit; pass --depth-scale, 0.001 for mm"),
        (("relative",), "pass --fov"),
        (("disparity", 60.0, 1.0), "scale and shift"),
        (("metric", 60.0, 0.0), "48 of 48"),
        (("metric", 60.0, np.nan), "one finite number"),
    ],
)
def test_pngs_state_nothing(pngs, told, says):
    with pytest.raises(InputError, match=f"pngs: .*{says}") as caught:
        load_depth(pngs, *told)
    assert "\n" not in str(caught.value)


def refused(folder, says):
    with pytest.raises(InputError, match=says) as caught:
        load_depth(folder, "relative", 60.0)
    assert str(caught.value).startswith(f"{folder}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1", "LA"])
def test_pictures_of_depth_are_not_depth(pngs, mode):
    Image.new(mode, (6, 4)).save(pngs / "3.png")
    refused(pngs, f"3.png is no 16-bit grey PNG .PNG, {mode}.: pictures of depth")


def test_unreadable_folders_are_refused(pngs, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no PNGs$")
    (tmp_path / "empty" / "0.exr").touch()
    refused(tmp_path / "empty", "holds no PNGs; convert EXR to .npz first")
    Image.fromarray(np.ones((4, 6), np.uint16)).save(pngs / "3.tif")
    refused(pngs, "3.tif is no 16-bit grey PNG .TIFF")
    (pngs / "3.tif").unlink()
    Image.fromarray(np.ones((3, 6), np.uint16)).save(pngs / "3.png")
    refused(pngs, "PNGs of several sizes")
    (pngs / "3.png").write_bytes((pngs / "2.png").read_bytes()[:60])
    refused(pngs, "3.png is not a readable image")
    (pngs / "0.exr").touch()
    with pytest.raises(InputError, match="not .exr; convert EXR to .npz first"):
        load_depth(pngs / "0.exr", "metric", 60.0)


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
        ({"kind": "disparity", "scale": np.ones(2), "shift": 0.0}, "scale of its depth is one"),
        ({"kind": "disparity", "scale": "a", "shift": 0.0}, "scale of its depth is one"),
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
    for absent in "absent.npz", "absent":
        with pytest.raises(InputError, match=f"{absent}: no such file or folder"):
            load_depth(tmp_path / absent)


def test_poses_stay_the_files_own_and_cameras_are_measured_from_the_first(tmp_path):
    c2w = np.stack([np.eye(4), np.eye(4)])
    c2w[:, :3, 3] = [[1e6 + 0.25, -3e5, 7.0], [1e6 + 0.375, -3e5, 7.0]]
    write(tmp_path, depth=DEPTH, kind="metric", intrinsics=INTRINSICS, c2w=c2w)
    clip = load_depth(tmp_path / "depth.npz")
    save_depth(tmp_path / "again.npz", clip)
    np.testing.assert_array_equal(load_depth(tmp_path / "again.npz").c2w, c2w)
    np.testing.assert_array_equal(clip.origin, c2w[0, :3, 3])
    np.testing.assert_array_equal(clip.camera.c2w[:, :3, 3], [[0, 0, 0], [0.125, 0, 0]])
