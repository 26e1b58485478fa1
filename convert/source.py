"""Tensors of torch checkpoints, left on disk until one is needed: safetensors and pickles."""

import json
import pickle
import warnings
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from ic_jax.errors import InputError

from .keymap import State, Tensor

PICKLES = (".pth", ".pt", ".bin")
SUFFIXES = (".safetensors", *PICKLES)

_FINITE_STEP = 1 << 16

_SAFETENSORS_DTYPES = {
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "I64": np.int64,
    "I32": np.int32,
    "I16": np.int16,
    "I8": np.int8,
    "U8": np.uint8,
    "BOOL": np.bool_,
}


def read_state(files: Iterable[Path]) -> State:
    """The tensors of one network, by key, from its file or all of its shards.

    Only names, shapes and dtypes are read; a tensor is when `np.asarray` asks for it. Pickles
    are read as weights only: no code in them runs. Raises InputError for a missing, damaged or
    unknown file, for a key that two shards hold, and on reading a tensor for NaN and infinity.
    """
    state: dict[str, Tensor] = {}
    for file in files:
        tensors = _read_file(file)
        if twice := sorted(state.keys() & tensors.keys()):
            raise InputError(f"duplicate key: {twice[0]} is in {file} and in another shard")
        state |= {key: _Finite(tensor, key, file) for key, tensor in tensors.items()}
    return state


def cast_state(state: State, dtype: np.dtype) -> State:
    """The same tensors, each turned into `dtype` as it is read."""
    return {key: _Cast(tensor, dtype) for key, tensor in state.items()}


@dataclass(frozen=True)
class _InSafetensors:
    """A tensor of a safetensors file, mapped into memory and not copied when it is read."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)


@dataclass(frozen=True)
class _InTorch:
    """A tensor of torch's, whose storage is mapped from the file where its format allows."""

    tensor: Any  # torch.Tensor, which cannot be named without importing torch

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        name = str(self.tensor.dtype).removeprefix("torch.")
        return np.dtype(getattr(ml_dtypes, name, name))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        import torch

        tensor = self.tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # the one that numpy lacks and weights come in
            return tensor.view(torch.uint16).numpy().view(self.dtype)
        return tensor.numpy()


@dataclass(frozen=True)
class _Finite:
    """A tensor of `path`, refused when it is read if it holds NaN or infinity."""

    tensor: Tensor
    key: str
    path: Path

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def dtype(self) -> np.dtype:
        return self.tensor.dtype

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        array = np.asarray(self.tensor)
        flat = array.reshape(-1)
        # In parts, because a mask of umT5's embedding alone is 1 GB.
        for start in range(0, flat.size, _FINITE_STEP):
            if not np.isfinite(flat[start : start + _FINITE_STEP]).all():
                raise InputError(
                    f"{self.path}: {self.key} holds NaN or infinity: use an undamaged file"
                )
        return array if dtype is None else array.astype(dtype, copy=False)


@dataclass(frozen=True)
class _Cast:
    """Another tensor in another dtype."""

    tensor: Tensor
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self.tensor, self.dtype)


def _read_file(path: Path) -> Mapping[str, Tensor]:
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix in PICKLES:
        return _read_pickle(path)
    raise InputError(f"{path}: expected {', '.join(SUFFIXES)} or a folder")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    try:
        # Refuses a header that does not agree with itself or with the size of the file.
        with safetensors.safe_open(path, "np"):
            pass
    except (safetensors.SafetensorError, OSError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {error}") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    tensors = {}
    for key, entry in header.items():
        if entry["dtype"] not in _SAFETENSORS_DTYPES:
            raise InputError(f"{path}: {key} is stored as {entry['dtype']}, which is not read here")
        offset = 8 + length + entry["data_offsets"][0]
        dtype = np.dtype(_SAFETENSORS_DTYPES[entry["dtype"]])
        tensors[key] = _InSafetensors(path, offset, tuple(entry["shape"]), dtype)
    return tensors


def _read_pickle(path: Path) -> Mapping[str, Tensor]:
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"{path}: reading {path.suffix} needs torch: pip install 'ic-jax[convert]'"
        ) from error
    try:
        # The format before zip archives cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            # Of a file that is then refused in our words, or read.
            warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
            tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{path} is damaged or holds more than tensors: refused, and nothing in it was run"
        ) from error
    except Exception as error:  # torch raises many kinds for a damaged archive
        reason = str(error).split("\n")[0] or "empty, or cut short"
        raise InputError(f"{path} is damaged or not a torch file: {reason}") from error
    if not isinstance(tensors, dict) or not all(map(torch.is_tensor, tensors.values())):
        raise InputError(f"{path} is not a flat dictionary of tensors")
    return {key: _InTorch(tensor) for key, tensor in tensors.items()}
