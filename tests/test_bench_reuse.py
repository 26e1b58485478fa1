"""The benchmark of timestep caching, on a model that says nothing about quality."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights

from experiments.bench import reuse
from ic_jax import pipeline
from ic_jax.latent_mask import LatentMask, Measurement
from ic_jax.pipeline import Observation
from ic_jax.settings import Settings

SHAPE = TINY.vae.latent_shape(TINY.frames, TINY.height, TINY.width)
SEEN = Observation(
    jnp.zeros((TINY.frames, TINY.height, TINY.width, 3)),
    jnp.ones((TINY.frames, TINY.height, TINY.width)),
    Measurement(
        jnp.zeros((TINY.frames, TINY.height, TINY.width, 3)),
        jax.random.normal(jax.random.key(1), SHAPE),
    ),
    LatentMask(jnp.full(SHAPE, 0.5), jnp.full(SHAPE, 0.1)),
    None,
)


@pytest.fixture
def lab(monkeypatch):
    known = lambda lab, number: reuse.Given(tiny_context(), SEEN, jax.random.key(number))
    monkeypatch.setattr(reuse, "given", known)
    model = SimpleNamespace(variant=TINY, weights=tiny_weights())
    return SimpleNamespace(model=model, decode=np.asarray)


def test_the_arms_are_compared_at_their_calls_and_the_default_is_the_librarys(lab):
    arms = reuse.arms(lab, 5, range(1))
    calls = {name: reuse.calls_of(flags) for name, flags in arms.items()}
    assert calls[reuse.DEFAULT] == 5 and calls["fixed, 1 in a row"] == 3
    for name, count in calls.items():
        assert count == 5 or len(arms[f"{count} steps"]) == count, name
    (ours,) = reuse.decoded(lab, arms[reuse.DEFAULT], range(1))
    sample = jax.jit(pipeline.sample, static_argnums=(0, 1))
    given = reuse.given(lab, 0)
    plain = sample(TINY, Settings(steps=5), lab.model.weights, *given)
    np.testing.assert_allclose(ours, plain.x, atol=1e-5)
    (cached,) = reuse.decoded(lab, arms["fixed, 3 in a row"], range(1))
    assert 1e-4 < np.abs(cached - ours).max() < np.abs(ours).max()


def test_losses_are_paired_and_those_beyond_chance_stand_out():
    tasks = lambda *values: [dict.fromkeys(reuse.Regions._fields, value) for value in values]
    arm = lambda steps, reused, *values: {
        "steps": steps, "reused": reused, "to_truth": tasks(*values), "near": [40.0, 50.0],
    }  # fmt: skip
    raw = {
        reuse.DEFAULT: arm(4, [], 20.0, 30.0) | {"near": []},
        "worse": arm(4, [1, 3], 19.5, 29.0),
        "mixed": arm(2, [], 20.5, 29.0),
    }
    text = reuse.page(raw, "tiny", "a machine")
    assert "| worse | 4 | 2 | 24.25 | 24.25 | 24.25 | 24.25 | 45.0 |" in text
    assert "| worse | 2 | **-0.750 [-1.000, -0.500]** |" in text
    assert "| mixed | 2 | -0.250 [-1.000, +0.500] |" in text
