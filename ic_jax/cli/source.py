"""What `recapture` and `warp` start from: a clip, its depth and a camera."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import tyro

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
    depth: Path | None = None
    """Depth of every frame: .npz with depth, kind, intrinsics, c2w (see README), or .npy."""
    depth_kind: str | None = None
    """Of an .npy file: metric or relative."""
    fov: float | None = None
    """Horizontal field of view in degrees, for depth without intrinsics."""
    camera: str = "arc_left"
    """The new camera: the name of a path, or a JSON file of poses."""
    amount: float | None = None
    """How far a named path goes: degrees, or a fraction of the scene's depth."""

    def check(self) -> None:
        """Raises InputError for what is wrong before the clip is read."""
        if self.depth is None and self.clip is not None:
            raise InputError(f"{self.clip}: its depth is needed too; pass --depth FILE.npz")
        if not self.camera.endswith(".json"):
            trajectory(self.camera, 1, 1.0, self.amount)
        elif not Path(self.camera).is_file():
            raise InputError(f"{self.camera}: cannot read the camera path (no such file)")

    def load(self) -> tuple[Clip, Shot]:
        """Raises InputError where a file is missing or unfit."""
        path, depth = self.clip or BUNDLED / "clip.mp4", self.depth
        clip = read_video(path)
        shot = load_shot(
            clip,
            depth or BUNDLED / "clip_depth.npz",
            self.camera,
            amount=self.amount,
            depth_kind=self.depth_kind,
            fov=self.fov,
        )
        return clip, shot

    def described(self) -> dict:
        """As result.json records it: a named path's own amount in place of None."""
        move = TRAJECTORIES.get(self.camera)
        amount = move.amount if move and self.amount is None else self.amount
        return dataclasses.asdict(self) | {"amount": amount}
