"""Frames go to the working size and back; windows cover every frame once."""

import numpy as np
import pytest

from ic_jax import framing
from ic_jax.errors import InputError


def _disc(height, width, x, y, radius):
    """A white disc on black whose centre lies at pixel coordinates (x, y)."""
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    edge = np.clip(radius + 0.5 - np.hypot(columns - x, rows - y), 0, 1)
    return np.repeat((255 * edge).astype(np.uint8)[None, ..., None], 3, axis=-1)


def _centroid(image):
    weight = image[0, ..., 0].astype(float)
    rows, columns = np.indices(weight.shape) + 0.5
    return (columns * weight).sum() / weight.sum(), (rows * weight).sum() / weight.sum()


def test_a_clip_of_the_working_size_passes_bit_for_bit():
    frames = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), np.uint8)
    same = framing.fit((64, 96), (64, 96))
    working = framing.to_working(frames, same)
    np.testing.assert_array_equal(working, frames)
    np.testing.assert_array_equal(framing.from_working(working, same), frames)
    assert framing.inside(same).all()
    np.testing.assert_array_equal(framing.intrinsics_to_working(np.eye(3), same), np.eye(3))


@pytest.mark.parametrize("source", [(48, 130), (200, 150), (63, 97), (30, 20), (1, 500)])
def test_the_whole_frame_fits_centred_and_comes_back_in_its_own_size(source):
    fitted = framing.fit(source, (64, 96))
    assert fitted.content[0] == 64 or fitted.content[1] == 96
    mask = framing.inside(fitted)
    assert mask.sum() == fitted.content[0] * fitted.content[1]
    assert abs(int(mask[:, ::-1].argmax(1).max()) - int(mask.argmax(1).max())) <= 1
    frames = np.full((2, *source, 3), 90, np.uint8)
    working = framing.to_working(frames, fitted)
    assert working.shape == (2, 64, 96, 3) and (working == 90).all()
    back = framing.from_working(working, fitted)
    np.testing.assert_array_equal(back, frames)


def test_padding_repeats_the_edge():
    fitted = framing.fit((48, 130), (64, 96))
    frames = np.random.default_rng(1).integers(0, 256, (1, 48, 130, 3), np.uint8)
    working = framing.to_working(frames, fitted)
    top = fitted.offset[0]
    assert top > 0 and (working[:, :top] == working[:, top : top + 1]).all()


def test_smooth_frames_survive_the_way_there_and_back():
    rows, columns = np.mgrid[:90, :160]
    wave = 127 + 100 * np.sin(rows / 15) * np.cos(columns / 20)
    frames = np.repeat(wave.astype(np.uint8)[None, ..., None], 3, axis=-1)
    fitted = framing.fit((90, 160), (64, 96))
    back = framing.from_working(framing.to_working(frames, fitted), fitted)
    error = back.astype(float) - frames
    assert 10 * np.log10(255**2 / (error**2).mean()) > 40


@pytest.mark.parametrize("source", [(120, 200), (150, 100), (40, 50)])
def test_points_move_as_the_intrinsics_say(source):
    height, width = source
    fitted = framing.fit(source, (64, 96))
    x, y = 0.62 * width, 0.41 * height
    working = framing.to_working(_disc(height, width, x, y, height / 10), fitted)
    camera = np.array([[100.0, 0, x], [0, 100.0, y], [0, 0, 1]])  # its principal point is the disc
    moved = framing.intrinsics_to_working(camera, fitted)
    np.testing.assert_allclose(_centroid(working), moved[:2, 2], atol=0.03)
    back = framing.from_working(working, fitted)
    np.testing.assert_allclose(_centroid(back), (x, y), atol=0.06)


def test_depth_keeps_to_values_that_exist_and_lands_where_the_pixels_do():
    depth = np.where(np.arange(200) < 120, 2.0, 7.0).astype(np.float32)
    depth = np.broadcast_to(depth, (2, 120, 200)).copy()
    fitted = framing.fit((120, 200), (64, 96))
    working = framing.depth_to_working(depth, fitted)
    assert working.shape == (2, 64, 96) and set(np.unique(working)) == {2.0, 7.0}
    edge = (working[0, 30] == 2.0).sum()
    assert abs(edge - (120 * framing.scales(fitted)[1] + fitted.offset[1])) <= 0.5


@pytest.mark.parametrize("frames", [1, 4, 5, 16, 17, 18, 29, 30, 81, 100])
@pytest.mark.parametrize("length, overlap", [(17, 5), (17, 1), (17, 0), (5, 4), (1, 0)])
def test_windows_cover_every_frame_and_join_undoes_them(frames, length, overlap):
    runs = framing.windows(frames, length, overlap)
    assert all(len(run) == length for run in runs)
    for before, after in zip(runs, runs[1:], strict=False):
        assert len(set(before) & set(after)) == overlap
    assert set(range(frames)) <= set().union(*runs)
    assert len(runs) == 1 or frames > runs[-2].stop  # no window without a frame of its own
    clip = np.arange(frames, dtype=np.float32)[:, None]
    parts = [framing.take(clip, run) for run in runs]
    assert all(part.shape == (length, 1) for part in parts)
    np.testing.assert_array_equal(framing.join(parts, overlap, frames), clip)


def test_past_the_end_the_last_frame_is_repeated():
    clip = np.array([[3.0], [4.0], [5.0]], np.float32)
    (run,) = framing.windows(3, 5, 1)
    np.testing.assert_array_equal(framing.take(clip, run)[:, 0], [3, 4, 5, 5, 5])


def test_windows_that_cannot_advance_are_refused():
    with pytest.raises(InputError, match=r"^windows of 5 frames cannot overlap by 5 frames$"):
        framing.windows(9, 5, 5)
    with pytest.raises(InputError, match=r"^a clip of no frames cannot be divided into windows$"):
        framing.windows(0, 5, 1)
