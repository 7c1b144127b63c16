"""A fit from files to files, as ``dist-render fit`` runs it: what is read, kept on the way, and left in a folder.

======================  ========================================================
``shape.ply``           the fitted shape in the cameras' world coordinates
``shape.npz``           the same as a grid, in the ball (``report.json`` says which)
``code.npy``            of a decoder, in place of the grid
``hull.ply``            the visual hull
``overlays/NAME.png``   a view with the outline of the shape, and its normals; drawn anew every so often
``report.json``         overlap with the silhouettes, view by view
``metrics.jsonl``       losses over the steps; ``curves.png`` shows them
``state.pt``            to resume from
======================  ========================================================
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from papershelf.images import write_image
from papershelf.processes import Place, stop_requests
from papershelf.resuming import read_state
from papershelf.training_log import METRICS, Panel, TrainingLog, open_log
from torch import Tensor
from tqdm import tqdm

from distrender import decoder_files, meshing, visual_hull
from distrender.cameras import Camera
from distrender.fit_plan import FitConfig
from distrender.fitted_shapes import CAREFUL, EXACT
from distrender.fitting import Fitter
from distrender.grid import GridSDF
from distrender.posed_images import PosedImages
from distrender.rendering import bytes_of
from distrender.shading import picture
from distrender.tracing import SDF, Hit, sphere_trace

STATE, REPORT, OVERLAYS = "state.pt", "report.json", "overlays"
LOGGED_EVERY = 10  # steps
SAVED_EVERY = 120.0  # seconds
LARGEST = 480  # pixels of an overlay's longer side
CURVES = (Panel(("silhouette", "photometric"), "pixels, 1 - NCC"), Panel(("loss", "regulariser"), log=True))
OUTLINE = (1.0, 0.1, 0.1)


@dataclass(frozen=True, eq=False)
class Scene:
    """Views, and the ball that holds what they show.

    Attributes:
        views: pictures with cameras and silhouettes.
        centre: ``[3]``, world coordinates.
        radius: world units.
    """

    views: PosedImages
    centre: Tensor
    radius: float

    @classmethod
    def of(
        cls, views: PosedImages, centre: Sequence[float] | None, radius: float | None, *, decoder: bool = False
    ) -> Scene:
        """The ball that is given, a decoder's own unit ball, or the one around the visual hull."""
        if decoder:
            return cls(views, torch.tensor(centre or (0.0, 0.0, 0.0)), radius or 1.0)
        if (centre is None) != (radius is None):
            raise UserError("give both --centre and --radius, or neither, and the ball is found")
        if centre is not None:
            return cls(views, torch.tensor(centre), radius)
        return cls(views, *visual_hull.find_ball(views.cameras, views.masks))

    @property
    def cameras(self) -> Camera:
        """In the frame where the ball is the unit ball."""
        return self.views.cameras.in_ball(self.centre, self.radius)

    def about(self) -> dict[str, object]:
        """What must be the same for a run to go on."""
        digest = hashlib.sha256(np.packbits(self.views.masks.numpy()).tobytes())
        if self.views.images is not None:
            digest.update(self.views.images.numpy().tobytes())
        return {
            "views": len(self.views.masks),
            "ball": [*(round(number, 9) for number in self.centre.tolist()), round(float(self.radius), 9)],
            "pictures": digest.hexdigest()[:16],
        }


def fit(
    scene: Scene,
    config: FitConfig,
    run: Path,
    *,
    decoder: str | None = None,
    ending: str = ".ply",
    every: int = 100,
    resume: bool = False,
    command: str = "",
) -> dict[str, object]:
    """Fit a shape and leave the module's files in ``run``.

    Args:
        scene: what to fit to.
        config: how.
        run: folder, made if need be.
        decoder: fit a code of this one; None fits a grid.
        ending: of the meshes.
        every: steps between overlays; 0 draws them at the end only.
        resume: go on from the run's state.
        command: for the record.

    Returns:
        What ``report.json`` holds.

    Raises:
        UserError: the run's folder holds another run, or cannot be written; the silhouettes do not meet; and so on.
        KeyboardInterrupt: on Ctrl-C or SIGTERM; what was reached by then is saved.
    """
    if not resume and (run / METRICS).exists():
        raise UserError(f"{run} holds a run already; go on with --resume, or name another folder with -o")
    experiment = decoder_files.load_experiment(decoder) if decoder else None
    code = experiment.codes.mean(0) if experiment is not None and len(experiment.codes) else None
    fitter = Fitter(scene.views, scene.cameras, config, experiment and experiment.decoder, code)
    about = {**scene.about(), "decoder": decoder or ""}
    seconds = 0.0
    if resume:
        state = read_state(run / STATE, asdict(config) | about, ("about",))
        fitter.load(state)
        seconds = state["seconds"]
    try:
        (run / OVERLAYS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {run}: {error.strerror}; name another folder with -o") from error
    log = _log(run, config, about, command, done=fitter.step)

    def save() -> None:
        with atomic_path(run / STATE) as part:
            torch.save({"config": asdict(config), "about": about, "seconds": seconds, **fitter.state()}, part)

    stopped = False
    with (
        stop_requests() as stop_asked,
        tqdm(total=fitter.total, initial=fitter.step, unit="step", file=sys.stderr, disable=None) as bar,
    ):
        saved = began = time.monotonic()
        before = seconds
        while fitter.step < fitter.total and not stopped:
            figures = fitter.update()
            bar.update()
            seconds = before + time.monotonic() - began
            stage = fitter.place[0]
            if fitter.step % LOGGED_EVERY == 0 or fitter.step == fitter.total:
                log.write(fitter.step, resolution=stage.resolution, **figures)
                bar.set_postfix_str(f"grid {stage.resolution}, loss {figures['loss']:.3f}")
            if every and fitter.step % every == 0 and fitter.step < fitter.total:
                draw(scene, fitter.shape.sdf, run)
            stopped = stop_asked() and fitter.step < fitter.total
            if stopped or time.monotonic() - saved > SAVED_EVERY:
                save()
                saved = time.monotonic()
    save()
    log.plot()
    log.close()
    if stopped:
        raise KeyboardInterrupt(f"Stopped after step {fitter.step} of {fitter.total}; --resume goes on from {run}")
    return _finish(scene, fitter, run, ending, seconds)


def _log(run: Path, config: FitConfig, about: dict, command: str, done: int) -> TrainingLog:
    first = {"command": command, "config": asdict(config), "data": about}
    return open_log(run, "dist-render", "dist-render", Place(torch.device("cpu")), CURVES, first, done=done)


def _finish(scene: Scene, fitter: Fitter, run: Path, ending: str, seconds: float) -> dict[str, object]:
    """Meshes, grid or code, overlays and report."""
    sdf, resolution = fitter.shape.sdf, fitter.config.resolution
    write_world_mesh(run / f"shape{ending}", sdf, scene, resolution)
    hull = visual_hull.hull_grid(scene.cameras, visual_hull.pixel_distances(scene.views.masks), resolution)
    write_world_mesh(run / f"hull{ending}", hull, scene, resolution)
    if isinstance(sdf, GridSDF):
        sdf.save(run / "shape.npz")
    else:
        with atomic_path(run / "code.npy") as part, part.open("wb") as file:
            np.save(file, sdf.latent.detach().numpy())
    draw(scene, sdf, run)
    names = scene.views.names or tuple(f"view_{view:03d}" for view in range(len(scene.views.masks)))
    overlaps = {"shape": overlap(scene, sdf), "hull": overlap(scene, hull)}
    report = {
        "iou": {key: {"median": float(np.median(v)), "min": min(v)} for key, v in overlaps.items()},
        "views": [
            {"name": name, "iou": mine, "hull_iou": its}
            for name, mine, its in zip(names, overlaps["shape"], overlaps["hull"], strict=True)
        ],
        "silhouettes": scene.views.note,
        "images": scene.views.images is not None and fitter.config.image_steps > 0,
        "centre": scene.centre.tolist(),
        "radius": float(scene.radius),
        "steps": fitter.total,
        "seconds": seconds,
        "mesh": str(run / f"shape{ending}"),
    }
    with atomic_path(run / REPORT) as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    return report


def write_world_mesh(path: Path, sdf: SDF, scene: Scene, resolution: int) -> None:
    """The surface in the cameras' world coordinates."""
    bound = visual_hull.HALF if isinstance(sdf, GridSDF) else 1.0
    vertices, faces = meshing.mesh(sdf, resolution, bound)
    meshing.write_mesh(path, vertices * scene.radius + scene.centre.numpy(), faces)


@torch.no_grad()
def seen(sdf: SDF, camera: Camera) -> Hit:
    """What one view sees, ``[H, W]``."""
    origins, directions = (part[0] for part in camera.rays())
    return sphere_trace(sdf, origins, directions, EXACT if isinstance(sdf, GridSDF) else CAREFUL, gradient="none")


def overlap(scene: Scene, sdf: SDF) -> list[float]:
    """Intersection over union of the shape's silhouette and the given one, view by view."""
    result = []
    for view, mask in enumerate(scene.views.masks):
        found = seen(sdf, scene.cameras[view]).mask
        result.append(float((found & mask).sum() / (found | mask).sum()))
    return result


def draw(scene: Scene, sdf: SDF, run: Path) -> None:
    """Write every view's overlay."""
    for view in range(len(scene.views.masks)):
        name = Path(scene.views.names[view]).stem if scene.views.names else f"view_{view:03d}"
        write_image(run / OVERLAYS / f"{name}.png", overlay(scene, sdf, view))


@torch.no_grad()
def overlay(scene: Scene, sdf: SDF, view: int) -> np.ndarray:
    """A view with the shape's outline drawn in red, and beside it the shape's normals: ``[h, 2 w, 3]`` uint8."""
    height, width = scene.cameras.size
    scale = min(1.0, LARGEST / max(height, width))
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    camera = scene.cameras[view].resized(size)
    hit = seen(sdf, camera)
    views = scene.views
    below = views.masks[view][None].float().expand(3, -1, -1) if views.images is None else views.images[view]
    below = torch.nn.functional.interpolate(below[None], size, mode="area")[0].permute(1, 2, 0)
    inside = hit.mask
    rim = inside & ~(-torch.nn.functional.max_pool2d(-inside[None].float(), 3, 1, 1)[0] > 0)
    left = torch.where(rim[..., None], torch.tensor(OUTLINE), below)
    return bytes_of(torch.cat([left, picture(hit, camera.rotation[0], "normal")], 1))
