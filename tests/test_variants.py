from math import prod

import pytest

from convert import umt5, wan_dit, wan_vae
from ic_jax.checkpoint import shapes
from ic_jax.errors import InputError
from ic_jax.models.variants import VARIANTS, variant

# Parameters and tensors, as counted on the published networks.
TRANSFORMERS = {
    "Wan2.1-T2V-1.3B": (1_418_996_800, 825),
    "Wan2.1-T2V-14B": (14_288_491_584, 1095),
    "Wan2.1-I2V-14B": (16_394_878_784, 1303),
    "Wan2.1-Fun-1.3B-InP": (1_564_428_608, 983),
    "Wan2.1-Fun-14B-InP": (16_394_878_784, 1303),
    "Wan2.2-T2V-A14B": (14_288_491_584, 1095),
    # As the one before, but for 20 more channels into patches of 4.
    "Wan2.2-I2V-A14B": (14_288_491_584 + 20 * 4 * 5120, 1095),
    "Wan2.2-Fun-A14B-InP": (14_288_491_584 + 20 * 4 * 5120, 1095),
}
WAN = [name for name in VARIANTS if name != "nano"]


def sizes(model, config):
    """How many parameters and, in each layout, tensors a release of these sizes consists of."""
    target = shapes(model.target(config))
    yield sum(map(prod, target.values()))
    for layout in model.PROBES:
        rules = [rule for rule in model.table(layout).rules if rule.target in target]
        yield sum(target[rule.target][0] if rule.stacked else 1 for rule in rules)


@pytest.mark.parametrize("name", WAN)
def test_transformer_is_as_large_as_published(name):
    parameters, tensors = TRANSFORMERS[name]
    assert list(sizes(wan_dit, variant(name).dit)) == [parameters, tensors, tensors]


def test_text_encoder_is_as_large_as_published():
    (config,) = {variant(name).umt5 for name in WAN}
    assert list(sizes(umt5, config)) == [5_680_910_336, 242, 242]


def test_autoencoder_is_as_large_as_published():
    (config,) = {variant(name).vae for name in WAN}
    assert list(sizes(wan_vae, config)) == [126_892_531, 194, 194]


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
