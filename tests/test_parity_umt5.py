from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_oracles as oracles
from perturbation import unmoved

from convert import umt5
from convert.keymap import canonical, convert_state
from ic_jax.models.umt5 import UMT5Encoder, byte_tokens, relative_buckets

TOLERANCE = 1e-5
LENGTHS = (512, 101)  # the longest that Wan reads: every bucket


@pytest.fixture(scope="module")
def encoded():
    """The torch state, tokens, mask, and what torch makes of them."""
    model = oracles.text_encoder()
    tokens = np.random.default_rng(0).integers(0, 100, (2, max(LENGTHS)))
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    with torch.no_grad():
        out = model(torch.tensor(tokens), torch.tensor(mask)).last_hidden_state.numpy()
    return oracles.state_of(model), tokens.astype(np.int32), mask, out


def converted(state, layout):
    if layout == "original":
        state = oracles.in_original_layout(state, "umt5")
    table = umt5.table(layout)
    config = umt5.config(canonical(state, table), layout)
    return UMT5Encoder(config), convert_state(state, table, umt5.target(config))


@pytest.mark.parametrize("layout", umt5.PROBES)
def test_equals_transformers(encoded, layout):
    state, tokens, mask, expected = encoded
    encoder, params = converted(state, layout)
    with jax.default_matmul_precision("highest"):
        out = np.asarray(jax.jit(encoder.apply)({"params": params}, tokens, mask))
    np.testing.assert_allclose(out[mask], expected[mask], atol=TOLERANCE)
    assert not out[~mask].any()
    assert 0.3 < np.sqrt(np.mean(out[mask] ** 2)) < 3


def test_every_tensor_moves_the_output(encoded):
    state, tokens, mask, _ = encoded
    encoder, params = converted(state, "transformers")
    run = lambda p: encoder.apply({"params": p}, jnp.asarray(tokens), jnp.asarray(mask))
    assert unmoved(run, params, 10 * TOLERANCE, stacked="blocks") == []


def test_buckets_equal_the_published_ones():
    distance = [0, 1, 7, 8, 9, 11, 12, 15, 16, 22, 23, 31, 32, 45, 46, 63, 64, 90, 91, 127]
    distance += [128, 511]
    bucket = [0, 1, 7, 8, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13, 14, 14, 15, 15, 15, 15]
    table = relative_buckets(512, buckets=32, max_distance=128)
    assert table[distance, 0].tolist() == bucket
    assert table[0, distance[1:]].tolist() == [16 + b for b in bucket[1:]]


def test_padding_does_not_reach_the_text(encoded):
    encoder, params = converted(encoded[0], "transformers")
    run = partial(jax.jit(encoder.apply), {"params": params})
    tokens = jnp.asarray(encoded[1][:, :9])
    mask = jnp.arange(9) < jnp.array([[4], [4]])
    padded = run(tokens, mask)
    other = run(jnp.where(mask, tokens, 7), mask)
    np.testing.assert_array_equal(padded, other)
    alone = run(tokens[:, :4], mask[:, :4])
    np.testing.assert_allclose(padded[:, :4], alone, atol=1e-6)


def test_byte_tokens_end_with_the_end_mark_and_padding():
    ids, mask = byte_tokens("é", 6)
    assert ids.tolist() == [0xC3 + 3, 0xA9 + 3, 1, 0, 0, 0]
    assert mask.tolist() == [True] * 3 + [False] * 3
    ids, mask = byte_tokens("abcdef", 4)
    assert ids.tolist() == [100, 101, 102, 1] and mask.all()
