"""Folders as the models are released in, around networks of a few parameters."""

import functools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file
from tiny_tokenizer import COUNT, train

from convert.keymap import export_state
from convert.network import MODELS
from ic_jax.models.clip_vision import CLIPVisionConfig
from ic_jax.models.umt5 import UMT5Config
from ic_jax.models.variants import VARIANTS
from ic_jax.models.wan_dit import DiTConfig
from ic_jax.models.wan_vae import VAEConfig

T5 = "models_t5_umt5-xxl-enc-bf16.pth"
CLIP = "models_clip_open-clip-xlm-roberta-large-vit-huge-14.pth"
VAE = "Wan2.1_VAE.pth"

State = dict[str, np.ndarray]

# Heads as wide as in every released one.
_T2V = DiTConfig(dim=128, ffn_dim=32, num_heads=1, num_layers=2, text_dim=16)
_I2V = replace(_T2V, in_channels=36)
CONFIGS = {
    "t2v": _T2V,
    "low": _T2V,
    "i2v": replace(_I2V, image_dim=80),
    "i2v high": _I2V,  # Wan 2.2's have no image encoder
    "i2v low": _I2V,
    "vae": VAEConfig(base=4),
    "umt5": UMT5Config(vocab=COUNT + 8, dim=16, ffn_dim=32, heads=2, head_dim=8, layers=2),
    "clip": CLIPVisionConfig(dim=80, ffn_dim=32, heads=1, layers=2, image=42),
}
COMPONENTS = {
    "t2v": "dit",
    "low": "dit_low",
    "i2v": "dit",
    "i2v high": "dit",
    "i2v low": "dit_low",
}


def model(name: str):
    """The converter's module for a network."""
    return MODELS[COMPONENTS.get(name, name).removesuffix("_low")]


@functools.cache
def parameters(name: str) -> dict:
    """Random parameters, as they must come out of a conversion."""
    rng = np.random.default_rng(sorted(CONFIGS).index(name))
    shapes = flatten_dict(model(name).target(CONFIGS[name]), sep="/")
    leaves = {key: rng.standard_normal(leaf.shape, np.float32) for key, leaf in shapes.items()}
    return unflatten_dict(leaves, sep="/")


def state(name: str, layout: str) -> State:
    """The same under the keys of a release; CLIP has a last block, which Wan does not run."""
    params = parameters(name)
    if name == "clip":
        blocks = flatten_dict(params["blocks"], sep="/")
        longer = {key: np.concatenate([leaf, leaf[-1:]]) for key, leaf in blocks.items()}
        params = params | {"blocks": unflatten_dict(longer, sep="/")}
    tensors = dict(export_state(params, model(name).table(layout)))
    prefix = "visual." if (name, layout) == ("clip", "original") else ""
    return {prefix + key: tensor for key, tensor in tensors.items()}


def original(name: str) -> State:
    """The network in Wan's own keys."""
    return state(name, "original")


def rows() -> dict:
    """A table of variants with the released names and these sizes.

    Only the first takes clips in chunks, as all do when released: that is twice as much to compile.
    """
    table = {"Wan2.1-T2V-1.3B": _sized("Wan2.1-T2V-1.3B", "t2v", clip=None)}
    whole = functools.partial(_sized, chunk=None)
    table["Wan2.2-T2V-A14B"] = whole("Wan2.2-T2V-A14B", "t2v", clip=None)
    for name in ("Wan2.1-I2V-14B", "Wan2.1-Fun-14B-InP"):
        table[name] = whole(name, "i2v", clip=CONFIGS["clip"])
    for name in ("Wan2.2-I2V-A14B", "Wan2.2-Fun-A14B-InP"):
        table[name] = whole(name, "i2v high", clip=None)
    return table


def stand_in(monkeypatch) -> None:
    """Let that table stand for the real one during a test."""
    real = list(VARIANTS)
    small = rows()
    for name in real:
        monkeypatch.delitem(VARIANTS, name)
    for name, row in small.items():
        monkeypatch.setitem(VARIANTS, name, row)


def _sized(name: str, dit: str, **more):
    parts = {"dit": CONFIGS[dit], "vae": CONFIGS["vae"], "umt5": CONFIGS["umt5"]}
    return replace(VARIANTS[name], **parts, **more)


def save_shards(folder: Path, tensors: State, count: int = 2, index: bool = True) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    stem, keys = "diffusion_pytorch_model", sorted(tensors)
    names = [f"{stem}-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    for n, name in enumerate(names):
        save_file({key: tensors[key] for key in keys[n::count]}, folder / name)
    if index:
        weight_map = {key: names[n % count] for n, key in enumerate(keys)}
        file = folder / f"{stem}.safetensors.index.json"
        file.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return [folder / name for name in names]


def save_pickle(file: Path, tensors: State) -> None:
    torch.save({key: torch.tensor(value) for key, value in tensors.items()}, file)


def save_tokenizer(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "spiece.model").write_bytes(train())
    (folder / "tokenizer.json").write_text("{}")


def official(folder: Path, transformer: str = "t2v") -> Path:
    """Wan's own folder: sharded transformer, pickles of the rest."""
    save_shards(folder, original(transformer))
    save_pickle(folder / T5, original("umt5"))
    save_pickle(folder / VAE, original("vae"))
    save_tokenizer(folder / "google" / "umt5-xxl")
    (folder / "config.json").write_text('{"_class_name": "WanModel"}')
    (folder / "README.md").write_text("")
    (folder / ".cache").mkdir()
    (folder / ".cache" / "half.safetensors").write_text("a download that was broken off")
    if transformer == "i2v":
        save_pickle(folder / CLIP, original("clip") | {"textual.head": np.zeros(1)})
        (folder / "xlm-roberta-large").mkdir()
        (folder / "xlm-roberta-large" / "sentencepiece.bpe.model").write_bytes(b"of CLIP")
    return folder


def two_experts(folder: Path, high: str = "t2v", low: str = "low") -> Path:
    """Wan 2.2's own folder, which VideoX-Fun's for it is like."""
    official(folder)
    for file in folder.glob("diffusion*"):
        file.unlink()
    save_shards(folder / "high_noise_model", original(high))
    save_shards(folder / "low_noise_model", original(low))
    return folder


def videox_fun(folder: Path) -> Path:
    """VideoX-Fun's: one file, and VAE and CLIP below another module."""
    official(folder, "i2v")
    for file in folder.glob("diffusion*"):
        file.unlink()
    save_file(original("i2v"), folder / "diffusion_pytorch_model.safetensors")
    for name, file in (("vae", VAE), ("clip", CLIP)):
        save_pickle(folder / file, {f"model.{key}": t for key, t in original(name).items()})
    return folder


def diffusers(folder: Path, transformer: str = "t2v") -> Path:
    """diffusers': a folder for each network; the second transformer is the low-noise one."""
    parts = {"transformer": transformer, "vae": "vae", "text_encoder": "umt5"}
    if transformer == "i2v":
        parts["image_encoder"] = "clip"
    for part, name in parts.items():
        (folder / part).mkdir(parents=True)
        layout = "transformers" if name in ("umt5", "clip") else "diffusers"
        save_file(state(name, layout), folder / part / "model.safetensors")
        (folder / part / "config.json").write_text("{}")
    save_tokenizer(folder / "tokenizer")
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    return folder


def diffusers_of_two(folder: Path) -> Path:
    diffusers(folder)
    save_shards(folder / "transformer_2", state("low", "diffusers"), index=False)
    return folder
