"""CLIP's vision tower as far as Wan runs it, from Wan's own keys or transformers'."""

from functools import partial
from math import isqrt

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ic_jax.errors import InputError
from ic_jax.models.clip_vision import CLIPVision, CLIPVisionConfig

from .keymap import Part, State, Table, block_count, rules, source_shape
from .transforms import LINEAR, MODULATION, NORM, TENSOR, Kind, Transform, patches

PROBES = {
    "original": "cls_embedding",
    "transformers": "embeddings.class_embedding",
}

# Of the released tower; the weights do not show how wide a head is.
_HEAD_DIM = 80
_PATCH = 14

# Wan takes the tokens that enter the last block.
_SPARE_BLOCKS = 1

_PATCHES: Kind = ((".weight", "/kernel", patches(_PATCH, _PATCH)),)
_TOKEN: Kind = (("", "", Transform(lambda x: x[None], lambda x: x[0])),)

# Two tensors that the layouts store with different axes: kind, ours, theirs.
_EMBEDDINGS = {
    "original": (
        (MODULATION, "class_embedding", "cls_embedding"),
        (MODULATION, "position_embedding", "pos_embedding"),
    ),
    "transformers": (
        (_TOKEN, "class_embedding", "embeddings.class_embedding"),
        (TENSOR, "position_embedding", "embeddings.position_embedding"),
    ),
}

_QKV = "transformer.{n}.attn.to_qkv"
_LAYER = "encoder.layers.{n}"

# kind, ours, original, transformers
_ROWS = (
    (_PATCHES, "patch_embedding", "patch_embedding", "embeddings.patch_embedding"),
    (NORM, "pre_norm", "pre_norm", "pre_layrnorm"),
    (NORM, "blocks/norm1", "transformer.{n}.norm1", f"{_LAYER}.layer_norm1"),
    (LINEAR, "blocks/attn/q", Part(_QKV, 0, 3), f"{_LAYER}.self_attn.q_proj"),
    (LINEAR, "blocks/attn/k", Part(_QKV, 1, 3), f"{_LAYER}.self_attn.k_proj"),
    (LINEAR, "blocks/attn/v", Part(_QKV, 2, 3), f"{_LAYER}.self_attn.v_proj"),
    (LINEAR, "blocks/attn/o", "transformer.{n}.attn.proj", f"{_LAYER}.self_attn.out_proj"),
    (NORM, "blocks/norm2", "transformer.{n}.norm2", f"{_LAYER}.layer_norm2"),
    (LINEAR, "blocks/ffn/fc1", "transformer.{n}.mlp.0", f"{_LAYER}.mlp.fc1"),
    (LINEAR, "blocks/ffn/fc2", "transformer.{n}.mlp.2", f"{_LAYER}.mlp.fc2"),
)

# What stands before the tower's keys in files that hold it alone, or all of CLIP.
_PREFIXES = {
    "original": ("model.visual.", "visual.", "model."),
    "transformers": ("vision_model.",),
}

# The end of the tower, and the text side of CLIP.
_IGNORED = {
    "original": ("post_norm.weight", "post_norm.bias", "head", "log_scale", "textual.*"),
    "transformers": (
        "post_layernorm.weight",
        "post_layernorm.bias",
        "visual_projection.weight",
        "embeddings.position_ids",
        "text_model.*",
        "text_projection.weight",
        "logit_scale",
    ),
}


def table(layout: str) -> Table:
    """The rules for the layout "original" or "transformers"."""
    return Table(
        rules(_EMBEDDINGS[layout], 0) + rules(_ROWS, tuple(PROBES).index(layout)),
        prefixes=_PREFIXES[layout],
        ignored=_IGNORED[layout],
        spare_blocks=_SPARE_BLOCKS,
    )


def config(state: State, layout: str) -> CLIPVisionConfig:
    """The sizes that a state without prefixes shows; heads are 80 wide and patches 14 pixels."""
    shape = partial(source_shape, state, table(layout))
    dim = shape("patch_embedding/kernel")[0]
    if dim % _HEAD_DIM:
        raise InputError(f"patch_embedding.weight: width {dim} is not a multiple of {_HEAD_DIM}")
    return CLIPVisionConfig(
        dim=dim,
        ffn_dim=shape("blocks/ffn/fc1/kernel")[0],
        heads=dim // _HEAD_DIM,
        layers=block_count(state, table(layout), "blocks/norm1/scale") - _SPARE_BLOCKS,
        image=_PATCH * isqrt(shape("position_embedding")[-2] - 1),
        patch=_PATCH,
    )


def target(config: CLIPVisionConfig) -> PyTree:
    """Shapes of the parameters of a tower of these sizes."""
    pixels = jnp.zeros((1, config.image, config.image, 3))
    return jax.eval_shape(CLIPVision(config).init, jax.random.key(0), pixels)["params"]
