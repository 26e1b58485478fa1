"""A user's clips: found, described, read at a model's size, and refused in one line."""

import subprocess
import sys
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from experiments.clip_files import read_frames, read_regenerate, read_shot
from experiments.clips_data import chosen, davis_clips, folder_clips
from ic_jax.errors import InputError
from ic_jax.models.variants import VARIANTS
from ic_jax.video import write_video

SIZES = replace(VARIANTS["nano"], frames=9, height=32, width=48)
FRAMES, HEIGHT, WIDTH = 9, 48, 64


def footage(frames=FRAMES):
    """A bright square that crosses a ramp; every frame differs."""
    clip = np.zeros((frames, HEIGHT, WIDTH, 3), np.uint8)
    clip[...] = np.linspace(0, 160, WIDTH, dtype=np.uint8)[:, None]
    for t, frame in enumerate(clip):
        frame[20:28, 20 + 2 * t : 28 + 2 * t] = 255
    return clip


@pytest.fixture
def folder(tmp_path):
    """Two videos; the first has a caption and depth."""
    clips = tmp_path / "my clips"
    (clips / "more").mkdir(parents=True)
    write_video(clips / "a b.mp4", footage(), Fraction(25, 2))
    write_video(clips / "more/short.mp4", footage(4), Fraction(24))
    (clips / "a b.txt").write_text("a square é\n", encoding="utf-8")
    depth = np.full((FRAMES, HEIGHT // 2, WIDTH // 2), 2.0, np.float32)
    lens = [[32, 0, 16], [0, 32, 12], [0, 0, 1]]
    np.savez(clips / "a b.npz", depth=depth, kind="metric", intrinsics=lens)
    return clips


@pytest.fixture
def davis(tmp_path):
    """One clip in each split; palette images mark objects 1 and 2."""
    root = tmp_path / "DAVIS"
    for kind in ("JPEGImages", "Annotations"):
        for name in ("train-clip", "val-clip"):
            (root / kind / "480p" / name).mkdir(parents=True)
    (root / "ImageSets/2017").mkdir(parents=True)
    for split in ("train", "val"):
        (root / f"ImageSets/2017/{split}.txt").write_text(f"{split}-clip\n")
    for name in ("train-clip", "val-clip"):
        for t, frame in enumerate(footage()):
            Image.fromarray(frame).save(root / f"JPEGImages/480p/{name}/{t:05d}.jpg", quality=95)
            labels = np.zeros((HEIGHT, WIDTH), np.uint8)
            labels[16:32, 16:32], labels[36:40, 40:44] = 1, 2
            annotation = Image.fromarray(labels, mode="P")
            annotation.putpalette([0, 0, 0, 128, 0, 0, 0, 128, 0])
            annotation.save(root / f"Annotations/480p/{name}/{t:05d}.png")
    return root


def test_a_folder_of_videos_comes_back_with_what_is_known(folder, tmp_path):
    first, second = folder_clips(folder, tmp_path / "data")
    assert (first.video.name, second.video.name) == ("a b.mp4", "short.mp4")
    assert (first.caption, second.caption) == ("a square é", "")
    assert first.depth == folder.resolve() / "a b.npz" and second.depth is None
    assert first.name.startswith("a-b-") and first.name != second.name


def test_stored_facts_are_those_of_the_file(folder, tmp_path):
    from experiments.clips_data import Clips, FolderConfig

    builder = Clips(
        data_dir=tmp_path,
        config=FolderConfig(name="facts", folder=folder),
        file_format="array_record",
    )
    builder.download_and_prepare()
    example = builder.as_data_source("test")[0]
    facts = [example[name] for name in ("frames", "height", "width", "fps")]
    assert facts == [FRAMES, HEIGHT, WIDTH, 12.5]


def test_a_changed_folder_is_read_anew(folder, tmp_path):
    assert len(folder_clips(folder, tmp_path / "data")) == 2
    write_video(folder / "z.mp4", footage(), Fraction(24))
    (folder / "a b.txt").unlink()
    clips = folder_clips(folder, tmp_path / "data")
    assert [clip.video.name for clip in clips] == ["a b.mp4", "short.mp4", "z.mp4"]
    assert clips[0].caption == ""


def test_frames_are_cropped_scaled_and_filled_up(folder, tmp_path):
    long, short = folder_clips(folder, tmp_path / "data")
    frames = read_frames(long, SIZES)
    assert frames.shape == (9, 32, 48, 3) and frames.dtype == np.uint8
    # 64x48 cut to 3:2 is 64x43: rows 2 to 44, at three quarters of the size
    expected = footage()[:, 2:45][:, 2::4, 2::4].astype(float)
    assert np.abs(frames[:, 1::3, 1::3][:, :10, :16] - expected[:, :10, :16]).mean() < 12
    filled = read_frames(short, SIZES)
    assert (filled[3:] == filled[3]).all() and (filled[3] != filled[2]).any()


def test_depth_and_camera_follow_the_crop(folder, tmp_path):
    file = folder_clips(folder, tmp_path / "data")[0]
    shot = read_shot(file, SIZES)
    np.testing.assert_array_equal(shot.frames, read_frames(file, SIZES))
    assert shot.depth.shape == (9, 32, 48) and (shot.depth == 2).all() and shot.keep.all()
    # the optical axis goes through the middle of the source, and of its middle
    np.testing.assert_allclose(shot.source.intrinsics[:, :2, 2], [[24, 16]] * 9, atol=0.5)
    np.testing.assert_allclose(shot.source.intrinsics[:, 0, 0], 32 * 2 * 0.75, rtol=0.01)
    assert shot.source.c2w.shape == (9, 4, 4)


def test_davis_comes_back_with_its_masks(davis, tmp_path):
    (train,) = davis_clips(davis, tmp_path / "data", "train")
    (clip,) = davis_clips(davis, tmp_path / "data")
    assert clip.caption == "val clip" and train.caption == "train clip"
    assert len(clip.images) == len(clip.annotations) == FRAMES
    frames, regenerate = read_frames(clip, SIZES), read_regenerate(clip, SIZES)
    assert frames.shape == (9, 32, 48, 3) and regenerate.shape == (9, 32, 48)
    # the objects' places in the middle 43 rows, at three quarters of the size
    assert regenerate[:, 12:21, 13:23].all() and regenerate[:, 26:28, 31:32].all()
    assert not regenerate[:, :9].any() and not regenerate[:, :, :11].any()


def test_clips_without_annotations_ask_for_nothing(folder, tmp_path):
    assert not read_regenerate(folder_clips(folder, tmp_path / "data")[0], SIZES).any()


def test_foreign_folders_are_refused_in_one_line(folder, davis, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "x.mp4").write_bytes(b"no video")
    data = tmp_path / "data"
    for make, words in (
        (lambda: folder_clips(tmp_path / "none", data), "no such folder"),
        (lambda: folder_clips(empty, data), "no videos"),
        (lambda: folder_clips(broken, data), "x.mp4"),
        (lambda: davis_clips(folder, data), "ImageSets/2017/train.txt"),
        (lambda: chosen(folder, davis, data), "not both"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            make()
        assert "\n" not in str(caught.value)
    np.savez(folder / "a b.npz", depth=np.ones((FRAMES, 4, 4)), kind="metric")
    with pytest.raises(InputError, match="a b.npz: no intrinsics"):
        folder_clips(folder, data)
    next((davis / "Annotations/480p/val-clip").iterdir()).unlink()
    with pytest.raises(InputError, match="val-clip has 9 frames and 8 annotations"):
        davis_clips(davis, data)


def test_flags_choose(folder, davis, tmp_path):
    data = tmp_path / "data"
    assert chosen(None, None, data) is None
    assert chosen(folder, None, data) == folder_clips(folder, data)
    assert chosen(None, davis, data) == davis_clips(davis, data)


def test_the_command_lists_them_without_tensorflow(folder, tmp_path):
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from experiments.clips_data import Arguments, main\n"
        "main(Arguments(clips=Path(sys.argv[1]), data=Path(sys.argv[2])))\n"
        "assert 'tensorflow' not in sys.modules\n"
    )

    def listed(where):
        command = [sys.executable, "-c", code, where, tmp_path / "data"]
        return subprocess.run(list(map(str, command)), capture_output=True, text=True)

    found = listed(folder)
    assert found.returncode == 0, found.stderr
    assert "with depth\ta square é" in found.stdout
    refused = listed(tmp_path / "none")
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "no such folder" in refused.stderr
