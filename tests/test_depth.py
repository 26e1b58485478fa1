"""Depth of a clip: how its scale is told, and how edges and sizes are treated."""

import jax.numpy as jnp
import numpy as np

from ic_jax.geometry.depth import depth_edges, resize_depth, scene_radius


def test_radius_is_the_first_frames_depth_in_the_middle_whatever_the_rim():
    depth = np.full((2, 9, 9), 50.0, np.float32)
    depth[0, 3:6, 3:6] = 4.0
    depth[0, 4, 4] = 1000.0
    assert scene_radius(jnp.asarray(depth)) == 4.0


def test_resizing_invents_no_depth():
    depth = jnp.asarray(np.random.default_rng(0).choice([1.0, 5.0], (2, 12, 16)), jnp.float32)
    for height, width in ((6, 8), (5, 7), (30, 33)):
        resized = resize_depth(depth, height, width)
        assert resized.shape == (2, height, width)
        assert set(np.unique(resized)) <= {1.0, 5.0}


def test_edges_drop_the_far_rim_and_flying_pixels_only():
    row = np.array([2, 2, 2, 3, 4, 4, 4, 4.2], np.float32)
    depth = jnp.asarray(np.tile(row, (1, 3, 1)))
    kept = np.asarray(depth_edges(depth))[0, 1]
    # 3 flies between the surfaces, the first 4 lies beside it; 4 to 4.2 is one surface
    np.testing.assert_array_equal(kept, [1, 1, 1, 0, 0, 1, 1, 1])
