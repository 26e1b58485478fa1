import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from ic_jax import checkpoint
from ic_jax.errors import InputError

MANIFEST = {"model": "nano", "steps": 12}
NAMES = ["model.safetensors", "model"]


@pytest.fixture
def params():
    rng = np.random.default_rng(0)
    return {
        "blocks": {"q": {"kernel": jnp.asarray(rng.standard_normal((2, 3, 4)), jnp.bfloat16)}},
        "scale": rng.standard_normal(3).astype(np.float32),
        # A view in transposed order, as a converter makes them.
        "kernel": rng.standard_normal((5, 2)).astype(np.float32).T,
    }


@pytest.mark.parametrize("name", NAMES)
def test_round_trip_is_bit_exact(tmp_path, params, name):
    checkpoint.save(tmp_path / name, params, MANIFEST)
    loaded, manifest = checkpoint.load(tmp_path / name, target=params)
    assert manifest == MANIFEST
    assert jax.tree.structure(loaded) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(params)):
        assert isinstance(a, np.ndarray) and a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", NAMES)
def test_saving_leaves_nothing_beside_the_checkpoint(tmp_path, params, name):
    checkpoint.save(tmp_path / name, params, MANIFEST)
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_a_failed_save_leaves_nothing_behind(tmp_path, params, name):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / name, params, {"model": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_keeps_the_older_file(tmp_path, params):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, params, MANIFEST)
    with pytest.raises(TypeError):
        checkpoint.save(path, params, {"model": object()})
    assert checkpoint.load(path)[1] == MANIFEST


def test_an_existing_folder_is_not_replaced(tmp_path, params):
    (tmp_path / "mine").mkdir()
    with pytest.raises(InputError, match="mine exists"):
        checkpoint.save(tmp_path / "mine", params, MANIFEST)


@pytest.mark.parametrize("keep", [0, 4, 60, -1])
def test_a_truncated_file_is_named(tmp_path, params, keep):
    path = tmp_path / "model.safetensors"
    checkpoint.save(path, params, MANIFEST)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged"):
        checkpoint.load(path)


# Orbax closes its event loop while the reads beside the failed one are still pending.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_folder_with_any_file_truncated_is_refused_or_intact(tmp_path, params):
    path = tmp_path / "model"
    checkpoint.save(path, params, MANIFEST)
    refused = 0
    for file in sorted((path / "params").rglob("*")):
        if not file.is_file() or file.stat().st_size == 0:
            continue
        whole = file.read_bytes()
        file.write_bytes(whole[: len(whole) // 2])
        try:
            jax.tree.map(np.testing.assert_array_equal, checkpoint.load(path)[0], params)
        except InputError as error:
            assert "model is damaged" in str(error)
            refused += 1
        file.write_bytes(whole)
    assert refused >= 3


@pytest.mark.parametrize("manifest", [None, "{"])
def test_a_folder_without_a_readable_manifest_is_refused(tmp_path, params, manifest):
    path = tmp_path / "model"
    checkpoint.save(path, params, MANIFEST)
    (path / "manifest.json").unlink()
    if manifest is not None:
        (path / "manifest.json").write_text(manifest)
    with pytest.raises(InputError, match="model is damaged or not a checkpoint of ours"):
        checkpoint.load(path)


def test_missing_and_foreign_checkpoints_are_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint at .*nothing"):
        checkpoint.load(tmp_path / "nothing")
    save_file({"x": np.zeros(1)}, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="theirs.safetensors is not a checkpoint of ours"):
        checkpoint.load(tmp_path / "theirs.safetensors")


def test_a_checkpoint_of_another_shape_is_refused_with_a_diff(tmp_path, params):
    checkpoint.save(tmp_path / "model.safetensors", params, MANIFEST)
    target = {k: v for k, v in params.items() if k != "blocks"}
    target |= {"scale": np.zeros(4), "bias": np.zeros(2)}
    with pytest.raises(InputError) as error:
        checkpoint.load(tmp_path / "model.safetensors", target=target)
    assert str(error.value).split("\n")[1:] == [
        "- bias (2,)",
        "+ blocks/q/kernel (2, 3, 4)",
        "+ scale (3,)",
        "- scale (4,)",
    ]


def test_the_manifest_of_a_folder_is_plain_json(tmp_path, params):
    checkpoint.save(tmp_path / "model", params, MANIFEST)
    assert json.loads((tmp_path / "model" / "manifest.json").read_text()) == MANIFEST
