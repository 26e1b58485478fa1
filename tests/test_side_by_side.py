"""What benchmarks are made of: turns, ratios by round, memory of another process, and paper."""

import subprocess
import sys
from types import SimpleNamespace

import jax
import pytest
from bare_calls import allocation, loaded

from experiments.bench import memory, scaling
from experiments.bench.memory import Peak, middle, peak_of
from experiments.bench.side_by_side import in_turns, ratio
from ic_jax.models.variants import VARIANTS
from ic_jax.parallel import MeshShape


def test_calls_take_turns_and_every_other_round_is_backwards():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    times = in_turns(calls, rounds=3)
    assert "".join(order) == "ab" + "ab" + "ba" + "ab"
    assert [len(seconds) for seconds in times.values()] == [3, 3]


def test_a_ratio_is_of_one_round_and_not_of_two_medians():
    times = {"ours": [1.0, 20.0, 3.0], "theirs": [1.0, 10.0, 6.0]}
    assert ratio(times, "ours", "theirs") == 1.0


def test_memory_is_what_the_call_adds():
    rises = [peak_of(allocation, size).rise / 2**20 for size in (50, 200)]
    assert rises[1] - rises[0] == pytest.approx(150, abs=15)


def test_a_process_loads_neither_library_unless_the_call_does():
    rises = [peak_of(loaded, *names).rise >> 20 for names in (("jax", "torch"), ("numpy",))]
    assert rises[0] < 8 and rises[1] >= 60


@pytest.mark.parametrize(
    ("modules", "other"),
    [("by_diffusers", "jax"), ("dit, experiments.bench.vae", "torch")],
)
def test_neither_side_of_a_benchmark_loads_the_others_library(modules, other):
    code = f"import sys, experiments.bench.{modules}; sys.exit({other!r} in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_process_in_the_middle_is_that_of_the_peak():
    assert middle([Peak(9, 30), Peak(8, 10), Peak(7, 20)]) == Peak(7, 20)


def test_on_a_gpu_torchs_memory_is_that_of_the_call_and_not_of_making_weights(monkeypatch):
    most = [9]
    cuda = SimpleNamespace(
        is_available=lambda: True,
        memory_allocated=lambda: 5,
        max_memory_allocated=lambda: most[0],
        reset_peak_memory_stats=lambda: most.__setitem__(0, 5),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.delitem(sys.modules, "jax")
    assert memory.measured(lambda: most.__setitem__(0, max(7, most[0]))) == Peak(5, 7)


def test_on_a_gpu_jaxs_memory_is_that_of_its_allocator(monkeypatch):
    held = {"bytes_in_use": 5, "peak_bytes_in_use": 5}
    device = SimpleNamespace(memory_stats=lambda: dict(held))
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert memory.measured(lambda: held.update(peak_bytes_in_use=7)) == Peak(5, 7)


@pytest.mark.parametrize("name", scaling.MACHINES)
@pytest.mark.parametrize("model", scaling.MODELS)
def test_layouts_use_every_chip_and_fit(model, name):
    sizes, machine = VARIANTS[model], scaling.MACHINES[name]
    for shape in scaling.layouts(sizes, machine):
        assert shape.devices == machine.chips
        needed = scaling.need(sizes, scaling.PROMPTS)
        room = scaling.CHIPS[machine.chip].memory
        assert scaling.per_device(needed, shape) <= scaling.USABLE * room


def test_twice_the_chips_halve_the_work_and_not_the_links():
    sizes, machine = VARIANTS[scaling.MODELS[1]], scaling.MACHINES["8×H100"]
    two, four = (scaling.predict(sizes, MeshShape(sequence=n), machine) for n in (2, 4))
    assert four.compute == pytest.approx(two.compute / 2)
    assert four.autoencoder == pytest.approx(two.autoencoder / 2)
    # Each chip holds half as much, of which it receives 3/4 and not 1/2.
    assert four.links["all-to-all"] == pytest.approx(two.links["all-to-all"] * 3 / 4)


def test_published_runs_stay_below_the_peak():
    assert all(0.2 < scaling.implied(run) < 0.7 for run in scaling.CHECKS)
