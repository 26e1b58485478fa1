"""Intervals, paired comparisons and ranks."""

import numpy as np
import pytest

from experiments.intervals import bootstrap, compare, mean_ranks


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


def test_without_any_value_nothing_is_claimed():
    assert np.isnan(bootstrap(np.array([np.nan, np.inf]))).all()
    nothing = compare(np.array([np.nan]), np.array([1.0]))
    assert nothing.clips == 0 and np.isnan(nothing.won) and not nothing.decided


def test_pairing_takes_the_clips_difficulty_out():
    rng = np.random.default_rng(0)
    difficulty = 10 * rng.normal(size=30)
    ours, theirs = difficulty + 1 + 0.1 * rng.normal(size=30), difficulty
    found = compare(ours, theirs)
    assert found.decided and found.won == 1 and found.clips == 30
    assert found.gain.mean == pytest.approx(np.mean(ours - theirs))
    assert found.gain.high - found.gain.low < 0.2


def test_a_comparison_turned_round_or_of_errors_has_the_other_sign():
    a, b = np.array([3.0, 2.0, 5.0, 1.0]), np.array([1.0, 2.0, 4.0, 3.0])
    one, other, errors = compare(a, b), compare(b, a), compare(b, a, higher_is_better=False)
    assert one.won == (2 + 0.5) / 4 and other.won == 1 - one.won
    assert one.gain.mean == -other.gain.mean == errors.gain.mean


def test_seeds_of_one_clip_count_once():
    rng = np.random.default_rng(0)
    per_clip = rng.normal(size=12)
    seeds = np.repeat(per_clip[:, None], 8, axis=1)
    assert compare(seeds, 0 * seeds) == compare(per_clip, 0 * per_clip)


def test_two_samples_without_any_error_leave_no_difference_to_compare():
    perfect = np.array([np.inf, 3.0])
    assert compare(perfect, np.array([np.inf, 2.0])) == ((1.0, 1.0, 1.0), 1.0, 1)


def test_ranks_start_at_one_and_ties_share():
    values = np.array([[3.0, 5.0, np.nan], [1.0, 5.0, 1.0], [2.0, 0.0, 2.0]])
    np.testing.assert_allclose(mean_ranks(values), [1.25, 2.25, 2.5])
    errors = mean_ranks(values, higher_is_better=False)
    np.testing.assert_allclose(errors, 4 - np.array([1.25, 2.25, 2.5]))
    assert np.isnan(mean_ranks(np.full((2, 3), np.nan))).all()
