"""The examples of the README and of docs/ run, are as short as they say, and keep their promises."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights
from tiny_shot import moved_shot

from ic_jax import pipeline
from ic_jax.geometry.mask import MaskOperator
from ic_jax.model import Model
from ic_jax.pipeline import Scene
from ic_jax.sampling.methods import METHODS
from ic_jax.settings import Settings
from ic_jax.text import Embedded
from ic_jax.video import Clip

ROOT = Path(__file__).parents[1]
PAGES = {page: page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
SHAPE = TINY.frames, TINY.height, TINY.width
SETTINGS = Settings(latent_mask="mean", steps=2)


def example(word):
    """The code in which a word stands."""
    codes = re.findall(r"```python\n(.*?)```", "".join(PAGES.values()), re.S)
    (code,) = (code for code in codes if word in code)
    return code


def scene(visible):
    noise = np.random.default_rng(0).uniform(-1, 1, (*SHAPE, 3))
    return Scene(jnp.asarray(noise, jnp.float32), MaskOperator(jnp.full(SHAPE, visible)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_points_to_is_there(page):
    found = re.findall(r"\]\((?!https?:)([^)#]+)", PAGES[page])
    assert len(found) > 2
    assert [link for link in found if not (page.parent / link).exists()] == []


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
    shot = moved_shot(*SHAPE)
    model = Model("tiny", TINY, tiny_weights(), {})
    clip, told = Clip(shot.frames, *[None] * 3), Embedded(tiny_context(), [])
    given = {"model": model, "clip": clip, "shot": shot, "told": told, "Settings": Settings}
    assert jax.device_count() == 8
    exec(compile(example("over_clips"), "docs/devices.md", "exec"), given)
    assert np.abs(given["frames"][0] - given["frames"][1]).max() > 0.01
    # Rounding grows on its way through random weights.
    np.testing.assert_allclose(given["spread"], given["frames"][0], atol=1e-4)
