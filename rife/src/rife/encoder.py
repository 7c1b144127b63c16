"""Encoding video: which encoder, which pixel format, which settings, and the encoder itself.

What a source has is kept where the encoder can: its pixel format (so that original frames enter bit for
bit), depth, range, matrix, chroma siting, pixel aspect and HDR10 metadata. Where it cannot, the nearest
format is taken and said in :attr:`EncoderChoice.notes`. All conversions are :mod:`rife.color`'s.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from fractions import Fraction

import av
from av.codec.context import Flags
from papershelf.errors import UserError
from torch.backends import cpu

from rife import color
from rife.color import ColorSpec
from rife.reader import VideoInfo

CODECS = ("h264", "hevc", "av1", "vp9", "prores", "ffv1")
HARDWARE = ("nvenc", "qsv", "amf", "videotoolbox")  # in the order that "auto" tries them
_SOFTWARE = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
_SOFTWARE |= {"vp9": "libvpx-vp9", "prores": "prores_ks", "ffv1": "ffv1"}
# Where untouched frames look like their originals: 45 dB and more on the clips this was tried on.
_DEFAULT_CRF = {"h264": 17.0, "hevc": 18.0, "av1": 20.0, "vp9": 18.0}
_DEFAULT_PRESET = {"h264": "medium", "hevc": "medium", "av1": "8", "vp9": "4"}
_PRORES_PROFILES = ("proxy", "lt", "standard", "hq", "4444", "4444xq")
_CONTAINERS = {  # codecs that players expect to find there
    "mp4": ("h264", "hevc", "av1", "vp9"),
    "mov": ("h264", "hevc", "prores"),
    "matroska": CODECS,
    "webm": ("vp9", "av1"),
}


@dataclass(frozen=True)
class EncodeOptions:
    """What the user asks of the encoder; None leaves a choice to :func:`choose_encoder`.

    Attributes:
        codec: one of :data:`CODECS`; the source's own where that is one that the container holds, else
            H.264 for 8 bits and HEVC for more (WebM: VP9 and AV1).
        crf: constant quality, lower is better; 0 is lossless for H.264, HEVC, AV1 and VP9.
        preset: the encoder's own name for speed against size; the profile for ProRes.
        pix_fmt: FFmpeg's name of a pixel format.
        bitrate: bits a second, instead of ``crf``.
        threads: of the encoder; 0 leaves it to the encoder.
        hardware: ``off``, ``auto`` (whatever opens, else software) or one of :data:`HARDWARE`.
        reproducible: the same bytes at every run. The MB-tree of PyAV 18.1's x264 gave other bytes once in
            some 200 runs with AVX-512, and never with AVX2, which takes 13% more time.
    """

    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    bitrate: int | None = None
    threads: int = 0
    hardware: str = "off"
    reproducible: bool = True


@dataclass(frozen=True)
class EncoderChoice:
    """A concrete encoder.

    Attributes:
        codec: one of :data:`CODECS`, or ``rawvideo``.
        encoder: FFmpeg's name of the encoder.
        spec: how frames must be stored for it.
        options: its settings.
        bitrate: bits a second, or None.
        threads: 0 for the encoder's own choice.
        notes: what the output will lack of the source, a sentence each.
    """

    codec: str
    encoder: str
    spec: ColorSpec
    options: tuple[tuple[str, str], ...] = ()
    bitrate: int | None = None
    threads: int = 0
    notes: tuple[str, ...] = ()


def choose_encoder(options: EncodeOptions, info: VideoInfo, container: str) -> EncoderChoice:
    """The encoder, pixel format and settings for a source and a container.

    Args:
        options: what the user asks for.
        info: the source.
        container: FFmpeg's name of the output's format, as :func:`rife.muxer.container_of` gives it.

    Raises:
        UserError: container and codec do not go together, a setting does not exist for the codec, or a
            hardware encoder asked for by name does not open.
    """
    if container == "yuv4mpegpipe":
        return _uncompressed(options, info)
    codec = options.codec or _default_codec(info, container)
    held = _CONTAINERS[container]
    if codec not in held:
        raise UserError(f"{container} does not hold {codec}: choose .mkv, or one of {', '.join(held)} as codec")
    if options.crf is not None and codec in ("prores", "ffv1"):
        why = "it is lossless" if codec == "ffv1" else "choose a profile as preset: " + ", ".join(_PRORES_PROFILES)
        raise UserError(f"{codec} takes no crf: {why}")
    notes: list[str] = []
    for kind in HARDWARE if options.hardware == "auto" else [options.hardware]:
        if kind == "off":
            break
        choice = _complete(codec, f"{codec}_{kind}", options, info, notes)
        if choice and opens(choice, info):
            return choice
        if options.hardware != "auto":
            raise UserError(f"the hardware encoder {codec}_{kind} does not open on this machine; use software encoding")
    if options.hardware == "auto":
        notes.append(f"no hardware encoder for {codec} opens here; software is used")
    choice = _complete(codec, _SOFTWARE[codec], options, info, notes)
    if choice is None:
        raise UserError(f"this build of FFmpeg has no encoder {_SOFTWARE[codec]}; choose another codec than {codec}")
    return choice


def _default_codec(info: VideoInfo, container: str) -> str:
    held, bits = _CONTAINERS[container], info.color.bits
    if info.codec in held and not (info.codec == "vp9" and bits > 8):
        return info.codec
    if container == "webm":
        return "vp9" if bits <= 8 else "av1"
    return "h264" if bits <= 8 else "hevc"


def _complete(
    codec: str, encoder: str, options: EncodeOptions, info: VideoInfo, notes: list[str]
) -> EncoderChoice | None:
    """The choice for one encoder, or None where FFmpeg was built without it."""
    try:
        formats = [f.name for f in av.Codec(encoder, "w").video_formats or ()]
    except (av.codec.codec.UnknownCodecError, ValueError):
        return None
    spec, losses = _choose_format(codec, encoder, formats, options.pix_fmt, info)
    if info.hdr and codec not in ("h264", "hevc", "av1"):
        losses.append(f"{codec} carries no HDR10 mastering metadata; hevc and av1 do")
    return EncoderChoice(
        codec,
        encoder,
        spec,
        _settings(codec, encoder, options, info),
        options.bitrate,
        options.threads,
        (*notes, *losses),
    )


def _choose_format(
    codec: str, encoder: str, formats: list[str], wanted: str | None, info: VideoInfo
) -> tuple[ColorSpec, list[str]]:
    source = info.color.stored_as(color.working_format(info.pix_fmt), info.height)
    even = codec in ("h264", "hevc")  # these refuse a subsampled side of odd length
    delivery = codec in ("h264", "hevc", "av1", "vp9")

    def fits(name: str) -> bool:
        sx, sy = ColorSpec.from_tags(name, info.color.tags, info.height).subsampling
        return not even or (info.width % (1 << sx) == 0 and info.height % (1 << sy) == 0)

    usable = [name for name in formats if name in av.video.format.names and _is_plain(name)]
    if wanted is not None:
        if wanted not in usable:
            raise UserError(f"{encoder} does not take pixel format {wanted}; it takes {', '.join(usable)}")
        if not fits(wanted):
            raise UserError(f"{wanted} needs even sides, the picture is {info.width}x{info.height}; use yuv444p")
        usable = [wanted]
    else:
        # Full range travels as a tag, so the yuvj formats serve only a source that is one; players want no RGB.
        usable = [n for n in usable if n == source.pix_fmt or not n.startswith("yuvj")]
        if delivery:
            usable = [n for n in usable if ColorSpec.from_tags(n, source.tags, info.height).matrix != "rgb"]
        if codec in ("h264", "hevc", "av1"):
            usable = [n for n in usable if not n.startswith("yuva")]
        usable = [n for n in usable if fits(n)] or usable

    def cost(name: str) -> tuple[int, ...]:
        new = source.stored_as(name, info.height)
        was_rgb, is_rgb = source.matrix == "rgb", new.matrix == "rgb"
        # RGB has no chroma of its own size: 4:2:0, as players want it, for delivery, and all of it elsewhere.
        sub = (1, 1) if was_rgb and delivery else source.subsampling if source.matrix != "gray" else new.subsampling
        finer = [have - target for have, target in zip(sub, new.subsampling, strict=True)]
        return (
            new.matrix == "gray" and source.matrix != "gray",
            max(0, source.bits - new.bits),
            was_rgb != is_rgb,
            source.alpha and not new.alpha,
            sum(max(0, -f) for f in finer),
            name != source.pix_fmt,
            new.alpha and not source.alpha,
            max(0, new.bits - source.bits) + sum(max(0, f) for f in finer),
        )

    best = min(usable, key=cost)
    spec = source.stored_as(best, info.height)
    return spec, _losses(source, spec, encoder)


def _is_plain(pix_fmt: str) -> bool:
    try:
        return color.working_format(pix_fmt) == pix_fmt
    except UserError:
        return False


def _losses(source: ColorSpec, spec: ColorSpec, encoder: str) -> list[str]:
    losses = []
    if spec.bits < source.bits:
        losses.append(f"{encoder} takes at most {spec.bits} bits: the source's {source.bits} are rounded")
    if source.alpha and not spec.alpha:
        losses.append(f"{encoder} has no alpha: transparency is left out")
    if source.matrix == "rgb" and spec.matrix != "rgb":
        losses.append(f"RGB becomes {spec.pix_fmt} ({spec.matrix}); codec ffv1 keeps RGB")
    elif spec.subsampling != source.subsampling and source.matrix not in ("rgb", "gray"):
        losses.append(f"{source.pix_fmt} becomes {spec.pix_fmt}: {encoder} cannot hold it at this size")
    return losses


def _settings(codec: str, encoder: str, options: EncodeOptions, info: VideoInfo) -> tuple[tuple[str, str], ...]:
    crf = _DEFAULT_CRF.get(codec, 0.0) if options.crf is None else options.crf
    preset = options.preset or _DEFAULT_PRESET.get(codec, "")
    quality = {} if options.bitrate else {"crf": f"{crf:g}"}
    lossless = crf == 0 and not options.bitrate
    mastering, light = (info.hdr.mastering, info.hdr.light) if info.hdr else (None, None)
    if encoder == "libx264":
        if lossless:
            quality = {"qp": "0"}
        params = {
            "asm": "AVX2" if options.reproducible and cpu.get_cpu_capability() == "AVX512" else None,
            "mastering-display": mastering and mastering.text("x265"),
            "cll": light and light.text(),
        }
        return _pairs(quality, preset=preset, **{"x264-params": _joined(params)})
    if encoder == "libx265":
        params = {
            "log-level": "error",
            "lossless": "1" if lossless else None,
            "master-display": mastering and mastering.text("x265"),
            "max-cll": light and light.text(),
            "pools": str(options.threads) if options.threads else None,
        }
        return _pairs(quality, preset=preset, **{"x265-params": _joined(params)})
    if encoder == "libsvtav1":
        if lossless:
            quality = {}
        params = {
            "lossless": "1" if lossless else None,
            "lp": str(options.threads) if options.threads else None,
            "mastering-display": mastering and mastering.text("svt"),
            "content-light": light and light.text(),
        }
        return _pairs(quality, preset=preset, **{"svtav1-params": _joined(params)})
    if encoder == "libvpx-vp9":
        if lossless:
            quality = {"lossless": "1"}
        return _pairs(quality, **{"cpu-used": preset, "row-mt": "1", "deadline": "good"})
    if encoder == "prores_ks":
        if options.preset and options.preset not in _PRORES_PROFILES:
            raise UserError(f"prores has no profile {options.preset}; it has {', '.join(_PRORES_PROFILES)}")
        best = "hq" if info.color.subsampling != (0, 0) and not info.color.alpha else "4444"
        return _pairs({}, profile=options.preset or best, vendor="apl0")
    if encoder == "ffv1":
        return _pairs({}, level="3", slicecrc="1")
    # Hardware: each family has its own name for constant quality.
    names = {"nvenc": "cq", "qsv": "global_quality", "amf": "qvbr_quality_level", "videotoolbox": "q:v"}
    name = next((n for kind, n in names.items() if encoder.endswith(kind)), "crf")
    return _pairs({} if options.bitrate else {name: f"{crf:g}"}, preset=options.preset)


def _joined(params: dict[str, str | None]) -> str | None:
    return ":".join(f"{k}={v}" for k, v in params.items() if v) or None


def _pairs(first: dict[str, str], **more: str | None) -> tuple[tuple[str, str], ...]:
    return tuple((k, v) for k, v in (first | more).items() if v)


def _uncompressed(options: EncodeOptions, info: VideoInfo) -> EncoderChoice:
    """YUV4MPEG2 holds planar YUV and grey, uncompressed."""
    if options.codec or options.crf is not None or options.preset or options.bitrate:
        raise UserError("y4m is uncompressed: it takes no codec, crf, preset or bitrate")
    formats = [f"yuv{s}p{d}" for s in ("420", "422", "444") for d in ("", "10le", "12le")] + [
        "yuv411p",
        "gray",
        "gray10le",
    ]
    spec, losses = _choose_format("rawvideo", "y4m", formats, options.pix_fmt, info)
    return EncoderChoice("rawvideo", "wrapped_avframe", spec, notes=tuple(losses))


def opens(choice: EncoderChoice, info: VideoInfo) -> bool:
    """Whether the encoder starts on this machine for this source."""
    try:
        VideoEncoder(choice, info, rate=Fraction(30)).close()
    except UserError:
        return False
    return True


class VideoEncoder:
    """Encodes frames; packets come out in decoding order, with exact time stamps.

    Args:
        choice: from :func:`choose_encoder`.
        info: the source, for its size, aspect and tags.
        rate: output frames a second; one tick of the time stamps is ``1 / rate``.
        global_header: parameter sets beside the stream, as MP4, MOV, Matroska and WebM want them.

    Raises:
        UserError: the encoder refuses the size, the pixel format or a setting.
    """

    def __init__(self, choice: EncoderChoice, info: VideoInfo, rate: Fraction, *, global_header: bool = True):
        self.choice, self.info, self.spec = choice, info, choice.spec
        self.time_base = 1 / Fraction(rate)
        self._frames = 0
        os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints its banner to stderr otherwise
        # A container that writes nothing: PyAV fills in a stream's parameters only as part of one, and
        # the muxer copies them from there.
        self._nowhere = av.open("nowhere", "w", format="null")
        self.stream = self._nowhere.add_stream(
            choice.encoder,
            rate=rate,
            options=dict(choice.options),
            width=info.width,
            height=info.height,
            pix_fmt=choice.spec.pix_fmt,
            time_base=self.time_base,
        )
        context = self.stream.codec_context
        if global_header:
            context.flags |= Flags.global_header
        if choice.bitrate:
            context.bit_rate = choice.bitrate
        context.thread_count = choice.threads
        if choice.codec in ("h264", "hevc", "av1", "vp9"):
            context.gop_size = max(1, round(4 * rate))  # a seek point every 4 seconds
        if info.sample_aspect_ratio:
            context.sample_aspect_ratio = info.sample_aspect_ratio
        tags = choice.spec.tags
        context.color_range, context.colorspace = tags.range, tags.matrix
        context.color_primaries, context.color_trc = tags.primaries, tags.transfer
        if choice.spec.subsampling != (0, 0):
            self.stream.options["chroma_sample_location"] = choice.spec.siting
        level = av.logging.get_level()
        av.logging.set_level(av.logging.ERROR)  # else PyAV loses the encoder's own words
        try:
            with av.logging.Capture():
                self._nowhere.start_encoding()
        except av.FFmpegError as error:
            raise _refusal(choice, info, error) from error
        finally:
            av.logging.set_level(level)

    def encode(self, frame: av.VideoFrame, pts: int) -> list[av.Packet]:
        """Packets that are ready after ``frame``, shown at ``pts / rate`` seconds, has gone in.

        A frame stored otherwise than :attr:`spec` says is converted; one stored so enters as it is.
        """
        frame = color.convert(frame, self.spec, self.info.color)
        frame.pts, frame.time_base, frame.duration = pts, self.time_base, 1
        frame.pict_type = 0  # else the source's I, P and B are imposed on the output
        self._frames += 1
        return self._packets(frame)

    def flush(self) -> list[av.Packet]:
        """The packets still inside; no frame may follow."""
        return self._packets(None)

    def close(self) -> None:
        """Give the encoder's memory and threads back."""
        self._nowhere.close()

    def _packets(self, frame: av.VideoFrame | None) -> list[av.Packet]:
        try:
            packets = self.stream.encode(frame)
        except av.FFmpegError as error:
            raise _refusal(self.choice, self.info, error) from error
        for packet in packets:
            packet.duration = packet.duration or 1  # some encoders leave it out; MP4 needs it for the last frame
            if frame is None and self._frames <= 2:
                packet.dts = packet.pts  # x265 4.2 leaves it uninitialised where it never got to reorder
        return packets


def _refusal(choice: EncoderChoice, info: VideoInfo, error: av.FFmpegError) -> UserError:
    said = error.log[2].strip() if error.log else error.strerror
    size = f"{info.width}x{info.height} {choice.spec.pix_fmt}"
    return UserError(f"{choice.encoder} refuses {size}: {said}; change the codec or its settings")
