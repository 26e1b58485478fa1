"""Wide and high-dynamic-range colours become those of BT.709."""

from fractions import Fraction

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange, Colorspace, ColorTrc

from ic_jax.video import read_video

# Linear RGB to XYZ, of BT.709 and of BT.2020, by their primaries and D65.
BT709 = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
BT2020 = [[0.6370, 0.1446, 0.1689], [0.2627, 0.6780, 0.0593], [0, 0.0281, 1.0610]]
PATCHES = np.array([[0.02] * 3, [0.18] * 3, [0.5] * 3, [1.0] * 3, [0.8, 0.2, 0.1], [0.2, 0.2, 0.6]])


def gamma(light):
    """BT.1886, as a display of SDR undoes it."""
    return light ** (1 / 2.4)


def hlg(light):
    """BT.2100, of a display of 1000 cd/m2 whose white is at 203."""
    shown = light * 0.203
    scene = shown * (shown @ BT2020[1])[:, None] ** (1 / 1.2 - 1)
    upper = 0.17883277 * np.log(np.maximum(12 * scene - 0.28466892, 1e-9)) + 0.55991073
    return np.where(scene <= 1 / 12, np.sqrt(3 * scene), upper)


def _file(path, signal, transfer):
    """Ten bits, tagged with this transfer and with the primaries and matrix of BT.2020."""
    image = np.repeat(np.repeat(signal[None], 32, 0), 32, 1)
    with av.open(path, "w") as out:
        stream = out.add_stream("libx264", rate=25, options={"qp": "0"})
        stream.height, stream.width, stream.pix_fmt = *image.shape[:2], "yuv420p10le"
        context = stream.codec_context
        context.color_range, context.colorspace = ColorRange.MPEG, Colorspace.BT2020
        context.color_trc, context.color_primaries = transfer, 9
        pixels = np.round(65535 * image.clip(0, 1)).astype(np.uint16)
        for number in range(2):
            frame = av.VideoFrame.from_ndarray(pixels, "rgb48le").reformat(
                format="yuv420p10le", dst_colorspace=Colorspace.BT2020,
                src_color_range=ColorRange.JPEG, dst_color_range=ColorRange.MPEG,
            )  # fmt: skip
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    "transfer, curve",
    [(ColorTrc.BT2020_10, gamma), (ColorTrc.ARIB_STD_B67, hlg)],
    ids=["BT.2020", "HLG"],
)
def test_wide_and_hdr_colours_become_those_of_bt709(tmp_path, transfer, curve):
    light = PATCHES @ np.transpose(np.linalg.inv(BT2020) @ BT709)
    frames = read_video(_file(tmp_path / "clip.mkv", curve(light), transfer)).frames
    np.testing.assert_array_equal(frames[0], frames[1])
    seen = frames[0, 16, 16::32].astype(int)
    if curve is gamma:
        assert np.abs(seen - 255 * gamma(PATCHES)).max() <= 8
        return
    greys, (red, blue) = seen[:4], seen[4:]
    # Neutral stays neutral; white leaves room for highlights, as BT.2390 has it.
    assert np.ptp(greys, axis=1).max() <= 2 and (np.diff(greys[:, 0]) > 20).all()
    assert 150 < greys[3, 0] < 220 and 40 < greys[1, 0] < 130
    assert red[0] > 1.6 * red[1] > 1.6 * red[2] and blue[2] > 1.3 * blue[:2].max()
    # Read as SDR, red is half as saturated.
    assert red[2] < 0.5 * red[0]
