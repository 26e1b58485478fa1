"""A clip on many devices is the clip on one; what the devices exchange is what was counted."""

import logging
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_transformer
from collectives import collectives, received
from jax.sharding import PartitionSpec
from tiny_transformer import CONFIG, TOKENS

from ic_jax.errors import InputError
from ic_jax.model import Weights
from ic_jax.models.layout import Layout
from ic_jax.parallel import (
    MeshShape,
    beside,
    check,
    device_mesh,
    over_mesh,
    place,
    sequence_layout,
)
from ic_jax.parallel.mesh import kept_spec, weight_axes
from ic_jax.parallel.traffic import attention_traffic, block_traffic, step_traffic

FLOAT32 = 4

LAYOUTS = [
    MeshShape(sequence=4, weights=4),
    MeshShape(sequence=8, weights=4),
    MeshShape(prompts=2, sequence=3, weights=3),
    MeshShape(prompts=2, sequence=4, weights=8),
]


# Each is compiled once for all tests.
on_one, on_mesh = cache(tiny_transformer.on_one), cache(tiny_transformer.on_mesh)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_every_layout_gives_what_one_device_gives(shape):
    (_, expected), (_, found) = on_one(), on_mesh(shape)
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("shape", LAYOUTS, ids=str)
def test_devices_exchange_what_was_counted(shape):
    found = collectives(on_mesh(shape)[0].as_text())
    inside = [each for each in found if "/while/body/" in each.source]  # the scan over blocks
    block = attention_traffic(shape, CONFIG, TOKENS, FLOAT32)
    block = block.plus(block_traffic(shape, CONFIG, FLOAT32))
    counted = block.times(CONFIG.num_layers)._asdict()
    expected = {kind.replace("_", "-"): size for kind, size in counted.items() if size}
    assert received(inside) == pytest.approx(expected)

    # Beyond the blocks: the result, if it is brought together here, and at most all of the
    # matrices before and after them.
    rest = {name: tree for name, tree in tiny_transformer.inputs()[0].items() if name != "blocks"}
    matrices = sum(leaf.nbytes for leaf in jax.tree.leaves(rest) if leaf.ndim > 1)
    most = sum(step_traffic(shape, CONFIG, TOKENS, FLOAT32)) + matrices
    assert sum(received(found).values()) <= most


# Weights are cut among the devices of a clip, and among clips.
@pytest.mark.parametrize(
    "shape",
    [MeshShape(clips=2, prompts=2, sequence=2, weights=4), MeshShape(clips=4, weights=4)],
    ids=str,
)
def test_clips_run_side_by_side_each_on_devices_of_its_own(shape):
    mesh = device_mesh(shape, CONFIG.num_heads)
    weights = place(Weights(vae={}, dit=tiny_transformer.inputs()[0]), mesh, shape.weights)
    kernel = weights.dit["blocks"]["self_attn"]["q"]["kernel"]
    assert {part.data.shape for part in kernel.addressable_shards} == {(2, 12, 48)}

    def velocity(layout, dit, x, timestep, context):
        told = tiny_transformer.prepare(layout, dit, context)
        return tiny_transformer.velocity(layout, dit, x, timestep, told)

    dit, *clip = tiny_transformer.inputs()
    clips = tuple(np.stack([leaf, 2 * leaf, -leaf]) for leaf in clip)
    found = over_mesh(partial(velocity, sequence_layout(mesh)), mesh)(weights.dit, clips)
    expected = [velocity(Layout(), dit, *(leaf[n] for leaf in clips)) for n in range(3)]
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.fixture
def compilations():
    """What JAX says that it compiled."""
    said = []

    class Listener(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    listener = Listener()
    loggers = [logging.getLogger(f"jax._src.{name}") for name in ("dispatch", "interpreters.pxla")]
    for logger in loggers:
        logger.addHandler(listener)
    with jax.log_compiles():
        yield lambda name: sum(f"Finished XLA compilation of jit({name})" in line for line in said)
    for logger in loggers:
        logger.removeHandler(listener)


def test_a_state_beside_the_weights_is_compiled_for_once(compilations):
    mesh = device_mesh(MeshShape(sequence=4), CONFIG.num_heads)
    weights = place(Weights(vae={}, dit={"kernel": np.eye(8, dtype=np.float32)}), mesh)

    @jax.jit
    def a_step(dit, state):
        x, key = state
        return x @ dit["kernel"], jax.random.fold_in(key, 0)

    state = beside(weights, (jnp.ones((2, 8)), jax.random.key(0)))
    for _ in range(3):
        state = a_step(weights.dit, state)
    assert compilations("a_step") == 1


def test_beside_weights_on_one_device_only_what_is_on_the_host_moves():
    there = jnp.ones(3)
    same, key, moved = beside(
        Weights(vae={}, dit={"kernel": jnp.eye(2)}), (there, jax.random.key(0), np.ones(2))
    )
    assert same.unsafe_buffer_pointer() == there.unsafe_buffer_pointer()
    assert isinstance(moved, jax.Array) and key == jax.random.key(0)


def test_what_is_kept_is_cut_where_its_parts_are_even():
    sizes = {"clips": 1, "prompts": 2, "ring": 3, "ulysses": 2}
    tokens, channels = (2, 12, 6), (2, 9, 6)
    assert kept_spec(sizes, tokens) == PartitionSpec("prompts", ("ring", "ulysses"), None)
    assert kept_spec(sizes, channels) == PartitionSpec("prompts", None, ("ring", "ulysses"))
    assert kept_spec(sizes, (1, 9, 8)) == PartitionSpec(None, None, None)
    assert kept_spec(sizes | {"ring": 1}, tokens) == PartitionSpec("prompts", "ulysses", None)
    alone = {"clips": 1, "prompts": 1, "ring": 1, "ulysses": 1}
    assert kept_spec(alone, tokens) == PartitionSpec(None, None, None)


def test_devices_share_weights_and_activations():
    (one, _), (mesh, _) = on_one(), on_mesh(MeshShape(prompts=2, sequence=4, weights=8))
    alone, shared = one.memory_analysis(), mesh.memory_analysis()
    assert shared.argument_size_in_bytes < 0.4 * alone.argument_size_in_bytes
    assert shared.temp_size_in_bytes < 0.4 * alone.temp_size_in_bytes


def test_the_parts_of_weights_are_close_to_each_other():
    sizes = {"clips": 2, "prompts": 2, "ring": 2, "ulysses": 2}
    axes = [(), ("ulysses",), ("ring", "ulysses"), ("prompts", "ring", "ulysses"), tuple(sizes)]
    assert weight_axes(sizes) == dict(zip((1, 2, 4, 8, 16), axes))


@pytest.mark.parametrize("error", [AssertionError, NotImplementedError, ValueError])
def test_chips_that_make_no_grid_are_a_mesh_in_their_order(monkeypatch, error):
    shape = MeshShape(prompts=2, sequence=3)
    usual = device_mesh(shape, CONFIG.num_heads)

    def refuse(*given, **more):
        raise error

    monkeypatch.setattr(jax, "make_mesh", refuse)
    assert device_mesh(shape, CONFIG.num_heads) == usual


@pytest.mark.parametrize(
    "shape, complaint",
    [
        (MeshShape(clips=2, prompts=2, sequence=3), "takes 12 devices, and there are 8"),
        (MeshShape(sequence=0), "sequence is 0"),
        (MeshShape(prompts=4), "prompts is 4"),
        (MeshShape(clips=2, sequence=4, weights=3), "into 3; give one of 1, 2, 4, 8"),
    ],
    ids=str,
)
def test_a_layout_that_cannot_be_had_is_one_line(shape, complaint):
    with pytest.raises(InputError, match=complaint) as error:
        check(shape, CONFIG.num_heads, 8)
    assert "\n" not in str(error.value)


def test_weights_are_cut_along_the_axes_of_their_mesh_or_not_at_all():
    mesh = device_mesh(MeshShape(sequence=4), heads=4)
    with pytest.raises(InputError, match="cannot cut the weights into 3; give one of 1, 4$"):
        place(Weights(vae={}, dit={}), mesh, 3)


def test_matrices_that_do_not_divide_are_refused():
    shape = MeshShape(sequence=5, weights=5)
    with pytest.raises(InputError, match="matrices of 96 rows|matrices of 48 rows"):
        tiny_transformer.on_mesh(shape)
