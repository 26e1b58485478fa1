"""Random scenes with captions and cameras: the small model's world.

Everything about a scene follows from one integer seed. The world's origin is the scene centre: the
camera looks at it and the objects stand around it.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Int

from experiments.scene_render import MOTIONS, SHAPES, Objects, Scene, object_poses, render
from experiments.scene_textures import WALLS, Texture

__all__ = ["COLOURS", "MOTIONS", "SHAPES", "Scene", "caption", "demo_camera", "demo_scene",
           "look_at", "object_poses", "render", "sample_camera", "sample_scene", "scene_of"]

COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white")
PAINT = jnp.array([
    [0.75, 0.05, 0.04], [0.06, 0.45, 0.09], [0.05, 0.12, 0.70], [0.85, 0.62, 0.04],
    [0.32, 0.06, 0.50], [0.90, 0.27, 0.02], [0.05, 0.60, 0.68], [0.85, 0.85, 0.83]])
_VERBS = ("rests", "moves left", "moves right", "comes closer", "moves away", "bounces", "spins",
          "circles")
CAPTION_BYTES = 63  # the text encoder's length less its end-of-text token


@partial(jax.jit, static_argnames=("frames", "height", "width"))
def scene_of(
    seed: Int[ArrayLike, ""], frames: int, height: int, width: int,
) -> tuple[Scene, Float[Array, "t 4 4"], Float[Array, "3 3"]]:
    """The scene that a seed stands for, with its source camera's c2w and intrinsics."""
    scene_key, camera_key = jax.random.split(jax.random.key(seed))
    scene = sample_scene(scene_key)
    return scene, *sample_camera(camera_key, scene, frames, height, width)


def sample_scene(key: Array) -> Scene:
    """Draw a room, its textures, one to three objects that move apart, and a light."""
    k_room, k_texture, k_objects, k_light, k_warmth = jax.random.split(key, 5)
    low = jnp.array([2.3, 1.6, 0.95, 0.55])
    side, ceiling, back, floor = jax.random.uniform(
        k_room, (4,), minval=low, maxval=jnp.array([3.4, 2.3, 2.0, 0.85]))
    room = jnp.stack([jnp.stack([-side, -ceiling, -5.4]), jnp.stack([side, floor, back])])
    light = jax.random.uniform(k_light, (3,), minval=jnp.array([-1.5, -1.4, -2.2]),
                               maxval=jnp.array([1.5, -0.9, -0.5]))
    warmth, strength, ambient, exposure = jax.random.uniform(
        k_warmth, (4,), minval=jnp.array([-0.12, 1.2, 0.22, 1.4]),
        maxval=jnp.array([0.16, 1.8, 0.42, 2.1]))
    tint = jnp.stack([1 + warmth, jnp.ones(()), 1 - warmth])
    return Scene(
        room=room, textures=_sample_textures(k_texture), objects=_sample_objects(k_objects, floor),
        light=light, light_colour=strength * tint, ambient=ambient * (2 - tint), exposure=exposure)


def sample_camera(
    key: Array, scene: Scene, frames: int, height: int, width: int,
) -> tuple[Float[Array, "t 4 4"], Float[Array, "3 3"]]:
    """Draw a source camera's path and intrinsics (pixels of a height x width image).

    A slight hand-held drift, and, each with its own chance, an arc about the scene centre (up to 25
    degrees), a dolly (up to 35 % of the centre's depth), a pan, a tilt and a translation.
    """
    k_fov, k_place, k_use, k_amount, k_drift = jax.random.split(key, 5)
    fov = jnp.deg2rad(jax.random.uniform(k_fov, minval=45.0, maxval=75.0))
    focal = 0.5 * width / jnp.tan(0.5 * fov)
    intrinsics = jnp.array([[0, 0, width / 2], [0, 0, height / 2], [0, 0, 1.0]])
    intrinsics = intrinsics.at[0, 0].set(focal).at[1, 1].set(focal)

    azimuth, elevation, reach, aim_x, aim_y = jax.random.uniform(
        k_place, (5,), minval=jnp.array([-10.0, 4.0, 2.4, -0.1, -0.6]),
        maxval=jnp.array([10.0, 18.0, 2.9, 0.1, -0.35]))
    # A long lens stands further away, so that objects keep a good size.
    distance = reach * jnp.clip(focal / (0.85 * width), 0.9, 1.4) ** 0.6

    used = jax.random.bernoulli(k_use, jnp.array([0.4, 0.3, 0.25, 0.2, 0.25]))
    arc, dolly, pan, tilt, *shift = used[jnp.array([0, 1, 2, 3, 4, 4])] * jax.random.uniform(
        k_amount, (6,), minval=-1.0)
    drift = _smooth_drift(k_drift, frames)
    way = jnp.linspace(-0.5, 0.5, frames)

    azimuths = jnp.deg2rad(azimuth + 25 * arc * way)
    elevations = jnp.deg2rad(elevation) * jnp.ones(frames)
    distances = distance * (1 + 0.35 * dolly * (way + 0.5 * (dolly < 0) - 0.5 * (dolly > 0)))
    outward = jnp.stack([jnp.sin(azimuths) * jnp.cos(elevations), -jnp.sin(elevations),
                         -jnp.cos(azimuths) * jnp.cos(elevations)], -1)
    offset = jnp.stack([0.5 * shift[0] * way, 0.25 * shift[1] * way, 0 * way], -1)
    position = distances[:, None] * outward + offset + 0.04 * drift[:, :3]
    position = jnp.clip(position, scene.room[0] + 0.15, scene.room[1] - 0.15)
    aim = jnp.stack([aim_x, scene.room[1, 1] + aim_y, jnp.zeros(())]) + offset
    yaw = jnp.deg2rad(12 * pan * way + 0.8 * drift[:, 3])
    pitch = jnp.deg2rad(8 * tilt * way + 0.8 * drift[:, 4])
    return jax.vmap(look_at)(position, aim, yaw, pitch), intrinsics


def look_at(
    position: Float[Array, "3"], aim: Float[Array, "3"], yaw: Float[ArrayLike, ""] = 0.0,
    pitch: Float[ArrayLike, ""] = 0.0,
) -> Float[Array, "4 4"]:
    """Level camera-to-world pose that looks at `aim`, then turned right and down (radians)."""
    forward = aim - position
    forward = forward / jnp.linalg.norm(forward)
    heading = jnp.arctan2(forward[0], forward[2]) + yaw
    dip = jnp.arcsin(forward[1]) + pitch
    right = jnp.stack([jnp.cos(heading), jnp.zeros(()), -jnp.sin(heading)])
    forward = jnp.stack([jnp.sin(heading) * jnp.cos(dip), jnp.sin(dip),
                         jnp.cos(heading) * jnp.cos(dip)])
    down = jnp.cross(forward, right)
    rotation = jnp.stack([right, down, forward, position], -1)
    return jnp.concatenate([rotation, jnp.array([[0, 0, 0, 1.0]])])


def caption(scene: Scene) -> str:
    """Say which objects there are, what they do and what the walls are, in at most 63 bytes.

    The fullest wording that fits is used; the tersest always fits.
    """
    objects = jax.tree.map(np.asarray, scene.objects)
    slots = np.flatnonzero(objects.present)
    names = [f"{COLOURS[objects.colour[i]]} {SHAPES[objects.shape[i]]}" for i in slots]
    does = [_verb(SHAPES[objects.shape[i]], int(objects.motion[i])) for i in slots]
    wall = WALLS[int(scene.textures.kind[0])]
    return next(text for text in _wordings(names, does, wall) if len(text) <= CAPTION_BYTES)


def demo_scene() -> Scene:
    """The product's own sample: a red ball bounces beside a yellow cylinder in a brick room."""
    key = jax.random.key(0)
    room = jnp.array([[-2.6, -1.9, -5.4], [2.6, 0.7, 1.3]])
    textures = Texture(
        kind=jnp.array([WALLS.index(name) for name in ("brick", "plank", "plaster")]),
        key=jax.random.split(key, 3),
        colours=jnp.array([
            [[0.42, 0.16, 0.10], [0.3, 0.1, 0.08], [0.50, 0.44, 0.38]],
            [[0.40, 0.24, 0.12], [0.3, 0.2, 0.1], [0.13, 0.07, 0.03]],
            [[0.70, 0.66, 0.58], [0.6, 0.6, 0.5], [0.5, 0.5, 0.5]]]),
        repeats=jnp.array([12, 8, 4]), slope=jnp.array([1.2, 1.2, 1.4]),
        contrast=jnp.array([0.12, 0.15, 0.05]))
    half = jnp.array([[0.42, 0.42, 0.42], [0.30, 0.48, 0.30], [0.3, 0.3, 0.3]])
    position = jnp.array([[-0.55, 0.0, -0.25], [0.62, 0.0, 0.35], [0.0, 0.0, 0.0]])
    objects = Objects(
        present=jnp.array([True, True, False]), shape=jnp.array([0, 2, 1]),
        colour=jnp.array([0, 3, 2]), albedo=PAINT[jnp.array([0, 3, 2])],
        pattern=3.5 * jax.random.normal(jax.random.key(1), (3, 3, 3)) / 1.7,
        half_size=half, position=position.at[:, 1].set(room[1, 1] - half[:, 1]),
        yaw=jnp.zeros(3), motion=jnp.array([5, 0, 0]), amount=jnp.array([0.5, 0.0, 0.0]),
        phase=jnp.array([0.15, 0.0, 0.0]))
    return Scene(
        room=room, textures=textures, objects=objects, light=jnp.array([-1.1, -1.3, -1.6]),
        light_colour=1.5 * jnp.array([1.05, 1.0, 0.92]),
        ambient=0.45 * jnp.array([0.95, 1.0, 1.06]), exposure=jnp.array(1.4))


def demo_camera(
    frames: int, height: int, width: int,
) -> tuple[Float[Array, "t 4 4"], Float[Array, "3 3"]]:
    """The sample clip's own camera: a slow half-metre slide to the right, 58 degrees wide."""
    focal = 0.5 * width / np.tan(np.deg2rad(29.0))
    intrinsics = jnp.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1.0]])
    way = jnp.linspace(-0.5, 0.5, frames)
    still = jnp.zeros(frames)
    position = jnp.stack([0.4 * way, still - 0.45, still - 2.75], -1)
    aim = jnp.stack([0.25 * way, still - 0.05, still], -1)
    return jax.vmap(look_at)(position, aim), intrinsics


def _sample_textures(key):
    k_kind, k_noise, k_colour, k_mute, k_repeats, k_slope, k_contrast = jax.random.split(key, 7)
    # Ceilings are plain; floors and walls differ.
    wall, step = jax.random.randint(k_kind, (2,), 0, jnp.array([7, 6]))
    kinds = jnp.stack([wall, (wall + 1 + step) % 7, WALLS.index("plaster")])
    # One hue for a room's surfaces, lighter and darker: brightness carries the pattern.
    vivid = 0.65 + 0.7 * jax.random.uniform(k_colour, (3, 3, 3))
    vivid = vivid.at[:, 1:].set(0.5 * (vivid[:, 1:] + vivid[:, :1]))
    level = jnp.array([0.34, 0.075, 0.045]) * jnp.exp(jax.random.uniform(
        k_mute, (3, 3), minval=-0.5, maxval=0.5))
    colours = level[:, :, None] * vivid
    colours = colours.at[2].set(0.4 + 0.4 * colours[2])
    return Texture(
        kind=kinds, key=jax.random.split(k_noise, 3), colours=colours,
        repeats=2 * jax.random.randint(k_repeats, (3,), 3, 8),
        slope=jax.random.uniform(k_slope, (3,), minval=0.7, maxval=1.2),
        contrast=jax.random.uniform(k_contrast, (3,), minval=0.2, maxval=0.5))


def _sample_objects(key, floor):
    (k_count, k_shape, k_colour, k_size, k_tall, k_side, k_shift, k_depth, k_yaw, k_motion,
     k_amount, k_phase, k_pattern) = jax.random.split(key, 13)
    count = 1 + jax.random.categorical(k_count, jnp.log(jnp.array([0.35, 0.4, 0.25])))
    shape = jax.random.permutation(k_shape, 4)[:3]
    colour = jax.random.permutation(k_colour, 8)[:3]
    alone = count == 1
    radius = jax.random.uniform(k_size, (3,))
    radius = jnp.where(alone, 0.34 + 0.14 * radius, 0.26 + 0.12 * radius)
    tall = jnp.where(shape >= 2, jax.random.uniform(k_tall, (3,), minval=1.0, maxval=1.5), 1.0)
    half = radius[:, None] * jnp.stack([jnp.ones(3), tall, jnp.ones(3)], -1)

    # The first object has the front lane to itself; the others stand behind it, side by side.
    flip = jnp.where(jax.random.bernoulli(k_side), 1.0, -1.0)
    first_x = jnp.where(alone, 0.0, jnp.where(count == 2, -0.45, 0.0))
    x = flip * jnp.stack([first_x, 0.65, -0.75])
    x += jax.random.uniform(k_shift, (3,), minval=-0.12, maxval=0.12)
    z = jax.random.uniform(k_depth, (3,), minval=jnp.array([-0.45, 0.3, 0.35]),
                           maxval=jnp.array([-0.3, 0.45, 0.5]))
    position = jnp.stack([x, floor - half[:, 1], z], -1)

    others = jnp.array([0, 0, 5, 6])
    motion = jnp.stack([
        jax.random.choice(k_motion, 8),
        others[jax.random.choice(jax.random.fold_in(k_motion, 1), 4)],
        jnp.zeros((), int)])
    share = jax.random.uniform(k_amount, (3,))
    ranges = jnp.array([[0, 0], [0.5, 1.2], [0.5, 1.2], [0.4, 0.8], [0.4, 0.8], [0.25, 0.6],
                        [0.4, 1.0], [0.15, 0.28]])[motion]
    return Objects(
        present=jnp.arange(3) < count, shape=shape, colour=colour, albedo=PAINT[colour],
        pattern=2.2 * jax.random.normal(k_pattern, (3, 3, 3)), half_size=half, position=position,
        yaw=jax.random.uniform(k_yaw, (3,), maxval=2 * jnp.pi), motion=motion,
        amount=ranges[:, 0] + share * (ranges[:, 1] - ranges[:, 0]),
        phase=jax.random.uniform(k_phase, (3,)))


def _smooth_drift(key, frames):
    """Five slow curves of unit size: a hand's sway in position and angle."""
    phase, rate = jax.random.uniform(key, (2, 5, 2))
    t = jnp.linspace(0, 1, frames)[:, None, None]
    return jnp.sin(2 * jnp.pi * ((0.4 + rate) * t + phase)).mean(-1)


def _verb(shape, motion):
    verb = _VERBS[motion]
    return verb.replace("moves", "rolls") if shape == "ball" else verb


def _wordings(names, does, wall):
    """Captions from the fullest to the tersest."""
    acts = [f"{name} {verb}" for name, verb in zip(names, does, strict=True)]
    rests = [" and ".join(_a(name) for name in names[1:]), ", ".join(names[1:])]
    if len(names) == 1:
        yield f"{_a(acts[0])} in a {wall} room"
        return
    if does[1] != "rests":
        third = f" by {_a(names[2])}" if len(names) > 2 else ""
        yield f"{_a(acts[0])} and {_a(acts[1])}{third} in a {wall} room"
        yield f"{', '.join(acts[:2] + names[2:])}, {wall} room"
    yield f"{_a(acts[0])} beside {rests[0]} in a {wall} room"
    yield f"{acts[0]}, {rests[1]}, {wall} room"
    yield f"{acts[0]}, {rests[1]}, {wall}"


def _a(name):
    return f"an {name}" if name.startswith("orange") else f"a {name}"
