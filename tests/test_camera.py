"""Cameras: conventions, round trips, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.errors import InputError
from ic_jax.geometry.camera import (
    Camera,
    camera,
    intrinsics_from_fov,
    pixel_centres,
    project,
    scale_intrinsics,
    unproject,
)
from ic_jax.geometry.trajectory import trajectory

HEIGHT, WIDTH = 6, 8


def view(name: str = "arc_left") -> Camera:
    pose = trajectory(name, 2, 3.0)[1]
    return Camera(pose, intrinsics_from_fov(60.0, HEIGHT, WIDTH))


def test_field_of_view_spans_the_width():
    intrinsics = intrinsics_from_fov(90.0, HEIGHT, WIDTH)
    np.testing.assert_allclose(intrinsics, [[4, 0, 4], [0, 4, 3], [0, 0, 1]], atol=1e-6)


def test_axes_are_right_down_forward():
    # one unit to the right, down and ahead of a camera with focal length 4
    still = Camera(jnp.eye(4), intrinsics_from_fov(90.0, HEIGHT, WIDTH))
    pixels, depth = project(jnp.array([[[1.0, 1.0, 2.0]]]), still)
    np.testing.assert_allclose(pixels[0, 0], [4 + 4 / 2, 3 + 4 / 2])
    assert depth[0, 0] == 2


def test_project_undoes_unproject():
    depth = jnp.linspace(1.0, 5.0, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH)
    pixels, back = project(unproject(pixel_centres(HEIGHT, WIDTH), depth, view()), view())
    np.testing.assert_allclose(pixels, pixel_centres(HEIGHT, WIDTH), atol=1e-4)
    np.testing.assert_allclose(back, depth, rtol=1e-5)


def test_scaled_intrinsics_see_the_same_rays():
    # twice as wide, three times as high, then a margin of (5, 7) pixels cut off
    small = view()
    large = small._replace(intrinsics=scale_intrinsics(small.intrinsics, 2.0, 3.0, 5.0, 7.0))
    points = unproject(pixel_centres(HEIGHT, WIDTH), jnp.ones((HEIGHT, WIDTH)), small)
    pixels, _ = project(points, large)
    np.testing.assert_allclose(
        pixels, pixel_centres(HEIGHT, WIDTH) * jnp.array([2, 3]) - jnp.array([5, 7]), atol=1e-4
    )


def test_one_camera_is_repeated_over_the_frames():
    cameras = camera(np.eye(4), intrinsics_from_fov(60.0, HEIGHT, WIDTH), 3)
    assert cameras.c2w.shape == (3, 4, 4)
    assert cameras.intrinsics.shape == (3, 3, 3)


MIRROR = np.diag([-1.0, 1, 1, 1])
SCALE = np.diag([2.0, 2, 2, 1])
NO_FOCAL = np.array([[0.0, 0, 4], [0, 4, 3], [0, 0, 1]])


@pytest.mark.parametrize(
    "c2w, intrinsics, says",
    [
        (MIRROR, None, "c2w of frame 0 is not a rigid"),
        (np.stack([np.eye(4), SCALE]), None, "c2w of frame 1 is not a rigid"),
        (np.eye(4) * np.nan, None, "c2w holds a number that is not finite"),
        (np.eye(4) + np.eye(4, k=3) * 1e39, None, "c2w holds a number that is not finite"),
        (np.eye(4) * 1e200, None, "c2w holds a number that is not finite"),
        (np.eye(4) * 1j, None, "c2w is not an array of numbers"),
        (np.eye(3), None, "c2w has shape"),
        (np.eye(4), NO_FOCAL, "intrinsics of frame 0 are singular"),
        (np.eye(4), np.diag([1e300, 1e300, 1]), "intrinsics holds a number that is not finite"),
        (np.eye(4), np.diag([1e-40, 1e-40, 1]), "intrinsics of frame 0 are singular"),
        (np.eye(4), np.eye(4), "intrinsics has shape"),
        (np.array("north"), None, "c2w is not an array of numbers"),
    ],
)
def test_invalid_cameras_are_refused(c2w, intrinsics, says):
    intrinsics = intrinsics_from_fov(60.0, HEIGHT, WIDTH) if intrinsics is None else intrinsics
    with pytest.raises(InputError, match=says):
        camera(c2w, intrinsics, 2)


def test_cameras_are_measured_from_the_origin_before_digits_are_lost():
    c2w = np.eye(4)
    c2w[:3, 3] = [1e6 + 0.25, -1e6, 3.0]
    lens = intrinsics_from_fov(60.0, HEIGHT, WIDTH)
    seen = camera(c2w, lens, 2, origin=np.array([1e6, -1e6, 1.0]))
    np.testing.assert_array_equal(seen.c2w[:, :3, 3], [[0.25, 0, 2]] * 2)


NORMALISED = np.array([[0.9, 0, 0.5], [0, 1.6, 0.5], [0, 0, 1]])


@pytest.mark.parametrize("lens", [NORMALISED, np.diag([2.0, 2.0, 1.0])])
def test_intrinsics_of_a_unit_image_are_refused_where_its_size_is_known(lens):
    in_pixels = np.diag([1280, 720, 1]) @ lens
    with pytest.raises(InputError, match="frame 1 look normalised .* in pixels .* of 1280x720"):
        camera(np.eye(4), np.stack([in_pixels, lens]), 2, size=(720, 1280))
    camera(np.eye(4), in_pixels, 2, size=(720, 1280))


@pytest.mark.parametrize("degrees", [0.0, 180.0, float("nan"), 1e-300, 5e-324])
def test_impossible_fields_of_view_are_refused(degrees):
    with pytest.raises(InputError, match="field of view"):
        intrinsics_from_fov(degrees, HEIGHT, WIDTH)
