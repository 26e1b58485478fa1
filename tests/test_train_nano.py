"""What the small generator is shown: mirrored scenes say so, and every batch costs the same."""

import numpy as np
import pytest

from experiments import nano_latents
from experiments.nano_latents import NANO, SIBLINGS, Examples
from experiments.scenes import scene_of
from experiments.train_nano import Batches


def test_a_mirrored_scene_moves_the_other_way():
    texts = [nano_latents._said(seed, 0, False) for seed in range(40)]
    sided = [seed for seed, text in enumerate(texts) if " left" in text or " right" in text]
    assert sided
    for seed in range(40):
        mirrored = nano_latents._said(seed, 0, True)
        assert (mirrored != texts[seed]) == (seed in sided)
        swapped = texts[seed].replace(" left", " @").replace(" right", " left")
        assert mirrored == swapped.replace(" @", " right")


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)

    def examples(frames, number=6):
        latents = rng.normal(size=(number, frames, 2, 3, 4)).astype(np.float32)
        return Examples(latents, latents[..., 0] > 0, [f"a red ball {i}" for i in range(number)])

    return Batches(examples(5), examples(1), examples(1, 2 * SIBLINGS), batch=4, seed=0)


def test_turns_give_every_object_every_shape_once_and_no_two_the_same():
    for seed in range(5):
        scene, *_ = scene_of(seed, NANO.frames, NANO.height, NANO.width)
        turns = [nano_latents.turned(scene, turn).objects for turn in range(SIBLINGS)]
        shapes = np.array([turn.shape for turn in turns])
        assert (shapes[0] == scene.objects.shape).all()
        assert (np.sort(shapes, 0) == np.arange(SIBLINGS)[:, None]).all()
        assert all(len(set(row)) == 3 for row in shapes)
        floors = [turn.position[:, 1] + turn.half_size[:, 1] for turn in turns]
        np.testing.assert_allclose(floors, np.broadcast_to(floors[0], (SIBLINGS, 3)), atol=1e-6)


def test_stills_beginnings_and_clips_come_in_turn_at_equal_cost(batches):
    seen = set()
    for step in range(30):
        latents, tokens, mask, objects, draw = batches(step)
        assert len(latents) == len(tokens) == len(mask) == len(draw) == 20 // latents.shape[1]
        assert objects.shape == latents.shape[:-1]
        assert tokens.shape[1] == NANO.dit.text_len
        seen.add(latents.shape[1])
    assert seen == {1, 2, 5}


def test_siblings_come_whole_and_share_their_draw(batches):
    siblings, *_ = batches.sources[1]
    found = 0
    for step in range(30):
        latents, _, _, _, draw = batches(step)
        if len(set(draw)) == len(draw):
            continue
        found += 1
        groups = latents.reshape(-1, SIBLINGS, *latents.shape[1:])
        assert (draw == np.repeat(np.arange(len(groups)), SIBLINGS)).all()
        wholes = siblings.latents.reshape(-1, *groups.shape[1:])
        assert all(any((group == whole).all() for whole in wholes) for group in groups)
    assert found > 2


def test_a_step_has_the_same_batch_whenever_it_is_made(batches):
    again = batches(7)
    assert all((a == b).all() for a, b in zip(batches(7), again, strict=True))


def test_some_captions_are_left_out(batches):
    lengths = np.concatenate([batches(step)[2].sum(1) for step in range(30)])
    empty = np.mean(lengths == lengths.min())
    assert 0.02 < empty < 0.25
