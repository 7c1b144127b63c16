"""A labelled set for cut detection: hard cuts, and what detectors take for cuts although it is none.

The pictures are real (the clips and photographs under PAPERSHELF_DATA), what happens between them is made
from a seed: joined shots, jump cuts, cuts inside fast pans; and without any cut: fades, dissolves, flashes,
pans, zooms, shaking, exposure jumps, animation on twos, things that pass close to the camera, fire, and
the clips as they are. The two halves of the set share no clip, no photograph and no seed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import torch
import torch.nn.functional as F
from papershelf.images import read_image
from torch import Tensor

SIZE = (144, 256)
# What is a shot of each half, and the folder of photographs.
HALVES = {
    "tuned": (("bigbuckbunny.mp4", "cup.mp4", "av1_video.mkv", "tree.avi"), "imagenette_small/train"),
    "held out": (
        ("carphone_pristine.mp4", "toflow_low_resolution", "sintel_demo", "h264_10bits.mp4", "hdr10.mkv"),
        "imagenette_small/val",
    ),
}


@dataclass(frozen=True)
class Sequence:
    """Frames with the truth about them.

    Attributes:
        kind: what happens in it.
        frames: ``[N, 3, H, W]`` uint8.
        cuts: numbers of the frames that begin a new shot.
    """

    kind: str
    frames: Tensor
    cuts: frozenset[int] = frozenset()


def load_clip(path: Path) -> Tensor:
    """All frames of a video or a folder of PNGs, ``[N, 3, *SIZE]`` uint8."""
    if path.is_dir():
        pictures = (read_image(picture)[..., :3] for picture in sorted(path.glob("*.png")))
        return torch.cat([_fitted(torch.from_numpy(picture).permute(2, 0, 1)) for picture in pictures])
    with av.open(str(path)) as container:
        frames = (frame.to_ndarray(format="rgb24") for frame in container.decode(video=0))
        return torch.cat([_fitted(torch.from_numpy(frame).permute(2, 0, 1)) for frame in frames])


def _fitted(picture: Tensor) -> Tensor:
    """``[3, H, W]`` -> ``[1, 3, *SIZE]``: the shape of pixels matters little here, so nothing is cropped."""
    small = F.interpolate(picture[None].float(), SIZE, mode="bilinear", antialias=True)
    return small.round().clamp(0, 255).byte()


class Studio:
    """Makes sequences out of the material of one half.

    Args:
        data: the folder of test data.
        half: ``"tuned"`` or ``"held out"``.
    """

    def __init__(self, data: Path, half: str):
        clips, photographs = HALVES[half]
        self.random = random.Random(half)
        self.noise = torch.Generator().manual_seed(len(half))
        self.clips = [load_clip(data / "video" / name) for name in clips]
        self._clip: Tensor | None = None  # of the latest shot
        self.photographs = sorted((data / photographs).glob("*/*.JPEG"))

    def sequences(self, scale: int = 1) -> Iterator[Sequence]:
        """The whole set; ``scale`` times as many of the made ones."""
        for clip in self.clips:
            yield Sequence("clip as it is", clip)
        plan = {
            self.joined: 16,
            self.jump_cut: 6,
            self.cut_in_motion: 8,
            self.slide_show: 8,
            self.fade: 8,
            self.dissolve: 8,
            self.flash: 12,
            self.pan: 10,
            self.zoom: 8,
            self.shake: 6,
            self.exposure: 8,
            self.on_twos: 6,
            self.passing: 8,
            self.fire: 4,
        }
        for make, count in plan.items():
            for _ in range(count * scale):
                made = make()
                yield Sequence(make.__name__.replace("_", " "), *made) if isinstance(made, tuple) else made

    # Material

    def photograph(self) -> Tensor:
        """``[1, 3, H, W]`` float32 in [0, 255]."""
        picture = read_image(self.random.choice(self.photographs))
        return torch.from_numpy(picture).permute(2, 0, 1)[None].expand(-1, 3, -1, -1).float()

    def shot(self, least: int = 10, most: int = 24) -> Tensor:
        """``[N, 3, *SIZE]`` uint8: part of a clip or a slow move over a photograph."""
        length = self.random.randint(least, most)
        if self.random.random() < 0.5:
            # Never the clip of the shot before: a test pattern joined to itself is no cut.
            clip = self._clip = self.random.choice([clip for clip in self.clips if clip is not self._clip])
            length = min(length, len(clip))
            start = self.random.randint(0, len(clip) - length)
            return clip[start : start + length]
        speed = self.random.uniform(0, 0.01)
        return self.camera(length, speed, zoom=self.random.uniform(-0.004, 0.004))

    def camera(self, length: int, speed: float, zoom: float = 0.0, shake: float = 0.0, blurred: bool = False) -> Tensor:
        """A camera moving over a photograph (mirrored beyond its borders, so that no pan ever ends).

        Args:
            length: N, of frames.
            speed: of the pan, in widths of the frame a frame.
            zoom: growth of the picture a frame.
            shake: standard deviation of a new random displacement in each frame, in widths.
            blurred: with the blur of a shutter open for half the time.
        """
        still = self.photograph()
        angle = self.random.choice([0.0, math.pi, self.random.uniform(0, 2 * math.pi)])
        origin = torch.tensor([self.random.uniform(-0.3, 0.3), self.random.uniform(-0.3, 0.3)])
        direction = torch.tensor([math.cos(angle), math.sin(angle)]) * speed * 2  # grid_sample's unit is half a width
        frames = []
        for n in range(length):
            jitter = torch.randn(2, generator=self.noise) * shake * 2
            parts = [
                self._view(still, origin + direction * (n + part) + jitter, 0.55 * (1 + zoom) ** -(n + part))
                for part in ((0, 0.125, 0.25, 0.375, 0.5) if blurred else (0,))
            ]
            frames.append(torch.stack(parts).mean(0))
        return self._finished(torch.cat(frames))

    def _view(self, still: Tensor, centre: Tensor, half_width: float) -> Tensor:
        h, w = SIZE
        theta = torch.tensor([[[half_width, 0, 0], [0, half_width * h / w * still.shape[-1] / still.shape[-2], 0]]])
        theta[0, :, 2] = centre * half_width / 0.5
        grid = F.affine_grid(theta, [1, 3, h, w], align_corners=False)
        return F.grid_sample(still, grid, padding_mode="reflection", align_corners=False)

    def _finished(self, frames: Tensor) -> Tensor:
        """With a camera's noise, as uint8."""
        grain = torch.randn(frames.shape, generator=self.noise) * self.random.uniform(0, 3)
        return (frames + grain).round().clamp(0, 255).byte()

    # With cuts

    def joined(self) -> tuple[Tensor, frozenset[int]]:
        return _joined([self.shot() for _ in range(4)])

    def slide_show(self) -> tuple[Tensor, frozenset[int]]:
        return _joined([self.camera(self.random.randint(8, 14), 0.003) for _ in range(5)])

    def cut_in_motion(self) -> tuple[Tensor, frozenset[int]]:
        """Both shots move fast, so nothing but the break of content tells the cut."""
        parts = []
        for _ in range(3):
            speed = self.random.uniform(0.02, 0.06)
            parts.append(self.camera(self.random.randint(10, 16), speed, blurred=self.random.random() < 0.5))
        return _joined(parts)

    def jump_cut(self) -> tuple[Tensor, frozenset[int]]:
        """Far parts of one photographed place: it is looked at anew, from elsewhere and otherwise framed."""
        clip = self.random.choice([clip for clip in self.clips if len(clip) >= 60])
        length, third = 12, len(clip) // 3
        starts = [k * third + self.random.randint(0, max(0, third - length - 1)) for k in range(3)]
        parts = [clip[start : start + length] for start in starts]
        h, w = SIZE
        close = parts[1][:, :, h // 6 : h * 5 // 6, : w * 2 // 3].float()
        parts[1] = F.interpolate(close, SIZE, mode="bilinear").round().byte()
        return _joined(parts)

    # Without

    def fade(self) -> Sequence:
        """To black or white and from there."""
        a, b = self.shot(16, 20).float(), self.shot(16, 20).float()
        n = self.random.randint(6, 12)
        colour = self.random.choice([0.0, 0.0, 255.0])
        ramp = torch.linspace(1, 0, n).view(-1, 1, 1, 1)
        a[-n:] = (a[-n:] - colour) * ramp[-len(a[-n:]) :] + colour
        b[:n] = (b[:n] - colour) * ramp.flip(0)[: len(b[:n])] + colour
        return Sequence("fade", torch.cat([a, b]).round().byte())

    def dissolve(self) -> Sequence:
        n = self.random.randint(6, 16)
        a, b = self.shot(n + 6, n + 8).float(), self.shot(n + 6, n + 8).float()
        n = min(n, len(a), len(b))
        ramp = torch.linspace(0, 1, n + 2)[1:-1].view(-1, 1, 1, 1)
        mixed = torch.lerp(a[-n:], b[:n], ramp)
        return Sequence("dissolve", torch.cat([a[:-n], mixed, b[n:]]).round().byte())

    def flash(self) -> Sequence:
        """One or two frames white, nearly white, or lit from one side; with what follows going on as before."""
        frames = self.shot(16, 24).clone()
        length = self.random.randint(1, 2)
        start = self.random.randint(4, max(4, len(frames) - 6))
        strength = self.random.uniform(0.5, 1.0)
        light = torch.full((1, 1, *SIZE), strength)
        if self.random.random() < 0.4:
            light = light * torch.linspace(1, 0.3, SIZE[1])
        lit = frames[start : start + length].float()
        frames[start : start + length] = torch.lerp(lit, torch.full_like(lit, 255), light).round().byte()
        return Sequence("flash", frames)

    def pan(self) -> Sequence:
        speed = self.random.uniform(0.02, 0.09)
        return Sequence("pan", self.camera(24, speed, blurred=self.random.random() < 0.5))

    def zoom(self) -> Sequence:
        zoom = self.random.choice([-1, 1]) * self.random.uniform(0.02, 0.07)
        return Sequence("zoom", self.camera(20, 0.003, zoom=zoom))

    def shake(self) -> Sequence:
        return Sequence("shake", self.camera(24, 0.004, shake=self.random.uniform(0.01, 0.04)))

    def exposure(self) -> Sequence:
        """The whole picture becomes brighter or darker from one frame to the next, and stays so."""
        frames = self.shot(16, 24).float()
        at = len(frames) // 2
        gain = self.random.choice([self.random.uniform(0.55, 0.8), self.random.uniform(1.2, 1.7)])
        frames[at:] = frames[at:] * gain
        return Sequence("exposure", frames.clamp(0, 255).round().byte())

    def on_twos(self) -> Sequence:
        """A cut-out figure that jumps every second or third frame over a still background."""
        hold = self.random.randint(2, 3)
        return Sequence("on twos", self._figure(24, hold, self.random.uniform(0.03, 0.08), (64, 64)))

    def passing(self) -> Sequence:
        """Something as high as the frame crosses it within a few frames."""
        width = self.random.randint(60, 200)
        return Sequence("passing", self._figure(24, 1, self.random.uniform(0.06, 0.15), (SIZE[0], width)))

    def _figure(self, length: int, hold: int, speed: float, size: tuple[int, int]) -> Tensor:
        h, w = SIZE
        background = self.camera(length, 0.002 if hold == 1 else 0.0).float()
        figure = F.interpolate(self.photograph(), size, mode="bilinear", antialias=True)[0]
        if hold > 1:
            background = background[:1].repeat(length, 1, 1, 1)
            y, x = torch.meshgrid(torch.linspace(-1, 1, size[0]), torch.linspace(-1, 1, size[1]), indexing="ij")
            opaque = (x**2 + y**2 < 1).float()
        else:
            opaque = torch.ones(size)
        top = self.random.randint(0, h - size[0])
        for n in range(length):
            left = round((n // hold * hold + 1 - length // 3) * speed * w)
            inside = slice(max(0, left), min(w, left + size[1]))
            if inside.start >= inside.stop:
                continue
            part = slice(inside.start - left, inside.stop - left)
            behind = background[n, :, top : top + size[0], inside]
            background[n, :, top : top + size[0], inside] = torch.lerp(behind, figure[..., part], opaque[:, part])
        return self._finished(background)

    def fire(self) -> Sequence:
        """Octaves of noise, each renewed at its own pace, rising: texture that no flow explains."""
        h, w = SIZE
        length, total = 24, torch.zeros(24, 1, h, w)
        for octave, weight in ((4, 1.0), (8, 0.7), (16, 0.5), (32, 0.3)):
            keys = torch.randn(1, 1, length * octave // 12 + 3, octave, octave * 2, generator=self.noise)
            total += weight * F.interpolate(keys, (length, h, w), mode="trilinear", align_corners=True)[0].permute(
                1, 0, 2, 3
            )
        heat = torch.sigmoid(total * 1.5 + torch.linspace(-2, 2, h).view(1, 1, h, 1))
        colours = torch.cat([(heat * 2).clamp(0, 1), (heat * 1.6 - 0.5).clamp(0, 1), (heat * 2 - 1.4).clamp(0, 1)], 1)
        background = self.shot(length, length).float()
        background = background[torch.arange(length) % len(background)]
        return Sequence("fire", self._finished(torch.lerp(background, colours * 255, heat.clamp(0, 1))))


def _joined(parts: list[Tensor]) -> tuple[Tensor, frozenset[int]]:
    lengths = torch.tensor([len(part) for part in parts]).cumsum(0)
    return torch.cat(parts), frozenset(lengths[:-1].tolist())
