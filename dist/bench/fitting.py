"""How near shapes come that are fitted to posed views, against the visual hull of the same silhouettes.

Held-out procedural shapes, one of each family, with a solid texture, rendered by our tracer on two rings of cameras.
For each: the Chamfer distance times 1000 (:mod:`distrender.chamfer`) of the visual hull, of the grid fitted to the
silhouettes, of the grid fitted to the images too, and of a decoder's code fitted to the silhouettes.

python dist/bench/fitting.py [--views 8 16] [--shapes 6] [--decoder procedural] [--threads 1] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path
from time import perf_counter

import torch
from distrender import decoder_files, procedural, visual_hull
from distrender.cameras import Camera
from distrender.chamfer import chamfer, surface_samples
from distrender.fit_plan import FitConfig
from distrender.fitted_shapes import EXACT
from distrender.fitting import Fitter
from distrender.grid import GridSDF
from distrender.meshing import mesh
from distrender.posed_images import PosedImages
from distrender.tracing import SDF, sphere_trace
from papershelf.errors import UserError
from papershelf.measuring import commit, processor
from torch import Tensor

ELEVATIONS = (40.0, 10.0)  # degrees, of every other camera
DISTANCE = 2.5
WAVES, FREQUENCY = 24, 20.0  # of the texture, radians a unit


def rings(views: int, size: int) -> Camera:
    """Cameras evenly around, in turns on the higher and the lower ring."""
    azimuth = torch.arange(views) * (2 * math.pi / views)
    height = torch.tensor([math.radians(ELEVATIONS[view % 2]) for view in range(views)])
    eye = torch.stack([height.cos() * azimuth.sin(), height.sin(), height.cos() * azimuth.cos()], -1)
    return Camera.look_at(DISTANCE * eye, size=(size, size))


def texture(points: Tensor, seed: int = 0) -> Tensor:
    """Colours ``[..., 3]`` in [0, 1] of a solid of many waves."""
    generator = torch.Generator().manual_seed(seed)
    channels = []
    for _ in range(3):
        waves = FREQUENCY * torch.randn(WAVES, 3, generator=generator) / math.sqrt(3)
        phase = 2 * math.pi * torch.rand(WAVES, generator=generator)
        channels.append(0.5 + 1.5 * torch.sin(points @ waves.T + phase).mean(-1))
    return torch.stack(channels, -1).clamp(0, 1)


@torch.no_grad()
def rendered(shape: SDF, camera: Camera) -> PosedImages:
    hit = sphere_trace(shape, *camera.rays(), EXACT, gradient="none")
    images = texture(hit.point) * hit.mask[..., None]
    return PosedImages(camera, hit.mask, images.permute(0, 3, 1, 2).contiguous())


def off(shape: SDF, resolution: int, truth) -> float:
    bound = visual_hull.HALF if isinstance(shape, GridSDF) else 1.0
    return 1000 * chamfer(surface_samples(mesh(shape, resolution, bound)), truth)


def fitted(views: PosedImages, config: FitConfig, experiment=None) -> tuple[SDF, float]:
    """The shape, and the seconds it took."""
    start = perf_counter()
    if experiment is None:
        fitter = Fitter(views, views.cameras, config)
    else:
        fitter = Fitter(views, views.cameras, config, experiment.decoder, experiment.codes.mean(0))
    for _ in range(fitter.total):
        fitter.update()
    return fitter.shape.sdf, perf_counter() - start


def measure(family: str, seed: int, views: int, size: int, resolution: int, experiment) -> dict[str, object]:
    shape = procedural.shape(family, seed)
    truth = surface_samples(shape, seed=1)
    seen = rendered(shape, rings(views, size))
    outlines = PosedImages(seen.cameras, seen.masks)
    config = FitConfig(resolution=resolution)
    row: dict[str, object] = {"shape": f"{family} {seed}", "views": views}
    hull = visual_hull.hull_grid(seen.cameras, visual_hull.pixel_distances(seen.masks), resolution)
    row["hull"] = off(hull, resolution, truth)
    runs = {"silhouettes": (outlines, None), "images": (seen, None)}
    if experiment is not None:
        runs["code"] = (outlines, experiment)
    for name, (evidence, decoder) in runs.items():
        found, row[f"{name}_seconds"] = fitted(evidence, config, decoder)
        try:
            row[name] = off(found, resolution, truth)
        except UserError:  # a code without a surface
            row[name] = math.inf
    row["floor"] = 1000 * chamfer(surface_samples(shape, seed=2), truth)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--views", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--shapes", type=int, default=6, help="of the 50 held out, the first so many")
    parser.add_argument("--size", type=int, default=128, help="of the views, pixels")
    parser.add_argument("--resolution", type=int, default=96)
    parser.add_argument("--decoder", help="fit a code of this one too, such as procedural")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    experiment = decoder_files.load_experiment(args.decoder) if args.decoder else None
    columns = ["hull", "silhouettes", "images", *(["code"] if experiment else [])]
    rows = []
    for views in args.views:
        for family, seed in procedural.held_out()[: args.shapes]:
            row = measure(family, seed, views, args.size, args.resolution, experiment)
            rows.append(row)
            print(f"{row['shape']:16} {views:3} views  " + "  ".join(f"{n} {row[n]:8.3f}" for n in columns), flush=True)
    medians = {
        str(views): {name: statistics.median(row[name] for row in rows if row["views"] == views) for name in columns}
        for views in args.views
    }
    for views, median in medians.items():
        print(f"{'median':16} {views:>3} views  " + "  ".join(f"{name} {value:8.3f}" for name, value in median.items()))
    if args.json:
        machine = {"device": processor(), "threads": args.threads, "torch": torch.__version__, "commit": commit()}
        about = {"size": args.size, "resolution": args.resolution, "decoder": args.decoder}
        args.json.write_text(json.dumps({"machine": machine, **about, "median": medians, "results": rows}, indent=2))


if __name__ == "__main__":
    main()
