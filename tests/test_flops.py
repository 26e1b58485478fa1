"""FLOPs counted in programs: loops as often as they run, backward passes, and the paper's count."""

import jax
import jax.numpy as jnp
import pytest

from experiments.costs import step_flops
from experiments.flops import matrix_flops
from experiments.overhead import latent_grid
from experiments.overhead import step_flops as on_paper
from ic_jax.models.variants import VARIANTS

MATRIX = jax.ShapeDtypeStruct((8, 8), jnp.float32)
PRODUCT = 2 * 8**3


def looped(times):
    return lambda a: jax.lax.scan(lambda x, _: (x @ a, None), a, length=times)[0]


def until_small(a):
    return jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x @ a, a)


def branch(a):
    return jax.lax.cond(a[0, 0] > 0, lambda: a @ a @ a, lambda: a @ a)


def by_platform(a):
    return jax.lax.platform_dependent(a, tpu=lambda a: a @ a @ a, default=lambda a: a @ a)


@pytest.mark.parametrize(
    "function, products",
    [
        (lambda a: a @ a + a, 1),
        (looped(5), 5),
        (jax.jit(lambda a: jax.vmap(lambda row: row @ a)(a)), 1),
        (jax.checkpoint(looped(3)), 3),
        (until_small, 7),
        (branch, 2),
        (by_platform, 1),
        (jax.grad(lambda a: (a @ a).sum()), 3),  # of each factor, and forward
    ],
)
def test_products_count_as_often_as_they_are_made(function, products):
    assert matrix_flops(function, MATRIX, trips=7) == products * PRODUCT


def test_a_convolution_counts_every_tap_of_its_own_group():
    image, kernel = (
        jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((1, 10, 9, 6), (3, 3, 2, 12))
    )
    convolve = lambda x, k: jax.lax.conv_general_dilated(
        x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=3
    )
    assert matrix_flops(convolve, image, kernel) == 2 * 10 * 9 * 12 * 3 * 3 * 2


@pytest.mark.parametrize("model", ["nano", "Wan2.1-T2V-1.3B"])
def test_a_plain_step_costs_what_paper_says_and_our_correction_no_product(model):
    sizes = VARIANTS[model]
    plain = step_flops("none", sizes)
    assert plain == pytest.approx(on_paper(sizes.dit, latent_grid(sizes)), rel=0.01)
    assert step_flops("bayes_draw", sizes) == plain


def test_gradients_through_the_networks_are_counted():
    nano = VARIANTS["nano"]
    decoding, differentiating = step_flops("pixel_dds", nano), step_flops("dps", nano)
    assert step_flops("none", nano) < decoding < differentiating
