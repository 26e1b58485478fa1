"""The command line as a user meets it: what it leaves behind, and what it says of bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
from fractions import Fraction

import jax
import numpy as np
import pytest

from ic_jax.cli.warp import Warp
from ic_jax.geometry.camera import intrinsics_from_fov
from ic_jax.model import BUNDLED
from ic_jax.video import read_video, write_video

# A quarter of the bundled model's own pixels; results have the clip's size all the same.
SMALL = ["--height", 32, "--width", 48, "--steps", 2]
FILES = {
    "recaptured.mp4",
    "generated.mp4",
    "warped.mp4",
    "visible.mp4",
    "comparison.mp4",
    "summary.png",
    "result.json",
}


def a_clip(folder, frames=6, height=24, width=36, fps=Fraction(24000, 1001)):
    """A textured wall three units away, and its depth file."""
    y, x = np.mgrid[:height, :width]
    image = np.stack([120 + 60 * np.sin(x / 3), 120 + 60 * np.cos(y / 4), 90 + 2 * x], -1)
    clip = np.repeat(image[None].astype(np.uint8), frames, axis=0)
    write_video(folder / "clip.mp4", clip, fps)
    arrays = {
        "depth": np.full((frames, height, width), 3.0, np.float32),
        "kind": "metric",
        "intrinsics": np.asarray(intrinsics_from_fov(60.0, height, width)),
    }
    np.savez(folder / "depth.npz", **arrays)
    return folder / "clip.mp4", folder / "depth.npz", arrays


def test_a_report_of_a_bug_can_say_the_version(run):
    code, stdout, stderr = run("--version")
    assert (code, stdout) == (0, f"ic-jax 0.1.0, jax {jax.__version__}\n"), stderr


def test_bundled_clip_is_recaptured_and_replaced(run, tmp_path):
    out = tmp_path / "new" / "recapture"
    code, stdout, stderr = run("recapture", "--out", out, *SMALL)
    assert code == 0, stderr
    assert "sample" in stderr and "100%" in stderr
    assert str(out) in stdout
    assert {file.name for file in out.iterdir()} == FILES
    source = read_video(BUNDLED / "clip.mp4")
    for name in ("recaptured", "warped", "visible"):
        made = read_video(out / f"{name}.mp4")
        assert made.frames.shape == source.frames.shape and made.fps == source.fps
    result = json.loads((out / "result.json").read_text())
    assert 0.5 < result["coverage"] < 1
    assert set(result["psnr_db"]) == {"visible", "hole", "whole"}
    assert result["settings"]["steps"] == 2 and result["seed"] == 0
    assert {"sample", "decode", "write"} <= set(result["seconds"])

    first = (out / "recaptured.mp4").read_bytes()
    assert run("recapture", "--out", out, *SMALL)[0] == 0
    assert (out / "recaptured.mp4").read_bytes() == first
    assert run("recapture", "--out", out, *SMALL, "--seed", 1)[0] == 0
    assert (out / "recaptured.mp4").read_bytes() != first


@pytest.mark.parametrize("frames, size", [(5, (48, 50)), (31, (33, 97))])
def test_output_has_the_size_length_and_rate_of_the_input(run, tmp_path, frames, size):
    clip, depth, _ = a_clip(tmp_path, frames, *size)
    out = tmp_path / "out"
    # A mask without encodes of its own compiles in a third of the time.
    made_of = clip, "--depth", depth, "--camera", "zoom_out", "--latent-mask", "mean"
    code, _, stderr = run("recapture", *made_of, "--out", out, *SMALL)
    assert code == 0, stderr
    made = read_video(out / "recaptured.mp4")
    assert made.frames.shape == (frames, *size, 3)
    assert made.fps == Fraction(24000, 1001)
    windows = json.loads((out / "result.json").read_text())["windows"]
    assert windows[0][0] == 0 and windows[-1][1] == frames
    assert all(later[0] == earlier[1] - 5 for earlier, later in zip(windows, windows[1:]))


def test_whoever_reads_only_the_first_lines_sees_no_traceback():
    command = [sys.executable, "-c", "from ic_jax.cli import main; main()", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


STARTING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {root!r})
sys.path.insert(0, {stub!r})
from ic_jax_start import main
main()
"""
SWALLOWING = """
import time
print("importing", flush=True)
try:
    time.sleep(60)
except BaseException as error:
    raise ImportError("half done") from error
"""


def test_ctrl_c_while_libraries_are_imported_is_one_line(tmp_path, request):
    (tmp_path / "ic_jax.py").write_text(SWALLOWING)
    code = STARTING.format(root=str(request.config.rootpath), stub=str(tmp_path))
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == b"importing\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1] == b"ic-jax: stopped; nothing was written\n"
    assert process.returncode == 130


WAITING = """
import shutil, signal, sys, time
signal.signal(signal.SIGHUP, {inherited})
remove = shutil.rmtree
def remove_when_told_again(*arguments, **named):
    signal.raise_signal(signal.SIGHUP)
    remove(*arguments, **named)
shutil.rmtree = remove_when_told_again
from ic_jax import delivery
from ic_jax.cli import main
def wait(*arguments):
    print("writing", flush=True)
    {wait}
delivery.write_like = wait
sys.argv = ["ic-jax", "warp", "--out", {out!r}]
main()
"""


@pytest.mark.parametrize("inherited", ["signal.SIG_DFL", "signal.SIG_IGN"])
def test_a_closed_terminal_leaves_nothing_unless_nohup_has_it_ignored(tmp_path, inherited):
    wait = "time.sleep(60)" if inherited == "signal.SIG_DFL" else "sys.stdin.readline()"
    code = WAITING.format(inherited=inherited, wait=wait, out=str(tmp_path / "out"))
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen([sys.executable, "-c", code], **pipes) as process:
        assert process.stdout.readline() == b"writing\n"
        assert [path.name for path in tmp_path.iterdir()] != []
        process.send_signal(signal.SIGHUP)
        _, errors = process.communicate(b"go on\ngo on\n", timeout=60)
    assert b"ic-jax" not in errors and b"Traceback" not in errors  # the bar alone
    if inherited == "signal.SIG_IGN":
        assert process.returncode == 0 and (tmp_path / "out" / "result.json").exists()
    else:
        assert process.returncode == 128 + signal.SIGHUP and not list(tmp_path.iterdir())


def test_a_device_that_is_not_there_is_one_line(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "nowhere"}
    told = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True}
    command = [sys.executable, "-m", "ic_jax"]
    made, needs_none = (subprocess.run([*command, name], **told) for name in ("warp", "info"))
    assert made.returncode == 2 and made.stdout == "" and not list(tmp_path.iterdir())
    assert made.stderr.startswith("ic-jax: JAX_PLATFORMS is nowhere, and JAX cannot use that here")
    assert made.stderr.endswith("or unset JAX_PLATFORMS\n") and made.stderr.count("\n") == 1
    assert needs_none.returncode == 0 and needs_none.stderr == ""


def test_a_plugin_that_only_asserts_is_told_of_too_but_no_other_mistake(run, monkeypatch):
    def fail(*given):
        raise AssertionError

    monkeypatch.setattr(Warp, "run", fail)
    with pytest.raises(AssertionError):
        run("warp")
    monkeypatch.setattr(jax, "devices", fail)
    code, _, stderr = run("warp")
    assert code == 2 and "JAX cannot use that here: there is none; install" in stderr


def test_a_result_that_is_read_is_not_replaced(run, tmp_path, monkeypatch):
    a_clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    options = "--depth", "depth.npz", "--camera", "zoom_in"
    assert run("warp", "clip.mp4", *options)[0] == 0
    before = (tmp_path / "warp" / "warped.mp4").read_bytes()
    code, _, stderr = run("warp", "warp/warped.mp4", *options)
    assert code == 2 and "warp/warped.mp4: lies in warp, which would be replaced" in stderr
    assert (tmp_path / "warp" / "warped.mp4").read_bytes() == before


def test_warp_is_geometry_at_the_clips_own_size(run, tmp_path):
    clip, depth, _ = a_clip(tmp_path)
    code, _, stderr = run(
        "warp", clip, "--depth", depth, "--camera", "zoom_in", "--out", tmp_path / "out"
    )
    assert code == 0, stderr
    assert read_video(tmp_path / "out" / "warped.mp4").frames.shape == (6, 24, 36, 3)
    # Nothing is disoccluded when one walks up to a wall.
    assert json.loads((tmp_path / "out" / "result.json").read_text())["coverage"] > 0.999


def changed(**fields):
    def spoil(folder, arrays):
        arrays |= {k: v(arrays) if callable(v) else v for k, v in fields.items()}
        np.savez(folder / "depth.npz", **arrays)

    return spoil


def bad_depth(value):
    def depth(arrays):
        spoilt = arrays["depth"].copy()
        spoilt[2, 3, 4] = value
        return spoilt

    return changed(depth=depth)


def without_depth(folder, arrays):
    np.savez(folder / "depth.npz", disparity=arrays["depth"])


def poses(matrix):
    def spoil(folder, arrays):
        (folder / "path.json").write_text(json.dumps({"c2w": [matrix.tolist()] * 6}))

    return spoil


def write(name, content):
    return lambda folder, arrays: (folder / name).write_bytes(content)


def no_clip(folder, arrays):
    (folder / "clip.mp4").unlink()


def cut_clip(folder, arrays):
    whole = (folder / "clip.mp4").read_bytes()
    (folder / "clip.mp4").write_bytes(whole[: len(whole) // 2])


def other_peoples_files(folder, arrays):
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("years of work")


def truncated_weights(folder, arrays):
    shutil.copytree(BUNDLED, folder / "model")
    whole = (folder / "model" / "vae.safetensors").read_bytes()
    (folder / "model" / "vae.safetensors").write_bytes(whole[:-1000])


PATH = ["--camera", "path.json"]


@pytest.mark.parametrize(
    "spoil, options, said",
    [
        (no_clip, [], "clip.mp4: no such file"),
        (write("clip.mp4", b"not a video"), [], "clip.mp4"),
        (write("clip.mp4", b""), [], "clip.mp4"),
        (cut_clip, [], "clip.mp4"),
        (changed(depth=np.ones((6, 24))), [], "depth.npz: depth has shape"),
        (changed(depth=np.ones((5, 24, 36))), [], "depth.npz: 5 frames of depth for 6"),
        (changed(depth=np.ones((6, 24, 24))), [], "depth.npz: depth is 24x24"),
        (without_depth, [], "depth.npz: no array named depth"),
        (bad_depth(np.nan), [], "depth.npz: 1 of"),
        (bad_depth(0.0), [], "the first in frame 2"),
        (bad_depth(-1.0), [], "depth.npz: 1 of"),
        (changed(intrinsics=np.zeros((3, 3))), [], "depth.npz: intrinsics of frame 0"),
        (changed(kind="guess"), [], "depth.npz: unknown kind"),
        (poses(2 * np.eye(4)), PATH, "path.json: c2w of frame 0 is not a rigid transform"),
        (write("path.json", b"{"), PATH, "path.json: not a JSON file"),
        (None, ["--camera", "path.json"], "path.json: cannot read"),
        (None, ["--camera", "arc_lef"], "did you mean arc_left?"),
        (poses(np.diag([-1.0, 1.0, -1.0, 1.0])), PATH, "the new camera sees nothing"),
        (None, ["--camera", "zoom_in", "--amount", "1e39"], "farther than float32 goes"),
        (None, ["--latent-mask", "magic"], "unknown --latent-mask 'magic'; one of nearest"),
        (None, ["--steps", "0"], "--steps is 0"),
        (None, ["--consistency", "magic"], "unknown --consistency 'magic'; one of none, dds"),
        (None, ["--consistency", "dds", "--gamma", "inf"], "--gamma is inf"),
        (None, ["--gamma", "2"], "--consistency bayes_draw has no --gamma"),
        (None, ["--guidance-scale-low", "2"], "nano: has one expert; leave --guidance-scale-low"),
        (
            None,
            ["--consistency", "ddnm", "--clean-error", "measured"],
            "--consistency ddnm does not ask how wrong the model is; leave --clean-error out",
        ),
        (None, ["--consistency", "dds", "--noise", "loud"], "unknown --noise 'loud'; one of"),
        (None, ["--consistency", "flair", "--guided-to", "0.5"], "flair has no noisy trajectory"),
        (None, ["--refresh-at", "1.5"], "--refresh-at is 1.5"),
        (None, ["--reuse", "-1"], "--reuse is -1; give a whole number from 0"),
        (None, ["--consistency", "dps", "--reuse", "1"], "dps asks the model more than once"),
        (None, ["--devices", "99"], "--devices is 99; give a number from 1 to 8"),
        (None, ["--guided-from", "0.2", "--guided-to", "0.5"], "--guided-from is below"),
        (None, ["--model", "absent"], "absent: no such model folder"),
        (truncated_weights, ["--model", "model"], "vae.safetensors is damaged"),
        (other_peoples_files, [], "holds files that are not an earlier result"),
        (write("file", b""), ["--out", "file/out"], "cannot be written"),
        (None, ["--truth", "absent.mp4"], "absent.mp4: no such file"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(run, tmp_path, monkeypatch, spoil, options, said):
    *_, arrays = a_clip(tmp_path)
    monkeypatch.chdir(tmp_path)
    if spoil:
        spoil(tmp_path, arrays)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    arguments = {"--depth": "depth.npz", "--out": "out"}
    arguments |= dict(zip(options[::2], options[1::2]))
    code, stdout, stderr = run(
        "recapture", "clip.mp4", *(word for pair in arguments.items() for word in pair)
    )
    assert code == 2
    last = stderr.replace("\r", "\n").strip().split("\n")[-1]
    assert last.startswith("ic-jax: ") and said in last
    assert "Traceback" not in stderr and stdout == ""
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
