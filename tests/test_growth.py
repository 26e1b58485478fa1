"""Exponents and sizes of the benchmark of growth; what is measured is not asked here."""

import pytest

from experiments.bench import growth
from ic_jax.cost import token_count


@pytest.mark.parametrize("power", [0.0, 1.0, 1.7])
def test_an_exponent_is_that_of_the_power_law(power):
    points = {n: 3e-4 * n**power for n in (2, 5, 40)}
    assert growth.exponent(points) == pytest.approx(power, abs=1e-9)


def test_sizes_of_the_axis_of_tokens_have_as_many():
    axis = growth.axes(least=False)["tokens"]
    for count in {*axis.timed, *axis.weighed}:
        sizes = growth.of_tokens(count)
        grid = sizes.vae.latent_shape(sizes.frames, sizes.height, sizes.width)[:3]
        assert token_count(sizes.dit, grid) == count


def test_work_counted_grows_with_steps_and_batch_as_they_do():
    for name in ("steps", "batch"):
        axis = growth.axes(least=False)[name]
        assert growth.exponent({n: axis.flops(n) for n in axis.timed}) == pytest.approx(1)


def test_the_page_has_a_row_for_every_axis():
    axes = growth.axes(least=True)
    points = lambda sizes: {n: 1e-3 * n for n in sizes}
    found = {
        "axes": {
            name: {"seconds": points(axis.timed), "bytes": points(axis.weighed)}
            for name, axis in axes.items()
        },
        "compile": {"depth": points((2, 4)), "steps": points((2, 4))},
    }
    lines = growth.page(found, rounds=1).splitlines()
    for name in axes:
        row = next(line for line in lines if line.startswith(f"| {name} |"))
        assert row.split("|")[3].strip() == "1.00"
