"""What the tool sees in a video: the facts that decide how it is read, interpolated and written again.

Each colour fact says whether the file states it or whether it had to be assumed; assuming wrongly is
the usual reason for colours that look off.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from fractions import Fraction
from itertools import islice, pairwise
from pathlib import Path

import av
from papershelf.errors import UserError

from rife import side_data
from rife.color import FULL, UNSPECIFIED, ColorSpec
from rife.encoder import EncodeOptions, choose_encoder
from rife.job import IMAGE_RATE, USUAL_SUFFIX, rate_name
from rife.muxer import container_of
from rife.reader import Decoded, VideoInfo, VideoReader
from rife.sequence import ImageSource
from rife.video import VIDEO_SUFFIXES, usual_rate

LOOKED_AT = 3000  # frames whose time stamps are read to tell constant from variable rates
UNTAGGED = 2
PRIMARIES = {1: "bt709", 4: "bt470m", 5: "bt470bg", 6: "smpte170m", 7: "smpte240m", 9: "bt2020", 11: "dci-p3"}
PRIMARIES |= {12: "display-p3"}
TRANSFERS = {1: "bt709", 4: "gamma22", 5: "gamma28", 6: "smpte170m", 8: "linear", 13: "srgb", 14: "bt2020-10"}
TRANSFERS |= {15: "bt2020-12", 16: "pq", 18: "hlg"}


def facts_of(path: Path, *, whole: bool = False) -> dict:
    """All facts about a video or a folder of images, in plain numbers and strings.

    Args:
        path: the file or folder.
        whole: read the time stamps of all frames, and not only of the first :data:`LOOKED_AT`.

    Raises:
        UserError: it cannot be read as a video.
    """
    if str(path) == "-":
        raise UserError("rife probe reads a file twice and cannot do so from standard input; name a file")
    if path.is_dir():
        source = ImageSource(path, IMAGE_RATE)
        return {"path": str(path), "kind": "images", "files": [f.name for f in (source.files[0], source.files[-1])]} | {
            key: _plain(value) for key, value in source.described().items() if key not in ("kind", "duration", "fps")
        }
    with VideoReader(path) as reader:
        info = reader.info
        frame = next(event.frame for event in reader.events() if isinstance(event, Decoded))
        return {
            "path": str(path),
            "kind": "video",
            "container": info.container,
            "codec": info.codec,
            "bit_rate": info.bit_rate,
            "width": info.width,
            "height": info.height,
            "pixel_aspect": _plain(info.sample_aspect_ratio),
            "rotation": info.rotation,
            "interlaced": info.interlaced,
            "color": _color(info, side_data.chroma_siting(frame)),
            "hdr": _plain(asdict(info.hdr)) if info.hdr else None,
            "time": _time(info) | _intervals(path, reader.video.index, None if whole else LOOKED_AT),
            "copied_streams": [_stream(stream) for stream in reader.copied_streams],
            "chapters": [_chapter(chapter) for chapter in reader.container.chapters()],
            "metadata": dict(reader.container.metadata),
            "output": _output(path, info),
            "problems": dict(reader.problems),
        }


def _color(info: VideoInfo, siting: str | None) -> dict:
    spec, tags = info.color, info.color.tags
    # An assumed matrix is the one that goes by the picture's height.
    guesses = {ColorSpec.from_tags(spec.pix_fmt, tags, height).matrix for height in (480, 1080)}
    chroma = any(spec.subsampling)
    return {
        "pix_fmt": spec.pix_fmt,
        "bits": spec.bits,
        "alpha": spec.alpha,
        "matrix": {"value": spec.matrix, "assumed": len(guesses) > 1, "tag": _tag(tags.matrix)},
        "range": {"value": "full" if spec.full_range else "limited", "assumed": tags.range == UNSPECIFIED}
        | {"tag": {UNSPECIFIED: None, FULL: "full"}.get(tags.range, "limited")},
        "siting": {"value": spec.siting, "assumed": siting is None, "tag": siting} if chroma else None,
        "primaries": PRIMARIES.get(tags.primaries, _tag(tags.primaries)),
        "transfer": TRANSFERS.get(tags.transfer, _tag(tags.transfer)),
    }


def _tag(number: int) -> int | None:
    """H.273's number, or None for unspecified."""
    return None if number == UNTAGGED else number


def _time(info: VideoInfo) -> dict:
    return {
        "start": _plain(info.start),
        "duration": _plain(info.duration),
        "frames": info.frames,
        "time_base": _plain(info.time_base),
        "nominal_rate": _plain(info.nominal_rate),
        "average_rate": _plain(info.average_rate),
        "rate_that_2x_doubles": _plain(usual_rate(info.nominal_rate, info.average_rate)),
    }


def _intervals(path: Path, index: int, limit: int | None) -> dict:
    """Whether frames follow at a constant rate, by the time stamps in the file (nothing is decoded)."""
    with av.open(str(path.absolute())) as container:
        stream = container.streams[index]
        tick, rate = stream.time_base, stream.base_rate or stream.average_rate
        packets = (p for p in container.demux(stream) if p.size)
        stamped = ((p.pts if p.pts is not None else p.dts) for p in islice(packets, limit))
        stamps = sorted(stamp for stamp in stamped if stamp is not None)
    # B-frames come out of order: the last few of a part may have predecessors that were not read.
    if limit is not None and len(stamps) == limit:
        stamps = stamps[: -len(stamps) // 16]
    gaps = Counter(after - before for before, after in pairwise(stamps) if after > before)
    if not gaps:
        return {"constant_rate": None, "frames_looked_at": len(stamps), "shortest_gap": None, "longest_gap": None}
    rounded = rate and (1 / (rate * tick)).denominator > 1  # no tick of this clock hits the rate's frames
    constant = max(gaps) - min(gaps) <= (1 if rounded else 0)
    looked = {"constant_rate": constant, "frames_looked_at": len(stamps)}
    return looked | {"shortest_gap": _plain(min(gaps) * tick), "longest_gap": _plain(max(gaps) * tick)}


def _stream(stream: av.stream.Stream) -> dict:
    codec = stream.codec_context
    row = {"index": stream.index, "type": stream.type, "codec": codec.codec.canonical_name if codec else None}
    if stream.type == "audio" and codec:
        row |= {"rate": codec.sample_rate, "layout": codec.layout.name}
    return row | {"language": stream.language, "title": stream.metadata.get("title")}


def _chapter(chapter: dict) -> dict:
    start, end = (float(chapter[key] * chapter["time_base"]) for key in ("start", "end"))
    return {"start": start, "end": end, "title": chapter["metadata"].get("title")}


def _output(path: Path, info: VideoInfo) -> dict:
    """How ``rife interp`` would store this video if nothing else is asked for."""
    suffix = path.suffix.lower() if path.suffix.lower() in VIDEO_SUFFIXES else USUAL_SUFFIX
    try:
        choice = choose_encoder(EncodeOptions(), info, container_of(f"out{suffix}"))
    except UserError as error:
        return {"suffix": suffix, "refused": str(error)}
    return {"suffix": suffix, "codec": choice.codec, "encoder": choice.encoder, "pix_fmt": choice.spec.pix_fmt} | {
        "notes": list(choice.notes)
    }


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Fraction) else value


def described(facts: dict) -> str:
    """The facts in a few lines for people."""
    if facts["kind"] == "images":
        size = f"{facts['width']}x{facts['height']}, {facts['channels']} channels of {facts['depth']}"
        return f"{facts['path']}: {facts['frames']} images, {' to '.join(facts['files'])}, {size}"
    time, color = facts["time"], facts["color"]
    picture = [facts["codec"], f"{facts['width']}x{facts['height']}", color["pix_fmt"], f"{color['bits']} bit"]
    picture += ["alpha"] * color["alpha"] + ["interlaced"] * facts["interlaced"]
    if facts["pixel_aspect"] not in (None, "1"):
        picture.append(f"pixel aspect {facts['pixel_aspect']}")
    if facts["rotation"]:
        picture.append(f"shown turned by {facts['rotation']} degrees")
    rows = [("video", ", ".join(picture)), ("time", _time_line(time)), ("rate", _rate_line(time))]
    said = [f"matrix {_said(color['matrix'])}", f"{color['range']['value']} range{_assumed(color['range'])}"]
    said += [f"chroma {_said(color['siting'])}"] if color["siting"] else []
    said += [f"{key} {color[key] or 'not stated'}" for key in ("primaries", "transfer")]
    rows.append(("colour", ", ".join(said)))
    rows += [("HDR", _hdr_line(facts["hdr"]))] if facts["hdr"] else []
    rows += [("copied", _stream_line(row)) for row in facts["copied_streams"]] or [("copied", "no other streams")]
    rows += [("chapter", f"{c['start']:g} to {c['end']:g} s {c['title'] or ''}") for c in facts["chapters"]]
    out = facts["output"]
    rows.append(("output", out.get("refused") or f"{out['suffix']}, {out['encoder']}, {out['pix_fmt']}"))
    rows += [("note", note) for note in out.get("notes", [])]
    rows += [("problem", f"{count} {what}") for what, count in facts["problems"].items()]
    lines = [f"{name:8} {text}".rstrip() for name, text in rows]
    return "\n".join([f"{facts['path']}: {facts['container']}", *lines])


def _time_line(time: dict) -> str:
    duration = f"{float(Fraction(time['duration'])):.3f} s" if time["duration"] else "unknown duration"
    start = float(Fraction(time["start"]))
    return f"{duration} from {start:g} s, {time['frames'] or 'unknown'} frames, ticks of {time['time_base']} s"


def _rate_line(time: dict) -> str:
    nominal, average = (rate_name(Fraction(time[k]) if time[k] else None) for k in ("nominal_rate", "average_rate"))
    kind = {True: "constant", False: "variable", None: "unknown"}[time["constant_rate"]]
    line = f"{nominal} fps nominal, {average} average; {kind} by the time stamps of {time['frames_looked_at']} frames"
    if time["constant_rate"] is False:
        gaps = [f"{1000 * float(Fraction(time[k])):.2f}" for k in ("shortest_gap", "longest_gap")]
        line += f", {' to '.join(gaps)} ms apart"
    return line


def _said(fact: dict) -> str:
    return f"{fact['value']}{_assumed(fact)}"


def _assumed(fact: dict) -> str:
    return " (assumed)" if fact["assumed"] else ""


def _hdr_line(hdr: dict) -> str:
    parts = []
    if hdr["mastering"]:
        low, high = (float(Fraction(x)) for x in hdr["mastering"]["luminance"])
        parts.append(f"mastered for {low:g} to {high:g} cd/m2")
    if hdr["light"]:
        parts.append(f"MaxCLL {hdr['light']['max_cll']}, MaxFALL {hdr['light']['max_fall']}")
    return ", ".join(parts)


def _stream_line(row: dict) -> str:
    words = [row["codec"] or "codec unknown", row.get("layout"), row["language"], row["title"]]
    return f"{row['type']} {row['index']}: {', '.join(str(word) for word in words if word)}"
