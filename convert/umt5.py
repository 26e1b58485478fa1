"""The umT5 encoder, from Wan's own keys or transformers'."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ic_jax.models.umt5 import UMT5Config, UMT5Encoder

from .keymap import State, Table, block_count, rules, source_shape
from .transforms import EMBEDDING, MATRIX, SCALE, TENSOR

PROBES = {
    "original": "token_embedding.weight",
    "transformers": "encoder.final_layer_norm.weight",
}

_ATTENTION = "encoder.block.{n}.layer.0.SelfAttention"
_POSITIONS = f"{_ATTENTION}.relative_attention_bias"
_FEED_FORWARD = "encoder.block.{n}.layer.1.DenseReluDense"

# kind, ours, original, transformers
_ROWS = (
    (EMBEDDING, "token_embedding", "token_embedding", "shared"),
    (SCALE, "blocks/norm1", "blocks.{n}.norm1", "encoder.block.{n}.layer.0.layer_norm"),
    (MATRIX, "blocks/attn/q", "blocks.{n}.attn.q", f"{_ATTENTION}.q"),
    (MATRIX, "blocks/attn/k", "blocks.{n}.attn.k", f"{_ATTENTION}.k"),
    (MATRIX, "blocks/attn/v", "blocks.{n}.attn.v", f"{_ATTENTION}.v"),
    (MATRIX, "blocks/attn/o", "blocks.{n}.attn.o", f"{_ATTENTION}.o"),
    (TENSOR, "blocks/attn/position_bias", "blocks.{n}.pos_embedding.embedding", _POSITIONS),
    (SCALE, "blocks/norm2", "blocks.{n}.norm2", "encoder.block.{n}.layer.1.layer_norm"),
    (MATRIX, "blocks/ffn/gate", "blocks.{n}.ffn.gate.0", f"{_FEED_FORWARD}.wi_0"),
    (MATRIX, "blocks/ffn/fc1", "blocks.{n}.ffn.fc1", f"{_FEED_FORWARD}.wi_1"),
    (MATRIX, "blocks/ffn/fc2", "blocks.{n}.ffn.fc2", f"{_FEED_FORWARD}.wo"),
    (SCALE, "norm", "norm", "encoder.final_layer_norm"),
)


def table(layout: str) -> Table:
    """The rules for the layout "original" or "transformers"."""
    aliases = {"encoder.embed_tokens.weight": "shared.weight"}
    return Table(
        rules(_ROWS, tuple(PROBES).index(layout)),
        aliases=aliases if layout == "transformers" else {},
        # ComfyUI packs the tokenizer's file into the weights.
        ignored=("spiece_model",),
        foreign={"decoder.*": "umT5 encoder-decoder", "scaled_fp8": "scaled fp8"},
    )


def config(state: State, layout: str) -> UMT5Config:
    """The sizes that a state without aliases shows."""
    shape = partial(source_shape, state, table(layout))
    vocab, dim = shape("token_embedding/embedding")
    buckets, heads = shape("blocks/attn/position_bias")
    return UMT5Config(
        vocab=vocab,
        dim=dim,
        ffn_dim=shape("blocks/ffn/fc1/kernel")[0],
        heads=heads,
        head_dim=shape("blocks/attn/q/kernel")[0] // heads,
        layers=block_count(state, table(layout), "blocks/norm1/scale"),
        buckets=buckets,
    )


def target(config: UMT5Config) -> PyTree:
    """Shapes of the parameters of an encoder of these sizes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    encoder = UMT5Encoder(config)
    return jax.eval_shape(encoder.init, jax.random.key(0), tokens, tokens)["params"]
