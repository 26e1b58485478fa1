"""Masks from files, and the promise of editing: what lies under the mask is never looked at."""

from fractions import Fraction
from io import BytesIO

import numpy as np
import pytest
from PIL import Image
from tiny_model import TINY, tiny_context, tiny_weights

from ic_jax import framing
from ic_jax.director import direct, plan
from ic_jax.edit import forget, load_edit
from ic_jax.errors import InputError
from ic_jax.model import Model
from ic_jax.settings import Settings
from ic_jax.video import Clip, write_video

FRAMES, HEIGHT, WIDTH = 11, 20, 30
MODEL = Model("tiny", TINY.resized(9, None, None), tiny_weights(), {})


@pytest.fixture
def clip(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, HEIGHT, WIDTH, 3), np.uint8)
    return Clip(frames, Fraction(8), Fraction(1), tmp_path / "clip.mp4")


def box(frames=FRAMES, height=HEIGHT, width=WIDTH):
    white = np.zeros((frames, height, width), bool)
    white[:, height // 4 : height // 2, width // 3 : 2 * width // 3] = True
    return white


def as_video(path, white):
    frames = np.repeat(255 * white.astype(np.uint8)[..., None], 3, axis=-1)
    write_video(path, frames, Fraction(8))
    return path


def as_image(path, white):
    Image.fromarray(255 * white.astype(np.uint8)).save(path)
    return path


def as_folder(path, white):
    path.mkdir()
    for number, frame in enumerate(white):
        as_image(path / f"{number}.png", frame)
    return path


@pytest.mark.parametrize("write", [as_video, as_folder])
def test_a_mask_has_one_frame_per_frame(clip, tmp_path, write):
    white = box()
    white[3] = False
    edit = load_edit(clip, write(tmp_path / "mask", white))
    np.testing.assert_array_equal(edit.keep, ~white)
    np.testing.assert_array_equal(edit.frames[edit.keep], clip.frames[edit.keep])


def test_one_image_stands_for_all_frames(clip, tmp_path):
    edit = load_edit(clip, as_image(tmp_path / "mask.png", box(1)[0]))
    np.testing.assert_array_equal(edit.keep, ~box())


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_what_is_transparent_is_not_white(clip, tmp_path, mode):
    image = Image.new(mode, (WIDTH, HEIGHT), "white")
    image.putalpha(Image.fromarray(255 * box(1)[0].astype(np.uint8)))
    (tmp_path / "masks").mkdir()
    for name in ("mask.png", *(f"masks/{number}.png" for number in range(FRAMES))):
        image.save(tmp_path / name)
    for name in ("mask.png", "masks"):
        np.testing.assert_array_equal(load_edit(clip, tmp_path / name).keep, ~box())


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "CMYK", "YCbCr"])
def test_a_mask_without_opacity_is_read_in_any_mode(clip, tmp_path, mode):
    image = Image.fromarray(255 * box(1)[0].astype(np.uint8)).convert("RGB").convert(mode)
    image.save(tmp_path / "mask.png", "jpeg" if mode in ("CMYK", "YCbCr") else "png", quality=100)
    np.testing.assert_array_equal(load_edit(clip, tmp_path / "mask.png").keep, ~box())


def test_a_mask_of_another_size_covers_all_that_it_touches(clip, tmp_path):
    fine = np.zeros((2 * HEIGHT, 2 * WIDTH), bool)
    fine[7, 11] = True
    edit = load_edit(clip, as_image(tmp_path / "mask.png", fine))
    expected = np.zeros((HEIGHT, WIDTH), bool)
    expected[3, 5] = True
    np.testing.assert_array_equal(~edit.keep[0], expected)


@pytest.mark.parametrize(
    "mask, said",
    [
        (box(5), "mask.mp4: 5 frames of mask for 11 frames in"),
        (box(height=30), "mask.mp4: the mask is 30x30 and"),
        (np.zeros((FRAMES, HEIGHT, WIDTH), bool), "mask.mp4: no white pixel"),
        (np.ones((FRAMES, HEIGHT, WIDTH), bool), "mask.mp4: white everywhere"),
    ],
    ids=["length", "aspect", "empty", "full"],
)
def test_a_mask_that_does_not_fit_is_one_line(clip, tmp_path, mask, said):
    path = as_video(tmp_path / "mask.mp4", mask)
    with pytest.raises(InputError, match=said) as error:
        load_edit(clip, path)
    assert "\n" not in str(error.value)


def test_a_mask_of_labels_is_told_how_bright_it_is(clip, tmp_path):
    Image.fromarray(box(1)[0].astype(np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(InputError, match=r"the brightest is 1 of 255.*multiply a mask of labels"):
        load_edit(clip, tmp_path / "mask.png")


def cut_short():
    """A PNG whose pixels end after one byte, by what it says: to Pillow, an error of syntax."""
    file = BytesIO()
    Image.new("L", (WIDTH, HEIGHT)).save(file, "png")
    before, pixels = file.getvalue().split(b"IDAT")
    return before[:-4] + (1).to_bytes(4, "big") + b"IDAT" + pixels


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("absent.png", None, "no such file"),
        ("absent.mp4", None, "no such file"),
        ("mask.png", b"not an image", "mask.png: not a readable image"),
        ("mask.png", cut_short(), "mask.png: not a readable image"),
        ("mask.mp4", b"not a video", "mask.mp4"),
    ],
)
def test_a_mask_that_cannot_be_read_is_one_line(clip, tmp_path, name, content, said):
    if content:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_edit(clip, tmp_path / name)


@pytest.mark.parametrize("size", [13, 7, 30, 41, 1])
def test_a_mask_at_another_size_covers_exactly_what_it_touches(size):
    for at in range(20):
        mask = np.arange(20) == at
        scaled = framing.any_within(mask[None, None], (1, size))[0, 0]
        left, right = np.arange(size) * 20 / size, np.arange(1, size + 1) * 20 / size
        np.testing.assert_array_equal(scaled, (left < at + 1) & (right > at))


def test_a_scaled_mask_never_keeps_a_pixel_that_holds_a_hidden_one():
    fit = framing.fit((HEIGHT, WIDTH), (16, 32))
    hidden = framing.to_working(np.repeat(255 * box().astype(np.uint8)[..., None], 3, -1), fit)
    keep = framing.mask_to_working(~box(), fit)
    # Lanczos reaches a few pixels further, but there the frames hold what stands in for them.
    assert not keep[hidden[..., 0] > 128].any()
    assert not keep[:, ~framing.inside(fit)].any()
    assert keep.any()


def test_the_result_does_not_depend_on_what_lies_under_the_mask(clip):
    white, rng = box(), np.random.default_rng(1)
    other = clip.frames.copy()
    other[white] = rng.integers(0, 256, (white.sum(), 3), np.uint8)
    assert (other != clip.frames).any()
    settings = Settings(composite=True)
    takes = [
        direct(MODEL, settings, forget(frames, ~white), tiny_context())
        for frames in (clip.frames, other)
    ]
    assert len(plan(MODEL, forget(clip.frames, ~white))) == 2
    for mine, others in zip(*(take[:4] for take in takes)):
        np.testing.assert_array_equal(mine, others)


def test_a_composite_shows_the_source_itself_away_from_the_mask(clip):
    take = direct(MODEL, Settings(composite=True), forget(clip.frames, ~box()), tiny_context())
    np.testing.assert_array_equal(take.visible, ~box())
    near = np.zeros_like(box())
    near[:, HEIGHT // 4 - 2 : HEIGHT // 2 + 2, WIDTH // 3 - 2 : 2 * WIDTH // 3 + 2] = True
    np.testing.assert_array_equal(take.result[~near], clip.frames[~near])
    assert np.abs(take.generated[~near].astype(int) - clip.frames[~near]).max() > 10


def test_the_prompt_and_the_seed_change_what_is_painted(clip):
    edit = forget(clip.frames, ~box())
    first, *others = (
        direct(MODEL, Settings(), edit, tiny_context(prompt), seed=seed).generated
        for prompt, seed in ((0, 0), (1, 0), (0, 1))
    )
    for other in others:
        assert (first[box()] != other[box()]).any()
