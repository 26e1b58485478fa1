import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from ic_jax import checkpoint
from ic_jax.errors import InputError

MANIFEST = {"model": "nano", "steps": 12}


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "blocks": {"q": {"kernel": jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.bfloat16)}},
        "scale": rng.standard_normal(3).astype(np.float32),
        # A view in transposed order, as a converter makes them.
        "kernel": rng.standard_normal((5, 2)).astype(np.float32).T,
    }


@pytest.fixture
def path(tmp_path, params):
    checkpoint.save(tmp_path / "model.safetensors", params, MANIFEST)
    return tmp_path / "model.safetensors"


def test_round_trip_is_bit_exact(path, params):
    loaded, manifest = checkpoint.load(path, target=params)
    assert manifest == MANIFEST
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params)):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_others_may_read_it_as_they_may_read_any_new_file(path):
    ordinary = path.with_name("ordinary")
    ordinary.touch()
    assert path.stat().st_mode == ordinary.stat().st_mode


def test_saving_leaves_nothing_beside_the_checkpoint(path):
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_nothing_behind(tmp_path, params):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "model.safetensors", params, {"model": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_older_file(path, params):
    with pytest.raises(TypeError):
        checkpoint.save(path, params, {"model": object()})
    assert checkpoint.load(path)[1] == MANIFEST


def test_a_place_that_cannot_be_written_is_named(path, params):
    with pytest.raises(InputError, match="cannot write .*model.safetensors/inside.safetensors"):
        checkpoint.save(path / "inside.safetensors", params, MANIFEST)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_named(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        checkpoint.load(path)


def test_a_flipped_bit_is_named_with_its_tensor(path):
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(InputError, match="damaged: .* is not what was written"):
        checkpoint.load(path)


def test_a_manifest_that_is_not_what_was_written_is_refused(path):
    whole = path.read_bytes()
    assert whole.count(b"steps") == 1
    path.write_bytes(whole.replace(b"steps", b"stepz"))
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: its manifest"):
        checkpoint.load(path)


def test_a_manifest_that_is_no_json_is_damaged(path, params):
    with safe_open(path, "np") as file:
        flat = {key: file.get_tensor(key) for key in file.keys()}
    save_file(flat, path, metadata={"manifest": "{"})
    with pytest.raises(InputError, match=r"model\.safetensors is damaged: "):
        checkpoint.load(path)


def test_a_file_from_before_checksums_is_read(path, params):
    with safe_open(path, "np") as file:
        flat = {key: file.get_tensor(key) for key in file.keys()}
    save_file(flat, path, metadata={"manifest": json.dumps(MANIFEST)})
    loaded, _ = checkpoint.load(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


def test_missing_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at .*nothing"):
        checkpoint.load(tmp_path / "nothing")
    save_file({"x": np.zeros(1)}, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="theirs.safetensors is not a checkpoint of ours"):
        checkpoint.load(tmp_path / "theirs.safetensors")


def test_a_checkpoint_of_another_shape_is_refused_with_a_diff(path, params):
    target = {k: v for k, v in params.items() if k != "blocks"}
    target |= {"scale": np.zeros(4), "bias": np.zeros(2)}
    with pytest.raises(InputError) as error:
        checkpoint.load(path, target=target)
    assert str(error.value).split("\n")[1:] == [
        "- bias (2,)",
        "+ blocks/q/kernel (2, 3, 4)",
        "+ scale (3,)",
        "- scale (4,)",
    ]
