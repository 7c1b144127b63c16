"""Pictures of DeepSDF's decoder: our kernels against the same algorithm in plain PyTorch, and against naive.

The decoder is the published one (8x512, codes of 256), fitted to a procedural shape for some steps, which makes a
smooth body. `float32` and `mixed` are what `dist-render render` does. `torch` is the same algorithm, same steps and
only rays on their way, in PyTorch alone: masks in Python, and linear layers that see the code beside every point.
`naive` asks 50 times for every ray that meets the unit ball, likewise in PyTorch. Turn by turn in one process; naive in
the first turn only. With one thread it is that thread's own time that counts, so that other programs on the machine do
little harm.

python dist/bench/tracing.py [--size 128 512] [--threads 2] [--device cpu] [--fit 300] [--json FILE]
(part of `make gpu-check`)
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time
from unittest.mock import patch

import torch
import torch.nn.functional as F
from distrender import decoder_kernels
from distrender.cameras import Camera
from distrender.decoder import CodedSDF, DecoderConfig, DeepSDFDecoder
from distrender.marching import march_reference
from distrender.procedural import shape
from distrender.pyramid import trace_image
from distrender.rendering import NETWORK_STEPS, trace_view
from distrender.tracing import Hit, MarchOptions, sphere_trace
from papershelf.measuring import commit, processor
from torch import Tensor
from torch.utils.benchmark import timer as gpu_timer  # waits for the GPU
from tqdm import trange

NAIVE = MarchOptions(steps=50, ratio=1.0, dynamic=False)
NEAR = 0.05  # half of the points to fit lie so far from the surface, about
POINTS = 2048


def fitted(family: str, steps: int, device: str = "cpu", config: DecoderConfig | None = None) -> CodedSDF:
    """A decoder after so many steps of learning one shape's distances."""
    torch.manual_seed(0)
    decoder = DeepSDFDecoder(config)
    code, target = 0.1 * torch.randn(decoder.config.latent), shape(family, 0)
    generator = torch.Generator().manual_seed(0)
    sdf = decoder.with_code(code).to(device)
    optimizer = torch.optim.Adam(decoder.parameters(), 3e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(steps, 1))
    for _ in trange(steps, desc="fitting", disable=None):
        points = _points(target, generator)
        with torch.no_grad():
            distances = target(points)
        loss = (sdf(points.to(device)) - distances.to(device)).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return sdf.requires_grad_(False)


def _points(target: torch.nn.Module, generator: torch.Generator) -> Tensor:
    """Points ``[2 POINTS, 3]`` of the unit ball, the second half moved towards the surface."""
    points = torch.rand(POINTS, 1, generator=generator) ** (1 / 3) * F.normalize(
        torch.randn(POINTS, 3, generator=generator), dim=-1
    )
    with torch.enable_grad():
        moved = points.clone().requires_grad_()
        values = target(moved)
        slope = torch.autograd.grad(values.sum(), moved)[0]
    near = points - values.detach()[:, None] * slope + NEAR * torch.randn(POINTS, 3, generator=generator)
    return torch.cat([points, near])


def plain_field(sdf: CodedSDF) -> Callable[[Tensor], Tensor]:
    """The network as PyTorch's layers have it, its code beside every point."""
    return lambda points: sdf.decoder(sdf.latent.expand(len(points), -1), points)


def ways(sdf: CodedSDF) -> dict[str, Callable[[Camera], Hit]]:
    plain = plain_field(sdf)

    def in_torch(camera: Camera) -> Hit:
        with patch("distrender.pyramid.march_rays", march_reference):
            options = MarchOptions(ratio=1.0, finish="secant")
            return trace_image(plain, camera, options, steps=(3, 3, NETWORK_STEPS), gradient="none")

    return {
        "float32": lambda camera: trace_view(sdf, camera, precision="float32"),
        "mixed": lambda camera: trace_view(sdf, camera),
        "torch": in_torch,
        "naive": lambda camera: sphere_trace(plain, *camera.rays(), NAIVE, gradient="none"),
    }


@torch.no_grad()
def measure(sdf: CodedSDF, size: int, rounds: int, timer: Callable[[], float]) -> dict[str, object]:
    """Seconds and queries of each way, how much faster than the others ours are, and how far their pictures agree."""
    calls, camera = ways(sdf), Camera.orbit(1, size=(size, size)).to(sdf.latent.device)
    small = camera.resized((16, 16))
    for call in calls.values():  # builds the kernels
        call(small)
    taken: dict[str, list[float]] = {name: [] for name in calls}
    found: dict[str, Hit] = {}
    for turn in range(rounds):
        for name, call in calls.items():
            if name == "naive" and turn:
                continue
            start = timer()
            found[name] = call(camera)
            taken[name].append(timer() - start)
    if not found["torch"].mask.any():
        raise SystemExit("the fitted decoder shows no surface: give --fit more steps")
    rows = {}
    for name, hit in found.items():
        both = hit.mask & found["torch"].mask
        rows[name] = {
            "seconds": round(statistics.median(taken[name]), 4),
            "least_seconds": round(min(taken[name]), 4),
            "queries": hit.queries,
            "hits": int(hit.mask.sum()),
            "pixels_unlike_torch": int((hit.mask != found["torch"].mask).sum()),
            "mean_depth_error": float((hit.depth - found["torch"].depth)[both].abs().mean()),
        }
    faster = {
        f"{ours} than {other}": round(rows[other]["seconds"] / rows[ours]["seconds"], 2)
        for ours in ("float32", "mixed")
        for other in ("torch", "naive")
    }
    return {"size": size, "calls": rows, "times_faster": faster}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs="+", default=[128, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--family", default="chair")
    parser.add_argument("--fit", type=int, default=300, help="steps")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    on_gpu = args.device == "cuda"
    timer = gpu_timer if on_gpu else thread_time if args.threads == 1 else perf_counter
    sdf = fitted(args.family, args.fit, args.device)
    if not decoder_kernels.serves(sdf.decoder.config, sdf.latent):
        raise SystemExit("the kernels could not be built: nothing to compare (PAPERSHELF_NATIVE=require says why)")
    results = []
    for size in args.size:
        results.append(measure(sdf, size, args.rounds, timer))
        print(f"{size} x {size}, " + ("GPU" if on_gpu else f"{args.threads} thread(s)"))
        for name, row in results[-1]["calls"].items():
            print(
                f"  {name:8} {row['seconds']:9.3f} s {row['queries'] / 1e6:7.3f} M queries, {row['hits']} hits, "
                f"{row['pixels_unlike_torch']} pixels unlike torch, depth off by {row['mean_depth_error']:.1e}"
            )
        print("  " + ", ".join(f"{name}: {times}" for name, times in results[-1]["times_faster"].items()))
    if args.json:
        head = {"processor": torch.cuda.get_device_name() if on_gpu else processor(), "threads": args.threads}
        head |= {"torch": torch.__version__, "commit": commit()}
        report = {"machine": head, "family": args.family, "fit": args.fit, "results": results}
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
