import pytest
from sentencepiece import SentencePieceProcessor
from tiny_tokenizer import COUNT, SENTENCES, train
from tokenizers.models import Unigram
from transformers import T5Tokenizer

from ic_jax.errors import InputError
from ic_jax.models.umt5 import UMT5Config
from ic_jax.tokenizer import ByteTokenizer, clean, load_tokenizer, tokenize


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    (folder / "spiece.model").write_bytes(train())
    return folder


def encoder(vocab):
    return UMT5Config(vocab=vocab, dim=16, ffn_dim=32, heads=2, head_dim=8, layers=1)


@pytest.mark.parametrize(
    "prompt, cleaned",
    [
        ("  A red\tball,\r\n\n rolling!  ", "A red ball, rolling!"),
        ("salt &amp; pepper", "salt & pepper"),
        ("salt &amp;amp; pepper", "salt & pepper"),
        ("&amp;nbsp;left&nbsp;right", "left right"),
        ("cafÃ© â€” night", "café — night"),
        ("“quoted” ﬁsh", '"quoted" fish'),
        ("東京　の夜", "東京 の夜"),
        ("\ufeffsmile 😀", "smile 😀"),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_cleaning(prompt, cleaned):
    assert clean(prompt) == cleaned
    assert clean(cleaned) == cleaned


AWKWARD = [
    *SENTENCES,
    "",
    "  two  spaces, and some before",
    "a\nnew\tline",
    "日本 東京 の 夜",
    "😀 fish 👩‍🚀",
    "ﬁne ½ Ａ cafe\u0301 caf\u200be",
    "a\u3000cat\u00a0and ▁ a dog",
    "Ünï çødé zażółć Привет",
    "the quick brown fox " * 30,
]


@pytest.fixture(scope="module")
def reference(folder):
    """T5's, whose class has T5's own third piece built in, with the unknown and bytes of umT5's."""
    pieces = SentencePieceProcessor(model_proto=train())
    scores = [(pieces.id_to_piece(n), pieces.get_score(n)) for n in range(COUNT)]
    tokenizer = T5Tokenizer.from_pretrained(folder, extra_ids=0)
    tokenizer.backend_tokenizer.model = Unigram(scores, pieces.unk_id(), byte_fallback=True)
    return tokenizer


@pytest.mark.parametrize("text", AWKWARD)
def test_pieces_equal_those_of_transformers(folder, reference, text):
    tokenizer = load_tokenizer(folder, encoder(COUNT))
    assert [*tokenizer.encode(text), 1] == reference(text).input_ids
    if text.strip():
        tokens = tokenize(tokenizer, clean(text), 12)
        expected = reference(clean(text), max_length=12, padding="max_length", truncation=True)
        assert tokens.ids.tolist() == expected.input_ids
        assert tokens.mask.tolist() == [bool(m) for m in expected.attention_mask]


@pytest.mark.parametrize("special", ["</s>", "<pad>", "<s>", "<unk>"])
def test_special_pieces_are_text_to_us_and_not_to_transformers(folder, reference, special):
    ids = load_tokenizer(folder, encoder(COUNT)).encode(f"a {special} cat")
    assert not {0, 1, 2, 3} & set(ids) and len(ids) > 5
    number = {"<pad>": 0, "</s>": 1, "<s>": 2, "<unk>": 3}[special]
    assert reference(f"a {special} cat").input_ids[1] == number


def test_a_prompt_that_fits_is_not_cut(folder):
    for tokenizer in (ByteTokenizer(), load_tokenizer(folder, encoder(COUNT))):
        count = len(tokenizer.encode("a cat"))
        tokens = tokenize(tokenizer, "a  cat", count + 1)
        assert tokens.cut is None
        assert tokens.ids.tolist() == [*tokenizer.encode("a cat"), 1]
        assert tokens.mask.all()


def test_a_cut_prompt_says_what_was_kept(folder):
    tokenizer = load_tokenizer(folder, encoder(COUNT))
    long = " ".join(SENTENCES[:3])
    ids = tokenizer.encode(long)
    tokens = tokenize(tokenizer, long, 17)
    assert tokens.ids.tolist() == [*ids[:16], 1]
    kept = tokenizer.decode(ids[:16])
    assert kept and long.startswith(kept)
    assert tokens.cut == (
        f"a prompt is {len(ids)} tokens, the model reads 16: kept up to '...{kept[-30:]}'"
    )


def test_bytes_are_cut_between_characters_in_what_is_said():
    tokens = tokenize(ByteTokenizer(), "ab é", 5)
    assert tokens.ids.tolist() == [ord("a") + 3, ord("b") + 3, ord(" ") + 3, 0xC3 + 3, 1]
    assert tokens.cut == "a prompt is 5 tokens, the model reads 4: kept up to '...ab '"


def test_the_end_mark_is_kept_when_nothing_else_fits():
    assert tokenize(ByteTokenizer(), "cat", 1).ids.tolist() == [1]


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x00" * 64, None])
def test_a_file_that_is_no_tokenizer_is_refused(tmp_path, folder, content):
    whole = (folder / "spiece.model").read_bytes()
    (tmp_path / "spiece.model").write_bytes(whole[:999] if content is None else content)
    with pytest.raises(InputError, match=r"spiece\.model: is not a sentencepiece model.*") as error:
        load_tokenizer(tmp_path, encoder(COUNT))
    assert "\n" not in str(error.value)


def test_a_missing_tokenizer_says_where_to_find_it(tmp_path):
    with pytest.raises(InputError, match=r"spiece\.model: cannot be read .*google/umt5-xxl/"):
        load_tokenizer(tmp_path, encoder(COUNT))


@pytest.mark.parametrize("vocab", [COUNT - 1, COUNT + 2000])
def test_a_tokenizer_of_another_size_is_refused(folder, vocab):
    with pytest.raises(InputError, match=f"{COUNT} pieces, the text encoder {vocab} embeddings"):
        load_tokenizer(folder, encoder(vocab))


@pytest.mark.parametrize("change", [{"pad_id": -1}, {"eos_id": 2, "bos_id": 1}])
def test_other_special_ids_are_refused(tmp_path, change):
    (tmp_path / "spiece.model").write_bytes(train(**change))
    with pytest.raises(InputError, match="of another model: its padding and end mark are"):
        load_tokenizer(tmp_path, encoder(COUNT))


def test_an_encoder_of_bytes_needs_no_file(tmp_path):
    tokenizer = load_tokenizer(tmp_path, encoder(259))
    assert tokenizer.decode(tokenizer.encode("zażółć")) == "zażółć"
