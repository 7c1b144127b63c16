"""Choosing an encoder and encoding: originals enter bit for bit, nothing is lost in silence."""

from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
import torch
from papershelf.errors import UserError
from rife.color import ColorSpec, Tags
from rife.encoder import EncodeOptions, VideoEncoder, choose_encoder, opens
from rife.muxer import Muxer
from rife.reader import VideoInfo, VideoReader
from rife.side_data import ContentLight, Hdr10, MasteringDisplay
from video_clips import frames_of, make_clip, md5, random_frame, send_through, smooth_frame

from rife import color

HDR = Hdr10(
    MasteringDisplay(
        *((Fraction(x, 50000), Fraction(y, 50000)) for x, y in ((34000, 16000), (13250, 34500), (7500, 3000))),
        white=(Fraction(15635, 50000), Fraction(16450, 50000)),
        luminance=(Fraction(50, 10000), Fraction(1000)),
    ),
    ContentLight(1000, 400),
)


def source(
    pix_fmt: str = "yuv420p",
    codec: str = "mpeg4",
    size: tuple[int, int] = (64, 48),
    tags: Tags | None = None,
    hdr: Hdr10 | None = None,
) -> VideoInfo:
    return VideoInfo(
        name="clip",
        container="mov",
        codec=codec,
        width=size[0],
        height=size[1],
        color=ColorSpec.from_tags(pix_fmt, tags or Tags(), size[1]),
        time_base=Fraction(1, 1000),
        start=Fraction(0),
        duration=None,
        frames=None,
        average_rate=Fraction(25),
        nominal_rate=Fraction(25),
        sample_aspect_ratio=None,
        display_matrix=None,
        rotation=0,
        hdr=hdr,
        interlaced=False,
        bit_rate=None,
    )


@pytest.mark.parametrize(
    ("info", "container", "codec", "pix_fmt"),
    [
        (source("yuv420p"), "mp4", "h264", "yuv420p"),
        (source("yuv420p10le"), "mp4", "hevc", "yuv420p10le"),
        (source("yuv420p12le"), "matroska", "hevc", "yuv420p12le"),
        (source("yuv420p10le", "h264"), "mp4", "h264", "yuv420p10le"),
        (source("yuv420p", "hevc"), "mp4", "hevc", "yuv420p"),
        (source("yuv420p10le", "av1"), "matroska", "av1", "yuv420p10le"),
        (source("yuv420p"), "webm", "vp9", "yuv420p"),
        (source("yuv420p10le", "vp9"), "webm", "av1", "yuv420p10le"),
        (source("yuv422p10le", "prores"), "mov", "prores", "yuv422p10le"),
        (source("yuv422p10le", "prores"), "mp4", "hevc", "yuv422p10le"),
        (source("bgr0", "ffv1"), "matroska", "ffv1", "bgr0"),
        (source("yuvj420p", "mjpeg"), "mp4", "h264", "yuvj420p"),
        (source("nv12", "h264"), "mp4", "h264", "nv12"),
        (source("rgb24", "cinepak"), "mp4", "h264", "yuv420p"),
        (source("gray", "png"), "mp4", "h264", "gray"),
        (source("yuv444p", "h264"), "mp4", "h264", "yuv444p"),
        (source("yuv410p", "svq3"), "mp4", "h264", "yuv420p"),
        (source("pal8", "gif"), "mp4", "h264", "yuv420p"),
        (source("yuyv422", "rawvideo"), "mp4", "h264", "yuv422p"),
        (source("yuv420p", "mpeg4", (33, 48)), "mp4", "h264", "yuv444p"),
        (source("yuv420p10le", "hevc", (64, 33)), "mp4", "hevc", "yuv422p10le"),
        (source("yuv420p", "av1", (33, 33)), "mp4", "av1", "yuv420p"),
    ],
)
def test_the_choice_follows_source_and_container(info, container, codec, pix_fmt):
    choice = choose_encoder(EncodeOptions(), info, container)
    assert (choice.codec, choice.spec.pix_fmt) == (codec, pix_fmt)
    assert opens(choice, info)


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "expected"),
    [
        ("ffv1", "rgb24", "bgr0"),
        ("ffv1", "rgba", "bgra"),
        ("ffv1", "gbrp10le", "gbrp10le"),
        ("ffv1", "p010le", "yuv420p10le"),
        ("prores", "yuv420p", "yuv422p10le"),
        ("prores", "yuva444p10le", "yuva444p10le"),
        ("prores", "rgb24", "yuv444p10le"),
        ("av1", "yuv422p10le", "yuv420p10le"),
        ("vp9", "yuva420p", "yuva420p"),
    ],
)
def test_the_nearest_format_is_taken(codec, pix_fmt, expected):
    choice = choose_encoder(EncodeOptions(codec=codec), source(pix_fmt), "matroska")
    assert choice.spec.pix_fmt == expected


@pytest.mark.parametrize(
    ("info", "options", "note"),
    [
        (source("yuv420p12le"), EncodeOptions(codec="h264"), "at most 10 bits"),
        (source("rgba"), EncodeOptions(codec="h264"), "transparency is left out"),
        (source("rgb24"), EncodeOptions(), "RGB becomes yuv420p"),
        (source("yuv444p"), EncodeOptions(codec="av1"), "yuv444p becomes yuv420p"),
        (source("yuv420p", hdr=HDR), EncodeOptions(codec="ffv1"), "no HDR10"),
    ],
)
def test_what_is_lost_is_said(info, options, note):
    assert any(note in text for text in choose_encoder(options, info, "matroska").notes)


def test_nothing_lost_nothing_said():
    assert choose_encoder(EncodeOptions(), source("yuv420p10le", hdr=HDR), "mp4").notes == ()


@pytest.mark.parametrize(
    ("options", "container", "message"),
    [
        (EncodeOptions(codec="prores"), "mp4", r"mp4 does not hold prores: choose \.mkv"),
        (EncodeOptions(codec="h264"), "webm", "webm does not hold h264"),
        (EncodeOptions(codec="ffv1", crf=20), "matroska", "ffv1 takes no crf: it is lossless"),
        (EncodeOptions(codec="prores", crf=20), "mov", "prores takes no crf: choose a profile"),
        (EncodeOptions(codec="prores", preset="best"), "mov", "no profile best"),
        (EncodeOptions(codec="h264", pix_fmt="rgb24"), "mp4", "does not take pixel format rgb24"),
        (EncodeOptions(codec="h264"), "yuv4mpegpipe", "y4m is uncompressed"),
    ],
)
def test_what_does_not_go_together_is_refused(options, container, message):
    with pytest.raises(UserError, match=message):
        choose_encoder(options, source(), container)


def test_a_subsampled_format_of_odd_size_is_refused():
    with pytest.raises(UserError, match="needs even sides, the picture is 33x48"):
        choose_encoder(EncodeOptions(pix_fmt="yuv420p"), source(size=(33, 48)), "mp4")


def test_a_bad_setting_is_the_encoders_word():
    choice = choose_encoder(EncodeOptions(codec="h264", preset="warp9"), source(), "mp4")
    with pytest.raises(UserError, match=r"libx264 refuses 64x48 yuv420p: .*preset"):
        VideoEncoder(choice, source(), Fraction(25))


def test_hardware_is_used_only_where_it_opens():
    choice = choose_encoder(EncodeOptions(hardware="auto"), source(size=(640, 480)), "mp4")
    if choice.encoder == "libx264":
        assert any("software is used" in note for note in choice.notes)
        with pytest.raises(UserError, match="h264_nvenc does not open on this machine"):
            choose_encoder(EncodeOptions(hardware="nvenc"), source(size=(640, 480)), "mp4")
    else:
        assert opens(choice, source(size=(640, 480)))


LOSSLESS = [
    ("h264", "yuv420p"),
    ("h264", "yuv420p10le"),
    ("h264", "yuv444p"),
    ("h264", "nv12"),
    ("hevc", "yuv420p10le"),
    ("hevc", "yuv422p12le"),
    ("vp9", "yuv420p"),
    ("ffv1", "yuv420p"),
    ("ffv1", "yuv422p10le"),
    ("ffv1", "gbrp16le"),
    ("av1", "yuv420p10le"),
]


@pytest.mark.parametrize(("codec", "pix_fmt"), LOSSLESS)
def test_original_frames_enter_bit_for_bit(tmp_path, codec, pix_fmt):
    originals = [random_frame(pix_fmt, 64, 48, seed) for seed in range(3)]
    clip = make_clip(tmp_path / "in.nut", originals, codec="rawvideo", pix_fmt=pix_fmt)
    before = [frame.frame for frame in frames_of(clip)]
    crf = None if codec == "ffv1" else 0
    send_through(clip, tmp_path / "out.mkv", EncodeOptions(codec=codec, crf=crf))
    after = [frame.frame for frame in frames_of(tmp_path / "out.mkv")]
    assert len(after) == len(before)
    for old, new in zip(before, after, strict=True):
        if pix_fmt == "nv12":  # H.264 decodes to planes
            old = color.convert(old, ColorSpec.of(old).stored_as("yuv420p", 48))
        assert md5(old) == md5(new)


def test_new_frames_meet_the_same_fate_as_originals(tmp_path):
    info = source("yuv420p", tags=Tags(matrix=1, range=1))
    choice = choose_encoder(EncodeOptions(codec="ffv1"), info, "matroska")
    original = random_frame("yuv420p", 64, 48, colorspace=1, color_range=1)
    made = color.from_rgb(color.to_rgb(original), choice.spec)
    assert md5(made) == md5(original)
    assert color.convert(made, choice.spec) is made


def test_time_stamps_are_exact_and_the_sources_picture_types_are_not_imposed():
    info = source()
    rate = Fraction(60000, 1001)
    encoder = VideoEncoder(choose_encoder(EncodeOptions(), info, "mp4"), info, rate)
    packets = []
    for k in range(30):
        frame = smooth_frame("yuv420p", 64, 48, k)
        frame.pict_type = 1  # intra, as every frame of an edited source may be
        packets += encoder.encode(frame, 7 + k)
    packets += encoder.flush()
    assert encoder.time_base == Fraction(1001, 60000)
    assert all(p.time_base == encoder.time_base and p.duration == 1 for p in packets)
    assert sorted(p.pts for p in packets) == list(range(7, 37))
    assert [p.dts for p in packets] == sorted(p.dts for p in packets)
    assert sum(p.is_keyframe for p in packets) == 1


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1", "vp9"])
def test_the_same_frames_give_the_same_bytes(codec):
    info = source(size=(320, 240))
    frames = [smooth_frame("yuv420p", 320, 240, k) for k in range(16)]

    def encoded() -> list[bytes]:
        choice = choose_encoder(EncodeOptions(codec=codec, threads=3), info, "matroska")
        encoder = VideoEncoder(choice, info, Fraction(25))
        packets = [packet for k, frame in enumerate(frames) for packet in encoder.encode(frame, k)]
        return [bytes(packet) for packet in packets + encoder.flush()]

    first = encoded()
    assert all(encoded() == first for _ in range(3))


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_the_shortest_videos_have_sound_time_stamps(codec, count):
    choice = choose_encoder(EncodeOptions(codec=codec), source(), "mp4")
    for _ in range(5):  # x265 left them to what was in memory
        encoder = VideoEncoder(choice, source(), Fraction(25))
        packets = [p for k in range(count) for p in encoder.encode(smooth_frame("yuv420p", 64, 48, k), k)]
        packets += encoder.flush()
        assert all(-3 < packet.dts <= packet.pts for packet in packets)
        assert sorted(packet.pts for packet in packets) == list(range(count))


@pytest.mark.parametrize(
    ("capability", "reproducible", "kept_back"),
    [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False)],
)
def test_x264_keeps_from_avx512_where_the_bytes_matter(monkeypatch, capability, reproducible, kept_back):
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    choice = choose_encoder(EncodeOptions(reproducible=reproducible), source(), "mp4")
    assert ("asm=AVX2" in dict(choice.options).get("x264-params", "")) == kept_back


@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_hdr10_metadata_and_tags_reach_the_stream(tmp_path, codec):
    info = source("yuv420p10le", tags=Tags(9, 1, 9, 16), hdr=HDR)
    info = dataclasses.replace(info, color=dataclasses.replace(info.color, siting="topleft"))
    encoder = VideoEncoder(choose_encoder(EncodeOptions(codec=codec), info, "mp4"), info, Fraction(25))
    muxer = Muxer(tmp_path / "a.mp4", encoder)
    for k in range(4):
        for packet in encoder.encode(smooth_frame("yuv420p10le", 64, 48, k), k):
            muxer.mux_video(packet)
    for packet in encoder.flush():
        muxer.mux_video(packet)
    muxer.close()
    with VideoReader(tmp_path / "a.mp4") as reader:
        found, spec = reader.info.hdr, reader.info.color
    assert found.light == HDR.light
    for name in ("red", "green", "blue", "white"):
        for a, b in zip(getattr(found.mastering, name), getattr(HDR.mastering, name), strict=True):
            assert abs(a - b) < Fraction(1, 40000)
    assert abs(found.mastering.luminance[0] - Fraction(5, 1000)) < Fraction(1, 10000)
    assert abs(found.mastering.luminance[1] - 1000) < 1
    assert (spec.siting, spec.tags) == ("topleft", Tags(9, 1, 9, 16))


def test_bitrate_and_pixel_format_can_be_asked_for():
    choice = choose_encoder(
        EncodeOptions(reproducible=False, bitrate=300_000, pix_fmt="yuv444p", preset="fast"), source(), "mp4"
    )
    assert choice.spec.pix_fmt == "yuv444p"
    assert dict(choice.options) == {"preset": "fast"}
    encoder = VideoEncoder(choice, source(), Fraction(25))
    assert encoder.stream.codec_context.bit_rate == 300_000


def test_a_grey_ramp_keeps_its_level_through_every_step(tmp_path):
    ramp = torch.linspace(0.1, 0.9, 64)[None, None].expand(3, 48, 64)
    like = ColorSpec.from_tags("yuv420p", Tags(1, 1), 48)
    clip = make_clip(tmp_path / "in.mkv", [color.from_rgb(ramp, like) for _ in range(2)], codec="ffv1")
    first, second = (f.frame for f in frames_of(clip))
    between = color.from_rgb((color.to_rgb(first) + color.to_rgb(second)) / 2, first)
    levels = [color.to_rgb(frame).mean().item() * 219 for frame in (first, between)]
    assert abs(levels[0] - levels[1]) < 0.1
