"""The warp: an exact linear map, whole surfaces, true holes; a real stereo pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.data import astronaut, stereo_motorcycle
from skimage.transform import resize

from experiments.splat_quality import bicubic_zoom, nearest_splat, psnr, stereo_scene
from ic_jax.errors import InputError
from ic_jax.geometry.camera import (
    Camera,
    camera,
    intrinsics_from_fov,
    pixel_centres,
    project,
    unproject,
)
from ic_jax.geometry.mask import MaskOperator
from ic_jax.geometry.trajectory import trajectory
from ic_jax.geometry.warp import WarpOperator, warp_frame, warp_operator

HEIGHT, WIDTH = 24, 32
INTRINSICS = intrinsics_from_fov(60.0, HEIGHT, WIDTH)
NEAR, FAR = 2.0, 4.0

build = jax.jit(warp_operator, static_argnames="edges")
apply = jax.jit(WarpOperator.apply)


def still(frames: int) -> Camera:
    return camera(np.eye(4), INTRINSICS, frames)


def moved(*moves: tuple[str, float]) -> Camera:
    """One camera per move, each at its full amount, around the far plane."""
    poses = jnp.stack([trajectory(name, 2, FAR, amount)[1] for name, amount in moves])
    return camera(poses, INTRINSICS, len(moves))


def two_planes(blur: bool = False) -> np.ndarray:
    """Depth of a near square in the middle of a far plane."""
    depth = np.full((HEIGHT, WIDTH), FAR, np.float32)
    depth[8:16, 12:20] = NEAR
    if blur:
        depth[7:17, 11:21] = np.minimum(depth[7:17, 11:21], (NEAR + FAR) / 2)
    return depth


MOVES = (("translate_right", 0.1), ("arc_left", 10.0), ("zoom_in", 0.4), ("zoom_out", 0.2))


def scene(frames: int = len(MOVES), edges: bool = False) -> WarpOperator:
    depth = jnp.asarray(np.stack([two_planes()] * frames))
    return build(depth, still(frames), moved(*MOVES[:frames]), edges=edges)


def noise(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def test_adjoint_is_the_exact_transpose():
    operator = scene(edges=True)
    x = noise(0, len(MOVES), HEIGHT, WIDTH, 3)
    y = noise(1, len(MOVES), HEIGHT, WIDTH, 3)
    back = jax.jit(WarpOperator.adjoint)(operator, y)
    np.testing.assert_allclose(jnp.vdot(apply(operator, x), y), jnp.vdot(x, back), rtol=1e-4)
    _, pull = jax.vjp(lambda clip: apply(operator, clip), x)
    np.testing.assert_allclose(pull(y)[0], back, atol=1e-6)


def test_apply_is_linear():
    operator, x, y = scene(), *noise(0, 2, len(MOVES), HEIGHT, WIDTH, 3)
    mixed = apply(operator, 2 * x - 3 * y)
    np.testing.assert_allclose(mixed, 2 * apply(operator, x) - 3 * apply(operator, y), atol=1e-5)


def test_a_camera_that_stays_changes_nothing_at_all():
    # depth as rough as it comes: nothing may depend on it
    depth = 1 + jnp.abs(noise(2, len(MOVES), HEIGHT, WIDTH))
    cameras = moved(*MOVES)
    operator = build(depth, cameras, cameras, edges=False)
    clip = noise(0, len(MOVES), HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(apply(operator, clip), clip)
    np.testing.assert_array_equal(operator.visible, 1.0)


def test_a_slanted_plane_has_the_depth_where_each_ray_meets_it():
    """So closely that inverse depth must have been interpolated, which is linear over its image."""
    x = (np.arange(WIDTH) + 0.5 - WIDTH / 2) / INTRINSICS[0, 0]
    slope, pose = np.array([-0.8, -0.4, 0.4, 0.8])[:, None, None], np.eye(4)
    pose[0, 3] = 0.2
    of_plane = lambda shift: (3 + slope * shift) / (1 - slope * x)  # z = 3 + slope x
    depth = jnp.asarray(np.broadcast_to(of_plane(0), (4, HEIGHT, WIDTH)), jnp.float32)
    operator = build(depth, still(4), camera(pose, INTRINSICS, 4), edges=False)
    off = np.abs(operator.surface / of_plane(pose[0, 3]) - 1)[operator.visible == 1]
    assert off.size > 0.8 * depth.size and off.max() < 1e-4


def test_a_magnified_plane_has_no_cracks_and_looks_interpolated():
    zooms = (1.5, 2.0, 3.0, 4.0)
    photograph = resize(astronaut()[:384], (HEIGHT, WIDTH), anti_aliasing=True) * 2 - 1
    clip = jnp.asarray(np.stack([photograph] * len(zooms)), jnp.float32)
    target = moved(*(("zoom_in", 1 - 1 / zoom) for zoom in zooms))
    operator = build(jnp.full(clip.shape[:3], FAR), still(len(zooms)), target, edges=True)
    np.testing.assert_array_equal(operator.visible, 1.0)
    for zoom, ours, source in zip(zooms, apply(operator, clip), clip):
        assert psnr(ours, bicubic_zoom(source, zoom)) > 30


def test_visible_is_what_the_source_really_sees():
    operator = scene()
    for frame in range(len(MOVES)):
        target = jax.tree.map(lambda leaf: leaf[frame], operator.target)
        truth, certain = true_visibility(target)
        agrees = (np.asarray(operator.visible[frame]) > 0.5) == truth
        assert certain.mean() > 0.6
        assert agrees[certain].all()
    assert (operator.visible < 0.5).any()


def true_visibility(target: Camera) -> tuple[np.ndarray, np.ndarray]:
    """By ray casting: whether the source sees each target pixel's point, and where that is
    certain: more than a pixel away from any outline of the square or the image."""
    pixels = pixel_centres(HEIGHT, WIDTH)
    rays = np.asarray(unproject(pixels, jnp.ones((HEIGHT, WIDTH)), target) - target.c2w[:3, 3])

    def hit(plane: float) -> tuple[np.ndarray, np.ndarray]:
        """Distances from the source's square (negative inside) and image (negative outside)."""
        steps = (plane - target.c2w[2, 3]) / rays[..., 2]
        points = jnp.asarray(target.c2w[:3, 3] + steps[..., None] * rays)
        x, y = np.moveaxis(np.asarray(project(points, source)[0]), -1, 0)
        square = np.maximum(np.abs(x - 16), np.abs(y - 12)) - 4
        image = np.minimum(np.minimum(x, WIDTH - x), np.minimum(y, HEIGHT - y))
        return square, image

    source = Camera(jnp.eye(4), INTRINSICS)
    on_near, _ = hit(NEAR)
    behind, image = hit(FAR)
    truth = (on_near < 0) | ((behind > 0) & (image > 0))
    certain = (np.abs(on_near) > 1) & (np.abs(behind) > 1) & (np.abs(image) > 1)
    return truth, certain


def test_foreground_hides_background():
    # near is white, far is black: nothing in between may appear
    operator = scene()
    white = jnp.asarray(np.stack([two_planes() == NEAR] * len(MOVES)), jnp.float32)
    warped = np.asarray(apply(operator, jnp.stack([white] * 3, axis=-1)))[..., 0]
    near = np.asarray(operator.surface) < 3.0
    assert near.any((1, 2)).all()
    np.testing.assert_allclose(warped[near], 1.0, atol=1e-5)
    np.testing.assert_allclose(warped[~near], 0.0, atol=1e-5)


@pytest.mark.parametrize("edges", [True, False])
def test_flying_pixels_are_removed(edges):
    depth = jnp.asarray(np.stack([two_planes(blur=True)] * len(MOVES)))
    # translation only: depths stay what they were
    target = moved(*[("translate_right", 0.1)] * len(MOVES))
    surface = np.asarray(build(depth, still(len(MOVES)), target, edges=edges).surface)
    flying = np.isfinite(surface) & (np.abs(surface - (NEAR + FAR) / 2) < 0.5)
    assert flying.any() != edges


def test_dropped_pixels_leave_a_hole_and_bother_nobody():
    depth = np.full((len(MOVES), HEIGHT, WIDTH), FAR, np.float32)
    keep = np.ones(depth.shape, bool)
    keep[:, 8:12, 8:12] = False
    depth[~keep] = np.nan
    operator = build(jnp.asarray(depth), still(len(MOVES)), still(len(MOVES)), keep=keep)
    np.testing.assert_array_equal(operator.visible, keep)
    np.testing.assert_array_equal(apply(operator, jnp.ones((*keep.shape, 3)))[..., 0], keep)


def test_nothing_is_visible_behind_the_camera():
    turned = moved(*[("pan_left", 180.0)] * len(MOVES))
    operator = build(jnp.full((len(MOVES), HEIGHT, WIDTH), FAR), still(len(MOVES)), turned)
    assert not operator.visible.any()
    assert not apply(operator, noise(0, len(MOVES), HEIGHT, WIDTH, 3)).any()


def test_half_a_pixel_off_the_image_is_half_visible():
    half_pixel = 0.5 / INTRINSICS[0, 0]  # in units of the radius
    target = moved(*[("translate_left", float(half_pixel))] * len(MOVES))
    operator = build(jnp.full((len(MOVES), HEIGHT, WIDTH), FAR), still(len(MOVES)), target)
    np.testing.assert_allclose(operator.visible[:, :, 0], 0.5, atol=1e-3)
    np.testing.assert_array_equal(operator.visible[:, :, 1:], 1.0)


def test_a_rim_that_was_dropped_behind_the_foreground_is_no_part_of_it():
    operator = scene(edges=True)
    near = operator.surface < (NEAR + FAR) / 2
    assert near.any((1, 2)).all()
    np.testing.assert_array_equal(operator.visible[near], 1.0)


def test_a_sky_as_far_as_the_unknown_is_no_part_of_the_foreground():
    depth = np.where(two_planes() == NEAR, NEAR, np.float32(1e10))[None]
    target = moved(("translate_right", 0.3 * NEAR / FAR / float(INTRINSICS[0, 0])))
    operator = build(jnp.asarray(depth), still(1), target, edges=False)
    sky = apply(operator, jnp.asarray(depth > NEAR, jnp.float32)[..., None])
    near = depth == NEAR  # moved by less than half a pixel
    np.testing.assert_array_equal(operator.visible[near], 1.0)
    np.testing.assert_array_equal(sky[near], 0.0)


@pytest.mark.parametrize("depth", [0.0, -1.0, np.nan, np.inf])
def test_a_depth_that_is_none_is_a_dropped_pixel(depth):
    there = jnp.full((1, HEIGHT, WIDTH), FAR).at[0, 8, 8].set(depth)
    target = moved(("translate_right", 0.1))
    dropped = jnp.ones(there.shape, bool).at[0, 8, 8].set(False)
    expected = build(jnp.full(there.shape, FAR), still(1), target, keep=dropped)
    jax.tree.map(np.testing.assert_array_equal, build(there, still(1), target), expected)


@pytest.mark.parametrize("shape", [(3, HEIGHT, WIDTH), (4, HEIGHT, 8), (4, 48, WIDTH)])
@pytest.mark.parametrize("operator", [scene(), MaskOperator(scene().visible)])
def test_a_clip_of_another_size_is_refused(operator, shape):
    for way in (operator.apply, operator.adjoint):
        with pytest.raises(InputError, match=rf"clip is \({shape[0]}, .*operator \(4, 24, 32\)"):
            jax.eval_shape(way, jnp.zeros((*shape, 3)))


def test_a_plane_moves_in_the_image_as_its_depth_and_the_camera_say():
    """A ramp over x shows f b / z more at a pixel, seen from b further to the right."""
    focal, z, b, inner = float(INTRINSICS[0, 0]), 3.0, 0.04, slice(4, -4)
    ramp = jnp.broadcast_to(jnp.arange(WIDTH, dtype=jnp.float32)[:, None], (1, HEIGHT, WIDTH, 1))
    pose = jnp.eye(4)[None].at[0, 0, 3].set(b)

    def shown(depth, pose):
        operator = warp_operator(depth, still(1), Camera(pose, INTRINSICS[None]))
        return operator.apply(ramp)[0, inner, inner].mean()

    depth = jnp.full((1, HEIGHT, WIDTH), z)
    by_depth, by_pose = jax.jit(jax.grad(shown, (0, 1)))(depth, pose)
    np.testing.assert_allclose(by_depth.sum(), -focal * b / z**2, rtol=1e-3)
    np.testing.assert_allclose(by_pose[0, 0, 3], focal / z, rtol=1e-3)
    _, forward = jax.jvp(lambda d: shown(d, pose), (depth,), (jnp.ones_like(depth),))
    np.testing.assert_allclose(forward, by_depth.sum(), rtol=1e-3)


def test_a_slanted_wall_that_turns_towards_the_camera_has_no_cracks():
    """What a pixel of the source saw of it, foreshortened, is several pixels of the target."""
    slope, x = np.tan(np.radians(55.0)), (np.arange(WIDTH) + 0.5 - WIDTH / 2) / INTRINSICS[0, 0]
    depth = jnp.broadcast_to(jnp.asarray(FAR / (1 - slope * x), jnp.float32), (3, HEIGHT, WIDTH))
    target = moved(("arc_right", 20.0), ("arc_right", 30.0), ("arc_right", 40.0))
    visible = build(depth, still(3), target, edges=False).visible
    np.testing.assert_array_equal(visible[:, 4:-4, 1:-1], 1.0)


def test_clips_may_be_vmapped():
    depths = 3 + 0.3 * jax.random.uniform(jax.random.key(3), (2, 1, HEIGHT, WIDTH))
    clips = noise(0, 2, 1, HEIGHT, WIDTH, 3)
    target = moved(("arc_left", 20.0))

    def warp(depth, clip):
        operator = warp_operator(depth, still(1), target)
        return operator.apply(clip), operator.visible

    together = jax.jit(jax.vmap(warp))(depths, clips)
    alone = jax.jit(warp)
    for index in range(2):
        for ours, theirs in zip(together, alone(depths[index], clips[index])):
            np.testing.assert_allclose(ours[index], theirs, atol=1e-5)


def test_jit_changes_nothing():
    depth = jnp.asarray(two_planes())
    target = jax.tree.map(lambda leaf: leaf[0], moved(("arc_left", 10.0)))
    frame = noise(0, HEIGHT, WIDTH, 3)
    source = Camera(jnp.eye(4), INTRINSICS)
    for ours, theirs in zip(
        warp_frame(frame, depth, source, target), jax.jit(warp_frame)(frame, depth, source, target)
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-4)


def test_real_stereo_pair():
    """Left to right by the true disparity, against the right photograph."""
    scene = stereo_scene(*stereo_motorcycle())
    warped, visible = jax.jit(warp_frame)(
        scene.left, scene.depth, scene.left_camera, scene.right_camera, keep=scene.known
    )
    baseline, reached = nearest_splat(scene)
    seen = np.asarray(visible) > 0.5
    assert seen.mean() > 0.8
    assert psnr(warped[seen], scene.right[seen]) > 27
    both = seen & reached
    assert psnr(warped[both], scene.right[both]) > psnr(baseline[both], scene.right[both]) + 0.5
