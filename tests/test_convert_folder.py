import shutil
import signal
import subprocess
import sys
from hashlib import sha256

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import released
from safetensors.numpy import save_file
from tiny_tokenizer import train

from convert import folder as convert_folder
from convert.folder import plan_conversion, write_conversion
from ic_jax.cli.convert import Convert
from ic_jax.errors import InputError
from ic_jax.model_folder import load_component, read_manifest

T2V = {"dit": "t2v", "vae": "vae", "umt5": "umt5"}
I2V = {"dit": "i2v", "vae": "vae", "umt5": "umt5", "clip": "clip"}
I2V_OF_TWO = {"dit": "i2v high", "dit_low": "i2v low", "vae": "vae", "umt5": "umt5"}
RELEASES = {
    "official": (released.official, "Wan2.1-T2V-1.3B", T2V),
    "official of images": (
        lambda folder: released.official(folder, "i2v"),
        "Wan2.1-I2V-14B-480P",
        I2V,
    ),
    "official of two": (released.two_experts, "Wan2.2-T2V-A14B", T2V | {"dit_low": "low"}),
    "official of two, of images": (
        lambda folder: released.two_experts(folder, "i2v high", "i2v low"),
        "Wan2.2-I2V-A14B",
        I2V_OF_TWO,
    ),
    "VideoX-Fun of two": (
        lambda folder: released.two_experts(folder, "i2v high", "i2v low"),
        "Wan2.2-Fun-A14B-InP",
        I2V_OF_TWO,
    ),
    "VideoX-Fun": (released.videox_fun, "Wan2.1-Fun-V1.1-14B-InP", I2V),
    "diffusers": (released.diffusers, "Wan2.1-T2V-1.3B-Diffusers", T2V),
    "diffusers of images": (
        lambda folder: released.diffusers(folder, "i2v"),
        "Wan2.1-I2V-14B-720P-Diffusers",
        I2V,
    ),
    "diffusers of two": (
        released.diffusers_of_two,
        "Wan2.2-T2V-A14B-Diffusers",
        T2V | {"dit_low": "low"},
    ),
}


@pytest.fixture(autouse=True)
def table(monkeypatch):
    released.stand_in(monkeypatch)


@pytest.fixture
def source(tmp_path):
    return released.official(tmp_path / "Wan2.1-T2V-1.3B")


def converted(source, out, *arguments, **settings):
    plan = plan_conversion(source, *arguments, **settings)
    write_conversion(plan, out, lambda what, done: None)
    return read_manifest(out)


@pytest.mark.parametrize("release", RELEASES)
def test_every_released_folder_becomes_a_model(tmp_path, release):
    build, name, parts = RELEASES[release]
    source, out = build(tmp_path / name), tmp_path / "out"
    plan = plan_conversion(source)
    assert plan.missing == []
    converted(source, out)
    manifest = read_manifest(out)
    words = set(manifest["variant"].split("-"))
    assert words <= set(name.split("-"))
    assert manifest["components"].keys() == parts.keys()
    for component, network in parts.items():
        loaded, wanted = load_component(out, component), released.parameters(network)
        assert jax.tree.structure(loaded) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, loaded, wanted)
    assert (out / "spiece.model").read_bytes() == train()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "out"])


def test_the_manifest_says_where_everything_came_from(source, tmp_path):
    manifest = converted(source, tmp_path / "out")
    dit, vae = manifest["components"]["dit"], manifest["components"]["vae"]
    file = source / released.VAE
    assert vae["sources"] == [
        {
            "file": released.VAE,
            "bytes": file.stat().st_size,
            "sha256": sha256(file.read_bytes()).hexdigest(),
        }
    ]
    assert [s["file"][-23:] for s in dit["sources"]] == [
        "00001-of-00002.safetensors"[-23:],
        "00002-of-00002.safetensors"[-23:],
    ]
    assert (dit["layout"], dit["dtype"]) == ("original", "float32")
    assert dit["parameters"] == sum(t.size for t in released.original("t2v").values())
    assert {"ic-jax", "jax", "orbax-checkpoint"} <= manifest["versions"].keys()
    assert manifest["loras"] == []


def test_half_precision_is_kept_to_the_bit_and_can_be_cast(tmp_path):
    source = tmp_path / "Wan2.1-T2V-1.3B"
    state = released.original("t2v")
    half = {key: tensor.astype(ml_dtypes.bfloat16) for key, tensor in state.items()}
    released.save_shards(source, half)
    manifest = converted(source, tmp_path / "half")
    assert manifest["components"]["dit"]["dtype"] == "bfloat16"
    converted(source, tmp_path / "whole", None, (), np.dtype(np.float32))
    loaded = [load_component(tmp_path / name, "dit") for name in ("half", "whole")]
    exact = jax.tree.map(lambda leaf: leaf.astype(ml_dtypes.bfloat16), released.parameters("t2v"))
    for a, b, c in zip(*map(jax.tree.leaves, (*loaded, exact))):
        assert (a.dtype, b.dtype) == (c.dtype, np.float32)
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, c.astype(np.float32))


def test_the_autoencoder_is_not_cast(source, tmp_path):
    manifest = converted(source, tmp_path / "out", dtype=np.dtype(ml_dtypes.bfloat16))
    dtypes = {name: part["dtype"] for name, part in manifest["components"].items()}
    assert dtypes == {"dit": "bfloat16", "vae": "float32", "umt5": "bfloat16"}
    loaded = load_component(tmp_path / "out", "vae")
    jax.tree.map(np.testing.assert_array_equal, loaded, released.parameters("vae"))


@pytest.mark.parametrize(
    "part, name, components",
    [
        ("", "Wan2.1-T2V-1.3B", {"dit", "vae", "umt5"}),
        (released.VAE, "Wan2.1-T2V-1.3B", {"vae"}),
        (released.T5, "Wan2.1-T2V-1.3B", {"umt5"}),
    ],
)
def test_one_network_may_be_converted_alone(source, tmp_path, part, name, components):
    manifest = converted(source / part, tmp_path / "out")
    assert manifest["variant"] == name
    assert manifest["components"].keys() == components


def test_one_expert_alone_is_told_by_its_name(tmp_path):
    source = released.two_experts(tmp_path / "download")
    plan = plan_conversion(source / "low_noise_model")
    assert plan.variant == "Wan2.2-T2V-A14B"
    assert [network.component for network in plan.networks] == ["dit_low"]
    assert plan.missing == ["dit", "vae", "umt5"]


def test_experts_of_unclear_order_are_refused(tmp_path):
    source = released.two_experts(tmp_path / "Wan2.2-T2V-A14B")
    (source / "high_noise_model").rename(source / "transformer")
    (source / "low_noise_model").rename(source / "transformer_2")
    with pytest.raises(InputError, match="both hold a dit: name the folders .*high_noise_model"):
        plan_conversion(source)


def test_a_network_that_is_there_twice_is_refused(source):
    shutil.copy(source / released.VAE, source / "copy.pth")
    with pytest.raises(InputError, match="Wan2.1_VAE.pth and .*copy.pth both hold a vae: keep one"):
        plan_conversion(source)


def test_equal_sizes_need_a_name(tmp_path):
    source = released.official(tmp_path / "download", "i2v")
    both = "could be Wan2.1-I2V-14B or Wan2.1-Fun-14B-InP; pass --variant"
    with pytest.raises(InputError, match=both):
        plan_conversion(source)
    for name in ("Wan2.1-I2V-14B", "Wan2.1-Fun-14B-InP"):
        assert plan_conversion(source, name).variant == name


def test_experts_of_equal_sizes_need_a_name(tmp_path):
    names = "Wan2.2-I2V-A14B", "Wan2.2-Fun-A14B-InP"
    source = released.two_experts(tmp_path / "wan22-a14b", "i2v high", "i2v low")
    for part in (source, source / "low_noise_model"):
        with pytest.raises(InputError, match=f"could be {' or '.join(names)}; pass --variant"):
            plan_conversion(part)
        for name in names:
            assert plan_conversion(part, name).variant == name


def test_the_folder_may_be_named_further_out(tmp_path):
    snapshot = tmp_path / "models--alibaba-pai--Wan2.1-Fun-14B-InP" / "snapshots" / "8a1b2c"
    released.videox_fun(snapshot)
    assert plan_conversion(snapshot).variant == "Wan2.1-Fun-14B-InP"


def test_a_variant_of_other_sizes_is_refused_with_those_found(source):
    with pytest.raises(InputError, match="not of Wan2.1-I2V-14B: dit with dim 128, ffn_dim 32"):
        plan_conversion(source, "Wan2.1-I2V-14B")
    with pytest.raises(InputError, match="did you mean 'Wan2.1-I2V-14B'"):
        plan_conversion(source, "I2V-14B")


def test_sizes_of_no_known_model_are_named(tmp_path):
    state = released.original("t2v") | {"patch_embedding.weight": np.zeros((256, 16, 1, 2, 2))}
    save_file({k: v.astype(np.float32) for k, v in state.items()}, tmp_path / "odd.safetensors")
    with pytest.raises(InputError, match="odd.safetensors: not of any known model: .*dim 256"):
        plan_conversion(tmp_path)


def test_the_autoencoder_of_another_family_is_refused(source):
    keys = {"encoder.conv1.weight", "encoder.downsamples.0.downsamples.0.residual.0.gamma"}
    released.save_pickle(source / released.VAE, dict.fromkeys(keys, np.zeros(1, np.float32)))
    with pytest.raises(InputError, match="Wan2.1_VAE.pth: this is a Wan2.2 5B checkpoint"):
        plan_conversion(source)


def test_keys_that_do_not_fit_leave_nothing(source, tmp_path):
    state = released.original("umt5")
    state["blocks.1.ffn.fc2.wieght"] = state.pop("blocks.1.ffn.fc2.weight")
    released.save_pickle(source / released.T5, state)
    with pytest.raises(InputError) as error:
        converted(source, tmp_path / "out")
    assert str(error.value).startswith(f"{source / released.T5}: keys do not match the model:")
    assert str(error.value).split("\n")[1:] == [
        "- blocks.1.ffn.fc2.weight",
        "+ blocks.1.ffn.fc2.wieght",
    ]
    assert sorted(tmp_path.iterdir()) == [source]


def test_a_key_that_sizes_are_read_from_may_be_the_missing_one(tmp_path):
    tensors = released.state("t2v", "diffusers")
    del tensors["proj_out.weight"]
    save_file(tensors, tmp_path / "dit.safetensors")
    with pytest.raises(InputError, match=r"dit.safetensors: .*\n- proj_out.weight"):
        plan_conversion(tmp_path)


def test_the_text_encoder_may_come_with_its_embedding_under_either_name(tmp_path):
    tensors = released.state("umt5", "transformers")
    tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
    for n in range(2):
        folder = tmp_path / f"Wan2.1-T2V-1.3B-{n}"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        converted(folder, tmp_path / f"out{n}")
        loaded = load_component(tmp_path / f"out{n}", "umt5")
        jax.tree.map(np.testing.assert_array_equal, loaded, released.parameters("umt5"))
        tensors.pop("shared.weight", None)


def test_eight_bit_weights_are_refused(tmp_path):
    state = {k: v.astype(ml_dtypes.float8_e4m3fn) for k, v in released.original("t2v").items()}
    released.save_pickle(tmp_path / "x.pth", released.original("vae"))
    save_file(state, tmp_path / "fp8.safetensors")
    with pytest.raises(InputError, match="fp8.safetensors: .* is float8_e4m3fn: use the release"):
        plan_conversion(tmp_path)


def test_weights_of_something_else_are_refused(source):
    save_file({"unet.conv.weight": np.zeros(1, np.float32)}, source / "other.safetensors")
    with pytest.raises(InputError, match="other.safetensors: expected .*found unet.conv.weight"):
        plan_conversion(source)


def test_a_folder_without_a_model_says_what_was_looked_for(tmp_path):
    (tmp_path / "README.md").write_text("")
    with pytest.raises(InputError, match=r"no weights \(.safetensors, .pth, .pt, .bin\)"):
        plan_conversion(tmp_path)


def test_two_tokenizers_that_differ_are_refused(source):
    (source / "spiece.model").write_bytes(b"another")
    with pytest.raises(InputError, match="spiece.model and .*spiece.model differ"):
        plan_conversion(source)


def test_a_model_inside_its_source_is_no_part_of_it(source, tmp_path):
    converted(source, source / "out")
    (source / "out" / "spiece.model").write_bytes(b"another")
    assert plan_conversion(source).tokenizer.parent.name == "umt5-xxl"


def test_a_manifest_of_something_else_hides_nothing(source):
    (source / "manifest.json").write_text("{}")
    assert plan_conversion(source).missing == []


@pytest.mark.parametrize(
    "content, problem",
    [
        (b"<html>not found</html>", "is not a sentencepiece model"),
        (train(pad_id=-1), "is the tokenizer of another model"),
    ],
)
def test_a_wrong_tokenizer_is_refused_with_its_encoder(source, tmp_path, content, problem):
    file = source / "google" / "umt5-xxl" / "spiece.model"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file}: {problem}"):
        converted(source, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [source]
    (source / released.T5).unlink()
    converted(source, tmp_path / "out")


def test_a_text_encoder_without_its_tokenizer_is_said(source):
    shutil.rmtree(source / "google")
    assert plan_conversion(source).missing == ["spiece.model"]


def lora_of(state, rank=2):
    rng = np.random.default_rng(5)
    width = state["blocks.0.self_attn.q.weight"].shape[0]
    a, b = rng.standard_normal((2, rank, width)).astype(np.float32)
    name = "diffusion_model.blocks.0.self_attn.q"
    return {f"{name}.lora_A.weight": a, f"{name}.lora_B.weight": np.ascontiguousarray(b.T)}, b.T @ a


def test_a_lora_is_merged_and_recorded(source, tmp_path):
    lora, update = lora_of(released.original("t2v"))
    save_file(lora, tmp_path / "style.safetensors")
    manifest = converted(source, tmp_path / "out", None, [tmp_path / "style.safetensors"])
    wanted = jax.tree.map(np.copy, released.parameters("t2v"))
    wanted["blocks"]["self_attn"]["q"]["kernel"][0] += update.T
    loaded = load_component(tmp_path / "out", "dit")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), loaded, wanted)
    (record,) = manifest["loras"]
    file = tmp_path / "style.safetensors"
    assert record["file"] == "style.safetensors"
    assert record["sha256"] == sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stored, written", [("float32", "bfloat16"), ("bfloat16", "float32")])
def test_a_merged_lora_is_rounded_once(tmp_path, stored, written, count):
    stored, written = jnp.dtype(stored), jnp.dtype(written)
    source = tmp_path / "Wan2.1-T2V-1.3B"
    state = {key: tensor.astype(stored) for key, tensor in released.original("t2v").items()}
    released.save_shards(source, state)
    lora, update = lora_of(state)
    files = [tmp_path / f"style{n}.safetensors" for n in range(count)]
    for file in files:
        save_file(lora, file)
    manifest = converted(source, tmp_path / "out", None, files, written, lora_scale=0.25)
    assert [record["scale"] for record in manifest["loras"]] == [0.25] * count
    exact = state["blocks.0.self_attn.q.weight"].astype(np.float32)
    for _ in files:
        exact = exact + 0.25 * update
    loaded = load_component(tmp_path / "out", "dit")["blocks"]["self_attn"]["q"]["kernel"][0]
    np.testing.assert_array_equal(loaded, exact.T.astype(written))


def test_a_lora_needs_a_scale_that_is_a_number(source, tmp_path):
    save_file(lora_of(released.original("t2v"))[0], tmp_path / "style.safetensors")
    with pytest.raises(InputError, match="style.safetensors: a LoRA cannot be added nan times"):
        plan_conversion(source, None, [tmp_path / "style.safetensors"], None, float("nan"))


def test_a_scale_needs_a_lora_and_is_not_0(source, tmp_path):
    with pytest.raises(InputError, match="a LoRA scale of 0.5, and no LoRA: .*--lora"):
        plan_conversion(source, lora_scale=0.5)
    save_file(lora_of(released.original("t2v"))[0], tmp_path / "style.safetensors")
    with pytest.raises(InputError, match="a LoRA cannot be added 0.0 times"):
        plan_conversion(source, loras=[tmp_path / "style.safetensors"], lora_scale=0.0)


def test_numbers_that_are_not_finite_name_their_file_and_leave_nothing(source, tmp_path):
    state = released.original("vae")
    state["decoder.head.2.bias"] = np.full_like(state["decoder.head.2.bias"], np.nan)
    released.save_pickle(source / released.VAE, state)
    with pytest.raises(InputError) as error:
        converted(source, tmp_path / "out")
    named = f"{source / released.VAE}: decoder.head.2.bias holds NaN or infinity: "
    assert str(error.value).startswith(named)
    assert sorted(tmp_path.iterdir()) == [source]


def test_a_lora_that_is_not_finite_is_named_before_anything_is_written(source, tmp_path):
    lora = lora_of(released.original("t2v"))[0]
    key, tensor = lora.popitem()
    save_file(lora | {key: np.full_like(tensor, np.inf)}, tmp_path / "style.safetensors")
    with pytest.raises(InputError) as error:
        plan_conversion(source, loras=[tmp_path / "style.safetensors"])
    assert str(error.value).startswith(f"{tmp_path}/style.safetensors: {key} holds NaN or infinity")


def test_the_command_scales_a_lora(source, tmp_path, capsys):
    save_file(lora_of(released.original("t2v"))[0], tmp_path / "style.safetensors")
    Convert(source, tmp_path / "out", lora=(tmp_path / "style.safetensors",), lora_scale=0.5).run()
    assert [record["scale"] for record in read_manifest(tmp_path / "out")["loras"]] == [0.5]


def test_a_lora_for_two_experts_says_which(tmp_path):
    source = released.two_experts(tmp_path / "Wan2.2-T2V-A14B")
    lora, update = lora_of(released.original("low"))
    save_file(lora, tmp_path / "style.safetensors")
    with pytest.raises(InputError, match="style.safetensors: for which expert"):
        plan_conversion(source, None, [tmp_path / "style.safetensors"])
    (tmp_path / "style.safetensors").rename(tmp_path / "style-low-noise.safetensors")
    converted(source, tmp_path / "out", None, [tmp_path / "style-low-noise.safetensors"])
    q = [
        load_component(tmp_path / "out", name)["blocks"]["self_attn"]["q"]["kernel"][0]
        for name in ("dit", "dit_low")
    ]
    wanted = released.parameters("low")["blocks"]["self_attn"]["q"]["kernel"][0] + update.T
    np.testing.assert_allclose(q[1], wanted, atol=1e-6)
    np.testing.assert_array_equal(
        q[0], released.parameters("t2v")["blocks"]["self_attn"]["q"]["kernel"][0]
    )


def test_a_lora_that_does_not_fit_is_named(source, tmp_path):
    save_file({"unet.lora_A.weight": np.zeros((1, 1))}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="other.safetensors: the LoRA touches nothing"):
        plan_conversion(source, None, [tmp_path / "other.safetensors"])


def test_an_existing_model_is_not_replaced(source, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("")
    with pytest.raises(InputError, match="mine: exists and is not an empty folder"):
        converted(source, tmp_path / "mine")


def test_too_small_a_disk_is_said_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(convert_folder.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(InputError, match="out: needs 0.0 GB, and 0.0 GB are free"):
        converted(source, tmp_path / "out")
    assert sorted(tmp_path.iterdir()) == [source]


def test_the_command_reports_one_line(source, tmp_path, capsys):
    (source / released.VAE).unlink()
    Convert(source, tmp_path / "out").run()
    captured = capsys.readouterr()
    assert captured.out.startswith(f"{tmp_path / 'out'}/: Wan2.1-T2V-1.3B (dit, umt5), float32, ")
    assert captured.out.count("\n") == 1
    assert "holds no vae" in captured.err


SLOW = """
import signal, sys, time
# A process started in the background of a script ignores Ctrl-C, and hands that on.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {tests!r})
import released
from ic_jax.models.variants import VARIANTS
rows = released.rows()
VARIANTS.clear()
VARIANTS.update(rows)
from convert import folder
from ic_jax.cli import main
recorded = folder._source_record
def slowly(*arguments):
    print("writing", flush=True)
    time.sleep(60)
folder._source_record = slowly
sys.argv = ["ic-jax", "convert", {source!r}, {out!r}]
main()
"""


def test_an_interrupted_conversion_leaves_nothing(source, tmp_path, request):
    code = SLOW.format(
        tests=str(request.path.parent), source=str(source), out=str(tmp_path / "deep" / "out")
    )
    root = request.config.rootpath
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"writing\n"
    assert (tmp_path / "deep").exists()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert errors.decode().strip().splitlines()[-1] == "ic-jax: stopped"
    assert b"Traceback" not in errors
    assert sorted(tmp_path.iterdir()) == [source]
