"""What a person looks at: a contact sheet, a side-by-side clip, and PSNR.

Holes are drawn as a light hatch, so that nobody takes a dark object for a hole.
"""

import os
import unicodedata
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Num, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

PAPER, INK, GREY, LINE = "#ffffff", "#15181e", "#7b828f", "#dde0e6"
HATCH_GROUND, HATCH_LINE = np.array([234, 236, 240.0]), np.array([192, 198, 207.0])
HIDDEN = np.array([38, 43, 54.0])  # softer than black beside photographs
TITLE, TEXT, SMALL = 44, 25, 17  # font sizes in page pixels
LONGEST_TITLE = 120  # characters; a prompt may have thousands, and the page would be as wide

# What Unicode does not decompose into a letter and its accent.
_NOT_IN_FONT = str.maketrans(
    {"–": "-", "—": "-", "−": "-", "ß": "ss", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D", "ı": "i"}
    | {"ø": "o", "Ø": "O", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "×": "x"}
)

MARGIN, GAP, LABELS = 56, 10, 196  # page pixels; the sheet is meant to be shown at half its size
COLUMNS, CELL_WIDTH, CELL_HEIGHT = 6, 252, 300
NOTE_HEIGHT, TIME_WIDTH = 84, 64  # a label and two lines below it; "0.00 s"

WIDEST = 16_384  # pixels of a frame that x264 encodes


class Row(NamedTuple):
    """One line of the contact sheet."""

    label: str
    note: str
    frames: UInt8[np.ndarray, "t h w 3"]
    visible: Float[np.ndarray, "t h w"] | None = None  # hatched where it is 0


class Labels(NamedTuple):
    """What the pictures are called; the same words name the files."""

    observed: str
    observed_note: str
    result: str

    @property
    def observed_file(self) -> str:
        return self.observed.lower()

    @property
    def result_file(self) -> str:
        return self.result.replace("-", "").lower()


RECAPTURE = Labels("Warped", "moved by its depth;\nholes are hatched", "Re-captured")
INPAINT = Labels("Kept", "what the mask leaves;\nthe rest is hatched", "Inpainted")


def summary(
    source: UInt8[np.ndarray, "t h w 3"],
    observed: UInt8[np.ndarray, "t h w 3"],
    visible: Float[np.ndarray, "t h w"],
    result: UInt8[np.ndarray, "t h w 3"],
    truth: UInt8[np.ndarray, "t h w 3"] | None = None,
    *,
    labels: Labels = RECAPTURE,
    title: str,
    facts: Mapping[str, str],
    fps: Fraction,
) -> UInt8[np.ndarray, "height width 3"]:
    """A contact sheet: what went in, what is left of it, and what came out, over time.

    Args:
      visible: share of each pixel that was observed, in [0, 1].
      truth: the true new view, where it is known.
      title: one line, in Latin letters, which lose their accents: Pillow's own font has no
        others. A long one is cut.
      facts: names and values printed under the title, about six: model, camera, coverage...
      fps: frames per second, for the times above the columns.
    """
    mask = np.stack([_shaded(frame) for frame in visible])
    rows = [
        Row("Source", "the clip as filmed", source),
        Row(labels.observed, labels.observed_note, observed, visible),
        Row("Visible", "white: observed\ndark: to be generated", mask),
        Row(labels.result, "the result", result),
    ]
    if truth is not None:
        rows.append(Row("Truth", "the true new view", truth))
    # Pillow cannot measure a text of several lines.
    title = " ".join(_plain(title).split())
    if len(title) > LONGEST_TITLE:
        title = title[: LONGEST_TITLE - 3] + "..."
    facts = {_plain(name): _plain(value) for name, value in facts.items()}
    return _sheet(rows, title, facts, fps)


def comparison_frames(
    source: UInt8[np.ndarray, "t h w 3"],
    observed: UInt8[np.ndarray, "t h w 3"],
    visible: Float[np.ndarray, "t h w"],
    result: UInt8[np.ndarray, "t h w 3"],
    labels: Labels = RECAPTURE,
) -> UInt8[np.ndarray, "t height width 3"]:
    """Source, what was observed (holes hatched) and the result side by side under thin labels.

    Small clips are enlarged by a whole factor to about 240 lines, large ones reduced to 480, and
    wide ones to what x264 takes. Both sides are even, for H.264.
    """
    _, height, width, _ = source.shape
    factor = max(1, round(240 / height)) if height <= 480 else 480 / height
    factor = min(factor, (WIDEST - 2 * GAP) // 3 / width)
    height, width = (max(1, round(side * factor)) for side in (height, width))
    bar, total = 30, 3 * width + 2 * GAP
    page = Image.new("RGB", (total + total % 2, bar + height + height % 2), PAPER)
    draw = ImageDraw.Draw(page)
    for number, label in enumerate(("Source", labels.observed, labels.result)):
        draw.text((number * (width + GAP) + 4, bar // 2), label, INK, _font(SMALL), anchor="lm")
    clip = np.repeat(np.asarray(page)[None], len(source), axis=0)
    panels = (Row("", "", source), Row("", "", observed, visible), Row("", "", result))
    for number, panel in enumerate(panels):
        left = number * (width + GAP)
        for time in range(len(source)):
            cell = _cell(panel, time, (height, width))
            clip[time, bar : bar + height, left : left + width] = cell
    return clip


def psnr_db(
    a: Num[np.ndarray, "*dims c"],
    b: Num[np.ndarray, "*dims c"],
    mask: Shaped[np.ndarray, "*dims"] | None = None,
) -> float:
    """Peak signal-to-noise ratio in dB: of bytes (peak 255) or of floats in [-1, 1] (peak 2).

    With a mask, errors are weighted by it; an empty mask gives nan, equal arrays inf.
    """
    peak = 255.0 if a.dtype == np.uint8 else 2.0
    weights = np.broadcast_to(1.0, a.shape[:-1]) if mask is None else mask
    total = error = np.float64(0)
    # Frame by frame: a long clip in float64 may not fit in memory.
    for x, y, weight in zip(a, b, weights, strict=True):
        squared = np.square(x.astype(np.float64) - y.astype(np.float64)).mean(axis=-1)
        total += weight.sum(dtype=np.float64)
        error += (weight * squared).sum()
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(10 * np.log10(peak**2 * total / error))


def save_png(path: str | os.PathLike, image: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes a PNG file, whole or not at all."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        Image.fromarray(image).save(partial, format="png", optimize=True)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _sheet(
    rows: Sequence[Row], title: str, facts: Mapping[str, str], fps: Fraction
) -> UInt8[np.ndarray, "height width 3"]:
    count, height, width, _ = rows[0].frames.shape
    times = np.unique(np.linspace(0, count - 1, COLUMNS).round().astype(int)).tolist()
    scale = min(CELL_WIDTH / width, CELL_HEIGHT / height)
    cell = max(1, round(height * scale)), max(1, round(width * scale))
    left, top = MARGIN + LABELS, MARGIN + 192
    pitch, step = max(cell[0], NOTE_HEIGHT) + GAP, max(cell[1], TIME_WIDTH) + GAP
    inner = max(LABELS + len(times) * step - GAP, _header_width(title, facts))
    page_height = top + len(rows) * pitch - GAP + MARGIN
    page = Image.new("RGB", (inner + 2 * MARGIN, page_height), PAPER)
    draw = ImageDraw.Draw(page)
    _header(draw, title, facts, inner)
    for column, time in enumerate(times):
        x = left + column * step
        draw.text((x, top - 12), f"{float(time / fps):.2f} s", GREY, _font(SMALL), anchor="ls")
        for number, row in enumerate(rows):
            y = top + number * pitch
            page.paste(Image.fromarray(_cell(row, time, cell)), (x, y))
            draw.rectangle((x, y, x + cell[1] - 1, y + cell[0] - 1), outline=LINE)
    for number, row in enumerate(rows):
        y = top + number * pitch
        draw.text((MARGIN, y - 2), row.label, INK, _font(TEXT))
        draw.text((MARGIN, y + 34), row.note, GREY, _font(SMALL), spacing=5)
    return np.asarray(page)


def _header(draw: ImageDraw.ImageDraw, title: str, facts: Mapping[str, str], inner: int) -> None:
    draw.text((MARGIN, MARGIN - 8), title, INK, _font(TITLE))
    rule = MARGIN + 62
    draw.line((MARGIN, rule, MARGIN + inner, rule), LINE, 2)
    x = MARGIN
    for name, value in facts.items():
        draw.text((x, rule + 20), name, GREY, _font(SMALL))
        draw.text((x, rule + 43), value, INK, _font(TEXT))
        x += _fact_width(name, value)


def _header_width(title: str, facts: Mapping[str, str]) -> int:
    widths = (_fact_width(name, value) for name, value in facts.items())
    return max(round(_font(TITLE).getlength(title)), sum(widths))


def _fact_width(name: str, value: str) -> int:
    return round(max(_font(SMALL).getlength(name), _font(TEXT).getlength(value))) + 52


def _shaded(visible: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Visibility as a picture: white where all was seen, dark where nothing was."""
    seen = np.clip(visible, 0, 1)[..., None]
    return np.round(255 * seen + HIDDEN * (1 - seen)).astype(np.uint8)


def _cell(row: Row, time: int, size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """One frame scaled to a size (height, width), its holes hatched at that size."""
    if row.visible is None:
        return _scaled(row.frames[time], size)
    visible = np.clip(row.visible[time], 0, 1)[..., None]
    ground = row.frames[time] * visible + HATCH_GROUND * (1 - visible)
    shown = _scaled(np.round(ground).astype(np.uint8), size)
    hole = 1 - _scaled(np.round(255 * visible[..., 0]).astype(np.uint8), size)[..., None] / 255
    stripes = hole * _stripes(size)[..., None]
    return np.round(shown * (1 - stripes) + HATCH_LINE * stripes).astype(np.uint8)


def _stripes(size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Diagonal lines, 3 pixels of every 10, with soft edges."""
    rows, columns = np.indices(size)
    return np.clip(2 - np.abs((rows + columns) % 10 - 5), 0, 1).astype(np.float64)


def _scaled(
    image: UInt8[np.ndarray, "h w *c"], size: tuple[int, int]
) -> UInt8[np.ndarray, "height width *c"]:
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS))


def _plain(text: str) -> str:
    """Text in the letters that the font has: hardly more than those of English."""
    decomposed = unicodedata.normalize("NFKD", text.translate(_NOT_IN_FONT))
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
