"""``rife probe``: what it says of clips made here, and of real ones."""

import json
import os
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from papershelf.images import write_image
from rife.cli_study import probe_command
from rife.probe import facts_of
from video_clips import make_clip

REAL = Path(os.environ.get("PAPERSHELF_DATA", "")) / "video"
real_clips = pytest.mark.skipif("PAPERSHELF_DATA" not in os.environ, reason="PAPERSHELF_DATA is not set: no clips")


def probe(path, *args, code=0):
    result = CliRunner().invoke(probe_command, [str(path), *args])
    assert result.exit_code == code, result.output
    return result.stdout if code == 0 else result.stderr.strip()


def test_a_clip_with_everything(tmp_path):
    tags = {"colorspace": 1, "color_range": 2, "color_primaries": 1, "color_trc": 13}
    path = make_clip(
        tmp_path / "in.mkv", 10, tags=tags, audio="aac", subtitles=("subrip",), chapters=True,
        metadata={"title": "Täst"}, aspect=Fraction(4, 3),
    )  # fmt: skip
    facts = json.loads(probe(path, "--json"))
    assert (facts["codec"], facts["width"], facts["height"], facts["pixel_aspect"]) == ("h264", 64, 48, "4/3")
    color = facts["color"]
    assert color["matrix"] == {"value": "bt709", "assumed": False, "tag": 1}
    assert color["range"] == {"value": "full", "assumed": False, "tag": "full"}
    assert (color["primaries"], color["transfer"], color["bits"]) == ("bt709", "srgb", 8)
    kinds = {(s["type"], s["codec"], s["language"]) for s in facts["copied_streams"]}
    assert kinds == {("audio", "aac", "deu"), ("subtitle", "subrip", "fra")}
    assert facts["chapters"] == [
        {"start": 0.0, "end": 0.08, "title": "Start"},
        {"start": 0.08, "end": 0.24, "title": "Ende"},
    ]
    assert facts["metadata"]["title"] == "Täst"
    assert facts["time"]["constant_rate"] is True
    assert facts["output"]["encoder"] == "libx264"
    text = probe(path)
    for piece in ("matrix bt709,", "full range,", "audio 1: aac, stereo, deu, Ton", "0.08 to 0.24 s Ende"):
        assert piece in text


def test_what_is_assumed_is_marked(tmp_path):
    facts = facts_of(make_clip(tmp_path / "in.mp4", 3))
    color = facts["color"]
    assert color["matrix"] == {"value": "bt601", "assumed": True, "tag": None}
    assert color["range"] == {"value": "limited", "assumed": True, "tag": None}
    assert (color["primaries"], color["transfer"]) == (None, None)
    text = probe(tmp_path / "in.mp4")
    assert "matrix bt601 (assumed), limited range (assumed)" in text
    assert "no other streams" in text


def test_variable_rates(tmp_path):
    path = make_clip(tmp_path / "in.mp4", 5, pts=[0, 10, 40, 50, 90], options={"bf": "0"})
    time = facts_of(path)["time"]
    assert time["constant_rate"] is False
    assert (time["shortest_gap"], time["longest_gap"]) == ("1/25", "4/25")
    assert "variable by the time stamps of 5 frames, 40.00 to 160.00 ms apart" in probe(path)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_rounded_time_stamps_are_constant(tmp_path, suffix):
    """29.97 fps in Matroska's milliseconds, B-frames out of order."""
    path = make_clip(tmp_path / f"in.{suffix}", 40, rate=Fraction(30000, 1001))
    time = facts_of(path)["time"]
    assert time["constant_rate"] is True
    assert time["frames_looked_at"] == 40
    assert Fraction(time["nominal_rate"]) == Fraction(30000, 1001)


def test_only_so_many_frames_are_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr("rife.probe.LOOKED_AT", 32)
    path = make_clip(tmp_path / "in.mp4", 40, pts=[10 * k + 5 * (k == 39) for k in range(40)])
    assert facts_of(path)["time"]["constant_rate"] is True  # the odd one is the last
    assert facts_of(path)["time"]["frames_looked_at"] == 30
    assert facts_of(path, whole=True)["time"]["constant_rate"] is False


def test_rotation_start_and_one_frame(tmp_path):
    turned = facts_of(make_clip(tmp_path / "turned.mp4", 3, rotation=90))
    assert turned["rotation"] in (90, -90)
    assert f"shown turned by {turned['rotation']} degrees" in probe(tmp_path / "turned.mp4")
    late = facts_of(make_clip(tmp_path / "late.mkv", 3, pts=[100, 110, 120], audio="aac"))
    assert Fraction(late["time"]["start"]) == Fraction(2, 5)
    single = facts_of(make_clip(tmp_path / "one.mp4", 1))
    assert single["time"]["constant_rate"] is None
    assert "unknown by the time stamps of 1 frames" in probe(tmp_path / "one.mp4")


def test_a_folder_of_images(tmp_path):
    for n in (9, 10):
        write_image(tmp_path / f"f{n}.png", np.zeros((8, 12, 3), np.uint16))
    facts = json.loads(probe(tmp_path, "--json"))
    assert (facts["frames"], facts["files"], facts["depth"]) == (2, ["f9.png", "f10.png"], "uint16")
    assert "2 images, f9.png to f10.png, 12x8, 3 channels of uint16" in probe(tmp_path)


def test_what_will_be_lost_is_said(tmp_path):
    path = make_clip(tmp_path / "in.mkv", 2, codec="ffv1", pix_fmt="yuva420p", size=(64, 48))
    facts = facts_of(path)
    assert facts["color"]["alpha"] is True
    assert facts["output"]["codec"] == "ffv1"


@pytest.mark.parametrize(
    ("name", "said"), [("missing.mp4", "no such file"), ("notes.txt", "notes.txt"), ("-", "standard")]
)
def test_refusals(tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("hello")
    line = probe(name, code=1)
    assert line.startswith("Error: ")
    assert said in line
    assert len(line.splitlines()) == 1


@real_clips
def test_hdr10():
    facts = facts_of(REAL / "hdr10.mkv")
    assert facts["color"]["transfer"] == "pq"
    assert facts["color"]["primaries"] == "bt2020"
    assert facts["color"]["bits"] == 10
    assert facts["hdr"]["light"] == {"max_cll": 1000, "max_fall": 400}
    assert facts["time"]["frames_looked_at"] == 20
    assert "mastered for 0.005 to 1000 cd/m2, MaxCLL 1000, MaxFALL 400" in probe(REAL / "hdr10.mkv")


@real_clips
@pytest.mark.parametrize(
    ("name", "constant"), [("bigbuckbunny.mp4", True), ("cup.mp4", True), ("vfr_25_to_12.5.mp4", False)]
)
def test_real_rates(name, constant):
    assert facts_of(REAL / name)["time"]["constant_rate"] is constant
