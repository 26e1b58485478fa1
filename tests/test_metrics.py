"""Region masks, gradient spectra and intervals: what must hold whatever the clip."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from experiments.intervals import bootstrap
from experiments.metrics import psnr_by_region, regions
from experiments.spectrum import OCTAVES, gradient_spectrum, spectrum_distance_db

T, H, W = 3, 40, 48


@pytest.fixture
def clip():
    noise = np.random.default_rng(0).normal(size=(T, H, W, 3))
    return np.clip(gaussian_filter(noise, (0, 1, 1, 0)), -1, 1)


@pytest.fixture
def visible():
    seen = np.ones((T, H, W))
    seen[:, 8:32, 20:] = 0.0
    return seen


def test_hole_and_visible_part_the_clip_and_the_seam_is_visible(visible):
    where = regions(visible)
    assert np.array_equal(where.hole, ~where.visible)
    assert not np.any(where.seam & where.hole)
    assert np.array_equal(where.hole, visible == 0)


def test_the_seam_is_as_wide_as_asked_and_stays_within_its_frame(visible):
    visible[1] = 1
    seam = regions(visible, seam=3).seam
    rows, columns = np.nonzero(seam[0])
    assert (rows.min(), rows.max(), columns.min()) == (5, 34, 17)
    assert not seam[1].any()


def test_without_holes_there_is_no_seam():
    where = regions(np.ones((T, H, W)))
    assert where.visible.all() and not where.seam.any() and not where.hole.any()


def test_an_error_in_the_hole_counts_only_there(clip, visible):
    where = regions(visible)
    spoilt = clip + 0.1 * where.hole[..., None]
    psnr = psnr_by_region(spoilt, clip, where)
    assert psnr["visible"] == psnr["seam"] == np.inf
    assert psnr["hole"] == pytest.approx(10 * np.log10(4 / 0.01), abs=1e-6)


def test_a_spectrum_knows_nothing_of_the_outside(clip, visible):
    hole = regions(visible).hole
    changed = np.where(hole[..., None], clip, -clip[::-1])
    same = gradient_spectrum(clip, hole)
    np.testing.assert_allclose(gradient_spectrum(changed, hole), same, rtol=1e-9)


def test_a_grating_has_its_energy_in_its_own_octave():
    scale = 4
    stripes = np.where(np.arange(W) // scale % 2, 0.5, -0.5)
    grating = np.broadcast_to(stripes[None, None, :, None], (T, H, W, 3))
    spectrum = gradient_spectrum(grating, np.ones((T, H, W), bool))
    assert OCTAVES[int(np.argmax(spectrum))] == scale
    assert spectrum[OCTAVES.index(2 * scale)] == pytest.approx(0, abs=1e-12)


def test_the_same_clip_is_at_no_distance_however_bright(clip, visible):
    hole = regions(visible).hole
    assert spectrum_distance_db(clip, clip, hole) == 0
    assert spectrum_distance_db(clip + 0.2, clip, hole) == pytest.approx(0, abs=1e-9)


def test_half_the_contrast_is_six_decibels_away(clip, visible):
    hole = regions(visible).hole
    strong = 50 * clip  # far above the floor
    expected = 20 * np.log10(2)
    assert spectrum_distance_db(strong / 2, strong, hole) == pytest.approx(expected, rel=1e-2)
    assert spectrum_distance_db(strong, strong / 2, hole) == pytest.approx(expected, rel=1e-2)


def test_more_blur_is_further_away(clip, visible):
    hole = regions(visible).hole
    blurred = [gaussian_filter(clip, (0, s, s, 0)) for s in (0.5, 1, 2, 4)]
    distances = [spectrum_distance_db(b, clip, hole) for b in blurred]
    assert distances == sorted(distances) and distances[0] > 0


def test_a_region_too_small_for_an_octave_leaves_it_out(clip):
    thin = np.zeros((T, H, W), bool)
    thin[:, :, :5] = True
    spectrum = gradient_spectrum(clip, thin)
    assert np.isfinite(spectrum[:3]).all() and np.isnan(spectrum[3])
    assert np.isnan(spectrum_distance_db(clip, clip, np.zeros_like(thin)))


def test_an_interval_holds_its_mean_and_shrinks_with_more_scenes():
    rng = np.random.default_rng(0)
    few, many = rng.normal(1, 1, 20), rng.normal(1, 1, 2000)
    a, b = bootstrap(few), bootstrap(many, resamples=1000)
    assert a.low < a.mean < a.high
    assert b.high - b.low < 0.3 * (a.high - a.low)
    assert a == bootstrap(few)


def test_equal_differences_leave_no_doubt_and_nan_is_left_out():
    assert bootstrap(np.array([2.0, 2.0, np.nan])) == (2.0, 2.0, 2.0)


def test_intervals_cover_the_true_mean_as_often_as_they_say():
    rng = np.random.default_rng(1)
    intervals = [bootstrap(rng.normal(0, 1, 50), resamples=500) for _ in range(200)]
    covered = np.mean([i.low < 0 < i.high for i in intervals])
    assert 0.88 <= covered <= 0.99
