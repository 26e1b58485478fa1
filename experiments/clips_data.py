"""A user's own clips as TensorFlow Datasets that need no TensorFlow.

    python -m experiments.clips_data --clips DIR
    python -m experiments.clips_data --davis DIR

says what is found there. The first is any folder of videos; NAME.mp4 may have its caption beside
it in NAME.txt, and its depth, with intrinsics, in NAME.npz (see `ic_jax.depth_file`). The
second is a copy of DAVIS-2017 at 480p. The data sets hold where pixels are and what is known of
them, not the pixels; a folder that has changed is another data set.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile
from zlib import crc32

import av
import numpy as np
import tensorflow_datasets as tfds
import tyro

from experiments.clip_files import ClipFile
from ic_jax.errors import InputError
from ic_jax.video import read_video

__all__ = ["DAVIS", "Clips", "FolderConfig", "chosen", "davis_clips", "folder_clips"]

VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".mkv", ".webm", ".avi", ".gif"})
SPLITS = ("train", "val")
_LIST = "ImageSets/2017/{}.txt"
_IMAGES, _ANNOTATIONS = "JPEGImages/480p", "Annotations/480p"


@dataclass(kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """The folder that a data set is about."""

    folder: Path


class Clips(tfds.core.GeneratorBasedBuilder):
    """The videos of a folder and below it, with their captions and depth where there are some."""

    VERSION = tfds.core.Version("1.0.0")
    # tfds looks for it through importlib_resources, which it no longer installs.
    code_path = Path(__file__)

    def _info(self):
        features = tfds.features.FeaturesDict({
            "path": tfds.features.Text(),
            "frames": tfds.features.Scalar(np.int64),
            "height": tfds.features.Scalar(np.int64),
            "width": tfds.features.Scalar(np.int64),
            "fps": tfds.features.Scalar(np.float64),
            "caption": tfds.features.Text(),
            # Empty where there is none.
            "depth": tfds.features.Text(),
        })
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {"test": self._generate_examples()}

    def _generate_examples(self):
        for number, path in enumerate(_videos(self.builder_config.folder)):
            caption, depth = path.with_suffix(".txt"), path.with_suffix(".npz")
            yield number, {
                "path": str(path),
                **_facts(path),
                "caption": _text(caption) if caption.exists() else "",
                "depth": str(_checked_depth(depth)) if depth.exists() else "",
            }


class DAVIS(tfds.core.GeneratorBasedBuilder):
    """DAVIS-2017 at 480p: paths of frames, and of their annotations, which mark objects.

    Pont-Tuset et al., "The 2017 DAVIS Challenge on Video Object Segmentation" (2017). It has no
    captions: a clip's name stands for one.
    """

    VERSION = tfds.core.Version("1.0.0")
    code_path = Path(__file__)

    def _info(self):
        features = tfds.features.FeaturesDict({
            "name": tfds.features.Text(),
            "images": tfds.features.Sequence(tfds.features.Text()),
            "annotations": tfds.features.Sequence(tfds.features.Text()),
            "caption": tfds.features.Text(),
        })
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        folder = self.builder_config.folder
        return {
            split: self._generate_examples(names) for split, names in _davis_names(folder).items()
        }

    def _generate_examples(self, names):
        folder = self.builder_config.folder
        for number, name in enumerate(names):
            images = sorted((folder / _IMAGES / name).glob("*.jpg"))
            annotations = sorted((folder / _ANNOTATIONS / name).glob("*.png"))
            if not images or len(images) != len(annotations):
                raise InputError(
                    f"{folder}: {name} has {len(images)} frames and {len(annotations)} annotations;"
                    " copy DAVIS-2017 again"
                )
            yield number, {
                "name": name,
                "images": list(map(str, images)),
                "annotations": list(map(str, annotations)),
                "caption": name.replace("-", " "),
            }


def chosen(clips: Path | None, davis: Path | None, data: Path) -> list[ClipFile] | None:
    """What the flags --clips and --davis of a study ask for; None where neither is given.

    Raises:
        InputError: both, or a folder without clips or of another layout.
    """
    if clips is not None and davis is not None:
        raise InputError("give --clips or --davis, not both")
    if clips is not None:
        return folder_clips(clips, data)
    return None if davis is None else davis_clips(davis, data)


def folder_clips(folder: Path, data: Path) -> list[ClipFile]:
    """The videos of a folder, in the order of their paths.

    Raises:
        InputError: no such folder, no videos there, or one that cannot be read.
    """
    folder = folder.resolve()
    videos = _videos(folder)
    beside = [video.with_suffix(end) for video in videos for end in (".txt", ".npz")]
    builder = _prepared(Clips, folder, videos + beside, data)
    return [_of_video(example) for example in builder.as_data_source("test")]


def davis_clips(folder: Path, data: Path, split: str = "val") -> list[ClipFile]:
    """The clips of a split, train or val, in the order of its list.

    Raises:
        InputError: no such folder, one of another layout, or a clip without its frames.
    """
    folder = folder.resolve()
    lists = [folder / _LIST.format(split) for split in _davis_names(folder)]
    builder = _prepared(DAVIS, folder, lists, data)
    return [_of_images(example) for example in builder.as_data_source(split)]


def _prepared(make: Callable, folder: Path, files: list[Path], data: Path):
    """The data set of a folder with these files as they are now."""
    stamps = [(str(file), file.stat().st_mtime_ns) for file in files if file.exists()]
    name = f"{_plain(folder.name)}-{_digest(stamps)}"
    config = FolderConfig(name=name, folder=folder)
    builder = make(data_dir=data, config=config, file_format=tfds.core.FileFormat.ARRAY_RECORD)
    builder.download_and_prepare()
    return builder


def _videos(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give a folder of videos")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        kinds = ", ".join(sorted(VIDEO_SUFFIXES))
        raise InputError(f"{folder}: no videos there; give a folder that holds {kinds} files")
    return found


def _facts(path: Path) -> dict[str, int | float]:
    first = read_video(path, max_frames=1)
    _, height, width, _ = first.frames.shape
    with av.open(path) as container:
        # one packet per frame: counted without decoding, and headers may lie
        frames = sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
    return {"frames": frames, "height": height, "width": width, "fps": float(first.fps)}


def _checked_depth(path: Path) -> Path:
    """Depth may come without a lens where a command can ask for one; a study cannot."""
    try:
        with np.load(path) as fields:
            if "intrinsics" in fields:
                return path
    except (OSError, ValueError, BadZipFile) as error:
        raise InputError(f"{path}: not a readable npz file ({error})") from None
    raise InputError(f"{path}: no intrinsics; add [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] in pixels")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except ValueError:
        raise InputError(f"{path}: not UTF-8 text; save the caption again") from None


def _davis_names(folder: Path) -> dict[str, list[str]]:
    """The names in each split's list."""
    lists = [_LIST.format(split) for split in SPLITS]
    for wanted in (*lists, _IMAGES, _ANNOTATIONS):
        if not (folder / wanted).exists():
            raise InputError(f"{folder}: no {wanted} there; give the folder of DAVIS-2017 at 480p")
    names = [(folder / path).read_text().split() for path in lists]
    return dict(zip(SPLITS, names, strict=True))


def _of_video(example: dict) -> ClipFile:
    path, depth = Path(example["path"].decode()), example["depth"].decode()
    return ClipFile(
        _name(path.stem, path),
        video=path,
        images=(),
        caption=example["caption"].decode(),
        depth=Path(depth) if depth else None,
    )


def _of_images(example: dict) -> ClipFile:
    images, annotations = (
        tuple(Path(path.decode()) for path in example[kind]) for kind in ("images", "annotations")
    )
    name, caption = (example[kind].decode() for kind in ("name", "caption"))
    return ClipFile(_name(name, images[0]), None, images, annotations, caption)


def _name(name: str, path: Path) -> str:
    return f"{_plain(name)}-{_digest(path)}"


def _plain(name: str) -> str:
    return "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)


def _digest(value: object) -> str:
    return f"{crc32(str(value).encode()):08x}"


@dataclass
class Arguments:
    """Say what clips a folder holds."""

    clips: Path | None = None
    """Folder of videos."""
    davis: Path | None = None
    """Folder of DAVIS-2017."""
    data: Path = Path(".data")
    """Where the data sets are kept."""


def main(arguments: Arguments) -> None:
    try:
        found = chosen(arguments.clips, arguments.davis, arguments.data)
        if found is None:
            raise InputError("nothing to look at; give --clips or --davis")
    except InputError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
    for clip in found:
        print(clip.name, "with depth" if clip.depth else "without depth", clip.caption, sep="\t")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
