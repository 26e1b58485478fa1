import json
import shutil

import jax
import ml_dtypes
import numpy as np
import orbax.checkpoint as ocp
import pytest

from ic_jax.errors import InputError
from ic_jax.model_folder import (
    load_component,
    new_model_folder,
    read_manifest,
    write_component,
    write_manifest,
)

RNG = np.random.default_rng(0)
LEAVES = {
    "blocks/q/kernel": RNG.standard_normal((2, 8, 16)).astype(ml_dtypes.bfloat16),
    "scale": RNG.standard_normal(3).astype(np.float32),
    # A view in transposed order, as a converter makes them.
    "head/kernel": RNG.standard_normal((5, 2)).astype(np.float32).T,
}
PARAMS = {
    "blocks": {"q": {"kernel": LEAVES["blocks/q/kernel"]}},
    "scale": LEAVES["scale"],
    "head": {"kernel": LEAVES["head/kernel"]},
}


@pytest.fixture
def model(tmp_path):
    with new_model_folder(tmp_path / "model") as folder:
        tensors = write_component(folder / "dit", LEAVES, LEAVES.items())
        write_manifest(folder, {"variant": "nano", "components": {"dit": {"tensors": tensors}}})
    return tmp_path / "model"


def same(loaded):
    assert jax.tree.structure(loaded) == jax.tree.structure(PARAMS)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(PARAMS)):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_round_trip_is_bit_exact(model):
    same(load_component(model, "dit", PARAMS))
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_orbax_alone_restores_a_network_as_one_tree(model):
    with ocp.PyTreeCheckpointer() as checkpointer:
        same(checkpointer.restore(model / "dit"))


def test_orbax_alone_restores_a_network_sharded_over_devices(model):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P(None, "d"))
    whole = jax.NamedSharding(mesh, jax.P())
    shardings = jax.tree.map(lambda leaf: split if leaf.ndim == 3 else whole, PARAMS)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    arguments = ocp.checkpoint_utils.construct_restore_args(shapes, shardings)
    with ocp.PyTreeCheckpointer() as checkpointer:
        loaded = checkpointer.restore(model / "dit", restore_args=arguments)
    assert loaded["blocks"]["q"]["kernel"].sharding == split
    same(loaded)


def test_leaves_are_written_and_read_one_at_a_time(tmp_path):
    """The next leaf is asked for only when nothing holds the last one any more."""
    alive = []

    class Watched(np.ndarray):
        def __del__(self):
            alive.remove(id(self))

    def leaves():
        for n in range(3):
            assert not alive
            leaf = np.full((4, 4), n, np.float32).view(Watched)
            alive.append(id(leaf))
            yield f"layer{n}", leaf
            del leaf

    write_component(tmp_path / "net", [f"layer{n}" for n in range(3)], leaves())


def test_leaves_are_cast_as_they_are_read(model):
    seen = []

    def cast(key, leaf):
        seen.append(key)
        return leaf.astype(np.float16)

    loaded = load_component(model, "dit", PARAMS, cast)
    assert sorted(seen) == sorted(LEAVES)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float16)}


def test_a_promised_leaf_that_never_comes_is_a_defect(tmp_path):
    with pytest.raises(ValueError, match="never came: .*missing"):
        write_component(tmp_path / "net", [*LEAVES, "missing"], LEAVES.items())


def test_a_network_of_another_shape_is_refused_before_it_is_read(model):
    shutil.rmtree(model / "dit")
    target = PARAMS | {"scale": np.zeros(4)}
    with pytest.raises(InputError, match=r"does not fit the model:\n\+ scale \(3,\)\n- scale"):
        load_component(model, "dit", target)


def test_a_network_that_is_not_there_is_named(model):
    with pytest.raises(InputError, match="has no vae; it holds dit: convert again from"):
        load_component(model, "vae")


def _flip(file):
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 1
    file.write_bytes(whole)


def _truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


# What restoring needs; orbax keeps more for its own use.
NEEDED = sorted(
    f"{name}/{part}"
    for name, part in (
        ("blocks.q.kernel", "0.0.0"),
        ("blocks.q.kernel", ".zarray"),
        ("scale", "0"),
        ("head.kernel", "0.0"),
    )
)


@pytest.mark.parametrize("file", [*NEEDED, "_METADATA"])
@pytest.mark.parametrize("damage", [_flip, _truncate, lambda file: file.unlink()])
def test_any_damage_to_the_weights_is_refused(model, file, damage):
    damage(model / "dit" / file)
    with pytest.raises(InputError, match=r"model/dit is damaged \(.*\); convert") as error:
        load_component(model, "dit", PARAMS)
    assert "\n" not in str(error.value)


def test_a_network_that_is_gone_is_refused(model):
    shutil.rmtree(model / "dit")
    with pytest.raises(InputError, match="model/dit is damaged"):
        load_component(model, "dit")


def test_a_tensor_from_another_model_is_refused(model):
    manifest = json.loads((model / "manifest.json").read_text())
    manifest["components"]["dit"]["tensors"]["scale"]["crc32"] += 1
    (model / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="scale is not what was written"):
        load_component(model, "dit")


def test_a_folder_without_manifest_is_half_written(model):
    (model / "manifest.json").unlink()
    with pytest.raises(InputError, match="no manifest.json, so half-written"):
        read_manifest(model)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"variant": 3}',
        '{"variant": "x", "components": {"dit": {}}}',
        '{"variant": "x", "components": {}, "calibration": [1]}',
    ],
)
def test_a_damaged_manifest_is_named(model, text):
    (model / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest.json: damaged"):
        read_manifest(model)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="nothing: no such model folder"):
        read_manifest(tmp_path / "nothing")


@pytest.mark.parametrize("failure", [InputError("bad input"), KeyboardInterrupt()])
def test_a_failure_leaves_nothing_parents_included(tmp_path, failure):
    with pytest.raises(type(failure)):
        with new_model_folder(tmp_path / "deep" / "er" / "model") as folder:
            (folder / "half").write_text("written")
            raise failure
    assert list(tmp_path.iterdir()) == []


def test_only_an_empty_folder_is_replaced(tmp_path):
    (tmp_path / "empty").mkdir()
    with new_model_folder(tmp_path / "empty") as folder:
        write_manifest(folder, {})
    assert [path.name for path in (tmp_path / "empty").iterdir()] == ["manifest.json"]
    for name in ("empty", "empty/manifest.json"):
        with pytest.raises(InputError, match="exists and is not an empty folder"):
            with new_model_folder(tmp_path / name):
                raise AssertionError("must not come here")
