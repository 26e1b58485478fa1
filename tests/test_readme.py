"""The README's own examples run, are as short as they say, and keep their promises."""

import re
from dataclasses import replace
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
SHAPE = TINY.frames, TINY.height, TINY.width
SETTINGS = Settings(latent_mask="mean", steps=2)


def example(word):
    """The code in which a word stands."""
    (code,) = (code for code in re.findall(r"```python\n(.*?)```", README, re.S) if word in code)
    return code


def scene(visible, seed=0):
    noise = np.random.default_rng(seed).uniform(-1, 1, (*SHAPE, 3))
    return Scene(jnp.asarray(noise, jnp.float32), MaskOperator(jnp.full(SHAPE, visible)))


@pytest.fixture
def robust():
    exec(compile(example("METHODS"), "README.md", "exec"), {})
    yield "robust"
    del METHODS["robust"]


def test_the_method_is_of_at_most_twenty_lines():
    assert len([line for line in example("METHODS").splitlines() if line.strip()]) <= 20


def test_the_method_samples_and_keeps_its_promise(robust):
    run = jax.jit(partial(pipeline.recapture, TINY), static_argnums=0)

    def made(method, visible):
        settings = replace(SETTINGS, consistency=method)
        return run(settings, tiny_weights(), scene(visible), tiny_context(), jax.random.key(0))

    ours, plain = made(robust, 1.0), made("none", 1.0)
    assert np.isfinite(ours).all() and np.abs(ours - plain).max() > 1e-3
    assert METHODS[robust].plain_when_empty
    np.testing.assert_array_equal(made(robust, 0.0), made("none", 0.0))


def test_many_clips_at_once_and_one_on_many_devices_are_the_same():
    clips = [(scene(0.7, n), tiny_context(n), jax.random.key(n)) for n in range(2)]
    scenes, contexts, keys = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clips)
    given = {"jax": jax, "recapture": pipeline.recapture, "sizes": TINY, "settings": SETTINGS}
    given |= {"weights": tiny_weights(), "scenes": scenes, "contexts": contexts, "keys": keys}
    given |= dict(zip(("scene", "context", "key"), clips[0]))
    exec(compile(example("over_clips"), "README.md", "exec"), given)
    assert np.abs(given["frames"][0] - given["frames"][1]).max() > 0.01
    # Rounding grows on its way through random weights.
    np.testing.assert_allclose(given["spread"], given["frames"][0], atol=1e-4)
