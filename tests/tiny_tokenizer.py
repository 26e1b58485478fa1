"""A sentencepiece model of a few sentences, with the special pieces of the released umT5's."""

import functools
import io

import sentencepiece

SENTENCES = (
    "a red ball rolls across a grey floor",
    "two goldfish swim in a glass bowl",
    "the camera moves slowly to the left",
    "une tasse de café sur la table",
    "東京の夜、雨が降る",
    "a cat, a dog & a bird!",
)
SPECIAL = {"pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3}
COUNT = 312
"""Pieces: these four, one for each byte, and those of the sentences."""


@functools.cache
def train(**changed: int) -> bytes:
    """A spiece.model, the same in every run; `changed` are ids of special pieces."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        vocab_size=400,
        hard_vocab_limit=False,
        byte_fallback=True,
        num_threads=1,
        minloglevel=2,
        **SPECIAL | changed,
    )
    return model.getvalue()
