"""Video files in and out: every frame, in display orientation, in full-range RGB.

Reading trusts what decodes and nothing that a header promises: frame counts in headers are
often wrong. Writing keeps size, frame rate and audio.
"""

import heapq
import json
import os
import re
import struct
import warnings
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import SideData, Type
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps

from ic_jax.errors import DISK_FULL, InputError
from ic_jax.output import MADE_BY, RESULT
from ic_jax.video_colour import ToRGB, from_rgb

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp"})
VIDEO_SUFFIXES = frozenset({".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".gif"})

# What Pillow raises of files that are damaged, or larger than it takes for meant well.
PILLOW_ERRORS = OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError

# Decoders need some packets before the first sample that is heard; mp4 hides what lies before 0.
_AUDIO_RUN_UP = Fraction(1, 10)  # seconds; covers the priming of AAC, MP3 and Opus

# A header's rate may be off by so much before the frames' own times are believed instead.
_RATE_TOLERANCE = Fraction(3, 100)

# Ticks per second to which a measured period is rounded: MPEG's own, so that mp4 can hold them.
_CLOCK = 90_000


class Clip(NamedTuple):
    """A decoded video. `write_video(..., audio_from=clip.path)` carries its audio on."""

    frames: UInt8[np.ndarray, "t h w 3"]  # display orientation, full-range RGB
    fps: Fraction  # as stated, if the frames' times bear it out; else their average rate
    pixel_aspect: Fraction  # width / height of one pixel as displayed, 1 for square pixels
    path: Path  # the file, or the folder of frames
    times: tuple[Fraction, ...] | None = None  # seconds from the first, if not at a constant rate


def read_video(
    path: str | os.PathLike, max_frames: int | None = None, fps: Fraction = Fraction(24)
) -> Clip:
    """Decodes a video file, an animated GIF, or a folder of images.

    Quarter turns and mirroring are undone, and limited or full range, BT.601, BT.709 or BT.2020
    become full-range RGB of BT.709, to which HDR (PQ, HLG) is tone-mapped. Files that name no
    matrix are read as BT.709 from 1280 pixels wide or 577 high, as BT.601 below, as players do.

    Args:
      path: a file or a folder, whose images are taken in natural order (frame_2 before frame_10).
      max_frames: stop after this many frames.
      fps: frames per second of a folder of images; a file knows its own.

    Raises:
      InputError: nothing there, not a video, no video stream, no frames, a damaged file, or a
        result of ours.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path of the video")
    if path.is_dir():
        return Clip(read_images(path, "RGB", max_frames), fps, Fraction(1), path)
    if path.suffix.lower() in (".npy", ".npz"):
        raise InputError(f"{path}: arrays are not read here; give a video or a folder of images")
    try:
        return _read_file(path, max_frames)
    except (av.error.FFmpegError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "undecodable"
        message = f"{path}: cannot be decoded as a video ({reason}); re-encode or download it again"
        raise InputError(message) from error


def read_images(folder: Path, mode: str, most: int | None = None) -> UInt8[np.ndarray, "t h w c"]:
    """The first images of a folder, in natural order, each as `read_image` reads it.

    Raises:
      InputError: no images, some that are unreadable or of another size, or a result of ours.
    """
    if _is_result(folder):
        raise InputError(f"{folder}: is a result of {MADE_BY}, not a clip; give a video in it")
    return _same_size(folder, (read_image(file, mode) for file in find_images(folder)[:most]))


def read_image(path: Path, mode: str) -> UInt8[np.ndarray, "h w *c"]:
    """One image, upright, in 8 bits of one of Pillow's modes: "RGB" for colours, "L" for grey.

    Raises:
      InputError: nothing there, not an image, a damaged one, or several in one file.
    """
    try:
        # Pillow warns of what it reads rightly all the same: large images, transparent palettes.
        with warnings.catch_warnings(action="ignore"), Image.open(path) as file:
            # A phone's JPEG (MPO) may hold others beside the one that is meant.
            if getattr(file, "is_animated", False) and file.format != "MPO":
                raise InputError(f"{path}: holds several images; give a folder with a file of each")
            image = ImageOps.exif_transpose(file)
            if image.mode.startswith("I"):  # 16 bits of grey: Pillow would make 256 and more white
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert(mode))
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; check the path of the image") from error
    except PILLOW_ERRORS as error:
        raise InputError(f"{path}: not a readable image; remove or replace it") from error


def find_images(folder: Path) -> list[Path]:
    """The images of a folder, by their suffix, in natural order (frame_2 before frame_10)."""
    return [file for file in _shown(folder) if file.suffix.lower() in IMAGE_SUFFIXES]


def find_videos(path: str | os.PathLike) -> list[Path]:
    """What `read_video` reads at `path`: a clip itself, or those in a folder, in natural order.

    Files of a folder are known by their suffix, and a folder of frames by the images in it.
    Hidden ones and results of ours are passed over.

    Raises:
      InputError: nothing there, or no clip in it.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; check the path of the clips")
    if not path.is_dir() or find_images(path):
        return [path]
    found = [
        entry
        for entry in _shown(path)
        if (entry.is_dir() and find_images(entry) and not _is_result(entry))
        or (entry.is_file() and entry.suffix.lower() in VIDEO_SUFFIXES)
    ]
    if not found:
        raise InputError(f"{path}: holds no clips; put videos or folders of frames into it")
    return found


def write_video(
    path: str | os.PathLike,
    frames: UInt8[np.ndarray, "t h w 3"],
    fps: Fraction,
    audio_from: str | os.PathLike | None = None,
    pixel_aspect: Fraction = Fraction(1),
    times: Sequence[Fraction] | None = None,
) -> None:
    """Writes H.264 in mp4, tagged BT.709 limited range, at exactly this size and rate.

    Even sizes use 4:2:0 chroma, which plays everywhere. 4:2:0 cannot hold an odd size, so odd
    widths or heights use 4:4:4 rather than lose or gain a line; some hardware players refuse it.

    Audio of `audio_from` is copied packet by packet, aligned with that file's first frame, and
    ends with the last frame to within one packet. It is transcoded to AAC where mp4 cannot hold
    its codec, or few players play it there: PCM. A source without audio is no error. The file
    appears whole or not at all.

    Args:
      fps: frames per second.
      audio_from: the file or folder that the frames were read from.
      pixel_aspect: width / height of one pixel as displayed.
      times: when each frame is shown, in seconds from the first, instead of at a constant rate.

    Raises:
      InputError: the audio is damaged.
      OSError: the file cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with av.open(partial, "w", format="mp4", options={"movflags": "faststart"}) as out:
            video = _add_video(out, frames.shape, Fraction(fps), pixel_aspect)
            video.codec_context.time_base = Fraction(1, _CLOCK) if times else 1 / Fraction(fps)
            times = times or [number / Fraction(fps) for number in range(len(frames))]
            pictures = _encoded(video, frames, times)
            if audio_from is None or Path(audio_from).is_dir():
                out.mux(pictures)
            else:
                with av.open(audio_from) as source:
                    audio = _audio_packets(out, source, times[-1] + 1 / Fraction(fps))
                    for packet in heapq.merge(pictures, audio, key=_seconds):
                        out.mux(packet)
        partial.replace(path)
    except av.error.FFmpegError as error:
        if audio_from is None or error.errno in DISK_FULL:
            raise
        raise _unheard(audio_from, error.strerror) from error
    finally:
        partial.unlink(missing_ok=True)


def to_float(frames: UInt8[np.ndarray, "*dims"]) -> Float[np.ndarray, "*dims"]:
    """0..255 to float32 in [-1, 1]."""
    # One rounding, of the product. XLA would not divide as numpy does (`models.frames`).
    return (frames.astype(np.float32) - np.float32(127.5)) * np.float32(1 / 127.5)


def to_uint8(frames: Float[np.ndarray, "*dims"]) -> UInt8[np.ndarray, "*dims"]:
    """[-1, 1] to the nearest of 0..255; values outside are clipped."""
    return np.round((np.clip(frames, -1, 1) + 1) * 127.5).astype(np.uint8)


def _read_file(path: Path, max_frames: int | None) -> Clip:
    with av.open(path) as container:
        stream = _video_stream(container)
        if stream is None:
            raise InputError(f"{path}: has no video stream; give a video file")
        stream.thread_type = "AUTO"
        fps = stream.average_rate or stream.guessed_rate
        if not fps:
            raise InputError(f"{path}: states no frame rate; re-encode it with one")
        turned, to_rgb = False, ToRGB()
        images, ticks = [], []
        for frame in islice(_decoded(container, stream, path), max_frames):
            image, turned = _upright(to_rgb(frame), frame.side_data.get(Type.DISPLAYMATRIX))
            images.append(image)
            ticks.append(frame.pts)
        tick = Fraction(stream.time_base)
        fps = _borne_out(Fraction(fps), ticks, tick)
        aspect = Fraction(stream.sample_aspect_ratio or 1)
    if turned:
        aspect = 1 / aspect
    return Clip(_same_size(path, images), fps, aspect, path, _uneven(fps, ticks, tick))


def _upright(
    image: UInt8[np.ndarray, "h w 3"], matrix: SideData | None
) -> tuple[UInt8[np.ndarray, "height width 3"], bool]:
    """The picture as a display matrix shows it, and whether its sides have changed places.

    The matrix takes (x, y, 1) from its left: x' = a x + c y and y' = b x + d y.
    """
    if matrix is None:
        return image, False
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5]
    if turned := bool(abs(b) > abs(a)):
        image, a, d = image.swapaxes(0, 1), c, b
    return image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1], turned


def _uneven(fps: Fraction, ticks: list[int | None], tick: Fraction) -> tuple[Fraction, ...] | None:
    """The frames' own times, where some are off a constant rate by more than half a frame."""
    if None in ticks or any(later <= sooner for sooner, later in pairwise(ticks)):
        return None
    times = tuple((time - ticks[0]) * tick for time in ticks)
    even = all(abs(time - number / fps) <= 1 / (2 * fps) for number, time in enumerate(times))
    return None if even else times


def _borne_out(fps: Fraction, times: list[int | None], tick: Fraction) -> Fraction:
    """The stated rate; or, where the frames' times are of another, theirs."""
    if len(times) < 2 or None in times:
        return fps
    steps, span = len(times) - 1, (max(times) - min(times)) * tick
    period = (span / steps).limit_denominator(_CLOCK)
    # First and last may have been rounded, by half a tick each.
    if not period or abs(span - steps / fps) <= _RATE_TOLERANCE * steps / fps + tick:
        return fps
    return 1 / period


def _video_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video that is not a cover picture."""
    cover = av.stream.Disposition.attached_pic
    return next((s for s in container.streams.video if not s.disposition & cover), None)


def _decoded(
    container: av.container.InputContainer, stream: av.VideoStream, path: Path
) -> Iterator[av.VideoFrame]:
    for packet in container.demux(stream):
        if packet.is_corrupt:
            raise InputError(f"{path}: the file is cut off or damaged; copy or download it again")
        yield from packet.decode()


def _shown(folder: Path) -> list[Path]:
    """What is in a folder, in natural order, without hidden files: macOS leaves its own beside."""
    return sorted((f for f in folder.iterdir() if not f.name.startswith(".")), key=_natural)


def _is_result(folder: Path) -> bool:
    """Whether we made it, and its images are therefore pictures of a clip and no frames."""
    try:
        return json.loads((folder / RESULT).read_text())["made_by"] == MADE_BY
    except (OSError, ValueError, TypeError, KeyError):  # none, or none of ours
        return False


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sort key: digits by value, everything else as text."""
    return [(int(d or 0), s) for d, s in re.findall(r"(\d+)|(\D+)", file.name)]


def _same_size(
    path: Path, images: Iterable[UInt8[np.ndarray, "h w c"]]
) -> UInt8[np.ndarray, "t h w c"]:
    images = list(images)
    if not images:
        raise InputError(f"{path}: holds no frames; give a video file or a folder of images")
    for number, image in enumerate(images):
        if image.shape != images[0].shape:
            (h, w), (first_h, first_w) = image.shape[:2], images[0].shape[:2]
            raise InputError(
                f"{path}: frame {number} is {w}x{h} but the first is {first_w}x{first_h}; "
                "all frames must have one size"
            )
    return np.stack(images)


def _add_video(
    out: av.container.OutputContainer, shape: tuple[int, ...], fps: Fraction, aspect: Fraction
) -> av.VideoStream:
    # A fixed thread count, for x264's decisions depend on it; and no macroblock tree, which reads
    # memory it never wrote when frames are narrow. The same frames are then the same file.
    options = {"crf": "16", "preset": "medium", "threads": "4", "x264-params": "mbtree=0"}
    stream = out.add_stream("libx264", rate=fps, options=options)
    _, stream.height, stream.width, _ = shape
    stream.pix_fmt = "yuv420p" if stream.height % 2 == stream.width % 2 == 0 else "yuv444p"
    context = stream.codec_context
    context.sample_aspect_ratio = aspect
    context.color_range = ColorRange.MPEG
    context.colorspace = Colorspace.ITU709
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    return stream


def _encoded(
    stream: av.VideoStream, frames: UInt8[np.ndarray, "t h w 3"], times: Sequence[Fraction]
) -> Iterator[av.Packet]:
    tick = Fraction(stream.codec_context.time_base)
    for image, time in zip(frames, times, strict=True):
        frame = from_rgb(image, stream.pix_fmt)
        frame.pts, frame.time_base = round(time / tick), tick
        yield from stream.encode(frame)
    yield from stream.encode(None)


def _seconds(packet: av.Packet) -> Fraction:
    return packet.dts * packet.time_base


def _audio_packets(
    out: av.container.OutputContainer, source: av.container.InputContainer, seconds: Fraction
) -> Iterator[av.Packet]:
    """Packets of the source's first audio stream, from its first frame on for so many seconds."""
    if not source.streams.audio:
        return iter(())
    stream = source.streams.audio[0]
    video = _video_stream(source)
    start = (video.start_time or 0) * video.time_base if video else Fraction(0)
    offset = round(start / stream.time_base)
    if stream.codec_context is not None and stream.name.startswith("pcm_"):
        return _transcoded(source, stream, _aac(out, source, stream), offset, seconds)
    try:
        target = out.add_stream_from_template(stream)
    except ValueError:  # mp4 cannot hold this codec
        return _transcoded(source, stream, _aac(out, source, stream), offset, seconds)
    return _copied(source, stream, target, offset, seconds)


def _aac(
    out: av.container.OutputContainer, source: av.container.InputContainer, stream: av.AudioStream
) -> av.AudioStream:
    """A stream for the same sound, at the nearest rate that AAC has."""
    if stream.codec_context is None:
        raise _unheard(source.name, "unknown codec")
    rate = min(av.Codec("aac", "w").audio_rates, key=lambda rate: abs(rate - stream.rate))
    # Many files say how many channels there are and not where; of one or two that is plain.
    layout = {1: "mono", 2: "stereo"}.get(stream.layout.nb_channels, stream.layout)
    return out.add_stream("aac", rate=rate, layout=layout)


def _unheard(path: str | os.PathLike, reason: str) -> InputError:
    return InputError(f"{path}: its audio cannot be read ({reason}); remove or re-encode it")


def _copied(
    source: av.container.InputContainer,
    stream: av.AudioStream,
    target: av.AudioStream,
    offset: int,
    seconds: Fraction,
) -> Iterator[av.Packet]:
    for packet in source.demux(stream):
        if packet.dts is None:  # the demuxer's end marker
            continue
        packet.pts, packet.dts = packet.pts - offset, packet.dts - offset
        begins = packet.pts * packet.time_base
        if begins >= seconds:
            return
        if begins >= -_AUDIO_RUN_UP:
            packet.stream = target
            yield packet


def _transcoded(
    source: av.container.InputContainer,
    stream: av.AudioStream,
    target: av.AudioStream,
    offset: int,
    seconds: Fraction,
) -> Iterator[av.Packet]:
    for frame in source.decode(stream):
        frame.pts -= offset
        if frame.pts * frame.time_base >= seconds:
            break
        if frame.pts >= 0:
            yield from target.encode(frame)
    yield from target.encode(None)
