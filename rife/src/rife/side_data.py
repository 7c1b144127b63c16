"""What a video says beside its pictures: HDR10 static metadata, display matrix, chroma siting.

HDR10: SMPTE ST 2086 (mastering display) and CTA-861.3 (content light level), read from FFmpeg's frame
side data (``AVMasteringDisplayMetadata``, ``AVContentLightMetadata``) and written as the strings that
encoders take.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import av
from av.sidedata.sidedata import Type

_MASTERING = struct.Struct("=20i2i")  # ten rationals, then has_primaries and has_luminance


@dataclass(frozen=True)
class MasteringDisplay:
    """SMPTE ST 2086: CIE xy of red, green, blue and white; luminance of black and white in cd/m2."""

    red: tuple[Fraction, Fraction]
    green: tuple[Fraction, Fraction]
    blue: tuple[Fraction, Fraction]
    white: tuple[Fraction, Fraction]
    luminance: tuple[Fraction, Fraction]

    @classmethod
    def parse(cls, data: bytes) -> MasteringDisplay | None:
        """From FFmpeg's struct; None where it lacks primaries or luminance, since encoders want both."""
        *numbers, has_primaries, has_luminance = _MASTERING.unpack(data[: _MASTERING.size])
        pairs = list(zip(numbers[::2], numbers[1::2], strict=True))
        if not (has_primaries and has_luminance) or any(den == 0 for _, den in pairs):
            return None
        r_x, r_y, g_x, g_y, b_x, b_y, w_x, w_y, low, high = (Fraction(num, den) for num, den in pairs)
        return cls((r_x, r_y), (g_x, g_y), (b_x, b_y), (w_x, w_y), (low, high))

    def text(self, style: Literal["x265", "svt"]) -> str:
        """``G(x,y)B(x,y)R(x,y)WP(x,y)L(max,min)``.

        x264 and x265 count in steps of 0.00002 and of 0.0001 cd/m2, SVT-AV1 takes decimals.
        """

        def pair(values: tuple[Fraction, Fraction], step: int) -> str:
            if style == "x265":
                return "({},{})".format(*(round(v * step) for v in values))
            return "({:.5f},{:.5f})".format(*(float(v) for v in values))

        points = zip(("G", "B", "R", "WP"), (self.green, self.blue, self.red, self.white), strict=True)
        return "".join(name + pair(xy, 50000) for name, xy in points) + "L" + pair(self.luminance[::-1], 10000)


@dataclass(frozen=True)
class ContentLight:
    """CTA-861.3: brightest pixel and brightest frame average, cd/m2."""

    max_cll: int
    max_fall: int

    @classmethod
    def parse(cls, data: bytes) -> ContentLight:
        return cls(*struct.unpack("=2I", data[:8]))

    def text(self) -> str:
        return f"{self.max_cll},{self.max_fall}"


@dataclass(frozen=True)
class Hdr10:
    """Static HDR metadata of a stream."""

    mastering: MasteringDisplay | None
    light: ContentLight | None


def hdr10(frame: av.VideoFrame) -> Hdr10 | None:
    """The frame's static HDR metadata, or None."""
    mastering, light = (_payload(frame, t) for t in (Type.MASTERING_DISPLAY_METADATA, Type.CONTENT_LIGHT_LEVEL))
    found = Hdr10(mastering and MasteringDisplay.parse(mastering), light and ContentLight.parse(light))
    return found if found.mastering or found.light else None


def display_matrix(frame: av.VideoFrame) -> tuple[int, ...] | None:
    """The nine numbers of the display matrix (rotation and flips, 16.16 fixed point), or None."""
    data = _payload(frame, Type.DISPLAYMATRIX)
    return struct.unpack("=9i", data[:36]) if data else None


def chroma_siting(frame: av.VideoFrame) -> str | None:
    """Where the frame says its chroma samples lie (``left``, ``topleft``, ...), or None.

    PyAV has no accessor for ``AVFrame.chroma_location``; FFmpeg's showinfo filter prints it.
    """
    graph = av.filter.Graph()
    source = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1, 1000)
    )
    showinfo = graph.add("showinfo", "checksum=0")
    source.link_to(showinfo)
    showinfo.link_to(graph.add("buffersink"))
    graph.configure()
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        with av.logging.Capture() as lines:
            graph.push(frame)
            graph.pull()
    finally:
        av.logging.set_level(level)
    found = re.search(r"\bcl:(\w+)", "".join(message for _, _, message in lines))
    return found[1] if found and found[1] not in ("unspecified", "unknown") else None


def _payload(frame: av.VideoFrame, kind: Type) -> bytes | None:
    return next((bytes(item) for item in frame.side_data if item.type == kind), None)
