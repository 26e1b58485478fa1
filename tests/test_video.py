"""Clips survive files: every frame, its colours, orientation, rate, size and sound."""

import struct
from fractions import Fraction

import av
import numpy as np
import pytest
from PIL import Image

from ic_jax import delivery
from ic_jax.errors import InputError
from ic_jax.output import output_folder, write_result
from ic_jax.video import find_videos, read_image, read_video, to_float, to_uint8, write_video

FILM = Fraction(24000, 1001)


def _clip(frames=9, height=64, width=96):
    """A smooth coloured clip that changes over time and has no symmetry."""
    t, y, x = np.meshgrid(
        np.arange(frames) / 9, np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij"
    )
    channels = [0.8 * x + 0.1 * t, 0.7 * y + 0.1 * t, 0.5 + 0.4 * np.sin(3 * x + 2 * y + t)]
    return np.round(255 * np.stack(channels, -1)).astype(np.uint8)


def _psnr(a, b):
    return 10 * np.log10(255**2 / np.mean((a.astype(float) - b) ** 2))


def _encode(path, frames, codec="libx264", pix_fmt="yuv420p", full=False, matrix=1, rotation=0):
    """A plain ffmpeg-style writer, so that reading is not tested by our own writing alone."""
    scale = {"src_color_range": "JPEG", "dst_color_range": "JPEG" if full else "MPEG"}
    names = {1: "ITU709", 5: "ITU601", 2: "ITU601"}
    scale |= {"src_colorspace": names[matrix], "dst_colorspace": names[matrix]}
    with av.open(path, "w") as out:
        stream = out.add_stream(codec, rate=25, options={"qp": "1"})
        _, stream.height, stream.width, _ = frames.shape
        stream.pix_fmt = pix_fmt
        stream.codec_context.color_range = 2 if full else 1
        stream.codec_context.colorspace = matrix
        if rotation:
            stream.set_display_rotation(rotation)
        for image in frames:
            frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pix_fmt, **scale)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def _add_sound(path, video, codec, seconds, picture_delay=0):
    """A copy of a video file with a rising tone of so many seconds."""
    with av.open(video) as source, av.open(path, "w") as out:
        picture = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream(codec, rate=16000, layout="mono")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = picture
                packet.pts += round(picture_delay / packet.time_base)
                packet.dts += round(picture_delay / packet.time_base)
                out.mux(packet)
        time = np.arange(int(16000 * seconds)) / 16000
        wave = 9000 * np.sin(2 * np.pi * (200 + 300 * time) * time)
        frame = av.AudioFrame.from_ndarray(wave.astype(np.int16)[None], "s16", "mono")
        frame.sample_rate, frame.pts = 16000, 0
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    return path


def _sound(path):
    """Decoded samples, in [-1, 1], their rate, and the codec's name."""
    with av.open(path) as container:
        stream = container.streams.audio[0]
        to_mono = av.AudioResampler("flt", "mono", stream.rate)
        frames = [f for frame in container.decode(stream) for f in to_mono.resample(frame)]
        return np.concatenate([f.to_ndarray()[0] for f in frames]), stream.rate, stream.name


def _sound_packets(path):
    with av.open(path) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


def _lag(sound, reference):
    """Samples by which a sound comes later than the reference."""
    return np.correlate(sound[3000:12000], reference[5000:8000]).argmax() - 2000


@pytest.mark.parametrize("fps", [FILM, Fraction(25), Fraction(30000, 1001)])
@pytest.mark.parametrize("size", [(64, 96), (63, 97), (64, 97), (1, 2)])
def test_frames_size_and_rate_survive_the_file(tmp_path, fps, size):
    frames = _clip(9, *size)
    write_video(tmp_path / "clip.mp4", frames, fps)
    clip = read_video(tmp_path / "clip.mp4")
    assert clip.frames.shape == frames.shape
    assert clip.fps == fps and clip.pixel_aspect == 1
    if min(size) > 2:
        assert _psnr(clip.frames, frames) > 40
    assert [p.name for p in tmp_path.iterdir()] == ["clip.mp4"]


def test_files_say_which_colours_they_hold_and_are_the_same_every_time(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        write_video(tmp_path / name, _clip(), FILM, pixel_aspect=Fraction(4, 3))
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    with av.open(tmp_path / "a.mp4") as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv420p"
    assert (frame.colorspace, frame.color_range) == (1, 1)
    assert (frame.color_primaries, frame.color_trc) == (1, 1)
    assert read_video(tmp_path / "a.mp4").pixel_aspect == Fraction(4, 3)


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "clip.mp4"
    write_video(path, _clip(), FILM)
    before = path.read_bytes()
    with pytest.raises(InputError, match="missing.mp4: its audio cannot be read"):
        write_video(path, _clip(), FILM, audio_from=tmp_path / "missing.mp4")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_reading_stops_after_max_frames(tmp_path):
    write_video(tmp_path / "clip.mp4", _clip(), FILM)
    whole, part = read_video(tmp_path / "clip.mp4"), read_video(tmp_path / "clip.mp4", 4)
    np.testing.assert_array_equal(part.frames, whole.frames[:4])


def _timed(path, stated, milliseconds):
    """A file of this stated rate, whose frames are shown at other times."""
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=stated)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for image, time in zip(_clip(len(milliseconds)), milliseconds):
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "stated, milliseconds, believed",
    [
        (1000, [0, 90, 210, 300, 400], Fraction(10)),
        (FILM, [round(1001 * n / 24) for n in range(9)], FILM),
        (Fraction(60), [0, 17], Fraction(60)),
        (1000, [0, 3_600_000], Fraction(1, 3600)),
        (1000, [5], Fraction(1000)),
    ],
    ids=["varying", "rounded", "two frames", "an hour", "one frame"],
)
def test_the_stated_rate_holds_unless_the_frames_are_of_another(
    tmp_path, stated, milliseconds, believed
):
    path = _timed(tmp_path / "clip.mkv", stated, milliseconds)
    with av.open(path) as container:
        assert container.streams.video[0].average_rate == stated
    clip = read_video(path)
    assert clip.fps == believed
    write_video(tmp_path / "again.mp4", clip.frames, clip.fps)
    assert read_video(tmp_path / "again.mp4").fps == believed


def test_frames_at_uneven_times_are_written_at_their_own(tmp_path):
    milliseconds = [0, 40, 80, 120, 600, 640, 1000, 1040, 1080]
    clip = read_video(_timed(tmp_path / "screen.mkv", 25, milliseconds))
    assert [1000 * time for time in clip.times] == milliseconds
    write_video(tmp_path / "a.mp4", clip.frames, clip.fps, times=clip.times)
    again = read_video(tmp_path / "a.mp4")
    np.testing.assert_allclose([float(time) for time in again.times], np.array(milliseconds) / 1000)
    assert read_video(_timed(tmp_path / "film.mkv", 25, range(0, 360, 40))).times is None


def test_sound_lasts_as_long_as_uneven_frames(tmp_path):
    silent = _timed(tmp_path / "silent.mp4", 25, [0, 40, 80, 120, 1500, 1540])
    source = _add_sound(tmp_path / "sound.mkv", silent, "aac", seconds=3)
    clip = read_video(source)
    delivery.write_like(tmp_path / "out.mp4", clip.frames, clip)
    samples, rate, _ = _sound(tmp_path / "out.mp4")
    np.testing.assert_allclose(len(samples) / rate, 1.54 + float(1 / clip.fps), atol=0.1)


@pytest.mark.parametrize(
    "matrix, shown",
    [
        ((1, 0, 0, 1), lambda image: image),
        ((-1, 0, 0, 1), np.fliplr),
        ((1, 0, 0, -1), np.flipud),
        ((-1, 0, 0, -1), lambda image: np.rot90(image, 2)),
        ((0, 1, 1, 0), lambda image: image.swapaxes(0, 1)),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((0, -1, -1, 0), lambda image: np.rot90(image, 2).swapaxes(0, 1)),
    ],
    ids=["none", "across", "down", "half", "transposed", "right", "left", "transversed"],
)
def test_every_display_matrix_is_honoured(tmp_path, matrix, shown):
    path = _encode(tmp_path / "clip.mp4", _clip())
    plain, file = read_video(path).frames, bytearray(path.read_bytes())
    a, b, c, d = (65536 * part for part in matrix)
    struct.pack_into(">9i", file, file.index(b"tkhd") + 44, a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(file)
    expected = np.stack([shown(image) for image in plain])
    np.testing.assert_array_equal(read_video(path).frames, expected)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotation_metadata_is_honoured(tmp_path, rotation):
    frames = _clip()
    path = _encode(tmp_path / "turned.mp4", frames, rotation=rotation)
    shown = np.rot90(frames, rotation // 90, axes=(1, 2))
    clip = read_video(path)
    assert clip.frames.shape == shown.shape
    assert _psnr(clip.frames, shown) > 40


def test_a_quarter_turn_turns_the_pixels_shape_too(tmp_path):
    write_video(tmp_path / "wide.mp4", _clip(), FILM, pixel_aspect=Fraction(4, 3))
    with av.open(tmp_path / "wide.mp4") as source, av.open(tmp_path / "tall.mp4", "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(4, 3)
        stream.set_display_rotation(90)
        for frame in source.decode(video=0):
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert read_video(tmp_path / "tall.mp4").pixel_aspect == Fraction(3, 4)


@pytest.mark.parametrize("matrix", [1, 5, 2])
@pytest.mark.parametrize("full", [False, True])
def test_range_and_matrix_do_not_change_the_colours(tmp_path, full, matrix):
    frames = _clip()
    path = _encode(tmp_path / "c.mp4", frames, pix_fmt="yuv444p", full=full, matrix=matrix)
    error = read_video(path).frames.astype(int) - frames
    assert np.abs(error).max() <= 6 and np.abs(error.mean((0, 1, 2))).max() < 1
    flat = np.broadcast_to(np.array([230, 40, 90], np.uint8), (2, 64, 96, 3))
    path = _encode(tmp_path / "f.mp4", flat, full=full, matrix=matrix)
    assert np.abs(read_video(path).frames.astype(int) - flat).max() <= 2


def test_a_file_that_names_no_matrix_is_read_by_its_size(tmp_path):
    flat = np.broadcast_to(np.array([230, 40, 90], np.uint8), (1, 720, 1280, 3))
    tagged = read_video(_encode(tmp_path / "tagged.mkv", flat, matrix=1)).frames
    np.testing.assert_allclose(tagged.mean((0, 1, 2)), [230, 40, 90], atol=2)
    with av.open(tmp_path / "tagged.mkv") as source, av.open(tmp_path / "bare.mkv", "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "1"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for frame in source.decode(video=0):
            frame.colorspace = 2
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    with av.open(tmp_path / "bare.mkv") as container:
        assert next(container.decode(video=0)).colorspace == 2
    np.testing.assert_allclose(read_video(tmp_path / "bare.mkv").frames, tagged, atol=2)


@pytest.mark.parametrize("codec, container", [("aac", "mp4"), ("libmp3lame", "mkv")])
def test_sound_is_copied_and_cut_to_the_clip(tmp_path, codec, container):
    silent = _encode(tmp_path / "silent.mp4", _clip(25))
    source = _add_sound(tmp_path / f"sound.{container}", silent, codec, seconds=3)
    clip = read_video(source)
    write_video(tmp_path / "out.mp4", clip.frames, clip.fps, audio_from=clip.path)
    before, after = _sound_packets(source), _sound_packets(tmp_path / "out.mp4")
    assert len(after) < len(before) and after == before[: len(after)]
    samples, rate, _ = _sound(tmp_path / "out.mp4")
    assert rate == 16000 and 1 <= len(samples) / rate < 1 + 2 * 1152 / rate
    np.testing.assert_allclose(_lag(samples, _sound(source)[0]), 0, atol=2)
    assert read_video(tmp_path / "out.mp4").frames.shape == clip.frames.shape


def test_sound_that_mp4_cannot_hold_becomes_aac(tmp_path):
    silent = _encode(tmp_path / "silent.mp4", _clip(25))
    source = _add_sound(tmp_path / "sound.mov", silent, "adpcm_ima_qt", seconds=0.8)
    write_video(tmp_path / "out.mp4", _clip(25), Fraction(25), audio_from=source)
    samples, rate, codec = _sound(tmp_path / "out.mp4")
    assert codec == "aac" and rate == 16000 and 0.8 <= len(samples) / rate < 0.93
    np.testing.assert_allclose(_lag(samples, _sound(source)[0]), 0, atol=2)


def _old_sound(path, rate):
    """A second of 8 bits, as old cameras have it: its channel has no place."""
    with av.open(path, "w") as out:
        sound = out.add_stream("pcm_u8", rate=rate, layout="mono")
        wave = (128 + 90 * np.sin(np.arange(rate) * 2000 / rate)).astype(np.uint8)
        frame = av.AudioFrame.from_ndarray(wave[None], "u8", "mono")
        frame.sample_rate, frame.pts = rate, 0
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    return path


@pytest.mark.parametrize("rate, nearest", [(11024, 11025), (16000, 16000)])
def test_old_sound_becomes_aac_at_a_rate_that_it_has(tmp_path, rate, nearest):
    source = _old_sound(tmp_path / "old.avi", rate)
    write_video(tmp_path / "out.mp4", _clip(25), Fraction(25), audio_from=source)
    samples, found, codec = _sound(tmp_path / "out.mp4")
    assert codec == "aac" and found == nearest and 1 <= len(samples) / found < 1.2
    np.testing.assert_allclose(samples.std(), 0.5, atol=0.1)


def test_sound_of_an_unknown_codec_is_one_line(tmp_path):
    source = _old_sound(tmp_path / "old.avi", 16000)
    file = source.read_bytes()
    at = file.index(b"strf") + 8
    source.write_bytes(file[:at] + b"\x77\x66" + file[at + 2 :])
    with pytest.raises(InputError, match="old.avi: its audio cannot be read .unknown codec"):
        write_video(tmp_path / "out.mp4", _clip(), FILM, audio_from=source)
    assert list(tmp_path.iterdir()) == [source]


def test_sound_keeps_its_place_when_the_picture_starts_later(tmp_path):
    silent = _encode(tmp_path / "silent.mp4", _clip(25))
    source = _add_sound(tmp_path / "sound.mkv", silent, "aac", seconds=3, picture_delay=0.5)
    write_video(tmp_path / "out.mp4", _clip(25), Fraction(25), audio_from=source)
    samples, heard = _sound(tmp_path / "out.mp4")[0], _sound(source)[0]
    np.testing.assert_allclose(_lag(samples, heard[8000:]), 0, atol=16)  # 1 ms


def test_pcm_becomes_aac_which_players_of_mp4_play(tmp_path):
    silent = _encode(tmp_path / "silent.mp4", _clip(25))
    source = _add_sound(tmp_path / "sound.mov", silent, "pcm_s16le", seconds=0.8)
    write_video(tmp_path / "out.mp4", _clip(25), Fraction(25), audio_from=source)
    samples, rate, codec = _sound(tmp_path / "out.mp4")
    assert codec == "aac" and rate == 16000 and 0.8 <= len(samples) / rate < 0.93
    np.testing.assert_allclose(_lag(samples, _sound(source)[0]), 0, atol=2)


def test_a_source_without_sound_is_no_error(tmp_path):
    silent = _encode(tmp_path / "silent.mp4", _clip())
    write_video(tmp_path / "out.mp4", _clip(), FILM, audio_from=silent)
    write_video(tmp_path / "out.mp4", _clip(), FILM, audio_from=tmp_path)
    with av.open(tmp_path / "out.mp4") as container:
        assert not container.streams.audio


def test_a_folder_of_images_is_read_in_natural_order(tmp_path):
    frames = _clip(12)
    for number, image in enumerate(frames):
        Image.fromarray(image).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "notes.txt").write_text("not an image")
    clip = read_video(tmp_path, fps=FILM)
    np.testing.assert_array_equal(clip.frames, frames)
    assert clip.fps == FILM
    assert len(read_video(tmp_path, max_frames=5).frames) == 5


@pytest.mark.parametrize("suffix", ["tif", "TIFF", "webp", "bmp"])
def test_a_folder_may_hold_images_of_other_formats(tmp_path, suffix):
    for number, image in enumerate(_clip(3)):
        Image.fromarray(image).save(tmp_path / f"{number}.{suffix}", lossless=True)
    np.testing.assert_array_equal(read_video(tmp_path).frames, _clip(3))


def test_a_file_of_several_images_is_not_taken_for_one(tmp_path):
    first, *others = (Image.fromarray(image) for image in _clip(3))
    first.save(tmp_path / "all.tif", save_all=True, append_images=others)
    with pytest.raises(InputError, match="all.tif: holds several images; give a folder"):
        read_image(tmp_path / "all.tif", "L")
    first.save(tmp_path / "phone.jpg", format="MPO", save_all=True, append_images=others)
    assert read_image(tmp_path / "phone.jpg", "L").shape == (64, 96)


def test_hidden_files_are_no_frames_and_no_clips(tmp_path):
    (tmp_path / "clips" / "walk").mkdir(parents=True)
    for name in ("clips/.DS_Store.png", "clips/._run.mp4", "clips/walk/._0.png"):
        (tmp_path / name).write_bytes(b"what macOS leaves beside a file")
    Image.fromarray(_clip()[0]).save(tmp_path / "clips" / "walk" / "0.png")
    assert find_videos(tmp_path / "clips") == [tmp_path / "clips" / "walk"]
    assert len(read_video(tmp_path / "clips" / "walk").frames) == 1


def test_a_result_of_ours_is_no_clip_for_its_pictures(tmp_path):
    with output_folder(tmp_path / "out") as folder:
        Image.fromarray(_clip()[0]).save(folder / "summary.png")
        write_result(folder, {})
    write_video(tmp_path / "walk.mp4", _clip(), FILM)
    assert find_videos(tmp_path) == [tmp_path / "walk.mp4"]
    expected = ": is a result of ic-jax, not a clip; give a video in it"
    assert _refusal(tmp_path / "out") == expected


def test_an_animated_gif_is_a_clip(tmp_path):
    images = [Image.fromarray(image) for image in _clip(5)]
    images[0].save(tmp_path / "c.gif", save_all=True, append_images=images[1:], duration=40)
    clip = read_video(tmp_path / "c.gif")
    assert clip.frames.shape == (5, 64, 96, 3) and clip.fps == 25


def test_floats_and_bytes_are_one_to_one():
    every = np.arange(256, dtype=np.uint8)
    assert to_float(every).min() == -1 and to_float(every).max() == 1
    np.testing.assert_array_equal(to_uint8(to_float(every)), every)
    np.testing.assert_array_equal(to_uint8(np.array([-3.0, 3.0], np.float32)), [0, 255])


def _refusal(path):
    """The one line that reading this path is refused with."""
    with pytest.raises(InputError) as caught:
        read_video(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message
    return message.removeprefix(str(path))


def test_a_missing_file_is_refused(tmp_path):
    expected = ": no such file or folder; check the path of the video"
    assert _refusal(tmp_path / "none.mp4") == expected


@pytest.mark.parametrize("content", [b"", b"this is a letter, not a video\n" * 40])
def test_what_is_no_video_is_refused(tmp_path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    assert "cannot be decoded as a video" in _refusal(tmp_path / "clip.mp4")


@pytest.mark.parametrize("kept", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path, kept):
    write_video(tmp_path / "clip.mp4", _clip(), FILM)
    content = (tmp_path / "clip.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: int(kept * len(content))])
    message = _refusal(tmp_path / "cut.mp4")
    # Cut before its first whole frame ends, a sound file holds none.
    assert any(s in message for s in ("cut off or damaged", "cannot be decoded", "holds no frames"))


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_are_refused_with_what_to_give(tmp_path, suffix):
    path = tmp_path / f"mask.{suffix}"
    path.write_bytes(b"an array")
    assert _refusal(path) == ": arrays are not read here; give a video or a folder of images"


def test_sound_alone_is_refused(tmp_path):
    with av.open(tmp_path / "song.mp4", "w") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode())
    assert _refusal(tmp_path / "song.mp4") == ": has no video stream; give a video file"


def test_images_of_16_bits_keep_their_greys(tmp_path):
    grey = np.arange(0, 65536, 256, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(grey + 255).save(tmp_path / "0.png")
    (frame,) = read_video(tmp_path).frames
    np.testing.assert_array_equal(frame[..., 0], np.arange(256).reshape(16, 16))


def test_transparent_palettes_and_large_images_are_read_without_a_warning(tmp_path, monkeypatch):
    grey = np.arange(16 * 16, dtype=np.uint8).reshape(16, 16)
    opacity = bytes([0, 128] + [255] * 254)
    Image.fromarray(grey).convert("P").save(tmp_path / "0.png", transparency=opacity)
    np.testing.assert_array_equal(read_image(tmp_path / "0.png", "L"), grey)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16 * 16 - 1)
    np.testing.assert_array_equal(read_video(tmp_path).frames[0], np.stack([grey] * 3, -1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 8 * 16 - 1)  # Pillow's own limit is twice that
    assert "0.png: not a readable image" in _refusal(tmp_path)


def test_folders_without_frames_or_with_bad_ones_are_refused(tmp_path):
    expected = ": holds no frames; give a video file or a folder of images"
    assert _refusal(tmp_path) == expected
    Image.fromarray(_clip()[0]).save(tmp_path / "0.png")
    Image.fromarray(_clip()[0, :50]).save(tmp_path / "1.png")
    assert "frame 1 is 96x50 but the first is 96x64" in _refusal(tmp_path)
    (tmp_path / "1.png").write_bytes(b"nothing")
    with pytest.raises(InputError, match="1.png: not a readable image; remove or replace it"):
        read_video(tmp_path)
