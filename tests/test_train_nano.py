"""What the small generator is shown: mirrored scenes say so, and every batch costs the same."""

import numpy as np
import pytest

from experiments import nano_latents
from experiments.nano_latents import NANO, Examples
from experiments.train_nano import Batches


def test_a_mirrored_scene_moves_the_other_way():
    texts = [nano_latents._said(seed, False) for seed in range(40)]
    sided = [seed for seed, text in enumerate(texts) if " left" in text or " right" in text]
    assert sided
    for seed in range(40):
        mirrored = nano_latents._said(seed, True)
        assert (mirrored != texts[seed]) == (seed in sided)
        swapped = texts[seed].replace(" left", " @").replace(" right", " left")
        assert mirrored == swapped.replace(" @", " right")


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)

    def examples(frames):
        latents = rng.normal(size=(6, frames, 2, 3, 4)).astype(np.float32)
        return Examples(latents, latents[..., 0] > 0, [f"a red ball {i}" for i in range(6)])

    return Batches(examples(5), examples(1), batch=4, seed=0)


def test_stills_beginnings_and_clips_come_in_turn_at_equal_cost(batches):
    seen = set()
    for step in range(30):
        latents, tokens, mask, objects = batches(step)
        assert len(latents) == len(tokens) == len(mask) == 20 // latents.shape[1]
        assert objects.shape == latents.shape[:-1]
        assert tokens.shape[1] == NANO.dit.text_len
        seen.add(latents.shape[1])
    assert seen == {1, 2, 5}


def test_a_step_has_the_same_batch_whenever_it_is_made(batches):
    again = batches(7)
    assert all((a == b).all() for a, b in zip(batches(7), again, strict=True))


def test_some_captions_are_left_out(batches):
    lengths = np.concatenate([batches(step)[2].sum(1) for step in range(30)])
    empty = np.mean(lengths == lengths.min())
    assert 0.02 < empty < 0.25
