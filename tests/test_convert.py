import json
import pickle
import sys

import ml_dtypes
import numpy as np
import pytest
import torch
from released import save_shards
from safetensors.numpy import save_file

from convert.shards import find_checkpoints
from convert.source import read_state
from ic_jax.errors import InputError

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3).astype(ml_dtypes.bfloat16),
    "b.weight": np.arange(4, dtype=np.float16),
    "c.weight": np.full((1, 2), 0.1, np.float32),
    "d.weight": np.array(3, np.float32),
}
STEM = "diffusion_pytorch_model"


def to_torch(tensor):
    if tensor.dtype == ml_dtypes.bfloat16:
        return torch.tensor(tensor.astype(np.float32)).bfloat16()
    return torch.tensor(tensor)


def save(path, tensors=TENSORS, **how):
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save({key: to_torch(tensor) for key, tensor in tensors.items()}, path, **how)
    return path


def equal(state, tensors=TENSORS):
    assert state.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert (state[key].shape, state[key].dtype) == (tensor.shape, tensor.dtype)
        found = np.asarray(state[key])
        assert found.dtype == tensor.dtype
        np.testing.assert_array_equal(found, tensor)


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth", "x.pt", "x.bin"])
def test_every_kind_of_file_is_read_to_the_bit(tmp_path, name):
    equal(read_state([save(tmp_path / name)]))


def test_pickles_from_before_zip_archives_are_read(tmp_path):
    equal(read_state([save(tmp_path / "x.pth", _use_new_zipfile_serialization=False)]))


def test_tensors_stay_on_disk_until_they_are_asked_for(tmp_path):
    """Numbers that change in the file after its names were read are the ones that are seen."""
    path = save(tmp_path / "x.safetensors", {"x": np.zeros(4, np.float32)})
    state = read_state([path])
    with path.open("r+b") as file:
        file.seek(-16, 2)
        file.write(np.ones(4, np.float32).tobytes())
    np.testing.assert_array_equal(np.asarray(state["x"]), np.ones(4))


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
@pytest.mark.parametrize("key", ["a.weight", "b.weight", "c.weight", "d.weight"])
@pytest.mark.parametrize("number", [np.nan, -np.inf])
def test_a_tensor_that_is_not_finite_is_named(tmp_path, name, key, number):
    bad = TENSORS[key].copy()
    bad[(-1,) * bad.ndim] = number
    path = save(tmp_path / name, TENSORS | {key: bad})
    state = read_state([path])
    with pytest.raises(InputError) as error:
        np.asarray(state[key])
    assert str(error.value) == f"{path}: {key} holds NaN or infinity: use an undamaged file"
    for other in TENSORS.keys() - {key}:
        np.testing.assert_array_equal(np.asarray(state[other]), TENSORS[other])


def test_all_of_a_large_tensor_is_looked_at(tmp_path):
    for n, place in enumerate([0, 100_000, -1]):
        large = np.zeros(200_001, np.float32)
        large[place] = np.nan
        state = read_state([save(tmp_path / f"{n}.safetensors", {"x": large})])
        with pytest.raises(InputError, match="x holds NaN"):
            np.asarray(state["x"])


@pytest.mark.parametrize("index", [True, False])
def test_a_set_of_shards_is_one_checkpoint(tmp_path, index):
    save_shards(tmp_path, TENSORS, count=3, index=index)
    (found,) = find_checkpoints(tmp_path)
    equal(found.state())
    assert len(found.files) == 3


def test_single_files_are_one_checkpoint_each(tmp_path):
    for name in ("a.safetensors", "deep/er/b.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save(tmp_path / name)
    assert [c.name.name for c in find_checkpoints(tmp_path)] == ["a.safetensors", "b.pth"]


def test_a_missing_shard_is_named(tmp_path):
    for folder, index in ((tmp_path / "with", True), (tmp_path / "without", False)):
        shards = save_shards(folder, TENSORS, count=3, index=index)
        shards[1].unlink()
        with pytest.raises(InputError, match=f"{shards[1].name} is missing"):
            [checkpoint.state() for checkpoint in find_checkpoints(folder)]


def test_shards_of_two_sets_are_refused(tmp_path):
    save_shards(tmp_path, TENSORS, count=3, index=False)
    save_shards(tmp_path, TENSORS, count=2, index=False)
    with pytest.raises(InputError, match="two sets are mixed .of 00002 and of 00003"):
        find_checkpoints(tmp_path)


def test_a_shard_that_the_index_does_not_list_is_refused(tmp_path):
    save_shards(tmp_path, TENSORS, count=3, index=False)
    save_shards(tmp_path, TENSORS, count=2, index=True)
    with pytest.raises(InputError, match=f"of-00003.safetensors is not in {STEM}.safe.*two sets"):
        find_checkpoints(tmp_path)


def test_a_shard_of_another_download_is_named(tmp_path):
    shards = save_shards(tmp_path, TENSORS)
    save_file({"other.weight": np.zeros(1)}, shards[1])
    with pytest.raises(InputError, match="00002-of-00002.safetensors is not the shard that .*"):
        find_checkpoints(tmp_path)[0].state()


def test_a_key_that_the_index_puts_elsewhere_is_named(tmp_path):
    save_shards(tmp_path, TENSORS)
    index = tmp_path / f"{STEM}.safetensors.index.json"
    text = json.loads(index.read_text())
    first, second = sorted(set(text["weight_map"].values()))
    text["weight_map"] = {key: first for key in TENSORS} | {"d.weight": second}
    index.write_text(json.dumps(text))
    with pytest.raises(InputError, match="00001-of-.* is not the shard .*: b.weight is missing"):
        find_checkpoints(tmp_path)[0].state()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": "../../secret.pth"}}']
)
def test_a_damaged_index_is_named(tmp_path, text):
    save_shards(tmp_path, TENSORS)
    (tmp_path / f"{STEM}.safetensors.index.json").write_text(text)
    with pytest.raises(InputError, match="safetensors.index.json (is damaged|does not name)"):
        find_checkpoints(tmp_path)


def test_a_key_in_two_shards_is_refused(tmp_path):
    shards = save_shards(tmp_path, TENSORS, index=False)
    save_file(TENSORS, shards[1])
    with pytest.raises(InputError, match="duplicate key: .* is in .*00002-of-00002.safetensors"):
        find_checkpoints(tmp_path)[0].state()


@pytest.mark.parametrize("name", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("keep", [0, 100, -30])
def test_a_truncated_source_is_named(tmp_path, name, keep):
    path = save(tmp_path / name, {"x": np.ones((64, 64), np.float32)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"{name} is damaged") as error:
        read_state([path])
    assert "\n" not in str(error.value)


class Touch:
    """Unpickles by making a file: what a malicious checkpoint could do, and more."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path, zipped):
    evil = {"a.weight": torch.zeros(1), "b": Touch(tmp_path / "pwned")}
    torch.save(evil, tmp_path / "evil.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="evil.pth is damaged or holds more than tensors: refused"):
        read_state([tmp_path / "evil.pth"])
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pth"]
    with (tmp_path / "plain.bin").open("wb") as file:
        pickle.dump(evil["b"], file)
    with pytest.raises(InputError, match="plain.bin is damaged or"):
        read_state([tmp_path / "plain.bin"])
    assert not (tmp_path / "pwned").exists()


def test_an_empty_pickle_is_said_to_be(tmp_path):
    (tmp_path / "model.pth").touch()
    with pytest.raises(InputError, match="not a torch file: empty, or cut short$"):
        read_state([tmp_path / "model.pth"])


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_a_pickle_of_python_is_refused_without_a_warning(tmp_path, recwarn, protocol):
    (tmp_path / "model.pth").write_bytes(pickle.dumps({"a": [1.0]}, protocol))
    with pytest.raises(InputError, match="model.pth is damaged or"):
        read_state([tmp_path / "model.pth"])
    assert not recwarn.list


@pytest.mark.parametrize("content", [{"step": 3}, [torch.zeros(1)], {"model": {}}])
def test_a_pickle_of_anything_but_tensors_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model.pth")
    with pytest.raises(InputError, match="model.pth is not a flat dictionary of tensors"):
        read_state([tmp_path / "model.pth"])


def test_pickles_without_torch_say_what_to_install(tmp_path, monkeypatch):
    path = save(tmp_path / "model.pth")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"model.pth: .* needs torch: pip install 'ic-jax\[conv"):
        read_state([path])
    equal(read_state([save_safely(tmp_path)]))


def save_safely(folder):
    save_file(TENSORS, folder / "x.safetensors")
    return folder / "x.safetensors"


def test_other_files_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    for name, reason in {"missing.pth": "no such file", "notes.txt": "expected .safetens"}.items():
        with pytest.raises(InputError, match=reason):
            read_state([tmp_path / name])
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(InputError, match="model.gguf: .gguf is not read"):
        find_checkpoints(tmp_path)
    with pytest.raises(InputError, match="no such file or folder: .*missing"):
        find_checkpoints(tmp_path / "missing")
