"""What the pages show runs, and what they say is so."""

import json
import re
from dataclasses import replace
from functools import partial
from importlib import import_module
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
from ic_jax.video import Clip, to_float

ROOT = Path(__file__).parents[1]
PAGES = {page: page.read_text() for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"))}
SHAPE = TINY.frames, TINY.height, TINY.width
KINDS = "visible", "seam", "hole", "spectrum"
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


ARMS = {
    "the warp, holes filled smoothly (push-pull)": "warp, push-pull",
    "the warp, holes filled from other frames first": "warp, other frames, push-pull",
    "autoencoder alone, on the filled warp": "VAE round trip of the filled warp",
    "**mean mask, bayes_draw (default)**": "mean, bayes_draw",
    "mean mask, bayes_dds": "mean, bayes_dds",
    "mean mask, dds": "mean, dds",
    "response mask, half-open gate, bayes_draw": "response_open, bayes_draw",
    "response mask, bayes_draw": "response, bayes_draw",
    "nearest, bayes_draw": "nearest, bayes_draw",
    "min, bayes_draw": "min, bayes_draw",
    "the mask's own encoding, bayes_draw": "encoded, bayes_draw",
    "the same sampler without consistency": "no consistency",
    "default, seen pixels shown": "mean, bayes_draw, seen pixels shown",
}


def test_the_table_is_that_of_the_run_that_was_kept():
    kept = json.loads((ROOT / "experiments/results/recapture.json").read_text())["scenes"]
    rows = re.findall(r"^\| (.*?) \|(.*)\|$", PAGES[ROOT / "README.md"], re.M)
    said = {title: [cell.strip() for cell in cells.split("|")] for title, cells in rows}
    for title, arm in ARMS.items():
        scores = [each["rows"][arm] for each in kept]
        found = {name: np.mean([score[name] for score in scores]) for name in KINDS}
        found["of 8"] = np.mean([score["hole_of_mean"][-1] for score in scores])
        *regions, of_8, spectrum = said[title]
        assert [*regions, spectrum] == [f"{found[kind]:.1f}" for kind in KINDS], title
        assert of_8 in ("", f"{found['of 8']:.1f}"), title


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


def test_arrays_of_ones_own_go_in_without_a_file():
    """At a size where windows are as long as the clip, and nothing is put back over the result."""
    sizes = TINY.resized(9, 32, 64)
    given = {
        "model": Model("tiny", sizes, tiny_weights(), {}),
        "told": Embedded(tiny_context(), []),
    }
    exec(compile(example("intrinsics_from_fov"), "docs/python.md", "exec"), given)
    moved, painted, pure = (given[name] for name in ("moved", "painted", "pure"))
    assert moved.shape == painted.shape == given["frames"].shape and (moved != painted).any()
    assert np.abs(pure - to_float(moved)).max() < 2 / 255


def test_every_piece_is_where_the_page_says():
    table = PAGES[ROOT / "docs/python.md"].split("## Pieces")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \| (.*) \|$", table, re.M)
    assert len(rows) > 10
    for where, what in rows:
        modules = [import_module(name) for name in re.findall(r"`(.*?)`", where)]
        for module, pieces in zip(modules, what.split("; "), strict=True):
            named = re.findall(r"`(\w+)`", pieces)
            assert named and [name for name in named if not hasattr(module, name)] == []


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
