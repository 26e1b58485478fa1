"""The whole sampler at full size, from this CPU to programs for TPU and for CUDA.

Weights and clips are abstract: nothing is allocated, compiled or run.
"""

import re
from collections import Counter
from functools import cache

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ic_jax.cost import token_count
from ic_jax.geometry.camera import Camera
from ic_jax.geometry.warp import warp_operator
from ic_jax.model import Weights, expected_shapes
from ic_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from ic_jax.models.layout import Layout
from ic_jax.models.umt5 import UMT5Encoder
from ic_jax.models.variants import VARIANTS
from ic_jax.models.wan_dit import WanDiT
from ic_jax.models.wan_vae import encode
from ic_jax.parallel import MeshShape, device_mesh, sequence_layout, weight_shardings
from ic_jax.pipeline import Scene, observe, recapture
from ic_jax.settings import Settings

SMALL, LARGE = "Wan2.1-T2V-1.3B", "Wan2.1-T2V-14B"
SHOWN = "Wan2.1-Fun-1.3B-InP"  # the clip, through a CLIP tower too


def array(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


@cache
def weights(sizes):
    """Shapes as `load_model` has them: matrices in 16 bits, but for the autoencoder's."""
    trees = expected_shapes(sizes)

    def half(path, leaf):
        return array(*leaf.shape, dtype=jnp.bfloat16 if path[-1].key == "kernel" else leaf.dtype)

    halved = {name: jax.tree.map_with_path(half, trees.get(name)) for name in ("dit", "clip")}
    return Weights(vae=trees["vae"], **halved)


@cache
def arguments(sizes):
    """What `recapture` takes after its static arguments."""
    frames, *image = sizes.frames, sizes.height, sizes.width
    camera = Camera(array(frames, 4, 4), array(frames, 3, 3))
    depth, keep = array(frames, *image), array(frames, *image, dtype=jnp.bool_)
    operator = jax.eval_shape(
        lambda depth, camera, keep: warp_operator(depth, camera, camera, keep=keep),
        depth, camera, keep,
    )  # fmt: skip
    scene = Scene(array(frames, *image, 3), operator)
    context = array(2, sizes.dit.text_len, sizes.dit.text_dim, dtype=jnp.bfloat16)
    return weights(sizes), scene, context, jax.eval_shape(lambda: jax.random.key(0))


def as_users_do():
    """Tests ask for float32 everywhere (conftest); users ask for nothing."""
    return jax.default_matmul_precision(None)


@cache
def sampler(sizes, steps=None, layout=Layout()):
    """Traced once for all platforms."""
    return jax.jit(lambda *given: recapture(sizes, Settings(steps=steps), *given, layout=layout))


@cache
def program(name, platform, steps=None):
    """StableHLO of the sampler, from the clip and its depth to the decoded clip."""
    sizes = VARIANTS[name]
    export = jax.export.export(sampler(sizes, steps), platforms=[platform])
    with as_users_do():
        exported = export(*arguments(sizes))
    assert exported.platforms == (platform,)
    (result,) = exported.out_avals
    assert result.shape == (sizes.frames, sizes.height, sizes.width, 3)
    return exported.mlir_module()


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_the_sampler_lowers_at_full_size(name, platform):
    sizes = VARIANTS[name]
    latent = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)
    tokens = token_count(sizes.dit, latent[:3])
    text = program(name, platform)
    assert tokens == 32_760
    assert not re.search(rf"\b{tokens}x{tokens}x", text)  # no matrix of scores
    assert ("tpu_custom_call" in text) == (platform == "tpu")  # the fused kernel


@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_on_a_tpu_channels_of_tokens_are_neither_split_nor_joined(name):
    """They lie in its lanes, and are copied for it: products make heads, and turn pairs."""
    dit, (text, elsewhere) = VARIANTS[name].dit, (program(name, p) for p in ("tpu", "cuda"))
    pairs = f"x{dit.num_heads}x{dit.head_dim // 2}x2x"
    assert pairs in elsewhere and pairs not in text
    reshaped = re.findall(r"stablehlo\.reshape .*<2x32760x(\w+)x\w+>\) -> tensor<(\w+)x", text)
    assert reshaped
    split, joined = f"{dit.num_heads}x{dit.head_dim}", f"{dit.dim}"
    assert not {(joined, f"2x32760x{split}"), (split, f"2x32760x{joined}")} & set(reshaped)


@pytest.mark.parametrize("name", [SMALL, LARGE])
def test_for_cuda_heads_are_split_after_the_bias(name):
    """cuBLAS adds a vector as it writes; a bias of heads it would be given as a whole array."""
    made = re.findall(r"dot_general .*-> tensor<2x32760x(\w+)xbf16>", program(name, "cuda"))
    assert made and not any("x" in channels for channels in made)


def encoder(platform):
    """StableHLO of the small model's encoder."""
    sizes = VARIANTS["nano"]
    run = jax.jit(lambda params, clip: encode(sizes.vae, params, clip, chunk=4))
    clip = array(1, sizes.frames, sizes.height, sizes.width, 3)
    exported = jax.export.export(run, platforms=[platform])(weights(sizes).vae, clip)
    return exported.mlir_module()


@pytest.mark.parametrize("platform, taps", [("tpu", False), ("cuda", False), ("cpu", True)])
def test_the_autoencoder_convolves_as_suits_the_platform(platform, taps):
    """In three dimensions at once, but for CPUs as images, one tap in time after the other."""
    text = encoder(platform)
    assert ("[b, 0, 1, 2, f]x" in text) == (not taps)
    assert ("[b, 0, 1, f]x" in text) == taps
    # The first frame is cut out before it is laid out for its convolution, which pads it.
    assert re.search(r"optimization_barrier %\S+ : tensor<1x1x64x96x3xf32>", text)


def float32_products(text):
    """The shapes that enter each product, whether it is a convolution, and what it asks for."""
    lines = re.findall(r"stablehlo\.(dot_general|convolution)\b(.*) : \((.*)\) ->", text)
    found = [
        (shapes, kind == "convolution", set(re.findall(r"\b(?:DEFAULT|HIGHEST|HIGH)\b", asked)))
        for kind, asked, shapes in lines
        if "f32>" in shapes
    ]
    assert found
    return found


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_what_is_float32_is_multiplied_so_and_nearly_so_in_the_autoencoder(platform):
    """Fills, masks, time embedding and head in full; frames and latents with HIGH."""
    vae = VARIANTS[SMALL].vae
    width = vae.base * vae.multipliers[-1]
    for shapes, convolves, asked in float32_products(program(SMALL, platform)):
        in_autoencoder = convolves or f"<{width}x" in shapes
        assert asked == ({"HIGH"} if in_autoencoder else {"HIGHEST"}), shapes


def test_networks_in_float32_are_multiplied_so():
    """Those of the small model, whose float32 is no island."""
    sizes, clip = VARIANTS["nano"], CLIPVisionConfig(dim=16, ffn_dim=32, heads=2, layers=1)
    tokens = array(1, 8, dtype=jnp.int32)
    x, context = array(1, *sizes.dit.patch, 16), array(1, 8, sizes.dit.text_dim)
    for network, *given in (
        (UMT5Encoder(sizes.umt5), tokens, tokens),
        (CLIPVision(clip), array(1, clip.image, clip.image, 3)),
        (WanDiT(sizes.dit), x, array(1), context),
    ):
        params = jax.eval_shape(network.init, jax.random.key(0), *given)
        with as_users_do():
            exported = jax.export.export(jax.jit(network.apply), platforms=["tpu", "cuda"])
            text = exported(params, *given).mlir_module()
        assert all(asked == {"HIGHEST"} for _, _, asked in float32_products(text))


@pytest.mark.parametrize("chosen", ["highest", "default"])
def test_a_users_own_precision_rules_in_the_autoencoder(chosen):
    with jax.default_matmul_precision(chosen):
        text = encoder("cuda")
    asked = [asked for _, convolves, asked in float32_products(text) if convolves]
    assert all(each <= {chosen.upper()} and (each or chosen == "default") for each in asked)


def test_the_program_does_not_grow_with_blocks_and_steps():
    assert VARIANTS[LARGE].dit.num_layers > VARIANTS[SMALL].dit.num_layers
    # Of CUDA: on a TPU, what fits on the chip is loaded otherwise (`precision.dot_general`).
    programs = program(SMALL, "cuda"), program(LARGE, "cuda"), program(SMALL, "cuda", steps=4)
    assert len({len(text.splitlines()) for text in programs}) == 1


def test_nothing_large_is_baked_into_the_program():
    text = program(LARGE, "tpu")
    constants = re.findall(r"stablehlo\.constant dense<\"0x([0-9A-F]*)\">", text)
    assert constants and max(map(len, constants)) // 2 < 2**20
    assert len(text) < 2**24


def lying(tree, shardings):
    """The same shapes, where they are to lie."""
    return jax.tree.map(lambda leaf, where: leaf.update(sharding=where), tree, shardings)


def everywhere(tree, mesh):
    return lying(tree, jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), tree))


def on_mesh(weights, mesh, parts):
    return lying(weights, weight_shardings(weights, mesh, parts))


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
@pytest.mark.parametrize(
    "name, shape, collectives",
    [
        # Queries, keys, values and results by Ulysses; keys and values around the ring.
        (SMALL, MeshShape(sequence=8), {"all_to_all": 4, "collective_permute": 2}),
        (LARGE, MeshShape(prompts=2, sequence=4, weights=8), {"all_to_all": 4}),
    ],
)
def test_the_sampler_lowers_for_many_devices(name, shape, collectives, platform):
    """What attention exchanges in a step; XLA adds the gathers of weights when it compiles."""
    sizes = VARIANTS[name]
    mesh = device_mesh(shape, sizes.dit.num_heads)
    weights, *rest = arguments(sizes)
    given = on_mesh(weights, mesh, shape.weights), *everywhere(rest, mesh)

    export = jax.export.export(sampler(sizes, layout=sequence_layout(mesh)), platforms=[platform])
    exported = export(*given)
    assert exported.nr_devices == shape.devices == 8
    names = "all_to_all|all_gather|all_reduce|collective_permute|reduce_scatter"
    found = Counter(re.findall(rf"stablehlo\.({names})\b", exported.mlir_module()))
    assert found == collectives


@pytest.mark.parametrize("shape", [MeshShape(), MeshShape(prompts=2, sequence=4)])
def test_what_a_model_is_shown_is_encoded_on_any_number_of_tpus(shape):
    """XLA cannot cut up a fused kernel by itself, and CLIP's attention is one there too."""
    sizes, settings = VARIANTS[SHOWN], Settings()
    mesh = device_mesh(shape, sizes.dit.num_heads)
    weights, scene, _, key = arguments(sizes)
    see = jax.jit(lambda *given: observe(sizes, settings, *given, layout=sequence_layout(mesh)))
    given = on_mesh(weights, mesh, 1), *everywhere((scene, scene, key), mesh)
    exported = jax.export.export(see, platforms=["tpu"])(*given)
    assert exported.nr_devices == shape.devices
    assert "tpu_custom_call" in exported.mlir_module()
