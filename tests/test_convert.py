import sys

import jax
import numpy as np
import pytest
import torch
import torch_oracles as oracles
from safetensors.numpy import save_file

from convert import umt5, wan_dit
from convert.__main__ import convert, main
from convert.keymap import canonical, convert_state
from ic_jax import checkpoint
from ic_jax.errors import InputError


@pytest.fixture(scope="module")
def transformer():
    """A small model with heads as wide as in every released one."""
    return oracles.state_of(oracles.transformer(heads=1, head_dim=128, image_dim=4))


@pytest.mark.parametrize("out", ["params", "params.safetensors"])
def test_a_folder_of_shards_becomes_a_checkpoint(tmp_path, transformer, out):
    source = tmp_path / "transformer"
    source.mkdir()
    keys = sorted(transformer)
    for n, part in enumerate((keys[::2], keys[1::2])):
        save_file({key: transformer[key] for key in part}, source / f"model-{n}.safetensors")
    convert(source, tmp_path / out)
    params, manifest = checkpoint.load(tmp_path / out)
    config = wan_dit.config(transformer, "diffusers")
    expected = convert_state(transformer, wan_dit.table("diffusers"), wan_dit.target(config))
    assert (config.num_heads, config.num_layers, config.in_channels) == (1, 2, 36)
    assert (config.ffn_dim, config.text_dim, config.image_dim) == (32, 16, 4)
    assert manifest["model"] == "wan_dit" and manifest["config"]["dim"] == 128
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_a_key_in_two_shards_is_refused(tmp_path, transformer):
    for name in ("a", "b"):
        save_file(transformer, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="duplicate key: .* is in .*b.safetensors"):
        convert(tmp_path, tmp_path / "out")


@pytest.mark.parametrize("model", ["wan_vae", "umt5"])
def test_a_pickle_in_wans_layout_becomes_a_checkpoint(tmp_path, model):
    oracle = {"wan_vae": oracles.vae, "umt5": oracles.text_encoder}[model]
    state = oracles.in_original_layout(oracles.state_of(oracle()), model)
    half = {key: torch.tensor(tensor).bfloat16() for key, tensor in state.items()}
    torch.save(half, tmp_path / "model.pth")
    manifest = convert(tmp_path / "model.pth", tmp_path / "out.safetensors")
    assert (manifest["model"], manifest["layout"]) == (model, "original")
    assert manifest["dtypes"] == ["bfloat16"]
    params, _ = checkpoint.load(tmp_path / "out.safetensors")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert count == sum(tensor.size for tensor in state.values())


def test_the_command_says_what_is_wrong_and_leaves_nothing(tmp_path, capsys, monkeypatch):
    state = oracles.in_original_layout(oracles.state_of(oracles.text_encoder()), "umt5")
    del state["blocks.1.ffn.fc2.weight"]
    save_file(state, tmp_path / "umt5.safetensors")
    out = tmp_path / "out.safetensors"
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "umt5.safetensors"), str(out)])
    assert main() == 2
    assert "- blocks.1.ffn.fc2.weight" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
def test_a_truncated_source_is_named(tmp_path, name):
    path = tmp_path / name
    state = {"token_embedding.weight": np.ones((64, 64), np.float32)}
    if path.suffix == ".pth":
        torch.save({key: torch.tensor(tensor) for key, tensor in state.items()}, path)
    else:
        save_file(state, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(InputError, match=f"{name} is damaged"):
        convert(path, tmp_path / "out")


def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path):
    torch.save({"step": 3}, tmp_path / "model.pth")
    with pytest.raises(InputError, match="model.pth is not a flat dictionary of tensors"):
        convert(tmp_path / "model.pth", tmp_path / "out")


def test_other_sources_are_refused(tmp_path):
    save_file({"conv.weight": np.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    for name, reason in {
        "missing.pth": "no such file",
        "empty": "no .safetensors file",
        "notes.txt": "expected .safetensors",
        "other.safetensors": "expected one Wan transformer.*conv.weight",
    }.items():
        with pytest.raises(InputError, match=reason):
            convert(tmp_path / name, tmp_path / "out")


def test_a_key_that_sizes_are_read_from_may_be_the_missing_one(transformer):
    broken = {key: tensor for key, tensor in transformer.items() if key != "proj_out.weight"}
    with pytest.raises(InputError, match="- proj_out.weight"):
        wan_dit.config(broken, "diffusers")


def test_text_encoder_may_come_with_its_tied_embedding_under_either_name():
    state = oracles.state_of(oracles.text_encoder())
    table = umt5.table("transformers")
    assert {"shared.weight", "encoder.embed_tokens.weight"} <= state.keys()
    assert umt5.config(canonical(state, table), "transformers").vocab == 100
    del state["shared.weight"]
    assert umt5.config(canonical(state, table), "transformers").vocab == 100
