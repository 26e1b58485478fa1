"""`--resume` as a user meets it: stopped by a signal, and gone on by the same command."""

import json
import os
import signal
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ic_jax.cli import generator, resumption
from ic_jax.director import Midway
from ic_jax.geometry.camera import intrinsics_from_fov
from ic_jax.video import read_video, write_video

FRAMES, HEIGHT, WIDTH = 12, 20, 36
# A mask without encodes of its own compiles in a third of the time.
MEAN = ["--latent-mask", "mean"]
SMALL = ["--model", "model", "--frames", 9, "--steps", 3, *MEAN, "--resume"]
COMMANDS = {
    "inpaint": ["clip.mp4", "--mask", "mask.png", *SMALL],
    "recapture": ["clip.mp4", "--depth", "depth.npz", *SMALL],
}


@pytest.fixture(autouse=True)
def _in_the_foreground():
    """Shells have what they start in the background ignore Ctrl-C, these tests among it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def here(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(tiny)
    noise = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    write_video("clip.mp4", noise, Fraction(8))
    white = np.zeros((HEIGHT, WIDTH), np.uint8)
    white[5:12, 10:30] = 255
    Image.fromarray(white).save("mask.png")
    depth = np.full((FRAMES, HEIGHT, WIDTH), 3.0, np.float32)
    lens = np.asarray(intrinsics_from_fov(60.0, HEIGHT, WIDTH))
    np.savez("depth.npz", depth=depth, kind="metric", intrinsics=lens)
    return tmp_path


@pytest.fixture
def interrupted(monkeypatch):
    """Sends this process a signal in the middle of ("sample", n), step n, or ("decode", n)."""
    honest = generator.direct

    def interrupt(step, number=None):
        def direct(*given, progress, **more):
            taken = Counter()

            def told(stage, done):
                taken[stage] += max(done, 1)
                if step == (stage, taken[stage]):
                    os.kill(os.getpid(), number)
                progress(stage, done)

            return honest(*given, progress=told, **more)

        monkeypatch.setattr(generator, "direct", direct)

    yield interrupt


@pytest.mark.parametrize("command, number", [("inpaint", signal.SIGTERM), ("recapture", 2)])
def test_a_stopped_run_goes_on_by_the_same_command(run, here, interrupted, command, number):
    arguments = [command, *COMMANDS[command]]
    assert run(*arguments, "--out", "whole")[0] == 0
    before = {path.name for path in here.iterdir()}
    interrupted(("sample", 5), number)
    code, stdout, stderr = run(*arguments, "--out", "out")
    assert code == 128 + number and stdout == ""
    last = stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert last.startswith("ic-jax: stopped after step 2 of window 2; the same command goes on")
    assert {path.name for path in here.iterdir()} - before == {"out.resume"}

    code, _, stderr = run(*arguments, "--out", "out", "--seed", 1)
    assert code == 2 and "out.resume: is of another run, which differs in seed" in stderr

    interrupted(None)
    code, _, stderr = run(*arguments, "--out", "out")
    assert code == 0 and "going on after step 2 of window 2" in stderr
    made, whole = (read_video(here / out / "generated.mp4").frames for out in ("out", "whole"))
    np.testing.assert_array_equal(made, whole)
    resumed = json.loads((here / "out" / "result.json").read_text())["resumed"]
    assert resumed == "after step 2 of window 2"
    assert {path.name for path in here.iterdir()} - before == {"out"}


@pytest.mark.parametrize("window", [1, 2])
def test_no_step_is_lost_when_a_run_is_stopped_while_it_decodes(run, here, interrupted, window):
    """That takes long, and has no steps to wait for."""
    arguments = ["inpaint", *COMMANDS["inpaint"], "--out", "out"]
    interrupted(("decode", window), signal.SIGINT)
    code, _, stderr = run(*arguments)
    assert code == 130 and not (here / "out").exists()
    where = f"after step 3 of window {window}"
    assert f"the same command goes on {where}, from {here / 'out.resume'}" in stderr
    interrupted(None)
    code, _, stderr = run(*arguments, "--devices", 2)
    assert code == 2 and "devices" in stderr and not (here / "out").exists()
    code, _, stderr = run(*arguments)
    assert code == 0 and f"going on {where}" in stderr


def test_a_place_without_a_name_is_refused(run, here):
    code, _, stderr = run("inpaint", *COMMANDS["inpaint"], "--out", "/")
    assert code == 2 and stderr.startswith("ic-jax: /: holds files that are not an earlier result")


def at(step):
    return Midway([], None, None, step, None)


def test_without_a_signal_the_state_is_kept_now_and_then(monkeypatch, tmp_path):
    written = []
    monkeypatch.setattr(resumption.midway, "save", lambda file, step, run: written.append(step))
    steps = [at(step) for step in (1, 2, 3)]
    for seconds, expected in ((1e9, []), (0.0, steps)):
        monkeypatch.setattr(resumption, "SECONDS", seconds)
        with resumption.kept(tmp_path / "out.resume", {}, 9) as keep:
            for step in steps:
                keep(step)
        assert written == expected


def test_the_second_signal_acts_at_once(tmp_path, monkeypatch):
    came = []
    monkeypatch.setattr(resumption.midway, "save", lambda *given: None)
    before = signal.signal(signal.SIGTERM, lambda *_: came.append("now"))
    try:
        with resumption.kept(tmp_path / "out.resume", {}, 9) as keep:
            os.kill(os.getpid(), signal.SIGTERM)  # nothing has been done yet
            assert came == ["now"]
            keep(at(1))
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == ["now"]
            os.kill(os.getpid(), signal.SIGTERM)
            assert came == ["now", "now"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_is_heeded_that_comes_while_a_windows_last_step_is_written(tmp_path, monkeypatch):
    write = lambda *given: os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setattr(resumption.midway, "save", write)
    with pytest.raises(SystemExit) as stopped:
        with resumption.kept(tmp_path / "out.resume", {}, 2) as keep:
            keep(at(1))
            keep(at(2))
            raise AssertionError("decoding takes minutes")
    assert stopped.value.code == 128 + signal.SIGINT


def test_what_a_killed_run_was_writing_goes_with_its_state(tmp_path):
    (tmp_path / ".a[b].resume.123.part").write_text("half a state")
    (tmp_path / ".ab.resume.123.part").write_text("another's")
    with resumption.state_file(tmp_path / "a[b]", wanted=True) as file:
        file.write_text("a state")
    assert [left.name for left in tmp_path.iterdir()] == [".ab.resume.123.part"]


def test_who_cannot_wait_hears_where_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resumption.midway, "save", lambda *given: None)
    monkeypatch.setattr(resumption, "SECONDS", 0.0)
    with pytest.raises(KeyboardInterrupt):
        with resumption.kept(tmp_path / "out.resume", {}, 9) as keep:
            keep(at(4))
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
    told = f"the same command goes on after step 4 of window 1, from {tmp_path / 'out.resume'}"
    assert capsys.readouterr().err == f"ic-jax: {told}\n"


@pytest.mark.parametrize("inherited", [signal.SIG_DFL, signal.SIG_IGN])
def test_a_closed_terminal_stops_a_run_as_well_unless_nohup_forbids_it(
    inherited, tmp_path, monkeypatch
):
    monkeypatch.setattr(resumption.midway, "save", lambda *given: None)
    before = signal.signal(signal.SIGHUP, inherited)
    try:
        with resumption.kept(tmp_path / "out.resume", {}, 9) as keep:
            keep(at(1))
            for _ in range(2):  # as terminals say it
                os.kill(os.getpid(), signal.SIGHUP)
            if inherited is signal.SIG_IGN:
                return keep(at(2))
            with pytest.raises(SystemExit) as stopped:
                keep(at(2))
            assert stopped.value.code == 128 + signal.SIGHUP
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_full_disk_ends_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(resumption, "SECONDS", 0.0)

    def full(*given):
        raise resumption.InputError("cannot write out.resume: No space left on device")

    monkeypatch.setattr(resumption.midway, "save", full)
    with resumption.kept(tmp_path / "out.resume", {}, 9) as keep:
        keep(at(1))
    assert "was not kept: cannot write out.resume: No space left" in capsys.readouterr().err
