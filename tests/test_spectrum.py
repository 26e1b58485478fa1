"""Gradient spectra: what must hold whatever the clip."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from experiments.spectrum import OCTAVES, gradient_spectrum, spectrum_distance_db

T, H, W = 3, 40, 48


@pytest.fixture
def clip():
    noise = np.random.default_rng(0).normal(size=(T, H, W, 3))
    return np.clip(gaussian_filter(noise, (0, 1, 1, 0)), -1, 1)


@pytest.fixture
def hole():
    hidden = np.zeros((T, H, W), bool)
    hidden[:, 8:32, 20:] = True
    return hidden


def test_a_spectrum_knows_nothing_of_the_outside(clip, hole):
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


def test_the_same_clip_is_at_no_distance_however_bright(clip, hole):
    assert spectrum_distance_db(clip, clip, hole) == 0
    assert spectrum_distance_db(clip + 0.2, clip, hole) == pytest.approx(0, abs=1e-9)


def test_half_the_contrast_is_six_decibels_away(clip, hole):
    strong = 50 * clip  # far above the floor
    expected = 20 * np.log10(2)
    assert spectrum_distance_db(strong / 2, strong, hole) == pytest.approx(expected, rel=1e-2)
    assert spectrum_distance_db(strong, strong / 2, hole) == pytest.approx(expected, rel=1e-2)


def test_more_blur_is_further_away(clip, hole):
    blurred = [gaussian_filter(clip, (0, s, s, 0)) for s in (0.5, 1, 2, 4)]
    distances = [spectrum_distance_db(b, clip, hole) for b in blurred]
    assert distances == sorted(distances) and distances[0] > 0


def test_a_region_too_small_for_an_octave_leaves_it_out(clip):
    thin = np.zeros((T, H, W), bool)
    thin[:, :, :5] = True
    spectrum = gradient_spectrum(clip, thin)
    assert np.isfinite(spectrum[:3]).all() and np.isnan(spectrum[3])
    assert np.isnan(spectrum_distance_db(clip, clip, np.zeros_like(thin)))
