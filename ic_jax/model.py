"""A model in memory: its sizes, its weights, and what was measured about it."""

import hashlib
from collections.abc import Callable
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Sharding
from jaxtyping import PyTree

from .calibration import Calibration, from_record
from .checkpoint import load, shape_difference, shapes
from .errors import InputError
from .model_folder import MANIFEST, component_tensors, load_component, read_manifest
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


def load_model(path: str | Path = "nano", shardings: Weights | None = None) -> Model:
    """The bundled model, or a folder that `ic-jax convert` or `experiments.train_nano` wrote.

    The transformer's matrices come in the variant's dtype, its norms and modulation as stored,
    and the autoencoder in float32, whatever they are on disk.

    `shardings` says where each weight goes: a tree of `jax.sharding.Sharding`, or one of them
    for a whole network. Every tensor is read, checked, and cut as it is handed to the devices,
    so neither the host nor any device ever holds a network that is to be spread over several.

    Raises:
        InputError: a missing, truncated or foreign folder, or one of another model's shapes.
    """
    folder = find_model(path)
    return calibrated(load_uncalibrated(folder, shardings), identify(folder)[1], folder)


def load_uncalibrated(path: str | Path, shardings: Weights | None = None) -> Model:
    """`load_model`, but nothing is known of how wrong the model is."""
    folder = find_model(path)
    name, _ = identify(folder)
    sizes = variant(name)
    read = _of_two_files if _is_two_files(folder) else _of_parts
    return Model(name, sizes, Weights(**read(folder, sizes, shardings)), {})


def abstract_model(path: str | Path) -> Model:
    """`load_model` without its weights: `jax.ShapeDtypeStruct` stands for each of them.

    Raises:
        InputError: a missing or foreign folder, or one of another model's shapes.
    """
    folder = find_model(path)
    name, record = identify(folder)
    sizes = variant(name)
    abstract = expected_shapes if _is_two_files(folder) else partial(_abstract_parts, folder)
    parts = abstract(sizes)
    return calibrated(Model(name, sizes, Weights(**parts), {}), record, folder)


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
    """The variant's name and the calibration.

    No weights of a converted model are read. Where there are two files, as of the bundled model,
    that of the autoencoder is, a few MB, and its checksums are compared.

    Raises:
        InputError: a manifest, or such a file, that is missing, damaged or foreign.
    """
    if _is_two_files(folder):
        _, manifest = load(folder / "vae.safetensors")
    else:
        manifest = read_manifest(folder)
    return manifest.get("variant", "nano"), manifest.get("calibration", {})


def fingerprint(folder: Path) -> str:
    """Tells two models apart whose names and sizes are the same, without reading large weights."""
    files = ["vae.safetensors", "generator.safetensors"] if _is_two_files(folder) else [MANIFEST]
    digest = hashlib.sha256()
    for name in files:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


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


def matrices_as(dtype: str) -> Callable[[str, np.ndarray], np.ndarray]:
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


def _cast_of(network: str, sizes: Variant) -> Callable[[str, np.ndarray], np.ndarray]:
    return _as_float32 if network == "vae" else matrices_as(sizes.dtype)


def _is_two_files(folder: Path) -> bool:
    return (folder / "vae.safetensors").exists()


def _of_parts(folder: Path, sizes: Variant, shardings: Weights | None) -> dict[str, PyTree]:
    parts = {}
    for name, target in expected_shapes(sizes).items():
        cast, places = _cast_of(name, sizes), _places(shardings, name, target)
        # Leaf by leaf onto the devices: the host never holds a network.
        to_devices = lambda key, leaf, cast=cast, places=places: _placed(
            cast(key, leaf), places.get(key)
        )
        parts[name] = load_component(folder, name, target, to_devices)
    return parts


def _abstract_parts(folder: Path, sizes: Variant) -> dict[str, PyTree]:
    parts = {}
    for name, target in expected_shapes(sizes).items():
        cast, tensors = _cast_of(name, sizes), component_tensors(folder, name, target)
        kept = {
            key: jax.ShapeDtypeStruct(
                tuple(tensor["shape"]), cast(key, np.zeros(0, jnp.dtype(tensor["dtype"]))).dtype
            )
            for key, tensor in tensors.items()
        }
        parts[name] = unflatten_dict(kept, sep="/")
    return parts


def _of_two_files(folder: Path, sizes: Variant, shardings: Weights | None) -> dict[str, PyTree]:
    """The bundled model's layout: the autoencoder, and the transformer with its text encoder."""
    vae, _ = load(folder / "vae.safetensors")
    generator, _ = load(folder / "generator.safetensors")
    parts, expected = {"vae": vae, "dit": generator.get("dit", {})}, expected_shapes(sizes)
    difference = shape_difference(shapes(parts), shapes(expected))
    if difference:
        raise InputError(f"{folder}: weights do not fit the model: {difference.splitlines()[0]}")
    placed = {}
    for name, part in parts.items():
        places = _places(shardings, name, expected[name])
        leaves = {
            key: _placed(_as_float32(key, leaf), places.get(key))
            for key, leaf in flatten_dict(part, sep="/").items()
        }
        placed[name] = unflatten_dict(leaves, sep="/")
    return placed


def _places(shardings: Weights | None, network: str, target: PyTree) -> dict[str, Sharding]:
    """Where each weight of a network goes, by its key; empty for the default device."""
    tree = None if shardings is None else getattr(shardings, network)
    return {} if tree is None else flatten_dict(jax.tree.broadcast(tree, target), sep="/")


def _placed(leaf: np.ndarray, sharding: Sharding | None) -> jax.Array:
    if sharding is None:
        return jnp.asarray(leaf)
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: leaf[index])
