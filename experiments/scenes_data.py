"""The rendered scenes as a TensorFlow Datasets builder that needs no TensorFlow.

    python -m experiments.scenes_data --data .data

builds the data set, then writes each split's clips as one array that training memory-maps:
.data/nano_train.npy with its captions in .data/nano_train.json, and the same for the test split.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
import tyro
from jaxtyping import UInt8

from experiments.scenes import caption, render, scene_of

__all__ = ["Scenes", "ScenesConfig", "array_cache", "build", "scene_example"]

_FIRST_TEST_SEED = 1_000_000


@dataclass(kw_only=True)
class ScenesConfig(tfds.core.BuilderConfig):
    """Size of the clips and number of scenes; seeds of the two splits never meet."""

    frames: int
    height: int
    width: int
    train: int = 5000
    test: int = 50

    def seeds(self, split: str) -> range:
        """The seeds of a split's scenes, in the order in which they are stored."""
        if split == "train":
            return range(self.train)
        return range(_FIRST_TEST_SEED, _FIRST_TEST_SEED + self.test)


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Textured rooms with moving objects; depth comes with the test split only."""

    VERSION = tfds.core.Version("1.0.0")
    # tfds looks for it through importlib_resources, which it no longer installs.
    code_path = Path(__file__)
    BUILDER_CONFIGS = [
        ScenesConfig(name="nano", frames=17, height=64, width=96),
        ScenesConfig(name="wide", frames=17, height=128, width=192),
    ]

    def _info(self):
        t, h, w = (getattr(self.builder_config, side) for side in ("frames", "height", "width"))
        features = tfds.features.FeaturesDict({
            "clip": tfds.features.Tensor(shape=(t, h, w, 3), dtype=np.uint8),
            "caption": tfds.features.Text(),
            "seed": tfds.features.Scalar(np.int64),
            "c2w": tfds.features.Tensor(shape=(t, 4, 4), dtype=np.float32),
            "intrinsics": tfds.features.Tensor(shape=(3, 3), dtype=np.float32),
            # No frames in training: nothing there asks for it, and it is as large as the clip.
            "depth": tfds.features.Tensor(shape=(None, h, w), dtype=np.float32),
        })
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split):
        config = self.builder_config
        for seed in config.seeds(split):
            example = scene_example(seed, config.frames, config.height, config.width)
            if split == "train":
                example["depth"] = example["depth"][:0]
            yield seed, example


def scene_example(seed: int, frames: int, height: int, width: int) -> dict:
    """Everything known of a seed's clip: uint8 clip, caption, cameras, z-depth in scene units."""
    scene, c2w, intrinsics = scene_of(seed, frames, height, width)
    clip, depth = render(scene, c2w, intrinsics, jnp.linspace(0, 1, frames), height, width)
    pixels = jnp.round((clip + 1) * 127.5).astype(jnp.uint8)
    arrays = {"clip": pixels, "c2w": c2w, "intrinsics": intrinsics, "depth": depth}
    return jax.tree.map(np.asarray, arrays) | {"caption": caption(scene), "seed": seed}


def build(data: Path, config: str | ScenesConfig = "nano") -> Scenes:
    """Render into `data`, or find what an earlier run rendered there."""
    builder = Scenes(data_dir=data, config=config, file_format=tfds.core.FileFormat.ARRAY_RECORD)
    builder.download_and_prepare()
    return builder


def array_cache(
    builder: Scenes, split: str, data: Path,
) -> tuple[UInt8[np.ndarray, "n t h w 3"], list[str]]:
    """A split's clips as one memory-mapped array, and their captions; written on the first call.

    Reading records costs a decompression each; training wants a random clip in microseconds.
    """
    array = data / f"{builder.builder_config.name}_{split}.npy"
    captions = array.with_suffix(".json")
    if not captions.exists():
        source = builder.as_data_source(split)
        shape = (len(source), *builder.info.features["clip"].shape)
        clips = np.lib.format.open_memmap(array, "w+", np.uint8, shape)
        texts = []
        for i, example in enumerate(source):
            clips[i] = example["clip"]
            texts.append(example["caption"].decode())
        clips.flush()
        captions.write_text(json.dumps(texts))  # last: its presence says that the array is whole
    return np.load(array, mmap_mode="r"), json.loads(captions.read_text())


@dataclass
class Arguments:
    """Render the training and test scenes."""

    data: Path = Path(".data")
    """Folder of the data set and its arrays."""
    config: str = "nano"
    """nano (17x64x96) or wide (17x128x192)."""


def main(arguments: Arguments) -> None:
    builder = build(arguments.data, arguments.config)
    for split in ("train", "test"):
        clips, _ = array_cache(builder, split, arguments.data)
        print(f"{split}: {len(clips)} clips of {clips.shape[1:]}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
