"""Wan 2.1 and 2.2 transformers, VideoX-Fun's included, from Wan's own keys or diffusers'."""

from collections.abc import Iterator
from functools import partial
from math import prod

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ic_jax.errors import InputError
from ic_jax.models.wan_dit import IMAGE_TOKENS, DiTConfig, WanDiT

from .keymap import State, Table, block_count, canonical, rules, source_shape, unsupported
from .transforms import LINEAR, MODULATION, NORM, SCALE, Kind, patches, same

PROBES = {
    "original": "blocks.0.self_attn.q.weight",
    "diffusers": "blocks.0.attn1.to_q.weight",
}

# Every released model has heads of this width; the weights do not show it.
_HEAD_DIM = 128

_TIME = "condition_embedder.time_embedder"
_TEXT = "condition_embedder.text_embedder"
_IMAGE = "condition_embedder.image_embedder"

# Of our relatives: keys, and numbers of channels in and out, that only they have.
_FOREIGN_KEYS = {
    "img_emb.emb_pos": "FLF2V",
    "condition_embedder.image_embedder.pos_embed": "FLF2V",
    "ref_conv.*": "Control",
    "control_adapter.*": "Control-Camera",
    "vace_blocks.*": "VACE",
    "scaled_fp8": "scaled fp8",
}
_FOREIGN_IN = {48: "Control", 52: "Control", 32: "Control-Camera"}
_FOREIGN_OUT = {48: "Wan2.2 5B"}

_PATCHES: Kind = ((".weight", "/kernel", patches(1, 2, 2)), (".bias", "/bias", same))

# kind, ours, original, diffusers
_TOP = (
    (_PATCHES, "patch_embedding", "patch_embedding", "patch_embedding"),
    (LINEAR, "time_embedding/fc1", "time_embedding.0", f"{_TIME}.linear_1"),
    (LINEAR, "time_embedding/fc2", "time_embedding.2", f"{_TIME}.linear_2"),
    (LINEAR, "time_embedding/projection", "time_projection.1", "condition_embedder.time_proj"),
    (LINEAR, "text_embedding/fc1", "text_embedding.0", f"{_TEXT}.linear_1"),
    (LINEAR, "text_embedding/fc2", "text_embedding.2", f"{_TEXT}.linear_2"),
    (NORM, "image_embedding/norm1", "img_emb.proj.0", f"{_IMAGE}.norm1"),
    (LINEAR, "image_embedding/fc1", "img_emb.proj.1", f"{_IMAGE}.ff.net.0.proj"),
    (LINEAR, "image_embedding/fc2", "img_emb.proj.3", f"{_IMAGE}.ff.net.2"),
    (NORM, "image_embedding/norm2", "img_emb.proj.4", f"{_IMAGE}.norm2"),
    (MODULATION, "head/modulation", "head.modulation", "scale_shift_table"),
    (LINEAR, "head/linear", "head.head", "proj_out"),
)

# The same below "blocks/", "blocks.{n}." and "blocks.{n}.".
_BLOCK = (
    (MODULATION, "modulation", "modulation", "scale_shift_table"),
    (LINEAR, "self_attn/q", "self_attn.q", "attn1.to_q"),
    (LINEAR, "self_attn/k", "self_attn.k", "attn1.to_k"),
    (LINEAR, "self_attn/v", "self_attn.v", "attn1.to_v"),
    (LINEAR, "self_attn/o", "self_attn.o", "attn1.to_out.0"),
    (SCALE, "self_attn/norm_q", "self_attn.norm_q", "attn1.norm_q"),
    (SCALE, "self_attn/norm_k", "self_attn.norm_k", "attn1.norm_k"),
    # Wan's norm3 is diffusers' norm2; the other two norms of a block have no parameters.
    (NORM, "cross_norm", "norm3", "norm2"),
    (LINEAR, "cross_attn/q", "cross_attn.q", "attn2.to_q"),
    (LINEAR, "cross_attn/k", "cross_attn.k", "attn2.to_k"),
    (LINEAR, "cross_attn/v", "cross_attn.v", "attn2.to_v"),
    (LINEAR, "cross_attn/o", "cross_attn.o", "attn2.to_out.0"),
    (SCALE, "cross_attn/norm_q", "cross_attn.norm_q", "attn2.norm_q"),
    (SCALE, "cross_attn/norm_k", "cross_attn.norm_k", "attn2.norm_k"),
    (LINEAR, "cross_attn/k_img", "cross_attn.k_img", "attn2.add_k_proj"),
    (LINEAR, "cross_attn/v_img", "cross_attn.v_img", "attn2.add_v_proj"),
    (SCALE, "cross_attn/norm_k_img", "cross_attn.norm_k_img", "attn2.norm_added_k"),
    (LINEAR, "ffn_fc1", "ffn.0", "ffn.net.0.proj"),
    (LINEAR, "ffn_fc2", "ffn.2", "ffn.net.2"),
)

_ROWS = _TOP + tuple(
    (kind, f"blocks/{ours}", f"blocks.{{n}}.{original}", f"blocks.{{n}}.{diffusers}")
    for kind, ours, original, diffusers in _BLOCK
)


def table(layout: str) -> Table:
    """The rules for the layout "original" or "diffusers"."""
    return Table(
        rules(_ROWS, tuple(PROBES).index(layout)),
        prefixes=("model.diffusion_model.",),
        # Left in old diffusers files; no network uses it.
        ignored=("blocks.{n}.attn2.norm_added_q.weight",),
        foreign=_FOREIGN_KEYS,
    )


def layout_of(state: State) -> str:
    """The layout of a transformer's keys; raises InputError for those of anything else."""
    for layout, probe in PROBES.items():
        if probe in canonical(state, table(layout)):
            return layout
    raise InputError(f"expected a Wan transformer; keys: {', '.join(sorted(state)[:3])}, ...")


def module_names(state: State, layout: str) -> Iterator[dict[str, str]]:
    """The name of each layer in every layout, for a transformer with the blocks of `state`."""
    blocks = block_count(state, table(layout), "blocks/modulation")
    for _, _, *names in _ROWS:
        for n in range(blocks if "{n}" in names[0] else 1):
            yield {other: name.replace("{n}", str(n)) for other, name in zip(PROBES, names)}


def config(state: State, layout: str) -> DiTConfig:
    """The sizes that a state without prefixes shows; heads are taken to be 128 wide.

    Raises InputError for those of a relative that we do not have, such as a Control model.
    """
    shape = partial(source_shape, state, table(layout))
    dim, in_channels, *patch = shape("patch_embedding/kernel")
    if dim % _HEAD_DIM:
        raise InputError(f"patch_embedding.weight: width {dim} is not a multiple of {_HEAD_DIM}")
    out_channels = shape("head/linear/kernel")[0] // prod(patch)
    relative = _FOREIGN_OUT.get(out_channels, _FOREIGN_IN.get(in_channels))
    if relative is not None:
        raise unsupported(relative, f"{in_channels} channels in, {out_channels} out")
    has_image = any("img_emb." in key or ".image_embedder." in key for key in state)
    return DiTConfig(
        dim=dim,
        ffn_dim=shape("blocks/ffn_fc1/kernel")[0],
        num_heads=dim // _HEAD_DIM,
        num_layers=block_count(state, table(layout), "blocks/modulation"),
        in_channels=in_channels,
        out_channels=out_channels,
        text_dim=shape("text_embedding/fc1/kernel")[1],
        freq_dim=shape("time_embedding/fc1/kernel")[1],
        patch=tuple(patch),
        image_dim=shape("image_embedding/fc1/kernel")[1] if has_image else None,
    )


def target(config: DiTConfig) -> PyTree:
    """Shapes of the parameters of a transformer of these sizes."""
    image = None if config.image_dim is None else jnp.zeros((1, IMAGE_TOKENS, config.image_dim))
    return jax.eval_shape(
        WanDiT(config).init,
        jax.random.key(0),
        jnp.zeros((1, *config.patch, config.in_channels)),
        jnp.zeros(1),
        jnp.zeros((1, 1, config.text_dim)),
        image,
    )["params"]
