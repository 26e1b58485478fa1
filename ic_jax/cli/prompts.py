"""What the jobs of a batch tell the generator: each text encoded once, put together when needed."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .. import text
from ..models.variants import Variant
from .generator import Generator, Told


class Prompts(NamedTuple):
    """All texts of a batch, as the encoder read them."""

    sizes: Variant
    read: Mapping[str, text.Read]

    def told(self, generator: Generator) -> Told:
        """Raises InputError where a file of embeddings is not what it was."""
        if generator.context is not None:
            return Told(*text.load_context(generator.context, self.sizes), [])
        asked = generator.asked(self.sizes)
        read = [self.read[each] for each in asked]
        return Told(np.stack([each.rows for each in read]), asked, [r.cut for r in read if r.cut])


def read_prompts(folder: Path, sizes: Variant, generators: Iterable[Generator]) -> Prompts:
    """Reads what has not been embedded before; without any, no text encoder.

    Raises:
        InputError: a missing, damaged or foreign encoder or tokenizer.
    """
    pairs = [each.asked(sizes) for each in generators if each.context is None]
    texts = list(dict.fromkeys(one for pair in pairs for one in pair))
    return Prompts(sizes, dict(zip(texts, text.embed_each(folder, sizes, texts), strict=True)))
