"""Text subtitles in the form that another container holds: SubRip, WebVTT and MP4's timed text.

All three are lines of text with times; they differ in mark-up and packing. What has no counterpart
(colours and fonts everywhere, all mark-up in MP4) is left out, and the words stay.
"""

from __future__ import annotations

import html
import re
import struct

import av

_HELD = {"mp4": "mov_text", "mov": "mov_text", "matroska": "subrip", "webm": "webvtt"}
_ANY_TAG = re.compile(r"</?[^<>]*>")
_FONT_TAG = re.compile(r"</?(?:font|c|v|lang|ruby|rt)\b[^<>]*>", re.IGNORECASE)
_BARE_AMPERSAND = re.compile(r"&(?!#?\w+;)")
_PLACING = re.compile(r"\{\\[^{}]*\}")  # {\an8}, borrowed from SSA
# FFmpeg's encoder of timed text takes the look of it from here and makes the header that MP4 wants.
_LOOK = b"""[V4+ Styles]
Format: Name, Fontname, Fontsize, PrimaryColour, Bold, Italic, Underline, Alignment
Style: Default,Arial,16,&Hffffff,0,0,0,2
"""


def form_for(container: str, codec: str) -> str | None:
    """The codec that a text subtitle of ``codec`` becomes in a container; None where it is no text."""
    return _HELD.get(container) if codec in _HELD.values() else None


def add_text_stream(container: av.container.OutputContainer, codec: str, source: av.stream.Stream) -> av.stream.Stream:
    """A stream for converted packets, in the source's ticks."""
    if codec == "mov_text":
        stream = container.add_stream(codec)
        stream.codec_context.subtitle_header = _LOOK
        stream.time_base = source.time_base
        return stream
    return container.add_mux_stream(codec, time_base=source.time_base)


def converted(data: bytes, before: str, after: str) -> bytes | None:
    """A packet's payload in another form; None where it only marks the absence of text."""
    if before == "mov_text":
        (length,) = struct.unpack_from(">H", data)
        text = html.escape(data[2 : 2 + length].decode("utf-8", "replace"), quote=False)
    else:
        text = data.decode("utf-8", "replace")
    text = _PLACING.sub("", text).replace("\r\n", "\n").strip("\n\0")
    if not text:
        return None
    if after == "mov_text":
        plain = html.unescape(_ANY_TAG.sub("", text)).encode()[:0xFFFF]
        return struct.pack(">H", len(plain)) + plain
    if after == "subrip":
        return html.unescape(_FONT_TAG.sub("", text)).encode()
    return _BARE_AMPERSAND.sub("&amp;", _FONT_TAG.sub("", text)).encode()
