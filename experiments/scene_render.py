"""A ray caster for small rooms: every scene has a true image and depth from any camera.

Axes are OpenCV's (x right, y down, z forward), for the world as for the camera, so that the floor
is at the largest y. A ray's direction has a camera z of one, hence its parameter is z-depth.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from experiments.scene_textures import PYRAMID, TILE, Texture, bake, lookup, mip_pyramid

SHAPES = ("ball", "cube", "cylinder", "cone")
MOTIONS = ("still", "left", "right", "closer", "away", "bounce", "spin", "circle")

# In its own coordinates every shape is the box [-1, 1]^3 cut by x^2 + z^2 + a y^2 + b y + c <= 0.
# The cone's apex is at y = -1, which is up; the cube's cut lies outside its box.
_CUTS = jnp.array([[1.0, 0.0, -1.0], [0.0, 0.0, -3.0], [0.0, 0.0, -1.0], [-0.25, -0.5, -0.25]])
_FAR = 1e6


class Objects(NamedTuple):
    """Three slots; lengths in scene units, times in clips (0 to 1)."""

    present: Bool[Array, "3"]
    shape: Int[Array, "3"]  # index into SHAPES
    colour: Int[Array, "3"]  # index into scenes.COLOURS
    albedo: Float[Array, "3 3"]  # linear RGB
    pattern: Float[Array, "3 3 3"]  # wave vectors of the mild solid texture
    half_size: Float[Array, "3 3"]
    position: Float[Array, "3 3"]  # centre at rest, in the middle of the clip
    yaw: Float[Array, "3"]
    motion: Int[Array, "3"]  # index into MOTIONS
    amount: Float[Array, "3"]  # distance, height, radius or turns
    phase: Float[Array, "3"]


class Scene(NamedTuple):
    """A textured room, three object slots and a point light."""

    room: Float[Array, "2 3"]  # smallest and largest corner
    textures: Texture  # walls, floor, ceiling on a leading axis
    objects: Objects
    light: Float[Array, "3"]
    light_colour: Float[Array, "3"]
    ambient: Float[Array, "3"]
    exposure: Float[Array, ""]


def object_poses(objects: Objects, time: Float[Array, ""]):
    """Centres [3, 3] and rotations [3, 3, 3] (object to world) at a time in [0, 1]."""
    still = jnp.zeros_like(objects.amount)
    way = objects.amount * (time - 0.5)
    turn = 2 * jnp.pi * (objects.amount * time + objects.phase)
    hop = -objects.amount * jnp.abs(jnp.sin(jnp.pi * (2 * time + objects.phase)))
    orbit = 2 * jnp.pi * (0.75 * time + objects.phase)
    motion = objects.motion
    dx = jnp.select([motion == 1, motion == 2, motion == 7],
                    [-way, way, objects.amount * jnp.cos(orbit)], still)
    dz = jnp.select([motion == 3, motion == 4, motion == 7],
                    [-way, way, objects.amount * jnp.sin(orbit)], still)
    dy = jnp.where(motion == 5, hop, 0.0)
    yaw = objects.yaw + jnp.where(motion == 6, turn, 0.0)
    rolls = (objects.shape == 0) & (motion >= 1) & (motion <= 4)
    radius = objects.half_size[:, 0]
    about_z = jnp.where(rolls, dx / radius, 0.0)
    about_x = jnp.where(rolls, -dz / radius, 0.0)
    rotation = jax.vmap(lambda a, b, c: _axis(0, a) @ _axis(2, b) @ _axis(1, c))
    return objects.position + jnp.stack([dx, dy, dz], -1), rotation(about_x, about_z, yaw)


@partial(jax.jit, static_argnames=("height", "width", "supersample"))
def render(
    scene: Scene, c2w: Float[Array, "t 4 4"], intrinsics: Float[Array, "3 3"],
    times: Float[Array, "t"], height: int, width: int, supersample: int = 2,
) -> tuple[Float[Array, "t h w 3"], Float[Array, "t h w"]]:
    """Clip in [-1, 1] and z-depth at pixel centres, in scene units.

    Intrinsics are in pixels of the height x width image, pixel centres at +0.5.
    """
    texels = jax.vmap(lambda texture: mip_pyramid(bake(texture)))(scene.textures)
    texels = texels.reshape(-1, 3)

    def frame(camera):
        pose, time = camera
        origin, solids = pose[:3, 3], _solids(scene.objects, time)
        rays = _rays(pose, intrinsics, height, width, supersample)
        light = _shade(scene, texels, solids, origin, rays, intrinsics[0, 0] * supersample)
        light = light.reshape(3, height, supersample, width, supersample).mean((2, 4))
        depth = _trace(scene.room, solids, origin, _rays(pose, intrinsics, height, width, 1))[0]
        return 2 * _develop(light * scene.exposure) - 1, depth

    clip, depth = jax.lax.map(frame, (c2w, times))
    return jnp.moveaxis(clip, 1, -1), depth


@partial(jax.jit, static_argnames=("height", "width"))
def surfaces(
    scene: Scene, c2w: Float[Array, "t 4 4"], intrinsics: Float[Array, "3 3"],
    times: Float[Array, "t"], height: int, width: int,
) -> tuple[Float[Array, "t h w"], Int[Array, "t h w"]]:
    """What each pixel's centre shows, as in `render`: z-depth and the object's slot, -1 the room.

    Without colours: a fraction of the time of a picture.
    """

    def frame(camera):
        pose, time = camera
        rays = _rays(pose, intrinsics, height, width, 1)
        return _trace(scene.room, _solids(scene.objects, time), pose[:3, 3], rays)[:2]

    return jax.lax.map(frame, (c2w, times))


def object_map(
    scene: Scene, c2w: Float[Array, "t 4 4"], intrinsics: Float[Array, "3 3"],
    times: Float[Array, "t"], height: int, width: int,
) -> Int[Array, "t h w"]:
    """The slot of the object that each pixel's centre shows, -1 for the room."""
    return surfaces(scene, c2w, intrinsics, times, height, width)[1]


class _Solid(NamedTuple):
    """An object at one instant; a scene's three are stacked on a leading axis."""

    number: Int[Array, ""]
    present: Bool[Array, ""]
    cut: Float[Array, "3"]
    centre: Float[Array, "3"]
    rotation: Float[Array, "3 3"]
    half_size: Float[Array, "3"]
    albedo: Float[Array, "3"]
    pattern: Float[Array, "3 3"]


def _solids(objects, time):
    centre, rotation = object_poses(objects, time)
    return _Solid(jnp.arange(3), objects.present, _CUTS[objects.shape], centre, rotation,
                  objects.half_size, objects.albedo, objects.pattern)


def _for_each(solids, update, state):
    """Fold `update(state, solid)` over the objects that are present.

    A scan, because XLA on CPU fuses an unrolled shader into one loop that traces every ray again
    at each use: ten times slower.
    """

    def step(state, solid):
        return jax.lax.cond(solid.present, update, lambda state, _: state, state, solid), None

    return jax.lax.scan(step, state, solids)[0]


def _axis(axis, angle):
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    rotation = jnp.eye(3).at[i, i].set(cos).at[j, j].set(cos)
    return rotation.at[i, j].set(-sin).at[j, i].set(sin)


def _rays(pose, intrinsics, height, width, supersample):
    """Directions [3, H, W] in the world, with a camera z of one."""
    x = (jnp.arange(width * supersample) + 0.5) / supersample
    y = (jnp.arange(height * supersample) + 0.5) / supersample
    x = ((x - intrinsics[0, 2]) / intrinsics[0, 0])[None, None, :]
    y = ((y - intrinsics[1, 2]) / intrinsics[1, 1])[None, :, None]
    right, down, forward = (pose[:3, i, None, None] for i in range(3))
    return right * x + down * y + forward


def _dot(a, b):
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _rotate(rotation, v):
    return jnp.stack([_dot(row, v) for row in rotation])


def _crossing(cut, origin, direction):
    """Where a ray enters and leaves one shape, in the shape's own coordinates.

    Also tells whether it enters through the curved side. A miss has entry > exit.
    """
    a, b, c = cut
    safe = jnp.where(jnp.abs(direction) < 1e-7, 1e-7, direction)
    inverse = 1 / safe
    near, far = (-jnp.sign(safe) - origin) * inverse, (jnp.sign(safe) - origin) * inverse
    enter, leave = near.max(0), far.min(0)
    (ox, oy, oz), (dx, dy, dz) = origin, safe
    square = dx * dx + dz * dz + a * dy * dy
    square = jnp.where(jnp.abs(square) < 1e-9, 1e-9, square)
    half = ox * dx + oz * dz + a * oy * dy + 0.5 * b * dy
    rest = ox * ox + oz * oz + a * oy * oy + b * oy + c
    below = half * half - square * rest
    root = jnp.sqrt(jnp.maximum(below, 0.0))
    one, two = (-half - root) / square, (-half + root) / square
    low, high = jnp.minimum(one, two), jnp.maximum(one, two)
    # A steep ray is inside the double cone before the first and after the second crossing;
    # the cone that points up is the part it meets last on its way down.
    opens = square < 0
    down = dy > 0
    side_enter = jnp.where(opens, jnp.where(down, high, -_FAR), low)
    side_leave = jnp.where(opens, jnp.where(down, _FAR, low), high)
    missed = (below < 0) & ~opens
    side_enter = jnp.where(missed, _FAR, side_enter)
    return jnp.maximum(enter, side_enter), jnp.minimum(leave, side_leave), side_enter > enter


def _to_object(solid, origin, direction):
    half = solid.half_size[:, None, None]
    inverse = solid.rotation.T
    centre = solid.centre[:, None, None]
    return _rotate(inverse, origin - centre) / half, _rotate(inverse, direction) / half


def _trace(room, solids, origin, direction):
    """Nearest hit: its parameter, its object (-1: the room) and whether it is a curved side."""
    start = origin[:, None, None]

    def nearer(best, solid):
        nearest, which, curved = best
        enter, leave, side = _crossing(solid.cut, *_to_object(solid, start, direction))
        hit = (enter < leave) & (enter > 1e-3) & (enter < nearest)
        return (jnp.where(hit, enter, nearest), jnp.where(hit, solid.number, which),
                jnp.where(hit, side, curved))

    wall = _room_exit(room, start, direction)[0]
    nothing = jnp.full(wall.shape, -1), jnp.zeros(wall.shape, bool)
    return _for_each(solids, nearer, (wall, *nothing))


def _room_exit(room, start, direction):
    corner = room.reshape(2, 3, *[1] * (direction.ndim - 1))
    safe = jnp.where(jnp.abs(direction) < 1e-9, 1e-9, direction)
    reach = (jnp.where(safe > 0, corner[1], corner[0]) - start) / safe
    return reach.min(0), jnp.argmin(reach, 0)


def _shadow(solids, point, to_light):
    """One where the light is seen, zero where an object hides it."""

    def darker(lit, solid):
        enter, leave, _ = _crossing(solid.cut, *_to_object(solid, point, to_light))
        blocked = (enter < leave) & (enter > 1e-3) & (enter < 1.0)
        return jnp.where(blocked, 0.0, lit)

    return _for_each(solids, darker, jnp.ones(point.shape[1:]))


def _openness(solids, point, normal):
    """Share of the ambient light that nearby objects, taken as balls, leave: contact shading."""

    def darker(share, solid):
        towards = solid.centre[:, None, None] - point
        square = _dot(towards, towards)
        facing = jnp.maximum(_dot(towards, normal), 0.0)
        ratio = solid.half_size[0] ** 2 * facing * jax.lax.rsqrt(square) / square
        return share * (1 - 0.8 * jnp.minimum(ratio, 1.0))

    return _for_each(solids, darker, jnp.ones(point.shape[1:]))


def _shade(scene, texels, solids, origin, direction, focal):
    """Linear light [3, H, W] along each ray."""
    start = origin[:, None, None]
    depth, which, curved = _trace(scene.room, solids, origin, direction)
    point = start + depth * direction
    wall_axis = _room_exit(scene.room, start, direction)[1]
    normal = _room_normal(wall_axis, direction)
    colour = _room_colour(texels, point, normal, wall_axis, direction, depth / focal)

    normal, colour = _paint_objects(solids, point, which, curved, normal, colour)

    to_light = scene.light[:, None, None] - point
    square = _dot(to_light, to_light)
    facing = jnp.maximum(_dot(normal, to_light), 0.0) * jax.lax.rsqrt(square)
    lit = _shadow(solids, point + 2e-3 * normal, to_light) * facing * 5.0 / (square + 2.5)
    # A floor throws light upwards less than a ceiling and walls throw it down.
    sky = (0.85 - 0.15 * normal[1]) * _openness(solids, point, normal)
    light = (scene.light_colour[:, None, None] * lit + scene.ambient[:, None, None] * sky)
    return colour * light


def _paint_objects(solids, point, which, curved, normal, colour):
    """Replace normal and colour where an object was hit."""

    def paint(surface, solid):
        normal, colour, phases = surface
        at = which == solid.number
        local, _ = _to_object(solid, point, point)
        outward = _object_normal(solid.cut, local, curved) / solid.half_size[:, None, None]
        outward = _rotate(solid.rotation, outward)
        outward = outward * jax.lax.rsqrt(_dot(outward, outward) + 1e-12)
        return (jnp.where(at, outward, normal),
                jnp.where(at, solid.albedo[:, None, None], colour),
                jnp.where(at, _rotate(solid.pattern, local), phases))

    surface = normal, colour, jnp.zeros_like(point)
    normal, colour, phases = _for_each(solids, paint, surface)
    return normal, colour * (1 + 0.2 * jnp.sin(phases).sum(0))


def _room_normal(axis, direction):
    inward = -jnp.sign(direction)
    return jnp.where(jnp.arange(3)[:, None, None] == axis, inward, 0.0)


def _room_colour(texels, point, normal, axis, direction, pixel):
    u = jnp.where(axis == 0, point[2], point[0]) / TILE
    v = jnp.where(axis == 1, point[2], point[1]) / TILE
    surface = jnp.where(axis != 1, 0, jnp.where(normal[1] < 0, 1, 2))
    slant = jnp.abs(_dot(normal, direction)) * jax.lax.rsqrt(_dot(direction, direction))
    # Between the widths across and along the slope: sharp enough, and supersampled besides.
    footprint = pixel / jnp.maximum(slant, 0.05) ** 0.75 / TILE
    return jnp.moveaxis(lookup(texels, surface * PYRAMID, u, v, footprint), -1, 0)


def _object_normal(cut, local, curved):
    a, b, _ = cut
    x, y, z = local
    side = jnp.stack([2 * x, 2 * a * y + b, 2 * z])
    largest = jnp.argmax(jnp.abs(local), 0)
    flat = jnp.where(jnp.arange(3)[:, None, None] == largest, jnp.sign(local), 0.0)
    return jnp.where(curved, side, flat)


def _develop(light):
    """Film's shoulder, display gamma and a mild S-curve: linear light to [0, 1].

    The gamma and the curve are those at which scenes have the contrast of natural clips.
    """
    shown = (1 - jnp.exp(-jnp.maximum(light, 0.0)) + 1e-6) ** (1 / 1.75)
    return shown + 0.25 * (shown**2 * (3 - 2 * shown) - shown)
