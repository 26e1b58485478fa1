"""What a run says of itself, where there is nothing to say."""

import json

import numpy as np
import pytest

from ic_jax import delivery
from ic_jax.cli.console import report
from ic_jax.director import Take


def take(share):
    """Frames of which that share of every pixel was seen, four grey levels off where it was."""
    frames = np.full((2, 8, 8, 3), 100, np.uint8)
    observed = frames + np.uint8(4)
    return Take(observed, frames, observed, np.full((2, 8, 8), share, np.float32), {})


@pytest.mark.parametrize(
    ("share", "named"), [(1.0, {"coverage", "visible_psnr_db"}), (0.4, {"coverage"})]
)
def test_every_figure_is_a_number_that_json_has(share, named, capsys, tmp_path):
    facts = delivery.measure(take(share), None)
    # As delivered it equals what was observed, which is no number of decibels either.
    assert set(json.loads(json.dumps(facts, allow_nan=False))) == named
    report(tmp_path, facts)
    assert ("kept at 36.09 dB" in capsys.readouterr().out) == (share == 1.0)


def test_regions_are_those_that_are_there():
    whole = take(1.0)
    facts = delivery.measure(whole, whole.generated)
    assert facts["psnr_db"] == {"visible": 36.09, "whole": 36.09}
    assert facts["psnr_db_as_decoded"] == {}


def test_a_label_has_a_dash_for_what_is_left_out():
    assert [delivery.in_decibels(value) for value in (None, 36.09)] == ["–", "36.1 dB"]
