"""What the parity tests trust: torch models with every parameter random, in two key layouts.

The renaming from diffusers' keys to Wan's is written here a second time, as substitutions and
in the direction opposite to the converter's tables, so that a slip there cannot cancel.
"""

import re

import numpy as np
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel
from transformers import CLIPVisionConfig, CLIPVisionModel, UMT5Config, UMT5EncoderModel


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draw every parameter so that no two layers agree and no layer is the identity."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data = _drawn(name, noise)
    return module.eval().requires_grad_(False)


def _drawn(name: str, noise: torch.Tensor) -> torch.Tensor:
    if name.endswith("bias"):
        return 0.1 * noise
    if name.endswith("gamma") or re.search(r"norm[^.]*\.weight$", name):
        return 1 + 0.1 * noise
    if name.endswith("scale_shift_table"):
        return 0.5 * noise
    if re.search(r"(shared|embed_tokens|relative_attention_bias)\.weight$", name):
        return noise
    return noise * (noise.numel() / noise.shape[0]) ** -0.5


def state_of(module: torch.nn.Module) -> dict[str, np.ndarray]:
    return {key: tensor.numpy() for key, tensor in module.state_dict().items()}


def vae(seed: int = 0) -> AutoencoderKLWan:
    model = AutoencoderKLWan(
        base_dim=8,
        z_dim=16,
        dim_mult=[1, 2, 4, 4],
        num_res_blocks=2,
        temperal_downsample=[False, True, True],
    )
    return randomise(model, seed)


def transformer(
    heads: int = 2, head_dim: int = 24, image_dim: int | None = None, seed: int = 0
) -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=head_dim,
        in_channels=16 if image_dim is None else 36,
        out_channels=16,
        text_dim=16,
        freq_dim=256,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        image_dim=image_dim,
        added_kv_proj_dim=None if image_dim is None else heads * head_dim,
    )
    return randomise(model, seed)


def text_encoder(seed: int = 0) -> UMT5EncoderModel:
    config = UMT5Config(
        vocab_size=100,
        d_model=32,
        d_kv=8,
        d_ff=64,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
    )
    return randomise(UMT5EncoderModel(config), seed)


_TRANSFORMER = (
    (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
    (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
    (r"^condition_embedder\.time_proj", "time_projection.1"),
    (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
    (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
    (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
    (r"^proj_out", "head.head"),
    (r"^scale_shift_table", "head.modulation"),
    (r"^(blocks\.\d+)\.scale_shift_table", r"\1.modulation"),
    (r"^(blocks\.\d+)\.norm2", r"\1.norm3"),
    (r"\.ffn\.net\.0\.proj", ".ffn.0"),
    (r"\.ffn\.net\.2", ".ffn.2"),
    (r"\.attn1\.", ".self_attn."),
    (r"\.attn2\.", ".cross_attn."),
    (r"_attn\.to_([qkv])\.", r"_attn.\1."),
    (r"_attn\.to_out\.0", "_attn.o"),
    (r"\.add_([kv])_proj", r".\1_img"),
    (r"\.norm_added_k", ".norm_k_img"),
)

_AUTOENCODER = (
    (r"^(encoder|decoder)\.conv_in", r"\1.conv1"),
    (r"^(encoder|decoder)\.norm_out", r"\1.head.0"),
    (r"^(encoder|decoder)\.conv_out", r"\1.head.2"),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"^encoder\.down_blocks\.", "encoder.downsamples."),
    (r"^decoder\.up_blocks\.(\d)\.resnets\.(\d)", lambda m: _upsample(int(m[1]), int(m[2]))),
    (r"^decoder\.up_blocks\.(\d)\.upsamplers\.0", lambda m: _upsample(int(m[1]), 3)),
    (r"^(.*)\.conv1\.(weight|bias)$", r"\1.residual.2.\2"),
    (r"\.norm1\.", ".residual.0."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    # The first convolution of each half was caught by the line for residual blocks.
    (r"^(encoder|decoder)\.residual\.2", r"\1.conv1"),
    (r"^quant_conv", "conv1"),
    (r"^post_quant_conv", "conv2"),
)

_TEXT_ENCODER = (
    (r"^shared", "token_embedding"),
    (r"^encoder\.final_layer_norm", "norm"),
    (r"^encoder\.block\.", "blocks."),
    (r"\.layer\.0\.layer_norm", ".norm1"),
    (r"\.layer\.1\.layer_norm", ".norm2"),
    (r"\.layer\.0\.SelfAttention\.relative_attention_bias", ".pos_embedding.embedding"),
    (r"\.layer\.0\.SelfAttention", ".attn"),
    (r"\.layer\.1\.DenseReluDense\.wi_0", ".ffn.gate.0"),
    (r"\.layer\.1\.DenseReluDense\.wi_1", ".ffn.fc1"),
    (r"\.layer\.1\.DenseReluDense\.wo", ".ffn.fc2"),
)

_ORIGINAL = {"wan_dit": _TRANSFORMER, "wan_vae": _AUTOENCODER, "umt5": _TEXT_ENCODER}


def _upsample(stage: int, layer: int) -> str:
    return f"decoder.upsamples.{4 * stage + layer}"


def in_original_layout(state: dict[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """`state` of a diffusers or transformers model under the keys of Wan's own release."""

    def rename(key: str) -> str:
        for pattern, replacement in _ORIGINAL[model]:
            key = re.sub(pattern, replacement, key)
        return key

    aliases = {"encoder.embed_tokens.weight"}
    return {rename(key): tensor for key, tensor in state.items() if key not in aliases}


def image_encoder(seed: int = 0) -> CLIPVisionModel:
    """With heads as wide as in the released one, and its last block, which Wan does not run."""
    config = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=42,
        patch_size=14,
        hidden_act="gelu",
    )
    return randomise(CLIPVisionModel(config), seed)


_IMAGE_ENCODER = (
    (r"^vision_model\.", ""),
    (r"^embeddings\.class_embedding", "cls_embedding"),
    (r"^embeddings\.position_embedding\.weight", "pos_embedding"),
    (r"^embeddings\.patch_embedding", "patch_embedding"),
    (r"^pre_layrnorm", "pre_norm"),
    (r"^post_layernorm", "post_norm"),
    (r"^encoder\.layers\.", "transformer."),
    (r"\.layer_norm([12])", r".norm\1"),
    (r"\.self_attn\.out_proj", ".attn.proj"),
    (r"\.self_attn\.([qkv])_proj", r".attn.\1"),
    (r"\.mlp\.fc1", ".mlp.0"),
    (r"\.mlp\.fc2", ".mlp.2"),
)
_ORIGINAL["clip_vision"] = _IMAGE_ENCODER


def clip_in_original_layout(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same for the image encoder, where Wan keeps query, key and value in one tensor."""
    state = in_original_layout(state, "clip_vision")
    for key in [key for key in state if ".attn.q." in key]:
        parts = [state.pop(key.replace(".q.", f".{name}.")) for name in "qkv"]
        state[key.replace(".q.", ".to_qkv.")] = np.concatenate(parts)
    state["cls_embedding"] = state["cls_embedding"][None, None]
    state["pos_embedding"] = state["pos_embedding"][None]
    return {f"visual.{key}": tensor for key, tensor in state.items()}
