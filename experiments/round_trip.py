"""Double reprojection: a real clip, seen from a new camera and back again.

No second camera ever saw a real clip, so a new view of it has no truth. But the way back has: what
the new camera could not see is missing from the source's own view, and the source shows it. (The
same idea makes training pairs of holes and truths in works on re-capture.) The clip is resampled
twice on the way, and that blur is part of what the method is given.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from experiments.held_out import LARGEST_HOLES, MULTIPLES, SMALLEST_HOLES
from experiments.random_fields import smooth_noise
from ic_jax.geometry.camera import Camera, compose, intrinsics_from_fov
from ic_jax.geometry.depth import scene_radius
from ic_jax.geometry.trajectory import TRAJECTORIES, trajectory
from ic_jax.geometry.warp import warp_operator
from ic_jax.pipeline import Scene

# Of a camera that draws back, nothing is missing on the way home: zoom_in takes its place.
CAMERAS = ("arc_left", "arc_right", "zoom_in", "translate_left", "translate_right")
FOV = 60.0  # degrees, of clips whose depth is made up
FOREGROUND = 0.25  # share of the frame


class Footage(NamedTuple):
    """A clip with the geometry that its round trip goes by.

    `keep` drops pixels from it, such as those that fly between two surfaces (`depth_edges`).
    """

    clip: Float[Array, "t h w 3"]
    depth: Float[Array, "t h w"]
    source: Camera
    keep: Bool[Array, "t h w"]


def with_made_up_depth(clip: Float[Array, "t h w 3"], number: int) -> Footage:
    """A clip without depth, over a surface that knows nothing of its content.

    Inverse depth, and the camera, stand still: a slanted and gently rolling background, nearer at
    the bottom, before which smooth islands stand at about half its distance. A warp by it tears
    holes at the frame's rim and beside the islands, as any warp does, though not along the clip's
    own edges. The clip itself is the truth, so nothing is measured wrongly for that; but the fill
    from other frames believes in the surface, and from a clip that moves it copies what has
    moved on.
    """
    frames, height, width, _ = clip.shape
    rng = np.random.default_rng(number)
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    rolling = smooth_noise(rng, height, width, grain=0.25)
    islands = smooth_noise(rng, height, width, grain=0.12)
    inverse = 0.5 + 0.1 * y + rng.uniform(-0.1, 0.1) * x + 0.02 * rolling
    inverse += 0.5 * (islands > np.quantile(islands, 1 - FOREGROUND))
    depth = jnp.broadcast_to(jnp.asarray(1 / inverse, jnp.float32), (frames, height, width))
    lens = jnp.broadcast_to(intrinsics_from_fov(FOV, height, width), (frames, 3, 3))
    camera = Camera(jnp.broadcast_to(jnp.eye(4), (frames, 4, 4)), lens)
    return Footage(clip, depth, camera, jnp.ones(depth.shape, bool))


def round_trip(footage: Footage, number: int) -> Scene:
    """There and back by the `number`-th of the cameras in turn.

    Of six amounts, the one whose holes come nearest to a wanted share is taken; that share runs
    through 6 to 28 % in an order without pattern.
    """
    name = CAMERAS[number % len(CAMERAS)]
    amounts = TRAJECTORIES[name].amount * np.array(MULTIPLES)
    targets = [_moved(footage, name, amount) for amount in amounts]
    visible = [there_and_back(footage, target).operator.visible.mean() for target in targets]
    golden = (number * 0.618034) % 1  # low-discrepancy: every run of numbers covers the range
    wanted = SMALLEST_HOLES + golden * (LARGEST_HOLES - SMALLEST_HOLES)
    best = np.argmin(np.abs(1 - np.array(visible) - wanted))
    return there_and_back(footage, targets[best])


@jax.jit
def there_and_back(footage: Footage, target: Camera) -> Scene:
    """The target camera's view, and the operator that warps it back to the source camera.

    The way back goes by the surface that the target camera saw. Target pixels that saw less than
    half of themselves are dropped, so the operator's visibility is that of the whole round trip.
    """
    there = warp_operator(footage.depth, footage.source, target, keep=footage.keep, edges=False)
    seen = jnp.isfinite(there.surface) & (there.visible >= 0.5)
    surface = jnp.where(seen, there.surface, 1.0)
    back = warp_operator(surface, target, footage.source, keep=seen, edges=False)
    return Scene(there.apply(footage.clip), back)


def _moved(footage: Footage, name: str, amount: float) -> Camera:
    path = trajectory(name, len(footage.clip), scene_radius(footage.depth), float(amount))
    return footage.source._replace(c2w=compose(footage.source.c2w[0], path))
