"""From a released folder to frames: convert, then recapture and inpaint with what came of it."""

import json
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import released
from PIL import Image

from ic_jax.geometry.camera import intrinsics_from_fov
from ic_jax.model import load_model
from ic_jax.video import read_video, write_video

FRAMES, HEIGHT, WIDTH = 9, 16, 32
SMALL = ["--frames", FRAMES, "--height", HEIGHT, "--width", WIDTH, "--steps", 3]
PROMPT = "a goldfish swims in a bowl"


@pytest.fixture(autouse=True)
def table(monkeypatch):
    released.stand_in(monkeypatch)


@pytest.fixture
def clip(tmp_path, monkeypatch):
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    write_video(tmp_path / "clip.mp4", frames, Fraction(16))
    depth = np.full((FRAMES, HEIGHT, WIDTH), 3.0, np.float32)
    lens = np.asarray(intrinsics_from_fov(60.0, HEIGHT, WIDTH))
    np.savez(tmp_path / "depth.npz", depth=depth, kind="metric", intrinsics=lens)
    white = np.zeros((HEIGHT, WIDTH), np.uint8)
    white[4:12, 8:24] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    monkeypatch.chdir(tmp_path)


RECAPTURE = ["recapture", "clip.mp4", "--depth", "depth.npz"]
INPAINT = ["inpaint", "clip.mp4", "--mask", "mask.png"]
RELEASES = {
    "T2V": (released.official, "Wan2.1-T2V-1.3B", RECAPTURE),
    "I2V": (lambda folder: released.official(folder, "i2v"), "Wan2.1-I2V-14B", RECAPTURE),
    "InP": (released.videox_fun, "Wan2.1-Fun-14B-InP", INPAINT),
    "two experts": (released.two_experts, "Wan2.2-T2V-A14B", INPAINT),
}


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_folder_makes_frames(run, tmp_path, clip, release):
    make, name, command = RELEASES[release]
    source = make(tmp_path / name)
    code, stdout, stderr = run("convert", source, "model")
    assert code == 0 and name in stdout, stderr
    # A mask without encodes of its own compiles in a third of the time.
    told = [*SMALL, "--model", "model", "--prompt", PROMPT, "--latent-mask", "mean"]
    code, _, stderr = run(*command, "--out", "out", *told)
    assert code == 0, stderr
    made = read_video(tmp_path / "out" / "generated.mp4")
    assert made.frames.shape == (FRAMES, HEIGHT, WIDTH, 3)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["model"] == name and result["settings"]["solver"] == "unipc"
    assert result["prompt"] == PROMPT and "JPEG" in result["negative_prompt"]
    assert (result["settings"]["guidance_scale_low"] is None) == (release != "two experts")


def test_matrices_are_bfloat16_and_the_rest_as_stored(run, tmp_path):
    source = released.official(tmp_path / "Wan2.1-I2V-14B", "i2v")
    assert run("convert", source, tmp_path / "model")[0] == 0
    weights = load_model(tmp_path / "model").weights
    assert weights.dit_low is None
    blocks = weights.dit["blocks"]
    assert blocks["ffn_fc1"]["kernel"].dtype == blocks["self_attn"]["q"]["kernel"].dtype
    assert blocks["ffn_fc1"]["kernel"].dtype == jnp.bfloat16
    assert weights.clip["blocks"]["ffn"]["fc1"]["kernel"].dtype == jnp.bfloat16
    for full in (
        blocks["modulation"],
        blocks["cross_norm"]["scale"],
        weights.dit["time_embedding"]["fc1"]["kernel"],
        weights.dit["head"]["linear"]["kernel"],
    ):
        assert full.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(weights.vae)} == {jnp.dtype("float32")}
