import gc
import weakref
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file
from tiny_model import TINY, random_like
from tiny_tokenizer import COUNT, train

from ic_jax import checkpoint, text
from ic_jax.cli.embed import Embed
from ic_jax.errors import InputError
from ic_jax.model import BUNDLED
from ic_jax.model_folder import new_model_folder, write_component, write_manifest
from ic_jax.models.umt5 import UMT5Encoder, byte_tokens
from ic_jax.models.variants import VARIANTS

NANO = VARIANTS["nano"]
BYTES = replace(TINY, dtype="float32")
PIECES = replace(BYTES, umt5=replace(TINY.umt5, vocab=COUNT + 9))
PROMPTS = ["blurred", "a red ball"]


def write_model(path, params):
    """A converted model's folder, as far as text is concerned."""
    leaves = {"/".join(k.key for k in p): v for p, v in jax.tree.leaves_with_path(params)}
    leaves = {key: np.asarray(leaf) for key, leaf in leaves.items()}
    with new_model_folder(path) as folder:
        tensors = write_component(folder / "umt5", leaves, leaves.items())
        (folder / "spiece.model").write_bytes(train())
        components = {"umt5": {"tensors": tensors}}
        write_manifest(folder, {"variant": "Wan2.1-T2V-1.3B", "components": components})


@pytest.fixture(scope="module")
def params():
    return random_like(text.expected_shapes(PIECES))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, params):
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_model(path, params)
    return path


def test_the_bundled_model_reads_as_it_always_did():
    generator, _ = checkpoint.load(BUNDLED / "generator.safetensors")
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), generator["umt5"])
    prompts = ["", "a red ball rolls over a checkered floor"]
    ids, masks = (np.stack(a) for a in zip(*(byte_tokens(p, NANO.dit.text_len) for p in prompts)))
    expected = jax.jit(UMT5Encoder(NANO.umt5).apply)({"params": params}, ids, masks)
    context, cuts = text.embed_prompts(BUNDLED, NANO, prompts)
    np.testing.assert_allclose(context, expected, atol=1e-6)
    assert context.dtype == jnp.float32 and cuts == []


def test_a_converted_model_reads_with_its_own_tokenizer(folder, params):
    context, cuts = text.embed_prompts(folder, PIECES, PROMPTS)
    tokenizer = text.load_tokenizer(folder, PIECES.umt5)
    ids, masks, _ = zip(*(text.tokenize(tokenizer, prompt, 8) for prompt in PROMPTS))
    encoder = UMT5Encoder(PIECES.umt5)
    expected = encoder.apply({"params": params}, jnp.stack(ids), jnp.stack(masks))
    np.testing.assert_allclose(context, expected, atol=1e-6)
    assert context.shape == (2, 8, 16)
    assert cuts == []


def test_rows_of_padding_are_zero_and_no_others(folder):
    context, _ = text.embed_prompts(folder, PIECES, ["", "a ball", "the quick brown fox jumps"])
    assert [np.any(row, axis=-1).sum() for row in np.asarray(context)][::2] == [1, 8]
    tokenizer = text.load_tokenizer(folder, PIECES.umt5)
    count = len(tokenizer.encode("a ball")) + 1
    assert np.any(context[1], axis=-1).tolist() == [True] * count + [False] * (8 - count)


def test_a_prompt_does_not_depend_on_its_neighbours(folder):
    one, other = (text.embed_prompts(folder, PIECES, [*PROMPTS[:1], p])[0] for p in ("", "a cat"))
    np.testing.assert_array_equal(one[0], other[0])
    assert np.abs(one[1] - other[1]).max() > 0.1


def test_many_prompts_are_read_a_few_at_a_time(folder, monkeypatch):
    encode, sizes = text.encode_by_layer, []
    monkeypatch.setattr(
        text, "encode_by_layer", lambda *given: sizes.append(len(given[2])) or encode(*given)
    )
    prompts = [f"ball {n}" for n in range(5)]
    together = list(text.embed_each(folder, PIECES, prompts))
    monkeypatch.setattr(text, "AT_ONCE", 2)
    for each, one in zip(text.embed_each(folder, PIECES, prompts), together, strict=True):
        assert isinstance(each.rows, np.ndarray) and each.cut == one.cut
        np.testing.assert_allclose(each.rows, one.rows, atol=1e-6)
    assert sizes == [5, 2, 2, 1]


def test_without_prompts_no_encoder_is_read(tmp_path):
    assert list(text.embed_each(tmp_path / "absent", PIECES, [])) == []


def test_prompts_that_were_cut_are_reported(folder):
    long = "the camera moves slowly to the left"
    context, cuts = text.embed_prompts(folder, PIECES, ["", long])
    (cut,) = cuts
    assert cut.startswith("a prompt is ") and "the model reads 7: kept up to '...the" in cut
    again, _ = text.embed_prompts(folder, PIECES, ["", long + " and back"])
    np.testing.assert_array_equal(context, again)


def test_nothing_holds_the_encoder_afterwards(folder, monkeypatch):
    load_encoder, held = text.load_encoder, []

    def loaded(*args):
        params = load_encoder(*args)
        held.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(params))
        return params

    monkeypatch.setattr(text, "load_encoder", loaded)
    before = jax.live_arrays()
    context, _ = text.embed_prompts(folder, PIECES, PROMPTS)
    gc.collect()
    assert held and not any(ref() is not None for ref in held)
    left = [a.shape for a in jax.live_arrays() if not any(a is b for b in before)]
    assert left == [context.shape]


def test_matrices_are_in_the_models_dtype_and_the_rest_in_float32(folder):
    half = replace(PIECES, dtype="bfloat16")
    params = text.load_encoder(folder, half)
    dtypes = {p[-1].key: leaf.dtype for p, leaf in jax.tree.leaves_with_path(params)}
    assert dtypes == {
        "kernel": jnp.bfloat16,
        "embedding": jnp.bfloat16,
        "scale": jnp.float32,
        "position_bias": jnp.float32,
    }
    context, _ = text.embed_prompts(folder, half, PROMPTS)
    exact, _ = text.embed_prompts(folder, PIECES, PROMPTS)
    assert context.dtype == jnp.bfloat16
    np.testing.assert_allclose(context.astype(jnp.float32), exact, atol=0.1)
    assert np.any(context.astype(jnp.float32) != exact)


def test_an_encoder_of_other_shapes_is_refused(folder):
    with pytest.raises(InputError, match="umt5 does not fit the model"):
        text.load_encoder(folder, NANO)


def test_a_generator_of_other_shapes_is_refused():
    wrong = replace(NANO, umt5=replace(NANO.umt5, dim=64))
    with pytest.raises(InputError, match=r"generator\.safetensors: does not fit the model: "):
        text.load_encoder(BUNDLED, wrong)


def test_a_generator_without_a_text_encoder_is_refused(tmp_path):
    checkpoint.save(tmp_path / "generator.safetensors", {"dit": {"a": np.zeros(1)}}, {})
    with pytest.raises(InputError, match="does not fit the model: - "):
        text.load_encoder(tmp_path, NANO)


@pytest.fixture
def saved(tmp_path, folder):
    """A file of embeddings, and what was saved in it."""
    context, _ = text.embed_prompts(folder, replace(PIECES, dtype="bfloat16"), PROMPTS)
    path = tmp_path / "prompts.safetensors"
    text.save_context(path, context, PROMPTS, "tiny", PIECES)
    return path, context


def test_saved_embeddings_come_back_bit_for_bit(saved):
    path, context = saved
    loaded, prompts = text.load_context(path, PIECES)
    assert prompts == tuple(PROMPTS)
    assert loaded.dtype == context.dtype == jnp.bfloat16
    np.testing.assert_array_equal(loaded, context)
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_an_earlier_file_is_replaced(saved):
    path, context = saved
    text.save_context(path, 2 * context, ["", "other"], "tiny", PIECES)
    loaded, prompts = text.load_context(path, PIECES)
    assert prompts == ("", "other")
    np.testing.assert_array_equal(loaded, 2 * context)


@pytest.mark.parametrize("change", [{"umt5": TINY.umt5}, {"dit": replace(TINY.dit, text_len=9)}])
def test_embeddings_of_another_encoder_are_refused(saved, change):
    with pytest.raises(InputError, match="made with the text encoder of tiny, which is another"):
        text.load_context(saved[0], replace(PIECES, **change))


def test_models_of_one_encoder_share_embeddings(saved):
    other = replace(PIECES, dit=replace(TINY.dit, num_layers=3), steps=9)
    np.testing.assert_array_equal(text.load_context(saved[0], other)[0], saved[1])


@pytest.mark.parametrize("foreign", ["other", "checkpoint", "truncated", "text"])
def test_a_foreign_file_is_neither_read_nor_replaced(tmp_path, saved, foreign):
    path = tmp_path / "mine.safetensors"
    if foreign == "checkpoint":
        checkpoint.save(path, {"a": np.zeros(2)}, {"variant": "nano"})
    elif foreign == "other":
        save_file({"context": np.zeros((2, 8, 16), np.float32)}, path)
    else:
        path.write_bytes(saved[0].read_bytes()[:-9] if foreign == "truncated" else b"a cat")
    before = path.read_bytes()
    with pytest.raises(InputError, match="is no file that `ic-jax embed` wrote, or is damaged"):
        text.load_context(path, PIECES)
    with pytest.raises(InputError, match="mine.safetensors: is no file"):
        text.save_context(path, saved[1], PROMPTS, "tiny", PIECES)
    assert path.read_bytes() == before


def test_a_missing_file_and_a_folder_are_one_line(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(InputError, match="no such file; `ic-jax embed` makes one"):
            text.load_context(path, PIECES)


def test_a_file_must_be_named_after_its_format(tmp_path, saved):
    with pytest.raises(InputError, match="give a name that ends in .safetensors"):
        text.save_context(tmp_path / "prompts.npz", saved[1], PROMPTS, "tiny", PIECES)
    assert not (tmp_path / "prompts.npz").exists()


def test_the_command_keeps_what_the_encoder_makes(tmp_path, capsys):
    out = tmp_path / "new" / "prompts.safetensors"
    Embed(prompt="a red ball", out=out).run()
    expected, _ = text.embed_prompts(BUNDLED, NANO, ["", "a red ball"])
    context, prompts = text.load_context(out, NANO)
    np.testing.assert_array_equal(context, expected)
    assert prompts == ("", "a red ball")
    shown = capsys.readouterr()
    assert shown.out == f"negative prompt and prompt for nano in {out}\n" and shown.err == ""


def test_the_command_says_what_it_cut(tmp_path, capsys):
    out = tmp_path / "prompts.safetensors"
    Embed(prompt="a", negative_prompt="two goldfish swim " * 9, out=out).run()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("ic-jax: a prompt is 161 tokens, the model reads 63: kept up to '...")


def test_the_command_looks_at_its_output_before_it_loads_anything(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "load_encoder", lambda *_: pytest.fail("loaded too early"))
    (tmp_path / "mine.safetensors").write_bytes(b"mine")
    with pytest.raises(InputError, match="mine.safetensors: is no file that `ic-jax embed`"):
        Embed(out=tmp_path / "mine.safetensors").run()
