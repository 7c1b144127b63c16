"""Real videos go through reader, encoder and muxer and keep what they had."""

from __future__ import annotations

import itertools
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from rife.encoder import EncodeOptions
from rife.reader import Decoded, VideoReader
from video_clips import frames_of, md5, packets_of, send_through

from rife import color

pytestmark = pytest.mark.skipif("PAPERSHELF_DATA" not in os.environ, reason="PAPERSHELF_DATA is not set: no clips")
CLIPS = Path(os.environ.get("PAPERSHELF_DATA", "")) / "video"
# Clip, output container, frames to encode.
THROUGH = [
    ("hdr10.mkv", "mkv", 20),
    ("hdr10.mkv", "mp4", 4),
    ("h264_10bits.mp4", "mp4", 30),
    ("vfr_25_to_12.5.mp4", "mp4", 20),
    ("av1_video.mkv", "mkv", 6),
    ("cup.mp4", "mp4", 6),
    ("bigbuckbunny.mp4", "mp4", 4),
    ("bigbuckbunny.mp4", "mkv", 4),
    ("carphone_pristine.mp4", "mp4", 20),
]


@pytest.mark.parametrize(("clip", "container", "count"), THROUGH)
def test_clips_keep_their_tags_depth_and_metadata(tmp_path, clip, container, count):
    muxer = send_through(CLIPS / clip, tmp_path / f"out.{container}", limit=count)
    with VideoReader(CLIPS / clip) as before, VideoReader(tmp_path / f"out.{container}") as after:
        old, new = before.info, after.info
        frames = [e for e in after.events() if isinstance(e, Decoded)]
        old_streams, new_streams = before.container.streams, after.container.streams
        assert [s.type for s in new_streams] == [s.type for s in old_streams]
        assert [s.language or "und" for s in new_streams] == [s.language or "und" for s in old_streams]
        if clip == "cup.mp4":  # the others have none, or the epoch, which stands for none
            assert after.container.metadata["creation_time"] == "2017-09-01T02:23:48.000000Z"
    assert new.color == old.color
    assert (new.width, new.height, new.codec) == (old.width, old.height, old.codec)
    assert (new.sample_aspect_ratio, new.hdr, new.rotation) == (old.sample_aspect_ratio, old.hdr, old.rotation)
    assert new.average_rate == old.average_rate
    assert [f.time for f in frames] == [k / old.average_rate for k in range(count)]
    assert frames[-1].duration == 1 / old.average_rate
    assert (muxer.left_out, muxer.problems) == ([], {})


@pytest.mark.parametrize("clip", ["cup.mp4", "bigbuckbunny.mp4", "vfr_25_to_12.5.mp4"])
def test_audio_of_clips_is_identical(tmp_path, clip):
    send_through(CLIPS / clip, tmp_path / "out.mp4", EncodeOptions(preset="ultrafast"), limit=3)
    assert packets_of(tmp_path / "out.mp4", "audio") == packets_of(CLIPS / clip, "audio")


def test_audio_of_a_clip_is_identical_in_matroska_up_to_its_milliseconds(tmp_path):
    send_through(CLIPS / "bigbuckbunny.mp4", tmp_path / "out.mkv", EncodeOptions(preset="ultrafast"), limit=3)
    old, new = (packets_of(p, "audio") for p in (CLIPS / "bigbuckbunny.mp4", tmp_path / "out.mkv"))
    assert [digest for digest, _, _ in new] == [digest for digest, _, _ in old]
    assert max(abs(a - b) for (_, a, _), (_, b, _) in zip(old, new, strict=True)) <= Fraction(1, 1000)


@pytest.mark.parametrize(
    ("clip", "codec"),
    [("h264_10bits.mp4", "h264"), ("hdr10.mkv", "ffv1"), ("vfr_25_to_12.5.mp4", "h264"), ("tree.avi", "ffv1")],
)
def test_frames_of_clips_survive_lossless_coding_bit_for_bit(tmp_path, clip, codec):
    send_through(
        CLIPS / clip, tmp_path / "out.mkv", EncodeOptions(codec=codec, crf=0 if codec == "h264" else None), limit=5
    )
    originals = frames_of(CLIPS / clip)[:5]
    for old, new in zip(originals, frames_of(tmp_path / "out.mkv"), strict=True):
        if clip == "tree.avi":  # RGB in another order of bytes
            np.testing.assert_array_equal(color.to_rgb(old.frame), color.to_rgb(new.frame))
        else:
            assert md5(old.frame) == md5(new.frame)


@pytest.mark.parametrize("clip", ["hdr10.mkv", "h264_10bits.mp4", "cup.mp4", "carphone_pristine.mp4", "tree.avi"])
def test_colour_conversion_returns_real_frames_unchanged(clip):
    with VideoReader(CLIPS / clip) as reader:
        frames = (e.frame for e in reader.events() if isinstance(e, Decoded))
        for _, frame in zip(range(3), frames, strict=False):
            assert md5(color.from_rgb(color.to_rgb(frame, reader.info.color), reader.info.color)) == md5(frame)


def test_a_variable_frame_rate_is_read_as_it_is():
    times = [f.time for f in frames_of(CLIPS / "vfr_25_to_12.5.mp4")]
    gaps = {b - a for a, b in itertools.pairwise(times)}
    assert gaps == {Fraction(1, 25), Fraction(2, 25)}


def test_rgb_of_an_old_codec_becomes_tagged_yuv(tmp_path):
    muxer = send_through(CLIPS / "tree.avi", tmp_path / "out.mp4", limit=5)
    with VideoReader(CLIPS / "tree.avi") as before, VideoReader(tmp_path / "out.mp4") as after:
        assert before.info.pix_fmt == "rgb24"
        assert (after.info.pix_fmt, after.info.color.matrix, after.info.color.full_range) == ("yuv420p", "bt601", False)
        assert (after.info.color.tags.matrix, after.info.color.tags.range) == (6, 1)
        old, new = (next(e.frame for e in r.events() if isinstance(e, Decoded)) for r in (before, after))
        difference = (color.to_rgb(old) - color.to_rgb(new)).abs().mean().item() * 255
    assert difference < 3
    assert muxer.left_out == []


def test_matroska_statistics_of_the_old_stream_are_not_copied(tmp_path):
    send_through(CLIPS / "av1_video.mkv", tmp_path / "out.mkv", limit=5)
    with av.open(str(tmp_path / "out.mkv")) as out:
        tags = out.streams.video[0].metadata
    assert tags["DURATION"].startswith("00:00:00.2")
    assert "ENCODER" not in tags
