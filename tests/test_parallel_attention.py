"""Tokens spread over devices attend to each other as they would on one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from collectives import collectives

from ic_jax.models.attention import attention
from ic_jax.models.attention.parts import merge, plain_part
from ic_jax.parallel import MeshShape, device_mesh, sequence, sequence_layout

HEADS = 4


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def qkv(batch, tokens):
    return tuple(jnp.asarray(3 * normal(batch, tokens, HEADS, 8, seed=n)) for n in range(3))


@pytest.mark.parametrize("tokens", [16, 5])
@pytest.mark.parametrize(
    "shape",
    [
        MeshShape(sequence=4),  # Ulysses
        MeshShape(sequence=3),  # a ring
        MeshShape(sequence=8),  # a ring of two Ulysses
        MeshShape(prompts=2, sequence=4),
    ],
    ids=str,
)
def test_spread_tokens_attend_as_on_one_device(shape, tokens):
    q, k, v = qkv(2, tokens)
    layout = sequence_layout(device_mesh(shape, HEADS))
    spread = jax.jit(layout.attend)(q, k, v)
    assert len(spread.sharding.device_set) == shape.devices
    np.testing.assert_allclose(spread, attention(q, k, v), atol=1e-5)


def test_keys_are_gathered_for_a_kernel_that_needs_all_of_them(monkeypatch):
    monkeypatch.setattr(sequence, "suits_cudnn", lambda q: True)
    q, k, v = qkv(2, 6)
    attend = jax.jit(sequence_layout(device_mesh(MeshShape(sequence=3), HEADS)).attend)
    spread = attend.lower(q, k, v).compile()
    assert {each.kind for each in collectives(spread.as_text())} == {"all-gather"}
    np.testing.assert_allclose(spread(q, k, v), attention(q, k, v), atol=1e-5)


def test_a_prompt_alone_is_attended_to_on_devices_for_two():
    layout = sequence_layout(device_mesh(MeshShape(prompts=2, sequence=4), HEADS))
    q, k, v = qkv(1, 6)
    np.testing.assert_allclose(jax.jit(layout.attend)(q, k, v), attention(q, k, v), atol=1e-5)


def test_text_is_attended_to_from_spread_tokens():
    layout = sequence_layout(device_mesh(MeshShape(prompts=2, sequence=4), HEADS))
    (q, _, _), (_, k, v) = qkv(2, 6), qkv(2, 9)
    spread = jax.jit(layout.attend_context)(q, k, v)
    np.testing.assert_allclose(spread, attention(q, k, v), atol=1e-5)


def test_attention_to_parts_of_the_keys_merges_into_attention_to_all():
    @jax.jit
    def in_parts(q, k, v):
        # No key at all, some of them, and the rest before padding.
        none = plain_part(q, k[:, :4], v[:, :4], jnp.int32(0))
        some = plain_part(q, k, v, jnp.int32(7))
        rest = plain_part(q, k[:, 7:], v[:, 7:], jnp.int32(3))
        return merge(merge(none, some), rest)[0]

    q, k, v = qkv(2, 12)
    expected = attention(q, k[:, :10], v[:, :10])
    np.testing.assert_allclose(in_parts(q, k, v), expected, atol=1e-5)


def test_chunks_of_queries_change_nothing(monkeypatch):
    arguments = *qkv(2, 11), jnp.int32(8)
    at_once = jax.jit(plain_part)(*arguments)
    monkeypatch.setattr("ic_jax.models.attention.parts._SCORE_BUDGET", 3 * 2 * HEADS * 11)
    in_chunks = jax.jit(lambda *arguments: plain_part(*arguments))(*arguments)
    for some, whole in zip(in_chunks, at_once):
        np.testing.assert_allclose(some, whole, atol=1e-6)


def test_float32_keeps_its_bits_on_every_platform():
    """As on one device; 16 bits have none to lose."""
    for dtype, products in (jnp.float32, ["HIGHEST"] * 4), (jnp.bfloat16, []):
        arrays = (x.astype(dtype) for x in qkv(1, 6))
        with jax.default_matmul_precision(None):
            program = jax.jit(lambda *given: plain_part(*given)).lower(*arrays, jnp.int32(6))
        assert re.findall("HIGHEST", program.as_text()) == products


def test_the_same_mesh_has_the_same_layout():
    shape = MeshShape(sequence=2)
    layouts = [sequence_layout(device_mesh(shape, HEADS)) for _ in range(2)]
    assert layouts[0] == layouts[1]
    assert hash(layouts[0]) == hash(layouts[1])
