"""Bytes go to the device and come back from it, and are those that floats would have been."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights
from tiny_shot import moved_shot, noise

from ic_jax import pipeline
from ic_jax.choices import resolve
from ic_jax.composite import composite
from ic_jax.director import direct
from ic_jax.edit import forget
from ic_jax.errors import InputError
from ic_jax.fill import push_pull
from ic_jax.model import Model
from ic_jax.models.frames import from_bytes, to_bytes
from ic_jax.models.variants import VARIANTS
from ic_jax.settings import Settings
from ic_jax.video import to_float, to_uint8

SIZES = TINY.resized(9, None, None)
SHAPE = SIZES.frames, SIZES.height, SIZES.width
MODEL = Model("tiny", SIZES, tiny_weights(), {})


def test_the_device_turns_bytes_and_floats_as_the_host_does():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(from_bytes)(every), to_float(every))
    levels = np.linspace(-1.1, 1.1, 4001, dtype=np.float32)
    np.testing.assert_array_equal(jax.jit(to_bytes)(levels), to_uint8(levels))


def test_a_take_has_the_bytes_that_its_floats_would_have():
    shot, last = moved_shot(*SHAPE), []
    keep = lambda midway: last.append(midway.state)
    settings = Settings(steps=1, composite=True)
    take = direct(MODEL, settings, shot, tiny_context(), keep=keep)

    operator = shot.operator()
    warped = jax.jit(lambda operator, clip: operator.apply(clip))(operator, to_float(shot.frames))
    np.testing.assert_array_equal(take.observed, to_uint8(np.asarray(warped)))
    decode = jax.jit(lambda weights, state: pipeline.finish(SIZES, weights, state))
    decoded = np.asarray(decode(MODEL.weights, *last))
    np.testing.assert_array_equal(take.generated, to_uint8(decoded))
    shown = jax.jit(composite)(
        to_float(take.generated), to_float(take.observed), jnp.asarray(take.visible)
    )
    np.testing.assert_array_equal(take.result, to_uint8(np.asarray(shown)))
    assert len(np.unique(take.result)) > 30


def test_a_sample_that_overflowed_is_no_clip():
    with pytest.raises(InputError, match="the sample is not finite"):
        settings = Settings(steps=1, composite=True)
        direct(MODEL, settings, moved_shot(*SHAPE), jnp.nan * tiny_context())


def test_what_is_forgotten_is_smoothed_as_in_floats():
    frames, keep = noise(*SHAPE), np.ones(SHAPE, bool)
    keep[:, 4:9, 8:20] = False
    weight = jnp.asarray(keep, jnp.float32)
    smooth = jax.jit(push_pull)(to_float(frames) * keep[..., None], weight)
    expected = np.where(keep[..., None], frames, to_uint8(np.asarray(smooth)))
    np.testing.assert_array_equal(forget(frames, keep).frames, expected)


@pytest.mark.parametrize(
    "settings, complaint",
    [
        (Settings(refresh_at=0.2), "--refresh-at is 0.2, and the last of 40 steps begins at 0.235"),
        (Settings(guided_from=0.2), "no step begins from --guided-from 0.2 to --guided-to 0.0"),
        (Settings(guided_from=0.9999, guided_to=0.9998), "give levels further apart"),
    ],
    ids=["no refresh", "too late", "between two"],
)
def test_levels_at_which_nothing_would_happen_are_refused(settings, complaint):
    name = "Wan2.2-T2V-A14B"  # whose last step begins early
    model = Model(name, VARIANTS[name], None, {})
    with pytest.raises(InputError, match=complaint):
        resolve(settings, model)
    assert resolve(Settings(refresh_at=0.24, guided_from=0.24), model).refresh_at == 0.24


def test_an_edit_is_guided_as_the_model_recommends_for_edits_unless_told_otherwise():
    model = Model("tiny", replace(TINY, edit_guidance_scale=7.0), None, {})
    guided = lambda scale, editing: (
        resolve(Settings(guidance_scale=scale), model, editing).guidance_scale
    )
    assert (guided(None, True), guided(2.5, True)) == (7.0, 2.5)
    assert guided(None, False) == TINY.guidance_scale
