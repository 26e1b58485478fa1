"""The whole story with a tiny random model: what must hold whatever the weights are."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import CHANNELS, TINY, tiny_context, tiny_weights

from ic_jax import pipeline
from ic_jax.course import Part, reused, stages
from ic_jax.expert import prepare
from ic_jax.geometry.camera import camera
from ic_jax.geometry.warp import warp_operator
from ic_jax.models import wan_vae
from ic_jax.models.clip_vision import CLIPVisionConfig
from ic_jax.pipeline import Scene
from ic_jax.sampling.solvers import SOLVERS
from ic_jax.settings import Settings

FRAMES, HEIGHT, WIDTH = TINY.frames, TINY.height, TINY.width
KEY = jax.random.key(0)
CONTEXT = tiny_context()


@pytest.fixture(scope="module")
def weights():
    return tiny_weights()


def scene(step):
    """Noise on a plane, seen from a camera `step` pixels further to the right."""
    rng = np.random.default_rng(0)
    clip = jnp.asarray(rng.uniform(-1, 1, (FRAMES, HEIGHT, WIDTH, 3)), jnp.float32)
    intrinsics = np.array([[20.0, 0, WIDTH / 2], [0, 20, HEIGHT / 2], [0, 0, 1]])
    pose = np.eye(4)
    source = camera(pose, intrinsics, FRAMES)
    pose[0, 3] = step * 2.0 / 20
    target = camera(pose, intrinsics, FRAMES)
    depth = jnp.full((FRAMES, HEIGHT, WIDTH), 2.0)
    return Scene(clip, warp_operator(depth, source, target, edges=False))


@pytest.fixture(scope="module")
def moved():
    return scene(8)


observe = jax.jit(pipeline.observe, static_argnums=(0, 1))
sample = jax.jit(pipeline.sample, static_argnums=(0, 1))
finish = jax.jit(pipeline.finish, static_argnums=0)
encode, decode = (jax.jit(f, static_argnums=0) for f in (wan_vae.encode, wan_vae.decode))


def run(sizes, settings, weights, scene, context, key):
    """`recapture`, part by part: only what a test changes is compiled anew."""
    mask_key, noise_key = jax.random.split(key)
    read = Settings(latent_mask=settings.latent_mask, conditioning=settings.conditioning)
    seen = observe(sizes, read, weights, scene, scene, mask_key)
    return finish(sizes, weights, sample(sizes, settings, weights, context, seen, noise_key))


# A mask that encodes nothing of its own compiles in a fraction of the time.
QUICK = Settings(latent_mask="mean")


def test_same_seed_same_frames_and_another_seed_others(weights, moved):
    first = run(TINY, Settings(), weights, moved, CONTEXT, KEY)
    assert first.shape == (FRAMES, HEIGHT, WIDTH, 3) and first.dtype == jnp.float32
    assert np.isfinite(first).all() and np.abs(first).max() <= 1
    np.testing.assert_array_equal(first, run(TINY, Settings(), weights, moved, CONTEXT, KEY))
    other = run(TINY, Settings(), weights, moved, CONTEXT, jax.random.key(1))
    assert np.abs(first - other).max() > 1e-3


def test_the_parts_make_the_whole(weights, moved):
    whole = jax.jit(partial(pipeline.recapture, TINY, QUICK))(weights, moved, CONTEXT, KEY)
    parts = run(TINY, QUICK, weights, moved, CONTEXT, KEY)
    np.testing.assert_allclose(whole, parts, atol=1e-5)


def test_the_measurement_matters(weights, moved):
    fused = run(TINY, QUICK, weights, moved, CONTEXT, KEY)
    free = run(TINY, replace(QUICK, consistency="none"), weights, moved, CONTEXT, KEY)
    assert np.abs(fused - free).max() > 1e-2


def test_the_prompt_matters(weights, moved):
    red = run(TINY, replace(QUICK, consistency="none"), weights, moved, CONTEXT, KEY)
    blue = run(TINY, replace(QUICK, consistency="none"), weights, moved, tiny_context(1), KEY)
    assert np.abs(red - blue).max() > 1e-3


def test_a_camera_that_stays_gives_the_round_trip_of_the_autoencoder(weights):
    still = scene(0)
    np.testing.assert_array_equal(still.operator.visible, 1.0)
    out = run(TINY, Settings(), weights, still, CONTEXT, KEY)
    latent = encode(TINY.vae, weights.vae, still.clip[None])
    np.testing.assert_allclose(out, decode(TINY.vae, weights.vae, latent)[0], atol=1e-4)


def test_segments_of_a_run_make_the_whole_bit_for_bit(weights, moved):
    settings = replace(QUICK, renoise=0.3, steps=4)
    observation = observe(TINY, settings, weights, moved, moved, KEY)
    state, levels = pipeline.begin(TINY, settings, KEY)
    go = jax.jit(partial(pipeline.proceed, TINY, settings, Part()))
    whole = go(weights, CONTEXT, observation, state, levels)
    for first in (0, 2):
        part = jax.tree.map(lambda leaf: leaf[first : first + 2], levels)
        state = go(weights, CONTEXT, observation, state, part)
    np.testing.assert_array_equal(whole.x, state.x)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_prompts_that_were_prepared_once_serve_every_segment(weights, moved, guidance_scale):
    settings = replace(QUICK, guidance_scale=guidance_scale)
    observation = observe(TINY, settings, weights, moved, moved, KEY)
    prepared = jax.jit(partial(prepare, TINY, settings, "dit"))(weights, CONTEXT, None)
    assert prepared.text.keys.shape[1] == (1 if guidance_scale == 1 else 2)
    go = jax.jit(partial(pipeline.proceed, TINY, settings, Part()))
    state, levels = pipeline.begin(TINY, settings, KEY)
    one = go(weights, CONTEXT, observation, state, levels)
    other = go(weights, prepared, observation, state, levels)
    np.testing.assert_allclose(one.x, other.x, atol=1e-5)


def test_settings_left_out_are_the_models_own():
    spelled = Settings(steps=TINY.steps, shift=TINY.shift)
    for a, b in zip(*(pipeline.begin(TINY, s, KEY)[1] for s in (Settings(), spelled))):
        np.testing.assert_array_equal(a, b)
    assert len(pipeline.begin(TINY, replace(spelled, steps=7), KEY)[1].sigma) == 7


# An image model with a CLIP tower, as small as the other.
SHOWN = replace(
    TINY,
    dit=replace(TINY.dit, in_channels=2 * CHANNELS + 4, image_dim=8),
    clip=CLIPVisionConfig(dim=8, ffn_dim=16, heads=2, layers=1, image=224, patch=14),
    conditioning="inpaint",
)


@pytest.mark.parametrize("conditioning", ["inpaint", "first_frame"])
def test_an_image_model_is_told_what_was_observed_and_may_be_told_nothing(moved, conditioning):
    sizes = replace(SHOWN, conditioning=conditioning)
    weights = tiny_weights(sizes)
    other = moved._replace(clip=jnp.flip(moved.clip, axis=2))
    told, silent = (
        [
            run(
                sizes, replace(QUICK, consistency="none", conditioning=on), weights, s, CONTEXT, KEY
            )
            for s in (moved, other)
        ]
        for on in (True, False)
    )
    # With consistency off, its own inputs are all that a model knows of the clip.
    assert np.abs(told[0] - told[1]).max() > 1e-3
    np.testing.assert_array_equal(*silent)


def test_what_an_image_model_is_shown_is_the_known_part_alone(moved):
    """A pixel is known if more than half of it was seen."""
    weights, known = tiny_weights(SHOWN), moved.operator.visible == 1
    half_seen = moved.operator._replace(visible=jnp.where(known, 0.51, jnp.float32(0.5)))
    observation = observe(SHOWN, QUICK, weights, moved._replace(operator=half_seen), moved, KEY)
    channels, tokens = observation.conditioning
    latent = observation.measurement.latent
    assert channels.shape == (*latent.shape[:3], 4 + CHANNELS) and tokens.shape == (257, 8)
    masked = jnp.where(known[..., None], observation.measurement.clip, 0.0)
    expected = encode(SHOWN.vae, weights.vae, masked[None])[0]
    np.testing.assert_allclose(channels[..., 4:], expected, atol=1e-5)
    off = observe(SHOWN, replace(QUICK, conditioning=False), weights, moved, moved, KEY)
    assert not np.any(off.conditioning.channels) and not np.any(off.conditioning.tokens)


def test_of_a_first_frame_with_holes_only_the_pixels_that_were_seen_count_as_known(moved):
    sizes = replace(SHOWN, conditioning="first_frame")
    observation = observe(sizes, QUICK, tiny_weights(sizes), moved, moved, KEY)
    shown = observation.conditioning.channels[..., :4]
    assert 0 < float(shown[0].mean()) < 1 and not np.any(shown[1:])


TWO = replace(TINY, boundary=0.8, guidance_scale_low=1.0, steps=6)


def test_each_expert_gets_its_share_of_the_levels(moved):
    _, levels = pipeline.begin(TWO, QUICK, KEY)
    (first, high), (second, low) = stages(TWO, QUICK, levels)
    assert (first.expert, second.expert) == ("dit", "dit_low") and len(high.sigma) + len(
        low.sigma
    ) == 6
    assert high.timestep.min() >= 800 > low.timestep.max()


def test_two_experts_that_are_one_give_what_one_gives(weights, moved):
    sizes = replace(TWO, guidance_scale_low=TWO.guidance_scale)
    twins = weights._replace(dit_low=weights.dit)
    one = run(replace(sizes, boundary=None), QUICK, weights, moved, CONTEXT, KEY)
    np.testing.assert_allclose(run(sizes, QUICK, twins, moved, CONTEXT, KEY), one, atol=1e-5)
    other = twins._replace(dit_low=jax.tree.map(lambda leaf: 1.1 * leaf, weights.dit))
    assert np.abs(run(sizes, QUICK, other, moved, CONTEXT, KEY) - one).max() > 1e-3


@pytest.mark.parametrize("solver", SOLVERS)
def test_every_solver_runs_the_story(weights, moved, solver):
    out = run(TINY, replace(QUICK, solver=solver), weights, moved, CONTEXT, KEY)
    assert np.isfinite(out).all()
    same = solver == TINY.solver
    default = run(TINY, QUICK, weights, moved, CONTEXT, KEY)
    assert (np.abs(out - default).max() == 0) == same


# The schedule's parts -----------------------------------------------------------------


def test_the_measurement_acts_within_its_window_and_nowhere_else(weights, moved):
    settings = replace(QUICK, steps=4)
    sigmas = pipeline.begin(TINY, settings, KEY)[1].sigma
    window = replace(settings, guided_from=float(sigmas[1]), guided_to=float(sigmas[2]))
    found = stages(TINY, window, pipeline.begin(TINY, settings, KEY)[1])
    assert [(part.acts, len(levels.sigma)) for part, levels in found] == [
        (False, 1), (True, 2), (False, 1),
    ]  # fmt: skip
    closed = replace(settings, guided_from=float(sigmas[3]) / 2, guided_to=0.0)
    free = run(TINY, replace(settings, consistency="none"), weights, moved, CONTEXT, KEY)
    never = run(TINY, closed, weights, moved, CONTEXT, KEY)
    np.testing.assert_allclose(never, free, atol=1e-6)
    some = run(TINY, window, weights, moved, CONTEXT, KEY)
    assert np.abs(some - free).max() > 1e-3


def test_a_refreshed_measurement_differs_where_nothing_was_seen(weights, moved):
    settings = replace(QUICK, steps=4)
    state, levels = pipeline.begin(TINY, settings, KEY)
    middle = replace(settings, refresh_at=float(levels.sigma[2]))
    found = stages(TINY, middle, levels)
    assert [(part.refreshes, len(some.sigma)) for part, some in found] == [
        (False, 2), (True, 1), (False, 1),
    ]  # fmt: skip
    before = observe(TINY, settings, weights, moved, moved, KEY)
    part, some = found[1]
    after = jax.jit(pipeline.refresh, static_argnums=(0, 1, 2))(
        TINY, settings, part, weights, CONTEXT, before, state, some
    )
    apart = np.abs(after.measurement.clip - before.measurement.clip).max(-1)
    seen = np.asarray(before.visible) == 1
    assert apart[seen].max() == 0 and apart[~seen].mean() > 0.05
    encoded = encode(TINY.vae, weights.vae, after.measurement.clip[None])[0]
    np.testing.assert_allclose(after.measurement.latent, encoded, atol=1e-5)
    without = run(TINY, settings, weights, moved, CONTEXT, KEY)
    assert np.abs(run(TINY, middle, weights, moved, CONTEXT, KEY) - without).max() > 1e-4


# Reuse --------------------------------------------------------------------------------


def test_a_step_that_asks_the_blocks_is_the_same_whether_others_reuse_or_not(moved):
    weights = tiny_weights(SHOWN)
    observation = observe(SHOWN, QUICK, weights, moved, moved, KEY)
    plain, reusing = (replace(QUICK, steps=1, reuse=n) for n in (0, 3))
    one, other = (
        jax.jit(partial(pipeline.sample, SHOWN, settings))(weights, CONTEXT, observation, KEY)
        for settings in (plain, reusing)
    )
    np.testing.assert_allclose(one.x, other.x, atol=1e-5)


def test_experts_reuse_what_they_said_themselves(moved):
    settings = replace(QUICK, reuse=5)
    _, levels = pipeline.begin(TWO, settings, KEY)
    (_, high), (_, low) = stages(TWO, settings, levels)
    taken_over = set(reused(TWO, settings).tolist())
    assert high.sigma[0] not in taken_over and low.sigma[0] not in taken_over
    assert taken_over == set(levels.sigma.tolist()) - {high.sigma[0], low.sigma[0]}

    weights = tiny_weights()._replace(dit_low=tiny_weights().dit)
    observation = observe(TWO, settings, weights, moved, moved, KEY)
    run = lambda settings: jax.jit(partial(pipeline.sample, TWO, settings))(
        weights, CONTEXT, observation, KEY
    )
    often, seldom = run(replace(settings, reuse=0)), run(settings)
    assert seldom.memory[1].shape[0] == 2
    assert 1e-4 < np.abs(often.x - seldom.x).max() < np.abs(often.x).max()
