"""The help of each command says the ranges, names and units that its options are held to."""

import re
from inspect import signature
from pathlib import Path

import pytest

from ic_jax.choices import check
from ic_jax.cli.calibrate import Calibrate
from ic_jax.depth_file import KINDS
from ic_jax.director import check_seed
from ic_jax.errors import InputError
from ic_jax.geometry.trajectory import TRAJECTORIES
from ic_jax.models.variants import VARIANTS
from ic_jax.settings import Settings
from ic_jax.video import read_video

CLIPS = "recapture", "inpaint"


@pytest.fixture
def help_of(run):
    """What the help of a command says of each of its options."""

    def read(command):
        code, stdout, _ = run(command, "--help")
        assert code == 0
        rows = [row.strip("│ ") for row in stdout.splitlines() if row.startswith("│")]
        pairs = re.split(r"(?:^| )--([a-z-]+)", " ".join(rows))[1:]
        options = {}
        for name, text in zip(pairs[::2], pairs[1::2], strict=True):
            options.setdefault(name, text)  # later ones are named in the text of others
        return options

    return read


def refused(test, *given):
    with pytest.raises(InputError) as error:
        test(*given)
    return str(error.value)


def range_in(text):
    return [float(number.rstrip(".")) for number in re.search(RANGE, text).groups()]


RANGE = r"from ([\d.]+) to ([\d.]+)"
RANGED = (
    "steps", "guidance_scale", "guidance_scale_low", "shift", "gamma", "inner", "reuse",
    "guided_from", "guided_to", "refresh_at", "renoise", "variance_scale",
)  # fmt: skip


@pytest.mark.parametrize("command", CLIPS)
def test_ranges_are_those_that_settings_are_held_to(help_of, command):
    said = help_of(command)
    for name in RANGED:
        bad = -1 if name in ("steps", "inner", "reuse") else -1.0
        held_to = range_in(refused(check, Settings(**{name: bad})))
        assert range_in(said[name.replace("_", "-")]) == held_to, name


@pytest.mark.parametrize("command", [*CLIPS, "calibrate"])
def test_seeds_and_sizes_are_those_that_models_take(help_of, command):
    said = help_of(command)
    low, high = map(int, range_in(said["seed"]))
    for seed in low, high:
        check_seed(seed)
    for seed in low - 1, high + 1:
        refused(check_seed, seed)
    for sizes in VARIANTS.values():
        assert "a multiple of 4, at least 9" in refused(sizes.resized, 5, None, None)
        assert "give a multiple of 16" in refused(sizes.resized, None, 8, None)
    assert "4k+1 and at least 9" in said["frames"] and "a multiple of 16" in said["height"]


def test_draws_are_those_that_calibrate_takes(help_of, tmp_path):
    draws = Calibrate(Path("nano"), tmp_path, draws=0)
    assert range_in(help_of("calibrate")["draws"]) == range_in(refused(draws._check))


@pytest.mark.parametrize("command", ["recapture", "warp"])
def test_cameras_have_their_names_and_units(help_of, command):
    said = help_of(command)
    names = re.search(r"The new camera: (.*), or a \.json", said["camera"])[1].split(", ")
    assert names == list(TRAJECTORIES)
    degrees, fractions = said["amount"].split("a fraction")
    for name, move in TRAJECTORIES.items():
        if move.unit != "none":
            text = degrees if move.unit == "degrees" else fractions
            assert f"{name.partition('_')[0]} {move.amount:g}" in text
    assert all(kind in said["depth-kind"] for kind in KINDS)


@pytest.mark.parametrize("command", [*CLIPS, "warp"])
def test_a_rate_without_one_is_the_usual(help_of, command):
    usual = signature(read_video).parameters["fps"].default
    assert f"without it, {usual}. A file states its own" in help_of(command)["fps"]
