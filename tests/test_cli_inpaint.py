"""`ic-jax inpaint` as a user meets it."""

import json
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ic_jax import text
from ic_jax.cli import generator
from ic_jax.model import BUNDLED
from ic_jax.video import read_video, write_video

FILES = {
    "inpainted.mp4",
    "generated.mp4",
    "kept.mp4",
    "visible.mp4",
    "comparison.mp4",
    "summary.png",
    "result.json",
}
FRAMES, HEIGHT, WIDTH = 6, 24, 36
# A quarter of the bundled model's own pixels; results have the clip's size all the same.
SMALL = ["--height", 32, "--width", 48, "--steps", 2]


def test_bundled_clip_is_edited(run, tmp_path):
    out = tmp_path / "inpaint"
    code, stdout, stderr = run("inpaint", "--out", out, *SMALL)
    assert code == 0, stderr
    assert "of the clip was kept" in stdout
    assert {file.name for file in out.iterdir()} == FILES
    source, made = read_video(BUNDLED / "clip.mp4"), read_video(out / "inpainted.mp4")
    assert made.frames.shape == source.frames.shape and made.fps == source.fps
    result = json.loads((out / "result.json").read_text())
    assert "blue cube" in result["prompt"] and result["command"] == "inpaint"
    assert 0.5 < result["coverage"] < 1
    # What the mask keeps is the clip's own, and is measured before and after.
    assert result["settings"]["composite"] is True
    assert result["visible_psnr_db_as_delivered"] > result["visible_psnr_db"] + 3


def test_what_the_model_made_of_the_whole_clip_may_be_shown(run, tmp_path):
    out = tmp_path / "inpaint"
    assert run("inpaint", "--out", out, *SMALL, "--composite", "False")[0] == 0
    result = json.loads((out / "result.json").read_text())
    assert "visible_psnr_db_as_delivered" not in result
    assert (out / "inpainted.mp4").read_bytes() == (out / "generated.mp4").read_bytes()


def test_prompts_embedded_beforehand_give_the_same_frames(run, tmp_path):
    prompt = "a blue cube in a brick room"
    saved = tmp_path / "prompts.safetensors"
    assert run("embed", "nano", "--prompt", prompt, "--out", saved)[0] == 0
    made = []
    for option, value in (("--prompt", prompt), ("--context", saved)):
        out = tmp_path / option.strip("-")
        assert run("inpaint", "--out", out, *SMALL, option, value)[0] == 0
        made.append((out / "inpainted.mp4").read_bytes())
        assert json.loads((out / "result.json").read_text())["prompt"] == prompt
    assert made[0] == made[1]


def test_a_prompt_that_is_too_long_is_cut_and_says_so(run, tmp_path):
    out, prompt = tmp_path / "out", "a very blue cube " * 10
    code, _, stderr = run("inpaint", "--out", out, *SMALL, "--prompt", prompt)
    assert code == 0 and "a prompt is" in stderr and "kept up to" in stderr
    assert len(json.loads((out / "result.json").read_text())["cut"]) == 1


@pytest.fixture
def clip(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", frames, Fraction(8))
    monkeypatch.chdir(tmp_path)


def mask(white, height=HEIGHT, width=WIDTH):
    image = np.zeros((height, width), np.uint8)
    image[: round(white * height)] = 255
    return lambda folder: Image.fromarray(image).save(folder / "mask.png")


def video_mask(frames):
    white = np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8)
    white[:, :8] = 255
    return lambda folder: write_video(folder / "mask.mp4", white, Fraction(8))


def nothing(folder):
    pass


PNG, MP4 = ["--mask", "mask.png"], ["--mask", "mask.mp4"]


@pytest.mark.parametrize(
    "make, options, said",
    [
        (nothing, [], "what is to be made anew? pass --mask"),
        (nothing, PNG, "mask.png: no such file"),
        (nothing, ["--mask", 300 * "x"], f"{300 * 'x'}: File name too long; give another"),
        (mask(0.0), PNG, "mask.png: no white pixel"),
        (mask(1.0), PNG, "mask.png: white everywhere"),
        (mask(0.5, 24, 24), PNG, "mask.png: the mask is 24x24 and clip.mp4 is 36x24"),
        (video_mask(5), MP4, "mask.mp4: 5 frames of mask for 6 frames in clip.mp4"),
        (mask(0.5), [*PNG, "--solver", "rk4"], "unknown --solver 'rk4'; one of euler"),
        (mask(0.5), [*PNG, "--frames", "16"], "--frames is 16; give 1 plus a multiple of 4"),
        (mask(0.5), [*PNG, "--height", "70"], "--height is 70; give a multiple of 16"),
        (mask(0.5), [*PNG, "--seed", "9223372036854775808"], "--seed is 9223372036854775808"),
        (mask(0.5), [*PNG, "--context", "absent.safetensors"], "absent.safetensors"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, clip, tmp_path, make, options, said):
    make(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    code, stdout, stderr = run("inpaint", "clip.mp4", "--out", "out", *options)
    assert code == 2
    last = stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert last.startswith("ic-jax: ") and said in last
    assert "Traceback" not in stderr and stdout == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_sound_that_cannot_be_carried_on_is_told_before_weights_are_read(
    run, clip, tmp_path, monkeypatch
):
    mask(0.5)(tmp_path)
    with av.open("clip.avi", "w") as out:
        picture, sound = out.add_stream("mpeg4", 8), out.add_stream("pcm_u8", 8000, layout="mono")
        picture.width, picture.height, picture.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for image in read_video("clip.mp4").frames:
            out.mux(picture.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        frame = av.AudioFrame.from_ndarray(np.full((1, 8000), 128, np.uint8), "u8", "mono")
        frame.sample_rate = 8000
        out.mux([*picture.encode(), *sound.encode(frame), *sound.encode()])
    file = Path("clip.avi").read_bytes()
    at = file.rindex(b"strf") + 8  # the codec of the sound, which becomes none that there is
    Path("clip.avi").write_bytes(file[:at] + b"\x77\x66" + file[at + 2 :])
    monkeypatch.setattr(generator, "load_uncalibrated", None)
    code, _, stderr = run("inpaint", "clip.avi", "--out", "out", *PNG)
    assert code == 2 and "clip.avi: its audio cannot be read" in stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--refresh-at", "0.001"], "--refresh-at is 0.001, and the last of"),
        (["--guided-from", "0.001"], "no step begins from --guided-from 0.001"),
        (["--calibration", "mask.png"], "mask.png: "),
    ],
)
def test_settings_are_refused_before_weights_are_read(
    run, clip, tmp_path, monkeypatch, options, said
):
    mask(0.5)(tmp_path)
    for module, name in (text, "embed_prompts"), (generator, "load_uncalibrated"):
        monkeypatch.setattr(module, name, None)
    code, stdout, stderr = run("inpaint", "clip.mp4", *PNG, *options)
    assert code == 2 and said in stderr and stdout == ""
