"""Middlebury's dinosaur, 16 real photographs: reconstructed from silhouettes, then from the images too.

Silhouettes are found in the photographs. For each way: the overlap (IoU) of the mesh's silhouette with the
photograph's, view by view, and how well neighbouring photographs agree on the surface (NCC of patches where both views
see it, which the visual hull's wrong depths lower). The sheet shows photographs, the visual hull and both fits.

python dist/bench/dino.py multiview/dino_sparse_ring [--resolution 192] [--out FOLDER] [--sheet FILE.jpg] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from distrender import fit_run, photometric, posed_images, visual_hull
from distrender.fit_plan import FitConfig
from distrender.fitted_shapes import EXACT
from distrender.grid import GridSDF
from distrender.rendering import bytes_of
from distrender.shading import picture
from papershelf.images import write_image
from papershelf.measuring import commit, processor

SHOWN = (0, 8, 12)  # views on the sheet
WIDE = 240  # pixels of a picture on it, along the photograph's longer side
STRIDE = 5  # every so many pixels are asked how well views agree
PATCH = 3


@torch.no_grad()
def agreement(scene: fit_run.Scene, shape: GridSDF) -> float:
    """Median NCC of patches between views and their two neighbours where both see the surface."""
    cameras, images = scene.cameras, scene.views.images
    neighbours = photometric.neighbours(cameras, 2)
    found = []
    for view in range(len(images)):
        camera, mask = cameras[view], scene.views.masks[view]
        inner = visual_hull.pixel_distances(mask[None])[0][::STRIDE, ::STRIDE] < -PATCH - 1
        pixels = camera.pixels()[::STRIDE, ::STRIDE][inner]
        origins, directions = (part[0] for part in camera.rays_through(pixels))
        hit = photometric.sphere_trace(shape, origins, directions, EXACT, gradient="none")
        rows = hit.mask.nonzero()[:, 0]
        surface = photometric.SeenSurface(camera, pixels[rows], hit.depth[rows], hit.normal[rows])
        for other in neighbours[view]:
            off, usable = photometric.disagreement(surface, images[view], cameras[other], images[other], PATCH, "ncc")
            points = hit.point[rows]
            usable &= photometric.visible(shape, points, hit.normal[rows], cameras[other], 0.03, EXACT)
            found.append(1 - off[usable])
    return torch.cat(found).median().item()


def shaded(scene: fit_run.Scene, shape: GridSDF, view: int, size: tuple[int, int]) -> np.ndarray:
    camera = scene.cameras[view].resized(size)
    with torch.no_grad():
        return bytes_of(picture(fit_run.seen(shape, camera), camera.rotation[0]))


def sheet(scene: fit_run.Scene, shapes: list[GridSDF]) -> np.ndarray:
    """A row a view: the photograph with the last shape's outline, then the shapes, the dinosaur on its feet."""
    height, width = scene.cameras.size
    size = (round(height * WIDE / width), WIDE)
    rows = []
    for view in SHOWN:
        overlay = fit_run.overlay(scene, shapes[-1], view)
        photograph = torch.from_numpy(overlay[:, : overlay.shape[1] // 2]).permute(2, 0, 1)[None].float()
        small = torch.nn.functional.interpolate(photograph, size, mode="area")[0].permute(1, 2, 0).byte().numpy()
        row = [small, *(shaded(scene, shape, view, size) for shape in shapes)]
        rows.append(np.concatenate([np.rot90(part) for part in row], 1))
    return np.ascontiguousarray(np.concatenate(rows, 0))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path, help="with dinoSR_par.txt and the photographs")
    parser.add_argument("--resolution", type=int, default=192)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("dino-run"), help="folder for both runs")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    start = perf_counter()
    views = posed_images.load(args.folder / "dinoSR_par.txt", [args.folder])
    scene = fit_run.Scene.of(views, None, None)
    print(f"{views.note}; read in {perf_counter() - start:.1f} s")
    faults = len(views.masks) // 5
    distances = visual_hull.pixel_distances(views.masks)
    hull = visual_hull.hull_grid(scene.cameras, distances, args.resolution)
    shapes, results = [hull], {"hull": {"agreement": agreement(scene, hull)}}
    for name, image_steps in (("silhouettes", 0), ("images", FitConfig.image_steps)):
        config = FitConfig(resolution=args.resolution, image_steps=image_steps, faults=faults)
        start = perf_counter()
        report = fit_run.fit(scene, config, args.out / name, every=0)
        shapes.append(GridSDF.load(args.out / name / "shape.npz"))
        results["hull"] |= {"iou": report["iou"]["hull"]}
        results[name] = {
            "iou": report["iou"]["shape"],
            "views": {view["name"]: view["iou"] for view in report["views"]},
            "agreement": agreement(scene, shapes[-1]),
            "seconds": perf_counter() - start,
        }
    for name, result in results.items():
        seconds = f", {result['seconds']:.0f} s" if "seconds" in result else ""
        print(
            f"{name:12} IoU median {result['iou']['median']:.4f}, least {result['iou']['min']:.4f}; "
            f"views agree to an NCC of {result['agreement']:.3f}{seconds}"
        )
    if args.sheet:
        write_image(args.sheet, sheet(scene, shapes), quality=85)
    if args.json:
        machine = {"device": processor(), "threads": args.threads, "torch": torch.__version__, "commit": commit()}
        about = {"resolution": args.resolution, "centre": scene.centre.tolist(), "radius": float(scene.radius)}
        args.json.write_text(json.dumps({"machine": machine, **about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
