"""What holds for every method and every mask, whoever wrote it: swept over both registries."""

from collections.abc import Callable
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.geometry.camera import camera, intrinsics_from_fov
from ic_jax.geometry.mask import MaskOperator
from ic_jax.geometry.warp import warp_operator
from ic_jax.latent_mask import KERNEL, MASKS, LatentMask, Measurement, kernel
from ic_jax.sampling.denoiser import split
from ic_jax.sampling.methods import METHODS, method
from ic_jax.sampling.sampler import Pixels, advance, start
from ic_jax.sampling.schedule import flow_schedule
from ic_jax.sampling.solvers import dpmpp_2m

FRAMES, LATENT_FRAMES, CHANNELS = 5, 2, 4
STEPS = 3
KEYS = jax.random.split(jax.random.key(7), 4)


def colours() -> np.ndarray:
    """Three colours to four channels, by an isometry."""
    square = np.random.default_rng(0).normal(size=(CHANNELS, 3))
    return np.float32(np.linalg.qr(square)[0].T)


COLOURS = colours()


def encode(clip, block=2):
    """Block means of frames {0} and {1–4}, mixed by COLOURS."""
    groups = jnp.stack([clip[0], clip[1:].mean(0)])
    t, h, w, c = groups.shape
    return groups.reshape(t, h // block, block, w // block, block, c).mean((2, 4)) @ COLOURS


def decode(latent, block=2):
    """Frames and pixels repeated, so that encode(decode(encode(p))) = encode(p)."""
    blocks = (latent @ COLOURS.T).repeat(block, 1).repeat(block, 2)
    return blocks.repeat(np.array([1, FRAMES - 1]), 0, total_repeat_length=FRAMES)


# Methods ------------------------------------------------------------------------------

HEIGHT, WIDTH = 4, 6
SHAPE = (LATENT_FRAMES, HEIGHT // 2, WIDTH // 2, CHANNELS)
VARIANCES = np.float32([0, 0, 1e-30, 1e-6, 0.1, 1.0, 10.0, 1e12])
SHARES = np.float32([0, 0, 1, 1, 0.25, 0.5, 0.8])
RANDOM, OTHER, EMPTY, FULL = range(4)


def masks() -> LatentMask:
    """Two random ones, one that has seen nothing and one that knows everything exactly.

    The other one's variance is the same in every channel.
    """
    rng = np.random.default_rng(1)
    coverage = rng.choice(SHARES, (4, *SHAPE[:3], 1))
    variance = rng.choice(VARIANCES, (4, *SHAPE))
    coverage[EMPTY], coverage[FULL], variance[FULL] = 0, 1, 0
    variance[OTHER] = variance[OTHER, ..., :1]
    return LatentMask(jnp.asarray(coverage), jnp.asarray(variance))


def clips():
    rng = np.random.default_rng(2)
    clip = jnp.asarray(rng.uniform(-1, 1, (4, FRAMES, HEIGHT, WIDTH, 3)), jnp.float32)
    seen = rng.choice(SHARES, (4, FRAMES, HEIGHT, WIDTH))
    seen[EMPTY], seen[FULL] = 0, 1
    return clip, jnp.asarray(seen)


def run(name, mask, clip, visible, key):
    """A whole run of a few steps, with a model that mixes neighbours and is not linear."""

    def denoise(x, level):
        velocity = jnp.tanh(x + 0.3 * jnp.roll(x, 1, axis=2)) - 0.2 * level.sigma
        return split(x, velocity, level.sigma)

    pixels = Pixels(encode, decode, clip, visible)
    solver = dpmpp_2m(renoise=0.2)
    step = method(name, inner=2, pixels=pixels)(denoise, solver, encode(clip), mask)
    return advance(step, start(key, SHAPE, solver), flow_schedule(STEPS, 3.0)).x


def inputs(lane: int | None = None):
    """Of all runs, or of one."""
    return jax.tree.map(
        lambda leaf: leaf if lane is None else leaf[lane], (masks(), *clips(), KEYS)
    )


@cache
def compiled(name: str) -> Callable:
    return jax.jit(jax.vmap(partial(run, name)))


@cache
def together(name: str) -> np.ndarray:
    """All runs in one compiled program."""
    return np.asarray(compiled(name)(*inputs()))


@cache
def alone(name: str, lane: int) -> np.ndarray:
    """One run, nothing compiled or batched, with as few channels in the mask as will do."""
    mask, *rest = inputs(lane)
    if lane == OTHER:
        mask = mask._replace(variance=mask.variance[..., :1])
    with jax.disable_jit():
        return np.asarray(run(name, mask, *rest))


@pytest.mark.parametrize("name", METHODS)
def test_methods_are_finite_wherever_the_mask_is_extreme(name):
    assert np.isfinite(together(name)).all()


@pytest.mark.parametrize("name", METHODS)
def test_methods_give_the_same_for_the_same_keys_and_another_for_others(name):
    mask, *data, keys = inputs()
    np.testing.assert_array_equal(compiled(name)(mask, *data, keys), together(name))
    other = compiled(name)(mask, *data, keys[::-1])
    assert np.abs(other[EMPTY] - together(name)[EMPTY]).max() > 1e-3


@pytest.mark.parametrize("name", METHODS)
def test_methods_ignore_jit_and_the_other_clips_of_a_batch(name):
    np.testing.assert_allclose(together(name)[RANDOM], alone(name, RANDOM), atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_methods_take_one_channel_for_as_many_alike(name):
    np.testing.assert_allclose(together(name)[OTHER], alone(name, OTHER), atol=1e-5)


@pytest.mark.parametrize("name", [n for n, entry in METHODS.items() if entry.plain_when_empty])
def test_methods_are_the_plain_sampler_where_they_say_so(name):
    np.testing.assert_array_equal(alone(name, EMPTY), alone("none", EMPTY))


@pytest.mark.parametrize("name", [n for n, entry in METHODS.items() if entry.exact_when_full])
def test_methods_return_an_exact_measurement_where_they_say_so(name):
    _, clip, *_ = inputs(FULL)
    np.testing.assert_allclose(together(name)[FULL], encode(clip), atol=1e-5)


# Masks --------------------------------------------------------------------------------

SIDE, BLOCK = 16, 8
LATENT = (LATENT_FRAMES, SIDE // BLOCK, SIDE // BLOCK, CHANNELS)
WEIGHTS = jnp.asarray(np.random.default_rng(3).uniform(0, 0.1, (*KERNEL, CHANNELS)), jnp.float32)
CONSTRUCTIONS = MASKS | {"kernel": partial(kernel, weights=WEIGHTS)}
LANES = 4


def painted():
    """Visibility: scattered pixels, soft edges, nothing and everything."""
    visible = np.random.default_rng(4).uniform(size=(LANES, FRAMES, SIDE, SIDE))
    visible[0] = visible[0] > 0.3
    visible[2], visible[3] = 0, 1
    return jnp.asarray(visible, jnp.float32)


def warped():
    """Random depths under random moves; the last camera looks away and sees nothing."""
    rng = np.random.default_rng(5)
    depth = jnp.asarray(rng.uniform(1, 3, (LANES, FRAMES, SIDE, SIDE)), jnp.float32)
    intrinsics = intrinsics_from_fov(60.0, SIDE, SIDE)
    poses = np.tile(np.eye(4), (LANES, FRAMES, 1, 1))
    poses[..., :3, 3] = rng.uniform(-0.4, 0.4, (LANES, FRAMES, 3))
    poses[-1, :, :3, :3] = np.diag([-1.0, 1.0, -1.0])
    source = camera(np.eye(4), intrinsics, FRAMES)
    targets = [camera(pose, intrinsics, FRAMES) for pose in poses]
    target = jax.tree.map(lambda *leaves: jnp.stack(leaves), *targets)
    return jax.jit(jax.vmap(warp_operator, (0, None, 0)))(depth, source, target)


def filled():
    """Noise, slow noise, one colour, and black; the warps come first."""
    clip = np.random.default_rng(6).uniform(-1, 1, (LANES, FRAMES, SIDE, SIDE, 3))
    clip[1] = np.cumsum(clip[1], axis=1) / SIDE
    clip[2], clip[3] = 0.3, -1
    return jnp.asarray(np.tile(clip, (2, 1, 1, 1, 1)), jnp.float32)


def construct(name, operator, clip, key):
    to_latent = partial(encode, block=BLOCK)
    return CONSTRUCTIONS[name](operator, to_latent, Measurement(clip, to_latent(clip)), key)


@pytest.fixture(scope="module")
def warps():
    return warped()


@pytest.fixture(scope="module")
def built(warps):
    """Every construction, as a function of its name, of all operators at once."""
    operators = MaskOperator(jnp.concatenate([warps.visible, painted()]))
    keys = jax.random.split(KEYS[0], 2 * LANES)

    @cache
    def build(name):
        function = jax.jit(jax.vmap(partial(construct, name)))
        again = partial(function, operators, filled(), keys)
        return again, again(), operators, keys

    return build


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_masks_are_finite_shares_and_variances(built, name):
    _, mask, *_ = built(name)
    assert np.broadcast_shapes(*(leaf.shape[1:] for leaf in mask), LATENT) == LATENT
    assert all(leaf.shape[1:4] == LATENT[:3] for leaf in mask)
    assert all(np.isfinite(leaf).all() and (leaf >= 0).all() for leaf in mask)
    assert (mask.coverage <= 1).all()
    for r2 in (0.0, 1e-6, 1.0, 1e6):
        weight = mask.weight(r2)
        assert ((weight >= 0) & (weight <= mask.coverage)).all()


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_masks_trust_nothing_of_a_clip_that_is_all_hidden(built, name):
    _, mask, operators, _ = built(name)
    hidden = np.asarray(operators.visible).max((1, 2, 3)) == 0
    assert hidden.sum() == 2, "a camera that looks away, and an empty painting"
    np.testing.assert_array_equal(mask.weight(1.0)[hidden], 0)
    assert mask.weight(1.0)[~hidden].max() > 0


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_masks_give_the_same_for_the_same_keys(built, name):
    again, mask, *_ = built(name)
    jax.tree.map(np.testing.assert_array_equal, mask, again())


@pytest.mark.parametrize("name", CONSTRUCTIONS)
def test_masks_ignore_jit_the_batch_and_the_operator_that_saw(warps, built, name):
    _, mask, _, keys = built(name)
    alone = construct(name, jax.tree.map(lambda leaf: leaf[0], warps), filled()[0], keys[0])
    for leaf, expected in zip(mask, alone):
        np.testing.assert_allclose(leaf[0], expected, atol=1e-5)
