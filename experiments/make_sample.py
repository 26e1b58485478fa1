"""Render the bundled clip, its depth, and its true view from one new camera.

    python -m experiments.make_sample
"""

import json
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tyro

from experiments.scenes import caption, demo_camera, demo_scene, render
from ic_jax.depth_file import save_depth
from ic_jax.geometry.depth import DepthClip
from ic_jax.model import BUNDLED
from ic_jax.models.variants import VARIANTS
from ic_jax.shot import load_shot
from ic_jax.video import read_video, to_uint8, write_video

CAMERA = "arc_left"
FPS = Fraction(12)


@dataclass
class Arguments:
    """Render the bundled clip."""

    out: Path = BUNDLED
    """Folder of clip.mp4, clip_depth.npz, clip_truth.mp4 and clip.json."""


def main(arguments: Arguments) -> None:
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    sizes = VARIANTS["nano"]
    frames, height, width = sizes.frames, sizes.height, sizes.width
    scene, times = demo_scene(), jnp.linspace(0.0, 1.0, frames)
    c2w, intrinsics = demo_camera(frames, height, width)
    clip, depth = render(scene, c2w, intrinsics, times, height, width)
    write_video(out / "clip.mp4", to_uint8(np.asarray(clip)), FPS)
    per_frame = jnp.broadcast_to(intrinsics, (frames, 3, 3))
    save_depth(out / "clip_depth.npz", DepthClip(depth, per_frame, c2w, "metric"))

    shot = load_shot(read_video(out / "clip.mp4"), out / "clip_depth.npz", CAMERA)
    # A shot's world begins where its first camera stands.
    poses = shot.target.c2w.at[:, :3, 3].add(c2w[0, :3, 3])
    truth, _ = render(scene, poses, intrinsics, times, height, width)
    write_video(out / "clip_truth.mp4", to_uint8(np.asarray(truth)), FPS)
    sample = {"prompt": caption(scene), "camera": CAMERA}
    (out / "clip.json").write_text(json.dumps(sample, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
