"""Frames as files have them, in bytes, and as models do, in [-1, 1]: turned on the device.

What crosses between host and device is a quarter of the size then.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8


def from_bytes(frames: UInt8[Array, "*dims"]) -> Float[Array, "*dims"]:
    """0..255 to float32 in [-1, 1]: bit for bit what `video.to_float` makes of them."""
    return (frames.astype(jnp.float32) - 127.5) * jnp.float32(1 / 127.5)


def to_bytes(clip: Float[Array, "*dims"]) -> UInt8[Array, "*dims"]:
    """[-1, 1] to the nearest of 0..255; values outside are clipped."""
    return jnp.round((jnp.clip(clip, -1, 1) + 1) * 127.5).astype(jnp.uint8)
