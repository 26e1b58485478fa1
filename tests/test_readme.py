"""The README's own example runs, is as short as it says, and keeps its promise."""

import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights

from ic_jax import pipeline
from ic_jax.geometry.mask import MaskOperator
from ic_jax.pipeline import Scene
from ic_jax.sampling.methods import METHODS
from ic_jax.settings import Settings

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLE = next(
    code for code in re.findall(r"```python\n(.*?)```", README, re.S) if "METHODS" in code
)


@pytest.fixture
def robust():
    exec(compile(EXAMPLE, "README.md", "exec"), {})
    yield "robust"
    del METHODS["robust"]


def test_the_example_is_of_at_most_twenty_lines():
    assert len([line for line in EXAMPLE.splitlines() if line.strip()]) <= 20


def test_the_example_samples_and_keeps_its_promise(robust):
    shape = TINY.frames, TINY.height, TINY.width
    clip = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (*shape, 3)), jnp.float32)
    run = jax.jit(partial(pipeline.recapture, TINY), static_argnums=0)
    rest = tiny_weights(), tiny_context(), jax.random.key(0)

    def made(method, visible):
        scene = Scene(clip, MaskOperator(jnp.full(shape, visible)))
        return run(Settings(latent_mask="mean", consistency=method), rest[0], scene, *rest[1:])

    ours, default = made(robust, 1.0), made("bayes_dds", 1.0)
    assert np.isfinite(ours).all() and np.abs(ours - default).max() > 1e-3
    assert METHODS[robust].plain_when_empty
    np.testing.assert_array_equal(made(robust, 0.0), made("none", 0.0))
