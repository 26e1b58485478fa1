"""What a person looks at says what it should."""

from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from ic_jax import report
from ic_jax.video import read_video, write_video

FACTS = {"Model": "nano", "Camera": "arc_left 12°", "Covered": "75 %"}


def _clips(frames=17, height=64, width=96):
    """Source red, warped green with its right quarter a black hole, re-captured blue."""
    blank = np.zeros((frames, height, width, 3), np.uint8)
    source, warped, recaptured = blank.copy(), blank.copy(), blank.copy()
    source[..., 0] = warped[..., 1] = recaptured[..., 2] = 200
    visible = np.ones((frames, height, width), np.float32)
    visible[..., 3 * width // 4 :] = 0
    warped[visible == 0] = 0
    return source, warped, visible, recaptured


def _runs(present):
    """How often a row of booleans turns true."""
    return int((np.diff(present.astype(int), prepend=0) == 1).sum())


def _sheet(frames=17, height=64, width=96, title="A clip", facts=FACTS, **truth):
    clips = _clips(frames, height, width)
    return report.summary(*clips, **truth, title=title, facts=facts, fps=Fraction(24))


def _colour(image, colour):
    """Where an image has a colour, give or take the ringing that enlarging leaves at edges."""
    return (np.abs(image.astype(int) - colour) <= 30).all(-1)


@pytest.mark.parametrize("frames, columns", [(17, 6), (6, 6), (4, 4), (1, 1)])
def test_every_row_shows_frames_spread_over_time(frames, columns):
    sheet = _sheet(frames)
    for colour in [(200, 0, 0), (0, 200, 0), (0, 0, 200)]:
        where = _colour(sheet, colour)
        assert _runs(where[where.sum(1).argmax()]) == columns
        assert _runs(where.any(1)) == 1


def test_rows_are_source_warped_visible_recaptured_truth():
    source = _clips()[0]
    sheet = _sheet(truth=np.full_like(source, (200, 200, 0)))
    colours = [(200, 0, 0), (0, 200, 0), report.HIDDEN, (0, 0, 200), (200, 200, 0)]
    places = [np.nonzero(_colour(sheet, c).sum(1) > 40)[0].mean() for c in colours]
    assert places == sorted(places)
    assert not (_colour(_sheet(), (200, 200, 0))).any()


def test_the_first_and_the_last_frame_are_shown():
    source, *rest = _clips()
    source[0], source[-1] = (250, 120, 10), (10, 120, 250)
    sheet = report.summary(source, *rest, title="A clip", facts=FACTS, fps=Fraction(24))
    for end in (source[0], source[-1]):
        assert _runs(_colour(sheet, end[0, 0]).any(0)) == 1


def test_holes_are_hatched_and_dark_pixels_are_not():
    source, warped, visible, recaptured = _clips()
    warped[:, :, :24] = 0  # dark, and seen
    comparison = report.comparison_frames(source, warped, visible, recaptured)
    panel = comparison[0, 30:, 96 * 4 + report.GAP :][:, : 96 * 4]
    assert panel[:, :80].max() < 10
    hole = panel[:, 310:]
    assert hole.min() > 180 and hole.std() > 5


@pytest.mark.parametrize("size", [(64, 96), (63, 97), (700, 900), (96, 64)])
def test_the_comparison_shows_three_panels_in_a_size_that_video_can_hold(size):
    clips = _clips(2, *size)
    comparison = report.comparison_frames(*clips)
    assert len(comparison) == 2
    assert comparison.shape[1] % 2 == comparison.shape[2] % 2 == 0
    assert 180 <= comparison.shape[1] <= 512
    line = comparison[0, comparison.shape[1] // 2]
    third = comparison.shape[2] // 3
    for number, channel in enumerate(range(3)):
        assert line[number * third + third // 3].argmax() == channel


@pytest.mark.parametrize("size", [(64, 96), (8, 1000), (2000, 2)])
def test_the_comparison_survives_a_file(tmp_path, size):
    comparison = report.comparison_frames(*_clips(3, *size))
    write_video(tmp_path / "comparison.mp4", comparison, Fraction(24))
    read = read_video(tmp_path / "comparison.mp4").frames
    assert read.shape == comparison.shape


@pytest.mark.parametrize("size", [(40, 500), (500, 40), (1, 1)])
def test_any_shape_of_clip_fits_the_page(size):
    sheet = _sheet(5, *size)
    assert sheet.shape[0] < 2000 and sheet.shape[1] < 2200
    assert (sheet[-20:] == 255).all() and (sheet[:, -20:] == 255).all()


def test_long_titles_and_facts_widen_the_page():
    facts = {f"fact {n}": "a rather long value" for n in range(12)}
    for sheet in (_sheet(title="a very long file name " * 8), _sheet(facts=facts)):
        assert sheet.shape[1] > _sheet().shape[1]
        assert (sheet[:, -report.MARGIN // 2 :] == 255).all()


def test_a_prompt_as_title_does_not_widen_the_page_without_end():
    sheets = [_sheet(title=length * "a goldfish in a bowl, ") for length in (20, 200)]
    assert sheets[0].shape == sheets[1].shape and sheets[0].shape[1] < 3000


def test_accents_and_dashes_are_drawn_as_what_the_font_has():
    told = [("Größe – über el niño, Łódź", "1 × 2"), ("Grosse - uber el nino, Lodz", "1 x 2")]
    sheets = [_sheet(title=title, facts={"Maß": value}) for title, value in told]
    np.testing.assert_array_equal(*sheets)


def test_psnr_matches_its_definition():
    rng = np.random.default_rng(0)
    a = rng.uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    b = a + 0.02
    np.testing.assert_allclose(report.psnr_db(a, b), 10 * np.log10(4 / 0.02**2), rtol=1e-5)
    dark = np.zeros((2, 8, 8, 3), np.uint8)
    np.testing.assert_allclose(report.psnr_db(dark, dark + 255), 0, atol=1e-12)
    assert report.psnr_db(a, a) == np.inf


def test_psnr_looks_only_where_the_mask_is():
    a = np.zeros((1, 4, 4, 3), np.uint8)
    b = a.copy()
    b[:, :2] = 10
    mask = np.zeros((1, 4, 4), bool)
    mask[:, 2:] = True
    assert report.psnr_db(a, b, mask) == np.inf
    np.testing.assert_allclose(report.psnr_db(a, b, ~mask), 20 * np.log10(25.5))
    np.testing.assert_allclose(report.psnr_db(a, b, np.full((1, 4, 4), 0.3)), report.psnr_db(a, b))
    assert np.isnan(report.psnr_db(a, b, np.zeros((1, 4, 4))))


def test_pictures_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    sheet = _sheet(2)
    report.save_png(tmp_path / "summary.png", sheet)
    with Image.open(tmp_path / "summary.png") as image:
        np.testing.assert_array_equal(np.asarray(image), sheet)
    with pytest.raises(FileNotFoundError):
        report.save_png(tmp_path / "none" / "summary.png", sheet)

    def fill_the_disk(image, path, **options):
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fill_the_disk)
    with pytest.raises(OSError, match="no space left"):
        report.save_png(tmp_path / "other.png", sheet)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.png"]
