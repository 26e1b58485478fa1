"""Make the bundled edit: a mask around the red ball, white = regenerate, and a new caption.

    python -m experiments.make_edit_sample

after experiments.make_sample, whose clip.json it completes.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro
from jaxtyping import Bool

from experiments.edit_scenes import MARGIN, Look, box_mask, grown, object_boxes, replaced
from experiments.make_sample import FPS
from experiments.scene_render import object_map
from experiments.scenes import COLOURS, SHAPES, caption, demo_camera, demo_scene
from ic_jax.model import BUNDLED
from ic_jax.models.variants import VARIANTS
from ic_jax.video import write_video

RED_BALL = 0  # its slot in the demo scene
BLUE_CUBE = Look(COLOURS.index("blue"), SHAPES.index("cube"))


def ball_mask(frames: int, height: int, width: int) -> Bool[np.ndarray, "t h w"]:
    """A rough box about the ball in every frame, with room for a cube of its size."""
    c2w, intrinsics = demo_camera(frames, height, width)
    times = jnp.linspace(0.0, 1.0, frames)
    which = np.asarray(object_map(demo_scene(), c2w, intrinsics, times, height, width))
    boxes = grown(object_boxes(which)[RED_BALL], MARGIN, height, width)
    return box_mask(boxes, height, width)


@dataclass
class Arguments:
    """Make the bundled edit."""

    out: Path = BUNDLED
    """Folder with clip.json, which also gets clip_mask.mp4."""


def main(arguments: Arguments) -> None:
    sizes = VARIANTS["nano"]
    mask = ball_mask(sizes.frames, sizes.height, sizes.width)
    white = np.where(mask[..., None], 255, 0).astype(np.uint8)
    write_video(arguments.out / "clip_mask.mp4", np.repeat(white, 3, axis=-1), FPS)
    file = arguments.out / "clip.json"
    edit = caption(replaced(demo_scene(), RED_BALL, BLUE_CUBE))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"edit": edit}, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
