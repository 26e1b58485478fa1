"""Compiled programs are kept for the next run, and warm-up makes all of them beforehand."""

import json
import os
import shutil
import warnings
from errno import ENOSPC
from fractions import Fraction

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image
from tiny_window import stand_in

from ic_jax.cli import studio, warmup
from ic_jax.cli.compile_cache import LEAST_VARIABLE, VARIABLE, keep_compiled_programs
from ic_jax.geometry.camera import intrinsics_from_fov
from ic_jax.parallel import OverClips
from ic_jax.video import write_video

LEAST = "jax_persistent_cache_min_compile_time_secs"
FOLDER = "jax_compilation_cache_dir"
PROGRAMS = "observe", "prepare", "refresh", "proceed", "finish_bytes"


@pytest.fixture
def user(tmp_path, monkeypatch):
    """A user who has told JAX nothing, and has a folder for caches."""
    before = {name: getattr(jax.config, name) for name in (FOLDER, LEAST)}
    for name in VARIABLE, LEAST_VARIABLE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    jax.config.update(FOLDER, None)
    jax.config.update(LEAST, 1)
    compilation_cache.reset_cache()
    yield tmp_path
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_programs_are_kept_in_a_folder_that_only_the_user_can_write(user):
    keep_compiled_programs()
    folder = user / "cache" / "ic-jax" / "xla"
    assert getattr(jax.config, FOLDER) == str(folder) and getattr(jax.config, LEAST) == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    jax.jit(lambda x: x + 1)(np.arange(7)).block_until_ready()
    assert list(folder.glob("*-cache"))


@pytest.mark.parametrize("chosen", ["", "elsewhere"])
def test_jaxs_own_variable_moves_it_or_switches_it_off(user, monkeypatch, chosen):
    monkeypatch.setenv(VARIABLE, chosen)
    keep_compiled_programs()
    assert getattr(jax.config, FOLDER) is None  # JAX has read the variable for itself
    assert not (user / "cache").exists()


@pytest.mark.parametrize("folder", [None, "elsewhere"])
def test_small_programs_are_kept_wherever_unless_the_user_leaves_them_out(
    user, monkeypatch, folder
):
    jax.config.update(FOLDER, folder)
    keep_compiled_programs()
    assert getattr(jax.config, LEAST) == 0
    jax.config.update(LEAST, 5)  # as JAX has read it from the variable
    monkeypatch.setenv(LEAST_VARIABLE, "5")
    keep_compiled_programs()
    assert getattr(jax.config, LEAST) == 5


def test_a_folder_that_cannot_be_written_costs_one_line(user, capsys):
    (user / "cache").write_text("a file")
    keep_compiled_programs()
    assert getattr(jax.config, FOLDER) is None
    said = capsys.readouterr().err
    assert said.startswith("ic-jax: compiled programs are not kept") and said.count("\n") == 1


@pytest.mark.parametrize("mode, uid", [(0o777, 0), (0o770, 0), (0o700, 1)])
def test_programs_that_others_could_have_written_are_not_run(user, monkeypatch, capsys, mode, uid):
    folder = user / "cache" / "ic-jax" / "xla"
    folder.mkdir(parents=True)
    folder.chmod(mode)
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + uid)
    keep_compiled_programs()
    assert getattr(jax.config, FOLDER) is None
    said = capsys.readouterr().err
    assert f"(others can write into {folder}); set {VARIABLE}" in said and said.count("\n") == 1


def asked_for(count):
    """So many programs of one name, by a process that has none of them yet."""
    jax.clear_caches()
    for n in range(count):
        jax.jit(lambda x: x + n)(np.arange(7)).block_until_ready()


@pytest.fixture
def full(monkeypatch):
    """A disk that has room for half of every program."""

    def put(cache, key, value):
        (cache.path / f"{key}-cache").write_bytes(value[: len(value) // 2])
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    monkeypatch.setattr("jax._src.lru_cache.LRUCache.put", put)


def test_what_was_cut_short_is_one_line_and_written_again(user, capsys):
    keep_compiled_programs()
    asked_for(3)
    folder = user / "cache" / "ic-jax" / "xla"
    *cut, good = folder.glob("jit__lambda*-cache")
    untouched = good.stat()
    for entry in cut:
        os.truncate(entry, 100)
    asked_for(3)
    said = capsys.readouterr().err
    assert said.startswith("ic-jax: a kept program cannot be read (") and said.count("\n") == 1
    assert all(entry.stat().st_size > 100 for entry in cut)
    assert good.stat().st_ino == untouched.st_ino
    keep_compiled_programs()
    asked_for(3)
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_one_line_and_leaves_nothing_cut_short(user, capsys, full):
    keep_compiled_programs()
    asked_for(3)
    said = capsys.readouterr().err
    assert said.startswith("ic-jax: compiled programs are not kept for the next run (No space left")
    assert f"set {VARIABLE} to another folder than {user}" in said and said.count("\n") == 1
    assert not list((user / "cache").rglob("*-cache"))


def test_a_folder_that_is_none_is_one_line(user, capsys):
    (user / "file").write_text("a file")
    jax.config.update(FOLDER, str(user / "file"))
    keep_compiled_programs()
    asked_for(2)
    said = capsys.readouterr().err
    assert "not kept for the next run (File exists" in said and said.count("\n") == 1
    assert (user / "file").read_text() == "a file"


def test_other_warnings_are_shown_as_ever(user, monkeypatch):
    shown = []
    monkeypatch.setattr(warnings, "showwarning", lambda *given: shown.append(given))
    keep_compiled_programs()
    warnings.showwarning("something else", UserWarning, "module.py", 1)
    assert shown == [("something else", UserWarning, "module.py", 1)]


@pytest.fixture
def here(user, tiny, monkeypatch):
    """A folder with a clip, a mask, depth, and a model that has no weights of its transformer."""
    monkeypatch.chdir(user)
    shutil.copytree(tiny, user / "model")
    shutil.move(user / "model" / "dit", user / "dit")
    noise = np.random.default_rng(0).integers(0, 256, (9, 16, 32, 3), np.uint8)
    write_video("clip.mp4", noise, Fraction(8))
    Image.fromarray(np.eye(16, 32, dtype=np.uint8) * 255).save("mask.png")
    lens = np.asarray(intrinsics_from_fov(60.0, 16, 32))
    np.savez("depth.npz", depth=np.full((9, 16, 32), 3.0), kind="metric", intrinsics=lens)
    return user


def cached(folder):
    """The programs that the cache holds."""
    return {file.name for file in (folder / "cache" / "ic-jax" / "xla").glob("*-cache")}


def compiled(folder):
    """Those of a window among them."""
    return {
        name for name in cached(folder) if name.startswith(tuple(f"jit_{n}-" for n in PROGRAMS))
    }


OPTIONS = "--model", "model", "--frames", 9
EDIT = "inpaint", "clip.mp4", "--mask", "mask.png"


# With --reuse what a step leaves lies on the mesh, and the other part of the schedule takes it.
@pytest.mark.parametrize("devices, parts", [(1, []), (4, ["--reuse", 1, "--guided-to", 0.8])])
def test_after_a_warm_up_a_run_compiles_none_of_its_programs(here, run, devices, parts):
    options = *OPTIONS, "--steps", 3, "--refresh-at", 0.9, *parts, "--devices", devices
    code, stdout, stderr = run("warmup", "--command", "inpaint", *options)
    assert code == 0, stderr
    assert "inpaint, sample, dit" in stdout and "GiB" in stdout
    # Each of them once: the steps before and after a refresh are one program.
    assert stdout.count("works in") == len(PROGRAMS) + bool(parts)
    warm = compiled(here)
    assert {name.partition("-")[0] for name in warm} == {f"jit_{name}" for name in PROGRAMS}

    shutil.move(here / "dit", here / "model" / "dit")
    jax.clear_caches()
    code, _, stderr = run(*EDIT, *options)
    assert code == 0, stderr
    assert compiled(here) == warm


def test_after_a_warm_up_a_batch_compiles_no_window(here, run, monkeypatch):
    for module in warmup, studio:
        monkeypatch.setattr(module, "window", stand_in)
    options = *OPTIONS, "--devices", 4  # a mesh of two for each clip
    code, stdout, stderr = run("warmup", "--command", "recapture", "--batch", 2, *options)
    assert code == 0 and stdout.startswith("recapture, 2 clips at a time: "), stderr

    made, call = [], OverClips.__call__

    def watched(*given):
        before = cached(here)
        result = call(*given)
        made.append(cached(here) - before)
        return result

    monkeypatch.setattr(OverClips, "__call__", watched)
    shutil.move(here / "dit", here / "model" / "dit")
    jax.clear_caches()
    job = {"command": "recapture", "clip": "clip.mp4", "depth": "depth.npz"}
    jobs = "".join(json.dumps(job | {"out": name}) + "\n" for name in "abc")
    (here / "jobs.jsonl").write_text(jobs)
    code, _, stderr = run("batch", "jobs.jsonl", *options)
    assert code == 0, stderr
    assert made == [set(), set()]


def test_a_warm_up_that_would_be_forgotten_is_refused(user, run, monkeypatch):
    monkeypatch.setenv(VARIABLE, "")
    code, _, stderr = run("warmup")
    assert code == 2 and "nothing that is compiled would be kept" in stderr


def test_a_warm_up_that_cannot_be_kept_ends_there(here, run, full):
    code, stdout, stderr = run("warmup", "--command", "inpaint", *OPTIONS)
    assert code == 2 and "compiled programs in" not in stdout
    assert stderr.startswith("ic-jax: compiled programs are not kept") and stderr.count("\n") == 1


def test_a_warm_up_whose_folder_is_none_is_refused(user, run):
    (user / "file").write_text("a file")
    jax.config.update(FOLDER, str(user / "file"))
    code, _, stderr = run("warmup")
    assert code == 2 and "file: nothing that is compiled can be kept there (File exists)" in stderr
