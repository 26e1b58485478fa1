"""The output folder appears whole or not at all, and nobody's files are touched."""

import errno
import json
import os
import resource
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from ic_jax.errors import InputError
from ic_jax.output import output_folder, write_result
from ic_jax.video import write_video


def _save(path, text="frames", **result):
    with output_folder(path) as folder:
        (folder / "clip.mp4").write_text(text)
        (folder / "frames").mkdir()
        (folder / "frames" / "0.png").write_text(text)
        write_result(folder, result)


def _tree(folder):
    """Every path below a folder, with the contents of files."""
    return {
        path.relative_to(folder).as_posix(): path.read_text() if path.is_file() else None
        for path in folder.rglob("*")
    }


def _refusal(path):
    """The one line that writing to this path is refused with, before any work is done."""
    with pytest.raises(InputError) as caught, output_folder(path):
        pytest.fail("the block was entered")
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and "\n" not in message
    return message.removeprefix(f"{path}: ")


def test_a_result_appears_under_its_name_with_its_parents(tmp_path):
    _save(tmp_path / "results" / "deep" / "clip", seed=3)
    folder = tmp_path / "results" / "deep" / "clip"
    result = json.loads((folder / "result.json").read_text())
    assert result["made_by"] == "ic-jax" and result["seed"] == 3
    assert result["files"] == ["clip.mp4", "frames/0.png", "result.json"]
    assert [p.name for p in folder.parent.iterdir()] == ["clip"]
    plain = tmp_path / "plain"
    plain.mkdir()
    assert folder.stat().st_mode == plain.stat().st_mode


def test_a_relative_name_is_taken_from_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _save("recapture")
    assert (tmp_path / "recapture" / "clip.mp4").exists()


def test_nothing_shows_before_the_block_ends(tmp_path):
    with output_folder(tmp_path / "out") as folder:
        assert not (tmp_path / "out").exists()
        write_result(folder, {})
    assert (tmp_path / "out").exists()


def test_a_result_of_ours_is_replaced_whole(tmp_path):
    _save(tmp_path / "out", "first")
    with output_folder(tmp_path / "out") as folder:
        assert (tmp_path / "out" / "clip.mp4").read_text() == "first"
        (folder / "other.mp4").write_text("second")
        write_result(folder, {})
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["other.mp4", "result.json"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_an_empty_folder_is_used(tmp_path):
    (tmp_path / "out").mkdir()
    _save(tmp_path / "out")
    assert (tmp_path / "out" / "clip.mp4").exists()


def _with_a_mount_point(patch, path):
    """From now on, `path` can be neither renamed nor renamed into, as if mounted there."""
    rename = os.rename

    def refuse(source, target):
        if Path(source) == path:
            raise OSError(errno.EBUSY, "Device or resource busy")
        if (path in Path(source).parents) != (path in Path(target).parents):
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        rename(source, target)

    patch.setattr(os, "rename", refuse)


@pytest.mark.parametrize("mounted", [True, False])
def test_a_folder_that_is_there_stays_the_same_folder(tmp_path, monkeypatch, mounted):
    out = tmp_path / "out"
    out.mkdir()
    number = out.stat().st_ino
    if mounted:
        _with_a_mount_point(monkeypatch, out)
    monkeypatch.chdir(out)
    for text in ("first", "second"):
        _save(".", text)
        assert out.stat().st_ino == number and Path("clip.mp4").read_text() == text
        assert sorted(_tree(tmp_path)) == [
            *("out", "out/clip.mp4", "out/frames", "out/frames/0.png", "out/result.json")
        ]
    before = _tree(tmp_path)
    with pytest.raises(InputError, match="letter.txt"), output_folder(".") as folder:
        write_result(folder, {})
        Path("letter.txt").write_text("dear")
    assert _tree(tmp_path) == {**before, "out/letter.txt": "dear"}


@pytest.mark.parametrize("failing", range(1, 7))
def test_a_result_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch, failing):
    out = tmp_path / "out"
    _save(out, "first")
    before = _tree(tmp_path)
    renamed, rename = [], os.rename

    def stop(source, target):
        renamed.append(source)
        if len(renamed) == failing:
            raise KeyboardInterrupt
        rename(source, target)

    with pytest.raises(KeyboardInterrupt), output_folder(out) as folder:
        (folder / "clip.mp4").write_text("second")
        (folder / "other.mp4").write_text("second")
        write_result(folder, {})
        monkeypatch.setattr(os, "rename", stop)
    assert len(renamed) > failing - 1 and _tree(tmp_path) == before


def test_a_file_that_arrives_as_a_result_does_is_not_replaced(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    listed = Path.iterdir

    def arrive(folder):
        if folder.name.endswith(".partial"):
            (out / "clip.mp4").write_text("dear")
        return listed(folder)

    with pytest.raises(InputError, match="clip.mp4: was written"), output_folder(out) as folder:
        (folder / "clip.mp4").write_text("frames")
        write_result(folder, {})
        monkeypatch.setattr(Path, "iterdir", arrive)
    assert _tree(tmp_path) == {"out": None, "out/clip.mp4": "dear"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, InputError])
@pytest.mark.parametrize("existing", [True, False])
def test_failure_leaves_nothing_behind(tmp_path, error, existing):
    out = tmp_path / "results" / "clip"
    if existing:
        _save(out, "first")
    before = _tree(tmp_path)
    with pytest.raises(error, match="stop"), output_folder(out) as folder:
        (folder / "clip.mp4").write_text("half")
        raise error("stop")
    assert _tree(tmp_path) == before


def test_failure_leaves_a_parent_that_others_have_begun_to_use(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), output_folder(tmp_path / "results" / "clip"):
        (tmp_path / "results" / "letter.txt").write_text("dear")
        raise RuntimeError("stop")
    assert _tree(tmp_path) == {"results": None, "results/letter.txt": "dear"}


def test_a_result_that_does_not_list_its_files_is_a_defect(tmp_path):
    with pytest.raises(RuntimeError, match="write_result comes last"):
        with output_folder(tmp_path / "out") as folder:
            write_result(folder, {})
            (folder / "late.txt").write_text("late")
    assert not list(tmp_path.iterdir())


def test_values_that_json_lacks_are_written_plainly(tmp_path):
    values = {
        "fps": Fraction(24000, 1001),
        "psnr": float("inf"),
        "worst": np.float32("nan"),
        "size": (np.int64(64), 96),
        "pose": np.eye(2, dtype=np.float32),
        "path": Path("a/b"),
    }
    with output_folder(tmp_path / "out") as folder:
        write_result(folder, values)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["fps"] == "24000/1001" and result["path"] == "a/b"
    assert result["psnr"] is None and result["worst"] is None
    assert result["size"] == [64, 96] and result["pose"] == [[1, 0], [0, 1]]


def _hold_a_letter(out):
    out.mkdir()
    (out / "letter.txt").write_text("dear")


def _add_a_letter_to_a_result(out):
    _save(out)
    (out / "letter.txt").write_text("dear")


def _add_an_empty_folder_to_a_result(out):
    _save(out)
    (out / "letters").mkdir()


def _add_a_link_to_a_result(out):
    _save(out)
    (out / "letter.txt").symlink_to(os.devnull)


def _hold_another_programs_result(out):
    out.mkdir()
    (out / "result.json").write_text('{"files": ["result.json"], "made_by": "other"}')


def _hold_a_broken_result(out):
    out.mkdir()
    (out / "result.json").write_text("[1, 2")


@pytest.mark.parametrize(
    "prepare, name",
    [
        (_hold_a_letter, "letter.txt"),
        (_add_a_letter_to_a_result, "letter.txt"),
        (_add_an_empty_folder_to_a_result, "letters"),
        (_add_a_link_to_a_result, "letter.txt"),
        (_hold_another_programs_result, "result.json"),
        (_hold_a_broken_result, "result.json"),
    ],
)
def test_other_peoples_files_are_refused_and_stay(tmp_path, prepare, name):
    out = tmp_path / "out"
    prepare(out)
    before = _tree(tmp_path)
    expected = f"holds files that are not an earlier result ({name}); choose another --out"
    assert _refusal(out) == expected
    assert _tree(tmp_path) == before


def test_files_that_arrive_during_the_run_are_not_lost(tmp_path):
    out = tmp_path / "out"
    _save(out, "first")
    with pytest.raises(InputError, match="letter.txt"), output_folder(out) as folder:
        write_result(folder, {})
        (out / "letter.txt").write_text("dear")
    assert (out / "letter.txt").read_text() == "dear"
    assert (out / "clip.mp4").read_text() == "first"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_link_is_not_followed(tmp_path):
    _save(tmp_path / "elsewhere", "first")
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
    assert _refusal(tmp_path / "out") == "is not a folder; choose another --out"
    assert (tmp_path / "elsewhere" / "clip.mp4").read_text() == "first"


def test_a_file_in_the_way_is_refused(tmp_path):
    (tmp_path / "out").write_text("dear")
    assert _refusal(tmp_path / "out") == "is not a folder; choose another --out"
    assert "cannot be written (" in _refusal(tmp_path / "out" / "deep" / "clip")
    assert (tmp_path / "out").read_text() == "dear"


def test_an_unwritable_parent_is_refused(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", refuse)  # mode bits do not stop the superuser
    message = _refusal(tmp_path / "out")
    assert message == "cannot be written (Permission denied); choose another --out"
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())


@contextmanager
def no_file_beyond(size):
    """As on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_that_blames_no_clip(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", frames, Fraction(8))
    _save(tmp_path / "out")
    before = _tree(tmp_path / "out")
    writes = (
        lambda folder: (folder / "letter").write_text(5000 * "x"),
        lambda folder: write_video(folder / "a.mp4", frames, Fraction(8)),
        lambda folder: write_video(folder / "a.mp4", frames, Fraction(8), tmp_path / "clip.mp4"),
    )
    for write in writes:
        with pytest.raises(InputError, match="out: cannot be written .File too large.; choose"):
            with no_file_beyond(1000), output_folder(tmp_path / "out") as folder:
                write(folder)
    assert _tree(tmp_path / "out") == before
    assert {path.name for path in tmp_path.iterdir()} == {"clip.mp4", "out"}
