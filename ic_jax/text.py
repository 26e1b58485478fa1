"""Prompts to context: the text encoder comes, reads and goes, or was run before."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from . import checkpoint
from .errors import InputError
from .model import find_model
from .model_folder import load_component
from .models.umt5 import UMT5Encoder, encode_by_layer
from .models.variants import Variant
from .tokenizer import load_tokenizer, tokenize

KIND = "prompts"


# Prompts that the encoder reads at once: umT5-XXL's attention works in 0.2 GB for each.
AT_ONCE = 8


class Read(NamedTuple):
    """A prompt as the text encoder read it."""

    rows: Float[np.ndarray, "l d"]
    cut: str | None
    """A line if it was too long; see `Tokens.cut`."""


class Embedded(NamedTuple):
    """What the generator reads instead of prompts."""

    context: Float[Array, "n l d"]
    cuts: list[str]
    """One line for every prompt that was too long; see `Tokens.cut`."""


def embed_prompts(model: str | Path, sizes: Variant, prompts: Sequence[str]) -> Embedded:
    """`embed_each`, all on the device.

    Raises:
        InputError: no list of prompts, or an empty one; what `embed_each` raises.
    """
    if isinstance(prompts, str) or not prompts:
        raise InputError(f"the prompts are {prompts!r}; give a list: [negative prompt, prompt]")
    read = list(embed_each(model, sizes, prompts))
    return Embedded(jnp.stack([each.rows for each in read]), [r.cut for r in read if r.cut])


def embed_each(model: str | Path, sizes: Variant, prompts: Sequence[str]) -> Iterator[Read]:
    """Read the text encoder of a model's folder ("nano": the bundled one), run it, and let it go.

    Each prompt becomes `sizes.dit.text_len` rows, zeros where there is no text, and the same
    rows whatever its neighbours are. The weights stay in the host's memory (umT5-XXL: 11 GB),
    from where they visit the device layer by layer, with a few prompts at a time. Without any
    prompts they are not read.

    Raises:
        InputError: a missing, damaged or foreign encoder or tokenizer.
    """
    if not prompts:
        return
    folder = find_model(model)
    tokenizer = load_tokenizer(folder, sizes.umt5)
    tokens = [tokenize(tokenizer, prompt, sizes.dit.text_len) for prompt in prompts]
    params = load_encoder(folder, sizes)
    for first in range(0, len(tokens), AT_ONCE):
        some = tokens[first : first + AT_ONCE]
        ids, mask = np.stack([t.ids for t in some]), np.stack([t.mask for t in some])
        context = jax.device_get(encode_by_layer(sizes.umt5, params, ids, mask, sizes.dtype))
        yield from (Read(*each) for each in zip(context, (t.cut for t in some)))


def load_encoder(folder: str | Path, sizes: Variant) -> PyTree:
    """The parameters of a model's text encoder, as numpy arrays.

    Matrices are in the variant's dtype, norms and position biases in float32.

    Raises:
        InputError: a missing, truncated or foreign checkpoint, or one of other shapes.
    """
    folder = Path(folder)
    cast = partial(_cast, sizes.dtype)
    generator = folder / "generator.safetensors"
    if not generator.exists():
        return load_component(folder, "umt5", expected_shapes(sizes), cast)
    params = checkpoint.load(generator)[0].get("umt5", {})
    expected = checkpoint.shapes(expected_shapes(sizes))
    if difference := checkpoint.shape_difference(checkpoint.shapes(params), expected):
        raise InputError(f"{generator}: does not fit the model: {difference.splitlines()[0]}")
    return jax.tree.map_with_path(lambda path, leaf: cast(path[-1].key, leaf), params)


def expected_shapes(sizes: Variant) -> PyTree:
    """The shapes of the encoder's parameters, without making any of them."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    encoder = UMT5Encoder(sizes.umt5)
    return jax.eval_shape(encoder.init, jax.random.key(0), tokens, tokens)["params"]


def save_context(
    path: str | Path,
    context: Float[Array, "2 l d"],
    prompts: Sequence[str],
    name: str,
    sizes: Variant,
) -> None:
    """Keep the embeddings of [negative prompt, prompt], made by the variant `name`, in a file.

    An earlier file of embeddings is replaced.

    Raises:
        InputError: `path` does not end in .safetensors, is another file, or cannot be written.
    """
    check_replaceable(path)
    record = {"kind": KIND, "variant": name, "prompts": list(prompts), "encoder": _encoder(sizes)}
    checkpoint.save(path, {"context": context}, record)


def load_context(path: str | Path, sizes: Variant) -> tuple[Float[Array, "2 l d"], tuple[str, str]]:
    """The embeddings in a file of `save_context`, and the prompts: both negative first.

    Every model with the same text encoder may use them: all Wan models have one.

    Raises:
        InputError: a missing or damaged file, one of something else, or of another encoder.
    """
    params, record = _read(Path(path))
    if record["encoder"] != _encoder(sizes):
        raise InputError(
            f"{path}: was made with the text encoder of {record['variant']}, which is another; "
            "make it again with `ic-jax embed`"
        )
    negative, prompt = record["prompts"]
    return jnp.asarray(params["context"]), (negative, prompt)


def check_replaceable(path: str | Path) -> None:
    """Raises InputError if `path` is no name for a file of embeddings, or somebody else's file."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: give a name that ends in .safetensors")
    if path.exists():
        _read(path)


def _read(path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; `ic-jax embed` makes one")
    foreign = InputError(f"{path}: is no file that `ic-jax embed` wrote, or is damaged")
    try:
        params, record = checkpoint.load(path)
    except InputError as error:
        raise foreign from error
    if record.get("kind") != KIND:
        raise foreign
    return params, record


def _encoder(sizes: Variant) -> dict[str, Any]:
    return {**asdict(sizes.umt5), "text_len": sizes.dit.text_len}


def _cast(dtype: str, key: str, leaf: np.ndarray) -> np.ndarray:
    multiplied = key.rpartition("/")[2] in ("kernel", "embedding")
    return leaf.astype(jnp.dtype(dtype if multiplied else "float32"), copy=False)
