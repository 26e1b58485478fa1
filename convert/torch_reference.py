"""The same networks in torch, from diffusers and transformers, filled by a path of their own.

Keys of Wan's own release are renamed by diffusers' converters for single files and, for the
encoders that those do not know, by the short lists at the end: never by our tables, so that a
slip there shows.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from diffusers.loaders import single_file_utils

from ic_jax.errors import InputError
from ic_jax.models.clip_vision import CLIPVisionConfig
from ic_jax.models.umt5 import UMT5Config
from ic_jax.models.wan_dit import DiTConfig
from ic_jax.models.wan_vae import VAEConfig

from .keymap import State

Read = Callable[[], np.ndarray]
Values = dict[str, np.ndarray]


class Reference(NamedTuple):
    """A torch network of one block, which takes the parameters of any, and how to run it."""

    module: torch.nn.Module
    tensors: Mapping[str, Read]
    """What the source holds, under the names of `module`'s parameters."""
    block: str | None
    """What the names of the only block's parameters begin with; None for a whole network."""
    run: Callable[..., Values]
    """Arrays, channels last, to what each module of the network makes of them."""

    def fill(self) -> None:
        """Give every module its parameters, and the block zeros: it then adds nothing.

        Raises InputError where the source lacks a parameter or holds one of another shape.
        """
        for name, parameter in self.module.named_parameters():
            if self._in_block(name):
                parameter.data.zero_()
            else:
                self._set(parameter, name)

    def fill_block(self, n: int) -> None:
        """Give the block what the source's `n`th has; raises as `fill` does."""
        for name, parameter in self.module.named_parameters():
            if self._in_block(name):
                self._set(parameter, name.replace(f"{self.block}.0.", f"{self.block}.{n}.", 1))

    def _in_block(self, name: str) -> bool:
        return self.block is not None and name.startswith(f"{self.block}.0.")

    def _set(self, parameter: torch.nn.Parameter, key: str) -> None:
        if key not in self.tensors:
            raise InputError(f"the source has no {key}, as diffusers or transformers call it")
        array = self.tensors[key]()
        if array.shape != tuple(parameter.shape):
            raise InputError(f"{key} is {array.shape}, not {tuple(parameter.shape)}")
        parameter.data = torch.from_numpy(np.array(array, np.float32))


def transformer(config: DiTConfig, layout: str, state: State) -> Reference:
    """Wan's transformer, from the layout "original" or "diffusers"."""
    if layout == "original":
        state = single_file_utils.convert_wan_transformer_to_diffusers(dict(state))
    image = {"image_dim": config.image_dim, "added_kv_proj_dim": config.dim}
    module = WanTransformer3DModel(
        num_attention_heads=config.num_heads,
        attention_head_dim=config.head_dim,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        text_dim=config.text_dim,
        freq_dim=config.freq_dim,
        ffn_dim=config.ffn_dim,
        num_layers=1,
        cross_attn_norm=True,
        patch_size=config.patch,
        **(image if config.image_dim is not None else {}),
    ).requires_grad_(False)
    embedder = module.condition_embedder
    places = {
        "patch_embedding": [module.patch_embedding],
        "time_embedding": [embedder.time_embedder, embedder.time_proj],
        "text_embedding": [embedder.text_embedder],
        "head": [module.proj_out],
    }
    if config.image_dim is not None:
        places["image_embedding"] = [embedder.image_embedder]

    def run(latent: np.ndarray, timestep: np.ndarray, *contexts: np.ndarray) -> Values:
        inputs = _channels_first(latent), *map(torch.from_numpy, (timestep, *contexts))
        return _watched(places, lambda: module(*inputs, return_dict=False)[0])

    return Reference(module, _as_stored(state), "blocks", run)


def autoencoder(config: VAEConfig, layout: str, state: State) -> Reference:
    """Wan's autoencoder, whole, from the layout "original" or "diffusers"."""
    if layout == "original":
        bare = {key.removeprefix("model."): tensor for key, tensor in state.items()}
        state = single_file_utils.convert_wan_vae_to_diffusers(bare)
    module = AutoencoderKLWan(
        base_dim=config.base,
        z_dim=config.latent_channels,
        dim_mult=list(config.multipliers),
        num_res_blocks=config.blocks,
        temperal_downsample=list(config.temporal),
    ).requires_grad_(False)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1)
        for values in (module.config.latents_mean, module.config.latents_std)
    )

    def run(clip: np.ndarray, latent: np.ndarray) -> Values:
        encoded = module.encode(_channels_first(clip)).latent_dist.mode()
        decoded = module.decode(_channels_first(latent) * std + mean).sample
        return {"encode": _row((encoded - mean) / std), "decode": _row(decoded)}

    return Reference(module, _as_stored(state), None, run)


def text_encoder(config: UMT5Config, layout: str, state: State, tokens: np.ndarray) -> Reference:
    """umT5 with no more of its vocabulary than `tokens`, from "original" or "transformers"."""
    renames = _UMT5 if layout == "original" else _UMT5_ALIAS
    tensors = {_renamed(key, renames): tensor for key, tensor in state.items()}
    embedding = tensors["shared.weight"]
    module = transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=len(tokens),
            d_model=config.dim,
            d_kv=config.head_dim,
            d_ff=config.ffn_dim,
            num_layers=1,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
        )
    )
    module.eval().requires_grad_(False)
    encoder = module.encoder
    places = {
        "token_embedding": [encoder.embed_tokens],
        "norm": [encoder.final_layer_norm],
    }

    def run(ids: np.ndarray, mask: np.ndarray) -> Values:
        inputs = torch.from_numpy(ids).long(), torch.from_numpy(mask)
        return _watched(places, lambda: module(*inputs).last_hidden_state)

    reads = _as_stored(tensors) | {"shared.weight": lambda: np.asarray(embedding)[tokens]}
    return Reference(module, reads, "encoder.block", run)


def image_encoder(config: CLIPVisionConfig, layout: str, state: State) -> Reference:
    """CLIP's vision tower, from the layout "original" or "transformers"."""
    module = transformers.CLIPVisionModel(
        transformers.CLIPVisionConfig(
            hidden_size=config.dim,
            intermediate_size=config.ffn_dim,
            num_hidden_layers=1,
            num_attention_heads=config.heads,
            image_size=config.image,
            patch_size=config.patch,
            hidden_act="gelu",
        )
    )
    module.eval().requires_grad_(False)
    tower = getattr(module, "vision_model", module)  # before and since transformers 5
    tower.post_layernorm = torch.nn.Identity()  # Wan does not come so far
    places = {"pre_norm": [tower.pre_layrnorm]}

    def run(pixels: np.ndarray) -> Values:
        return _watched(places, lambda: module(_channels_first(pixels)).last_hidden_state)

    original = layout == "original"
    tensors = dict(_clip_tensors(state)) if original else _as_stored(_below(state, "vision_model."))
    return Reference(tower, tensors, "encoder.layers", run)


# Running --------------------------------------------------------------------------


def _channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def _watched(
    places: Mapping[str, list[torch.nn.Module]], forward: Callable[[], torch.Tensor]
) -> Values:
    """What each place puts out during `forward`, its modules one behind the other; the "output"."""
    seen: dict[torch.nn.Module, torch.Tensor] = {}
    watch = lambda module, _, output: seen.__setitem__(module, output)
    handles = [m.register_forward_hook(watch) for modules in places.values() for m in modules]
    try:
        output = forward()
    finally:
        for handle in handles:
            handle.remove()
    values = {name: _row(*(seen[m] for m in modules)) for name, modules in places.items()}
    return values | {"output": _row(output)}


def _row(*tensors: torch.Tensor) -> np.ndarray:
    """All numbers of videos, channels last, and of tokens, one behind the other."""
    rows = [(t.movedim(1, -1) if t.ndim == 5 else t).flatten() for t in tensors]
    return torch.cat(rows).numpy()


# Names ----------------------------------------------------------------------------


def _as_stored(state: State) -> dict[str, Read]:
    return {key: lambda tensor=tensor: np.asarray(tensor) for key, tensor in state.items()}


def _below(state: State, prefix: str) -> dict[str, Any]:
    return {key.removeprefix(prefix): tensor for key, tensor in state.items()}


def _renamed(key: str, renames: Mapping[str, str]) -> str:
    for pattern, replacement in renames.items():
        key = re.sub(pattern, replacement, key)
    return key


_UMT5_ALIAS = {r"^encoder\.embed_tokens\.": "shared."}

_UMT5 = {
    r"^token_embedding\.": "shared.",
    r"^norm\.": "encoder.final_layer_norm.",
    r"^blocks\.": "encoder.block.",
    r"\.norm1\.": ".layer.0.layer_norm.",
    r"\.norm2\.": ".layer.1.layer_norm.",
    r"\.attn\.": ".layer.0.SelfAttention.",
    r"\.pos_embedding\.embedding\.": ".layer.0.SelfAttention.relative_attention_bias.",
    r"\.ffn\.gate\.0\.": ".layer.1.DenseReluDense.wi_0.",
    r"\.ffn\.fc1\.": ".layer.1.DenseReluDense.wi_1.",
    r"\.ffn\.fc2\.": ".layer.1.DenseReluDense.wo.",
}

_CLIP = {
    r"^(model\.)?visual\.": "",
    r"^patch_embedding\.": "embeddings.patch_embedding.",
    r"^pre_norm\.": "pre_layrnorm.",
    r"^transformer\.": "encoder.layers.",
    r"\.norm([12])\.": r".layer_norm\1.",
    r"\.attn\.proj\.": ".self_attn.out_proj.",
    r"\.mlp\.0\.": ".mlp.fc1.",
    r"\.mlp\.2\.": ".mlp.fc2.",
}


def _clip_tensors(state: State) -> Iterator[tuple[str, Read]]:
    """Wan's tower as transformers stores it: query, key and value apart, no axes of one."""
    for key, tensor in state.items():
        name = _renamed(key, _CLIP)
        read = lambda tensor=tensor: np.asarray(tensor)
        if name == "cls_embedding":
            yield "embeddings.class_embedding", lambda read=read: read().reshape(-1)
        elif name == "pos_embedding":
            yield "embeddings.position_embedding.weight", lambda read=read: read()[0]
        elif ".attn.to_qkv." in name:
            for i, part in enumerate("qkv"):
                renamed = name.replace(".attn.to_qkv.", f".self_attn.{part}_proj.")
                yield renamed, lambda read=read, i=i: np.split(read(), 3)[i]
        else:
            yield name, read
