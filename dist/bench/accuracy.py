"""How exact depth, silhouette, normals and gradients are, against closed forms and finite differences.

First part: a sphere, a torus and a box, as functions and as grids, traced in float32 as `render` does and as the paper
does (50 steps in all). The truth is in float64: the roots of the sphere's quadratic, the box's slabs, and for the torus
the roots of its quartic (eigenvalues of companion matrices). A grid is another shape than what it samples, by about
h^2 / 8 times the curvature, and its normals are constant along each axis within a cell; `own` compares with the grid's
own surface, found by 4000 samples a ray and bisection in float64. Normals of the box count where the true point is at
least EDGE from every edge.

Second part: derivatives by autograd against central differences of the whole march, in float64: of the depths of some
pixels, and of the paper's silhouette loss on rays that ought to hit and do not, each ray by each number: of a latent
code, of the camera's pose and of a grid. Figures are the relative errors' median and 90th percentile, over all
entries above 1e-3 of the largest.

python dist/bench/accuracy.py [--size 512] [--grid 256] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from distrender.analytic import AnalyticSDF, Box, Shape, Sphere, Torus
from distrender.cameras import Camera
from distrender.decoder import CodedSDF, DecoderConfig
from distrender.decoder_files import PROCEDURAL, load_experiment
from distrender.grid import GridSDF
from distrender.meshing import sample
from distrender.pose import moved
from distrender.pyramid import trace_image
from distrender.rendering import trace_view
from distrender.tracing import Hit, MarchOptions, ball_interval, sphere_trace
from papershelf.measuring import commit, processor
from seeded import sphere_decoder
from torch import Tensor

SHAPES: dict[str, Shape] = {"sphere": Sphere(0.6), "torus": Torus(0.55, 0.22), "box": Box(0.55, 0.4, 0.3)}
WAYS: dict[str, Callable[..., Hit]] = {"render": trace_view, "paper": partial(trace_image, gradient="none")}
EDGE = 0.02  # scene units; a pixel at distance 2.5 is 0.0045
BOUND = 1.05  # half the side of a grid
SAMPLES, BISECTIONS = 4000, 40
EXACT = MarchOptions(steps=200, ratio=1.0, threshold=1e-11, finish="secant", closest=16)
PIXELS = 16  # rays whose derivatives are taken
COUNTED = 1e-3  # of the largest entry: below it, differences are mostly rounding


def sphere_depth(shape: Sphere, o: Tensor, d: Tensor) -> Tensor:
    """Depths ``[N]`` float64, inf where missed, at which rays meet a sphere."""
    middle = -(o * d).sum(-1)
    under = shape.radius**2 - (o + middle[:, None] * d).square().sum(-1)
    return torch.where(under >= 0, middle - under.clamp(min=0).sqrt(), torch.inf)


def box_depth(shape: Box, o: Tensor, d: Tensor) -> Tensor:
    """Likewise a box: the last of the three slabs to be entered, if none has been left by then."""
    half = torch.tensor([shape.x, shape.y, shape.z], dtype=o.dtype)
    ends = torch.stack([(-half - o) / d, (half - o) / d])
    enter, leave = ends.amin(0).amax(-1), ends.amax(0).amin(-1)
    return torch.where(enter <= leave, enter, torch.inf)


def torus_depth(shape: Torus, o: Tensor, d: Tensor) -> Tensor:
    """Likewise a torus about the y axis: the first root of (|p|^2 + R^2 - r^2)^2 = 4 R^2 (x^2 + z^2) on the ray.

    Depths are counted from the point nearest to the origin, where |p|^2 = m + t^2 has no linear term.
    """
    middle = -(o * d).sum(-1)
    base = o + middle[:, None] * d
    ring, m = 4 * shape.ring**2, base.square().sum(-1)
    flat_base, flat_d = base[:, [0, 2]], d[:, [0, 2]]
    e = m + shape.ring**2 - shape.tube**2
    low = torch.stack(
        [
            e.square() - ring * flat_base.square().sum(-1),
            -2 * ring * (flat_base * flat_d).sum(-1),
            2 * e - ring * flat_d.square().sum(-1),
            torch.zeros_like(e),
        ],
        -1,
    )
    companion = torch.diag(torch.ones(3, dtype=o.dtype), -1).repeat(len(o), 1, 1)
    companion[:, :, 3] = -low
    roots = torch.linalg.eigvals(companion)
    real = torch.where(roots.imag.abs() < 1e-7, roots.real, torch.inf).amin(-1)
    return middle + real


def sampled_depth(sdf: Callable[[Tensor], Tensor], o: Tensor, d: Tensor) -> Tensor:
    """Depths ``[N]`` of the first change of sign among SAMPLES on each ray, bisected; inf where there is none."""
    result = []
    for some_o, some_d in zip(o.split(256), d.split(256), strict=True):
        near, far = ball_interval(some_o, some_d, 1.0)
        t = near[:, None] + (far - near)[:, None] * torch.linspace(0, 1, SAMPLES, dtype=o.dtype)
        inside = sdf((some_o[:, None] + t[..., None] * some_d[:, None]).reshape(-1, 3)).view(t.shape) <= 0
        first = inside.int().argmax(1, keepdim=True)
        low, high = t.gather(1, (first - 1).clamp(min=0))[:, 0], t.gather(1, first)[:, 0]
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            negative = sdf(some_o + middle[:, None] * some_d) <= 0
            low, high = torch.where(negative, low, middle), torch.where(negative, middle, high)
        result.append(torch.where(inside.any(1), (low + high) / 2, torch.inf))
    return torch.cat(result)


DEPTHS = {Sphere: sphere_depth, Box: box_depth, Torus: torus_depth}


def true_normals(shape: Shape, points: Tensor) -> Tensor:
    """Unit normals ``[N, 3]`` at points of the surface."""
    if isinstance(shape, Sphere):
        normals = points
    elif isinstance(shape, Torus):
        flat = points * points.new_tensor([1, 0, 1])
        normals = points - shape.ring * torch.nn.functional.normalize(flat, dim=-1)
    else:
        share = points / points.new_tensor([shape.x, shape.y, shape.z])
        which = share.abs().argmax(-1, keepdim=True)
        normals = torch.zeros_like(points).scatter(-1, which, share.gather(-1, which).sign())
    return torch.nn.functional.normalize(normals, dim=-1)


def smooth_places(shape: Shape, points: Tensor) -> Tensor:
    """``[N]`` bool, whether points of the surface are at least EDGE from the shape's edges."""
    if not isinstance(shape, Box):
        return torch.ones(len(points), dtype=torch.bool)
    to_faces = points.new_tensor([shape.x, shape.y, shape.z]) - points.abs()
    return to_faces.sort(-1).values[:, 1] >= EDGE  # the nearest face is the point's own


def grid_of(shape: Shape, resolution: int) -> GridSDF:
    return GridSDF(sample(AnalyticSDF(shape), resolution, BOUND), -BOUND, BOUND)


@torch.no_grad()
def surfaces(size: int, resolution: int) -> list[dict]:
    """A row for each shape, field and way to march."""
    rows = []
    camera = Camera.orbit(1, size=(size, size))
    o, d = (rays.reshape(-1, 3) for rays in camera.to(torch.float64).rays())
    for name, shape in SHAPES.items():
        truth = DEPTHS[type(shape)](shape, o, d)
        grid = grid_of(shape, resolution)
        some = torch.arange(0, len(o), 29)  # a prime, so that rows and columns mix
        exact_grid = GridSDF(grid.values.double(), grid.low, grid.high)
        own = sampled_depth(exact_grid, o[some], d[some])
        for field, sdf in (("function", AnalyticSDF(shape)), (f"grid {resolution}", grid)):
            for way, trace in WAYS.items():
                hit = trace(sdf, camera)
                mask, depth = hit.mask.reshape(-1), hit.depth.reshape(-1).double()
                there = truth.isfinite()
                both = mask & there
                error = (depth - truth)[both].abs()
                points = o[both] + truth[both, None] * d[both]
                angle = angles(true_normals(shape, points), hit.normal.reshape(-1, 3)[both].double())
                angle = angle[smooth_places(shape, points)]
                row = {
                    "shape": name,
                    "field": field,
                    "march": way,
                    "depth_error": spread(error),
                    "iou": (both.sum() / (mask | there).sum()).item(),
                    "normal_error_degrees": spread(angle),
                }
                if field != "function":
                    also = mask[some] & own.isfinite()
                    row["depth_error_own"] = spread((depth[some] - own)[also].abs())
                    row["iou_own"] = (also.sum() / (mask[some] | own.isfinite()).sum()).item()
                rows.append(row)
    return rows


def angles(first: Tensor, second: Tensor) -> Tensor:
    """Degrees between unit vectors ``[N, 3]``; the arc cosine would end at float32's 0.02."""
    sine = torch.linalg.cross(first, second).norm(dim=-1)
    return torch.atan2(sine, (first * second).sum(-1)).rad2deg()


def spread(errors: Tensor) -> dict[str, float]:
    return {
        "mean": errors.mean().item(),
        "p99": float(np.quantile(errors.numpy(), 0.99)),
        "max": errors.max().item(),
    }


@dataclass
class Case:
    """Something that depths depend on: ``fields(values)`` is a field and rays ``[M, 3]`` for some values of it."""

    name: str
    values: Tensor  # the leaf, float64
    scene: Callable[[Tensor], tuple[Callable[[Tensor], Tensor], Tensor, Tensor]]
    step: float
    entries: int = 16  # numbers of it that are tried, at most


def cases(resolution: int, pixels: int) -> list[Case]:
    """Latent codes of all decoders at hand, poses before an analytic and a grid's surface, and a grid's values."""
    made = []
    camera = Camera.orbit(1, size=(pixels, pixels)).to(torch.float64)
    o, d = (rays.reshape(-1, 3) for rays in camera.rays())
    decoders = {"seeded 8x128": sphere_decoder(DecoderConfig(latent=32, hidden=128))}
    shipped = load_experiment(PROCEDURAL)
    decoders["procedural"] = (shipped.decoder, shipped.code(0))
    if data := os.environ.get("PAPERSHELF_DATA"):
        experiment = load_experiment(Path(data) / "deepsdf" / "maurock_3shapes")
        decoders["maurock"] = (experiment.decoder, experiment.code(2))
    for name, (decoder, code) in decoders.items():
        exact = decoder.double().requires_grad_(False)

        def coded(z: Tensor, exact=exact) -> tuple[CodedSDF, Tensor, Tensor]:
            return exact.with_code(z), o, d

        made.append(Case(f"latent, {name}", code.double(), coded, 1e-6))
    shape = AnalyticSDF(SHAPES["torus"]).double().requires_grad_(False)
    grid = GridSDF(sample(AnalyticSDF(SHAPES["torus"]), resolution, BOUND).double(), -BOUND, BOUND)
    grid.requires_grad_(False)
    for name, field in (("torus", shape), ("grid", grid)):

        def seen(change: Tensor, field=field) -> tuple[Callable, Tensor, Tensor]:
            return field, *(rays.reshape(-1, 3) for rays in moved(camera, change).rays())

        made.append(Case(f"pose, {name}", torch.zeros(6, dtype=torch.float64), seen, 1e-6))

    def with_values(values: Tensor) -> tuple[Callable, Tensor, Tensor]:
        return lambda points: torch.func.functional_call(grid, {"values": values}, (points,)), o, d

    made.append(Case("grid values", grid.values.detach().clone(), with_values, 1e-6))
    return made


def differences(case: Case) -> list[dict]:
    """Depths and the silhouette loss, by autograd and by central differences."""
    with torch.no_grad():
        sdf, o, d = case.scene(case.values)
        hit = sphere_trace(sdf, o, d, EXACT, gradient="none")
    facing = (hit.normal * d).sum(-1).abs()
    firm = some_of((hit.mask & (facing > 0.2)).nonzero()[:, 0])  # so that a small change neither loses nor gains one
    # The loss's target is the silhouette widened: rays that pass within 0.1 ought to hit. Beyond the ball's rim the
    # field is never asked.
    near, far = ball_interval(o, d, EXACT.bound)
    short = some_of((~hit.mask & (near < far) & (hit.min_sdf < 0.1) & (hit.min_sdf > 1e-3)).nonzero()[:, 0])

    def depths(values: Tensor) -> Tensor:
        sdf, o, d = case.scene(values)
        return sphere_trace(sdf, o[firm], d[firm], EXACT).depth

    def losses(values: Tensor) -> Tensor:
        sdf, o, d = case.scene(values)
        return sphere_trace(sdf, o[short], d[short], EXACT).min_sdf

    return [
        {"of": of, "by": case.name, **compared(function, case)}
        for of, function in (("depth", depths), ("mask", losses))
    ]


def some_of(rays: Tensor) -> Tensor:
    return rays[:: max(1, len(rays) // PIXELS)][:PIXELS]


def compared(function: Callable[[Tensor], Tensor], case: Case) -> dict:
    """Relative errors of the gradient of each result ``[K]`` by the numbers with the largest gradients."""
    leaf = case.values.clone().requires_grad_()
    results = function(leaf)
    rows = torch.stack(
        [torch.autograd.grad(one, leaf, retain_graph=True)[0].flatten() for one in results]
    )  # [K, numbers]
    largest = rows.abs().amax(0).topk(min(case.entries, rows.shape[1])).indices
    numeric = []
    with torch.no_grad():
        for k in largest.tolist():
            shift = torch.zeros_like(case.values).view(-1)
            shift[k] = case.step
            shift = shift.view_as(case.values)
            numeric.append((function(case.values + shift) - function(case.values - shift)) / (2 * case.step))
    numeric, found = torch.stack(numeric, 1), rows[:, largest]
    counted = numeric.abs() > COUNTED * numeric.abs().max()
    error = ((found - numeric)[counted] / numeric[counted]).abs().numpy()
    return {"entries": int(counted.sum()), "median": float(np.median(error)), "p90": float(np.quantile(error, 0.9))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--grid", type=int, default=256, help="samples along each axis")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = surfaces(args.size, args.grid)
    print("shape   field     march    depth: mean    99 %     max   own mean     IoU    normals: mean    99 %     max")
    for row in rows:
        depth, normal = row["depth_error"], row["normal_error_degrees"]
        own = f"{row['depth_error_own']['mean']:.1e}" if "depth_error_own" in row else "-"
        print(
            f"{row['shape']:7} {row['field']:9} {row['march']:7}     {depth['mean']:.1e} {depth['p99']:.1e} "
            f"{depth['max']:.1e}    {own:>7} {row['iou']:.5f}         {normal['mean']:.4f}  {normal['p99']:.4f} "
            f"{normal['max']:.4f}"
        )
    gradients = [row for case in cases(32, 24) for row in differences(case)]
    print("\nderivative of  by                      entries   median     90 %")
    for row in gradients:
        print(f"{row['of']:14} {row['by']:22} {row['entries']:8} {row['median']:9.1e} {row['p90']:8.1e}")
    if args.json:
        machine = {
            "device": processor(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "commit": commit(),
        }
        report = {"machine": machine, "size": args.size, "surfaces": rows, "gradients": gradients}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
