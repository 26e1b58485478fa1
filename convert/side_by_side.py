"""A network here and in torch, module by module, on one small input.

Large networks run as one block at a time, which takes the parameters of each in turn: neither
side ever holds more than one block in float32.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, PyTree

from ic_jax.models.clip_vision import CLIPVision
from ic_jax.models.umt5 import UMT5Encoder
from ic_jax.models.wan_dit import IMAGE_TOKENS, WanDiT
from ic_jax.models.wan_vae import decode, encode

from . import torch_reference
from .network import Network
from .torch_reference import Reference, Values

Differences = Iterator[tuple[str, float]]

# Enough for every distance that umT5 tells apart.
_PROMPT = 160


def module_differences(params: PyTree, network: Network) -> Differences:
    """Names of the modules and how far their outputs in float32 are from torch's, relatively.

    `params` is what `network` was converted to, as stored. Raises InputError where the tensors
    of `network` are not what diffusers and transformers know.
    """
    compare = {"dit": _transformer, "vae": _autoencoder, "umt5": _text_encoder, "clip": _clip}
    with jax.default_device(jax.devices("cpu")[0]), jax.default_matmul_precision("highest"):
        yield from compare[network.component.removesuffix("_low")](params, network)


def _transformer(params: PyTree, network: Network) -> Differences:
    config = network.config
    pt, ph, pw = config.patch
    # A step whose sinusoid float32 gets right, which is what diffusers computes it in.
    inputs = [_normal(1, 2 * pt, 3 * ph, 4 * pw, config.in_channels), np.float32([16])]
    inputs.append(_normal(1, config.text_len, config.text_dim))
    if config.image_dim is not None:
        inputs.append(_normal(1, IMAGE_TOKENS, config.image_dim))
    reference = torch_reference.transformer(config, network.layout, network.state)
    yield from _in_turn(params, WanDiT(replace(config, num_layers=1)), reference, *inputs)


def _text_encoder(params: PyTree, network: Network) -> Differences:
    config = network.config
    # Of the vocabulary only what the prompt says: the whole is 4 GB in float32.
    tokens = np.linspace(0, config.vocab - 1, min(_PROMPT, config.vocab)).astype(np.int32)
    ids = np.resize(np.arange(len(tokens), dtype=np.int32), (1, _PROMPT))
    embedding = params["token_embedding"]["embedding"][tokens]
    params = params | {"token_embedding": {"embedding": embedding}}
    encoder = UMT5Encoder(replace(config, vocab=len(tokens), layers=1))
    reference = torch_reference.text_encoder(config, network.layout, network.state, tokens)
    yield from _in_turn(params, encoder, reference, ids, np.ones_like(ids))


def _clip(params: PyTree, network: Network) -> Differences:
    config = network.config
    tower = CLIPVision(replace(config, layers=1))
    reference = torch_reference.image_encoder(config, network.layout, network.state)
    yield from _in_turn(params, tower, reference, _normal(1, config.image, config.image, 3))


def _autoencoder(params: PyTree, network: Network) -> Differences:
    config = network.config
    # The shortest clip in which every tap in time sees something.
    clip = np.tanh(_normal(1, 13, 16, 16, 3))
    latent = _normal(1, *config.latent_shape(*clip.shape[1:4])) / 2
    reference = torch_reference.autoencoder(config, network.layout, network.state)
    reference.fill()
    expected = reference.run(clip, latent)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    for name, function, x in (("encode", encode, clip), ("decode", decode, latent)):
        found = jax.jit(function, static_argnums=0)(config, params, jnp.asarray(x))
        yield name, _difference(np.ravel(found), expected[name])


def _in_turn(
    params: PyTree, network: nn.Module, reference: Reference, *inputs: np.ndarray
) -> Differences:
    """Every module, around a block that adds nothing; then what comes out around each block."""
    reference.fill()
    found, expected = _outputs(network, _with_block(params, None), *inputs), reference.run(*inputs)
    for name in expected:
        if name != "output":
            yield name, _difference(found[name], expected[name])
    for n in range(len(jax.tree.leaves(params["blocks"])[0])):
        reference.fill_block(n)
        found, expected = _outputs(network, _with_block(params, n), *inputs), reference.run(*inputs)
        yield f"blocks.{n}", _difference(found["output"], expected["output"])


def _with_block(params: PyTree, n: int | None) -> PyTree:
    """The parameters in float32, with one block only: the `n`th, or zeros."""

    def chosen(path: str, leaf: np.ndarray) -> np.ndarray:
        if not path.startswith("blocks/"):
            return leaf.astype(np.float32)
        return np.zeros_like(leaf[:1], np.float32) if n is None else leaf[n : n + 1].astype("f4")

    flat = flatten_dict(params, sep="/")
    return unflatten_dict({path: chosen(path, leaf) for path, leaf in flat.items()}, sep="/")


def _outputs(network: nn.Module, params: PyTree, *inputs: np.ndarray) -> Values:
    """What every module directly below `network` puts out, and its own "output", in one row."""
    row = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    output, modules = _run(network, params, *inputs)
    return {name: row(tree) for name, tree in modules.items()} | {"output": row(output)}


@partial(jax.jit, static_argnums=0)
def _run(network: nn.Module, params: PyTree, *inputs: Array) -> tuple[PyTree, PyTree]:
    output, state = network.apply(
        {"params": params},
        *inputs,
        capture_intermediates=lambda module, _: len(module.path) == 1,
        mutable=["intermediates"],
    )
    return output, state["intermediates"]


def _difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference, relative to that of what is expected."""
    expected = expected.astype(np.float64)
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-30))


def _normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)
