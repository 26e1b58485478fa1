"""Devices that share the rows of a clip's frames encode and decode what one device does."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from tiny_model import TINY, tiny_context, tiny_weights

from ic_jax import pipeline
from ic_jax.geometry.mask import MaskOperator
from ic_jax.models.layout import Layout
from ic_jax.parallel import MeshShape, device_mesh, sequence_layout
from ic_jax.pipeline import Scene
from ic_jax.settings import Settings

# Six rows of latents, which four devices do not divide as they do those of frames.
SIZES = replace(TINY, frames=9, height=48, width=16)
# The second of the steps reuses.
SETTINGS = Settings(latent_mask="mean", steps=2, reuse=1)
KEY = jax.random.key(0)
SHAPES = [MeshShape(prompts=2, sequence=2), MeshShape(sequence=3)]


def observe(layout, weights, scene, sizes=SIZES, mask="mean"):
    settings = replace(SETTINGS, latent_mask=mask)
    return pipeline.observe(sizes, settings, weights, scene, scene, KEY, layout)


def sample(layout, weights, context, observation):
    return pipeline.sample(SIZES, SETTINGS, weights, context, observation, KEY, layout)


def finish(layout, weights, state, sizes=SIZES):
    return pipeline.finish(sizes, weights, state, layout)


@pytest.fixture(scope="module")
def weights():
    return tiny_weights()


@pytest.fixture(scope="module")
def scene():
    return random_scene(SIZES)


def random_scene(sizes):
    shape = sizes.frames, sizes.height, sizes.width
    clip = np.random.default_rng(0).uniform(-1, 1, (*shape, 3)).astype(np.float32)
    seen = np.ones(shape, np.float32)
    seen[:, 20:40, 4:12] = 0
    return Scene(jnp.asarray(clip), MaskOperator(jnp.asarray(seen)))


def shared(shape, function, *given):
    """The result on a mesh, and the program, which all devices of the mesh take part in."""
    mesh = device_mesh(shape, SIZES.dit.num_heads)
    given = jax.device_put(given, NamedSharding(mesh, PartitionSpec()))
    layout = sequence_layout(mesh)
    program = jax.jit(lambda *given: function(layout, *given)).lower(*given).compile()
    return program(*given), program


def alone(function, *given):
    return jax.jit(partial(function, Layout()))(*given)


def assert_same(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# The one mask encodes as well; the other asks the operator alone.
@pytest.mark.parametrize("shape, mask", [(SHAPES[0], "response"), (SHAPES[1], "mean")])
def test_what_is_observed_on_many_devices_is_what_one_observes(weights, scene, shape, mask):
    given = partial(observe, mask=mask), weights, scene
    (found, program), expected = shared(shape, *given), alone(*given)
    assert np.abs(expected.measurement.latent).max() > 0.1
    assert (np.ptp(expected.mask.variance) > 0.1) == (mask == "response")
    assert_same(found, expected)
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(found))
    # Convolutions look over the border of what a device has.
    assert "collective-permute" in program.as_text()


def test_what_is_sampled_on_many_devices_is_what_one_samples(weights, scene):
    given = sample, weights, tiny_context(), alone(observe, weights, scene)
    found, _ = shared(SHAPES[0], *given)
    # Nine tokens do not divide among devices. What is reused of them does, by channels.
    answer = found.memory.answer
    assert {part.data.shape for part in answer.addressable_shards} == {(1, 9, 24)}
    assert_same(found._replace(key=()), alone(*given)._replace(key=()))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_decoded_on_many_devices_is_what_one_decodes(weights, shape):
    state, _ = pipeline.begin(SIZES, SETTINGS, KEY)
    found, program = shared(shape, finish, weights, state)
    expected = alone(finish, weights, state)
    assert np.abs(expected).max() > 0.1
    assert_same(found, expected)
    assert found.sharding.is_fully_replicated
    assert "collective-permute" in program.as_text()


def test_rows_that_do_not_divide_stay_where_they_are():
    layout = sequence_layout(device_mesh(MeshShape(sequence=5), SIZES.dit.num_heads))
    frames = jnp.zeros((1, 1, SIZES.height, 2, 3))
    assert layout.rows(frames, 6) is frames


def test_too_few_rows_are_decoded_as_on_one_device(weights):
    # Shared all the same, they were multiplied.
    sizes = replace(SIZES, frames=1, height=16)
    given = partial(finish, sizes=sizes), weights, pipeline.begin(sizes, SETTINGS, KEY)[0]
    assert_same(shared(MeshShape(prompts=2, sequence=2), *given)[0], alone(*given))


def test_fewer_rows_of_latents_than_devices_are_encoded_as_on_one_device(weights):
    # So were these.
    sizes = replace(SIZES, frames=1, height=32)
    given = partial(observe, sizes=sizes), weights, random_scene(sizes)
    assert_same(shared(MeshShape(prompts=2, sequence=4), *given)[0], alone(*given))
