import shutil
import sys
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch
import torch_oracles as oracles
from flax.traverse_util import flatten_dict
from safetensors.numpy import save_file

from convert import wan_dit
from convert.folder import plan_conversion, write_conversion
from convert.verify import verify
from ic_jax.cli.verify import Verify
from ic_jax.errors import InputError
from ic_jax.model_folder import load_component, read_manifest, write_component, write_manifest
from ic_jax.models.clip_vision import CLIPVisionConfig
from ic_jax.models.umt5 import UMT5Config
from ic_jax.models.variants import VARIANTS
from ic_jax.models.wan_dit import DiTConfig
from ic_jax.models.wan_vae import VAEConfig

TINY = replace(
    VARIANTS["Wan2.1-I2V-14B"],
    dit=DiTConfig(128, 32, 1, 2, in_channels=36, text_dim=16, image_dim=160),
    vae=VAEConfig(base=8),
    umt5=UMT5Config(vocab=100, dim=32, ffn_dim=64, heads=4, head_dim=8, layers=2),
    clip=CLIPVisionConfig(dim=160, ffn_dim=96, heads=2, layers=2, image=42),
)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A row of the variants table for networks of these sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(VARIANTS, "Tiny", TINY)
        yield


def networks():
    return {
        "dit": oracles.transformer(heads=1, head_dim=128, image_dim=160),
        "vae": oracles.vae(),
        "umt5": oracles.text_encoder(),
        "clip": oracles.image_encoder(),
    }


def released(folder, layout):
    """A folder of all four, as Wan or as diffusers releases them."""
    states = {name: oracles.state_of(module) for name, module in networks().items()}
    if layout == "original":
        rename = oracles.in_original_layout
        states["dit"] = rename(states["dit"], "wan_dit")
        states["vae"] = rename(states["vae"], "wan_vae")
        states["umt5"] = rename(states["umt5"], "umt5")
        states["clip"] = oracles.clip_in_original_layout(states["clip"])
    for name, state in states.items():
        (folder / name).mkdir(parents=True)
        if layout == "original" and name != "dit":
            tensors = {key: torch.tensor(tensor) for key, tensor in state.items()}
            torch.save(tensors, folder / name / "model.pth")
        else:
            state = {key: np.ascontiguousarray(tensor) for key, tensor in state.items()}
            save_file(state, folder / name / "model.safetensors")
    return folder


def converted(source, out, dtype=None):
    write_conversion(
        plan_conversion(source, "Tiny", dtype=dtype), out, lambda component, done: None
    )
    return out


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return released(tmp_path_factory.mktemp("source"), "original")


@pytest.fixture(scope="module")
def checkpoint(source, tmp_path_factory):
    return converted(source, tmp_path_factory.mktemp("converted") / "model")


def with_component(checkpoint, folder, name, change):
    """A copy of the one component, changed, with checksums that fit."""
    params = flatten_dict(load_component(checkpoint, name), sep="/")
    change(params)
    folder.mkdir()
    tensors = write_component(folder / name, params, params.items())
    manifest = read_manifest(checkpoint)
    component = manifest["components"][name] | {"tensors": tensors}
    write_manifest(folder, manifest | {"components": {name: component}})
    return folder


BLOCKS = {f"{name}.blocks.{n}" for name in ("dit", "umt5", "clip") for n in (0, 1)}
ENDS = {"dit.patch_embedding", "dit.time_embedding", "dit.text_embedding", "dit.image_embedding"}
ENDS |= {"dit.head", "umt5.token_embedding", "umt5.norm", "clip.pre_norm"}


def silent(line):
    pass


@pytest.mark.parametrize("layout", ["original", "diffusers"])
def test_a_true_conversion_is_trusted_after_comparing_every_module(layout, tmp_path):
    source = released(tmp_path / "source", layout)
    lines = []
    found = verify(converted(source, tmp_path / "model"), source, lines.append)
    assert found.modules.keys() == BLOCKS | ENDS | {"vae.encode", "vae.decode"}
    assert max(found.modules.values()) < 1e-5 and not found.differing
    assert sorted(line.split(":")[0] for line in lines) == ["clip", "dit", "umt5", "vae"]
    agree = f"All {found.tensors} tensors are equal and all 16 modules agree to "
    assert found.trusted and found.verdict().startswith(agree)
    assert found.verdict().endswith(": trust this conversion.")


def test_a_conversion_to_another_dtype_is_trusted(source, tmp_path):
    encoder = source / "umt5"
    model = converted(encoder, tmp_path / "model", np.dtype(ml_dtypes.bfloat16))
    assert verify(model, encoder, silent).trusted


def swap(a, b):
    def change(params):
        params[a], params[b] = params[b], params[a]

    return change


def nudge(key, index):
    def change(params):
        params[key] = params[key].copy()
        params[key][index] += 0.25

    return change


SWAP_NORMS = swap("blocks/norm1/scale", "blocks/norm2/scale")


@pytest.mark.parametrize(
    "component, change, tensor, module",
    [
        ("dit", nudge("blocks/cross_attn/v/kernel", 1), "blocks.1.cross_attn.v.weight", "blocks.1"),
        ("umt5", SWAP_NORMS, "blocks.0.norm1.weight", "blocks.0"),
        ("clip", nudge("blocks/attn/v/kernel", 0), "transformer.0.attn.to_qkv.weight", "blocks.0"),
    ],
)
def test_a_tensor_that_is_not_the_sources_is_named(
    checkpoint, source, tmp_path, component, change, tensor, module
):
    model = with_component(checkpoint, tmp_path / "model", component, change)
    found = verify(model, source / component, silent)
    assert found.differing[f"{component}.{tensor}"] > 0.01
    disagreeing = [name for name, gap in found.modules.items() if gap > 1e-4]
    assert f"{component}.{module}" in disagreeing
    assert len(disagreeing) == (2 if change is SWAP_NORMS else 1)
    assert not found.trusted


def test_the_verdict_on_a_wrong_conversion_is_an_exit_code(checkpoint, source, tmp_path, capsys):
    model = with_component(checkpoint, tmp_path / "model", "umt5", nudge("norm/scale", 3))
    with pytest.raises(SystemExit) as stopped:
        Verify(model, source / "umt5").run()
    assert stopped.value.code == 1
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict == "umt5.norm.weight differs by 0.25: do NOT use this conversion."


def test_a_slip_in_the_tables_does_not_cancel(source, tmp_path, monkeypatch):
    true = wan_dit.table
    other = {"cross_attn/q/": "cross_attn/k/", "cross_attn/k/": "cross_attn/q/"}

    def slipped(layout):
        table = true(layout)
        rules = []
        for rule in table.rules:
            for name, wrong in other.items():
                if name in rule.target:
                    rule = replace(rule, target=rule.target.replace(name, wrong))
                    break
            rules.append(rule)
        return replace(table, rules=tuple(rules))

    monkeypatch.setattr(wan_dit, "table", slipped)
    transformer = source / "dit"
    found = verify(converted(transformer, tmp_path / "model"), transformer, silent)
    assert not found.differing and not found.trusted
    assert found.verdict().startswith("dit.blocks.0 computes something else")
    assert "and 1 more module: do NOT use" in found.verdict()


def test_what_cannot_be_compared_is_refused(checkpoint, source, tmp_path):
    with pytest.raises(InputError, match="has no (vae|umt5|clip)"):
        verify(checkpoint, source / "dit", silent)
    state = oracles.state_of(oracles.transformer(heads=2, head_dim=128))
    save_file(state, tmp_path / "other.safetensors")
    model = with_component(checkpoint, tmp_path / "model", "dit", lambda params: None)
    with pytest.raises(InputError, match="other.safetensors: a dit of other sizes"):
        verify(model, tmp_path / "other.safetensors", silent)
    write_manifest(model, read_manifest(model) | {"loras": [{"file": "style.safetensors"}]})
    with pytest.raises(InputError, match="LoRA files are merged into it"):
        verify(model, source, silent)


def test_a_model_that_lacks_a_network_of_its_source_is_refused(checkpoint, source, tmp_path):
    model = with_component(checkpoint, tmp_path / "model", "dit", lambda params: None)
    with pytest.raises(InputError, match="model: has no (clip|umt5|vae), .*; convert it again"):
        verify(model, source, silent)


@pytest.mark.parametrize("kept", [None, b"another"])
def test_a_model_without_the_tokenizer_of_its_source_is_refused(source, tmp_path, kept):
    encoder = shutil.copytree(source / "umt5", tmp_path / "source")
    model = converted(encoder, tmp_path / "model")
    (encoder / "spiece.model").write_bytes(b"tokenizer")
    if kept:
        (model / "spiece.model").write_bytes(kept)
    with pytest.raises(InputError, match="model/spiece.model: missing, or not .*; convert the mo"):
        verify(model, encoder, silent)
    (model / "spiece.model").write_bytes(b"tokenizer")
    assert verify(model, encoder, silent).trusted


def test_a_missing_library_is_named(checkpoint, source, monkeypatch):
    for name in ("convert.verify", "convert.side_by_side", "convert.torch_reference"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"verify needs diffusers: pip install 'ic-jax\[verify\]'"):
        Verify(checkpoint, source).run()
