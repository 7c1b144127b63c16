"""Sound for slow motion: stretched at its own pitch by FFmpeg's atempo, and encoded anew.

One atempo goes down to half the speed, so slower ones are chained. It keeps a window's length at the end
to itself; silence fills that up, so that sound and picture end together.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction

import av
from av.filter import Graph

_SLOWEST, _FASTEST = Fraction(1, 2), Fraction(2)  # of one atempo, without leaving out samples
_CODECS = {"mp4": "aac", "mov": "aac", "webm": "libopus", "matroska": "aac"}
_LOSSLESS = ("flac", "alac", "truehd", "wavpack", "tta")
_HIGHEST_RATE = 48_000  # that all of these take
_BITS_PER_CHANNEL = 96_000


def tempo_steps(tempo: Fraction) -> list[Fraction]:
    """Factors of speed, each within what one filter does well, whose product is ``tempo``."""
    steps = []
    while not _SLOWEST <= tempo <= _FASTEST:
        steps.append(_SLOWEST if tempo < 1 else _FASTEST)
        tempo /= steps[-1]
    return [*steps, tempo]


class SlowSound:
    """One audio stream, decoded, stretched and encoded.

    Args:
        source: the stream whose packets will come.
        container: where the stretched stream is added.
        form: FFmpeg's name of the container's format.
        factor: how much longer the sound becomes.

    Attributes:
        stream: the stream that was added.
    """

    def __init__(
        self, source: av.AudioStream, container: av.container.OutputContainer, form: str, factor: Fraction
    ) -> None:
        kept = source.codec_context
        lossless = kept.codec.canonical_name.startswith(("pcm_", *_LOSSLESS))
        self.codec = "flac" if form == "matroska" and lossless else _CODECS[form]
        self.rate = min(kept.sample_rate, _HIGHEST_RATE) if self.codec != "libopus" else _HIGHEST_RATE
        self.factor = factor
        self.stream = container.add_stream(self.codec, rate=self.rate, layout=kept.layout.name)
        if self.codec != "flac":
            self.stream.bit_rate = _BITS_PER_CHANNEL * kept.layout.nb_channels
        self._graph = Graph()
        self._in = self._graph.add_abuffer(template=source)
        tempos = [self._graph.add("atempo", f"{float(step):.12f}") for step in tempo_steps(1 / factor)]
        form_now = self._graph.add("aformat", f"sample_rates={self.rate}:sample_fmts={self.stream.format.name}")
        self._out = self._graph.add("abuffersink")
        self._graph.link_nodes(self._in, *tempos, form_now, self._out).configure()
        self._begin: Fraction | None = None  # in seconds of the output
        self._taken = Fraction(0)  # seconds of the source
        self._given = 0  # samples
        self._form: tuple[str, str] | None = None  # sample format and layout of what comes out

    def packets(self, packet: av.Packet, start: Fraction) -> Iterator[av.Packet]:
        """What is ready after a packet of the source; ``start`` is its time on the output's clock, in seconds."""
        try:
            frames = packet.decode()
        except av.FFmpegError:  # damaged: the rest closes up
            return
        for frame in frames:
            self._begin = start if self._begin is None else self._begin
            self._taken += Fraction(frame.samples, frame.sample_rate)
            frame.pts = None
            self._in.push(frame)
            yield from self._ready()

    def rest(self) -> Iterator[av.Packet]:
        """What is still inside; no packet may follow."""
        if self._begin is None:
            return
        self._in.push(None)
        yield from self._ready()
        missing = round(self._taken * self.factor * self.rate) - self._given
        while missing > 0 and self._form is not None:
            silence = av.AudioFrame(*self._form, min(missing, self.rate))
            silence.sample_rate = self.rate
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            missing -= silence.samples
            yield from self._encoded(silence)
        yield from self.stream.encode(None)

    def _ready(self) -> Iterator[av.Packet]:
        while True:
            try:
                frame = self._out.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            self._form = frame.format.name, frame.layout.name
            yield from self._encoded(frame)

    def _encoded(self, frame: av.AudioFrame) -> Iterator[av.Packet]:
        frame.pts = round(self._begin * self.rate) + self._given
        frame.time_base = Fraction(1, self.rate)
        self._given += frame.samples
        yield from self.stream.encode(frame)
