"""Many clips: each as it is alone, each once, and one clear line for each that cannot be made."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from errno import EACCES
from fractions import Fraction
from pathlib import Path
from threading import Event

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tiny_folder import NAME, write_tiny
from tiny_model import TINY, tiny_context, tiny_weights
from tiny_window import stand_in

from ic_jax import text
from ic_jax.batch import begin, side_by_side, window
from ic_jax.budget import Memory, need
from ic_jax.choices import resolve
from ic_jax.cli import spread, studio
from ic_jax.cli.job_file import read_jobs
from ic_jax.cli.spread import places
from ic_jax.director import direct
from ic_jax.edit import Edit
from ic_jax.errors import InputError
from ic_jax.geometry.camera import intrinsics_from_fov
from ic_jax.model import Model
from ic_jax.models.variants import VARIANTS
from ic_jax.output import holds_result
from ic_jax.parallel import MeshShape, OverClips, per_device
from ic_jax.settings import Settings
from ic_jax.video import read_video, write_video

HERE = Path(__file__).parent
HEIGHT, WIDTH = 20, 36
SMALL = "--frames", 9, "--devices", 2
MODEL = Model(NAME, TINY.resized(9, None, None), tiny_weights(), {})


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def here(written, tmp_path, monkeypatch):
    """A folder with a model, clips of two lengths, a mask and depth."""
    monkeypatch.setitem(VARIANTS, NAME, TINY)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(written)
    for name, frames in ("short", 9), ("long", 12):
        noise = np.random.default_rng(frames).integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8)
        write_video(f"{name}.mp4", noise, Fraction(8))
    white = np.zeros((HEIGHT, WIDTH), np.uint8)
    white[5:12, 10:30] = 255
    Image.fromarray(white).save("mask.png")
    lens = np.asarray(intrinsics_from_fov(60.0, HEIGHT, WIDTH))
    depth = np.full((9, HEIGHT, WIDTH), 3.0, np.float32)
    np.savez("depth.npz", depth=depth, kind="metric", intrinsics=lens)
    return tmp_path


def edit(**options):
    return {"command": "inpaint", "clip": "short.mp4", "mask": "mask.png", "steps": 2, **options}


def view(**options):
    return {
        "command": "recapture",
        "clip": "short.mp4",
        "depth": "depth.npz",
        "steps": 2,
        **options,
    }


def write_jobs(*jobs):
    Path("jobs.jsonl").write_text("".join(json.dumps(job) + "\n" for job in jobs))


@pytest.fixture
def batch(here, run):
    """Runs the command on these jobs."""

    def call(*jobs):
        write_jobs(*jobs)
        return run("batch", "jobs.jsonl", "--model", "model", "--out", "out", *SMALL)

    return call


def full(*given):
    raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes")


def footage(frames, seed):
    rng = np.random.default_rng(seed)
    keep = rng.uniform(size=(frames, HEIGHT, WIDTH)) < 0.7
    return Edit(rng.integers(0, 256, (frames, HEIGHT, WIDTH, 3), np.uint8), keep)


# Alone on each of two devices, with an odd one; and each on two devices of a mesh of four.
@pytest.mark.parametrize("devices, lengths", [(2, (12, 5, 9)), (4, (9, 12))])
def test_a_clip_is_what_it_is_alone(here, devices, lengths):
    settings = resolve(Settings(steps=2), MODEL, editing=True)
    where = places(here / "model", MODEL.variant, {2}, devices, len(lengths))
    assert (where.count, where.devices_each) == (2, devices // 2)
    placed = MODEL._replace(weights=jax.device_put(MODEL.weights, where.shardings))
    reels = [
        begin(MODEL, str(n), footage(frames, n), np.asarray(tiny_context(n)), seed=n)
        for n, frames in enumerate(lengths)
    ]
    # Of another, whose model overflows, there is no window after the first.
    bad = begin(MODEL, "bad", footage(12, 0), np.full_like(tiny_context(), np.nan), seed=0)
    run = where.over(window(MODEL.variant, settings, where.layout))
    takes = dict(side_by_side(placed, settings, [bad, *reels], run, where.count))
    assert "the sample is not finite" in str(takes.pop("bad"))
    assert takes.keys() == {str(n) for n in range(len(lengths))}
    for n, frames in enumerate(lengths):
        alone = direct(MODEL, settings, footage(frames, n), tiny_context(n), seed=n)
        made = takes[str(n)].generated
        assert made.shape == (frames, HEIGHT, WIDTH, 3)
        # Equal to 1e-5 in [-1, 1]: few bytes round to a neighbour, and none further.
        off = np.abs(made.astype(int) - alone.generated)
        assert off.max() <= 1 and off.mean() < 1e-3


def test_a_batch_is_made_once_and_what_fails_is_one_line(here, batch, run):
    Path("damaged.mp4").write_bytes(Path("short.mp4").read_bytes()[:400])
    jobs = [
        edit(clip="long.mp4", seed=3, prompt="a red ball"),
        edit(out="other", negative_prompt="a blue ball"),
        view(camera="zoom_out", amount=0.2),
        edit(clip="damaged.mp4"),
    ]
    code, stdout, stderr = batch(*jobs)
    assert code == 1 and "made 3, failed 1, there before 0" in stdout, stderr
    (line,) = [line for line in stderr.replace("\r", "\n").split("\n") if "line 4" in line]
    assert line.startswith("ic-jax: jobs.jsonl, line 4: damaged.mp4: ")
    assert {path.name for path in (here / "out").iterdir()} == {"long", "other", "short"}

    record = json.loads((here / "out" / "long" / "result.json").read_text())
    assert record["seed"] == 3 and record["prompt"] == "a red ball" and record["frames"] == 12
    assert record["windows"] == [[0, 9], [4, 12]] and record["batch"]["job"] == jobs[0]
    options = "--mask", "mask.png", "--seed", 3, "--prompt", "a red ball", "--steps", 2
    more = "--model", "model", "--frames", 9, "--out", "alone"
    assert run("inpaint", "long.mp4", *options, *more)[0] == 0
    assert {path.name for path in (here / "alone").iterdir()} == set(record["files"])
    made, alone = (
        read_video(here / folder / "generated.mp4").frames.astype(int)
        for folder in ("out/long", "alone")
    )
    # The rounding of another program, and then of the video codec.
    assert np.abs(made - alone).max() <= 4 and np.abs(made - alone).mean() < 0.1

    Path("damaged.mp4").write_bytes(Path("short.mp4").read_bytes())
    jobs[1]["seed"] = 5
    code, stdout, stderr = batch(*jobs)
    assert code == 0 and "made 2, failed 0, there before 2" in stdout, stderr
    code, stdout, _ = batch(*jobs)
    assert code == 0 and "made 0, failed 0, there before 4" in stdout


def test_what_was_made_of_another_file_is_made_anew(here, batch, monkeypatch):
    monkeypatch.setattr(studio, "window", stand_in)
    mask = np.asarray(Image.open("mask.png"))
    Path("frames").mkdir()
    for n in range(9):
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 9 * n, np.uint8)).save(f"frames/{n}.png")
    Path("path.json").write_text(json.dumps({"c2w": [np.eye(4).tolist()] * 9}))
    jobs = edit(clip="frames"), edit(out="edit"), view(out="view", camera="path.json")
    assert "made 3, failed 0, there before 0" in batch(*jobs)[1]

    lens = np.asarray(intrinsics_from_fov(60.0, HEIGHT, WIDTH))
    depth = np.full((9, HEIGHT, WIDTH), 2.0, np.float32)
    away = np.diag([1.0, 1.0, 1.0, 1.0])
    away[2, 3] = -0.1
    for change, made in (
        (lambda: os.utime("mask.png", (0, 0)), 0),  # the same bytes, from a bucket or a backup
        (lambda: Path("frames/.3.png").write_bytes(b"of macOS"), 0),
        (lambda: Image.fromarray(mask[::-1]).save("mask.png"), 2),
        (lambda: Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save("frames/3.png"), 1),
        (lambda: Path("frames/8.png").rename("frames/01.png"), 1),
        (lambda: np.savez("depth.npz", depth=depth, kind="metric", intrinsics=lens), 1),
        (lambda: Path("path.json").write_text(json.dumps({"c2w": [away.tolist()] * 9})), 1),
    ):
        change()
        for expected in (made, 0):
            said = batch(*jobs)[1]
            assert f"made {expected}, failed 0, there before {3 - expected}" in said


def test_what_an_earlier_version_made_stays(here, batch, monkeypatch):
    """It kept no word of the files."""
    monkeypatch.setattr(studio, "window", stand_in)
    assert "made 1" in batch(edit())[1]
    file = here / "out" / "short" / "result.json"
    record = json.loads(file.read_text())
    assert record.pop("inputs").keys() == {"clip", "mask"}
    file.write_text(json.dumps(record))
    assert "made 0, failed 0, there before 1" in batch(edit())[1]


def test_two_hosts_make_each_clip_once(here):
    write_jobs(*(edit(out=name, steps=1) for name in "cab"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": str(HERE.parent)}
    hosts = [
        subprocess.Popen(
            [sys.executable, str(HERE / "loopback_batch.py"), "batch", "jobs.jsonl"]
            + ["--model", "model", "--frames", "9", "--devices", "1", "--coordinator", address]
            + ["--num-processes", "2", "--process-id", str(n)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(2)
    ]
    try:
        said = [host.communicate(timeout=560)[0] for host in hosts]
    finally:
        for host in hosts:
            host.kill()
    assert [host.returncode for host in hosts] == [0, 0]
    # Gloo has a line of its own on the same stream.
    shares = [text.splitlines()[-1].split(";")[0] for text in said]
    assert shares == ["made 2, failed 0, there before 0", "made 1, failed 0, there before 0"]
    assert {path.name for path in (here / "batch").iterdir()} == set("abc")


@pytest.mark.parametrize(
    "job, complaint",
    [
        (edit(command="repaint"), "command is 'repaint'; give recapture or inpaint"),
        (edit(promt="a ball"), "unknown 'promt'; did you mean prompt?"),
        (edit(depth="depth.npz"), "unknown 'depth'"),
        (edit(model="model"), "model is the same for all jobs; give it on the command line"),
        (edit(steps="20"), 'steps is "20"; give a whole number or null'),
        (edit(seed=True), "seed is true; give a whole number"),
        (edit(shift=10**400), "give a number or null"),
        (edit(seed=-1), "--seed is -1"),
        (edit(steps=0), "--steps is 0; give a whole number from 1 to 1000"),
        (edit(solver="heun"), "unknown --solver 'heun'"),
        (edit(clip="absent.mp4"), "clip: absent.mp4: no such file or folder"),
        (edit(clip=300 * "x"), f"{300 * 'x'}: File name too long; give another"),
        (edit(clip=None), "has no clip"),
        (edit(clip=""), "has no clip"),
        (edit(clip="/"), "out is ''; give a plain name"),
        (edit(mask=None), "what is to be made anew?"),
        (view(depth=None), "its depth is needed too"),
        (view(camera="sideways"), "unknown camera path 'sideways'"),
        (view(camera="path.json"), "path.json: cannot read the camera path"),
        (edit(context="mask.png"), "mask.png: is no file that `ic-jax embed` wrote"),
        (edit(out="../elsewhere"), "out is '../elsewhere'; give a plain name"),
        (edit(out="a\0b"), "out is 'a\\x00b'; give a plain name"),
        (edit(out="\ud800"), "out is '\\ud800'; give a plain name"),
        (edit(out="é" * 101), "out has 202 bytes; give a name of 200 at most"),
        (edit(out="fine"), "out is 'fine', as in jobs.jsonl, line 1; give one of them another"),
        (edit(clip="out/old/inpainted.mp4", out="old"), "lies in out/old, which would be replaced"),
        (edit(clip="out/old", out="old"), "out/old: lies in out/old"),
        (edit(mask="out/old/inpainted.mp4", out="old"), "lies in out/old"),
        (edit(out="letters"), "letters: holds files that are not an earlier result"),
        (["inpaint"], "is no JSON object"),
        (edit(command=["inpaint"]), "command is ['inpaint']; give recapture or inpaint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_job_that_cannot_be_made_keeps_all_from_being_begun(here, batch, job, complaint):
    (here / "out" / "letters").mkdir(parents=True)
    (here / "out" / "letters" / "letter.txt").write_text("dear")
    (here / "out" / "old").mkdir()
    (here / "out" / "old" / "inpainted.mp4").write_bytes(b"")
    record = {"made_by": "ic-jax", "files": ["inpainted.mp4", "result.json"]}
    (here / "out" / "old" / "result.json").write_text(json.dumps(record))
    code, stdout, stderr = batch(edit(out="fine"), job, edit(out="also_fine"))
    assert code == 2 and stdout == ""
    first, last = stderr.strip().split("\n")
    assert first.startswith("ic-jax: jobs.jsonl, line 2: ") and complaint in first
    assert last == "ic-jax: 1 of 3 jobs cannot be run; nothing was written"
    assert {path.name for path in (here / "out").iterdir()} == {"letters", "old"}


@pytest.mark.parametrize(
    "content, complaint",
    [
        (None, "jobs.jsonl: cannot be read (No such file or directory)"),
        (b"\n\n", "jobs.jsonl: holds no job"),
        (b"\xff", "jobs.jsonl: cannot be read (is no text)"),
        (b"{", "jobs.jsonl, line 1: is not JSON"),
        (b"[" * 100_000, "jobs.jsonl, line 1: is not JSON"),
    ],
)
def test_a_file_without_jobs_is_refused(here, run, content, complaint):
    if content is not None:
        Path("jobs.jsonl").write_bytes(content)
    code, stdout, stderr = run("batch", "jobs.jsonl", "--model", "model", *SMALL)
    assert code == 2 and stdout == "" and complaint in stderr
    assert not (here / "batch").exists()


def test_a_job_ends_with_its_line_whatever_its_prompt_holds(here):
    job = edit(prompt="a ball\u2028and a cube\x85")
    Path("jobs.jsonl").write_text("\ufeff" + json.dumps(job, ensure_ascii=False) + "\r\n\r\n")
    (line,) = read_jobs(Path("jobs.jsonl"), Path("out"))
    assert line.job.generator.prompt == job["prompt"]


def test_a_size_beyond_all_machines_is_refused(here, run):
    write_jobs(edit())
    code, _, stderr = run("batch", "jobs.jsonl", "--model", "model", "--frames", 4 * 10**20 + 1)
    assert code == 2 and "give a number up to 65536" in stderr


@pytest.mark.parametrize(
    "out, complaint",
    [
        ("mask.png", "mask.png: is no folder that can be written into; choose another --out"),
        ("mask.png/deeper", "mask.png: is no folder that can be written into"),
        ("x" * 300, "cannot be written (File name too long); choose another --out"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_anything_is_made(
    here, run, monkeypatch, out, complaint
):
    write_jobs(edit())
    monkeypatch.setattr("ic_jax.cli.batch.Batch._make", None)
    code, _, stderr = run("batch", "jobs.jsonl", "--model", "model", *SMALL, "--out", out)
    assert code == 2 and complaint in stderr


def test_a_host_that_has_nothing_to_make_waits_for_the_others(here, run, monkeypatch):
    told = "ic_jax.cli.batch.note", "ic_jax.cli.batch.barrier"
    came = []
    for name in told:
        monkeypatch.setattr(name, lambda *said, name=name: came.append(name))
    assert run("batch", "nowhere.jsonl", "--model", "model")[0] == 2
    assert came == [*told]  # nobody should have to wait for the reason

    monkeypatch.setattr("ic_jax.cli.batch.read_jobs", full)
    assert run("batch", "nowhere.jsonl", "--model", "model")[0] == 2
    assert came == 2 * [*told]

    def failing(*given):
        raise jax.errors.JaxRuntimeError("INTERNAL: a device has failed")

    monkeypatch.setattr("ic_jax.cli.batch.read_jobs", failing)
    with pytest.raises(jax.errors.JaxRuntimeError, match="has failed"):
        run("batch", "nowhere.jsonl", "--model", "model")
    assert came == [*told, *told, told[1]]

    def locked(*given):
        raise PermissionError(EACCES, os.strerror(EACCES), "locked.jsonl")

    monkeypatch.setattr("ic_jax.cli.batch.read_jobs", locked)
    assert run("batch", "locked.jsonl", "--model", "model")[0] == 2
    assert came == [*told, *told, told[1], *told]


def test_a_host_whose_share_is_there_already_waits_for_the_others(here, run, monkeypatch):
    write_jobs(edit())
    came = []
    monkeypatch.setattr("ic_jax.cli.batch.holds_result", lambda *given: True)
    monkeypatch.setattr("ic_jax.cli.batch.barrier", lambda: came.append("barrier"))
    code, stdout, _ = run("batch", "jobs.jsonl", "--model", "model", *SMALL)
    assert code == 0 and "there before 1" in stdout and came == ["barrier"]


@pytest.fixture
def records(here, run, monkeypatch):
    """What a result would have to follow from to count as the job's, with more options."""

    def record(*options):
        code, _, stderr = run("batch", "jobs.jsonl", "--model", "model", *SMALL, *options)
        assert code == 0, stderr
        return kept.pop()

    kept = []
    keep = lambda self, lines, found: kept.extend(line.record for line in lines) or 0
    monkeypatch.setattr("ic_jax.cli.batch.Batch._make", keep)
    write_jobs(edit())
    return record


def test_a_calibration_is_known_by_what_it_holds(records):
    def of(scale):
        record = {"measured": {"variant": NAME}, "variance_scale": {"mean": scale}}
        Path("mine.json").write_text(json.dumps(record))
        return records("--calibration", "mine.json")

    assert of(0.25) == of(0.25) != of(0.5)


def test_a_result_of_another_size_or_model_is_another(records):
    before = records()
    assert records() == before
    for other in ("--frames", 13), ("--height", 32), ("--width", 48):
        assert records(*other) != before
    manifest = Path("model").resolve() / "manifest.json"
    Path("other").mkdir()
    for path in manifest.parent.iterdir():
        if path != manifest:
            (Path("other") / path.name).symlink_to(path)
    changed = json.loads(manifest.read_text()) | {"versions": {"jax": "1"}}
    (Path("other") / manifest.name).write_text(json.dumps(changed))
    assert records("--model", "other") != before


@pytest.mark.parametrize("reuse", [0, 1])
def test_the_memory_of_a_batch_is_that_with_reuse_where_a_job_asks_for_it(
    here, run, monkeypatch, reuse
):
    def places(folder, sizes, prompts, devices, clips, reusing):
        raise InputError(f"{prompts}, {devices}, {clips}, {reusing}")

    write_jobs(edit(out="a"), edit(out="b", reuse=reuse), edit(out="c"))
    monkeypatch.setattr("ic_jax.cli.batch.places", places)
    code, _, stderr = run("batch", "jobs.jsonl", "--model", "model", *SMALL)
    assert code == 2 and f"{{2}}, 2, {2 if reuse else 3}, {reuse > 0}" in stderr


@pytest.fixture
def interruptible():
    """Whoever runs in the background of a script inherits that Ctrl-C is ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_batch_that_is_stopped_ends_what_it_writes_and_begins_nothing(here, batch, monkeypatch):
    monkeypatch.setattr(studio, "window", stand_in)
    call, write, rounds, second = OverClips.__call__, studio.deliver, [], Event()

    def over(*given):
        rounds.append(given)
        if len(rounds) == 2:
            second.set()
            for _ in range(1200):  # until Ctrl-C; one long wait may begin just after it
                time.sleep(0.05)
        return call(*given)

    def deliver(job, *given):
        if job.out.name == "a":
            assert second.wait(60)
            os.kill(os.getpid(), signal.SIGINT)
        return write(job, *given)

    monkeypatch.setattr(OverClips, "__call__", over)
    monkeypatch.setattr(studio, "deliver", deliver)
    code, stdout, stderr = batch(*(edit(out=name) for name in "abcd"))
    assert code == 130 and stdout == ""
    assert "ic-jax: stopped; the same command goes on with the jobs that are left" in stderr
    # The next may have been begun by then. What was begun is whole.
    made = {path.name for path in (here / "out").iterdir()}
    assert "a" in made and made <= {"a", "b"}
    for name in made:
        assert holds_result(here / "out" / name, "command", "inpaint")


def test_a_job_whose_sample_overflows_is_one_line_and_no_clip(here, batch, monkeypatch):
    monkeypatch.setattr(studio, "window", stand_in)
    text.save_context("bad.safetensors", jnp.nan * tiny_context(), ("", ""), NAME, TINY)
    jobs = edit(out="a"), edit(out="b", context="bad.safetensors"), edit(out="c")
    code, stdout, stderr = batch(*jobs)
    assert code == 1 and "made 2, failed 1, there before 0" in stdout
    (line,) = [line for line in stderr.replace("\r", "\n").split("\n") if "ic-jax: " in line]
    assert line.startswith("ic-jax: jobs.jsonl, line 2: the sample is not finite")
    assert {path.name for path in (here / "out").iterdir()} == {"a", "c"}


def test_a_job_that_cannot_be_written_is_one_line_after_those_before_it(here, batch, monkeypatch):
    monkeypatch.setattr(studio, "window", stand_in)
    write = studio.deliver

    def deliver(job, *given):
        if job.out.name == "b":
            raise PermissionError(EACCES, "Permission denied", "frames")
        return write(job, *given)

    monkeypatch.setattr(studio, "deliver", deliver)
    Path("damaged.mp4").write_bytes(Path("short.mp4").read_bytes()[:400])
    code, stdout, stderr = batch(
        edit(out="a"), edit(out="b"), edit(out="c", clip="damaged.mp4"), edit(out="d")
    )
    assert code == 1 and "made 2, failed 2, there before 0" in stdout
    said = [line for line in stderr.replace("\r", "\n").split("\n") if "jobs.jsonl, line" in line]
    assert [line.split(": ")[1] for line in said] == ["jobs.jsonl, line 2", "jobs.jsonl, line 3"]
    assert {path.name for path in (here / "out").iterdir()} == {"a", "d"}


def test_jobs_whose_program_needs_too_much_memory_are_lines_and_the_others_are_made(
    here, batch, monkeypatch
):
    monkeypatch.setattr(studio, "window", stand_in)
    call, write, rounds, ran_out, held = OverClips.__call__, studio.deliver, [], Event(), []

    def over(*given):
        rounds.append(given)
        if len(rounds) == 3:
            on_device = np.zeros(1)
            held.append(weakref.ref(on_device))
            ran_out.set()
            full()
        assert all(gone() is None for gone in held)
        return call(*given)

    def deliver(job, *given):
        assert job.out.name != "b" or ran_out.wait(60)
        return write(job, *given)

    monkeypatch.setattr(OverClips, "__call__", over)
    monkeypatch.setattr(studio, "deliver", deliver)
    Path("damaged.mp4").write_bytes(Path("short.mp4").read_bytes()[:400])
    alike = [edit(out=name, steps=3) for name in "bcdef"]  # two of them at a time
    alike.insert(0, edit(clip="damaged.mp4", steps=3))
    code, stdout, stderr = batch(edit(out="a"), *alike, edit(out="g", steps=4))
    assert code == 1 and "made 4, failed 4, there before 0" in stdout, stderr
    said = [line for line in stderr.replace("\r", "\n").split("\n") if "ic-jax: " in line]
    assert said.pop(0).startswith("ic-jax: jobs.jsonl, line 2: damaged.mp4: ")
    for line, job in zip(said, (5, 6, 7), strict=True):
        assert line.startswith(f"ic-jax: jobs.jsonl, line {job}: a device ran out of memory; give")
    assert {path.name for path in (here / "out").iterdir()} == set("abcg")


def test_a_job_that_is_too_large_before_or_after_the_model_is_one_line(here, batch, monkeypatch):
    monkeypatch.setattr(studio, "window", stand_in)
    start, write = studio.begin, studio.deliver
    begin = lambda model, name, *given: (full if name == "b" else start)(model, name, *given)
    deliver = lambda job, *given: (full if job.out.name == "c" else write)(job, *given)
    monkeypatch.setattr(studio, "begin", begin)
    monkeypatch.setattr(studio, "deliver", deliver)
    code, stdout, stderr = batch(*(edit(out=name) for name in "abcd"))
    assert code == 1 and "made 2, failed 2, there before 0" in stdout, stderr
    assert stderr.count("a device ran out of memory") == 2
    assert {path.name for path in (here / "out").iterdir()} == {"a", "d"}


def test_clips_share_devices_and_weights_only_as_far_as_they_must(here, monkeypatch):
    given = here / "model", MODEL.variant, {2}
    many, few = places(*given, None, 1000), places(*given, 8, 3)
    assert (many.count, many.devices_each) == (8, 1)
    assert many.shardings.dit.is_fully_replicated and len(many.shardings.dit.device_set) == 8
    assert (few.count, few.devices_each) == (2, 4)
    # A job with one prompt has no use for devices of the other.
    mixed = places(here / "model", MODEL.variant, {1, 2}, 8, 3)
    apart = [jax.tree.leaves(each.shardings)[0].mesh.shape["prompts"] for each in (few, mixed)]
    assert apart == [2, 1]
    cut = per_device(need(MODEL.variant, 2), MeshShape(clips=8, weights=8))
    # The devices of a CPU share the memory of their host.
    monkeypatch.setattr(spread, "device_memory", lambda device: Memory(8 * cut, 8 * cut))
    tight = places(*given, None, 1000)
    assert (tight.count, tight.devices_each) == (8, 1)
    assert not all(where.is_fully_replicated for where in jax.tree.leaves(tight.shardings))
