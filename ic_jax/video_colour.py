"""Pictures of a video's colours as full-range RGB of BT.709, and back."""

import av
import numpy as np
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from jaxtyping import UInt8

# Chroma is interpolated at full width and rounded, not truncated: about 2 dB on sharp colours.
_SCALER = (
    Interpolation.BICUBIC
    | Interpolation.ACCURATE_RND
    | Interpolation.FULL_CHR_H_INT
    | Interpolation.FULL_CHR_H_INP
)

# libswscale's own tone mapping; its reformatter would clip highlights, and knows no intents.
_TONE_MAPPED = (
    f"flags={_SCALER.value}:out_primaries=bt709:out_transfer=bt709:out_color_matrix=bt709"
    ":out_range=pc:intent=perceptual"
)
_HDR = {ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67}  # PQ, HLG
_UNSPECIFIED = 2  # ITU-T H.273, of matrices and primaries

# ITU-T H.273 matrix coefficients as libswscale groups them.
_MATRIX = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}


class ToRGB:
    """Makes the frames of one stream RGB. HDR (PQ, HLG) and BT.2020 become BT.709's colours."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
        if frame.color_trc not in _HDR and frame.color_primaries != ColorPrimaries.BT2020:
            return _rgb(frame)
        # Its table of colours takes seconds to make, so that one has to serve all frames.
        self._graph = self._graph or _tone_mapping(frame)
        if frame.color_primaries == _UNSPECIFIED:
            frame.color_primaries = ColorPrimaries.BT2020
        if frame.colorspace == _UNSPECIFIED and not frame.format.is_rgb:
            frame.colorspace = Colorspace.BT2020
        self._graph.vpush(frame)
        return self._graph.vpull().to_ndarray()


def from_rgb(image: UInt8[np.ndarray, "h w 3"], pix_fmt: str) -> av.VideoFrame:
    """A frame of BT.709 in limited range."""
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), "rgb24").reformat(
        format=pix_fmt,
        interpolation=_SCALER,
        src_colorspace=Colorspace.ITU709,
        dst_colorspace=Colorspace.ITU709,
        src_color_range=ColorRange.JPEG,
        dst_color_range=ColorRange.MPEG,
    )


def _tone_mapping(frame: av.VideoFrame) -> Graph:
    graph = Graph()
    size = {"width": frame.width, "height": frame.height, "format": frame.format}
    source = graph.add_buffer(**size, time_base=frame.time_base)
    scale, rgb = graph.add("scale", _TONE_MAPPED), graph.add("format", "rgb24")
    graph.link_nodes(source, scale, rgb, graph.add("buffersink")).configure()
    return graph


def _rgb(frame: av.VideoFrame) -> UInt8[np.ndarray, "h w 3"]:
    """By libswscale, told outright what it reads, as its own guesses vary."""
    full = frame.color_range == ColorRange.JPEG or frame.format.name.startswith("yuvj")
    hd = frame.width >= 1280 or frame.height > 576
    matrix = _MATRIX.get(frame.colorspace, Colorspace.ITU709 if hd else Colorspace.ITU601)
    return frame.to_ndarray(
        format="rgb24",
        interpolation=_SCALER,
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=ColorRange.JPEG if full or frame.format.is_rgb else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
    )
