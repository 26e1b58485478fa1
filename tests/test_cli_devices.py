"""`--devices`: the same frames from a clip that is spread over several, or one line why not."""

from dataclasses import replace
from fractions import Fraction

import jax
import numpy as np
import pytest
from PIL import Image
from tiny_model import TINY

from ic_jax import budget, parallel
from ic_jax.budget import Memory
from ic_jax.cli import generator, spread
from ic_jax.errors import InputError
from ic_jax.models.layout import Layout
from ic_jax.video import read_video, write_video

FRAMES, HEIGHT, WIDTH = 9, 16, 32
SIZES = TINY.resized(FRAMES, None, None)
SHAPE = parallel.MeshShape(prompts=2, sequence=2)


@pytest.fixture
def inpaint(tiny, run, tmp_path, monkeypatch):
    """Runs the command on a small clip with more options."""
    monkeypatch.chdir(tmp_path)
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    write_video("clip.mp4", noise, Fraction(8))
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255).save("mask.png")
    # The mask that compiles fastest.
    small = "--frames", FRAMES, "--steps", 2, "--latent-mask", "mean"
    return lambda *more: run(
        "inpaint", "clip.mp4", "--mask", "mask.png", "--model", tiny, *small, *more
    )


def test_several_devices_make_the_frames_of_one(inpaint, tmp_path):
    made = []
    for count in (1, 4):
        code, _, stderr = inpaint("--devices", count, "--out", f"out{count}")
        assert code == 0, stderr
        made.append(read_video(tmp_path / f"out{count}" / "generated.mp4").frames.astype(int))
    # The rounding of another order of sums, and then of the video codec.
    assert np.abs(made[0] - made[1]).max() <= 4 and np.abs(made[0] - made[1]).mean() < 0.1


def with_memory(monkeypatch, size, devices=4):
    """So much for each of the devices, which share that of their host, whatever is free now."""
    monkeypatch.setattr(spread, "device_memory", lambda device: Memory(devices * size, 0))


def test_one_device_needs_no_layout(tiny):
    assert spread.spread(tiny, SIZES, 2, 1) == (Layout(), None)


def test_weights_are_cut_where_memory_asks_for_it(tiny, monkeypatch):
    whole = budget.need(SIZES, 2)
    for weights in (1, 4):
        needed = parallel.per_device(whole, SHAPE._replace(weights=weights))
        with_memory(monkeypatch, needed)
        layout, shardings = spread.spread(tiny, SIZES, 2, 4)
        assert layout != Layout()
        cut = [not where.is_fully_replicated for where in jax.tree.leaves(shardings.dit)]
        assert any(cut) == (weights > 1)
        assert all(where.is_fully_replicated for where in jax.tree.leaves(shardings.vae))


def test_what_may_fit_is_cut_and_told_and_only_what_cannot_is_refused(tiny, monkeypatch, capfd):
    asked, frugal = (tiny, SIZES, 2, 4), SHAPE._replace(weights=4)
    needed, certain = (
        parallel.per_device(budget.need(SIZES, 2), frugal, share) for share in (1.0, budget.CERTAIN)
    )
    for size in (needed, needed - 1, certain):
        monkeypatch.setattr(spread, "device_memory", lambda device: Memory(4 * size, 4 * size))
        _, shardings = spread.spread(*asked)
        assert not all(where.is_fully_replicated for where in jax.tree.leaves(shardings.dit))
        warned = "the model at 9 frames of 32x16 may need 0.0 GiB of memory, and each of 4 devices"
        assert (warned in capfd.readouterr().err) == (size < needed)
    with_memory(monkeypatch, certain - 1)
    with pytest.raises(InputError, match="the model needs at least"):
        spread.spread(*asked)


@pytest.mark.parametrize("reuse", [False, True])
def test_a_mesh_is_chosen_by_the_memory_of_the_most_prompts_and_of_reuse(tiny, monkeypatch, reuse):
    told = []
    monkeypatch.setattr(spread, "choose", lambda *given, **more: told.append(given[0]) or SHAPE)
    spread.spread(tiny, SIZES, 2, 4, reuse)
    spread.places(tiny, SIZES, {1, 2}, 4, 1, reuse)
    needed = budget.need(SIZES, 2, reuse)
    assert told == [needed, needed]
    assert needed not in (budget.need(SIZES, 1, reuse), budget.need(SIZES, 2, not reuse))


def test_weights_whose_rows_do_not_divide_are_not_cut(tiny, monkeypatch):
    shape = parallel.MeshShape(sequence=3, weights=3)
    # Deep, as it takes many blocks for cutting them to pay.
    sizes = replace(SIZES, dit=replace(SIZES.dit, num_layers=8))
    with_memory(monkeypatch, parallel.per_device(budget.need(sizes, 2), shape), devices=3)
    with pytest.raises(InputError, match="the model needs .* GiB on each of 3 devices"):
        spread.spread(tiny, sizes, 2, 3)


def test_what_does_not_fit_however_it_is_cut_is_one_line(inpaint, monkeypatch):
    with_memory(monkeypatch, 1000)
    code, stdout, stderr = inpaint("--devices", 4)
    last = stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert code == 2 and stdout == ""
    assert last.startswith("ic-jax: the model needs") and "use more devices" in last


def test_a_seed_that_stands_for_a_smaller_one_is_refused(inpaint):
    code, _, stderr = inpaint("--seed", 2**32)
    assert code == 2 and "--seed is 4294967296; give a number from 0 to 2^32 - 1" in stderr


def test_a_device_that_runs_out_of_memory_is_one_line(inpaint, tmp_path, monkeypatch):
    def full(*given):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")

    monkeypatch.setattr(generator, "load_uncalibrated", full)
    before = set(tmp_path.iterdir())
    code, stdout, stderr = inpaint()
    last = stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert code == 2 and stdout == "" and set(tmp_path.iterdir()) == before
    assert last.startswith("ic-jax: a device ran out of memory; give fewer --frames")


def test_more_devices_than_there_are_is_one_line(inpaint):
    code, _, stderr = inpaint("--devices", 9)
    assert code == 2 and "--devices is 9; give a number from 1 to 8" in stderr


def test_a_model_that_cannot_fit_is_refused_before_it_is_read(inpaint, monkeypatch):
    monkeypatch.setattr(generator, "device_memory", lambda device: Memory(1000, 1000))
    monkeypatch.setattr(generator, "load_uncalibrated", lambda *given: pytest.fail("read"))
    code, _, stderr = inpaint()
    assert code == 2 and "at the very least, and the device has 0.0 GiB" in stderr
