"""A transformer small enough to compile in seconds, and its velocity on any mesh."""

from functools import cache, partial

import jax
import numpy as np
from tiny_model import random_like

from ic_jax.model import Weights
from ic_jax.models.layout import Layout
from ic_jax.models.wan_dit import DiTConfig, WanDiT
from ic_jax.parallel import device_mesh, place, sequence_layout

CONFIG = DiTConfig(
    dim=48,
    ffn_dim=96,
    num_heads=4,
    num_layers=2,
    in_channels=4,
    out_channels=4,
    text_dim=16,
    text_len=8,
    freq_dim=32,
)
GRID = 4, 16, 16
TOKENS = 256


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@cache
def inputs():
    x, timestep = drawn(2, *GRID, CONFIG.in_channels), np.float32([500, 500])
    context = drawn(2, CONFIG.text_len, CONFIG.text_dim, seed=1)
    shapes = jax.eval_shape(WanDiT(CONFIG).init, jax.random.key(0), x, timestep, context)
    dit = jax.tree.map(np.asarray, random_like(shapes["params"]))
    return dit, x, timestep, context


@partial(jax.jit, static_argnums=0)
def prepare(layout, dit, context):
    network = WanDiT(CONFIG, layout=layout)
    return network.apply({"params": dit}, GRID, context, method="prepare")


@partial(jax.jit, static_argnums=0)
def velocity(layout, dit, x, timestep, prepared):
    network = WanDiT(CONFIG, layout=layout)
    return network.apply({"params": dit}, x, timestep, prepared, method="velocity")


def on_one():
    """The compiled program, and what it makes of the inputs."""
    return _run(Layout(), inputs()[0])


def on_mesh(shape):
    """The same over a mesh."""
    mesh = device_mesh(shape, CONFIG.num_heads)
    weights = place(Weights(vae={}, dit=inputs()[0]), mesh, shape.weights)
    return _run(sequence_layout(mesh), weights.dit)


def _run(layout, dit):
    _, x, timestep, context = inputs()
    arguments = dit, x, timestep, prepare(layout, dit, context)
    program = velocity.lower(layout, *arguments).compile()
    return program, program(*arguments)
