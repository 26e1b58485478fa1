"""Tileable procedural textures, baked once per scene into mip pyramids.

Baking makes one filtered lookup serve every kind of texture, and filtering by footprint is what
keeps distant bricks from turning into moiré.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

WALLS = ("stone", "checker", "striped", "brick", "plank", "tile", "plaster")
SIZE = 256  # texels along each side of one tile of a texture
TILE = 3.2  # scene units that one tile covers
LEVELS = 7  # 256 texels down to 4


class Texture(NamedTuple):
    """What a texture is drawn from; colours are linear RGB in [0, 1]."""

    kind: Int[Array, ""]  # index into WALLS
    key: Array
    colours: Float[Array, "3 3"]
    repeats: Int[Array, ""]  # rows of bricks, planks, squares... along one tile; even
    slope: Float[Array, ""]  # amplitude of the noise falls as frequency ** -slope
    contrast: Float[Array, ""]  # standard deviation of the noise's effect, about 0.05 to 0.3


def spectral_noise(white: Float[Array, "y x"], slope, stretch=1.0) -> Float[Array, "y x"]:
    """Colour white noise: tileable, zero mean, unit variance, amplitude frequency ** -slope.

    `stretch` above 1 draws the noise out along y, as the grain of wood is.
    """
    vertical = jnp.fft.fftfreq(SIZE, 1 / SIZE)[:, None] * stretch
    horizontal = jnp.fft.rfftfreq(SIZE, 1 / SIZE)[None, :]
    frequency = jnp.hypot(vertical, horizontal)
    # Below two cycles per tile the repetition would show as blotches in a row.
    gain = jnp.where(frequency > 1.5, jnp.maximum(frequency, 1.0) ** -slope, 0.0)
    noise = jnp.fft.irfft2(jnp.fft.rfft2(white) * gain, s=(SIZE, SIZE))
    return noise / (jnp.std(noise) + 1e-6)


def bake(texture: Texture) -> Float[Array, "y x 3"]:
    """Draw one texture as linear RGB in [0, 1]."""
    k_noise, k_tint = jax.random.split(texture.key)
    white = jax.random.normal(k_noise, (SIZE, SIZE))
    stretch = jnp.where(texture.kind == WALLS.index("plank"), 8.0, 1.0)
    noise = spectral_noise(white, texture.slope, stretch)
    tints = jax.random.normal(k_tint, (32, 32))
    first, second, third = texture.colours
    n = texture.repeats

    centres = (jnp.arange(SIZE) + 0.5) / SIZE
    v, u = jnp.meshgrid(centres, centres, indexing="ij")
    stagger = 0.5 * (jnp.floor(v * n) % 2)

    stone = _between(first, second, jax.nn.sigmoid(1.5 * noise))
    checker = _between(first, second, (jnp.floor(u * n) + jnp.floor(v * n)) % 2)
    striped = _between(first, second, jnp.floor(u * n) % 2)
    brick = _cells(u * (n // 2) + stagger, v * n, n // 2, 0.05, 0.10, tints, first, third)
    plank = _cells(u * n, v * (n // 4 + 1), n, 0.05, 0.02, tints, first, third)
    tile = _cells(u * n, v * n, n, 0.08, 0.08, tints, first, third)
    plaster = jnp.broadcast_to(first, (SIZE, SIZE, 3))

    base = jnp.stack([stone, checker, striped, brick, plank, tile, plaster])[texture.kind]
    return jnp.clip(base * jnp.exp(texture.contrast * noise[..., None]), 0.0, 1.0)


def mip_pyramid(image: Float[Array, "y x 3"]) -> Float[Array, "texels 3"]:
    """All levels, finest first, flattened so that one gather reads any of them."""
    levels = [image]
    for _ in range(LEVELS - 1):
        side = levels[-1].shape[0] // 2
        levels.append(levels[-1].reshape(side, 2, side, 2, 3).mean((1, 3)))
    return jnp.concatenate([level.reshape(-1, 3) for level in levels])


def lookup(
    texels: Float[Array, "n 3"], first: Int[Array, "*p"], u: Float[Array, "*p"],
    v: Float[Array, "*p"], footprint: Float[Array, "*p"],
) -> Float[Array, "*p 3"]:
    """Trilinear lookup with wrap-around.

    `first` is the index of the texture's pyramid in `texels`; u, v and the footprint (the width
    that one sample covers) are in tiles.
    """
    level = jnp.clip(jnp.log2(footprint * SIZE + 1e-6), 0.0, LEVELS - 1.001)
    fine = jnp.floor(level).astype(jnp.int32)
    share = (level - fine)[..., None]
    near = _bilinear(texels, first, u, v, fine)
    far = _bilinear(texels, first, u, v, fine + 1)
    return near + share * (far - near)


PYRAMID = sum((SIZE >> level) ** 2 for level in range(LEVELS))


def _bilinear(texels, first, u, v, level):
    side = SIZE >> level
    # Levels before this one hold SIZE**2 * (1 + 1/4 + ...) texels.
    start = first + (4 * (SIZE * SIZE - side * side)) // 3
    x, y = u * side - 0.5, v * side - 0.5
    left, top = jnp.floor(x), jnp.floor(y)
    right_share, low_share = (x - left)[..., None], (y - top)[..., None]
    mask = side - 1
    x0, y0 = left.astype(jnp.int32), top.astype(jnp.int32)
    x1, y1 = (x0 + 1) & mask, (y0 + 1) & mask
    x0, y0 = x0 & mask, y0 & mask

    def read(y, x):
        return texels.at[start + y * side + x].get(mode="promise_in_bounds")

    upper = read(y0, x0) * (1 - right_share) + read(y0, x1) * right_share
    lower = read(y1, x0) * (1 - right_share) + read(y1, x1) * right_share
    return upper * (1 - low_share) + lower * low_share


def _between(first, second, share):
    return first + share[..., None] * (second - first)


def _cells(x, y, columns, gap_x, gap_y, tints, body, joint):
    """Bodies with a slightly different tint each, parted by joints of a given relative width."""
    column, row = jnp.floor(x), jnp.floor(y)
    tint = tints[row.astype(jnp.int32) % 32, (column % columns).astype(jnp.int32) % 32]
    inside = (x - column > gap_x) & (y - row > gap_y)
    bodies = body * jnp.exp(0.16 * tint)[..., None]
    return jnp.where(inside[..., None], bodies, joint)
