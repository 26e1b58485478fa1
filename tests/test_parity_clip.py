import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_oracles as oracles
from perturbation import unmoved

from convert import clip_vision
from convert.keymap import canonical, convert_state, export_state
from ic_jax.errors import InputError
from ic_jax.models.clip_vision import CLIPVisionConfig, encode_image, preprocess

TOLERANCE = 1e-5
LAYOUTS = list(clip_vision.PROBES)

# The numbers that pixels of the image encoder's training set were normalised by.
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


def frame_of(height, width):
    return np.random.default_rng(0).uniform(-1, 1, (height, width, 3)).astype(np.float32)


def torch_preprocess(frame, size):
    image = torch.tensor(frame).permute(2, 0, 1)
    square = torch.nn.functional.interpolate(
        image[None], (size, size), mode="bicubic", align_corners=False
    )[0]
    return (square * 0.5 + 0.5 - MEAN) / STD


@pytest.fixture(scope="module")
def encoded():
    """The torch state, a frame, and what torch makes of it."""
    model, frame = oracles.image_encoder(), frame_of(30, 50)
    pixels = torch_preprocess(frame, 42)[None]
    with torch.no_grad():
        hidden = model(pixels, output_hidden_states=True).hidden_states
    return oracles.state_of(model), frame, hidden[-2][0].numpy()


def in_layout(state, layout):
    return oracles.clip_in_original_layout(state) if layout == "original" else state


def converted(state, layout):
    table = clip_vision.table(layout)
    config = clip_vision.config(canonical(state, table), layout)
    return config, convert_state(state, table, clip_vision.target(config))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_transformers(encoded, layout):
    state, frame, expected = encoded
    config, params = converted(in_layout(state, layout), layout)
    assert config == CLIPVisionConfig(dim=160, ffn_dim=96, heads=2, layers=2, image=42)
    out = jax.jit(lambda params, frame: encode_image(config, params, frame))(params, frame)
    np.testing.assert_allclose(out, expected, atol=TOLERANCE)
    assert out.shape == (config.tokens, config.dim)
    assert 0.3 < np.sqrt(np.mean(out**2)) < 5


def test_every_tensor_moves_the_output_but_the_key_biases(encoded):
    """A key's bias adds the same to all scores of a query, which the softmax takes off again."""
    state, frame, _ = encoded
    config, params = converted(state, "transformers")
    run = lambda params: encode_image(config, params, jnp.asarray(frame))
    still = unmoved(run, params, 10 * TOLERANCE, stacked="blocks")
    assert still == [f"blocks/attn/k/bias[{n}]" for n in range(config.layers)]


def test_key_biases_are_found_by_name(encoded):
    state, _, _ = encoded
    expected = [state[f"encoder.layers.{n}.self_attn.k_proj.bias"] for n in range(2)]
    for layout in LAYOUTS:
        _, params = converted(in_layout(state, layout), layout)
        np.testing.assert_array_equal(params["blocks"]["attn"]["k"]["bias"], expected)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_export_gives_the_source_back_without_what_is_unused(encoded, layout):
    table, state = clip_vision.table(layout), in_layout(encoded[0], layout)
    _, params = converted(state, layout)
    exported = dict(export_state(params, table))
    unused = ("post_", "transformer.2.", "encoder.layers.2.")
    used = {key.removeprefix("visual."): tensor for key, tensor in state.items()}
    used = {key: tensor for key, tensor in used.items() if not key.startswith(unused)}
    assert exported.keys() == used.keys()
    for key, tensor in exported.items():
        np.testing.assert_array_equal(tensor, used[key])


@pytest.mark.parametrize(
    "layout, prefix, unused",
    [
        ("original", "", ["head", "log_scale"]),
        ("original", "model.visual.", ["model.log_scale", "model.textual.blocks.3.attn.q.weight"]),
        ("transformers", "vision_model.", ["text_model.embeddings.position_ids", "logit_scale"]),
        ("transformers", "vision_model.", ["visual_projection.weight"]),
    ],
)
def test_the_tower_is_found_among_the_parts_that_wan_does_not_use(encoded, layout, prefix, unused):
    state = in_layout(encoded[0], layout)
    _, expected = converted(state, layout)
    dressed = {prefix + key.removeprefix("visual."): tensor for key, tensor in state.items()}
    dressed |= {key: np.zeros(1) for key in unused}
    _, params = converted(dressed, layout)
    jax.tree.map(np.testing.assert_array_equal, params, expected)


def test_an_unknown_key_of_the_last_block_is_refused(encoded):
    state = encoded[0] | {"encoder.layers.2.layer_norm3.weight": np.zeros(1)}
    with pytest.raises(InputError, match=r"\+ encoder.layers.2.layer_norm3.weight"):
        converted(state, "transformers")


def test_another_width_of_heads_is_refused(encoded):
    state = encoded[0] | {"embeddings.patch_embedding.weight": np.zeros((128, 3, 14, 14))}
    with pytest.raises(InputError, match="width 128 is not a multiple of 80"):
        converted(state, "transformers")


def test_the_released_tower_has_the_published_size():
    """Of the whole vision tower, 632,076,800, less what Wan leaves out."""
    dim, ffn_dim = 1280, 5120
    released = CLIPVisionConfig(dim, ffn_dim, heads=16, layers=31)
    count = sum(leaf.size for leaf in jax.tree.leaves(clip_vision.target(released)))
    block = 4 * dim * dim + 2 * dim * ffn_dim + 9 * dim + ffn_dim
    post_norm, head = 2 * dim, 1024 * dim
    assert count + block + post_norm + head == 632_076_800


@pytest.mark.parametrize("size", [(480, 832), (720, 1280), (224, 224), (97, 61), (3, 5)])
def test_preprocessing_equals_torch(size):
    frame = frame_of(*size)
    expected = torch_preprocess(frame, 224).permute(1, 2, 0)
    np.testing.assert_allclose(preprocess(jnp.asarray(frame)), expected, atol=TOLERANCE)


def test_half_precision_stays_near(encoded):
    state, frame, expected = encoded
    config, params = converted(state, "transformers")
    run = jax.jit(lambda params, frame: encode_image(config, params, frame, jnp.bfloat16))
    error = np.sqrt(np.mean((run(params, frame) - expected) ** 2) / np.var(expected))
    assert 1e-4 < error < 0.03
