"""The benchmark of the transformer, at a size that says nothing about speed."""

import json

import jax.numpy as jnp
import pytest

from experiments.bench import by_diffusers, dit
from experiments.bench.memory import Peak
from ic_jax.cost import dit_flops
from ic_jax.models.wan_dit import DiTConfig

TOY = dit.Case(
    DiTConfig(dim=48, ffn_dim=64, num_heads=2, num_layers=2, text_dim=16, text_len=8),
    (2, 4, 6),
    "float32",
    batch=2,
)


@pytest.fixture
def toy_page(monkeypatch, tmp_path, capsys):
    """What the command writes, with a memory that is not measured."""
    monkeypatch.setattr(dit, "CASES", {"toy": TOY})
    monkeypatch.setattr(dit, "peak_of", lambda prepare, *given: Peak(0, 3 << 20))
    monkeypatch.setattr(dit, "matmul_rates", lambda dtype: {"JAX": 1e12, "torch": 9e11})
    dit.main(dit.Arguments(rounds=2, results=tmp_path))
    assert capsys.readouterr().out.strip() == (tmp_path / "bench_dit.md").read_text().strip()
    return tmp_path


def test_both_sides_compute_the_same_and_rows_for_a_gpu_stay_open(toy_page):
    text = (toy_page / "bench_dit.md").read_text()
    raw = json.loads((toy_page / "bench_dit.json").read_text())
    assert raw["toy"]["difference"] < 1e-4
    assert set(raw["toy"]["times"]) == {dit.OURS, dit.WITH_TEXT, dit.EAGER}
    assert [len(seconds) for seconds in raw["toy"]["times"].values()] == [2, 2, 2]
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    assert {len(line) for line in lines} == {len(dit.HEADER)}
    assert text.count(dit.OPEN) == 4 * len(dit.GPU_CASES) and "3 MiB" in text


def test_targets_are_held_to_medians_of_ratios_on_either_platform():
    times = {dit.OURS: [1.0, 1.0, 9.0], dit.EAGER: [1.2] * 3, dit.COMPILED: [1.05] * 3}
    work = TOY.batch * dit_flops(TOY.config, TOY.grid)
    peaks = {dit.OURS: Peak(0, 3 << 20), dit.EAGER: Peak(0, 2 << 20)}
    result = dit.Result(times, peaks, {}, 0.0, matmul={"JAX": work, "torch": 1.5 * work})
    seconds, memory = dit.verdicts("toy", TOY, result, "cpu")
    assert seconds.startswith("* **Met**") and "0.83" in seconds
    assert memory.startswith("* **Not met**") and "3 MiB to 2 MiB" in memory
    words = [line.split("**")[1] for line in dit.verdicts("toy", TOY, result, "gpu")]
    assert words == ["Not met", "Not met", "Met"]


def test_either_side_is_made_from_plain_arguments():
    sizes, given = dit.their_sizes(TOY.config), dit.inputs(TOY)
    theirs = by_diffusers.transformer_alone(sizes, TOY.dtype, "cpu", given, compiled=False)
    for call in (dit.our_call_alone(TOY), theirs):
        assert jnp.asarray(call()).size == 2 * 2 * 4 * 6 * 16


def test_matrix_products_have_a_rate():
    rates = dit.matmul_rates("float32", size=64, rounds=2)
    assert set(rates) == {"JAX", "torch"} and all(1e6 < rate < 1e15 for rate in rates.values())
