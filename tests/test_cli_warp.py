"""`ic-jax warp` as a user meets it, and what clips any command takes: rates and sizes."""

import json
from fractions import Fraction
from inspect import signature
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from ic_jax.budget import Memory
from ic_jax.cli import source, warp
from ic_jax.cli.job_file import read_jobs
from ic_jax.geometry.camera import intrinsics_from_fov
from ic_jax.video import read_video, write_video

FRAMES, HEIGHT, WIDTH = 9, 24, 36
WARP = "warp", "frames", "--depth", "depth.npz", "--camera", "zoom_in"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A clip as a file and as a folder of frames, its depth and a mask."""
    monkeypatch.chdir(tmp_path)
    clip = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    write_video("clip.mp4", clip, Fraction(8))
    Path("frames").mkdir()
    for number, image in enumerate(clip):
        Image.fromarray(image).save(f"frames/{number}.png")
    Image.fromarray(np.eye(HEIGHT, WIDTH, dtype=np.uint8) * 255).save("mask.png")
    lens = np.asarray(intrinsics_from_fov(60.0, HEIGHT, WIDTH))
    depth = np.full((FRAMES, HEIGHT, WIDTH), 3.0, np.float32)
    np.savez("depth.npz", depth=depth, kind="metric", intrinsics=lens)
    return tmp_path


@pytest.mark.parametrize("fps", [None, 1, 12.5, 23.976, 1000])
def test_a_folder_of_frames_has_the_rate_that_it_is_given(run, fps):
    code, _, stderr = run(*WARP, *(() if fps is None else ("--fps", fps)))
    assert code == 0, stderr
    stated = Fraction(json.loads(Path("warp/result.json").read_text())["fps"])
    usual = signature(read_video).parameters["fps"].default
    assert read_video("warp/warped.mp4").fps == stated == (usual if fps is None else stated)
    assert fps is None or float(stated) == fps


def test_every_command_that_makes_a_clip_takes_a_rate():
    given = {"clip": "frames", "fps": 12, "seed": 1}
    jobs = (
        {"command": "inpaint", "mask": "mask.png", "out": "a", **given},
        {"command": "recapture", "depth": "depth.npz", "out": "b", **given},
    )
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))
    lines = read_jobs(Path("jobs.jsonl"), Path("out"))
    assert [line.job.read().clip.fps for line in lines] == [12, 12]


@pytest.mark.parametrize(
    "options, said",
    [
        (["clip.mp4", "--fps", "12"], "clip.mp4: states its own rate; leave --fps out"),
        (["frames", "--fps", "0"], "--fps is 0.0; give a number from 1 to 1000"),
        (["frames", "--fps", "nan"], "--fps is nan; give a number from 1 to 1000"),
    ],
)
def test_a_rate_that_does_not_fit_is_refused(run, here, options, said):
    for command in ["warp"], ["recapture"], ["inpaint", "--mask", "mask.png"]:
        depth = [] if command[0] == "inpaint" else ["--depth", "depth.npz"]
        code, stdout, stderr = run(*command, *options, *depth, "--out", "out")
        assert (code, stdout, stderr) == (2, "", f"ic-jax: {said}\n")
    assert not Path("out").exists()
    assert run("warp", "--fps", "12")[2].startswith("ic-jax: the bundled clip: states its own rate")


def test_depth_of_another_tool_needs_no_file_of_ours(run):
    """The same view from a folder of PNGs in millimetres, whose unit and kind are told."""
    Path("depth").mkdir()
    for number in range(FRAMES):
        Image.fromarray(np.full((HEIGHT, WIDTH), 3000, np.uint16)).save(f"depth/{number}.png")
    assert run(*WARP)[0] == 0
    told = "--depth-kind", "metric", "--depth-scale", 0.001, "--fov", 60
    code, _, stderr = run(*WARP[:3], "depth", *WARP[4:], *told, "--out", "same")
    assert code == 0, stderr
    ours, theirs = (read_video(f"{out}/warped.mp4").frames for out in ("warp", "same"))
    np.testing.assert_array_equal(ours, theirs)
    assert json.loads(Path("same/result.json").read_text())["depth_scale"] == 0.001


def test_how_far_a_warp_is_shows(run):
    code, _, stderr = run(*WARP)
    assert code == 0 and "warp:" in stderr and "write:" in stderr and "4/4" in stderr


@pytest.mark.parametrize("clip", ["clip.mp4", "frames"])
def test_a_clip_beyond_the_hosts_memory_is_refused_and_not_read_to_its_end(run, monkeypatch, clip):
    options = clip, "--depth", "depth.npz", "--camera", "zoom_in", "--out", "out"
    of_six = Memory(15 * 6 * HEIGHT * WIDTH, 0)
    monkeypatch.setattr(source, "host_memory", lambda: of_six)
    monkeypatch.setattr(source, "load_shot", None)
    for command in "warp", "recapture":
        code, stdout, stderr = run(command, *options)
        assert code == 2 and stdout == "" and stderr.count("\n") == 1
        assert stderr.startswith(f"ic-jax: {clip}: this host has memory for 6 frames of 36x24")
        assert stderr.endswith("give a shorter or smaller clip\n") and not Path("out").exists()


def test_a_clip_that_may_fit_is_not_refused(run, monkeypatch):
    size = 15 * FRAMES * HEIGHT * WIDTH
    for memory in Memory(size, 0), None:
        monkeypatch.setattr(source, "host_memory", lambda memory=memory: memory)
        assert run(*WARP)[0] == 0


@pytest.mark.parametrize(
    "error, who",
    [
        (MemoryError("Unable to allocate 9 GiB"), "this host"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "a device"),
    ],
)
def test_a_warp_without_memory_names_no_option_that_it_has_not(run, monkeypatch, error, who):
    def look(shot, progress):
        raise error

    monkeypatch.setattr(warp, "look", look)
    code, stdout, stderr = run(*WARP)
    last = stderr.replace("\r", "\n").strip().split("\n")[-1].strip()
    assert code == 2 and stdout == "" and not Path("warp").exists()
    assert last == f"ic-jax: {who} ran out of memory; give a shorter or smaller clip"
