"""`ic-jax calibrate` as a user meets it, on a model folder of a few parameters."""

import json
import shutil
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_model import CHANNELS

from ic_jax.calibration import Calibration, CleanError
from ic_jax.clean_error import LEVELS
from ic_jax.geometry.camera import intrinsics_from_fov
from ic_jax.model import BUNDLED, identify, load_model
from ic_jax.video import read_video, write_video

FRAMES, HEIGHT, WIDTH = 9, 20, 36
SMALL = ["--frames", 9, "--height", 16, "--width", 32]


@pytest.fixture
def model(tiny, tmp_path, monkeypatch):
    """A converted model, and two clips: one of them shorter than a window."""
    shutil.copytree(tiny, tmp_path / "model")
    (tmp_path / "clips").mkdir()
    rng = np.random.default_rng(0)
    for name, frames in (("walk", FRAMES), ("run", 5)):
        noise = rng.integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8)
        write_video(tmp_path / "clips" / f"{name}.mp4", noise, Fraction(8))
    (tmp_path / "clips" / "notes.txt").write_text("not a clip")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model"


CALIBRATE = ["calibrate", "model", "--clips", "clips", *SMALL, "--draws", 1]


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def recapture(run, out, *options):
    depth = np.full((FRAMES, HEIGHT, WIDTH), 3.0, np.float32)
    lens = np.asarray(intrinsics_from_fov(60.0, HEIGHT, WIDTH))
    np.savez("depth.npz", depth=depth, kind="metric", intrinsics=lens)
    clip = ["recapture", "clips/walk.mp4", "--depth", "depth.npz", "--out", out, *SMALL]
    told = ["--model", "model", "--latent-mask", "kernel", *options]
    code, _, stderr = run(*clip, *told)
    assert code == 0, stderr
    result = json.loads((out / "result.json").read_text())
    return read_video(out / "generated.mp4").frames, result


def test_a_calibration_is_measured_kept_used_and_replaced(run, model, tmp_path):
    before = contents(model)
    code, stdout, stderr = run(*CALIBRATE)
    assert code == 0, stderr
    assert stdout.startswith(
        "calibration in model/manifest.json\nclips: 2; clean error at half noise: "
    )
    assert "run.mp4: 5 frames; the last one is repeated up to 9" in stderr

    manifest, was = model / "manifest.json", json.loads(before[model / "manifest.json"])
    after = contents(model)
    assert {file for file in after if before.get(file) != after[file]} == {manifest}
    assert after.keys() == before.keys()
    record = json.loads(manifest.read_text())
    assert record | {"calibration": {}} == was and list(record) == list(was)

    found = record["calibration"]
    assert set(found) == {"variance_scale", "clean_error", "kernel", "measured"}
    assert found["variance_scale"]["response"] > 0
    sigma, variance = found["clean_error"]["sigma"], np.array(found["clean_error"]["variance"])
    assert (sigma[0], sigma[-1]) == (0, 1) and variance.shape == (LEVELS + 1, CHANNELS)
    assert not variance[0].any() and (variance[1:] > 0).all()
    assert np.shape(found["kernel"])[-1] == CHANNELS and np.max(found["kernel"]) > 0
    measured = found["measured"]
    assert (measured["clips"], measured["frames"], measured["seed"]) == (2, 9, 0)
    assert "jax" in measured["versions"] and measured["variant"] == "Tiny"

    frames, result = recapture(run, tmp_path / "measured", "--clean-error", "measured")
    assert result["settings"]["clean_error"] == "measured"
    assert result["settings"]["variance_scale"] == 1, "the kernel was fitted to errors themselves"
    closed, result = recapture(run, tmp_path / "closed")
    assert result["settings"]["clean_error"] == "gaussian"
    assert (frames != closed).any()

    # One that was spoilt by hand is refused, and made again.
    spoilt = found | {"kernel": [1.0]}
    manifest.write_text(json.dumps(record | {"calibration": spoilt}))
    code, _, stderr = run("recapture", "--model", "model", "--out", "none", *SMALL)
    assert code == 2 and "model: its calibration is unfit" in stderr
    (tmp_path / "prompts.json").write_text('{"walk.mp4": "a man walks"}')
    code, stdout, stderr = run(*CALIBRATE, "--prompts", "prompts.json")
    assert code == 0 and "in place of an earlier one" in stdout, stderr
    again = json.loads(manifest.read_text())["calibration"]
    # The same holes and noises; another prompt for the denoiser alone.
    assert again["variance_scale"] == found["variance_scale"]
    assert again["kernel"] == found["kernel"] and again["clean_error"] != found["clean_error"]
    assert again["measured"]["prompts"] == 1

    # A file in place of the folder's own, and the folder as it was.
    manifest.write_bytes(after[manifest])
    code, _, stderr = run(*CALIBRATE, "--out", "mine/calibration.json")
    assert code == 0, stderr
    assert json.loads((tmp_path / "mine" / "calibration.json").read_text()) == found
    manifest.write_bytes(before[manifest])
    told = "--calibration", "mine/calibration.json", "--clean-error", "measured"
    lent, result = recapture(run, tmp_path / "lent", *told)
    np.testing.assert_array_equal(lent, frames)
    assert result["calibration"] == "mine/calibration.json"
    assert result["settings"]["clean_error"] == "measured"


def test_the_bundled_model_is_calibrated_into_a_file(run, model, tmp_path, monkeypatch):
    error = CleanError(jnp.array([0.0, 1.0]), jnp.zeros((2, 16)))
    measured = {"response": 0.25}, Calibration(error)
    monkeypatch.setattr("ic_jax.cli.calibrate.measure", lambda *_, **__: measured)
    nano = ["calibrate", "nano", "--clips", "clips/walk.mp4", *SMALL, "--draws", 1]
    code, stdout, stderr = run(*nano, "--out", "nano.json")
    assert code == 0 and stdout.startswith("calibration in nano.json\n"), stderr
    record = json.loads((tmp_path / "nano.json").read_text())
    assert record["variance_scale"] == {"response": 0.25} and "kernel" not in record
    assert np.shape(record["clean_error"]["variance"]) == (2, 16)


def test_the_bundled_model_knows_the_less_the_more_noise_there_is():
    _, record = identify(BUNDLED)
    levels = np.array(record["clean_error"]["variance"]).mean(1)
    assert levels[0] == 0 and (np.diff(levels) > 0).all()
    assert 0 < record["variance_scale"]["response"] < 1


def nothing(folder):
    pass


def write(name, content):
    def make(folder):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def all_grey(folder):
    grey = np.full((FRAMES, HEIGHT, WIDTH, 3), 90, np.uint8)
    (folder / "grey").mkdir()
    for i, frame in enumerate(grey):
        Image.fromarray(frame).save(folder / "grey" / f"{i}.png")


@pytest.mark.parametrize(
    "spoil, options, said",
    [
        (nothing, {"--clips": "absent"}, "absent: no such file or folder"),
        (write("empty/notes.txt", b"x"), {"--clips": "empty"}, "empty: holds no clips"),
        (write("clips/z.mp4", b"not a video"), {}, "clips/z.mp4: cannot be decoded"),
        (all_grey, {"--clips": "grey"}, "the clips show nothing that a hole could hide"),
        (nothing, {"checkpoint": "nano"}, "the bundled model is not written to; pass --out"),
        (nothing, {"checkpoint": "absent"}, "absent: no such model folder"),
        (nothing, {"checkpoint": "clips"}, "clips: no manifest.json"),
        (nothing, {"--out": "model/manifest.json"}, "is no file that `ic-jax calibrate --out`"),
        (nothing, {"--out": "calibration.txt"}, "give a name that ends in .json"),
        (write("file", b""), {"--out": "file/mine.json"}, "cannot be written"),
        (nothing, {"--draws": 0}, "--draws is 0"),
        (nothing, {"--seed": -1}, "--seed is -1"),
        (nothing, {"--frames": 10}, "--frames is 10; give 1 plus a multiple of 4"),
        (nothing, {"--prompts": "absent.json"}, "absent.json: no such file"),
        (write("p.json", b"{"), {"--prompts": "p.json"}, "p.json: cannot be read as JSON"),
        (write("p.json", b'{"walk.mp4": 3}'), {"--prompts": "p.json"}, 'give {"clip.mp4"'),
        (write("p.json", b'{"fly.mp4": ""}'), {"--prompts": "p.json"}, "fly.mp4 is none of"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, model, tmp_path, spoil, options, said):
    spoil(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    arguments = {"checkpoint": "model", "--clips": "clips", "--draws": 1} | options
    small = {} if "--frames" in options else dict(zip(SMALL[::2], SMALL[1::2]))
    checkpoint, *rest = (word for pair in (arguments | small).items() for word in pair)
    code, stdout, stderr = run("calibrate", *rest)
    assert code == 2 and stdout == ""
    last = stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert last.startswith("ic-jax: ") and said in last
    assert "Traceback" not in stderr
    after = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


def test_a_calibration_of_another_model_is_refused_before_any_weights_are_read(run, tmp_path):
    file = tmp_path / "other.json"
    file.write_text('{"measured": {"variant": "Wan2.1-T2V-14B"}}')
    code, _, stderr = run("recapture", "--calibration", file, "--out", tmp_path / "out")
    assert code == 2 and "was measured on Wan2.1-T2V-14B, and this model is nano" in stderr
    assert not (tmp_path / "out").exists()


def test_an_interrupted_measurement_leaves_the_manifest_alone(run, model, monkeypatch):
    before = contents(model)

    def stopped(*arguments, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr("ic_jax.cli.calibrate.measure", stopped)
    code, stdout, stderr = run(*CALIBRATE)
    assert code == 130 and stdout == "" and stderr.endswith("ic-jax: stopped\n")
    assert contents(model) == before and load_model(model).calibration == {}
