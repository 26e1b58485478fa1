"""The Wan 2.1 autoencoder, from Wan's own keys or diffusers'."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ic_jax.models.wan_vae import VAEConfig, WanVAE

from .keymap import State, Table, rules, source_shape
from .transforms import CONV, GAMMA, IMAGE_CONV, IMAGE_GAMMA, POINTWISE, Kind

PROBES = {
    "original": "encoder.conv1.weight",
    "diffusers": "encoder.conv_in.weight",
}

Row = tuple[Kind, str, str, str]

# Stages within stages are the 48-channel autoencoder's.
_FOREIGN_KEYS = {
    "encoder.downsamples.{n}.downsamples.*": "Wan2.2 5B",
    "encoder.down_blocks.{n}.resnets.*": "Wan2.2 5B",
}

# The sizes of the released model fix how many layers there are; only the width is read.
_RELEASED = VAEConfig()

# kind, ours, original, diffusers
_RESIDUAL = (
    (GAMMA, "norm1", "residual.0", "norm1"),
    (CONV, "conv1/conv", "residual.2", "conv1"),
    (GAMMA, "norm2", "residual.3", "norm2"),
    (CONV, "conv2/conv", "residual.6", "conv2"),
    (CONV, "shortcut", "shortcut", "conv_shortcut"),
)
_ATTENTION = (
    (IMAGE_GAMMA, "norm", "norm", "norm"),
    (POINTWISE, "qkv", "to_qkv", "to_qkv"),
    (POINTWISE, "out", "proj", "proj"),
)
_RESAMPLE = (
    (IMAGE_CONV, "spatial", "resample.1", "resample.1"),
    (CONV, "time", "time_conv", "time_conv"),
)
_HALF = (
    (CONV, "conv_in/conv", "conv1", "conv_in"),
    (GAMMA, "norm_out", "head.0", "norm_out"),
    (CONV, "conv_out/conv", "head.2", "conv_out"),
)
_PROJECTIONS = (
    (CONV, "quant", "conv1", "quant_conv"),
    (CONV, "post_quant", "conv2", "post_quant_conv"),
)


def _below(rows: tuple[Row, ...], ours: str, original: str, diffusers: str) -> Iterator[Row]:
    for kind, a, b, c in rows:
        yield kind, f"{ours}/{a}", f"{original}.{b}", f"{diffusers}.{c}"


def _rows() -> Iterator[Row]:
    yield from _PROJECTIONS
    for half in ("encoder", "decoder"):
        yield from _below(_HALF, half, half, half)
        ours, wan, diffusers = f"{half}/middle", f"{half}.middle", f"{half}.mid_block"
        yield from _below(_RESIDUAL, f"{ours}/block0", f"{wan}.0", f"{diffusers}.resnets.0")
        yield from _below(_ATTENTION, f"{ours}/attention", f"{wan}.1", f"{diffusers}.attentions.0")
        yield from _below(_RESIDUAL, f"{ours}/block1", f"{wan}.2", f"{diffusers}.resnets.1")
    yield from _encoder_stages()
    yield from _decoder_stages()


def _encoder_stages() -> Iterator[Row]:
    """Residual blocks and the down-sampler share one count over all stages, in both layouts."""
    per_stage = _RELEASED.blocks + 1
    for stage in range(len(_RELEASED.multipliers)):
        ours = f"encoder/stage{stage}"
        for j in range(per_stage):
            name, rows = (f"block{j}", _RESIDUAL) if j < _RELEASED.blocks else ("down", _RESAMPLE)
            index = stage * per_stage + j
            wan, diffusers = f"encoder.downsamples.{index}", f"encoder.down_blocks.{index}"
            yield from _below(rows, f"{ours}_{name}", wan, diffusers)


def _decoder_stages() -> Iterator[Row]:
    """As in the encoder for Wan; diffusers counts blocks within each stage."""
    blocks = _RELEASED.blocks + 1
    for stage in range(len(_RELEASED.multipliers)):
        ours, diffusers = f"decoder/stage{stage}", f"decoder.up_blocks.{stage}"
        first = stage * (blocks + 1)
        for j in range(blocks):
            wan = f"decoder.upsamples.{first + j}"
            yield from _below(_RESIDUAL, f"{ours}_block{j}", wan, f"{diffusers}.resnets.{j}")
        wan = f"decoder.upsamples.{first + blocks}"
        yield from _below(_RESAMPLE, f"{ours}_up", wan, f"{diffusers}.upsamplers.0")


def table(layout: str) -> Table:
    """The rules for the layout "original" or "diffusers"."""
    return Table(
        rules(_rows(), tuple(PROBES).index(layout)),
        # VideoX-Fun puts the whole network below it.
        prefixes=("model.",),
        foreign=_FOREIGN_KEYS,
    )


def config(state: State, layout: str) -> VAEConfig:
    """The released sizes, at the width that a state without prefixes shows."""
    return VAEConfig(base=source_shape(state, table(layout), "encoder/conv_in/conv/kernel")[0])


def target(config: VAEConfig) -> PyTree:
    """Shapes of the parameters of an autoencoder of these sizes."""
    size = config.spatial_factor
    clip = jnp.zeros((1, 1 + config.temporal_factor, size, size, 3))
    return jax.eval_shape(WanVAE(config).init, jax.random.key(0), clip)["params"]
