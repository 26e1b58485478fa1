"""The page on other machines, with CPUs in their place: these tests have no other compiler."""

import jax
import numpy as np
from tiny_model import TINY

from experiments.bench import compilers
from ic_jax.parallel import MeshShape


def test_peaks_are_those_of_all_weights_and_what_a_program_takes_makes_and_works_in(capfd):
    found = {each.program: each for each in compilers.measure(TINY, MeshShape(), jax.devices()[:1])}
    assert list(found) == ["observe", "prepare", "sample", "finish"]
    weights, _ = compilers.placed(TINY, MeshShape(), jax.devices()[:1])
    held = sum(leaf.nbytes for leaf in map(_empty, jax.tree.leaves(weights)))
    pixels = TINY.frames * TINY.height * TINY.width
    for each in found.values():
        assert each.peak > held + each.temporaries and each.seconds > 0
    # Decoded, three bytes a pixel; and nothing but weights and the latent is taken.
    taken = found["finish"].peak - held - found["finish"].temporaries - 3 * pixels
    assert 0 < taken < 64_000


def test_the_page_has_a_line_for_every_program_and_says_what_fits():
    case, other = compilers.CASES[-3:-1]  # on v5e
    made = [compilers.Compiled(name, 2**30, size * 2**30, 9.0) for name, size in
            (("observe", 15), ("prepare", 3), ("sample", 6), ("finish", 16))]  # fmt: skip
    page = compilers.page({case: made, other: made[:3]}, "libtpu 1.0")
    assert "libtpu 1.0; compiled ahead" in page and "1 of 2 cases fit" in page
    lines = [line for line in page.splitlines() if f"| {case.devices} {case.machine} |" in line]
    assert len(lines) == 4 and "| prepare | 1.00 | 3.00 | 15.75 | – | – | 9 s |" in lines[1]
    said = compilers.predicted(compilers.VARIANTS[case.model], MeshShape())["observe"]
    assert f"| {said / 2**30:.2f} | {said / 15 / 2**30:.2f} |" in lines[0]


def test_weights_that_are_cut_are_counted_in_parts():
    shape = MeshShape(sequence=2, weights=2)
    whole, _ = compilers.placed(TINY, MeshShape(), jax.devices()[:1])
    cut, _ = compilers.placed(TINY, shape, jax.devices()[:2])
    kernel = lambda weights: weights.dit["blocks"]["ffn_fc1"]["kernel"]
    assert 2 * compilers._on_one(kernel(cut)) == compilers._on_one(kernel(whole))
    for case in compilers.CASES:
        layout = compilers.layout_of(case)
        assert layout.prompts * layout.sequence == case.devices


def test_cases_that_are_not_chosen_stay_as_they_were_found(monkeypatch, tmp_path):
    made = [compilers.Compiled(name, 2**30, 2**31, 9.0) for name in ("observe", "sample", "finish")]
    monkeypatch.setattr(compilers, "measure", lambda *given: made)
    monkeypatch.setattr(compilers.Machine, "devices", lambda self, count: [None] * count)

    def lines(only, version):
        monkeypatch.setattr(compilers, "version", lambda name: version)
        compilers.main(compilers.Arguments(only, tmp_path))
        text = (tmp_path / "bench_compilers.md").read_text()
        return [line.split("|")[2].strip() for line in text.splitlines() if "| sample |" in line]

    assert lines("1.3B 8 v5e", "1.0") == ["8 v5e"]
    assert lines("RTX", "1.0") == ["1 RTX 4090", "8 v5e"]
    assert lines("RTX", "1.1") == ["1 RTX 4090"]


def test_a_card_is_described_in_numbers():
    described = compilers.MACHINES["H100"].described
    assert described.count("{") == described.count("}") == 3
    assert "cuda_compute_capability { major: 9 minor: 0 }" in described


def _empty(leaf):
    return np.empty(leaf.shape, leaf.dtype)
