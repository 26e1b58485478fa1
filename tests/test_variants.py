import jax
import jax.numpy as jnp
import pytest

from ic_jax.errors import InputError
from ic_jax.models.umt5 import UMT5Encoder
from ic_jax.models.variants import VARIANTS, variant
from ic_jax.models.wan_dit import IMAGE_TOKENS, WanDiT
from ic_jax.models.wan_vae import WanVAE


def count(module, *inputs):
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def dit_inputs(config):
    image = None
    if config.image_dim is not None:
        image = jnp.zeros((1, IMAGE_TOKENS, config.image_dim))
    latent = jnp.zeros((1, 1, 2, 2, config.in_channels))
    return latent, jnp.zeros(1), jnp.zeros((1, 1, config.text_dim)), image


@pytest.mark.parametrize(
    "name, published",
    [
        ("Wan2.1-T2V-1.3B", 1_418_996_800),
        ("Wan2.1-T2V-14B", 14_288_491_584),
        ("Wan2.1-I2V-14B", 16_394_878_784),
        ("Wan2.1-Fun-1.3B-InP", 1_564_428_608),
        ("Wan2.1-Fun-14B-InP", 16_394_878_784),
        ("Wan2.2-T2V-A14B", 14_288_491_584),
    ],
)
def test_transformer_has_the_published_number_of_parameters(name, published):
    config = variant(name).dit
    assert count(WanDiT(config), *dit_inputs(config)) == published


def test_text_encoder_has_the_published_number_of_parameters():
    tokens = jnp.zeros((1, 2), int)
    encoder = UMT5Encoder(variant("Wan2.1-T2V-14B").umt5)
    assert count(encoder, tokens, tokens) == 5_680_910_336


def test_autoencoder_has_the_published_number_of_parameters():
    vae = WanVAE(variant("Wan2.1-T2V-14B").vae)
    assert count(vae, jnp.zeros((1, 5, 16, 16, 3))) == 126_892_531


@pytest.mark.parametrize("name", VARIANTS)
def test_the_networks_of_a_variant_fit_each_other(name):
    v = variant(name)
    frames, *_, channels = v.vae.latent_shape(v.frames, v.height, v.width)
    assert v.dit.out_channels == channels
    assert v.dit.text_dim == v.umt5.dim
    assert (frames - 1) * v.vae.temporal_factor == v.frames - 1
    assert (v.vae.spatial_factor, v.vae.temporal_factor) == (8, 4)
    assert v.height % 16 == v.width % 16 == 0


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="did you mean 'Wan2.1-T2V-14B'"):
        variant("wan2.1-t2v-14b")
