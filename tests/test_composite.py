"""Seen pixels over generated ones: exact where seen, never in a hole, soft between."""

import jax.numpy as jnp
import numpy as np
import pytest

from ic_jax.composite import composite, seam


def test_holes_are_generated_and_what_is_far_from_them_is_warped():
    visible = jnp.ones((2, 16, 20)).at[:, 6:10, 8:12].set(0.0)
    generated, warped = jnp.full((2, 16, 20, 3), -1.0), jnp.full((2, 16, 20, 3), 1.0)
    out = np.asarray(composite(generated, warped, visible, feather=2))
    assert (out[:, 6:10, 8:12] == -1).all()
    far = np.ones((16, 20), bool)
    far[6 - 4 : 10 + 4, 8 - 4 : 12 + 4] = False
    assert (out[:, far] == 1).all()
    # The way from one to the other is monotone.
    row = out[0, 8, 11:17, 0]
    assert (np.diff(row) >= 0).all() and 0 < np.isin(row, (-1, 1), invert=True).sum()


def test_left_alone_the_seam_reaches_two_pixels_into_what_is_seen():
    visible = jnp.ones((1, 9, 16)).at[:, :, :6].set(0)
    row = composite(jnp.zeros((1, 9, 16, 3)), jnp.ones((1, 9, 16, 3)), visible)[0, 4, :, 0]
    np.testing.assert_allclose(row[5:10], [0, 1 / 3, 2 / 3, 1, 1], atol=1e-6)


def test_everything_seen_is_the_warp_and_nothing_seen_is_generated():
    ones = jnp.ones((1, 5, 7))
    assert (np.asarray(seam(ones, 1)) == 1).all()
    assert (np.asarray(seam(0 * ones, 1)) == 0).all()


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (9, 2)])
@pytest.mark.parametrize("feather", [0, 1, 3])
def test_frames_narrower_than_the_seam_keep_their_size(size, feather):
    ones = jnp.ones((2, *size))
    np.testing.assert_array_equal(seam(ones, feather), ones)
