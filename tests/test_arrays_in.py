"""What a program hands over itself, with no command line before it to look at it."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights
from tiny_shot import moved_shot, noise

import ic_jax
from ic_jax import InputError, Settings, direct, embed_prompts, framing, recapture
from ic_jax.director import scenes
from ic_jax.geometry.mask import MaskOperator
from ic_jax.model import Model
from ic_jax.pipeline import Scene
from ic_jax.video import to_float

SIZES = TINY.resized(9, None, None)
SHAPE = SIZES.frames, SIZES.height, SIZES.width
MODEL = Model("tiny", SIZES, tiny_weights(), {})
CONTEXT = tiny_context()
QUICK = Settings(latent_mask="mean", steps=2)


def scene(clip=np.zeros((*SHAPE, 3), np.float32), visible=np.ones(SHAPE, np.float32)):
    return Scene(clip, MaskOperator(visible))


def told(settings=QUICK, scene=scene(), run=recapture):
    with pytest.raises(InputError) as error:
        run(SIZES, settings, MODEL.weights, scene, CONTEXT, jax.random.key(0))
    (line,) = str(error.value).splitlines()
    return line


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"steps": -1}, "--steps is -1; give a whole number from 1"),
        ({"steps": 0}, "--steps is 0; give a whole number from 1"),
        ({"consistency": "ours"}, "unknown --consistency 'ours'"),
        ({"refresh_at": 0.01}, "--refresh-at is 0.01"),
    ],
)
def test_settings_are_checked_without_a_model_to_resolve_them_for(changed, said):
    assert said in told(replace(QUICK, **changed))


compiled = jax.jit(recapture, static_argnums=(0, 1))


@pytest.mark.parametrize("run", [recapture, compiled])
@pytest.mark.parametrize(
    "wrong, said",
    [
        (scene(clip=np.zeros((*SHAPE, 3), np.uint8)), "scene.clip is uint8 of shape"),
        (scene(clip=np.zeros((5, *SHAPE[1:], 3), np.float32)), "scene.clip is float32 of shape (5"),
        (scene(visible=np.ones(SHAPE, np.uint8)), "scene.operator.visible is uint8 of shape"),
        (scene(visible=np.ones(SHAPE[1:], np.float32)), f"[0, 1] of shape {SHAPE}"),
    ],
    ids=["bytes", "length", "mask of bytes", "one mask"],
)
def test_a_scene_that_is_not_the_models_is_one_line_under_jit_too(wrong, said, run):
    assert said in told(scene=wrong, run=run)


@pytest.mark.parametrize(
    "wrong, said",
    [
        (scene(clip=np.full((*SHAPE, 3), 255.0, np.float32)), "scene.clip holds values from 255"),
        (scene(clip=np.full((*SHAPE, 3), np.nan, np.float32)), "scene.clip holds values from nan"),
        (scene(visible=np.full(SHAPE, 255.0, np.float32)), "to 255; give [0, 1]"),
    ],
    ids=["bytes as floats", "nan", "mask of bytes as floats"],
)
def test_values_are_looked_at_where_there_are_any(wrong, said):
    assert said in told(scene=wrong)


def test_one_key_makes_the_same_frames_by_either_way():
    shot = moved_shot(*SHAPE)
    take = direct(MODEL, QUICK, shot, CONTEXT, seed=3)
    fit = framing.fit(SHAPE[1:], SHAPE[1:])
    seen, _ = scenes(shot.to_working(fit), [])
    key = jax.random.fold_in(jax.random.key(3), 0)
    frames = compiled(SIZES, QUICK, MODEL.weights, seen, CONTEXT, key)
    assert np.abs(frames - to_float(take.generated)).max() < 2 / 255


# Edits --------------------------------------------------------------------------------


def box():
    keep = np.ones((3, 32, 64), bool)
    keep[:, 9:20, 11:33] = False
    return keep


def test_nothing_that_is_exported_carries_what_is_hidden_outside():
    frames, keep = noise(3, 32, 64), box()
    other = np.where(keep[..., None], frames, 255 - frames)
    fit = framing.fit((32, 64), (16, 32))
    one, two = (ic_jax.forget(each, keep).to_working(fit) for each in (frames, other))
    np.testing.assert_array_equal(one.frames, two.frames)
    assert not hasattr(ic_jax, "Edit")


@pytest.mark.parametrize(
    "frames, keep, said",
    [
        (noise(3, 32, 64), 255 * box().astype(np.uint8), "keep is uint8"),
        (noise(3, 32, 64), box()[0], "keep is bool of shape (32, 64); give bool of shape (3, 32"),
        (to_float(noise(3, 32, 64)), box(), "frames is float32"),
        (noise(3, 32, 64)[0], box()[0], "frames is uint8 of shape (32, 64, 3)"),
    ],
)
def test_an_edit_of_other_arrays_is_one_line(frames, keep, said):
    with pytest.raises(InputError) as error:
        ic_jax.forget(frames, keep)
    assert said in str(error.value) and "\n" not in str(error.value)


# A run taken up again -----------------------------------------------------------------


@pytest.fixture(scope="module")
def kept():
    states = []
    keep = lambda midway: states.append(jax.tree.map(jnp.copy, midway))
    take = direct(MODEL, QUICK, moved_shot(*SHAPE), CONTEXT, keep=keep)
    return take, states


def test_a_copy_of_a_state_goes_on(kept):
    take, states = kept
    again = direct(MODEL, QUICK, moved_shot(*SHAPE), CONTEXT, midway=states[0])
    np.testing.assert_array_equal(again.generated, take.generated)


@pytest.mark.parametrize("settings, seed", [(replace(QUICK, steps=3), 0), (QUICK, 1)])
def test_the_state_of_another_run_is_refused(kept, settings, seed):
    with pytest.raises(InputError, match="midway is of a run with other settings or another seed"):
        direct(MODEL, settings, moved_shot(*SHAPE), CONTEXT, seed=seed, midway=kept[1][0])


# Prompts ------------------------------------------------------------------------------


@pytest.mark.parametrize("prompts", ["a red ball", [], ()])
def test_what_is_no_list_of_prompts_is_one_line(prompts):
    with pytest.raises(InputError, match="the prompts are .*; give a list: .negative prompt, prom"):
        embed_prompts("nano", TINY, prompts)
