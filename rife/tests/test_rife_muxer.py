"""Writing files: everything beside the video is kept as it was, or named where it cannot be."""

from __future__ import annotations

import struct
import subprocess
import sys
from fractions import Fraction

import av
import imageio_ffmpeg
import pytest
from av.stream import Disposition
from papershelf.errors import UserError
from rife.encoder import EncodeOptions, VideoEncoder, choose_encoder
from rife.muxer import Muxer, container_of
from rife.reader import Decoded, VideoReader
from rife.subtitles import converted
from video_clips import frames_of, make_clip, md5, packets_of, random_frame, send_through, smooth_frame


def streams_of(path):
    with av.open(str(path)) as source:
        return [(s.type, s.language, s.disposition.name) for s in source.streams], source.metadata, source.chapters()


def _titles(chapters):
    return [(c["start"] * c["time_base"], c["metadata"]["title"]) for c in chapters]


@pytest.mark.parametrize(
    ("container", "audio"), [("mp4", "aac"), ("mov", "pcm_s16le"), ("mkv", "aac"), ("mkv", "flac")]
)
def test_audio_packets_are_identical(tmp_path, container, audio):
    clip = make_clip(tmp_path / f"in.{container}", 6, audio=audio)
    send_through(clip, tmp_path / f"out.{container}")
    assert len(packets_of(clip, "audio")) > 1
    assert packets_of(tmp_path / f"out.{container}", "audio") == packets_of(clip, "audio")


HELD = {
    "mp4": ["h264", "hevc", "av1", "vp9"],
    "mov": ["h264", "hevc", "prores"],
    "mkv": ["h264", "hevc", "av1", "vp9", "prores", "ffv1"],
    "webm": ["vp9", "av1"],
}


@pytest.mark.parametrize(("container", "codec"), [(name, codec) for name, codecs in HELD.items() for codec in codecs])
def test_every_codec_that_is_offered_is_written(tmp_path, container, codec):
    clip = make_clip(tmp_path / "in.mkv", 4)
    send_through(clip, tmp_path / f"out.{container}", EncodeOptions(codec=codec))
    with VideoReader(tmp_path / f"out.{container}") as reader:
        assert reader.info.codec == codec
        assert [e.time for e in reader.events()] == [Fraction(k, 25) for k in range(4)]


def test_streams_keep_order_language_and_title(tmp_path):
    clip = make_clip(
        tmp_path / "in.mkv", 6, audio="aac", subtitles=("subrip",), metadata={"title": "Größe", "artist": "A"}
    )
    send_through(clip, tmp_path / "out.mkv")
    before, tags, _ = streams_of(clip)
    after, new_tags, _ = streams_of(tmp_path / "out.mkv")
    assert after == before
    assert [kind for kind, _, _ in after] == ["video", "audio", "subtitle"]
    assert (new_tags["title"], new_tags["ARTIST"]) == (tags["title"], tags["ARTIST"]) == ("Größe", "A")
    assert packets_of(tmp_path / "out.mkv", "subtitle") == packets_of(clip, "subtitle")
    with av.open(str(tmp_path / "out.mkv")) as out:
        assert out.streams.audio[0].metadata["title"] == "Ton"


def test_chapters_fonts_and_creation_time_are_kept(tmp_path):
    when = "2017-09-01T02:23:48.000000Z"
    clip = make_clip(tmp_path / "in.mkv", 6, font=b"not a real font", chapters=True, metadata={"creation_time": when})
    send_through(clip, tmp_path / "out.mkv")
    _, tags, chapters = streams_of(tmp_path / "out.mkv")
    assert tags["creation_time"] == when
    assert _titles(chapters) == [(0, "Start"), (Fraction(2, 25), "Ende")]
    with av.open(str(tmp_path / "out.mkv")) as out:
        font = next(s for s in out.streams if s.type == "attachment")
        assert (font.data, font.name, font.mimetype) == (b"not a real font", "letters.ttf", "font/ttf")


@pytest.mark.parametrize("container", ["mp4", "mov"])
def test_chapters_are_kept_in_mp4(tmp_path, container):
    clip = make_clip(tmp_path / f"in.{container}", 6, chapters=True, audio="aac")
    send_through(clip, tmp_path / f"out.{container}")
    chapters = streams_of(tmp_path / f"out.{container}")[2]
    assert _titles(chapters) == [(0, "Start"), (Fraction(2, 25), "Ende")]


@pytest.mark.parametrize(("container", "rotation"), [("mp4", 90), ("mp4", 180), ("mkv", -90), ("mov", 90)])
def test_rotation_and_pixel_aspect_are_kept(tmp_path, container, rotation):
    clip = make_clip(tmp_path / f"in.{container}", 3, rotation=rotation, aspect=Fraction(128, 117))
    send_through(clip, tmp_path / f"out.{container}")
    with VideoReader(clip) as before, VideoReader(tmp_path / f"out.{container}") as after:
        assert abs(after.info.rotation) == abs(rotation)
        assert after.info.display_matrix == before.info.display_matrix
        assert after.info.sample_aspect_ratio == Fraction(128, 117)


def _with_cover(path, clip):
    """The clip with a PNG as its cover."""
    painter = av.CodecContext.create("png", "w")
    painter.width, painter.height, painter.pix_fmt, painter.time_base = 32, 32, "rgb24", Fraction(1)
    picture = (painter.encode(random_frame("rgb24", 32, 32)) + painter.encode(None))[0]
    with av.open(str(clip)) as source, av.open(str(path), "w") as out:
        film = out.add_stream_from_template(source.streams.video[0], opaque=True)
        cover = out.add_mux_stream("png", width=32, height=32, time_base=Fraction(1, 1000))
        cover.disposition = Disposition.attached_pic
        picture.pts = picture.dts = 0
        picture.time_base, picture.stream = Fraction(1, 1000), cover
        out.mux(picture)
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = film
                out.mux(packet)
    return bytes(picture)


def test_cover_pictures_move_between_containers(tmp_path):
    picture = _with_cover(tmp_path / "a.mp4", make_clip(tmp_path / "in.mp4", 3))
    for before, after in (("a.mp4", "b.mp4"), ("b.mp4", "c.mkv"), ("c.mkv", "d.mkv"), ("d.mkv", "e.mp4")):
        assert send_through(tmp_path / before, tmp_path / after).left_out == []
        with VideoReader(tmp_path / after) as reader:
            cover = next(s for s in reader.copied_streams if s.disposition & Disposition.attached_pic)
            assert reader.cover(cover.index) == picture
    assert send_through(tmp_path / "a.mp4", tmp_path / "f.mov").left_out == [
        "mov cannot hold video stream 1 (png), which is left out; an output named .mkv holds it"
    ]


@pytest.mark.parametrize(("start", "kept"), [("01:00:00:00", "01:00:00:00"), ("01:00:00;02", "01:00:00:02")])
def test_timecode_goes_on_at_a_rate_that_can_count_it(tmp_path, start, kept):
    with av.open(str(tmp_path / "in.mov"), "w") as out:
        stream = out.add_stream("libx264", rate=Fraction(30000, 1001), width=64, height=48)
        stream.metadata["timecode"] = start
        for k in range(3):
            out.mux(stream.encode(smooth_frame("yuv420p", 64, 48, k)))
        out.mux(stream.encode(None))
    muxer = send_through(tmp_path / "in.mov", tmp_path / "out.mov", rate=Fraction(60))
    assert muxer.left_out == []
    with av.open(str(tmp_path / "out.mov")) as out:
        assert out.streams.video[0].metadata["timecode"] == kept


def test_camera_tags_of_phones_are_kept(tmp_path):
    tags = {"com.apple.quicktime.make": "Apple", "com.apple.quicktime.location.ISO6709": "+52.5+13.4/"}
    clip = make_clip(tmp_path / "in.mov", 2, metadata=tags, muxing={"movflags": "use_metadata_tags"})
    send_through(clip, tmp_path / "out.mov")
    assert streams_of(tmp_path / "out.mov")[1].items() >= tags.items()


def test_an_aspect_that_the_container_cannot_hold_is_said(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 2, aspect=Fraction(4, 3))
    muxer = send_through(clip, tmp_path / "out.webm")
    assert muxer.left_out == ["webm loses the pixel aspect 4/3 with vp9; .mp4 keeps it"]


def test_what_mp4_cannot_hold_is_named(tmp_path):
    clip = make_clip(tmp_path / "in.mkv", 3, audio="aac", subtitles=("subrip",), font=b"font")
    muxer = send_through(clip, tmp_path / "out.mp4")
    assert [kind for kind, _, _ in streams_of(tmp_path / "out.mp4")[0]] == ["video", "audio", "subtitle"]
    subtitle, font = muxer.left_out
    assert subtitle == "subtitle stream 2 (subrip, fra) becomes mov_text; the words stay, colours and fonts do not"
    assert font.startswith("mp4 cannot hold attachment stream 3")


@pytest.mark.parametrize(
    ("source", "codec", "target"),
    [("mkv", "subrip", "mp4"), ("mkv", "subrip", "mov"), ("mp4", "mov_text", "mkv"), ("webm", "webvtt", "mp4")],
)
def test_text_subtitles_change_their_form_and_keep_words_and_times(tmp_path, source, codec, target):
    payload = struct.pack(">H", 7) + b"Bonjour" if codec == "mov_text" else b"Bonjour"
    video = {"codec": "libvpx-vp9"} if source == "webm" else {}
    clip = make_clip(tmp_path / f"in.{source}", 6, subtitles=(codec,), words=payload, **video)
    send_through(clip, tmp_path / f"out.{target}")
    read = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-i", tmp_path / f"out.{target}", "-f", "srt", "-"]
    text = subprocess.run(read, capture_output=True, check=True).stdout.decode().replace("\r", "")
    assert text == "1\n00:00:00,040 --> 00:00:00,140\nBonjour\n\n"
    assert ("subtitle", "fra") in [(kind, language) for kind, language, _ in streams_of(tmp_path / f"out.{target}")[0]]


@pytest.mark.parametrize(
    ("before", "after", "text", "want"),
    [
        ("subrip", "mov_text", "{\\an8}<i>Tom & <font color=red>J</font></i>\r\nü", "Tom & J\nü"),
        ("subrip", "webvtt", "<i>Tom & <font color=red>J</font></i>", "<i>Tom &amp; J</i>"),
        ("webvtt", "subrip", "<v Tom><b>a &lt; b</b></v>", "<b>a < b</b>"),
        ("mov_text", "webvtt", "a < b & c", "a &lt; b &amp; c"),
        ("mov_text", "subrip", "a < b & c", "a < b & c"),
        ("mov_text", "subrip", "", None),
    ],
)
def test_subtitle_text_is_converted(before, after, text, want):
    def packed(codec, words):
        data = words.encode()
        return struct.pack(">H", len(data)) + data if codec == "mov_text" else data

    styles = b"\0\0\0\x0cstyl\0\0\0\0" if before == "mov_text" else b""
    assert converted(packed(before, text) + styles, before, after) == (None if want is None else packed(after, want))


def test_audio_that_cannot_be_held_is_refused_unless_dropped(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 3, audio="aac")
    with pytest.raises(
        UserError, match=r"webm cannot hold audio stream 1 \(aac, deu.*\); an output named \.mkv holds it"
    ):
        send_through(clip, tmp_path / "out.webm")
    send_through(clip, tmp_path / "out.webm", audio=False)
    assert [kind for kind, _, _ in streams_of(tmp_path / "out.webm")[0]] == ["video"]


@pytest.mark.parametrize("container", ["mp4", "mkv"])
def test_a_late_start_is_kept_against_the_audio(tmp_path, container):
    clip = make_clip(tmp_path / f"in.{container}", 5, pts=[33, 43, 53, 63, 73], audio="aac", options={"bf": "0"})
    send_through(clip, tmp_path / f"out.{container}")
    before, after = frames_of(clip), frames_of(tmp_path / f"out.{container}")
    assert before[0].time > Fraction(1, 10)
    assert [f.time for f in after] == [f.time for f in before]
    assert packets_of(tmp_path / f"out.{container}", "audio") == packets_of(clip, "audio")


def test_a_video_that_starts_before_zero_is_moved_with_its_audio(tmp_path):
    before_zero = {"avoid_negative_ts": "disabled"}
    clip = make_clip(
        tmp_path / "in.ts", 5, pts=[-20, -10, 0, 10, 20], options={"bf": "0"}, audio="mp2", muxing=before_zero
    )
    with VideoReader(clip) as reader:
        assert reader.info.start == Fraction(-2, 25)
    send_through(clip, tmp_path / "out.mp4", rate=Fraction(25))
    assert [f.time for f in frames_of(tmp_path / "out.mp4")] == [Fraction(k, 25) for k in range(5)]
    moved = packets_of(tmp_path / "out.mp4", "audio")
    original = packets_of(clip, "audio")
    assert [m for m, _, _ in moved] == [m for m, _, _ in original]
    assert abs(moved[0][1] - original[0][1] - Fraction(2, 25)) < Fraction(1, 40000)


def test_ticks_of_odd_rates_and_starts_are_exact(tmp_path):
    rate = Fraction(60000, 1001)
    with VideoReader(make_clip(tmp_path / "in.mp4", 3)) as reader:
        info = reader.info
        encoder = VideoEncoder(choose_encoder(EncodeOptions(), info, "mp4"), info, rate)
        muxer = Muxer(tmp_path / "out.mp4", encoder, start=Fraction(23, 1000))
        for k in range(6):
            for packet in encoder.encode(smooth_frame("yuv420p", 64, 48, k), k):
                muxer.mux_video(packet)
        for packet in encoder.flush():
            muxer.mux_video(packet)
        muxer.close()
    with VideoReader(tmp_path / "out.mp4") as reader:
        times = [e.time for e in reader.events()]
        assert reader.info.average_rate == rate
    assert times == [Fraction(23, 1000) + k / rate for k in range(6)]


def test_stretched_time_moves_subtitles_and_chapters(tmp_path):
    clip = make_clip(tmp_path / "in.mkv", 6, subtitles=("subrip",), chapters=True)
    send_through(clip, tmp_path / "out.mkv", audio=False, stretch=Fraction(3))
    (_, time, _) = packets_of(tmp_path / "out.mkv", "subtitle")[0]
    assert time == 3 * Fraction(40, 1000)
    assert [c["start"] * c["time_base"] for c in streams_of(tmp_path / "out.mkv")[2]] == [0, 3 * Fraction(2, 25)]


def test_hevc_in_mp4_is_tagged_for_every_player(tmp_path):
    send_through(make_clip(tmp_path / "in.mp4", 2), tmp_path / "out.mp4", EncodeOptions(codec="hevc"))
    with av.open(str(tmp_path / "out.mp4")) as out:
        assert out.streams.video[0].codec_context.codec_tag == "hvc1"


def test_a_half_written_file_is_playable_once_closed(tmp_path):
    send_through(make_clip(tmp_path / "in.mp4", 20, audio="aac"), tmp_path / "out.mp4", limit=7)
    assert len(frames_of(tmp_path / "out.mp4")) == 7


def test_metadata_that_is_no_utf8_goes_through(tmp_path):
    clip = make_clip(tmp_path / "in.avi", 2, codec="mpeg4", metadata={"title": "xxGrxx"})
    clip.write_bytes(clip.read_bytes().replace(b"xxGrxx", b"Gr\xf6\xdfe "))
    send_through(clip, tmp_path / "out.mkv")
    assert len(frames_of(tmp_path / "out.mkv")) == 2


def test_containers_are_known_by_their_suffix():
    assert [container_of(p) for p in ("a.mp4", "b.MKV", "c.d.webm", "e.mov", "-", "f.y4m")] == [
        "mp4", "matroska", "webm", "mov", "yuv4mpegpipe", "yuv4mpegpipe"]  # fmt: skip
    for path, message in (
        ("a.xyz", r"a\.xyz has the suffix \.xyz; an output video ends in \.mp4"),
        ("a", "a has no suffix"),
    ):
        with pytest.raises(UserError, match=message):
            container_of(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    clip = make_clip(tmp_path / "in.mp4", 2)
    with pytest.raises(UserError, match=r"cannot write .*missing/out\.mp4: No such file or directory"):
        send_through(clip, tmp_path / "missing" / "out.mp4")


def test_y4m_holds_the_same_frames(tmp_path):
    clip = make_clip(tmp_path / "in.mkv", 3, codec="ffv1", pix_fmt="yuv420p10le")
    send_through(clip, tmp_path / "out.y4m")
    assert [md5(f.frame) for f in frames_of(tmp_path / "out.y4m")] == [md5(f.frame) for f in frames_of(clip)]


def test_y4m_goes_out_by_standard_output(tmp_path):
    clip = make_clip(tmp_path / "in.mkv", 3, codec="ffv1")
    script = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(tmp_path)!r}); sys.path.insert(0, {str(__file__.rpartition('/')[0])!r})\n"
        f"from video_clips import send_through; send_through(Path({str(clip)!r}), '-')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    (tmp_path / "out.y4m").write_bytes(done.stdout)
    with VideoReader(tmp_path / "out.y4m") as reader:
        assert reader.info.average_rate == 25
        frames = [e.frame for e in reader.events() if isinstance(e, Decoded)]
    assert [md5(f) for f in frames] == [md5(f.frame) for f in frames_of(clip)]
