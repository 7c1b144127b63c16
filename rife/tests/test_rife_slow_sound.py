"""Sound of slow motion: as long as the picture, at its own pitch."""

from __future__ import annotations

import json
from fractions import Fraction

import av
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rife.cli import interp
from rife.slow_sound import tempo_steps
from video_clips import make_clip


def waveform(path) -> tuple[str, int, np.ndarray]:
    """Codec, rate and samples of the first channel."""
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        frames = list(file.decode(stream))
        planes = [f.to_ndarray()[0, :: 1 if f.format.is_planar else len(f.layout.channels)] for f in frames]
        return stream.codec_context.codec.canonical_name, stream.rate, np.concatenate(planes).astype(float)


def pitch(rate, samples) -> float:
    spectrum = np.abs(np.fft.rfft(samples * np.hanning(len(samples))))
    return np.argmax(spectrum) * rate / len(samples)


@pytest.mark.parametrize(
    ("source", "target", "codec", "becomes"),
    [
        ("mp4", "mp4", "aac", "aac"),
        ("mkv", "mkv", "flac", "flac"),
        ("mkv", "webm", "aac", "opus"),
        ("mov", "mov", "pcm_s16le", "aac"),
    ],
)
@pytest.mark.parametrize("factor", ["4", "5/2", "0.4"])
def test_stretched_sound_is_as_long_as_the_picture(
    tmp_path, monkeypatch, averaging, source, target, codec, becomes, factor
):
    monkeypatch.chdir(tmp_path)
    clip = make_clip(tmp_path / f"in.{source}", 5, audio=codec)
    args = ["--slowmo", factor, "--fps", "25", "--slowmo-audio", "stretch", "--weights", str(averaging), "--json"]
    result = CliRunner().invoke(interp, [str(clip), *args, "--device", "cpu", "-o", f"out.{target}"])
    assert result.exit_code == 0, result.output
    assert any("stretched" in warning for warning in json.loads(result.stdout)["warnings"])
    _, rate, before = waveform(clip)
    made, new_rate, after = waveform(tmp_path / f"out.{target}")
    assert made == becomes
    assert abs(len(after) / new_rate - Fraction(factor) * len(before) / rate) < 0.025  # an encoder's own frame
    sounding = int(0.8 * min(len(before) / rate * Fraction(factor), 1) * new_rate)
    assert abs(pitch(new_rate, after[:sounding]) - pitch(rate, before)) < 0.05 * pitch(rate, before)


@given(st.fractions(Fraction(1, 64), 64))
def test_steps_stay_within_the_filter_and_multiply_to_the_tempo(tempo):
    steps = tempo_steps(tempo)
    assert np.prod([Fraction(s) for s in steps]) == tempo
    assert all(Fraction(1, 2) <= step <= 2 for step in steps)
