"""Train the bundled small model from scratch: the autoencoder, then the generator.

    python -m experiments.train_nano vae --steps 3000
    python -m experiments.train_nano dit --steps 8000
    python -m experiments.train_nano export

Each stage resumes from its own checkpoints under `--data` and says what it reached. The latents
that `dit` learns are made when it first starts (experiments.nano_latents): after more steps of
`vae`, remove `.data/vae.safetensors`, `.data/latents` and `.data/checkpoints/dit`. After `export`,
experiments.calibrate_nano.
The generator learns plain text-to-video: it never sees a hole, a mask or a warp. Its loss counts
more where objects are, for they are a sixth of a frame and nearly all that its caption is about.
It sees whole clips, beginnings of clips and stills alike: what a word looks like is learned from
many pictures, and five stills cost what one clip of five latent frames does.
"""

import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from jaxtyping import Array, Float, PyTree
from tqdm import tqdm

from experiments import nano_latents
from experiments.nano_latents import NANO, Examples
from experiments.natural_clips import natural_clips
from ic_jax.checkpoint import load, save
from ic_jax.model import BUNDLED
from ic_jax.models import wan_vae
from ic_jax.models.umt5 import UMT5Encoder, byte_tokens
from ic_jax.models.wan_dit import WanDiT
from ic_jax.models.wan_vae import Stream, WanVAE
from ic_jax.sampling.schedule import shifted

MEASURED_SCENES = 1000

# An object's latent counts this much more than one of the room, and so, less, does one beside it:
# up to a half of what a wrong shape costs lies around the object, where it should have been.
OBJECT_WEIGHT, BESIDE_WEIGHT = 5.0, 3.0


@dataclass
class Options:
    stage: tyro.conf.Positional[Literal["vae", "dit", "export"]]
    data: Path = Path(".data")
    steps: int = 3000
    """Length of the whole schedule; a resumed run goes on to the same end."""
    batch: int = 2
    learning_rate: float = 2e-3
    seed: int = 0
    minutes: float = 1e9
    """The learning rate also falls to zero at this time, however few steps were made."""


# Data ---------------------------------------------------------------------------


def clips(data: Path, split: str) -> list[np.ndarray]:
    """Memory-mapped uint8 clips [n, t, h, w, 3] of one split, in as many files as there are."""
    files = sorted(data.glob(f"nano_{split}*.npy"))
    return [np.load(f, mmap_mode="r") for f in files]


def to_float(frames: np.ndarray) -> Float[Array, "..."]:
    return jnp.asarray(frames, jnp.float32) / 127.5 - 1.0


class Mixture:
    """Scenes and natural clips in a fixed share, with mirrored and reversed copies."""

    def __init__(self, data: Path, seed: int, natural_share: float = 0.2):
        self.rng = np.random.default_rng(seed)
        self.scenes = clips(data, "train")
        self.natural = natural_clips("train", NANO.frames, NANO.height, NANO.width)
        self.share = natural_share

    def __call__(self, batch: int) -> np.ndarray:
        rng, out = self.rng, []
        for _ in range(batch):
            if rng.random() < self.share:
                clip = self.natural[rng.integers(len(self.natural))]
            else:
                part = self.scenes[rng.integers(len(self.scenes))]
                clip = part[rng.integers(len(part))]
            clip = clip[:, :, ::-1] if rng.random() < 0.5 else clip
            out.append(clip[::-1] if rng.random() < 0.5 else clip)
        return np.stack(out)


# Optimisation -------------------------------------------------------------------


def optimiser() -> optax.GradientTransformationExtraArgs:
    """Muon for matrices and convolutions, Adam for the rest; the rate is an argument.

    A kernel is a matrix from everything before its last axis; a scanned stack of
    blocks is a batch of matrices.
    """

    def dimensions(params: PyTree) -> PyTree:
        def numbers(path, leaf):
            names = [p.key for p in path]
            if names[-1] != "kernel" or leaf.size < 4096:
                return None
            first = 1 if "blocks" in names else 0
            last = leaf.ndim - 1
            return optax.contrib.MuonDimensionNumbers(tuple(range(first, last)), last)

        return jax.tree_util.tree_map_with_path(numbers, params)

    @optax.inject_hyperparams
    def build(learning_rate):
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.contrib.muon(
                learning_rate,
                beta=0.95,
                adam_b2=0.99,
                consistent_rms=0.2,
                muon_weight_dimension_numbers=dimensions,
            ),
        )

    return build(learning_rate=0.0)


def rate(progress: float, peak: float) -> float:
    """Warm up over the first hundredth, hold, then fall linearly over the last half."""
    return peak * min(1.0, progress * 100 + 0.01, max(0.0, 2 * (1 - progress)))


@partial(jax.jit, static_argnames=("loss", "transform"), donate_argnums=(2, 3))
def update(loss, transform, params, state, learning_rate, key, *batch):
    (value, aux), grads = jax.value_and_grad(loss, has_aux=True)(params, key, *batch)
    state.hyperparams["learning_rate"] = learning_rate
    updates, state = transform.update(grads, state, params)
    return optax.apply_updates(params, updates), state, value, aux


def train(options: Options, params: PyTree, loss, batches) -> PyTree:
    """Run to the end of the schedule, resuming where the last run stopped."""
    transform = optimiser()
    folder = (options.data / "checkpoints" / options.stage).absolute()
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=1)) as kept:
        tree = {"params": params, "state": transform.init(params), "seconds": 0.0}
        step = kept.latest_step() or 0
        if step:
            tree = kept.restore(step, args=ocp.args.StandardRestore(tree))
        params, state, spent = tree["params"], tree["state"], float(tree["seconds"])
        began = saved = time.time()
        bar = tqdm(total=options.steps, initial=step, desc=options.stage, mininterval=10)
        key = jax.random.key(options.seed)
        while (progress := max(
            step / options.steps, (spent + time.time() - began) / (60 * options.minutes)
        )) < 1:  # fmt: skip
            params, state, value, aux = update(
                loss, transform, params, state, rate(progress, options.learning_rate),
                jax.random.fold_in(key, step), *batches(step),
            )  # fmt: skip
            step += 1
            bar.update()
            if step % 50 == 0:
                bar.set_postfix({k: f"{float(v):.4f}" for k, v in aux.items()})
            if time.time() - saved > 300:
                saved = time.time()
                tree = {"params": params, "state": state, "seconds": spent + saved - began}
                kept.save(step, args=ocp.args.StandardSave(tree))
        tree = {"params": params, "state": state, "seconds": spent + time.time() - began}
        if step != kept.latest_step():
            kept.save(step, args=ocp.args.StandardSave(tree))
    return params


def trained(options: Options, stage: str) -> dict:
    """Parameters, step and seconds of a stage's newest checkpoint."""
    folder = (options.data / "checkpoints" / stage).absolute()
    with ocp.CheckpointManager(folder) as kept:
        step = kept.latest_step()
        tree = kept.restore(step, args=ocp.args.StandardRestore())
    return {"params": tree["params"], "seconds": float(tree["seconds"]), "step": step}


# The autoencoder ----------------------------------------------------------------


def vae_loss(params, key, clip):
    """Absolute error of pixels and of their gradients, and a little of the KL term.

    The sampled latent teaches the decoder to be smooth; the weight of the KL term is
    small enough that it costs no visible detail.
    """
    vae, clip = WanVAE(NANO.vae), clip.astype(jnp.float32) / 127.5 - 1.0
    mean, logvar = vae.apply({"params": params}, clip, Stream(), method="moments")
    logvar = jnp.clip(logvar, -12.0, 4.0)
    z = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
    out = vae.apply({"params": params}, z, Stream(), method="reconstruct")

    def gradients(x):
        return jnp.diff(x, axis=2), jnp.diff(x, axis=3)

    pixels = jnp.mean(jnp.abs(out - clip))
    edges = sum(jnp.mean(jnp.abs(a - b)) for a, b in zip(gradients(out), gradients(clip)))
    kl = 0.5 * jnp.mean(mean**2 + jnp.exp(logvar) - logvar - 1)
    psnr = -10 * jnp.log10(jnp.mean((jnp.clip(out, -1, 1) - clip) ** 2) / 4)
    return pixels + 0.5 * edges + 1e-4 * kl, {"l1": pixels, "psnr": psnr, "kl": kl}


def train_vae(options: Options) -> None:
    mixture = Mixture(options.data, options.seed)
    vae = WanVAE(NANO.vae)
    params = jax.jit(vae.init)(jax.random.key(1), to_float(mixture(1)[:, :5]))["params"]
    train(options, params, vae_loss, lambda step: (mixture(options.batch),))


# The generator ------------------------------------------------------------------


def folded(params: PyTree, mean: np.ndarray, std: np.ndarray) -> PyTree:
    """The same autoencoder with unit latents: its outer projections absorb mean and std."""
    quant, post = params["quant"], params["post_quant"]
    std2 = np.concatenate([std, std])
    # The second half is a log-variance: dividing by std subtracts 2 log std.
    kernel = quant["kernel"] / np.where(np.arange(len(std2)) < len(std), std2, 1.0)
    bias = np.concatenate(
        [(quant["bias"][: len(std)] - mean) / std, quant["bias"][len(std) :] - 2 * np.log(std)]
    )
    inverse = {
        "kernel": post["kernel"] * std[:, None],
        "bias": post["bias"] + mean @ post["kernel"][0, 0, 0],
    }
    return {**params, "quant": {"kernel": kernel, "bias": bias}, "post_quant": inverse}


def fold(options: Options) -> None:
    """Measure the latents' mean and std over a part of the scenes, and store the folded weights."""
    params = jax.tree.map(np.asarray, trained(options, "vae")["params"])
    encode = jax.jit(lambda clip: wan_vae.encode(NANO.vae, params, to_float(clip)))
    [scenes, *_], size = clips(options.data, "train"), 4
    starts = tqdm(range(0, MEASURED_SCENES, size), desc="latents", mininterval=10)
    latents = np.concatenate([np.asarray(encode(scenes[i : i + size])) for i in starts])
    mean, std = latents.mean((0, 1, 2, 3)), latents.std((0, 1, 2, 3))
    save(options.data / "vae.safetensors", folded(params, mean, std), {"variant": "nano"})


def dit_loss(params, key, latent, tokens, mask, objects):
    """Flow matching: the velocity noise - clean, at levels drawn like the sampler's."""
    level_key, noise_key = jax.random.split(key)
    sigma = shifted(jax.random.uniform(level_key, latent.shape[:1]), NANO.shift)
    noise = jax.random.normal(noise_key, latent.shape)
    wide = sigma[:, None, None, None, None]
    context = UMT5Encoder(NANO.umt5).apply({"params": params["umt5"]}, tokens, mask)
    velocity = WanDiT(NANO.dit).apply(
        {"params": params["dit"]}, (1 - wide) * latent + wide * noise, 1000 * sigma, context
    )
    error = jnp.mean((velocity - (noise - latent)) ** 2, axis=-1)
    near = nn.max_pool(objects[..., None], (1, 3, 3), padding="SAME")[..., 0]
    weight = 1 + OBJECT_WEIGHT * objects + BESIDE_WEIGHT * near
    return jnp.sum(weight * error) / jnp.sum(weight), {"loss": jnp.mean(error)}


class Batches:
    """Whole clips, beginnings of clips and stills in turn, at equal cost; some without a caption.

    The autoencoder is causal: the first latents of a clip are those of its beginning.
    """

    def __init__(self, clips: Examples, stills: Examples, batch: int, seed: int):
        whole = clips.latents.shape[1]
        self.sources = [
            (source, _tokens(source.captions), frames)
            for source, frames in ((stills, 1), (clips, 2), (clips, whole))
        ]
        self.nothing, self.cost, self.seed = _tokens([""]), batch * whole, seed

    def __call__(self, step: int):
        rng = np.random.default_rng((self.seed, step))
        source, said, frames = self.sources[rng.integers(len(self.sources))]
        at = rng.integers(len(source.latents), size=self.cost // frames)
        drop = rng.random((len(at), 1)) < 0.1  # so that "no prompt" means something
        tokens, mask = (np.where(drop, n, s[at]) for n, s in zip(self.nothing, said, strict=True))
        return source.latents[at, :frames], tokens, mask, source.objects[at, :frames]


def _tokens(captions: list[str]) -> tuple[np.ndarray, ...]:
    pairs = (byte_tokens(caption, NANO.dit.text_len) for caption in captions)
    return tuple(np.stack(part) for part in zip(*pairs))


def train_dit(options: Options) -> None:
    if not (options.data / "vae.safetensors").exists():
        fold(options)
    sizes = nano_latents.Arguments(options.data)
    batches = Batches(
        nano_latents.clips(sizes), nano_latents.stills(sizes), options.batch, options.seed
    )
    latents, tokens, mask, _ = (jnp.asarray(part[:1]) for part in batches(0))

    keys = jax.random.split(jax.random.key(2))
    umt5, dit = UMT5Encoder(NANO.umt5), WanDiT(NANO.dit)
    context = jnp.zeros((1, NANO.dit.text_len, NANO.dit.text_dim))
    params = {
        "umt5": jax.jit(umt5.init)(keys[0], tokens, mask)["params"],
        "dit": jax.jit(dit.init)(keys[1], latents, jnp.ones(1), context)["params"],
    }
    train(options, params, dit_loss, batches)


def export(options: Options) -> None:
    """Both stages to ic_jax/nano, in bfloat16; `experiments.calibrate_nano` measures them next."""
    half = lambda tree: jax.tree.map(lambda a: np.asarray(jnp.asarray(a, jnp.bfloat16)), tree)
    vae, _ = load(options.data / "vae.safetensors")
    stages = {name: trained(options, name) for name in ("vae", "dit")}
    record = {
        "variant": "nano",
        "trained": {
            name: {"steps": run["step"], "minutes": round(run["seconds"] / 60)}
            for name, run in stages.items()
        },
        "calibration": {},
    }
    save(BUNDLED / "vae.safetensors", half(vae), record)
    save(BUNDLED / "generator.safetensors", half(stages["dit"]["params"]), record)
    print(json.dumps(record))


if __name__ == "__main__":
    run = tyro.cli(Options)
    {"vae": train_vae, "dit": train_dit, "export": export}[run.stage](run)
