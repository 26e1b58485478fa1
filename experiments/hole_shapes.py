"""Holes that move across a clip: a box, a blob, a strip.

Each shape is a field over the frame, and its hole is where the field is lowest: so every frame
loses the same share, whatever the shape and wherever it has moved.
"""

import numpy as np
from jaxtyping import Float

from experiments.random_fields import smooth_noise

SMALLEST, LARGEST = 0.15, 0.30


def moving_hole(number: int, frames: int, height: int, width: int) -> Float[np.ndarray, "t h w"]:
    """What is kept (1) around the `number`-th hole (0), the same at every call.

    The shapes come in turn; the share runs through 15 to 30 % in an order without pattern.
    """
    rng = np.random.default_rng(number)
    shape = tuple(SHAPES.values())[number % len(SHAPES)]
    field = shape(rng, frames, height, width)
    golden = (number * 0.618034) % 1  # low-discrepancy: every run of numbers covers the range
    share = SMALLEST + golden * (LARGEST - SMALLEST)
    threshold = np.quantile(field, share, axis=(1, 2), keepdims=True)
    return (field > threshold).astype(np.float32)


def box(
    rng: np.random.Generator, frames: int, height: int, width: int
) -> Float[np.ndarray, "t h w"]:
    """An upright rectangle that glides from one place to another."""
    y, x = _around_path(rng, frames, height, width)
    return np.maximum(np.abs(y), np.abs(x) * rng.uniform(0.6, 1.6))


def blob(
    rng: np.random.Generator, frames: int, height: int, width: int
) -> Float[np.ndarray, "t h w"]:
    """Smooth islands that drift by up to a quarter of the frame."""
    field = smooth_noise(rng, height, width, grain=0.15)
    drift = np.linspace(0, rng.uniform(-0.25, 0.25, 2) * (height, width), frames)
    return np.stack([np.roll(field, np.rint(step).astype(int), (0, 1)) for step in drift])


def strip(
    rng: np.random.Generator, frames: int, height: int, width: int
) -> Float[np.ndarray, "t h w"]:
    """A straight band through the frame, at any angle, that sweeps sideways."""
    y, x = _around_path(rng, frames, height, width)
    angle = rng.uniform(0, np.pi)
    return np.abs(np.cos(angle) * y + np.sin(angle) * x)


SHAPES = {"box": box, "blob": blob, "strip": strip}


def _around_path(rng, frames, height, width):
    """Each pixel's place seen from a point that moves within the frame's middle half, in pixels."""
    start, end = rng.uniform(0.25, 0.75, (2, 2)) * (height, width)
    centre = np.linspace(start, end, frames)[..., None, None]
    row, column = np.mgrid[:height, :width] + 0.5
    return row - centre[:, 0], column - centre[:, 1]
