"""Figures by region against closed forms and against scikit-image on the whole frame."""

import sys
import types

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from experiments.metrics import (
    Regions,
    lpips_by_region,
    psnr_by_region,
    regions,
    residual,
    scores,
    ssim_by_region,
)
from ic_jax.errors import InputError

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


def test_the_whole_is_hole_and_visible_together(clip, visible):
    where = regions(visible)
    spoilt = clip + 0.2 * where.hole[..., None] + 0.1 * where.visible[..., None]
    share = where.hole.mean()
    psnr = psnr_by_region(spoilt, clip, where)["whole"]
    assert psnr == pytest.approx(10 * np.log10(4 / (0.04 * share + 0.01 * (1 - share))))


def test_a_clip_is_wholly_similar_to_itself(clip, visible):
    similar = ssim_by_region(clip, clip, regions(visible))
    assert list(similar.values()) == pytest.approx([1.0] * 4)
    assert np.isnan(ssim_by_region(clip, clip, regions(np.ones((T, H, W))))["hole"])


def test_away_from_the_edges_similarity_is_that_of_scikit_image(clip):
    noisy = clip + np.random.default_rng(1).normal(0, 0.1, clip.shape)
    inside = np.zeros((T, H, W), bool)
    inside[:, 5:-5, 5:-5] = True
    found = ssim_by_region(noisy, clip, Regions(inside, inside, ~inside, inside | True))
    how = dict(
        data_range=2, channel_axis=-1, gaussian_weights=True, use_sample_covariance=False, sigma=1.5
    )
    whole = [structural_similarity(a, b, **how) for a, b in zip(noisy, clip, strict=True)]
    assert found["visible"] == pytest.approx(np.mean(whole))


def test_similarity_of_two_flat_clips_is_the_luminance_term():
    where = regions(np.ones((1, 16, 16)))
    flat = np.full((1, 16, 16, 3), 0.5)
    constant = (0.01 * 2) ** 2
    expected = (2 * 0.5 * 0.25 + constant) / (0.5**2 + 0.25**2 + constant)
    assert ssim_by_region(flat / 2, flat, where)["whole"] == pytest.approx(expected)


def test_a_window_reaches_five_pixels_and_no_further(clip, visible):
    hole = regions(visible).hole
    spoilt = np.where(hole[..., None], -clip, clip)
    near, far = regions(visible, seam=1).seam, ~hole & ~regions(visible, seam=5).seam
    found = ssim_by_region(spoilt, clip, Regions(near, far, hole, hole | True))
    assert found["visible"] < 0.9
    assert found["seam"] == pytest.approx(1, abs=1e-12)
    assert found["hole"] < found["whole"] < found["seam"]


@pytest.fixture
def stand_in(monkeypatch):
    """A module in the place of `lpips`, whose network is the mean absolute difference."""

    class Network:
        def __init__(self, net, spatial, verbose):
            assert (net, spatial) == ("alex", True)

        def eval(self):
            return self

        def __call__(self, a, b):
            assert a.dtype == b.dtype == torch.float32
            return (a - b).abs().mean(1, keepdim=True)

    module = types.ModuleType("lpips")
    module.LPIPS = Network
    monkeypatch.setitem(sys.modules, "lpips", module)


def test_perceptual_distance_is_averaged_over_the_region(stand_in, clip, visible):
    where = regions(visible)
    spoilt = clip + 0.1 * where.hole[..., None] * np.array([1.0, 2.0, 3.0])
    found = lpips_by_region(spoilt, clip, where)
    assert found["visible"] == found["seam"] == 0
    assert found["hole"] == pytest.approx(0.2, rel=1e-5)
    assert found["whole"] == pytest.approx(0.2 * where.hole.mean(), rel=1e-5)


def test_without_the_package_the_extra_is_named(monkeypatch, clip, visible):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(InputError, match=r"ic-jax\[lpips\]"):
        lpips_by_region(clip, clip, regions(visible))


def test_a_residual_is_weighed():
    measured = np.zeros((2, 3, 4, 5))
    latent = measured + np.array([3.0, 4.0, 0.0, 0.0, 100.0])
    believed = np.array([0.5, 0.5, 0.0, 0.0, 0.0]).reshape(1, 1, 1, 5)
    assert residual(latent, measured, believed) == pytest.approx(np.sqrt(12.5))
    assert np.isnan(residual(latent, measured, 0 * believed))


def test_the_truth_scores_best_at_everything(clip, visible):
    flow, valid = np.zeros((T - 1, H, W, 2)), np.ones((T - 1, H, W), bool)
    found = scores(clip, clip, regions(visible), (flow, valid))
    assert found["visible"] == found["seam"] == found["hole"] == found["whole"] == np.inf
    assert found["ssim_hole"] == pytest.approx(1) and found["spectrum"] == 0
    assert found["motion"] == found["motion_hole"] == 1
    assert found["warp_error"] == found["warp_error_of_truth"] > 0
    flow_needed = {name for name in found if name.startswith("warp_error")}
    assert scores(clip, clip, regions(visible)).keys() == found.keys() - flow_needed


def test_stillness_lowers_the_warp_error_but_shows_in_the_motion(clip, visible):
    flow, valid = np.zeros((T - 1, H, W, 2)), np.ones((T - 1, H, W), bool)
    still = np.repeat(clip[:1], T, axis=0)
    found = scores(still, clip, regions(visible), (flow, valid))
    assert found["warp_error"] == found["warp_error_hole"] == 0 < found["warp_error_of_truth"]
    assert found["motion"] == found["motion_seam"] == 0


def test_an_error_in_the_hole_leaves_the_visible_scores_alone(clip, visible):
    where = regions(visible)
    flow, valid = np.zeros((T - 1, H, W, 2)), np.ones((T - 1, H, W), bool)
    spoilt = np.where(where.hole[..., None], clip[::-1] / 2, clip)
    found = scores(spoilt, clip, where, (flow, valid))
    assert found["visible"] == np.inf and np.isfinite(found["hole"])
    assert found["motion_visible"] == 1 and found["motion_hole"] == pytest.approx(0.5)
    assert found["warp_error_visible"] == found["warp_error_of_truth_visible"]
    assert found["warp_error_hole"] == pytest.approx(found["warp_error_of_truth_hole"] / 2)
