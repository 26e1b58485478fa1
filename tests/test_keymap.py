import tracemalloc
from dataclasses import replace

import jax
import ml_dtypes
import numpy as np
import pytest

from convert import umt5, wan_dit, wan_vae
from convert.keymap import (
    Part,
    Rule,
    Table,
    canonical,
    convert_state,
    export_state,
    leaves,
    rules,
)
from convert.transforms import LINEAR, MATRIX, same
from ic_jax import checkpoint
from ic_jax.errors import InputError

TARGET = {"blocks": {"q": {"kernel": np.zeros((2, 3, 4)), "bias": np.zeros((2, 4))}}}
TABLE = Table(
    rules([(LINEAR, "blocks/q", "layer.{n}.query"), (LINEAR, "image", "image")], 0),
    prefixes=("model.",),
    aliases={"tied.weight": "layer.0.query.weight"},
    ignored=("layer.{n}.frequencies",),
    foreign={"camera.*": "Camera"},
)


class Recorded:
    """A tensor that notes in `read` when it is read."""

    def __init__(self, key, tensor, read):
        self.key, self.tensor, self.read = key, tensor, read
        self.shape, self.dtype = tensor.shape, tensor.dtype

    def __array__(self, dtype=None, copy=None):
        self.read.append(self.key)
        return self.tensor.astype(self.dtype)


def recorded(state):
    read = []
    return {key: Recorded(key, tensor, read) for key, tensor in state.items()}, read


@pytest.fixture
def state():
    rng = np.random.default_rng(0)
    shapes = {"weight": (4, 3), "bias": (4,)}
    return {
        f"layer.{n}.query.{leaf}": rng.standard_normal(shape).astype(np.float32)
        for n in range(2)
        for leaf, shape in shapes.items()
    }


def test_blocks_are_stacked_in_order(state):
    params = convert_state(state, TABLE, TARGET)
    for n in range(2):
        kernel = params["blocks"]["q"]["kernel"][n]
        np.testing.assert_array_equal(kernel, state[f"layer.{n}.query.weight"].T)
    assert checkpoint.shapes(params) == checkpoint.shapes(TARGET)


def test_tensors_are_read_one_leaf_after_another(state):
    lazy, read = recorded(state)
    stream = leaves(lazy, TABLE, TARGET)
    assert read == []
    assert next(stream)[0] == "blocks/q/kernel"
    assert read == ["layer.0.query.weight", "layer.1.query.weight"]
    assert [key for key, _ in stream] == ["blocks/q/bias"]
    assert sorted(read) == sorted(state)


def test_no_more_is_held_than_one_leaf_and_one_tensor():
    table = Table(rules([(MATRIX, f"blocks/{x}", f"layer.{{n}}.{x}") for x in "abc"], 0))
    rows = np.broadcast_to(np.float32(1), (512, 256))
    lazy, _ = recorded({f"layer.{n}.{x}.weight": rows for n in range(8) for x in "abc"})
    target = {"blocks": {x: {"kernel": np.broadcast_to(0, (8, 256, 512))} for x in "abc"}}
    tracemalloc.start()
    for _, leaf in leaves(lazy, table, target):
        del leaf
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 8 * rows.nbytes < peak < 9.2 * rows.nbytes


@pytest.mark.parametrize("broken", ["name", "shape", "dtype"])
def test_nothing_is_read_of_a_state_that_does_not_fit(state, broken):
    last = state.pop("layer.1.query.bias")
    if broken != "name":
        state["layer.1.query.bias"] = last[:2] if broken == "shape" else last.astype(np.float16)
    lazy, read = recorded(state)
    with pytest.raises(InputError, match="layer.1.query.bias"):
        leaves(lazy, TABLE, TARGET)
    assert read == []


def test_the_block_of_another_dtype_is_named(state):
    state["layer.1.query.weight"] = state["layer.1.query.weight"].astype(ml_dtypes.bfloat16)
    named = r"dtypes:\n! layer\.1\.query\.weight bfloat16, elsewhere float32$"
    with pytest.raises(InputError, match=named):
        convert_state(state, TABLE, TARGET)


def test_prefixes_aliases_and_ignored_keys_are_those_declared(state):
    expected = convert_state(state, TABLE, TARGET)
    dressed = {f"model.{key}": tensor for key, tensor in state.items()}
    dressed["tied.weight"] = state["layer.0.query.weight"].copy()
    dressed["layer.12.frequencies"] = np.zeros(1)
    jax.tree.map(np.testing.assert_array_equal, convert_state(dressed, TABLE, TARGET), expected)


def test_an_alias_may_stand_alone(state):
    expected = convert_state(state, TABLE, TARGET)
    state["tied.weight"] = state.pop("layer.0.query.weight")
    jax.tree.map(np.testing.assert_array_equal, convert_state(state, TABLE, TARGET), expected)


def test_an_alias_that_differs_is_refused(state):
    state["tied.weight"] = state["layer.0.query.weight"] + 1
    with pytest.raises(InputError, match="duplicate key: tied.weight"):
        convert_state(state, TABLE, TARGET)


def test_missing_and_unknown_keys_are_listed(state):
    state["layer.1.query.bais"] = state.pop("layer.1.query.bias")
    state["layer.2.query.weight"] = np.zeros((4, 3))
    with pytest.raises(InputError) as error:
        convert_state(state, TABLE, TARGET)
    assert str(error.value).split("\n")[1:] == [
        "- layer.1.query.bias",
        "+ layer.1.query.bais",
        "+ layer.2.query.weight",
    ]


def test_of_many_keys_the_first_of_each_side_are_shown():
    strange = {f"layer.{n:03d}.key.weight": np.zeros((4, 3)) for n in range(1000)}
    target = {"blocks": {"q": {"kernel": np.zeros((30, 3, 4)), "bias": np.zeros((30, 4))}}}
    with pytest.raises(InputError) as error:
        convert_state(strange, TABLE, target)
    assert str(error.value).split("\n")[1:] == [
        *(f"- layer.{n}.query.weight" for n in range(10)),
        "... and 50 more",
        *(f"+ layer.{n:03d}.key.weight" for n in range(10)),
        "... and 990 more",
    ]


@pytest.mark.parametrize("broken", ["shape", "dtype"])
def test_of_many_tensors_that_do_not_fit_the_first_are_shown(broken):
    leaves = {"weight": (4, 3), "bias": (4,)}
    state = {f"layer.{n}.query.{x}": np.zeros(leaves[x]) for n in range(60) for x in leaves}
    target = {"blocks": {"q": {"kernel": np.zeros((60, 3, 4)), "bias": np.zeros((60, 4))}}}
    for n in range(35, 60):
        key = f"layer.{n}.query.weight"
        state[key] = np.zeros((4, 9)) if broken == "shape" else state[key].astype(np.float32)
    with pytest.raises(InputError) as error:
        convert_state(state, TABLE, target)
    _, *lines, last = str(error.value).split("\n")
    assert len(lines) == 20 and all(line.startswith("! layer.") for line in lines)
    assert last == "... and 5 more"


def test_spare_blocks_are_left_out(state):
    expected = convert_state(state, TABLE, TARGET)
    state |= {"layer.2.query.weight": np.zeros((4, 3)), "layer.2.query.bias": np.zeros(4)}
    params = convert_state(state, replace(TABLE, spare_blocks=1), TARGET)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    state["layer.3.query.bias"] = np.zeros(4)
    with pytest.raises(InputError, match=r"model:\n\+ layer.3.query.bias$"):
        convert_state(state, replace(TABLE, spare_blocks=1), TARGET)


def test_a_branch_that_the_model_lacks_is_unknown(state):
    state |= {"image.weight": np.zeros((4, 3)), "image.bias": np.zeros(4)}
    with pytest.raises(InputError, match=r"\+ image.bias\n\+ image.weight"):
        convert_state(state, TABLE, TARGET)


def test_a_foreign_model_is_named(state):
    state["model.camera.conv.weight"] = np.zeros(1)
    with pytest.raises(InputError, match="this is a Camera checkpoint, which is not supported"):
        convert_state(state, TABLE, TARGET)


def test_a_key_that_is_there_twice_is_refused(state):
    state["model.layer.0.query.weight"] = state["layer.0.query.weight"]
    with pytest.raises(InputError, match="duplicate key: model.layer.0.query.weight"):
        canonical(state, TABLE)


@pytest.mark.parametrize("shape", [(3, 4), (4, 3, 1), (4,), ()])
def test_a_tensor_of_the_wrong_shape_is_named(state, shape):
    state["layer.1.query.weight"] = np.zeros(shape, np.float32)
    named = r"! layer\.1\.query\.weight .* -> blocks/q/kernel \(3, 4\)"
    with pytest.raises(InputError, match=named):
        convert_state(state, TABLE, TARGET)


@pytest.mark.parametrize(
    "table",
    [
        Table(TABLE.rules[:1]),
        Table((*TABLE.rules, TABLE.rules[0])),
        Table((TABLE.rules[0], Rule(Part("layer.{n}.query.weight"), "blocks/q/bias", same))),
        Table((TABLE.rules[0], Rule(Part("layer.{n}.query.bias", 1, 3), "blocks/q/bias", same))),
    ],
    ids=["a target left out", "a target filled twice", "a source used twice", "a part left out"],
)
def test_a_wrong_table_is_a_defect(state, table):
    with pytest.raises(ValueError, match="table"):
        convert_state(state, table, TARGET)


def test_parts_of_one_tensor_are_split_and_joined():
    rows = [(LINEAR, f"blocks/{x}", Part("layer.{n}.qkv", i, 3)) for i, x in enumerate("qkv")]
    table = Table(rules(rows, 0))
    layer = {"kernel": np.zeros((2, 5, 4)), "bias": np.zeros((2, 4))}
    target = {"blocks": {x: layer for x in "qkv"}}
    rng = np.random.default_rng(0)
    fused = {f"layer.{n}.qkv.weight": rng.standard_normal((12, 5)) for n in range(2)}
    fused |= {f"layer.{n}.qkv.bias": rng.standard_normal(12) for n in range(2)}
    params = convert_state(fused, table, target)
    kernel = params["blocks"]["v"]["kernel"][1]
    np.testing.assert_array_equal(kernel, fused["layer.1.qkv.weight"][8:].T)
    exported = dict(export_state(params, table))
    assert exported.keys() == fused.keys()
    jax.tree.map(np.testing.assert_array_equal, exported, fused)

    fused["layer.0.qkv.bias"] = np.zeros(13)
    with pytest.raises(InputError, match=r"! layer.0.qkv.bias \(13,\) -> blocks/q/bias \(4,\)"):
        convert_state(fused, table, target)


RELATIVES = [
    (wan_dit, "original", "img_emb.emb_pos", "FLF2V"),
    (wan_dit, "diffusers", "condition_embedder.image_embedder.pos_embed", "FLF2V"),
    (wan_dit, "original", "model.diffusion_model.ref_conv.weight", "Control"),
    (wan_dit, "original", "control_adapter.conv.weight", "Control-Camera"),
    (wan_dit, "diffusers", "vace_blocks.0.proj_out.weight", "VACE"),
    (wan_vae, "original", "encoder.downsamples.0.downsamples.0.residual.0.gamma", "Wan2.2 5B"),
    (wan_vae, "diffusers", "encoder.down_blocks.0.resnets.0.norm1.gamma", "Wan2.2 5B"),
    (umt5, "transformers", "decoder.block.0.layer.0.layer_norm.weight", "umT5 encoder-decoder"),
]


@pytest.mark.parametrize("model, layout, key, name", RELATIVES)
def test_relatives_that_we_do_not_run_are_named(model, layout, key, name):
    with pytest.raises(InputError, match=f"this is a {name} checkpoint, which is not supported"):
        canonical({key: np.zeros(1)}, model.table(layout))


@pytest.mark.parametrize(
    "channels, name", [((48, 48), "Wan2.2 5B"), ((48, 16), "Control"), ((32, 16), "Control-Camera")]
)
def test_relatives_are_known_by_their_channels(channels, name):
    inputs, outputs = channels
    state = {
        "patch_embedding.weight": np.zeros((128, inputs, 1, 2, 2)),
        "head.head.weight": np.zeros((4 * outputs, 128)),
    }
    with pytest.raises(InputError, match=f"this is a {name} checkpoint, which is not supported"):
        wan_dit.config(state, "original")
