"""No two lines of a table can be mixed up unseen: parity would break, except where listed here.

A slip in a table makes two parameters of one shape trade places. For every such pair, the output
of a small random network is compared before and after; what parity tests call equal must differ.
"""

from functools import cache
from itertools import combinations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from perturbation import OPTIMISED

from convert import clip_vision, umt5, wan_dit, wan_vae
from ic_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from ic_jax.models.umt5 import UMT5Config, UMT5Encoder
from ic_jax.models.wan_dit import DiTConfig, WanDiT
from ic_jax.models.wan_vae import VAEConfig, decode, encode

_SIZES = {"dim": 24, "ffn_dim": 20, "num_heads": 2, "num_layers": 2, "text_dim": 16, "text_len": 5}
TEXT_DIT = DiTConfig(**_SIZES)
IMAGE_DIT = DiTConfig(**_SIZES, in_channels=36, image_dim=10)
VAE = VAEConfig(base=4)
TEXT_ENCODER = UMT5Config(vocab=50, dim=24, ffn_dim=20, heads=3, head_dim=8, layers=2)
IMAGE_ENCODER = CLIPVisionConfig(dim=24, ffn_dim=20, heads=3, layers=2, image=42, patch=14)


def normal(*shape):
    noise = np.random.default_rng(len(shape)).standard_normal(shape)
    return jnp.asarray(noise, jnp.float32)


def run_dit(config, params):
    inputs = [normal(1, 2, 4, 4, config.in_channels), jnp.array([321.5]), normal(1, 5, 16)]
    if config.image_dim is not None:
        inputs.append(normal(1, 4, config.image_dim))
    return WanDiT(config).apply({"params": params}, *inputs)


def run_vae_encoder(config, params):
    return encode(config, params, normal(1, 5, 8, 8, 3))


def run_vae_decoder(config, params):
    return decode(config, params, normal(1, 2, 1, 1, 16))


def run_text_encoder(config, params):
    tokens = jnp.arange(30)[None] % config.vocab
    return UMT5Encoder(config).apply({"params": params}, tokens, tokens < 25)


def run_image_encoder(config, params):
    return CLIPVision(config).apply({"params": params}, normal(1, 42, 42, 3))


# The table's module, sizes, the tolerance of its parity test, and what runs the parameters whose
# names begin so.
MODELS = {
    "text transformer": (wan_dit, TEXT_DIT, 1e-4, {"": run_dit}),
    "image transformer": (wan_dit, IMAGE_DIT, 1e-4, {"": run_dit}),
    "autoencoder": (
        wan_vae,
        VAE,
        2e-5,
        {("encoder", "quant"): run_vae_encoder, ("decoder", "post_quant"): run_vae_decoder},
    ),
    "text encoder": (umt5, TEXT_ENCODER, 1e-5, {"": run_text_encoder}),
    "image encoder": (clip_vision, IMAGE_ENCODER, 1e-5, {"": run_image_encoder}),
}

# Both are added to the same sum, so only their own sum matters.
_SHORTCUTS = [
    (f"{block}/conv2/conv/bias", f"{block}/shortcut/bias")
    for block in ("encoder/stage1_block0", "encoder/stage2_block0", "decoder/stage1_block0")
]

UNSEEN = {
    # Scores multiply a query by a key channel by channel, and between these norms and that
    # product there is nothing. (Self-attention rotates them; in an image model the same queries
    # meet a second set of keys.)
    "text transformer": [("blocks/cross_attn/norm_k/scale", "blocks/cross_attn/norm_q/scale")],
    # The weights of an attention sum to 1, so both reach the sum of its two answers as they are.
    "image transformer": [("blocks/cross_attn/v/bias", "blocks/cross_attn/v_img/bias")],
    "autoencoder": _SHORTCUTS,
    "text encoder": [],
    "image encoder": [],
}

# What parity cannot see is looked up instead: shape and name in (original, diffusers).
_DIM = (TEXT_DIT.dim,)
LISTED = {
    "blocks/cross_attn/norm_q/scale": (
        _DIM,
        "blocks.{n}.cross_attn.norm_q.weight",
        "blocks.{n}.attn2.norm_q.weight",
    ),
    "blocks/cross_attn/norm_k/scale": (
        _DIM,
        "blocks.{n}.cross_attn.norm_k.weight",
        "blocks.{n}.attn2.norm_k.weight",
    ),
    "blocks/cross_attn/v/bias": (
        _DIM,
        "blocks.{n}.cross_attn.v.bias",
        "blocks.{n}.attn2.to_v.bias",
    ),
    "blocks/cross_attn/v_img/bias": (
        _DIM,
        "blocks.{n}.cross_attn.v_img.bias",
        "blocks.{n}.attn2.add_v_proj.bias",
    ),
    "encoder/stage1_block0/conv2/conv/bias": (
        (2 * VAE.base,),
        "encoder.downsamples.3.residual.6.bias",
        "encoder.down_blocks.3.conv2.bias",
    ),
    "encoder/stage1_block0/shortcut/bias": (
        (2 * VAE.base,),
        "encoder.downsamples.3.shortcut.bias",
        "encoder.down_blocks.3.conv_shortcut.bias",
    ),
    "encoder/stage2_block0/conv2/conv/bias": (
        (4 * VAE.base,),
        "encoder.downsamples.6.residual.6.bias",
        "encoder.down_blocks.6.conv2.bias",
    ),
    "encoder/stage2_block0/shortcut/bias": (
        (4 * VAE.base,),
        "encoder.downsamples.6.shortcut.bias",
        "encoder.down_blocks.6.conv_shortcut.bias",
    ),
    "decoder/stage1_block0/conv2/conv/bias": (
        (4 * VAE.base,),
        "decoder.upsamples.4.residual.6.bias",
        "decoder.up_blocks.1.resnets.0.conv2.bias",
    ),
    "decoder/stage1_block0/shortcut/bias": (
        (4 * VAE.base,),
        "decoder.upsamples.4.shortcut.bias",
        "decoder.up_blocks.1.resnets.0.conv_shortcut.bias",
    ),
}


@cache
def parameters(name):
    """Random ones: no two alike, none that makes its layer the identity or nothing."""
    model, config, *_ = MODELS[name]
    rng = np.random.default_rng(0)
    return {
        key: drawn(key, rng.standard_normal(leaf.shape).astype(np.float32))
        for key, leaf in flatten_dict(model.target(config), sep="/").items()
    }


def drawn(key, noise):
    if key.endswith(("scale", "gamma")):
        return 1 + 0.1 * noise
    if key.endswith("kernel"):
        blocks = len(noise) if key.startswith("blocks/") else 1
        return noise * np.float32((noise.size / noise.shape[-1] / blocks) ** -0.5)
    return noise * np.float32(0.1 if key.endswith("bias") else 0.5)


def stored(rule, leaf):
    """What the source holds for a parameter, in the first block for stacked ones."""
    return rule.transform.inverse(leaf[0] if rule.stacked else leaf)


def read_as(rule, other, leaf):
    """The parameter of `rule` if its name in the table were that of `other`, which is `leaf`."""
    read = lambda x: rule.transform.forward(other.transform.inverse(x))
    return np.stack([read(x) for x in leaf]) if rule.stacked else read(leaf)


def pairs(table, params):
    """Rules whose sources have the same shape, and so may be mixed up."""
    rules = [rule for rule in table.rules if rule.target in params]
    shape = {rule: (rule.stacked, stored(rule, params[rule.target]).shape) for rule in rules}
    return [(a, b) for a, b in combinations(rules, 2) if shape[a] == shape[b]]


def unseen(name, layout):
    """The pairs of parameters that can be mixed up in a table without moving the output."""
    model, config, tolerance, runs = MODELS[name]
    params = parameters(name)
    on_device = jax.device_put(params)
    watches = {start: Watch(run, config, on_device) for start, run in runs.items()}
    tried = pairs(model.table(layout), params)
    assert len(tried) > 7
    still = []
    for a, b in tried:
        swapped = {
            a.target: read_as(a, b, params[b.target]),
            b.target: read_as(b, a, params[a.target]),
        }
        watch = next(
            watch
            for start, watch in watches.items()
            if a.target.startswith(start) or b.target.startswith(start)
        )
        if not watch.moved(swapped) > tolerance:
            still.append(tuple(sorted((a.target, b.target))))
    return still


class Watch:
    """Compares a network's output with that of changed parameters."""

    def __init__(self, run, config, params):
        evaluate = lambda flat: run(config, unflatten_dict(flat, sep="/"))
        self.evaluate = jax.jit(evaluate, compiler_options=OPTIMISED)
        self.params, self.reference = params, np.asarray(self.evaluate(params))

    def moved(self, changed):
        # Half the time that JAX takes to hand over arrays of numpy that have been transposed.
        output = self.evaluate(self.params | jax.device_put(changed))
        return np.abs(np.asarray(output) - self.reference).max()


@pytest.mark.parametrize("name", MODELS)
def test_swapping_any_two_names_is_seen_but_for_those_listed(name):
    assert unseen(name, "original") == UNSEEN[name]


def test_swaps_are_seen_in_the_layout_that_stores_other_shapes():
    assert unseen("image encoder", "transformers") == UNSEEN["image encoder"]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "image encoder"])
def test_layouts_differ_by_names_only(name):
    """So that whatever can be mixed up in one layout was mixed up in the other."""
    model, *_ = MODELS[name]
    first, second = (
        {(rule.target, rule.stacked, rule.transform) for rule in model.table(layout).rules}
        for layout in model.PROBES
    )
    assert first == second


@pytest.mark.parametrize("column, layout", [(0, "original"), (1, "diffusers")])
def test_what_parity_cannot_see_has_the_listed_name_and_shape(column, layout):
    assert {key for found in UNSEEN.values() for pair in found for key in pair} == LISTED.keys()
    params = parameters("image transformer") | parameters("autoencoder")
    rules = {
        rule.target: rule for model in (wan_dit, wan_vae) for rule in model.table(layout).rules
    }
    for key, (shape, *names) in LISTED.items():
        assert rules[key].source.name == names[column]
        assert stored(rules[key], params[key]).shape == shape
