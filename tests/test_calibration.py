"""What is measured about a model: against closed forms, and how it is kept."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import CHANNELS, TINY, tiny_context, tiny_weights

from ic_jax import clean_error
from ic_jax.calibration import (
    Calibration,
    CleanError,
    check_replaceable,
    from_record,
    load_record,
    to_record,
)
from ic_jax.choices import resolve
from ic_jax.clean_error import LEVELS, measure_clean_error
from ic_jax.conditioning import Conditioning
from ic_jax.errors import InputError
from ic_jax.latent_mask import LatentMask
from ic_jax.mask_error import (
    ASKED,
    MaskError,
    observe_with_holes,
    random_holes,
    variance_scale,
)
from ic_jax.model import Model, Weights
from ic_jax.sampling.denoiser import Prediction
from ic_jax.settings import Settings

KEY = jax.random.key(0)
NOTHING = Weights(vae={}, dit={}, dit_low={})


# The clean error ------------------------------------------------------------------


def test_between_measured_levels_the_clean_error_lies_on_a_line_and_beyond_them_it_stays():
    error = CleanError(jnp.array([0.2, 0.6]), jnp.array([[0.1, 0.0], [0.5, 2.0]]))
    for sigma, expected in ((0.4, [0.3, 1.0]), (0.2, [0.1, 0.0]), (0.0, [0.1, 0.0]), (1, [0.5, 2])):
        np.testing.assert_allclose(error(jnp.float32(sigma)), expected, rtol=1e-6)


def test_every_channel_weighs_the_measurement_by_its_own_clean_error():
    error = CleanError(jnp.array([0.0, 1.0]), jnp.array([[0.0, 0.0], [2.0, 6.0]]))
    mask = LatentMask(jnp.ones((3, 4, 5, 1)), jnp.ones((3, 4, 5, 2)))
    weight = mask.weight(error(jnp.float32(0.5)))
    assert weight.shape == (3, 4, 5, 2)
    np.testing.assert_allclose(weight[0, 0, 0], [1 / 2, 3 / 4], rtol=1e-6)


def model_that(monkeypatch, predict):
    """Let `predict(expert, conditioning, x, level)` stand for every model's clean estimate."""

    def denoiser_of(expert):
        return lambda x, level: Prediction(predict(*expert, x, level), x)

    monkeypatch.setattr(clean_error, "expert", lambda *given: (given[2], given[5]))
    monkeypatch.setattr(clean_error, "denoiser_of", denoiser_of)
    jax.clear_caches()  # the program is known by its sizes, not by what stands for the model


def contexts(clips):
    return jnp.zeros((clips, *tiny_context().shape))


def test_of_the_best_denoiser_of_gaussian_latents_it_is_the_posterior_variance(monkeypatch):
    variance = jnp.array([0.25, 1.0, 4.0])

    def posterior_mean(expert, conditioning, x, level):
        signal = (1 - level.sigma) * variance
        return signal * x / ((1 - level.sigma) * signal + level.sigma**2)

    model_that(monkeypatch, posterior_mean)
    latents = variance**0.5 * jax.random.normal(KEY, (4, 5, 32, 32, 3))
    error = measure_clean_error(
        TINY, Settings(), NOTHING, latents, contexts(4), jax.random.key(1), draws=2
    )
    sigma = np.linspace(0, 1, LEVELS + 1)
    np.testing.assert_allclose(error.sigma, sigma, atol=1e-6)
    noise = sigma[:, None] ** 2
    expected = variance * noise / ((1 - sigma[:, None]) ** 2 * variance + noise)
    np.testing.assert_allclose(error.variance, expected, rtol=0.05)


def test_each_expert_answers_for_its_own_levels(monkeypatch):
    sizes = replace(TINY, boundary=0.5, solver="unipc")
    answer = {"dit": 3.0, "dit_low": 1.0}
    model_that(monkeypatch, lambda expert, *_: jnp.full((1, 2, 2, 3), answer[expert]))
    error = measure_clean_error(
        sizes, Settings(), NOTHING, jnp.zeros((1, 1, 2, 2, 3)), contexts(1), KEY
    )
    # The truncated timestep decides, as when sampling: 499 belongs to the second expert.
    expected = np.where(np.trunc(1000 * error.sigma) >= 500, 9.0, 1.0)
    np.testing.assert_allclose(error.variance[1:, 0], expected[1:])
    assert len(set(expected)) == 2


def test_every_clip_goes_with_its_own_conditioning(monkeypatch):
    model_that(monkeypatch, lambda expert, told, x, level: jnp.ones_like(x) * told.channels.mean())
    shown = Conditioning(jnp.broadcast_to(jnp.arange(2.0)[:, None, None, None, None],
                                          (2, 1, 2, 2, 4)), None)  # fmt: skip
    heard = []
    error = measure_clean_error(
        TINY,
        Settings(),
        NOTHING,
        jnp.zeros((2, 1, 2, 2, 3)),
        contexts(2),
        KEY,
        conditioning=shown,
        draws=3,
        progress=heard.append,
    )
    np.testing.assert_allclose(error.variance[1:], 0.5)
    assert sum(heard) == 2 * 3 * LEVELS


def test_a_real_network_is_measured_per_channel_and_the_prompt_counts():
    weights = tiny_weights()
    latents = jax.random.normal(KEY, (1, 2, 2, 4, CHANNELS))
    one, other = (
        measure_clean_error(TINY, Settings(), weights, latents, tiny_context(seed)[None], KEY)
        for seed in (0, 1)
    )
    assert one.variance.shape == (LEVELS + 1, CHANNELS)
    assert not np.any(one.variance[0]) and np.all(one.variance[1:] > 0)
    assert np.abs(one.variance - other.variance).max() > 1e-4


# The mask's error -----------------------------------------------------------------


def test_random_holes_move_leave_most_of_the_clip_and_come_again_with_their_seed():
    for seed in range(20):
        holes = random_holes(np.random.default_rng(seed), 9, 48, 64)
        assert holes.shape == (9, 48, 64) and 0.02 < holes.mean() < 0.5
        assert (holes[0] != holes[-1]).any() and holes[-1].sum() > 0.1 * holes[-1].size
        again = random_holes(np.random.default_rng(seed), 9, 48, 64)
        np.testing.assert_array_equal(holes, again)
    assert (again != random_holes(np.random.default_rng(0), 9, 48, 64)).any()


def test_the_scale_is_found_where_the_pixels_were_seen():
    rng = np.random.default_rng(0)
    v = rng.exponential(size=(2, 20, 20, 3)).astype(np.float32)
    actual = (0.3 * v * rng.chisquare(1, v.shape)).astype(np.float32)
    share = np.ones((2, 20, 20, 1), np.float32)
    share[:, :5], actual[:, :5] = 0.4, 1e6
    errors = [MaskError(share, {"mine": v}, actual)] * 2
    assert variance_scale(errors, "mine") == pytest.approx(0.3, rel=0.1)


def test_an_error_beyond_the_priors_variance_does_not_decide_the_scale_alone():
    """One latent in 1200 with v = 1000 and no error: plain means would halve the scale."""
    v = np.full((1, 20, 20, 3), 1.0, np.float32)
    actual = 0.3 * v
    v[0, 0, 0, 0], actual[0, 0, 0, 0] = 1000.0, 0.0
    error = MaskError(np.ones((1, 20, 20, 1), np.float32), {"mine": v}, actual)
    assert variance_scale([error], "mine") == pytest.approx(0.3, rel=0.01)


def test_clips_that_hide_nothing_are_refused():
    empty = np.zeros((1, 2, 2, 3), np.float32)
    with pytest.raises(InputError, match="show nothing that a hole could hide"):
        variance_scale([MaskError(empty[..., :1] + 1, {"mine": empty}, empty)], "mine")


def test_a_measurement_is_wrong_because_of_holes_alone():
    weights = tiny_weights()
    clip = jax.random.uniform(KEY, (TINY.frames, TINY.height, TINY.width, 3), minval=-1)
    everything = jnp.ones(clip.shape[:3], bool)
    _, whole, _ = observe_with_holes(TINY, weights, clip, everything, KEY)
    np.testing.assert_allclose(whole.actual, 0, atol=1e-9)
    np.testing.assert_array_equal(whole.coverage, 1)
    seen = everything.at[:, :8, :8].set(False)
    observation, part, latent = observe_with_holes(TINY, weights, clip, seen, KEY)
    apart = observation.measurement.latent - latent
    np.testing.assert_allclose(part.actual, apart**2, atol=1e-6)
    assert part.actual[:, 0, 0].mean() > 1e-4 and set(part.predicted) == set(ASKED)
    assert all(v[:, 0, 0].mean() > 1e-4 for v in part.predicted.values())
    assert part.coverage.shape[-1] == 1 and part.coverage[0, 0, 0, 0] == 0


# The record -----------------------------------------------------------------------

RECORD = {
    "variance_scale": {"response": 0.25},
    "clean_error": {"sigma": [0.0, 0.5, 1.0], "variance": [[0.0, 0.0], [0.1, 0.2], [1.0, 1.5]]},
    "kernel": np.full((1, 2, 3, 2), 0.5).tolist(),
    "measured": {"variant": "nano", "clips": 3},
}


def test_a_record_holds_the_arrays_that_went_into_it():
    arrays = Calibration(
        CleanError(jnp.array([0.0, 1 / 3]), jnp.array([[0.0, 1.0], [2 / 3, 1e-7]])),
        jnp.linspace(0, 1, 2 * 3 * 3 * 2).reshape(2, 3, 3, 2),
    )
    again = from_record(json.loads(json.dumps(to_record(arrays))), "file", 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), arrays, again)
    assert from_record({}, "file", 2) == Calibration() and to_record(Calibration()) == {}


def changed(**parts):
    return RECORD | {"clean_error": RECORD["clean_error"] | parts}


@pytest.mark.parametrize(
    "record, said",
    [
        (changed(sigma=[0.0, 0.5]), "2 noise levels, 3 variances"),
        (changed(sigma=[0.0, 0.5, 0.5]), "levels do not rise"),
        (changed(sigma=[0.0, 0.5, float("nan")]), "levels do not rise"),
        (changed(sigma=[0.0, 0.5, 1.5]), r"levels are not in \[0, 1\]"),
        (changed(sigma="abc"), "could not convert"),
        (changed(sigma=[0.0, 0.5, 10**400]), "too large"),
        (changed(variance=[[0.0], [0.1], [0.2]]), r"shape \(3, 1\) for latents of 2 channels"),
        (changed(variance=[[0.0, 0.0], [0.1, -0.2], [1.0, 1.0]]), "variance is negative"),
        (changed(variance=[[0.0, 0.0], [0.1], [1.0, 1.0]]), "inhomogeneous"),
        (RECORD | {"clean_error": {"sigma": [1.0]}}, "variance"),
        (RECORD | {"clean_error": [1.0]}, "list indices"),
        (RECORD | {"kernel": [[[[1.0, float("inf")]]]]}, "not finite"),
        (RECORD | {"kernel": [1.0, 2.0]}, "shape"),
        (
            RECORD | {"variance_scale": {"response": -1.0}},
            "variance_scale of response is no number",
        ),
        (RECORD | {"variance_scale": {"response": "big"}}, "of response is no number"),
    ],
)
def test_an_unfit_record_is_refused_and_its_file_named(record, said):
    with pytest.raises(InputError, match=rf"some\.json: its calibration is unfit \(.*{said}") as e:
        from_record(record, "some.json", 2)
    assert "\n" not in str(e.value)


def test_a_record_in_a_file_is_for_its_own_model(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(RECORD))
    assert load_record(file, "nano", 2) == RECORD
    with pytest.raises(InputError, match="was measured on nano, and this model is Wan2.1-T2V-14B"):
        load_record(file, "Wan2.1-T2V-14B", 2)
    with pytest.raises(InputError, match="mine.json: its calibration is unfit"):
        load_record(file, "nano", 16)
    with pytest.raises(InputError, match="absent.json: no such file"):
        load_record(tmp_path / "absent.json", "nano", 2)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "3", '{"measured": 3}', "\xff"])
def test_somebody_elses_file_is_neither_read_nor_replaced(tmp_path, text):
    file = tmp_path / "thesis.json"
    file.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match="thesis.json: is no file that `ic-jax calibrate"):
        load_record(file, "nano", 2)
    with pytest.raises(InputError, match="thesis.json: is no file that `ic-jax calibrate"):
        check_replaceable(file)


def test_a_file_of_ours_or_a_new_name_may_be_written(tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(RECORD))
    check_replaceable(tmp_path / "old.json")
    check_replaceable(tmp_path / "new.json")
    with pytest.raises(InputError, match="give a name that ends in .json"):
        check_replaceable(tmp_path / "new.txt")


@pytest.mark.parametrize("settings, said", [
    (Settings(latent_mask="kernel"), "mask kernel was never fitted to it; run ic-jax calibrate"),
    (Settings(clean_error="measured"), "clean error was never measured; run ic-jax calibrate"),
])  # fmt: skip
def test_what_was_never_measured_cannot_be_asked_for(settings, said):
    with pytest.raises(InputError, match=f"^tiny: .*{said}"):
        resolve(settings, Model("tiny", TINY, None, {}))
    record = {"kernel": [], "clean_error": {}, "variance_scale": {"response": 0.5}}
    resolve(settings, Model("tiny", TINY, None, record))
    asked = resolve(Settings(latent_mask="response"), Model("tiny", TINY, None, record))
    assert asked.variance_scale == 0.5
