"""Bootstrapped means and their intervals."""

import numpy as np

from experiments.intervals import bootstrap


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


def test_one_value_has_a_mean_and_decides_nothing():
    one = bootstrap(np.array([2.0, np.nan]))
    assert one.mean == 2 and np.isnan(one[1:]).all()
    assert not one.decided and str(one) == "+2.00"


def test_an_interval_is_decided_where_it_leaves_zero_out_and_shows_signs():
    above, around = bootstrap(np.array([1.0, 1.0])), bootstrap(np.array([-1.0, 1.0]))
    assert above.decided and bootstrap(np.array([-1.0, -1.0])).decided and not around.decided
    assert f"{above:.0f}" == "1 [1, 1]"
    assert str(above) == "+1.00 [+1.00, +1.00]" and str(around) == "+0.00 [-1.00, +1.00]"
