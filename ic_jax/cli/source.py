"""What `recapture` and `warp` start from: a clip, its depth and a camera."""

import dataclasses
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import tyro

from ..budget import host_memory, most_frames
from ..errors import InputError
from ..geometry.trajectory import TRAJECTORIES, trajectory
from ..model import BUNDLED
from ..shot import Shot, load_shot
from ..video import Clip, read_video

Flat = tyro.conf.OmitArgPrefixes


@dataclass(frozen=True)
class Source:
    """A clip, its depth, and the camera that it is to be seen from."""

    clip: tyro.conf.Positional[Path | None] = None
    """A video, a GIF or a folder of frames; without it, the bundled sample."""
    fps: float | None = None
    """Frames per second of a folder of frames, from 1 to 1000; without it, 24. A file states its
    own."""
    depth: Path | None = None
    """Depth of every frame: .npz with depth, kind, intrinsics, c2w (see README), .npy, or a folder
    of 16-bit grey PNGs."""
    depth_kind: str | None = None
    """Of depth that does not state its own: metric, relative (of unknown scale), or disparity,
    where nearer is larger."""
    depth_scale: float | None = None
    """What one unit of metric depth is, 0.001 for PNGs in millimetres. Of disparity that does not
    state its own, the scale in 1 / depth = scale * disparity + shift."""
    depth_shift: float | None = None
    """Of disparity that does not state its own, the shift."""
    fov: float | None = None
    """Horizontal field of view in degrees, above 0 and below 180, for depth without intrinsics."""
    camera: str = "arc_left"
    """The new camera: static, zoom_in, zoom_out, arc_left, arc_right, arc_up, arc_down, pan_left,
    pan_right, tilt_up, tilt_down, translate_left, translate_right, translate_up, translate_down,
    or a .json file of poses."""
    amount: float | None = None
    """How far a named path goes: degrees (without it arc 15, pan 10, tilt 10), or a fraction of
    the scene's depth (zoom 0.25, translate 0.15)."""

    def check(self) -> None:
        """Raises InputError for what is wrong before the clip is read."""
        check_rate(self.clip, self.fps)
        if self.depth is None and self.clip is not None:
            raise InputError(f"{self.clip}: its depth is needed too; pass --depth FILE.npz")
        if not self.camera.endswith(".json"):
            trajectory(self.camera, 1, 1.0, self.amount)
        elif not Path(self.camera).is_file():
            raise InputError(f"{self.camera}: cannot read the camera path (no such file)")

    def load(self) -> tuple[Clip, Shot]:
        """Raises InputError where a file is missing or unfit, or a clip too long for this host."""
        path, depth = self.clip or BUNDLED / "clip.mp4", self.depth
        height, width = read_video(path, 1).frames.shape[1:3]
        most = most_frames(height, width, host_memory())
        # One more tells that there are more, whatever a header says; and all may be far too many.
        clip = read_clip(path, self.fps, None if most is None else most + 1)
        if most is not None and len(clip.frames) > most:
            raise InputError(
                f"{path}: this host has memory for {most} frames of {width}x{height} at the very "
                "most, and it has more; give a shorter or smaller clip"
            )
        shot = load_shot(
            clip,
            depth or BUNDLED / "clip_depth.npz",
            self.camera,
            amount=self.amount,
            depth_kind=self.depth_kind,
            depth_scale=self.depth_scale,
            depth_shift=self.depth_shift,
            fov=self.fov,
        )
        return clip, shot

    def described(self) -> dict:
        """As result.json records it: a named path's own amount in place of None."""
        move = TRAJECTORIES.get(self.camera)
        amount = move.amount if move and self.amount is None else self.amount
        return dataclasses.asdict(self) | {"amount": amount}


def check_rate(clip: Path | None, fps: float | None) -> None:
    """Raises InputError for a rate that is out of range, or of a clip that states its own."""
    if fps is None:
        return
    if not 1 <= fps <= 1000:
        raise InputError(f"--fps is {fps}; give a number from 1 to 1000")
    if clip is None or clip.is_file():
        raise InputError(f"{clip or 'the bundled clip'}: states its own rate; leave --fps out")


def read_clip(path: Path, fps: float | None, most: int | None = None) -> Clip:
    """`read_video` of so many frames at most, and of this rate where that is given."""
    if fps is None:
        return read_video(path, most)
    return read_video(path, most, Fraction(fps).limit_denominator(1001))
