"""The benchmark of the autoencoder, at a size that says nothing about speed."""

import json
import os

import jax.numpy as jnp
import pytest

from experiments.bench import by_diffusers, memory, vae
from experiments.bench.memory import Peak

BASE, SIZE = 8, (5, 16, 16)


def test_both_sides_compute_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "peak_of", lambda prepare, *given: Peak(0, 3 << 20))
    frames, height, width = SIZE
    vae.main(vae.Arguments(BASE, frames, height, width, rounds=1, results=tmp_path))
    raw = json.loads((tmp_path / "bench_vae.json").read_text())
    assert set(raw) == {"encode", "decode"}
    assert all(record["difference"] < 1e-4 for record in raw.values())
    assert [len(peaks) for peaks in raw["encode"]["peaks"].values()] == [5, 5, 10]
    assert "| 3 MiB (3 MiB to 3 MiB) | 3 MiB |" in (tmp_path / "bench_vae.md").read_text()


@pytest.mark.parametrize(
    "seconds, peak, verdict", [(1.1, 1, "Met"), (1.3, 1, "Not met"), (1.1, 2, "Not met")]
)
def test_time_and_memory_both_decide(seconds, peak, verdict):
    record = {
        "seconds": {"ic_jax": [seconds], "diffusers": [1.0]},
        "ratio": seconds,
        "difference": 1e-5,
        "peaks": {
            vae.OURS: [Peak(0, peak)] * 2 + [Peak(0, 1)],  # the one in the middle counts
            vae.COMPILED: [Peak(0, 1)],
            vae.THEIRS: [Peak(0, 0), Peak(0, 2), Peak(0, 9)],
        },
    }
    assert f"**{verdict}**" in vae.page({"encode": record}, BASE, SIZE, rounds=1)


def test_either_side_is_made_from_plain_arguments():
    theirs = vae.in_their_units(BASE, vae.inputs(BASE, SIZE))["decode"]
    for call in (
        vae.ours_alone("decode", BASE, SIZE),
        by_diffusers.autoencoder_alone("decode", BASE, "cpu", theirs),
    ):
        assert jnp.asarray(call()).size == 5 * 16 * 16 * 3


def test_the_second_process_finds_what_the_first_compiled(monkeypatch):
    folders, peaks = [], iter(range(10))

    def seen(prepare, *given):
        folders.append(os.environ["JAX_COMPILATION_CACHE_DIR"])
        return Peak(0, next(peaks))

    monkeypatch.setattr(memory, "peak_of", seen)
    compiling, finding = vae.weigh(vae.ours_alone, "decode", BASE, SIZE)
    assert [peak.most for peak in compiling] == [0, 2, 4, 6, 8]
    assert [peak.most for peak in finding] == [1, 3, 5, 7, 9]
    assert folders[::2] == folders[1::2] and len(set(folders)) == vae.PROCESSES
