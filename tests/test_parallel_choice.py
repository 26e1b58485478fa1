"""The mesh that is chosen fits, and moves no more than it must."""

import pytest

from ic_jax.errors import InputError
from ic_jax.parallel import MeshShape, Need, choose, per_device
from ic_jax.parallel.choice import Phase

GIB = 1 << 30
# A model of 1.3B, and one of 14B, in 16 bits.
SMALL = Need(3 * GIB, GIB, (Phase(0, 2 * GIB, gathered=GIB // 5),))
LARGE = Need(28 * GIB, GIB, (Phase(0, 8 * GIB, gathered=7 * GIB // 5),))


def test_what_fits_is_not_cut():
    assert choose(SMALL, 1, 16 * GIB, heads=12) == MeshShape()
    assert choose(SMALL, 8, 16 * GIB, heads=12, clips=8) == MeshShape(clips=8)


def test_the_prompts_part_before_the_sequence():
    assert choose(SMALL, 8, 16 * GIB, heads=12) == MeshShape(prompts=2, sequence=4)
    assert choose(SMALL, 3, 16 * GIB, heads=12) == MeshShape(sequence=3)
    assert choose(SMALL, 8, 16 * GIB, heads=12, prompts=1) == MeshShape(sequence=8)


def test_weights_are_cut_as_far_as_memory_asks():
    assert choose(LARGE, 8, 80 * GIB, heads=40).weights == 1
    assert choose(LARGE, 8, 16 * GIB, heads=40) == MeshShape(prompts=2, sequence=4, weights=4)
    assert choose(LARGE, 8, 9 * GIB, heads=40).weights == 8


def test_weights_are_cut_into_parts_that_divide_their_rows():
    assert choose(LARGE, 7, 16 * GIB, heads=40).weights == 7
    with pytest.raises(InputError, match="GiB on each of 7"):
        choose(LARGE, 7, 16 * GIB, heads=40, width=512)
    assert choose(LARGE, 6, 24 * GIB, heads=40, width=512).weights == 2


def test_what_devices_share_is_divided_and_the_largest_part_of_a_run_counts():
    need = Need(0, GIB, (Phase(3 * GIB, 0), Phase(GIB, 16 * GIB)))
    asked = [per_device(need, MeshShape(1, 2, n)) for n in (1, 2, 8)]
    assert asked == [10 * GIB, 6 * GIB, 4 * GIB]
    rows = need._replace(phases=(Phase(GIB, 15 * GIB, (480, 60)),))
    assert [per_device(rows, MeshShape(sequence=n)) for n in (3, 7)] == [7 * GIB, 17 * GIB]


def test_what_is_gathered_counts_where_weights_are_cut():
    need = Need(8 * GIB, 0, (Phase(0, 0, gathered=2 * GIB),))
    asked = [per_device(need, MeshShape(sequence=4, weights=n)) for n in (1, 4)]
    assert asked == [8 * GIB, 8 * GIB // 4 + 2 * GIB]


def test_clips_that_do_not_fit_side_by_side_share_devices():
    # One clip per device would leave no room for its activations.
    assert choose(LARGE, 8, 10 * GIB, heads=40, clips=8) == MeshShape(4, 2, 1, 8)
    assert choose(SMALL, 8, 16 * GIB, heads=12, clips=3) == MeshShape(2, 2, 2)


def test_what_may_fit_is_cut_the_most_and_what_cannot_is_refused():
    frugal = MeshShape(prompts=2, sequence=4, weights=8)
    estimate, certain = per_device(LARGE, frugal), per_device(LARGE, frugal, 0.5)
    assert LARGE.rest < certain < estimate
    asked = {"devices": 8, "heads": 40, "certain": 0.5}
    assert choose(LARGE, memory=16 * GIB, **asked).weights == 4  # as where all of it is certain
    for memory in (estimate, estimate - 1, certain):
        assert choose(LARGE, memory=memory, **asked) == frugal
    with pytest.raises(InputError, match=f"at least {certain / GIB:.1f} GiB on each of 8"):
        choose(LARGE, memory=certain - 1, **asked)
    with pytest.raises(InputError, match=f"at least {estimate / GIB:.1f} GiB on each of 8"):
        choose(LARGE, memory=estimate - 1, **asked | {"certain": 1.0})


def test_of_what_may_fit_the_least_by_the_whole_estimate_is_taken():
    need = Need(4 * GIB, 0, (Phase(8 * GIB, 0),))
    shape = choose(need, 2, 7 * GIB, heads=12, prompts=1, certain=0.25)
    assert shape == MeshShape(sequence=2, weights=2)
    # Weights that are cut are gathered, which outweighs here what cutting them saves.
    need = Need(4 * GIB, 0, (Phase(8 * GIB, 0, gathered=6 * GIB),))
    asked = [[per_device(need, MeshShape(sequence=2, weights=n), share) for n in (1, 2)]
             for share in (1.0, 0.25)]  # fmt: skip
    assert asked == [[12 * GIB, 16 * GIB], [6 * GIB, 5.5 * GIB]]
    for memory, weights in ((6, 1), (5.5, 2)):
        shape = choose(need, 2, int(memory * GIB), heads=12, prompts=1, certain=0.25)
        assert shape == MeshShape(sequence=2, weights=weights)


@pytest.mark.parametrize("devices", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("memory", [7, 12, 24, 48])
def test_what_is_chosen_fits_or_is_refused(devices, memory):
    try:
        shape = choose(LARGE, devices, memory * GIB, heads=40, clips=2)
    except InputError as error:
        assert "GiB on each of" in str(error) and "\n" not in str(error)
        # All devices on one clip, and on one copy of the weights.
        assert per_device(LARGE, MeshShape(1, 1, devices, devices)) > memory * GIB
    else:
        assert shape.devices == devices
        assert per_device(LARGE, shape) <= memory * GIB
