import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from ic_jax.conditioning import condition, mask_channels, masked_video

T, H, W = 9, 32, 48


def encode(clip):
    """A stand-in with an autoencoder's shapes, for which a grey clip is not zero."""
    frames = jnp.concatenate([jnp.repeat(clip[:1], 3, axis=0), clip])
    t, h, w = frames.shape[0] // 4, clip.shape[1] // 8, clip.shape[2] // 8
    latent = frames.reshape(t, 4, h, 8, w, 8, 3).mean((1, 3, 5))
    return jnp.tile(latent, 6)[..., :16] + 0.5


def clip_of(seed, frames=T):
    return jnp.asarray(np.random.default_rng(seed).uniform(-1, 1, (frames, H, W, 3)), jnp.float32)


def known_of(seed, frames=T):
    """Blobs and single pixels: every share of the centre pixels occurs."""
    rng = np.random.default_rng(seed)
    coarse = np.kron(rng.random((frames, H // 4, W // 4)) < 0.5, np.ones((1, 4, 4), bool))
    return jnp.asarray(coarse ^ (rng.random((frames, H, W)) < 0.2))


def torch_mask(known, factor):
    """As the inpainting pipelines do it: from 1 = regenerate, frame 0 and the rest apart."""
    regenerate = torch.tensor(1.0 - np.asarray(known, np.float32))[None, None]
    regenerate = torch.cat([regenerate[:, :, :1].repeat(1, 1, 4, 1, 1), regenerate[:, :, 1:]], 2)
    t, h, w = regenerate.shape[2] // 4, regenerate.shape[3], regenerate.shape[4]
    packed = 1 - regenerate.reshape(1, t, 4, h, w).transpose(1, 2)

    def resized(part):
        size = (part.shape[2], h // factor, w // factor)
        return torch.nn.functional.interpolate(part, size, mode="trilinear", align_corners=False)

    parts = [packed[:, :, :1], packed[:, :, 1:]]
    out = torch.cat([resized(part) for part in parts if part.shape[2]], 2)
    return out[0].permute(1, 2, 3, 0).numpy()


@pytest.mark.parametrize("frames", [1, 5, 9])
@pytest.mark.parametrize("factor", [8, 16])
def test_mask_equals_torch(frames, factor):
    known = known_of(0, frames)
    expected = torch_mask(known, factor)
    assert {0.25, 0.5, 0.75} <= set(np.unique(expected))
    np.testing.assert_array_equal(mask_channels(known, factor), expected)


def test_channels_are_the_frames_of_a_latent_in_order():
    known = jnp.zeros((T, H, W), bool).at[3].set(True)
    mask = mask_channels(known, 8)
    assert mask[1, :, :, 2].all() and mask.sum() == mask[1, :, :, 2].size


def test_unknown_pixels_are_grey():
    clip, known = clip_of(0), known_of(1)
    masked = masked_video(clip, known)
    np.testing.assert_array_equal(masked[known], clip[known])
    assert not masked[~known].any()


def test_mask_comes_before_the_masked_latent():
    clip, known = clip_of(0), known_of(1)
    shown = condition(clip, known, encode)
    assert shown.shape == (3, H // 8, W // 8, 20)
    np.testing.assert_array_equal(shown[..., :4], mask_channels(known, 8))
    np.testing.assert_array_equal(shown[..., 4:], encode(masked_video(clip, known)))


def test_a_known_first_frame_is_image_to_video():
    """Written down at latent resolution: ones for frame 0, and a video of it and grey."""
    clip = clip_of(0)
    shown = condition(clip, jnp.arange(T)[:, None, None] + jnp.zeros((T, H, W)) < 1, encode)
    mask = torch.zeros(1, T, H // 8, W // 8)
    mask[:, 0] = 1
    mask = torch.cat([mask[:, :1].repeat_interleave(4, 1), mask[:, 1:]], 1)
    mask = mask.view(1, 3, 4, H // 8, W // 8).transpose(1, 2)[0].permute(1, 2, 3, 0)
    np.testing.assert_array_equal(shown[..., :4], mask.numpy())
    video = jnp.concatenate([clip[:1], jnp.zeros((T - 1, H, W, 3))])
    np.testing.assert_array_equal(shown[..., 4:], encode(video))


def test_nothing_known_is_zeros_and_one_pixel_is_not():
    clip, nothing = clip_of(0), jnp.zeros((T, H, W), bool)
    assert not condition(clip, nothing, encode).any()
    assert condition(clip, nothing.at[0, 0, 0].set(True), encode)[..., 4:].all()


def test_compiles_and_maps_over_clips():
    clips = jnp.stack([clip_of(0), clip_of(1)])
    known = jnp.stack([known_of(2), jnp.zeros((T, H, W), bool)])
    both = jax.jit(jax.vmap(lambda clip, known: condition(clip, known, encode)))(clips, known)
    for n in range(2):
        np.testing.assert_allclose(both[n], condition(clips[n], known[n], encode), atol=1e-6)
    assert both[0].any() and not both[1].any()
