"""Shape completion from files to files: what ``dist-render complete`` and ``dist-render demo`` do."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from papershelf.devices import device_named
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.images import write_image
from torch import Tensor
from tqdm import tqdm

from distrender import camera_files, completion_pictures, observations, procedural
from distrender.cameras import Camera
from distrender.chamfer import chamfer, surface_samples
from distrender.completion import OURS, Completion, Recipe, agreement, complete
from distrender.decoder_files import Experiment, load_experiment
from distrender.meshing import WRITTEN, mesh, write_mesh
from distrender.observations import Observation
from distrender.pyramid import FEWEST, FEWEST_LEVELS, FEWEST_STEPS, trace_image
from distrender.rendering import bytes_of
from distrender.shape_files import open_shape
from distrender.tracing import SDF, Hit


@dataclass(frozen=True)
class Options:
    """Of :func:`run`.

    Attributes:
        source: a depth picture (which needs ``camera``), or points.
        output: the mesh.
        camera: file of the camera that saw them.
        view: number or name of that file's view.
        mask: picture of the silhouette, or "depth": the shape is where the depth picture has a depth.
        depth_scale: scene units of one unit of the depth picture.
        depth_is: whether depths are along the "ray" or along the optical axis, "z".
        keep: take only so many of the depths or points.
        decoder: as :func:`distrender.decoder_files.load_experiment` takes it.
        epoch: of a DeepSDF experiment.
        recipe: how the code is found.
        seed: of all that is drawn.
        resolution: of the mesh.
        code: file for the code, ``.npy``.
        pictures: folder for pictures on the way.
        compare: a shape (see :func:`distrender.shape_files.open_shape`) to measure the result against.
        device: where the code is looked for.
    """

    source: Path
    output: Path
    camera: Path | None = None
    view: str = "0"
    mask: str | None = None
    depth_scale: float = 1.0
    depth_is: str = "ray"
    keep: int | None = None
    decoder: str = "procedural"
    epoch: str = "latest"
    recipe: Recipe = field(default_factory=lambda: OURS)
    seed: int = 0
    resolution: int = 128
    code: Path | None = None
    pictures: Path | None = None
    compare: str | None = None
    device: str = "auto"


def run(options: Options, truth: SDF | None = None) -> dict[str, float | int | None]:
    """Complete what a file shows, and write mesh, code and pictures.

    Args:
        options: what to read, how, and what to write.
        truth: a shape to measure the result against, in place of ``options.compare``.

    Returns:
        ``points``, ``iterations``, ``loss``, ``seconds``, what :func:`distrender.completion.agreement` says, and
        ``chamfer_x1000`` where there is something to compare with.

    Raises:
        UserError: a file cannot be read or written, or does not fit the others.
    """
    _check(options)
    device = device_named(options.device)
    if options.compare:
        truth = open_shape(options.compare)
    observation = read(options)
    experiment = load_experiment(options.decoder, options.epoch)
    start = time.perf_counter()
    found = _complete(experiment, observation, options, device)
    seconds = time.perf_counter() - start
    sdf = experiment.decoder.with_code(found.code)
    triangles = mesh(sdf, options.resolution, near=True)
    report = {
        "points": len(observation.points),
        "iterations": options.recipe.iterations,
        "loss": found.loss if found.history else None,
        **agreement(sdf, observation),
        "seconds": seconds,
    }
    if truth is not None:
        report["chamfer_x1000"] = 1000 * chamfer(surface_samples(triangles), surface_samples(truth, seed=1))
    if options.pictures:
        completion_pictures.write(options.pictures, experiment.decoder, observation, found.path, truth)
    if options.code:
        with atomic_path(options.code) as part, part.open("wb") as file:
            np.save(file, found.code.numpy())
    write_mesh(options.output, *triangles)
    return report


def read(options: Options) -> Observation:
    """What the options' files show.

    Raises:
        UserError: one cannot be read, or they do not fit each other.
    """
    path = options.source
    picture = path.suffix.lower() in (".png", ".exr") or (path.suffix.lower() == ".npy" and options.camera is not None)
    if picture:
        if options.camera is None:
            raise UserError(f"{path}: a depth picture needs the camera that took it; give --camera FILE")
        depth = observations.read_depth(path, options.depth_scale)
        camera = _camera(options, tuple(depth.shape))
        depth = observations.along_rays(depth, camera) if options.depth_is == "z" else depth
        mask = depth > 0 if options.mask == "depth" else _mask(options)
        return observations.from_depth(depth, camera, mask=mask, keep=options.keep, seed=options.seed)
    seen = observations.read_points(path)
    if options.mask == "depth":
        raise UserError(f"{path}: holds points and no depth picture to take the silhouette from; name its file")
    if options.mask and options.camera is None:
        raise UserError(f"{options.mask}: a silhouette needs the camera that saw it; give --camera FILE")
    if options.camera is not None:
        mask = _mask(options)
        camera = _camera(options, None if mask is None else tuple(mask.shape))
        seen = replace(seen, origins=camera.eye.expand_as(seen.points), camera=camera, mask=mask)
    return observations.thinned(seen, options.keep, options.seed) if options.keep else seen


def _check(options: Options) -> None:
    if options.output.suffix.lower() not in WRITTEN:
        raise UserError(f"{options.output}: meshes are written as {', '.join(WRITTEN)}; choose one of these endings")
    if options.code and options.code.suffix != ".npy":
        raise UserError(f"{options.code}: codes are written as .npy, which `render --code` and `mesh --code` read")
    if options.pictures:
        try:
            options.pictures.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make the folder {options.pictures}: {error.strerror}") from error


def _camera(options: Options, size: tuple[int, int] | None) -> Camera:
    found = camera_files.read_named(options.camera, size)
    if options.view in found.names:
        number = found.names.index(options.view)
    elif options.view.isdigit() and int(options.view) < len(found.names):
        number = int(options.view)
    else:
        raise UserError(
            f"{options.camera}: no view {options.view!r}; give --view 0 to {len(found.names) - 1} or a name such as "
            f"{found.names[0]}"
        )
    return found.cameras[number]


def _mask(options: Options) -> Tensor | None:
    return observations.read_mask(options.mask) if options.mask else None


def _complete(experiment: Experiment, observation: Observation, options: Options, device: torch.device) -> Completion:
    """The code, found on the device and brought back from it; the decoder comes back too."""
    decoder = experiment.decoder.to(device)
    placed = replace(experiment, decoder=decoder, codes=experiment.codes.to(device))
    with tqdm(total=options.recipe.iterations, unit="iteration", file=sys.stderr, disable=None) as bar:

        def after(done: int, whole: int) -> None:
            bar.total = whole
            bar.update(done - bar.n)

        found = complete(placed, observation.to(device), options.recipe, seed=options.seed, after=after)
    decoder.cpu()
    return replace(found, path=found.path.cpu())


def trace_truth(truth: SDF, camera: Camera) -> Hit:
    """What a camera sees of a made-up shape, with the queries that rays along its surfaces take.

    With 50 a tenth of a table's silhouette, seen from a little above its top, would be missing.
    """
    return trace_image(truth, camera, FEWEST, levels=FEWEST_LEVELS, steps=(*FEWEST_STEPS[:-1], 200), gradient="none")


@dataclass(frozen=True)
class DemoOptions:
    """Of :func:`demo`: one of the held-out shapes, seen from ``azimuth`` and ``elevation`` (degrees)."""

    output: Path
    shape: int = 0
    points: int = 50
    masked: bool = True
    size: int = 256
    azimuth: float = 35.0
    elevation: float = 25.0
    seed: int = 0


def demo(options: DemoOptions) -> tuple[dict[str, float | int | None], Options]:
    """Make an input of a shape that no decoder was trained on, complete it, and measure the result.

    Returns:
        The report of :func:`run`, and the options it ran with.

    Raises:
        UserError: the folder cannot be written to, or there is no such shape.
    """
    shapes = procedural.held_out()
    if not 0 <= options.shape < len(shapes):
        raise UserError(f"held-out shapes are numbered 0 to {len(shapes) - 1}, got {options.shape}")
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the folder {options.output}: {error.strerror}") from error
    truth = procedural.shape(*shapes[options.shape])
    size = (options.size, options.size)
    camera = Camera.orbit(1, elevation=options.elevation, first=options.azimuth, size=size)
    with torch.no_grad():
        hit = trace_truth(truth, camera)
    mask = hit.mask[0]
    chosen = torch.from_numpy(np.random.default_rng(options.seed).permutation(int(mask.sum()))[: options.points])
    sparse = torch.zeros(size).flatten()
    places = mask.flatten().nonzero()[:, 0][chosen]
    sparse[places] = hit.depth[0].flatten()[places]
    files = {name: options.output / name for name in ("depth.npy", "mask.png", "camera.json", "completed.ply")}
    with atomic_path(files["depth.npy"]) as part, part.open("wb") as file:
        np.save(file, sparse.reshape(size).numpy())
    write_image(files["mask.png"], bytes_of(mask.float())[..., None])
    camera_files.write(files["camera.json"], camera)
    job = Options(
        source=files["depth.npy"],
        output=files["completed.ply"],
        camera=files["camera.json"],
        mask=str(files["mask.png"]) if options.masked else None,
        code=options.output / "code.npy",
        pictures=options.output,
        seed=options.seed,
    )
    return run(job, truth), job
