"""Scenes against closed forms, against themselves from a second camera, and as a data set."""

import itertools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import scenes
from experiments.scene_textures import WALLS
from experiments.scenes_data import Scenes, ScenesConfig, array_cache, build

FRAMES, HEIGHT, WIDTH = 3, 32, 48
INTRINSICS = jnp.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]])


@pytest.fixture(scope="module")
def many():
    """A batch of scenes and source cameras."""
    drawn = [scenes.scene_of(seed, FRAMES, HEIGHT, WIDTH) for seed in range(64)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *drawn)


def at(position):
    """A camera that looks along +z."""
    return jnp.eye(4).at[:3, 3].set(jnp.array(position))


def render(scene, *poses):
    """Always two views at one instant, so that the renderer is compiled once."""
    c2w = jnp.stack([poses[0], poses[-1]])
    return scenes.render(scene, c2w, INTRINSICS, jnp.zeros(2), HEIGHT, WIDTH)


def unproject(depth, c2w):
    """World points [3, H, W] of one view."""
    y, x = jnp.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = jnp.stack([(x - 24) / 40, (y - 16) / 40, jnp.ones_like(x)])
    return jnp.einsum("ij,jhw->ihw", c2w[:3, :3], rays * depth) + c2w[:3, 3, None, None]


def alone(shape, half):
    """The demo scene with one still object of one shape at the origin."""
    scene = scenes.demo_scene()
    objects = scene.objects._replace(
        present=jnp.array([True, False, False]),
        shape=jnp.array([scenes.SHAPES.index(shape), 0, 0]),
        half_size=jnp.tile(jnp.array(half), (3, 1)),
        position=jnp.zeros((3, 3)),
        motion=jnp.zeros(3, int),
    )
    return scene._replace(objects=objects)


def test_depth_of_a_wall_is_its_z_distance():
    scene = scenes.demo_scene()
    empty = scene._replace(objects=scene.objects._replace(present=jnp.zeros(3, bool)))
    depth = render(empty, at([0.3, -0.2, -1.5]))[1][0]
    back = scene.room[1, 2] + 1.5
    floor = (scene.room[1, 1] + 0.2) / ((jnp.arange(HEIGHT) + 0.5 - 16) / 40)
    np.testing.assert_allclose(depth[16, 10:40], back, rtol=1e-5)
    np.testing.assert_allclose(depth[-1, 24], min(back, floor[-1]), rtol=1e-5)


@pytest.mark.parametrize(
    "shape, surface",
    [
        ("ball", lambda p: np.hypot(np.hypot(p[0] / 0.5, p[1] / 0.5), p[2] / 0.5)),
        ("cube", lambda p: np.abs(p / np.array([0.5, 0.5, 0.5])[:, None]).max(0)),
        ("cylinder", lambda p: np.maximum(np.hypot(p[0], p[2]) / 0.5, np.abs(p[1]) / 0.5)),
        ("cone", lambda p: np.maximum(2 * np.hypot(p[0], p[2]) / (0.5 + p[1]), p[1] / 0.5)),
    ],
)
def test_hits_lie_on_the_shape(shape, surface):
    # From above and to the side, so that flat ends, edges and curved sides are all seen.
    pose = scenes.look_at(jnp.array([0.4, -1.4, -1.6]), jnp.zeros(3))
    with_object, without = alone(shape, [0.5, 0.5, 0.5]), alone(shape, [1e-3, 1e-3, 1e-3])
    depth, wall = render(with_object, pose)[1][0], render(without, pose)[1][0]
    hit = np.asarray(wall - depth > 1e-3)
    assert hit.sum() > 60
    points = np.asarray(unproject(depth, pose))[:, hit]
    np.testing.assert_allclose(surface(points), 1.0, atol=2e-3)


def test_two_views_of_a_scene_agree():
    scene, c2w, _ = scenes.scene_of(5, FRAMES, HEIGHT, WIDTH)
    other = c2w[0].at[:3, 3].add(jnp.array([0.25, -0.05, 0.15]))
    clip, depth = render(scene, c2w[0], other)
    x, y, z = jnp.linalg.inv(other)[:3, :3] @ (
        unproject(depth[0], c2w[0]).reshape(3, -1) - other[:3, 3, None]
    )
    u, v = 40 * x / z + 24 - 0.5, 40 * y / z + 16 - 0.5
    inside = (u > 0) & (u < WIDTH - 1) & (v > 0) & (v < HEIGHT - 1)
    sample = lambda image: jax.scipy.ndimage.map_coordinates(image, [v, u], 1)  # noqa: E731
    seen = inside & (jnp.abs(sample(depth[1]) - z) < 0.01 * z)
    colour = jax.vmap(sample, -1, -1)(clip[1])
    error = jnp.mean(jnp.square(colour - clip[0].reshape(-1, 3))[seen])
    moved = jnp.mean(jnp.square(clip[1] - clip[0]))
    assert seen.mean() > 0.5
    assert 10 * jnp.log10(4 / error) > 26
    assert error < 0.25 * moved


def test_cameras_stay_in_the_room_and_out_of_the_objects(many):
    scene, c2w, intrinsics = many
    position = c2w[:, :, :3, 3]
    assert (position > scene.room[:, None, 0]).all() and (position < scene.room[:, None, 1]).all()
    times = jnp.linspace(0, 1, FRAMES)
    centres = jax.vmap(
        lambda objects: jax.vmap(lambda time: scenes.object_poses(objects, time)[0])(times)
    )(scene.objects)
    away = jnp.linalg.norm(centres - position[:, :, None], axis=-1)
    reach = jnp.linalg.norm(scene.objects.half_size, axis=-1)[:, None]
    assert (away > reach).all()
    rotation = c2w[..., :3, :3]
    np.testing.assert_allclose(
        rotation @ jnp.swapaxes(rotation, -1, -2),
        jnp.broadcast_to(jnp.eye(3), rotation.shape),
        atol=1e-5,
    )
    np.testing.assert_allclose(jnp.linalg.det(rotation), 1.0, atol=1e-5)
    fov = 2 * jnp.rad2deg(jnp.arctan(WIDTH / 2 / intrinsics[:, 0, 0]))
    assert (fov >= 45).all() and (fov <= 75).all()


def test_objects_stay_in_the_room(many):
    scene = many[0]
    times = jnp.linspace(0, 1, 9)
    centres = jax.vmap(
        lambda objects: jax.vmap(lambda time: scenes.object_poses(objects, time)[0])(times)
    )(scene.objects)
    half = scene.objects.half_size[:, None]
    low, high = centres - half, centres + half
    assert (low > scene.room[:, None, None, 0]).all()
    assert (high < scene.room[:, None, None, 1] + 1e-5).all()


def test_most_objects_are_seen(many):
    scene, c2w, intrinsics = many
    middle = c2w[:, FRAMES // 2]
    local = jnp.einsum(
        "nji,nsj->nsi", middle[:, :3, :3], scene.objects.position - middle[:, None, :3, 3]
    )
    pixel = jnp.einsum("nij,nsj->nsi", intrinsics, local / local[..., 2:])
    inside = (pixel[..., :2] > 0).all(-1) & (pixel[..., 0] < WIDTH) & (pixel[..., 1] < HEIGHT)
    assert inside[scene.objects.present].mean() > 0.9
    radius = intrinsics[:, 1, 1, None] * scene.objects.half_size[..., 0] / local[..., 2] / HEIGHT
    radius = radius[scene.objects.present]
    assert (radius > 0.08).all() and (radius < 0.4).all()


def test_captions_name_what_is_there(many):
    for i in range(64):
        scene = jax.tree.map(lambda leaf: leaf[i], many[0])
        words = scenes.caption(scene).replace(",", "").split()
        objects = scene.objects
        present = np.flatnonzero(objects.present)
        assert len(scenes.caption(scene).encode()) <= 63
        named = [word for word in words if word in scenes.SHAPES]
        assert sorted(named) == sorted(scenes.SHAPES[objects.shape[s]] for s in present)
        for slot in present:
            colour, shape = scenes.COLOURS[objects.colour[slot]], scenes.SHAPES[objects.shape[slot]]
            assert words[words.index(shape) - 1] == colour
        assert WALLS[scene.textures.kind[0]] in words


def test_every_caption_fits():
    demo = scenes.demo_scene()
    names = [("yellow", "cylinder"), ("purple", "ball"), ("orange", "cone")]
    wall = WALLS.index("plaster")
    textures = demo.textures._replace(kind=demo.textures.kind.at[0].set(wall))
    for order, motions in itertools.product(
        itertools.permutations(names), itertools.product(range(8), (0, 5, 6), (0,))
    ):
        objects = demo.objects._replace(
            present=np.ones(3, bool),
            motion=np.array(motions),
            colour=np.array([scenes.COLOURS.index(colour) for colour, _ in order]),
            shape=np.array([scenes.SHAPES.index(shape) for _, shape in order]),
        )
        assert "plaster" in scenes.caption(demo._replace(objects=objects, textures=textures))
    assert scenes.caption(demo) == "a red ball bounces beside a yellow cylinder in a brick room"


def test_a_seed_is_a_scene():
    first, again, other = (scenes.scene_of(seed, FRAMES, HEIGHT, WIDTH) for seed in (3, 3, 4))
    clips = [render(scene, *c2w)[0] for scene, c2w, _ in (first, again, other)]
    np.testing.assert_array_equal(clips[0], clips[1])
    assert jnp.abs(clips[0] - clips[2]).mean() > 0.05
    assert jnp.isfinite(clips[0]).all() and jnp.abs(clips[0]).max() <= 1


def test_training_and_test_seeds_are_disjoint():
    for config in Scenes.BUILDER_CONFIGS:
        assert config.train >= 5000 and config.test >= 50
        assert not set(config.seeds("train")) & set(config.seeds("test"))


def test_data_set_builds_and_reads_without_tensorflow(tmp_path):
    config = ScenesConfig(name="tiny", frames=FRAMES, height=16, width=24, train=3, test=1)
    builder = build(tmp_path, config)
    clips, captions = array_cache(builder, "train", tmp_path)
    assert clips.shape == (3, FRAMES, 16, 24, 3) and len(captions) == 3
    example = builder.as_data_source("test")[0]
    assert example["seed"] == config.seeds("test")[0]
    assert example["depth"].shape == (FRAMES, 16, 24)
    read = (
        "import sys; import tensorflow_datasets as tfds;"
        f"data = tfds.builder_from_directory({str(builder.data_path)!r}).as_data_source('train');"
        "assert [int(example['seed']) for example in data] == [0, 1, 2];"
        "assert data[0]['clip'].std() > 5 and 'tensorflow' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", read], check=True)
