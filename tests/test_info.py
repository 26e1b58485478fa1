import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from convert import clip_vision, umt5, wan_dit, wan_vae
from ic_jax import cost
from ic_jax.cli.info import Info, as_table, describe
from ic_jax.errors import InputError
from ic_jax.model_folder import new_model_folder, write_component, write_manifest
from ic_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from ic_jax.models.umt5 import UMT5Encoder
from ic_jax.models.variants import VARIANTS, variant
from ic_jax.models.wan_dit import DiTConfig, WanDiT
from ic_jax.models.wan_vae import VAEConfig, WanVAE, decode, encode

# Our count over XLA's. XLA also counts norms and activations, and skips the zeros at borders.
CLOSE = pytest.approx(1, abs=0.04)
DIT = DiTConfig(dim=256, ffn_dim=640, num_heads=2, num_layers=1, text_dim=96, text_len=40)
GRID = (3, 16, 24)


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def flops_by_xla(function, *shapes):
    """As lowered for CUDA: on a CPU convolutions are loops, whose bodies XLA counts once.

    On a TPU a product rotates queries and keys, which at this width is no trifle.
    """
    lowered = jax.jit(function).trace(*shapes).lower(lowering_platforms=("cuda",))
    return lowered.cost_analysis()["flops"]


def dit_inputs(config):
    image = () if config.image_dim is None else (shaped(1, 257, config.image_dim),)
    context = shaped(1, config.text_len, config.text_dim)
    return shaped(1, *GRID, config.in_channels), shaped(1), context, *image


def applied(module):
    return lambda params, *inputs: module.apply({"params": params}, *inputs)


def vae_shapes(config, clip):
    frames = jnp.zeros((1, *clip, 3))
    return jax.eval_shape(WanVAE(config).init, jax.random.key(0), frames)["params"]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", VARIANTS)
def test_parameters_are_counted_exactly(name):
    sizes = variant(name)
    assert cost.parameters(cost.dit_layers(sizes.dit, GRID)) == size(wan_dit.target(sizes.dit))
    encoder, decoder = cost.vae_layers(sizes.vae, (5, 32, 32))
    assert cost.parameters(encoder + decoder) == size(wan_vae.target(sizes.vae))
    assert cost.parameters(cost.umt5_layers(sizes.umt5, 9)) == size(umt5.target(sizes.umt5))
    if sizes.clip is not None:
        assert cost.parameters(cost.clip_layers(sizes.clip)) == size(clip_vision.target(sizes.clip))


@pytest.mark.parametrize("image_dim", [None, 64])
def test_transformer_flops_are_xlas(image_dim):
    config = replace(DIT, image_dim=image_dim, in_channels=16 if image_dim is None else 36)
    counted = flops_by_xla(applied(WanDiT(config)), wan_dit.target(config), *dit_inputs(config))
    assert cost.dit_flops(config, GRID) / counted == CLOSE


def test_every_block_counts():
    one, three = (cost.dit_flops(replace(DIT, num_layers=n), GRID) for n in (1, 3))
    block = three - one
    assert one > block / 2 > 0.8 * one


def test_autoencoder_flops_are_xlas():
    config = VAEConfig(base=16)
    params = wan_vae.target(config)
    clip = (9, 96, 128)
    encoder, decoder = cost.vae_layers(config, clip)
    run = lambda function: lambda params, x: function(config, params, x)
    counted = flops_by_xla(run(encode), params, shaped(1, *clip, 3))
    assert cost.flops(encoder) / counted == CLOSE
    counted = flops_by_xla(run(decode), params, shaped(1, *config.latent_shape(*clip)))
    assert cost.flops(decoder) / counted == CLOSE


def test_text_and_image_encoder_flops_are_xlas():
    config = replace(variant("nano").umt5, dim=256, ffn_dim=640, layers=1)
    tokens = shaped(1, 128, dtype=jnp.int32)
    counted = flops_by_xla(applied(UMT5Encoder(config)), umt5.target(config), tokens, tokens)
    assert cost.flops(cost.umt5_layers(config, 128)) / counted == CLOSE
    config = CLIPVisionConfig(dim=320, ffn_dim=1280, heads=4, layers=1)
    counted = flops_by_xla(
        applied(CLIPVision(config)), clip_vision.target(config), shaped(1, 224, 224, 3)
    )
    assert cost.flops(cost.clip_layers(config)) / counted == CLOSE


@pytest.mark.parametrize(
    "name, height, width, published",
    [
        ("Wan2.1-T2V-1.3B", 480, 832, 0.283e15),
        ("Wan2.1-T2V-14B", 480, 832, 1.678e15),
        ("Wan2.1-T2V-1.3B", 720, 1280, 1.250e15),
        ("Wan2.1-T2V-14B", 720, 1280, 6.523e15),
    ],
)
def test_flops_of_the_released_sizes(name, height, width, published):
    """Figures derived elsewhere, for 81 frames; that of 14B agrees with maxdiffusion's log."""
    record = describe(name, 81, height, width)
    assert record["flops"]["denoiser"] == pytest.approx(published, rel=2e-3)
    assert record["flops"]["sampling"] == 2 * 50 * record["flops"]["denoiser"]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_table_fits_a_terminal_and_json_says_the_same(name, capsys):
    Info(name).run()
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    Info(name, json=True).run()
    record = json.loads(capsys.readouterr().out)
    assert as_table(record) == shown.rstrip("\n")
    for part in record["components"].values():
        assert f"{part['parameters']:,}" in shown


def test_the_text_encoder_waits_in_the_hosts_memory_and_visits_by_the_block():
    for name in ("nano", "Wan2.1-T2V-1.3B"):
        record = describe(name)
        sizes, memory = variant(name), record["memory"]["copied"]
        encoder, itemsize = umt5.target(sizes.umt5), jnp.dtype(sizes.dtype).itemsize
        assert memory["host"] == {"umt5": size(encoder) * itemsize}
        block = size(encoder["blocks"]) // sizes.umt5.layers * itemsize
        assert memory["umt5_block"] == block
        assert "umt5" not in memory["weights"]
        shown = as_table(record)
        assert "weights, umt5: one block at a time" in shown and "host's memory, umt5" in shown
    assert (
        memory["peak"] == sum(memory["weights"].values()) + max(memory["phases"].values()) > block
    )


def test_two_experts_are_two_components_of_which_one_runs_at_a_time():
    one, two = describe("Wan2.1-T2V-14B"), describe("Wan2.2-T2V-A14B")
    parts = two["components"]
    assert parts["dit"]["parameters"] == parts["dit_low"]["parameters"]
    assert two["flops"]["denoiser"] == one["flops"]["denoiser"]
    weights = one["memory"]["copied"]["weights"]
    assert two["memory"]["copied"]["weights"]["dit_low"] == weights["dit"]


def test_devices_share_tokens_and_rows_and_where_they_are_cut_the_weights():
    one, eight = (describe("Wan2.1-T2V-14B", devices=n)["memory"] for n in (1, 8))
    assert set(one) == {"copied"} and set(eight) == {"copied", "cut"}
    alone, whole, cut = one["copied"], eight["copied"], eight["cut"]
    assert whole["weights"] == alone["weights"]
    block = cost.block_memory(variant("Wan2.1-T2V-14B").dit, 2)
    more = {name: work - whole["phases"][name] for name, work in cut["phases"].items()}
    assert more == {"encode": 0, "sample": 2 * block, "decode": 0}
    assert cut["weights"]["dit"] == alone["weights"]["dit"] // 8
    assert cut["weights"]["vae"] == alone["weights"]["vae"]
    for part in ("encode", "sample", "decode"):
        assert whole["phases"][part] < alone["phases"][part]
    assert whole["more_with_reuse"] == alone["more_with_reuse"] / 8
    shown = as_table(describe("Wan2.1-T2V-14B", devices=8))
    assert "more with --reuse" in shown
    assert "fits, weights cut: 80 GB yes" in shown and "on each of 8 devices" in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("devices, parts", [(3, 1), (5, 1), (6, 2), (7, 1), (12, 4)])
def test_weights_are_said_to_be_cut_as_a_run_can_cut_them(devices, parts):
    record = describe("Wan2.1-T2V-14B", devices=devices)
    memory = record["memory"]
    whole = memory["copied"]["weights"]["dit"]
    assert memory.get("cut", memory["copied"])["weights"]["dit"] == whole // parts
    assert ("weights cut" in as_table(record)) == (parts > 1)


def test_it_says_which_cards_the_small_model_fits():
    fits = describe("Wan2.1-T2V-1.3B")["memory"]["copied"]["fits"]
    assert fits["24 GB"] == "yes" and fits["16 GB"] != "no"


@pytest.mark.parametrize(
    "edited", [{"parameters": None}, {"parameters": "many"}, {"sources": [3]}, {"sources": None}]
)
def test_a_manifest_that_somebody_edited_is_damaged(tmp_path, edited):
    part = {"layout": "diffusers", "dtype": "float32", "parameters": 32, "sources": []}
    components = {"dit": part | {"tensors": {}} | edited}
    write_manifest(tmp_path, {"variant": "Wan2.1-T2V-1.3B", "components": components})
    with pytest.raises(InputError, match="manifest.json: damaged; convert the model again"):
        describe(str(tmp_path))


def test_a_converted_folder_tells_where_it_came_from(tmp_path):
    weights = {"head/linear/kernel": np.ones((8, 4), np.float32)}
    sources = [{"file": f"shard-{n}.safetensors", "bytes": 9, "sha256": "0" * 64} for n in (1, 2)]
    with new_model_folder(tmp_path / "model") as folder:
        tensors = write_component(folder / "dit", weights, weights.items())
        part = {"layout": "diffusers", "dtype": "float32", "parameters": 32}
        components = {"dit": part | {"sources": sources, "tensors": tensors}}
        manifest = {"variant": "Wan2.1-T2V-1.3B", "components": components}
        loras = [{"file": "style.safetensors", "bytes": 9, "sha256": "0" * 64}]
        write_manifest(
            folder,
            manifest | {"loras": loras, "calibration": {"variance_scale": {"response": 0.5}}},
        )
    record = describe(str(tmp_path / "model"), 17, 64, 96)
    dit = record["components"]["dit"]
    assert dit["files"] == ["shard-1.safetensors", "shard-2.safetensors"]
    assert (dit["parameters"], dit["layout"]) == (32, "diffusers")
    on_disk = [f.stat().st_size for f in (tmp_path / "model/dit").rglob("*") if f.is_file()]
    assert dit["bytes"] == sum(on_disk) > 0
    assert record["latent"] == [5, 8, 12, 16] and record["tokens"] == 5 * 4 * 6
    shown = as_table(record)
    for text in (
        "diffusers: 2 files, shard-1.safetensors ...",
        "style.safetensors",
        "calibration: variance_scale",
    ):
        assert text in shown
    assert record["memory"]["copied"]["host"] == {} and "umt5" not in shown


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nano", 80), "--frames is 80"),
        (("nano", 4 * 10**20 + 1), "--frames is 400000000000000000001; give a number up to 65536"),
        (("nano", 81, 481), "--height is 481; give a multiple of 16"),
        (("nano", 81, 480, 840), "--width is 840; give a multiple of 16"),
        (("nano", None, None, None, 0), "--devices is 0; give a number from 1"),
        (("wan",), "wan: neither a model's folder nor a model's name .*Wan2.1-T2V-1.3B"),
    ],
)
def test_bad_input_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        describe(*arguments)
    assert "\n" not in str(error.value)
