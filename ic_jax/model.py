"""A model in memory: its sizes, its weights, and what was measured about it."""

from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from .checkpoint import load, shape_difference, shapes
from .errors import InputError
from .models.umt5 import UMT5Encoder, byte_tokens
from .models.variants import VARIANTS, Variant, variant
from .models.wan_dit import WanDiT
from .models.wan_vae import WanVAE

BUNDLED = Path(str(files("ic_jax") / "nano"))


class Weights(NamedTuple):
    """Parameters of the three networks: a pytree, always an argument of what is jitted."""

    vae: PyTree
    dit: PyTree
    umt5: PyTree


class Model(NamedTuple):
    """What `load_model` returns and `direct` takes."""

    name: str
    variant: Variant
    weights: Weights
    calibration: dict[str, float]
    """Measured once per model: `response_scale`, the scale of v (see latent_mask.response)."""


def load_model(path: str | Path = "nano") -> Model:
    """The bundled model, or a folder with vae.safetensors and generator.safetensors.

    The second file holds the transformer and the text encoder. `experiments.train_nano` writes
    both; `python -m convert` writes one network at a time, in a layout that is not read here.
    Weights are float32 in memory, whatever they are on disk.

    Raises:
        InputError: a missing, truncated or foreign file, one of another model's shapes, or a
            model that does not read bytes.
    """
    folder = BUNDLED if str(path) == "nano" else Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; leave --model out for the bundled one")
    vae, manifest = load(folder / "vae.safetensors")
    generator, _ = load(folder / "generator.safetensors")
    name = manifest.get("variant", "nano")
    sizes = variant(name)
    if sizes.umt5.vocab != VARIANTS["nano"].umt5.vocab:
        raise InputError(f"{folder}: {name} needs a tokenizer that is not here yet; use nano")
    parts = {"vae": vae, **generator}
    expected = expected_shapes(sizes)
    _check(folder, parts, expected)
    weights = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), parts)
    return Model(name, sizes, Weights(**weights), manifest.get("calibration", {}))


def expected_shapes(sizes: Variant) -> dict[str, PyTree]:
    """The shapes of every parameter of a variant, without making any of them."""
    key = jax.random.key(0)
    t, h, w, _ = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)
    frame = jnp.zeros((1, 5, sizes.vae.spatial_factor * 2, sizes.vae.spatial_factor * 2, 3))
    noisy = jnp.zeros((1, t, h, w, sizes.dit.in_channels))
    context = jnp.zeros((1, sizes.dit.text_len, sizes.dit.text_dim))
    tokens = jnp.zeros((1, sizes.dit.text_len), jnp.int32)
    trees = {
        "vae": jax.eval_shape(WanVAE(sizes.vae).init, key, frame),
        "dit": jax.eval_shape(WanDiT(sizes.dit).init, key, noisy, jnp.zeros(1), context),
        "umt5": jax.eval_shape(UMT5Encoder(sizes.umt5).init, key, tokens, tokens),
    }
    return {name: tree["params"] for name, tree in trees.items()}


def _check(folder: Path, found: dict[str, PyTree], expected: dict[str, PyTree]) -> None:
    difference = shape_difference(shapes(found), shapes(expected))
    if difference:
        raise InputError(f"{folder}: weights do not fit the model: {difference.splitlines()[0]}")


def tokenize(sizes: Variant, prompts: list[str]) -> tuple[Int[Array, "b l"], Bool[Array, "b l"]]:
    """Token ids and their mask, one row per prompt. The small model reads bytes."""
    ids, masks = zip(*(byte_tokens(p, sizes.dit.text_len) for p in prompts))
    return jnp.asarray(ids), jnp.asarray(masks)


def embed(
    sizes: Variant, umt5: PyTree, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
) -> Float[Array, "b l d"]:
    """Context for the generator; zeros where there is no text."""
    return UMT5Encoder(sizes.umt5).apply({"params": umt5}, tokens, mask)
