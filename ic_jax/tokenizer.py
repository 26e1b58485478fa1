"""Text to token ids: cleaning, bytes or a checkpoint's own pieces, and what had to be cut."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import ftfy
import numpy as np
from jaxtyping import Bool, Int

from .errors import InputError
from .models.umt5 import BYTE_OFFSET, BYTE_VOCAB, EOS, PAD, UMT5Config, byte_ids, padded

# Tables of embeddings end in a few hundred rows that no piece uses.
MOST_UNUSED = 1024
QUOTED = 30


class Tokens(NamedTuple):
    """One prompt as the encoder reads it."""

    ids: Int[np.ndarray, " l"]
    mask: Bool[np.ndarray, " l"]
    cut: str | None
    """One line that says how the prompt was shortened; None if it fitted."""


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back, without end mark or padding."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


class ByteTokenizer:
    """The UTF-8 bytes of the text, for encoders whose vocabulary is that of ByT5."""

    def encode(self, text: str) -> list[int]:
        return byte_ids(text)

    def decode(self, ids: Sequence[int]) -> str:
        return bytes(i - BYTE_OFFSET for i in ids).decode(errors="ignore")


class PieceTokenizer:
    """A sentencepiece model (arXiv 1808.06226). "</s>" and its like in a text are plain text."""

    def __init__(self, path: Path, vocab: int):
        """Read `path` for an encoder with `vocab` embeddings.

        Raises:
            InputError: no such file, not a sentencepiece model, or one of another encoder.
        """
        # A few megabytes of C++ that the bundled model can do without.
        from sentencepiece import SentencePieceProcessor

        try:
            serialized = path.read_bytes()
        except OSError as error:
            raise InputError(
                f"{path}: cannot be read ({error.strerror}); copy the spiece.model that comes "
                "with the checkpoint, in google/umt5-xxl/ or tokenizer/"
            ) from error
        try:
            # No bytes at all would be taken for a model without pieces.
            self._pieces = SentencePieceProcessor(model_proto=serialized or b"none")
        except RuntimeError as error:
            raise InputError(f"{path}: is not a sentencepiece model; copy it again") from error
        _check(path, self._pieces, vocab)

    def encode(self, text: str) -> list[int]:
        return self._pieces.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._pieces.decode(list(ids))


def load_tokenizer(folder: str | Path, encoder: UMT5Config) -> Tokenizer:
    """The tokenizer of a model: folder/spiece.model, or bytes if that is all the encoder knows.

    Raises:
        InputError: a missing or wrong spiece.model.
    """
    if encoder.vocab == BYTE_VOCAB:
        return ByteTokenizer()
    return PieceTokenizer(Path(folder) / "spiece.model", encoder.vocab)


def tokenize(tokenizer: Tokenizer, prompt: str, length: int) -> Tokens:
    """The cleaned prompt as `length` ids: what fits of it, the end mark, padding."""
    ids = tokenizer.encode(clean(prompt))
    room, cut = length - 1, None
    if len(ids) > room:
        end = tokenizer.decode(ids[:room])[-QUOTED:]
        cut = f"a prompt is {len(ids)} tokens, the model reads {room}: kept up to '...{end}'"
    return Tokens(*padded(ids, length), cut)


def clean(prompt: str) -> str:
    """Wan's cleaning: mis-decoded characters and HTML entities repaired, white space collapsed.

    Entities are unescaped twice, for text that was escaped twice. Case and punctuation stay.
    """
    text = html.unescape(html.unescape(ftfy.fix_text(prompt)))
    return " ".join(text.split())


def _check(path: Path, pieces, vocab: int) -> None:
    special = pieces.pad_id(), pieces.eos_id()
    if special != (PAD, EOS):
        raise InputError(
            f"{path}: is the tokenizer of another model: its padding and end mark are {special}, "
            f"not {(PAD, EOS)}"
        )
    found = pieces.get_piece_size()
    if not vocab - MOST_UNUSED <= found <= vocab:
        raise InputError(
            f"{path}: is the tokenizer of another model: it has {found} pieces, "
            f"the text encoder {vocab} embeddings"
        )
