"""Segments: an output made piece by piece, so that a killed run can go on and several devices can share it.

The output's frames are cut into runs of :data:`SECONDS`, one group of pictures each. An encoder of its
own makes each, and its packets lie in a work folder beside the output, ``.NAME.resume``, whole or not at
all. Since no encoder sees two segments, it does not matter who made one, or when: joined, they are the
same bytes. Images need no segments to be whole; for them these only say who makes which.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
from papershelf.errors import UserError
from papershelf.files import atomic_path

from rife.encoder import EncoderChoice, VideoEncoder
from rife.reader import Copied, VideoInfo

SECONDS = 4  # of output: what a kill can cost, and as far apart as seek points are anyway


class WorkFolder:
    """The folder where the finished parts of an output lie until all are there.

    Args:
        path: the folder.
        frames: of a segment.
    """

    def __init__(self, path: Path, frames: int) -> None:
        self.path, self.frames = path, frames
        self._mine: dict[int, bool] = {}

    @property
    def images(self) -> Path:
        """Where images lie, by their final names."""
        return self.path / "frames"

    @property
    def memory(self) -> Path:
        """A note of the memory in GB that the networks may take."""
        return self.path / "memory"

    def packets(self, segment: int) -> Path:
        """The file of a video's segment; it is there when the segment is whole."""
        return self.path / f"{segment:06d}.packets"

    def takes(self, index: int) -> bool:
        """Whether a frame is for this process to make: its segment is not done, and no other process is at it."""
        segment = index // self.frames
        if segment not in self._mine:
            self._mine[segment] = not self.packets(segment).exists() and self._claim(segment)
        return self._mine[segment]

    def done(self) -> int:
        """How many segments are there, from the first to the first that is missing."""
        segment = 0
        while self.packets(segment).exists():
            segment += 1
        return segment

    def frames_kept(self) -> int:
        """About how many frames are there: a last segment counts as a full one."""
        return self.frames * len(list(self.path.glob("*.packets"))) + len(list(self.images.glob("*")))

    def clear_traces(self) -> None:
        """Forget the claims and the half-written files of processes that are no more."""
        for trace in [*self.path.glob("*.claim"), *self.path.rglob(".part-*")]:
            trace.unlink()

    def _claim(self, segment: int) -> bool:
        try:
            (self.path / f"{segment:06d}.claim").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@contextmanager
def work_folder(path: Path, frames: int, origin: dict[str, object]) -> Iterator[WorkFolder]:
    """The work folder of an output for one run, made or found; it stays until :func:`shutil.rmtree`.

    Args:
        path: where.
        frames: of a segment.
        origin: all that the output's bytes depend on, as JSON knows it; see :mod:`rife.origin`.

    Raises:
        UserError: the folder is of another origin, another run is at it, or it cannot be made.
    """
    note = path / "origin.json"
    try:
        path.mkdir(exist_ok=True)
        (path / "frames").mkdir(exist_ok=True)
        lock = (path / "lock").open("w")
    except OSError as error:
        raise UserError(f"cannot keep the work at {path}: {error.strerror}; choose another place") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another run is working on {path}; wait for it, or name another output") from error
        if note.exists():
            change = _difference(json.loads(note.read_text()), origin)
            if change:
                raise UserError(f"--resume cannot go on: {change}; put it back, or delete {path} to start anew")
        else:
            write_whole(note, json.dumps(origin, indent=1))
        folder = WorkFolder(path, frames)
        folder.clear_traces()
        yield folder


def remove(folder: Path) -> None:
    """Delete a work folder."""
    shutil.rmtree(folder, ignore_errors=True)


def write_whole(note: Path, text: str) -> None:
    """Write a small file of a work folder; UserError where there is no room."""
    try:
        with atomic_path(note) as part:
            part.write_text(text)
    except OSError as error:
        raise UserError(f"cannot write {note}: {error.strerror}; make room, or choose another place") from error


def _difference(before: dict, now: dict) -> str | None:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            return f"{key} was {before.get(key)} when the work began, and is {now.get(key)}"
    return None


class SegmentedVideo:
    """Encodes frames into the segments of a work folder; those of a segment come in order, without gaps.

    Args:
        folder: where they go.
        choice: the encoder.
        info: the source, for size, aspect and tags.
        fps: output frames a second.

    Raises:
        UserError: the encoder refuses its settings, or there is no room.
    """

    def __init__(self, folder: WorkFolder, choice: EncoderChoice, info: VideoInfo, fps: Fraction) -> None:
        self.folder = folder
        self.wants: Callable[[int], bool] = folder.takes
        self._open = lambda: VideoEncoder(choice, info, fps)
        self._encoder: VideoEncoder | None = None
        self._segment = -1

    def encode(self, index: int, frame: av.VideoFrame) -> None:
        """Take output frame ``index``."""
        segment = index // self.folder.frames
        if segment != self._segment:
            self.finish()
            self._segment, self._encoder = segment, self._open()
            self._part = self.folder.path / f".part-{segment:06d}"
            self._file = self._part.open("wb")
        self._write(self._encoder.encode(frame, index))

    def copy(self, item: Copied) -> None:
        """Other streams are read again when the segments are joined."""

    def finish(self) -> None:
        """Make the segment at hand whole."""
        if self._encoder is None:
            return
        self._write(self._encoder.flush())
        try:
            self._file.flush()
            os.fsync(self._file.fileno())  # a power cut must not leave a name without its bytes
            self._part.rename(self.folder.packets(self._segment))
        except OSError as error:
            raise self._no_room(error) from error
        self.close()

    def close(self) -> None:
        """Let go of encoder and file; a segment that is not whole is lost."""
        if self._encoder is not None:
            self._encoder.close()
            self._encoder = None
            try:
                self._file.close()
            except OSError as error:  # of what is still buffered
                raise self._no_room(error) from error
            finally:
                self._part.unlink(missing_ok=True)

    def _write(self, packets: list[av.Packet]) -> None:
        try:
            for p in packets:
                head = [p.pts, p.dts, p.duration, p.is_keyframe, p.size]
                self._file.write(json.dumps(head).encode() + b"\n" + bytes(p))
        except OSError as error:
            raise self._no_room(error) from error

    def _no_room(self, error: OSError) -> UserError:
        return UserError(f"cannot write to {self.folder.path}: {error.strerror}; make room, and --resume goes on")


def stored_packets(folder: WorkFolder, segments: int) -> Iterator[av.Packet]:
    """The packets of a work folder's first segments as the encoder gave them; times count output frames."""
    for segment in range(segments):
        with folder.packets(segment).open("rb") as file:
            while line := file.readline():
                pts, dts, duration, key, size = json.loads(line)
                packet = av.Packet(file.read(size))
                packet.pts, packet.dts, packet.duration, packet.is_keyframe = pts, dts, duration, key
                yield packet
