"""Small videos for the tests, made on the spot."""

from __future__ import annotations

import hashlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from rife.encoder import EncodeOptions, VideoEncoder, choose_encoder
from rife.muxer import Muxer, container_of
from rife.reader import Copied, Decoded, VideoReader

# Elements a pixel in the one plane of packed formats, and the unused low bits of P010 and its kin.
_PACKED = {"rgb24": 3, "bgr24": 3, "rgb48le": 3, "rgba": 4, "bgra": 4, "argb": 4, "rgba64le": 4}
_PACKED |= {"ya8": 2, "ya16le": 2, "yuyv422": 2, "uyvy422": 2, "y210le": 2, "y212le": 2}
_UNUSED = {"p010le": 6, "p012le": 4, "p210le": 6, "y210le": 6, "y212le": 4}


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """Each plane's elements as an array over the frame's memory, padding left out."""
    name = frame.format.name
    dtype = np.uint8 if max(c.bits for c in frame.format.components) <= 8 else np.uint16
    out = []
    for k, plane in enumerate(frame.planes):
        per_pixel = 2 if k == 1 and name.startswith(("nv", "p0", "p2")) else _PACKED.get(name, 1)
        out.append(np.frombuffer(plane, dtype).reshape(plane.height, -1)[:, : plane.width * per_pixel])
    return out


def random_frame(pix_fmt: str, width: int, height: int, seed: int = 0, **tags: int) -> av.VideoFrame:
    """A frame of random codes over the whole range of the storage."""
    rng = np.random.default_rng(seed)
    frame = av.VideoFrame(width, height, pix_fmt)
    for name, value in tags.items():
        setattr(frame, name, value)
    bits = max(c.bits for c in frame.format.components)
    for plane in planes(frame):
        plane[...] = rng.integers(0, 2**bits, plane.shape) << _UNUSED.get(pix_fmt, 0)
    return frame


def smooth_frame(pix_fmt: str, width: int, height: int, shift: int) -> av.VideoFrame:
    """A soft pattern that moves with ``shift``: codecs have something to predict."""
    frame = av.VideoFrame(width, height, pix_fmt)
    bits = max(c.bits for c in frame.format.components)
    for plane in planes(frame):
        y, x = np.mgrid[: plane.shape[0], : plane.shape[1]]
        plane[...] = np.rint((0.5 + 0.35 * np.sin((x + 2 * shift) / 5) * np.cos(y / 7)) * (2**bits - 1))
    return frame


def md5(frame: av.VideoFrame) -> str:
    digest = hashlib.md5()
    for plane in planes(frame):
        digest.update(np.ascontiguousarray(plane).tobytes())
    return digest.hexdigest()


def make_clip(
    path: Path,
    frames: int | list[av.VideoFrame] = 6,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = (64, 48),
    rate: Fraction = Fraction(25),
    pts: list[int] | None = None,
    options: dict[str, str] | None = None,
    tags: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    rotation: int | None = None,
    audio: str | None = None,
    subtitles: tuple[str, ...] = (),
    words: bytes = b"Bonjour",
    font: bytes | None = None,
    chapters: bool = False,
    metadata: dict[str, str] | None = None,
    audio_start: int = 0,
    muxing: dict[str, str] | None = None,
) -> Path:
    """Write a clip; ``pts`` are in ticks of ``1 / (10 * rate)``, as are those made up without it."""
    tick = 1 / (10 * rate)
    with av.open(str(path), "w", container_options=muxing) as out:
        stream = out.add_stream(codec, rate=rate, width=size[0], height=size[1], pix_fmt=pix_fmt, time_base=tick)
        stream.options.update(options or {})
        if codec == "libx265":
            stream.options["x265-params"] = "log-level=error"
        for name, value in (tags or {}).items():
            setattr(stream.codec_context, name, value)
        if aspect:
            stream.codec_context.sample_aspect_ratio = aspect
        if rotation is not None:
            stream.set_display_rotation(rotation)
        sound = None
        if audio:
            sound = out.add_stream(audio, rate=48000)
            sound.metadata.update(language="deu", title="Ton")
        texts = [out.add_mux_stream(name, time_base=Fraction(1, 1000)) for name in subtitles]
        for text in texts:
            text.metadata["language"] = "fra"
        if font:
            out.add_attachment("letters.ttf", "font/ttf", font)
        if chapters:
            names = [("Start", 0, 80), ("Ende", 80, 240)]
            made = [{"id": k, "start": a, "end": b, "time_base": Fraction(1, 1000), "metadata": {"title": title}}
                    for k, (title, a, b) in enumerate(names)]  # fmt: skip
            out.set_chapters(made)
        out.metadata.update(metadata or {})
        pictures = frames if isinstance(frames, list) else [smooth_frame(pix_fmt, *size, k) for k in range(frames)]
        for k, frame in enumerate(pictures):
            frame.pts, frame.time_base, frame.duration = (pts[k] if pts else 10 * k), tick, 10
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if sound:
            for k in range(8):
                wave = np.sin(np.arange(1024) / 9 + k)[None].repeat(2, 0).astype(np.float32) / 4
                if sound.format.name == "s16":
                    wave = (wave.T * 32767).astype(np.int16).reshape(1, -1)
                piece = av.AudioFrame.from_ndarray(wave, format=sound.format.name, layout="stereo")
                piece.pts, piece.sample_rate, piece.time_base = audio_start + 1024 * k, 48000, Fraction(1, 48000)
                out.mux(sound.encode(piece))
            out.mux(sound.encode(None))
        for text in texts:
            packet = av.Packet(words)
            packet.pts = packet.dts = 40
            packet.duration, packet.time_base, packet.stream = 100, Fraction(1, 1000), text
            out.mux(packet)
    return path


def send_through(
    source: Path,
    target: Path,
    options: EncodeOptions | None = None,
    limit: int = 10**9,
    rate: Fraction | None = None,
    **muxing: object,
) -> Muxer:
    """Decode, encode and write the first ``limit`` frames, at the source's average rate if no other, and all else."""
    with VideoReader(source) as reader:
        choice = choose_encoder(options or EncodeOptions(), reader.info, container_of(target))
        encoder = VideoEncoder(choice, reader.info, rate or reader.info.average_rate)
        muxer = Muxer(target, encoder, reader, **muxing)
        count = 0
        for event in reader.events():
            if isinstance(event, Copied):
                muxer.mux_copied(event.packet, event.stream_index)
            elif count < limit:
                for packet in encoder.encode(event.frame, count):
                    muxer.mux_video(packet)
                count += 1
        for packet in encoder.flush():
            muxer.mux_video(packet)
        muxer.close()
        encoder.close()
    return muxer


def frames_of(path: Path) -> list[Decoded]:
    with VideoReader(path) as reader:
        return [event for event in reader.events() if isinstance(event, Decoded)]


def packets_of(path: Path, kind: str) -> list[tuple[str, Fraction, Fraction]]:
    """Payload digest, presentation and decoding time of every packet of the first stream of a kind."""
    with av.open(str(path)) as source:
        stream = next(s for s in source.streams if s.type == kind)
        packets = [p for p in source.demux(stream) if p.size]
        return [(hashlib.md5(bytes(p)).hexdigest(), p.pts * p.time_base, p.dts * p.time_base) for p in packets]
