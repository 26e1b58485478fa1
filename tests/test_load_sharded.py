"""Weights go straight to where they are wanted, and the text encoder has gone before they come."""

import weakref

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec, SingleDeviceSharding

from ic_jax import text
from ic_jax.cli import generator
from ic_jax.model import Weights, abstract_model, load_model


@pytest.mark.parametrize("kind", ["converted", "bundled"])
def test_each_weight_is_cut_as_its_sharding_says(tiny, kind):
    folder = tiny if kind == "converted" else "nano"
    devices = jax.devices()[:4]
    mesh = jax.make_mesh((4,), ("weights",), axis_types=(AxisType.Auto,), devices=devices)
    whole = load_model(folder)

    def cut(leaf):
        axes = [i for i, n in enumerate(leaf.shape) if n % 4 == 0]
        spec = [None] * leaf.ndim
        if axes:
            spec[axes[-1]] = "weights"
        return NamedSharding(mesh, PartitionSpec(*spec))

    dit = jax.tree.map(cut, whole.weights.dit)
    copied = NamedSharding(mesh, PartitionSpec())
    spread = load_model(folder, Weights(vae=copied, dit=dit)).weights
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    jax.tree.map(same, spread.dit, whole.weights.dit)
    jax.tree.map(same, spread.vae, whole.weights.vae)
    jax.tree.map(lambda leaf, where: leaf.sharding == where or pytest.fail(), spread.dit, dit)
    assert all(leaf.sharding == copied for leaf in jax.tree.leaves(spread.vae))
    held = sum(leaf.addressable_shards[0].data.size for leaf in jax.tree.leaves(spread.dit))
    assert held < 0.3 * sum(leaf.size for leaf in jax.tree.leaves(whole.weights.dit))


@pytest.mark.parametrize("kind", ["converted", "bundled"])
def test_an_abstract_model_has_the_shapes_and_dtypes_of_the_loaded_one(tiny, kind):
    folder = tiny if kind == "converted" else "nano"
    model, abstract = load_model(folder), abstract_model(folder)
    described = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)
    assert described(abstract.weights) == described(model.weights)
    assert abstract._replace(weights=None) == model._replace(weights=None)


def test_a_network_on_one_device_stays_there(tiny):
    last = SingleDeviceSharding(jax.devices()[-1])
    spread = load_model(tiny, Weights(vae=None, dit=last)).weights
    assert all(leaf.devices() == {jax.devices()[-1]} for leaf in jax.tree.leaves(spread.dit))
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(spread.vae))


def test_the_text_encoder_is_gone_before_the_weights_are_read(tiny, run, monkeypatch, tmp_path):
    encoder = []
    honest = text.load_encoder

    def read(*given):
        params = honest(*given)
        encoder.extend(weakref.ref(leaf) for leaf in jax.tree.leaves(params))
        return params

    class Reached(Exception):
        pass

    def load(*given):
        assert encoder and not any(leaf() is not None for leaf in encoder)
        raise Reached

    monkeypatch.setattr(text, "load_encoder", read)
    monkeypatch.setattr(generator, "load_uncalibrated", load)
    with pytest.raises(Reached):
        run("inpaint", "--model", tiny, "--frames", 9, "--out", tmp_path / "out")
