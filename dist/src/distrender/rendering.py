"""Pictures and videos of a shape, written to files."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.images import write_image
from torch import Tensor
from tqdm import tqdm

from distrender.cameras import Camera
from distrender.decoder import CodedSDF
from distrender.pyramid import FEWEST, FEWEST_LEVELS, FEWEST_STEPS, trace_image
from distrender.shading import picture
from distrender.shape_files import open_shape
from distrender.tracing import Hit, MarchOptions, sphere_trace

VIDEOS, NUMBERS = (".mp4", ".mkv", ".mov"), (".npy", ".exr")
RATE = 30  # frames of a video a second
NETWORK_STEPS = 200  # of the finest level: with 28, trained decoders lose up to two thirds of the hits
# Of a true distance. A ray that passes a surface of radius r at a distance h takes up to about pi sqrt(2 r / h) steps
# to get by: 440 for r = 0.5 at the threshold. With the ladder's 28 a torus at 512x512 has a silhouette's IoU of 0.9967,
# and what lies behind such a place has holes.
GRAZING_STEPS = 450
# Where secants begin, and 12 times the largest error of bfloat16 that was seen on a trained decoder (2.4e-3).
NETWORK_APPROXIMATE_ABOVE = MarchOptions.finish_below


@dataclass(frozen=True)
class Options:
    """Of :func:`render`; angles in degrees, lengths in scene units."""

    output: Path
    what: str = "shaded"
    size: int = 512
    distance: float = 2.5
    azimuth: float = 30.0
    elevation: float = 20.0
    camera: Path | None = None
    orbit: int | None = None
    steps: int | None = None  # of a pixel's own ray; 50 where plain
    plain: bool = False
    precision: Literal["mixed", "float32"] = "mixed"  # of decoders far from their surface, where there is the choice


def render(shape: str, options: Options, *, code: str = "0", epoch: str = "latest", grid: int = 160) -> dict:
    """Trace every view of a shape and write what was asked for.

    Args:
        shape: as :func:`distrender.shape_files.open_shape` takes it.
        options: what to write, and seen from where.
        code: of a decoder's shape.
        epoch: of a DeepSDF experiment.
        grid: samples along each axis of a mesh's grid.

    Returns:
        Counts: ``views``, ``queries``, ``missed``, ``covered`` (share of pixels), ``seconds`` of tracing.

    Raises:
        UserError: the shape or the cameras cannot be read, or the output's ending does not fit.
    """
    _check(options)
    sdf = open_shape(shape, code, grid, epoch)
    cameras = _cameras(options)
    report = {"views": len(cameras), "queries": 0, "missed": 0, "covered": 0.0, "seconds": 0.0}

    def views() -> Iterable[Tensor]:
        bar = tqdm(range(len(cameras)), unit="view", file=sys.stderr, disable=True if len(cameras) == 1 else None)
        for number in bar:
            camera = cameras[number]
            start = time.perf_counter()
            with torch.no_grad():
                hit = (
                    _plain(sdf, camera, options.steps)
                    if options.plain
                    else trace_view(sdf, camera, options.steps, options.precision)
                )
            report["seconds"] += time.perf_counter() - start
            report["queries"] += hit.queries
            report["missed"] += hit.missed
            report["covered"] += hit.mask.float().mean().item() / len(cameras)
            view = first_view(hit)
            if options.output.suffix in NUMBERS:
                yield view.depth
            else:
                with torch.no_grad():
                    yield picture(view, camera.rotation[0], options.what)

    if options.output.suffix in VIDEOS:
        _write_video(options.output, views())
    else:
        for number, content in enumerate(views()):
            _write_still(_numbered(options.output, number, len(cameras)), content)
    return report


def _check(options: Options) -> None:
    suffix = options.output.suffix
    if options.orbit and suffix not in VIDEOS:
        raise UserError(f"{options.output}: --orbit makes a video; choose an ending of {', '.join(VIDEOS)}")
    if suffix in VIDEOS and not options.orbit:
        raise UserError(f"{options.output}: a video needs --orbit N, the number of its views")
    if suffix in NUMBERS and options.what != "depth":
        raise UserError(f"{options.output}: {suffix} holds depths; add --what depth, or choose .png")
    if suffix not in (*VIDEOS, *NUMBERS, ".png", ".jpg", ".jpeg"):
        raise UserError(
            f"{options.output}: choose .png or .jpg, .npy or .exr for depth, {', '.join(VIDEOS)} for --orbit"
        )
    if options.orbit and options.camera:
        raise UserError("--orbit and --camera each say where the views are; give one of them")


def _cameras(options: Options) -> Camera:
    if options.camera:
        from distrender import camera_files

        return camera_files.read(options.camera)
    size = (options.size, options.size)
    return Camera.orbit(options.orbit or 1, options.distance, options.elevation, options.azimuth, size=size)


def trace_view(
    sdf: torch.nn.Module,
    camera: Camera,
    steps: int | None = None,
    precision: Literal["mixed", "float32"] = "mixed",
) -> Hit:
    """Trace a camera's views as pictures are taken, without gradients: with few queries, or for networks safely.

    Args:
        sdf: any shape.
        camera: V views.
        steps: queries at most on a pixel's own ray, or as many as it takes.
        precision: of decoders; "mixed" asks in 16 bits far from the surface where that is faster.
    """
    if isinstance(sdf, CodedSDF):  # no true distance: believed less, and asked more often
        mixed = precision == "mixed" and sdf.has_faster_approximation()
        above = NETWORK_APPROXIMATE_ABOVE if mixed else 0.0
        march = MarchOptions(ratio=1.0, finish="secant", approximate_above=above)
        return trace_image(sdf, camera, march, steps=(3, 3, steps or NETWORK_STEPS), gradient="none")
    most = (*FEWEST_STEPS[:-1], steps or GRAZING_STEPS)
    return trace_image(sdf, camera, FEWEST, levels=FEWEST_LEVELS, steps=most, gradient="none")


def _plain(sdf: torch.nn.Module, camera: Camera, steps: int | None) -> Hit:
    return sphere_trace(sdf, *camera.rays(), MarchOptions(steps=steps or MarchOptions.steps), gradient="none")


def first_view(hit: Hit) -> Hit:
    """The first view of a camera's: ``[H, W]`` instead of ``[V, H, W]``."""
    return Hit(
        depth=hit.depth[0],
        mask=hit.mask[0],
        point=hit.point[0],
        min_sdf=hit.min_sdf[0],
        min_point=hit.min_point[0],
        queries=hit.queries,
        missed=hit.missed,
        find_normals=lambda: hit.normal[0],
    )


def _numbered(output: Path, number: int, views: int) -> Path:
    return output if views == 1 else output.with_stem(f"{output.stem}_{number:03d}")


def _write_still(file: Path, content: Tensor) -> None:
    if file.suffix == ".npy":
        with atomic_path(file) as temporary, temporary.open("wb") as stream:
            np.save(stream, content.numpy())
    elif file.suffix == ".exr":
        write_image(file, content.float().numpy()[..., None])
    else:
        write_image(file, bytes_of(content))


def bytes_of(content: Tensor) -> np.ndarray:
    """A picture in [0, 1] as uint8."""
    return (content.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def _write_video(file: Path, frames: Iterable[Tensor]) -> None:
    import av  # half a second

    with atomic_path(file) as temporary, av.open(str(temporary), "w") as container:
        stream = None
        for content in frames:
            height, width = (side // 2 * 2 for side in content.shape[:2])  # 4:2:0 wants even sides
            if stream is None:
                stream = container.add_stream("libx264", rate=Fraction(RATE), options={"crf": "16"})
                stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            image = np.ascontiguousarray(bytes_of(content)[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
