"""Reading videos: exact times, what a file says of itself, and what is wrong with files."""

from __future__ import annotations

import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from papershelf.errors import UserError
from rife.reader import Copied, Decoded, VideoReader
from video_clips import frames_of, make_clip, md5, random_frame


def test_times_are_exact_and_durations_the_files_own(tmp_path):
    clip = make_clip(tmp_path / "a.mp4", 5, rate=Fraction(30000, 1001), options={"bf": "2"})
    frames = frames_of(clip)
    assert [f.time for f in frames] == [k * Fraction(1001, 30000) for k in range(5)]
    assert all(f.duration == Fraction(1001, 30000) for f in frames)


def test_variable_frame_rate_keeps_its_times(tmp_path):
    pts = [0, 10, 30, 40, 80]
    clip = make_clip(tmp_path / "a.mp4", 5, pts=pts, options={"bf": "0"})
    assert [f.time for f in frames_of(clip)] == [Fraction(p, 250) for p in pts]


@pytest.mark.parametrize("rate", [Fraction(30000, 1001), Fraction(24000, 1001), Fraction(60)])
def test_millisecond_stamps_return_to_the_grid(tmp_path, rate):
    clip = make_clip(tmp_path / "a.mkv", 40, rate=rate)
    with VideoReader(clip) as reader:
        assert reader.info.time_base == Fraction(1, 1000)
        frames = [e for e in reader.events() if isinstance(e, Decoded)]
    assert [f.time for f in frames] == [k / rate for k in range(40)]
    assert frames[-1].duration == 1 / rate


def test_stamps_off_the_grid_stay_where_they_are(tmp_path):
    clip = make_clip(tmp_path / "a.mkv", 6, rate=Fraction(25), pts=[0, 10, 20, 33, 40, 50], options={"bf": "0"})
    times = [f.time for f in frames_of(clip)]
    assert times[3] == Fraction(132, 1000)
    assert times == sorted(set(times))


def test_what_a_file_says_of_itself(tmp_path):
    clip = make_clip(
        tmp_path / "a.mp4",
        3,
        aspect=Fraction(4, 3),
        rotation=90,
        options={"chroma_sample_location": "topleft"},
        tags={"color_range": 2, "colorspace": 9, "color_primaries": 9, "color_trc": 14},
        pix_fmt="yuv420p10le",
        audio="aac",
    )
    with VideoReader(clip) as reader:
        info = reader.info
        kinds = [s.type for s in reader.copied_streams]
    assert (info.width, info.height, info.pix_fmt, info.codec) == (64, 48, "yuv420p10le", "h264")
    assert (info.color.matrix, info.color.full_range, info.color.bits, info.color.siting) == (
        "bt2020",
        True,
        10,
        "topleft",
    )
    assert (info.color.tags.primaries, info.color.tags.transfer) == (9, 14)
    assert (info.sample_aspect_ratio, info.rotation, len(info.display_matrix)) == (Fraction(4, 3), 90, 9)
    assert (info.average_rate, info.frames, info.duration, info.start) == (25, 3, Fraction(3, 25), 0)
    assert not info.interlaced
    assert info.hdr is None
    assert kinds == ["audio"]


def test_interlaced_video_says_so(tmp_path):
    clip = make_clip(tmp_path / "a.mkv", 3, options={"flags": "+ildct+ilme", "x264-params": "tff=1"})
    with VideoReader(clip) as reader:
        assert reader.info.interlaced


def test_other_streams_come_along_in_file_order(tmp_path):
    clip = make_clip(tmp_path / "a.mkv", 6, audio="aac", subtitles=("subrip",))
    with VideoReader(clip) as reader:
        events = list(reader.events())
        kinds = [s.type for s in reader.copied_streams]
    copied = [e for e in events if isinstance(e, Copied)]
    assert kinds == ["audio", "subtitle"]
    assert {e.stream_index for e in copied} == {1, 2}
    assert bytes(next(e.packet for e in copied if e.stream_index == 2)) == b"Bonjour"
    assert isinstance(events[-1], Decoded | Copied)
    assert sum(isinstance(e, Decoded) for e in events) == 6


def test_a_cover_picture_is_not_the_video(tmp_path):
    cover = av.CodecContext.create("png", "w")
    cover.width, cover.height, cover.pix_fmt, cover.time_base = 32, 32, "rgb24", Fraction(1)
    picture = cover.encode(random_frame("rgb24", 32, 32)) + cover.encode(None)
    path = tmp_path / "a.mp4"
    clip = make_clip(tmp_path / "b.mp4", 3)
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        shown = out.add_mux_stream("png", width=32, height=32, time_base=Fraction(1, 1000))
        shown.disposition = av.stream.Disposition.attached_pic
        film = out.add_stream_from_template(source.streams.video[0], opaque=True)
        picture[0].pts = picture[0].dts = 0
        picture[0].time_base, picture[0].stream = Fraction(1, 1000), shown
        out.mux(picture[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = film
                out.mux(packet)
    with VideoReader(path) as reader:
        assert (reader.info.codec, reader.info.width) == ("h264", 64)
        copied = [e for e in reader.events() if isinstance(e, Copied)]
    assert [bytes(e.packet) for e in copied] == [bytes(picture[0])]


def test_a_negative_start_is_kept(tmp_path):
    clip = make_clip(
        tmp_path / "a.ts", 4, pts=[-20, -10, 0, 10], options={"bf": "0"}, muxing={"avoid_negative_ts": "disabled"}
    )
    with VideoReader(clip) as reader:
        assert reader.info.start == Fraction(-2, 25)
        assert [e.time for e in reader.events()] == [Fraction(k, 25) for k in (-2, -1, 0, 1)]


def test_repeated_times_are_dropped_and_counted(tmp_path):
    path = tmp_path / "a.mkv"
    packets = []
    with av.open(str(make_clip(tmp_path / "b.mkv", 4, codec="ffv1"))) as source:
        packets = [p for p in source.demux(video=0) if p.size]
        with av.open(str(path), "w") as out:
            stream = out.add_stream_from_template(source.streams.video[0], opaque=True)
            for packet, stamp in zip(packets, (0, 40, 40, 80), strict=True):
                packet.pts = packet.dts = stamp
                packet.stream = stream
                out.mux(packet)
    with VideoReader(path) as reader:
        times = [e.time for e in reader.events()]
        assert times == [0, Fraction(1, 25), Fraction(2, 25)]
        assert reader.problems == {"frames with a repeated or earlier time dropped": 1}


def test_a_file_that_breaks_off_gives_what_it_has(tmp_path):
    whole = make_clip(tmp_path / "a.mkv", 30, codec="ffv1", size=(128, 96))
    (tmp_path / "cut.mkv").write_bytes(whole.read_bytes()[: whole.stat().st_size * 2 // 3])
    with VideoReader(tmp_path / "cut.mkv") as reader:
        count = sum(1 for _ in reader.events())
    assert 10 <= count < 30


def test_damage_in_the_middle_is_survived_and_counted(tmp_path):
    whole = make_clip(tmp_path / "a.mkv", 30, size=(128, 96), options={"g": "5"})
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 600] = np.random.default_rng(0).integers(0, 256, 600, dtype=np.uint8).tobytes()
    (tmp_path / "bad.mkv").write_bytes(data)
    with VideoReader(tmp_path / "bad.mkv") as reader:
        times = [e.time for e in reader.events()]
        assert reader.problems
    assert len(times) >= 15
    assert times == sorted(set(times))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("nothing.mp4", b"", "is empty"),
        ("text.mp4", b"no video at all\n" * 40, "cannot be read as a video"),
        ("ütf 8 name.mkv", b"\x1a\x45\xdf\xa3", "cannot be read as a video"),
    ],
)
def test_files_that_are_no_video_are_named(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as raised:
        VideoReader(path)
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_missing_files_folders_and_sound_alone_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        VideoReader(tmp_path / "missing.mp4")
    with pytest.raises(UserError, match="is a folder"):
        VideoReader(tmp_path)
    with av.open(str(tmp_path / "a.wav"), "w") as out:
        sound = out.add_stream("pcm_s16le", rate=8000)
        piece = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), format="s16", layout="stereo")
        piece.sample_rate = 8000
        out.mux(sound.encode(piece))
        out.mux(sound.encode(None))
    with pytest.raises(UserError, match=r"no video stream \(it holds audio\)"):
        VideoReader(tmp_path / "a.wav")


def test_animated_webp_is_refused_with_the_reason(tmp_path):
    clip = make_clip(tmp_path / "a.webp", 3, codec="libwebp_anim", pix_fmt="bgra")
    with pytest.raises(UserError, match=r"a\.webp: not one frame .* FFmpeg reads no animated WebP, make it a GIF"):
        VideoReader(clip)


def test_a_picture_that_changes_size_is_refused(tmp_path):
    parts = [make_clip(tmp_path / f"{w}.h264", 3, size=(w, 48)) for w in (64, 96)]
    (tmp_path / "both.h264").write_bytes(b"".join(p.read_bytes() for p in parts))
    with (
        VideoReader(tmp_path / "both.h264") as reader,
        pytest.raises(UserError, match=r"from 64x48 yuv420p to 96x48 .* at 0\.\d\d s; split"),
    ):
        list(reader.events())


def test_a_name_like_a_protocol_is_a_file(tmp_path, monkeypatch):
    make_clip(tmp_path / "a.mp4", 2).rename(tmp_path / "http:x, %d é.mp4")
    monkeypatch.chdir(tmp_path)
    assert len(frames_of("http:x, %d é.mp4")) == 2


def test_one_frame_is_a_video(tmp_path):
    frames = frames_of(make_clip(tmp_path / "a.mp4", 1))
    assert [(f.time, f.duration) for f in frames] == [(0, Fraction(1, 25))]


def test_frames_outlive_the_reader(tmp_path):
    original = random_frame("yuv420p", 64, 48)
    clip = make_clip(tmp_path / "a.mkv", [original], codec="ffv1")
    assert md5(frames_of(clip)[0].frame) == md5(original)


def test_y4m_comes_in_by_standard_input(tmp_path):
    clip = make_clip(tmp_path / "a.y4m", 3, codec="wrapped_avframe", rate=Fraction(3000, 1001))
    script = (
        "from rife.reader import VideoReader\n"
        "with VideoReader('-') as reader:\n"
        "    print(reader.info.name, reader.info.average_rate, [str(e.time) for e in reader.events()])"
    )
    with clip.open("rb") as stream:
        done = subprocess.run([sys.executable, "-c", script], stdin=stream, capture_output=True, text=True, check=True)
    assert done.stdout == "standard input 30000/1001 ['0', '1001/30000', '1001/15000']\n"
