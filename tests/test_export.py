import json
import sys

import ml_dtypes
import numpy as np
import pytest
import torch_oracles as oracles
from safetensors.numpy import load_file

from convert import clip_vision, export, umt5, wan_dit, wan_vae
from convert.keymap import canonical, convert_state, export_state, leaves
from ic_jax.checkpoint import shapes
from ic_jax.model_folder import new_model_folder, write_component, write_manifest

DTYPES = (np.float32, np.float16, ml_dtypes.bfloat16)


def sources():
    """Every network in every layout: the table's module, the layout, and a state."""
    networks = {
        "text transformer": (wan_dit, "wan_dit", oracles.transformer(1, 128)),
        "image transformer": (wan_dit, "wan_dit", oracles.transformer(1, 128, image_dim=4)),
        "autoencoder": (wan_vae, "wan_vae", oracles.vae()),
        "text encoder": (umt5, "umt5", oracles.text_encoder()),
    }
    encoder = oracles.state_of(oracles.image_encoder())
    yield "image encoder", clip_vision, "transformers", encoder
    yield "image encoder", clip_vision, "original", oracles.clip_in_original_layout(encoder)
    for name, (model, key, oracle) in networks.items():
        original, other = model.PROBES
        state = oracles.state_of(oracle)
        state.pop("encoder.embed_tokens.weight", None)
        yield name, model, other, state
        yield name, model, original, oracles.in_original_layout(state, key)


CASES = {f"{name}, {layout}": (model, layout, s) for name, model, layout, s in sources()}


# The last block, which Wan does not run.
UNUSED = ("transformer.2.", "encoder.layers.2.")


def bits(shape, dtype, seed):
    """Any bits at all, NaNs and infinities among them."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape)


def same_bits(a, b):
    assert a.keys() == b.keys()
    for key in a:
        assert (a[key].shape, a[key].dtype) == (b[key].shape, b[key].dtype), key
        assert a[key].tobytes() == b[key].tobytes(), key


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
def test_what_was_converted_comes_back_bit_for_bit(case, dtype):
    model, layout, state = CASES[case]
    table = model.table(layout)
    state = canonical(state, table)
    state = {key: bits(t.shape, dtype, n) for n, (key, t) in enumerate(state.items())}
    params = convert_state(state, table, model.target(model.config(state, layout)))
    used = {key: tensor for key, tensor in state.items() if not key.startswith(UNUSED)}
    same_bits(dict(export_state(params, table)), used)


@pytest.fixture
def model_folder(tmp_path):
    """A converted model of three networks."""
    components = {
        "dit": "text transformer, original",
        "dit_low": "image transformer, original",
        "umt5": "text encoder, original",
    }
    with new_model_folder(tmp_path / "model") as folder:
        manifest = {"variant": "Wan2.1-T2V-1.3B", "components": {}}
        for name, case in components.items():
            model, layout, state = CASES[case]
            target = model.target(model.config(state, layout))
            stream = leaves(state, model.table(layout), target)
            tensors = write_component(folder / name, shapes(target), stream)
            manifest["components"][name] = {"layout": layout, "tensors": tensors}
        (folder / "spiece.model").write_bytes(b"pieces")
        write_manifest(folder, manifest)
    return tmp_path / "model"


def run(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["export", *map(str, args)])
    return export.main()


def test_the_command_writes_every_network_with_the_layouts_names(
    tmp_path, monkeypatch, model_folder
):
    for layout, folders in {
        "original": {"dit": "dit", "dit_low": "low_noise_model", "umt5": "umt5"},
        "diffusers": {"dit": "transformer", "dit_low": "transformer_2", "umt5": "text_encoder"},
    }.items():
        out = tmp_path / layout
        assert run(monkeypatch, model_folder, out, "--layout", layout) == 0
        assert (out / "spiece.model").read_bytes() == b"pieces"
        for name, case in {"dit": "text transformer", "umt5": "text encoder"}.items():
            keys = "transformers" if (name, layout) == ("umt5", "diffusers") else layout
            (file,) = (out / folders[name]).glob("*.safetensors")
            same_bits(load_file(file), CASES[f"{case}, {keys}"][2])
        assert (out / folders["dit_low"]).is_dir()


def test_large_networks_are_written_in_shards(tmp_path, monkeypatch, model_folder):
    monkeypatch.setattr(export, "_SHARD_BYTES", 200_000)
    assert run(monkeypatch, model_folder, tmp_path / "out") == 0
    state = CASES["text transformer, original"][2]
    folder = tmp_path / "out" / "dit"
    files = sorted(folder.glob("*.safetensors"))
    assert files[0].name == f"diffusion_pytorch_model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 3
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in state.values())
    found = {}
    for file in files:
        shard = load_file(file)
        assert len(shard) == 1 or sum(t.nbytes for t in shard.values()) <= 200_000
        assert {index["weight_map"][key] for key in shard} == {file.name}
        found |= shard
    same_bits(found, state)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, monkeypatch, capsys, model_folder):
    weights = next((model_folder / "umt5").rglob("0.0"))
    weights.write_bytes(weights.read_bytes()[:-1])
    assert run(monkeypatch, model_folder, tmp_path / "out") == 2
    assert run(monkeypatch, tmp_path / "missing", tmp_path / "out") == 2
    first, second = capsys.readouterr().err.strip().split("\n")
    assert "umt5 is damaged" in first and "missing: no such model folder" in second
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
