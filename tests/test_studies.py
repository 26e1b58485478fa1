"""The studies' engine: what is compared with what, what is kept, and what the page says."""

import json
from types import SimpleNamespace
from zlib import crc32

import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights

from experiments import laboratory, studies, studies_report
from experiments.laboratory import REFERENCES, Laboratory
from experiments.studies import DEFAULT, Arguments, grid, label, tournament
from ic_jax.errors import InputError
from ic_jax.latent_mask import MASKS
from ic_jax.model import Model
from ic_jax.sampling.methods import METHODS, options
from ic_jax.sampling.solvers import SOLVERS
from ic_jax.settings import Settings

MODEL = Model("tiny", TINY, tiny_weights(), {})


class Oracle:
    """Figures that follow from an arm's name and a task's number, and a list of who asked."""

    def __init__(self):
        self.model, self.asked = MODEL, []

    def score(self, kind, number, arm):
        self.asked.append((label(arm), number))
        level = 20 + crc32(label(arm).encode()) / 2**32
        return {name: level + number % 5 for name in studies_report.REGIONS}

    def reference(self, kind, number, name):
        return dict.fromkeys(studies_report.REGIONS, 40.0)


def test_the_grid_has_every_method_with_every_mask_it_can_read():
    arms = grid(Oracle())
    pairs = [(arm.consistency, arm.latent_mask) for arm in arms.values()]
    assert len(set(pairs)) == len(pairs) and {c for c, _ in pairs} == set(METHODS)
    for name in METHODS:
        masks = {mask for method, mask in pairs if method == name}
        alone = name == "none" or "pixels" in options(name)
        assert masks == ({"mean"} if alone else set(MASKS) - {"kernel"})


def test_labels_tell_arms_apart_and_leave_defaults_out():
    assert label(DEFAULT) == f"{DEFAULT.latent_mask}, {DEFAULT.consistency}"
    assert label(Settings(consistency="dds", gamma=3.0)) == "mean, dds, gamma 3.0"
    assert label(Settings(consistency="none", latent_mask="mean")) == "none"


def test_finalists_are_the_best_of_the_screen_and_meet_other_tasks():
    lab = Oracle()
    page = tournament(lab, Arguments("recapture", screen=2, tasks=3, finalists=4))
    assert {number for _, number in lab.asked[: 2 * len(page.screened)]} == {0, 1}
    assert {number for _, number in lab.asked[2 * len(page.screened) :]} == {2, 3, 4}
    means = {name: studies_report.overall(some).mean() for name, some in page.screened.items()}
    of = {}
    for name in sorted(means, key=means.get):
        of[name.split(", ")[-1]] = name
    best = sorted(of.values(), key=means.get)[-4:]
    always = {label(DEFAULT), "none", label(Settings(latent_mask="response"))}
    assert set(page.scores) == {*best, *always, *REFERENCES}


def test_arms_that_are_asked_for_are_finalists():
    arguments = Arguments("recapture", screen=1, tasks=2, finalists=0, also=("min, dds", "dps"))
    assert {"min, dds", "dps"} <= set(tournament(Oracle(), arguments).scores)
    with pytest.raises(InputError, match="--also 'mean, dsd': no such arm"):
        tournament(Oracle(), Arguments("recapture", also=("mean, dsd",)))


def test_the_page_shows_gains_with_the_right_sign_and_says_which_are_decided(tmp_path):
    rng = np.random.default_rng(0)
    base = 20 + rng.normal(0, 3, 30)
    regions = studies_report.REGIONS
    # of the spectrum's distance less is more
    row = lambda values: [dict.fromkeys(regions, float(v)) | {"spectrum": -v} for v in values]
    scores = {
        "base": row(base), "better": row(base + 1 + 0.1 * rng.normal(size=30)),
        "same": row(base + rng.normal(size=30)),
    }  # fmt: skip
    scores["same"][0]["hole"] = float("nan")
    page = studies_report.Page(scores, "base", None)
    studies_report.write(page, "trial", "python -m trial", MODEL, tmp_path)
    text = (tmp_path / "study_trial.md").read_text()
    better, same = (
        next(s for s in text.splitlines()[::-1] if name in s) for name in ("| better", "| same")
    )
    assert better.count("**+1.0") + better.count("**+0.9") == 4
    assert "**" not in same
    raw = json.loads((tmp_path / "study_trial.json").read_text())
    assert raw["scores"]["same"][0]["hole"] is None
    assert (tmp_path / "study_trial.png").stat().st_size > 1000


def test_a_single_task_decides_nothing(tmp_path):
    one = lambda value: [dict.fromkeys(studies_report.GAINS, value)]
    page = studies_report.Page({"base": one(20.0), "better": one(21.0)}, "base", None)
    studies_report.write(page, "single", "python -m single", MODEL, tmp_path)
    gains = (tmp_path / "study_single.md").read_text().split("## Against the default")[1]
    assert "| better | +1.00 | +1.00 | +1.00 | -1.00 |" in gains


@pytest.fixture
def lab(tmp_path, monkeypatch):
    monkeypatch.setattr(laboratory, "load_model", lambda path: MODEL)
    monkeypatch.setattr(laboratory, "find_model", lambda path: tmp_path)
    told = SimpleNamespace(context=tiny_context())
    monkeypatch.setattr(laboratory, "embed_prompts", lambda *_: told)
    return Laboratory("tiny", tmp_path)


def test_a_score_is_made_once_and_read_afterwards(lab, monkeypatch):
    arm = Settings(latent_mask="mean")
    first = lab.score("inpainting", 1, arm)
    assert all(np.isfinite(first[name]) for name in (*studies_report.REGIONS, "residual"))
    other = lab.score("inpainting", 1, Settings(latent_mask="mean", consistency="none"))
    assert other["residual"] > 2 * first["residual"], "the measurement pulls"
    monkeypatch.setattr(lab, "sampled", None)
    assert lab.score("inpainting", 1, arm) == first


def test_what_a_file_adds_is_compared_with_the_default(tmp_path, monkeypatch):
    file = tmp_path / "mine.py"
    file.write_text(
        "from ic_jax.latent_mask import MASKS\n"
        "from ic_jax.sampling.methods import METHODS\n"
        "from ic_jax.sampling.solvers import SOLVERS\n"
        "METHODS['mine'], MASKS['own'] = METHODS['dds'], MASKS['mean']\n"
        "SOLVERS['other'] = SOLVERS['euler']\n"
    )
    lab = Oracle()
    monkeypatch.setattr(studies, "Laboratory", lambda *_: lab)
    try:
        studies.main(Arguments("recapture", tasks=2, file=file, results=tmp_path, data=tmp_path))
    finally:
        del METHODS["mine"], MASKS["own"], SOLVERS["other"]
    own = {"mean, mine", "own, bayes_draw", "mean, bayes_draw, solver other"}
    assert {name for name, _ in lab.asked} == {label(DEFAULT), "none"} | own
    assert "mean, mine" in (tmp_path / "study_recapture_mine.md").read_text()


def test_scores_of_other_code_are_not_read():
    digests = [laboratory.digest(MODEL, None, code) for code in (b"", b"gamma = 3", b"gamma = 1")]
    assert len(set(digests)) == 3


def test_a_file_that_adds_nothing_is_refused_in_one_line(tmp_path):
    with pytest.raises(InputError, match="absent.py: no such file"):
        studies.main(Arguments("recapture", file=tmp_path / "absent.py", data=tmp_path))
    (tmp_path / "idle.py").write_text("nothing = 0\n")
    with pytest.raises(InputError, match="idle.py: adds nothing to METHODS"):
        studies.added(tmp_path / "idle.py")
