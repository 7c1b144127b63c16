"""Real clips through the whole command, and what they had is still there: tags, depth, times, streams."""

import json
import os
from fractions import Fraction
from pathlib import Path

import av
import pytest
from click.testing import CliRunner
from rife.cli import interp
from rife.reader import Decoded, VideoReader
from video_clips import packets_of

DATA = Path(os.environ.get("PAPERSHELF_DATA", "")) / "video"
pytestmark = pytest.mark.skipif("PAPERSHELF_DATA" not in os.environ, reason="PAPERSHELF_DATA is not set")
CLIPS = [
    ("hdr10.mkv", 50),
    ("h264_10bits.mp4", 60),
    ("vfr_25_to_12.5.mp4", 25),
    ("av1_video.mkv", 30),
    ("tree.avi", 20),
]


@pytest.mark.parametrize(("name", "rate"), CLIPS)
def test_a_clip_keeps_what_it_had(name, rate, averaging, tmp_path):
    output = tmp_path / ("out.mkv" if name == "tree.avi" else f"out{Path(name).suffix}")
    options = ["--fps", str(rate), "-o", str(output), "--weights", str(averaging), "--device", "cpu", "--json"]
    result = CliRunner().invoke(interp, [str(DATA / name), *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert abs(Fraction(report["drift_seconds"])) < Fraction(1, rate)

    with VideoReader(DATA / name) as before, VideoReader(output) as after:
        a, b = before.info, after.info
        assert (b.width, b.height) == (a.width, a.height)
        assert b.color.bits == a.color.bits
        assert b.hdr == a.hdr
        assert (b.rotation, b.sample_aspect_ratio or 1) == (a.rotation, a.sample_aspect_ratio or 1)
        if a.color.matrix != "rgb":  # which becomes YUV of the assumed matrix, and is tagged so
            assert b.color.tags == a.color.tags
            assert b.pix_fmt == a.pix_fmt
        times = [event.time for event in after.events() if isinstance(event, Decoded)]
    exact = [a.start + Fraction(k, rate) for k in range(len(times))]
    tick = Fraction(1, 1000) if output.suffix == ".mkv" else 0  # all that Matroska can say
    assert len(times) == report["frames_out"]
    assert all(abs(found - wanted) <= tick for found, wanted in zip(times, exact, strict=True))

    with av.open(str(DATA / name)) as source:
        has_sound = bool(source.streams.audio)
    if has_sound:
        assert packets_of(output, "audio") == packets_of(DATA / name, "audio")
