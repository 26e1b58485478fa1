"""A run that is stopped goes on to the same bits, and only the same run does."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights
from tiny_shot import moved_shot, noise

from ic_jax import midway
from ic_jax.choices import resolve
from ic_jax.director import direct, plan
from ic_jax.edit import forget
from ic_jax.errors import InputError
from ic_jax.model import Model
from ic_jax.settings import Settings
from ic_jax.shot import Shot

SHAPE = 12, 16, 32
MODEL = Model("tiny", TINY.resized(9, None, None), tiny_weights(), {})
CONTEXT = tiny_context()
# A solver with a memory, an answer that is reused, fresh noise, and a refreshed measurement.
SETTINGS = Settings(
    latent_mask="mean", solver="unipc", steps=3, reuse=1, renoise=0.3, refresh_at=0.9
)


class Stopped(Exception):
    pass


def shot():
    return moved_shot(*SHAPE)


def edit():
    keep = np.ones(SHAPE, bool)
    keep[:, 4:9, 8:20] = False
    return forget(noise(*SHAPE), keep)


def the_run(footage, seed=0):
    settings = resolve(SETTINGS, MODEL, editing=not isinstance(footage, Shot))
    return midway.identity("weights", MODEL, settings, footage, CONTEXT, seed)


def stop_after(steps, footage, file):
    taken = 0

    def keep(at):
        nonlocal taken
        taken += 1
        if taken == steps:
            midway.save(file, at, the_run(footage))
            raise Stopped

    with pytest.raises(Stopped):
        direct(MODEL, SETTINGS, footage, CONTEXT, keep=keep)


def taken_up(footage, file, seed=0):
    settings = resolve(SETTINGS, MODEL, editing=not isinstance(footage, Shot))
    return midway.load(file, the_run(footage, seed), MODEL, settings, footage)


@pytest.mark.parametrize("source", [shot, edit])
def test_a_run_taken_up_again_ends_in_the_same_frames(source, tmp_path):
    footage, file = source(), tmp_path / "out.resume"
    assert len(plan(MODEL, footage)) == 2
    whole = direct(MODEL, SETTINGS, footage, CONTEXT)
    # In the first window, at its end, and in the second, before and after the refresh.
    for steps in (1, 3, 4, 6):
        stop_after(steps, footage, file)
        begun = taken_up(footage, file)
        assert 3 * len(begun.finished) + begun.step == steps
        told = []
        progress = lambda stage, done: told.append(done)
        take = direct(MODEL, SETTINGS, footage, CONTEXT, progress=progress, midway=begun)
        np.testing.assert_array_equal(take.generated, whole.generated)
        assert sum(told) == 6


def clips_on_the_device():
    """How many arrays as large as a window's frames are held there."""
    window = MODEL.variant.frames, *SHAPE[1:], 3
    return sum(array.shape == window and array.dtype == "float32" for array in jax.live_arrays())


@pytest.mark.parametrize("resumed", [False, True])
def test_a_window_is_gone_from_the_device_when_the_next_begins(resumed, tmp_path):
    """Even if the run was taken up again, and what it was taken up from is still at hand."""
    footage, file, begun, held = edit(), tmp_path / "out.resume", None, []
    before = clips_on_the_device()
    if resumed:
        stop_after(1, footage, file)
        begun = taken_up(footage, file)

    def progress(stage, done):
        held.append((stage, clips_on_the_device() - before))

    direct(MODEL, SETTINGS, footage, CONTEXT, progress=progress, midway=begun)
    assert all(clips for stage, clips in held if stage == "decode")
    assert {clips for stage, clips in held if stage == "encode"} == {0}


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    file = tmp_path_factory.mktemp("stopped") / "out.resume"
    stop_after(1, edit(), file)
    return file.read_bytes()


def test_nothing_but_the_state_is_left_beside_it(stopped, tmp_path):
    file = tmp_path / "out.resume"
    file.write_bytes(stopped)
    midway.save(file, taken_up(edit(), file), the_run(edit()))
    assert [other.name for other in tmp_path.iterdir()] == [file.name]
    assert taken_up(edit(), file).step == 1


def test_a_state_is_of_one_run(stopped, tmp_path):
    file = tmp_path / "out.resume"
    file.write_bytes(stopped)
    with pytest.raises(InputError, match="another run, which differs in seed; remove") as error:
        taken_up(edit(), file, seed=1)
    assert "\n" not in str(error.value)
    other = edit()
    other.frames[0, 0, 0] += 1
    with pytest.raises(InputError, match="differs in clip"):
        taken_up(other, file)


@pytest.mark.parametrize("field", ["weights", "context", "settings", "size"])
def test_all_that_frames_follow_from_is_part_of_the_identity(field):
    settings, model, weights, context = SETTINGS, MODEL, "weights", CONTEXT
    whose = midway.identity(weights, model, settings, edit(), context, 0)
    match field:
        case "weights":
            weights = "others"
        case "context":
            context = tiny_context(1)
        case "settings":
            settings = replace(settings, renoise=0.2)
        case "size":
            model = model._replace(variant=TINY)
    assert midway.identity(weights, model, settings, edit(), context, 0) != whose


@pytest.mark.parametrize("spoil", [lambda b: b[:-9], lambda b: b"", lambda b: b[:-9] + b"x" * 9])
def test_a_damaged_state_is_one_line(stopped, tmp_path, spoil):
    file = tmp_path / "out.resume"
    file.write_bytes(spoil(stopped))
    with pytest.raises(InputError, match="out.resume: is damaged, or no state") as error:
        taken_up(edit(), file)
    assert "\n" not in str(error.value)
