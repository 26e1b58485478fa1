"""The benchmark of the autoencoder, at a size that says nothing about speed."""

import json
import os

import jax.numpy as jnp
import pytest

from experiments.bench import side_by_side, vae
from experiments.bench.side_by_side import Peak

BASE, SIZE = 8, (5, 16, 16)


def test_both_sides_compute_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(side_by_side, "peak_of", lambda prepare, *given: Peak(0, 3 << 20))
    frames, height, width = SIZE
    vae.main(vae.Arguments(BASE, frames, height, width, rounds=1, results=tmp_path))
    raw = json.loads((tmp_path / "bench_vae.json").read_text())
    assert set(raw) == {"encode", "decode"}
    assert all(record["difference"] < 1e-4 for record in raw.values())
    assert "| 3 MiB |" in (tmp_path / "bench_vae.md").read_text()


@pytest.mark.parametrize(
    "seconds, peak, verdict", [(1.1, 1, "Met"), (1.3, 1, "Not met"), (1.1, 2, "Not met")]
)
def test_time_and_memory_both_decide(seconds, peak, verdict):
    record = {
        "seconds": {"ic_jax": [seconds], "diffusers": [1.0]},
        "ratio": seconds,
        "difference": 1e-5,
        "peak": {"ic_jax": Peak(0, peak), "diffusers": Peak(0, 2)},
        "again": {"ic_jax": Peak(0, 1), "diffusers": Peak(0, 2)},
    }
    assert f"**{verdict}**" in vae.page({"encode": record}, BASE, SIZE, rounds=1)


def test_a_side_is_weighed_alone():
    for prepare in (vae.ours_alone, vae.theirs_alone):
        assert jnp.asarray(prepare("decode", BASE, SIZE)()).size == 5 * 16 * 16 * 3


def test_the_second_process_finds_what_the_first_compiled(monkeypatch):
    folders, peaks = [], iter([50, 5, 10, 1, 90, 9])

    def seen(prepare, *given):
        folders.append(os.environ["JAX_COMPILATION_CACHE_DIR"])
        return Peak(0, next(peaks))

    monkeypatch.setattr(side_by_side, "peak_of", seen)
    compiling, finding = vae.weigh(vae.ours_alone, "decode", BASE, SIZE)
    assert (compiling.most, finding.most) == (50, 5)  # medians
    assert folders[::2] == folders[1::2] and len(set(folders)) == vae.PROCESSES
