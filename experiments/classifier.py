"""Says which colour and shape the object inside a box has: the judge of edits.

    python -m experiments.classifier

trains it on rendered scenes, half of them as the small autoencoder shows them, so that its
blur is nothing new, and prints how often it is right on clips it has never seen. It knows
nothing of prompts, masks or the generator.
"""

import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Bool, Float, Int, PyTree, UInt8
from tqdm import tqdm

from experiments.edit_scenes import MARGIN, Look, grown, object_boxes
from experiments.intervals import wilson
from experiments.scene_render import object_map
from experiments.scenes import COLOURS, SHAPES, scene_of
from ic_jax.checkpoint import load, save
from ic_jax.model import Model, load_model
from ic_jax.models import wan_vae

SIDE = 32  # pixels of a crop
FRAMES = 5  # frames looked at, evenly over the clip
BATCH = 64
JITTER = 5  # pixels by which a training box's sides vary about the margin
JITTERS = 2  # boxes per object and view in training
TRAIN, TEST = range(1200), range(4800, 5000)  # seeds among the generator's own training clips


class Classifier(nn.Module):
    """Crops of one object to log-odds of colours and of shapes, averaged over its frames."""

    @nn.compact
    def __call__(
        self, crops: Float[Array, "b f s s 3"]
    ) -> tuple[Float[Array, "b colours"], Float[Array, "b shapes"]]:
        x = crops.reshape(-1, *crops.shape[2:])
        for width in (24, 48, 96):
            x = nn.gelu(nn.Conv(width, (3, 3), strides=2)(x))
            x = nn.gelu(nn.GroupNorm(8)(nn.Conv(width, (3, 3))(x)))
        x = nn.gelu(nn.Dense(128)(x.reshape(len(x), -1)))
        x = x.reshape(*crops.shape[:2], -1)
        return tuple(nn.Dense(len(names))(x).mean(1) for names in (COLOURS, SHAPES))


class Examples(NamedTuple):
    """Objects with their clips: rows of `clips`, tight boxes, and looks [colour, shape]."""

    clip: Int[np.ndarray, " n"]
    boxes: Int[np.ndarray, "n t 4"]
    looks: Int[np.ndarray, "n 2"]


def crops(
    clip: Float[np.ndarray, "t h w 3"], boxes: Float[np.ndarray, "t 4"]
) -> Float[np.ndarray, "f s s 3"]:
    """Squares about the boxes' centres, as wide as their longer sides, in evenly spaced frames."""
    at = np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)
    return np.asarray(_crops(jnp.asarray(clip[at]), jnp.asarray(boxes[at], jnp.float32)))


@jax.jit
def _crops(frames, boxes):
    def one(frame, box):
        centre, side = (box[:2] + box[2:]) / 2, jnp.max(box[2:] - box[:2])
        steps = ((jnp.arange(SIDE) + 0.5) / SIDE - 0.5) * side
        rows, columns = centre[0] + steps - 0.5, centre[1] + steps - 0.5
        at = jnp.meshgrid(rows, columns, indexing="ij")
        sample = partial(jax.scipy.ndimage.map_coordinates, order=1, mode="nearest")
        return jnp.stack([sample(frame[..., c], at) for c in range(3)], -1)

    return jax.vmap(one)(frames, boxes)


_apply = jax.jit(lambda params, crops: Classifier().apply({"params": params}, crops))


def classify(
    params: PyTree, clip: Float[np.ndarray, "t h w 3"], boxes: Int[np.ndarray, "t 4"]
) -> Look:
    """The likeliest colour and shape of what is in the boxes, a margin included."""
    colours, shapes = _apply(params, crops(clip, boxes)[None])
    return Look(int(colours[0].argmax()), int(shapes[0].argmax()))


# Training -------------------------------------------------------------------------


def find_objects(seeds: range, frames: int, height: int, width: int) -> Examples:
    """Every large object of the seeds' scenes; geometry alone, nothing is shaded."""
    found = []
    for number, seed in enumerate(tqdm(seeds, desc="objects", mininterval=10)):
        scene, c2w, intrinsics = scene_of(seed, frames, height, width)
        times = jnp.linspace(0, 1, frames)
        which = np.asarray(object_map(scene, c2w, intrinsics, times, height, width))
        colour, shape = np.asarray(scene.objects.colour), np.asarray(scene.objects.shape)
        for slot, boxes in object_boxes(which).items():
            found.append((number, boxes, (colour[slot], shape[slot])))
    return Examples(*(np.array(part) for part in zip(*found)))


def both_views(model: Model, data: Path, seeds: range) -> tuple[np.ndarray, np.ndarray]:
    """Stored clips as they were rendered, and as the autoencoder returns them; uint8."""
    clips = np.load(data / "nano_train.npy", mmap_mode="r")[seeds.start : seeds.stop]
    sizes, vae = model.variant.vae, model.weights.vae
    round_trip = jax.jit(lambda clip: wan_vae.decode(sizes, vae, wan_vae.encode(sizes, vae, clip)))
    views = np.empty_like(clips)
    for i in tqdm(range(0, len(clips), 4), desc="round trips", mininterval=10):
        pixels = round_trip(normalised(clips[i : i + 4]))
        views[i : i + 4] = np.asarray(jnp.round((jnp.clip(pixels, -1, 1) + 1) * 127.5))
    return clips, views


def training_set(
    model: Model, data: Path
) -> tuple[UInt8[np.ndarray, "n f s s 3"], Int[np.ndarray, "n 2"]]:
    """Crops of both views of every object, each in several boxes that vary about the margin."""
    rng = np.random.default_rng(0)
    views = both_views(model, data, TRAIN)
    objects = find_objects(TRAIN, *views[0].shape[1:4])
    images, looks = [], []
    for clip, boxes, look in zip(*objects):
        for view in views:
            for _ in range(JITTERS):
                change = rng.uniform(MARGIN - JITTER, MARGIN + JITTER, 4) * [-1, -1, 1, 1]
                images.append(crops(view[clip], boxes + change).astype(np.uint8))
                looks.append(look)
    return np.stack(images), np.stack(looks)


@partial(jax.jit, static_argnames="transform", donate_argnums=(1, 2))
def _update(transform, params, state, images, looks):
    def loss(params):
        heads = Classifier().apply({"params": params}, images)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        return sum(entropy(head, looks[:, i]).mean() for i, head in enumerate(heads))

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = transform.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value


def train(
    images: UInt8[np.ndarray, "n f s s 3"], looks: Int[np.ndarray, "n 2"], steps: int
) -> PyTree:
    """Adam, a rate that falls as a cosine, and mirror images; one frame at a time, for speed."""
    rng = np.random.default_rng(1)
    images = images.reshape(-1, 1, *images.shape[2:])
    looks = np.repeat(looks, FRAMES, axis=0)
    params = jax.jit(Classifier().init)(jax.random.key(0), normalised(images[:1]))["params"]
    transform = optax.adam(optax.cosine_decay_schedule(1e-3, steps))
    state = transform.init(params)
    bar = tqdm(range(steps), desc="classifier", mininterval=10)
    for step in bar:
        at = rng.integers(len(images), size=BATCH)
        batch = images[at, :, :, :: rng.choice([-1, 1])]
        params, state, value = _update(transform, params, state, normalised(batch), looks[at])
        if step % 50 == 0:
            bar.set_postfix(loss=f"{float(value):.4f}")
    return params


def normalised(images: UInt8[np.ndarray, "*n"]) -> Float[Array, "*n"]:
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def trained(model: Model, data: Path, steps: int = 1500) -> PyTree:
    """The classifier for a model's autoencoder; trained on the first call, then kept in `data`."""
    file = data / "classifier" / f"{_fingerprint(model, steps)}.safetensors"
    if not file.exists():
        params = train(*training_set(model, data), steps)
        save(file, params, {"steps": steps})
    return load(file)[0]


def _fingerprint(model, steps):
    """Changes with the autoencoder and with how the classifier is made."""
    crop = jnp.zeros((1, 1, SIDE, SIDE, 3))
    shapes = jax.eval_shape(Classifier().init, jax.random.key(0), crop)
    recipe = steps, SIDE, FRAMES, BATCH, JITTER, JITTERS, MARGIN, TRAIN, shapes
    digest = hashlib.sha256(repr(recipe).encode())
    for leaf in jax.tree.leaves(model.weights.vae):
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()[:12]


# How often it is right --------------------------------------------------------------


def accuracy(params: PyTree, model: Model, data: Path) -> dict[str, Bool[np.ndarray, "n 2"]]:
    """Whether colour and shape are right, per object of clips that it was not trained on."""
    rendered, decoded = both_views(model, data, TEST)
    objects = find_objects(TEST, *rendered.shape[1:4])
    return {
        "as rendered": np.array([_right(params, rendered, *one) for one in zip(*objects)]),
        "after the autoencoder": np.array([_right(params, decoded, *one) for one in zip(*objects)]),
    }


def _right(params, view, number, boxes, look):
    height, width = view.shape[2:4]
    clip = np.asarray(normalised(view[number]))
    return np.array(classify(params, clip, grown(boxes, MARGIN, height, width))) == look


@dataclass
class Arguments:
    """Train the classifier, and say how often it is right."""

    model: str = "nano"
    """"nano" or a folder of weights, for its autoencoder."""
    data: Path = Path(".data")


def main(arguments: Arguments) -> None:
    model = load_model(arguments.model)
    params = trained(model, arguments.data)
    for view, right in accuracy(params, model, arguments.data).items():
        shares = (*right.sum(0), right.all(1).sum())
        parts = (wilson(int(k), len(right)) for k in shares)
        colour, shape, both = (f"{p.mean:.3f} [{p.low:.3f}, {p.high:.3f}]" for p in parts)
        print(f"{view}: {len(right)} objects; colour {colour}, shape {shape}, both {both}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
