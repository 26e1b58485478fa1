"""Noise, and the same seen from beside: a shot small enough for the tiny model."""

import numpy as np

from ic_jax.geometry.camera import camera
from ic_jax.shot import Shot


def noise(frames, height, width):
    return np.random.default_rng(0).integers(0, 256, (frames, height, width, 3), np.uint8)


def moved_shot(frames, height, width):
    """From 0.8 to the right, where the scene is a plane at 2."""
    lens = np.array([[20.0, 0, width / 2], [0, 20, height / 2], [0, 0, 1]])
    pose = np.eye(4)
    source = camera(pose, lens, frames)
    pose[0, 3] = 0.8
    depth = np.full((frames, height, width), 2.0, np.float32)
    seen = np.ones(depth.shape, bool)
    return Shot(noise(frames, height, width), depth, source, camera(pose, lens, frames), seen)
