"""One interpolation, from options to a finished file: what to do is planned first, then done."""

from __future__ import annotations

import ctypes
import os
import platform
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path

import torch
from papershelf.devices import device_named
from papershelf.errors import UserError
from tqdm import tqdm

from rife import pipeline, segmented
from rife.cuts import THRESHOLD
from rife.decisions import DecisionOptions
from rife.encoder import EncodeOptions
from rife.interpolator import Interpolator, members, usual_scale
from rife.preview import FASTEST_GIF, PREVIEW_SUFFIXES, preview_sink
from rife.report import Report
from rife.sequence import ImageSource, check_free, image_sink
from rife.timeline import Timeline, parse_factor, parse_rate
from rife.video import VIDEO_SUFFIXES, VideoSource, video_sink

IMAGE_RATE = Fraction(24)  # of a folder whose rate nobody gave: film's
SHORT = Fraction(9, 10)  # frames that end before this share of the stated duration are worth a note
USUAL_SUFFIX = ".mkv"  # for results of inputs in containers that are only read: it holds every stream


@dataclass(frozen=True)
class Options:
    """What the command line says; rates and factors as they were written."""

    input: Path
    fps: str = "2x"
    slowmo: str | None = None
    slowmo_audio: str = "drop"
    input_fps: str | None = None
    mode: str = "balanced"
    weights: Path | None = None
    ensemble: bool = False
    scale: str = "auto"
    precision: str = "auto"
    memory: float | None = None  # GB
    cut: str = "hold"
    cut_threshold: float = THRESHOLD
    cut_list: Path | None = None
    dedup: bool = False
    lock_overlays: bool = False
    output: Path | None = None
    overwrite: bool = False
    codec: str | None = None
    crf: float | None = None
    preset: str | None = None
    pix_fmt: str | None = None
    image_format: str | None = None
    hardware: str = "off"
    preview_size: int = 640
    resume: bool = False
    device: str = "auto"  # or several: "cuda:0,cuda:1"
    threads: int | None = None


@dataclass(frozen=True)
class Job:
    """An interpolation that can be started: input and options have been looked at, nothing is written yet."""

    options: Options
    source: VideoSource | ImageSource
    output: Path
    kind: str  # of output: "video", "preview" or "images"
    timeline: Timeline
    slowmo: Fraction
    encode: EncodeOptions

    @property
    def devices(self) -> tuple[str, ...]:
        """Where the networks run, one process for each."""
        return tuple(self.options.device.split(","))

    @property
    def scale(self) -> float:
        """Of the flow search; by itself 0.5 for 4K and 0.25 for 8K."""
        given = self.options.scale
        return usual_scale(self.source.height, self.source.width) if given == "auto" else float(given)

    @property
    def sound(self) -> bool:
        """Whether the output has sound where the input has it."""
        return self.slowmo == 1 or self.options.slowmo_audio == "stretch"

    @property
    def image_suffix(self) -> str:
        """Of a folder's images."""
        wanted = self.options.image_format
        return f".{wanted}" if wanted else self.source.image_suffix

    @property
    def frames_expected(self) -> int | None:
        """How many frames will come out, where the input says its duration."""
        if self.source.duration is None:
            return None
        return self.timeline.count(self.timeline.start + self.source.duration * self.slowmo)

    def as_json(self) -> dict:
        """The plan in plain numbers and strings."""
        return self.new_report().as_json() | {"frames_expected": self.frames_expected}

    def summary(self) -> str:
        """The plan in a few lines."""
        source, options = self.source, self.options
        size, frames = f"{source.width}x{source.height}", self.frames_expected
        new = "an unknown number of" if frames is None else frames
        networks = options.weights or f"{options.mode} ({', '.join(m.weights for m in members(options.mode))})"
        return "\n".join(
            [
                f"{options.input}: {size}, {rate_name(source.rate)} fps, {seconds(source.duration)}",
                f"{self.output}: {new} frames at {rate_name(self.timeline.fps)} fps, {self.kind}",
                f"networks: {networks}, device {options.device}, scale {self.scale:g}",
            ]
        )

    def run(self) -> Report:
        """Do it, with a progress bar on stderr.

        Raises:
            UserError: whatever the user can put right; nothing is left behind then.
            KeyboardInterrupt: on Ctrl-C; its text says where what was done by then lies.
        """
        report = self.new_report()
        with _terminated_like_ctrl_c():
            if self.options.resume or len(self.devices) > 1:
                segmented.run(self, report)
            else:
                with self._sink(report) as sink, self.progress() as bar:
                    self.render(sink, report, bar.update)
        self.source.close()
        report.warnings += [f"{count} {what}" for what, count in self.source.problems.items()]
        declared = (self.source.duration or 0) * self.slowmo
        if report.source_seconds < SHORT * declared:
            found, said = seconds(report.source_seconds), seconds(declared)
            report.warnings.append(f"the frames end after {found}, but the file says {said}: is it cut off?")
        report.finish(self.timeline.fps)
        return report

    def progress(self, done: int = 0) -> tqdm:
        """A bar on stderr for the output's frames, of which ``done`` are there already."""
        return tqdm(
            total=self.frames_expected, initial=done, unit="frame", disable=None, file=sys.stderr, smoothing=0.1
        )

    def render(self, sink: pipeline.Sink, report: Report, on_frame: Callable[[], object]) -> None:
        """Send the output's frames into ``sink``, as far as it wants them; see :func:`rife.pipeline.run`."""
        if self.options.threads:
            torch.set_num_threads(self.options.threads)
        interpolator = self._interpolator()
        if interpolator.device.type == "cpu":
            _keep_freed_memory()
        report.settings["device"] = str(interpolator.device)
        o = self.options
        decisions = DecisionOptions(o.cut, o.cut_threshold, o.cut_list, o.dedup, o.lock_overlays)
        pipeline.run(
            self.source,
            sink,
            interpolator,
            self.timeline,
            report,
            slowmo=self.slowmo,
            decisions=decisions,
            on_frame=on_frame,
        )

    def _interpolator(self) -> Interpolator:
        o = self.options
        how = {"device": o.device, "scale": self.scale, "precision": o.precision}
        how["memory"] = None if o.memory is None else int(o.memory * 1e9)
        if o.weights:
            return Interpolator.from_file(o.weights, ensemble=o.ensemble, **how)
        return Interpolator.from_mode(o.mode, **how)

    def _sink(self, report: Report) -> AbstractContextManager[pipeline.Sink]:
        if self.kind == "video":
            source, fps = self.source, self.timeline.fps
            return video_sink(self.output, source, fps, self.encode, self.slowmo, report, sound=self.sound)
        if self.kind == "preview":
            if parse_rate(self.options.fps, self.source.rate) > self.timeline.fps:
                report.warnings.append(
                    f"GIF viewers show {FASTEST_GIF} frames a second at most; WebP has no such limit"
                )
            return preview_sink(self.output, self.source, self.timeline.fps, self.options.preview_size, report)
        return image_sink(self.output, self.image_suffix, self.source.dtype, self.source.channels)

    def new_report(self) -> Report:
        """A report with nothing done yet."""
        settings = asdict(replace(self.options, input=None, output=None))
        return Report(
            input={"path": str(self.options.input), **self.source.described()},
            output={"path": str(self.output), "fps": self.timeline.fps},
            settings={key: value for key, value in settings.items() if value is not None},
        )


def plan(options: Options) -> Job:
    """Look at the input and settle everything that can be settled before the first frame.

    Raises:
        UserError: the input cannot be read, a rate makes no sense, or the output is in the way.
    """
    if options.ensemble and not options.weights:
        raise UserError("--ensemble goes with --weights; for the modes' own networks use --mode best")
    check_devices(options.device)
    slowmo = parse_factor(options.slowmo) if options.slowmo else Fraction(1)
    source = open_source(options.input, options.input_fps)
    try:
        if source.rate is None and options.fps.strip().lower().strip("0123456789./") == "x":
            raise UserError(f"{options.input} states no frame rate to multiply: give --fps frames a second")
        fps = parse_rate(options.fps, source.rate)
        output = options.output or default_output(options.input, fps)
        kind = kind_of(output)
        check_output(output, options.input, options.overwrite, kind != "images")
        check_segments(options, output)
        if kind == "preview":
            check_preview(options)
            fps = min(fps, FASTEST_GIF) if output.suffix.lower() == ".gif" else fps
        return Job(options, source, output, kind, Timeline(fps, source.start), slowmo, encode_options(options))
    except BaseException:
        source.close()
        raise


def check_devices(names: str) -> None:
    """UserError unless these are ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, with commas between, and there."""
    for name in names.split(","):
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", name):
            raise UserError(f"--device {names}: expected auto, cpu, cuda, cuda:1, or several like cuda:0,cuda:1")
        device = device_named(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UserError(f"--device {name}: there are {torch.cuda.device_count()} GPUs, counted from cuda:0")


def encode_options(options: Options) -> EncodeOptions:
    """What the encoder is told, beside what the user asks for."""
    on_cpu = {device_named(name).type for name in options.device.split(",")} == {"cpu"}
    return EncodeOptions(
        options.codec,
        options.crf,
        options.preset,
        options.pix_fmt,
        hardware=options.hardware,
        reproducible=on_cpu or options.resume or "," in options.device,  # a GPU might have to wait for it
    )


def check_segments(options: Options, output: Path) -> None:
    """UserError where a run in segments is asked for and cannot be."""
    if not options.resume and "," not in options.device:
        return
    what = "--resume" if options.resume else "a --device list"
    if str(options.input) == "-":
        raise UserError(f"{what} reads the input more than once; save standard input to a file first")
    if str(output) == "-" or output.suffix.lower() == ".y4m":
        raise UserError(f"{what} does not go with uncompressed y4m; name an output like out.mkv")
    if kind_of(output) == "preview":
        raise UserError(f"{what} does not go with a preview; name a video or a folder")


def open_source(path: Path, input_fps: str | None) -> VideoSource | ImageSource:
    """A video or a folder of images; ``input_fps`` is the rate of a folder."""
    if not path.is_dir():
        if input_fps:
            raise UserError("--input-fps is for folders of images; a video says itself when its frames are shown")
        return VideoSource(path)
    return ImageSource(path, parse_rate(input_fps) if input_fps else IMAGE_RATE)


def kind_of(output: Path) -> str:
    """What an output's name means: "video", "preview" or "images"; UserError if none of these."""
    if output.suffix.lower() in PREVIEW_SUFFIXES:
        return "preview"
    return "video" if is_video_name(output) else "images"


def check_preview(options: Options) -> None:
    """UserError where a preview is asked for what only a video has."""
    for name in ("codec", "crf", "preset", "pix_fmt"):
        if getattr(options, name) is not None:
            raise UserError(f"a GIF or WebP preview takes no --{name.replace('_', '-')}; leave it out, or name a video")


def is_video_name(output: Path) -> bool:
    """Whether a name means a video file, and not a folder of images; UserError if it means neither."""
    if output.suffix.lower() in VIDEO_SUFFIXES or str(output) == "-":
        return True
    if output.is_dir() or not output.suffix:
        return False
    known = ", ".join(VIDEO_SUFFIXES)
    raise UserError(
        f"{output}: {output.suffix} is not a video file that can be written ({known}); name one, or a folder"
    )


def default_output(path: Path, fps: Fraction) -> Path:
    """``in.mp4`` at 60 fps becomes ``in_60fps.mp4``, a folder ``frames`` becomes ``frames_60fps``."""
    if str(path) == "-":
        raise UserError("a video from standard input has no name to derive the output's from; give -o")
    path = Path(os.path.abspath(path)) if path.name in ("", ".", "..") else path  # noqa: PTH100 (keeps links)
    name = f"{path.name if path.is_dir() else path.stem}_{rate_name(fps)}fps"
    if path.is_dir():
        return path.with_name(name)
    return path.with_name(name + (path.suffix if path.suffix.lower() in VIDEO_SUFFIXES else USUAL_SUFFIX))


def check_output(output: Path, source: Path, overwrite: bool, to_video: bool) -> None:
    """UserError if the output is the input, or exists and may not be replaced, or is a terminal."""
    if str(output) == "-":
        if sys.stdout.isatty():
            raise UserError("standard output is a terminal, which shows no video; pipe it into a program")
        return
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"{output} is the input itself; name another output with -o")
    if not to_video:
        check_free(output)
    elif output.exists() and not overwrite:
        raise UserError(f"{output} exists; pass -y to replace it, or name another output with -o")


def rate_name(rate: Fraction | None) -> str:
    """60, 59.94 or 12.5, short enough for a file name."""
    return "unknown" if rate is None else f"{float(rate):.3f}".rstrip("0").rstrip(".")


def seconds(duration: Fraction | None) -> str:
    return "unknown duration" if duration is None else f"{float(duration):.2f} s"


def _keep_freed_memory() -> None:
    """Make the C library keep what is freed: else each layer waits for zeroed pages, as much as it computes."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mappings of their own for large blocks
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


@contextmanager
def _terminated_like_ctrl_c() -> Iterator[None]:
    """A polite kill ends the run as Ctrl-C does, with what was made by then kept."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
