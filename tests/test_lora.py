import ml_dtypes
import numpy as np
import pytest
import torch_oracles as oracles

from convert import wan_dit
from convert.keymap import convert_state
from convert.lora import merged
from ic_jax.errors import InputError

RANK, ALPHA, SCALE = 3, 2.0, 0.7

# Two layers by their names in both layouts.
LAYERS = {
    "original": ("blocks.1.self_attn.q", "blocks.0.ffn.2"),
    "diffusers": ("blocks.1.attn1.to_q", "blocks.0.ffn.net.2"),
}
# How trainers write them: layout of names, template of a key, (down, up).
STYLES = {
    "peft": ("diffusers", "transformer.{}.{}", ("lora_A.weight", "lora_B.weight")),
    "peft with an adapter's name": (
        "diffusers",
        "base_model.model.{}.{}",
        ("lora_A.default.weight", "lora_B.default.weight"),
    ),
    "bare": ("diffusers", "{}.{}", ("lora_A.weight", "lora_B.weight")),
    "wan": ("original", "diffusion_model.{}.{}", ("lora_A.weight", "lora_B.weight")),
    "wan, down and up": (
        "original",
        "diffusion_model.{}.{}",
        ("lora_down.weight", "lora_up.weight"),
    ),
    "kohya": ("original", "lora_unet_{}.{}", ("lora_down.weight", "lora_up.weight")),
    "kohya, two underscores": (
        "original",
        "lora_unet__{}.{}",
        ("lora_down.weight", "lora_up.weight"),
    ),
    "kohya over diffusers": (
        "diffusers",
        "lora_unet_{}.{}",
        ("lora_down.weight", "lora_up.weight"),
    ),
}


@pytest.fixture(scope="module")
def bases():
    """One small transformer in both layouts."""
    state = oracles.state_of(oracles.transformer(heads=1, head_dim=128))
    return {"diffusers": state, "original": oracles.in_original_layout(state, "wan_dit")}


@pytest.fixture(scope="module")
def matrices(bases):
    """(down, up) of each of the two layers."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
    weights = [bases["original"][f"{layer}.weight"] for layer in LAYERS["original"]]
    return [(draw(RANK, w.shape[1]), draw(w.shape[0], RANK)) for w in weights]


def lora_file(style, matrices, alpha=None):
    layout, template, halves = STYLES[style]
    file = {}
    for layer, pair in zip(LAYERS[layout], matrices):
        layer = layer.replace(".", "_") if "lora_unet" in template else layer
        file |= {template.format(layer, half): matrix for half, matrix in zip(halves, pair)}
        if alpha is not None:
            file[template.format(layer, "alpha")] = np.float32(alpha)
    return file


def converted(state):
    layout = wan_dit.layout_of(state)
    return convert_state(
        state, wan_dit.table(layout), wan_dit.target(wan_dit.config(state, layout))
    )


@pytest.mark.parametrize("alpha", [None, ALPHA])
@pytest.mark.parametrize("layout", LAYERS)
@pytest.mark.parametrize("style", STYLES)
def test_every_style_adds_the_same_to_every_layout(bases, matrices, style, layout, alpha):
    base = bases[layout]
    out = merged(base, lora_file(style, matrices, alpha), SCALE)
    assert out.keys() == base.keys()
    changed = {}
    for layer, (down, up) in zip(LAYERS[layout], matrices):
        strength = SCALE * (1 if alpha is None else alpha / RANK)
        key = f"{layer}.weight"
        changed[key] = base[key].astype(np.float64) + strength * up.astype(np.float64) @ down
    for key in base:
        np.testing.assert_allclose(np.asarray(out[key]), changed.get(key, base[key]), atol=1e-5)
        assert key in changed or out[key] is base[key]


def test_a_merged_state_converts_with_its_prefixes(bases, matrices):
    prefix = "model.diffusion_model."
    dressed = {f"{prefix}{key}": tensor for key, tensor in bases["original"].items()}
    out = converted(merged(dressed, lora_file("kohya", matrices)))
    plain = converted(bases["original"])
    (down, up), _ = matrices
    moved = np.asarray(out["blocks"]["self_attn"]["q"]["kernel"]) - np.asarray(
        plain["blocks"]["self_attn"]["q"]["kernel"]
    )
    np.testing.assert_allclose(moved[1], (up @ down).T, atol=1e-5)
    assert not moved[0].any()


def test_the_sum_is_float32_and_has_the_dtype_of_the_weight(bases, matrices):
    key = f"{LAYERS['original'][0]}.weight"
    half = {k: tensor.astype(ml_dtypes.bfloat16) for k, tensor in bases["original"].items()}
    out = merged(half, lora_file("wan", matrices), scale=1e-2)[key]
    down, up = matrices[0]
    exact = half[key].astype(np.float32) + 1e-2 * (up @ down)
    assert out.dtype == np.asarray(out).dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(np.asarray(out), exact.astype(ml_dtypes.bfloat16))


def test_convolutions_norms_and_biases_are_merged(bases):
    base = bases["original"]
    rng = np.random.default_rng(0)
    down = rng.standard_normal((RANK, 16, 1, 2, 2)).astype(np.float32)
    up = rng.standard_normal((128, RANK, 1, 1, 1)).astype(np.float32)
    file = {
        "diffusion_model.patch_embedding.lora_down.weight": down,
        "diffusion_model.patch_embedding.lora_up.weight": up,
        "diffusion_model.patch_embedding.diff_b": np.ones(128, np.float32),
        "diffusion_model.blocks.0.norm3.diff": np.ones(128, np.float32),
    }
    out = merged(base, file)
    kernel = base["patch_embedding.weight"] + np.einsum("or,rithw->oithw", up[..., 0, 0, 0], down)
    np.testing.assert_allclose(np.asarray(out["patch_embedding.weight"]), kernel, atol=1e-5)
    for key in ("patch_embedding.bias", "blocks.0.norm3.weight"):
        np.testing.assert_array_equal(np.asarray(out[key]), base[key] + 1)


def test_what_does_not_fit_is_listed(bases, matrices):
    file = lora_file("wan", matrices)
    a, b = (f"diffusion_model.{layer}" for layer in LAYERS["original"])
    file[f"{a}.lora_B.weight"] = np.zeros((128, RANK + 1), np.float32)
    del file[f"{b}.lora_B.weight"]
    file["diffusion_model.blocks.2.self_attn.q.lora_A.weight"] = np.zeros((RANK, 128), np.float32)
    file[f"{a}.dora_scale"] = np.zeros(128, np.float32)
    with pytest.raises(InputError) as error:
        merged(bases["diffusers"], file)
    assert sorted(str(error.value).split("\n")[1:]) == [
        f"! {a}.lora_B.weight (128, 4) for a weight (128, 128)",
        f"+ {a}.dora_scale",
        "+ diffusion_model.blocks.2.self_attn.q.lora_A.weight",
        f"- one of down and up beside {b}.lora_A.weight",
    ]


def test_of_much_that_does_not_fit_the_first_is_listed(bases, matrices):
    strange = {f"diffusion_model.vace.{n}.lora_A.weight": np.zeros((2, 2)) for n in range(300)}
    with pytest.raises(InputError) as error:
        merged(bases["original"], lora_file("wan", matrices) | strange)
    _, *lines, last = str(error.value).split("\n")
    assert len(lines) == 20 and last == "... and 280 more"


@pytest.mark.parametrize("key", [None, "lora_unet_down_blocks_0_attentions_0.alpha"])
def test_a_lora_of_another_model_is_refused(bases, key):
    file = {} if key is None else {key: np.float32(1)}
    with pytest.raises(InputError, match="touches nothing in this transformer"):
        merged(bases["original"], file)


@pytest.mark.parametrize("zero", ["alpha", "lora_B.weight"])
def test_a_lora_that_changes_nothing_is_refused(bases, matrices, zero):
    file = lora_file("wan", matrices, alpha=1)
    zeros = {key: np.zeros_like(file[key]) for key in file if key.endswith(zero)}
    with pytest.raises(InputError, match="the LoRA changes nothing: alpha or a matrix is 0"):
        merged(bases["original"], file | zeros)
    zeros.popitem()
    merged(bases["original"], file | zeros)


def test_two_names_of_one_matrix_are_refused(bases, matrices):
    file = lora_file("wan", matrices) | lora_file("kohya", matrices)
    with pytest.raises(InputError, match="duplicate key: .* are for one weight"):
        merged(bases["original"], file)


def test_a_base_that_is_no_transformer_is_refused(matrices):
    with pytest.raises(InputError, match="expected a Wan transformer; keys: conv1.weight"):
        merged({"conv1.weight": np.zeros(1)}, lora_file("wan", matrices))


def test_nothing_is_read_before_it_is_asked_for(bases, matrices):
    class Unread:
        shape, dtype = (128, 128), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            raise AssertionError("read too early")

    key = f"{LAYERS['original'][0]}.weight"
    out = merged(bases["original"] | {key: Unread()}, lora_file("kohya", matrices))[key]
    with pytest.raises(AssertionError, match="read too early"):
        np.asarray(out)
