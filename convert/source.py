"""Reading torch checkpoints: safetensors, pickles of tensors, and folders of shards."""

from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors
import torch

from ic_jax.errors import InputError

PICKLES = (".pth", ".pt", ".bin")


def read_state(path: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, or of all safetensors files in a folder, by its key.

    Pickles are read as weights only: no code in them runs. Raises InputError for a missing,
    damaged or unknown file, and for a key that two shards hold.
    """
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if not path.is_dir():
        return _read_file(path)
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise InputError(f"no .safetensors file in {path}: name a weights file instead")
    state: dict[str, np.ndarray] = {}
    for shard in shards:
        tensors = _read_file(shard)
        twice = sorted(state.keys() & tensors.keys())
        if twice:
            raise InputError(f"duplicate key: {twice[0]} is in {shard} and in another shard")
        state |= tensors
    return state


def _read_file(path: Path) -> dict[str, np.ndarray]:
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    raise InputError(f"{path}: expected .safetensors, {', '.join(PICKLES)} or a folder")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    try:
        with safetensors.safe_open(path, "np") as file:
            return {key: file.get_tensor(key) for key in file.keys()}
    except safetensors.SafetensorError as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged archive
        reason = str(error).split("\n")[0]
        raise InputError(f"{path} is damaged or holds more than tensors: {reason}") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise InputError(f"{path} is not a flat dictionary of tensors")
    return {key: _to_numpy(tensor) for key, tensor in tensors.items()}


def _to_numpy(tensor: torch.Tensor) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.uint16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
