"""Eight devices give what one gives, clip by clip, with weights that are sent once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_model import TINY, tiny_context, tiny_weights

from ic_jax import pipeline
from ic_jax.geometry.camera import camera
from ic_jax.geometry.warp import warp_operator
from ic_jax.parallel import over_clips, replicate
from ic_jax.settings import Settings

CLIPS = 11
FRAMES, HEIGHT, WIDTH = TINY.frames, TINY.height, TINY.width


def test_there_are_eight_devices():
    assert jax.device_count() == jax.local_device_count() == 8


def scene(shift, clip):
    intrinsics = np.array([[20.0, 0, WIDTH / 2], [0, 20, HEIGHT / 2], [0, 0, 1]])
    source = camera(np.eye(4), intrinsics, FRAMES)
    target = source._replace(c2w=source.c2w.at[:, 0, 3].set(shift))
    return pipeline.Scene(clip, warp_operator(jnp.full(clip.shape[:3], 2.0), source, target))


@pytest.fixture(scope="module")
def clips():
    rng = np.random.default_rng(0)
    noise = rng.uniform(-1, 1, (CLIPS, FRAMES, HEIGHT, WIDTH, 3)).astype(np.float32)
    scenes = jax.jit(jax.vmap(scene))(jnp.linspace(0.2, 0.8, CLIPS), noise)
    contexts = jnp.stack([tiny_context(n) for n in range(CLIPS)])
    return scenes, contexts, jax.random.split(jax.random.key(0), CLIPS)


def recapture(weights, *clip):
    return pipeline.recapture(TINY, Settings(steps=2), weights, *clip)


@pytest.fixture(scope="module")
def on_eight():
    weights, run = replicate(tiny_weights()), over_clips(recapture)
    return lambda clips: run(weights, clips)


@pytest.fixture(scope="module")
def frames(on_eight, clips):
    return on_eight(clips)


def take(clips, which):
    return jax.tree.map(lambda leaf: leaf[which], clips)


def test_eight_devices_give_what_one_gives(frames, clips):
    one = jax.devices()[:1]
    alone = over_clips(recapture, one)(replicate(tiny_weights(), one), take(clips, np.arange(3)))
    assert frames.shape == (CLIPS, FRAMES, HEIGHT, WIDTH, 3)
    np.testing.assert_array_equal(frames[:3], alone)


def test_a_clip_depends_on_no_neighbour(on_eight, frames, clips):
    assert np.abs(frames[0] - frames[1]).max() > 0.01
    np.testing.assert_array_equal(on_eight(take(clips, np.arange(5))), frames[:5])
    backwards = np.arange(CLIPS)[::-1]
    np.testing.assert_array_equal(on_eight(take(clips, backwards)), frames[::-1])


def test_each_device_holds_one_copy_of_the_weights():
    kernel = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    placed = replicate({"kernel": kernel})["kernel"]
    assert placed.committed
    assert [shard.device for shard in placed.addressable_shards] == jax.devices()
    for shard in placed.addressable_shards:
        np.testing.assert_array_equal(shard.data, kernel)


def test_replicated_weights_never_travel_again(monkeypatch):
    run = over_clips(lambda weight, clip: weight * clip)
    weight, clip = np.float32([3.0]), (np.arange(10, dtype=np.float32)[:, None],)
    placed = replicate(weight)
    run(placed, clip)

    sent, put = [], jax.device_put
    monkeypatch.setattr(
        jax, "device_put", lambda x, to: sent.extend(jax.tree.leaves(x)) or put(x, to)
    )
    # Clips and results cross between host and devices because somebody says so, and nothing
    # goes from device to device.
    with jax.transfer_guard("disallow"), jax.transfer_guard_device_to_device("disallow_explicit"):
        np.testing.assert_array_equal(run(placed, clip), 3 * clip[0])
        assert [leaf.shape for leaf in sent] == [(8, 1), (8, 1)]  # two rounds of clips alone
        for unplaced in (weight, put(weight)):
            with pytest.raises(Exception, match="[Dd]isallowed"):
                run(unplaced, clip)
