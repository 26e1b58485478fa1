"""A model in memory: its sizes, its weights, and what was measured about it."""

from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from .calibration import Calibration, from_record
from .checkpoint import load, shape_difference, shapes
from .errors import InputError
from .model_folder import load_component, read_manifest
from .models.clip_vision import CLIPVision
from .models.variants import Variant, variant
from .models.wan_dit import IMAGE_TOKENS, WanDiT
from .models.wan_vae import WanVAE

BUNDLED = Path(str(files("ic_jax") / "nano"))


class Weights(NamedTuple):
    """Parameters of the networks in the loop: a pytree, always an argument of what is jitted.

    The text encoder is not among them: prompts become embeddings before (`text`).
    """

    vae: PyTree
    dit: PyTree
    dit_low: PyTree | None = None
    """The expert of low noise, in models of two."""
    clip: PyTree | None = None
    """The encoder of the first frame, in some image models."""
    calibration: Calibration = Calibration()
    """What was measured about them."""


class Model(NamedTuple):
    """What `load_model` returns and `direct` takes."""

    name: str
    variant: Variant
    weights: Weights
    calibration: dict[str, Any]
    """As stored: `variance_scale`, the scale of each mask's v, and `Calibration`'s."""


def load_model(path: str | Path = "nano") -> Model:
    """The bundled model, or a folder that `ic-jax convert` or `experiments.train_nano` wrote.

    The transformer's matrices come in the variant's dtype, its norms and modulation as stored,
    and the autoencoder in float32, whatever they are on disk.

    Raises:
        InputError: a missing, truncated or foreign folder, or one of another model's shapes.
    """
    folder = find_model(path)
    return calibrated(load_uncalibrated(folder), identify(folder)[1], folder)


def load_uncalibrated(path: str | Path) -> Model:
    """`load_model`, but nothing is known of how wrong the model is."""
    folder = find_model(path)
    name, _ = identify(folder)
    sizes = variant(name)
    parts = _of_two_files(folder, sizes) if _is_two_files(folder) else _of_parts(folder, sizes)
    return Model(name, sizes, Weights(**parts), {})


def calibrated(model: Model, record: dict[str, Any], where: str | Path) -> Model:
    """The model with the calibration that `where` holds, in place of its own.

    Raises:
        InputError: a record that `ic-jax calibrate` would not have written.
    """
    arrays = from_record(record, where, model.variant.vae.latent_channels)
    weights = model.weights._replace(calibration=arrays)
    return model._replace(weights=weights, calibration=record)


def find_model(path: str | Path) -> Path:
    """The folder of a model; "nano" is the bundled one. Raises InputError if there is none."""
    folder = BUNDLED if str(path) == "nano" else Path(path)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder; leave --model out for the bundled one")
    return folder


def identify(folder: Path) -> tuple[str, dict[str, Any]]:
    """The variant's name and the calibration, without reading any weights."""
    if _is_two_files(folder):
        _, manifest = load(folder / "vae.safetensors")
    else:
        manifest = read_manifest(folder)
    return manifest.get("variant", "nano"), manifest.get("calibration", {})


def expected_shapes(sizes: Variant) -> dict[str, PyTree]:
    """The shapes of every parameter of `Weights`, without making any of them."""
    key = jax.random.key(0)
    frame = jnp.zeros((1, 5, sizes.vae.spatial_factor * 2, sizes.vae.spatial_factor * 2, 3))
    noisy = jnp.zeros((1, *sizes.dit.patch, sizes.dit.in_channels))
    context = jnp.zeros((1, sizes.dit.text_len, sizes.dit.text_dim))
    image = None if sizes.clip is None else jnp.zeros((1, IMAGE_TOKENS, sizes.clip.dim))
    dit = jax.eval_shape(WanDiT(sizes.dit).init, key, noisy, jnp.zeros(1), context, image)
    trees = {"vae": jax.eval_shape(WanVAE(sizes.vae).init, key, frame), "dit": dit}
    if sizes.boundary is not None:
        trees["dit_low"] = dit
    if sizes.clip is not None:
        pixels = jnp.zeros((1, sizes.clip.image, sizes.clip.image, 3))
        trees["clip"] = jax.eval_shape(CLIPVision(sizes.clip).init, key, pixels)
    return {name: tree["params"] for name, tree in trees.items()}


def matrices_as(dtype: str):
    """A cast of what is multiplied in `dtype`; norms, modulation and time stay as they are."""

    def cast(name: str, leaf: np.ndarray) -> np.ndarray:
        *modules, last = name.split("/")
        in_float32 = modules and modules[0] in ("time_embedding", "head")
        if in_float32 or last not in ("kernel", "embedding"):
            return leaf
        return leaf.astype(jnp.dtype(dtype), copy=False)

    return cast


def _as_float32(name: str, leaf: np.ndarray) -> np.ndarray:
    return leaf.astype(np.float32, copy=False)


def _is_two_files(folder: Path) -> bool:
    return (folder / "vae.safetensors").exists()


def _of_parts(folder: Path, sizes: Variant) -> dict[str, PyTree]:
    parts = {}
    for name, target in expected_shapes(sizes).items():
        cast = _as_float32 if name == "vae" else matrices_as(sizes.dtype)
        # Leaf by leaf onto the device: the host never holds a network.
        to_device = lambda key, leaf, cast=cast: jnp.asarray(cast(key, leaf))
        parts[name] = load_component(folder, name, target, to_device)
    return parts


def _of_two_files(folder: Path, sizes: Variant) -> dict[str, PyTree]:
    """The bundled model's layout: the autoencoder, and the transformer with its text encoder."""
    vae, _ = load(folder / "vae.safetensors")
    generator, _ = load(folder / "generator.safetensors")
    parts = {"vae": vae, "dit": generator.get("dit", {})}
    difference = shape_difference(shapes(parts), shapes(expected_shapes(sizes)))
    if difference:
        raise InputError(f"{folder}: weights do not fit the model: {difference.splitlines()[0]}")
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), parts)
