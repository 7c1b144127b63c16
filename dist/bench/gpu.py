"""dist's kernels on a GPU: decoders, marches through them, grids; each beside PyTorch in the same run.

decode  DeepSDF's decoder (8x512) with one code at many points: our kernel in float32, halves and bfloat16, PyTorch's
        layers in float32 and halves. TFLOP/s of the 1,573,376 multiply-adds a point takes; errors against float64.
march   a picture of such a decoder, fitted to a procedural shape for some steps: the march in one kernel in float32,
        and in halves while |f| >= 2e-3; the same step by step; all of it in PyTorch.
grid    steps a second through grids and an analytic shape: in float32, and as bricks of halves.

python dist/bench/gpu.py [--quick] [--device cpu] [--json results.json]    (part of `make gpu-check`)
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import torch
from distrender import decoder_kernels, marching_kernels, tracing_kernels
from distrender.analytic import AnalyticSDF, Rotate, Torus, smooth_union
from distrender.cameras import Camera
from distrender.decoder import CodedSDF, DecoderConfig, DeepSDFDecoder, evaluate
from distrender.grid import GridSDF
from distrender.marching import HIT, MarchOptions, ball_interval, march_reference
from papershelf.measuring import commit, interleaved, processor
from torch import Tensor
from torch.utils.benchmark import timer  # waits for the GPU
from tracing import fitted

MARCH = MarchOptions(steps=200, ratio=1.0, finish="secant")
HALVES_ABOVE = 2e-3


def rays_of(size: int, device: torch.device | str) -> tuple[Tensor, Tensor, Tensor]:
    origins, directions = (part.reshape(-1, 3) for part in Camera.orbit(1, size=(size, size)).to(device).rays())
    return origins, directions, ball_interval(origins, directions, 1.0)[0]


def decode(points: int, config: DecoderConfig, device: torch.device, rounds: int) -> dict:
    torch.manual_seed(0)
    sdf = DeepSDFDecoder(config).with_code(torch.randn(config.latent)).to(device)
    halves = copy.deepcopy(sdf.decoder).half()
    at = torch.rand(points, 3, generator=torch.Generator().manual_seed(0)).to(device) * 2 - 1
    rough, rough_code = at.half(), sdf.latent.half()

    def by_kernel(dtype: torch.dtype) -> Callable[[], Tensor]:
        packed = sdf.decoder.packed(dtype)
        return lambda: decoder_kernels.decode(packed, sdf.latent, at)

    calls = {
        "float32": by_kernel(torch.float32),
        "bfloat16": by_kernel(torch.bfloat16),
        "torch_float32": lambda: sdf.decoder(sdf.latent, at),
        "torch_half": lambda: halves(rough_code, rough),
    }
    if decoder_kernels.rough_dtype(at.device) == torch.float16:
        calls["half"] = by_kernel(torch.float16)
    layers = [(w.double(), b.double()) for w, b in sdf.decoder.folded(sdf.latent)]
    exact = torch.cat([evaluate(config, layers, some.double()) for some in at.split(65536)])
    rows = interleaved(calls, rounds, timer)
    for name, row in rows.items():
        row["tflops"] = round(2e-9 * config.macs(folded=True) * points / row["ms"], 2)
        row["off"] = float((calls[name]() - exact).abs().max())
    return {"points": points, "calls": rows}


def march(size: int, sdf: CodedSDF, rounds: int) -> dict:
    o, d, start = rays_of(size, sdf.latent.device)
    mixed = replace(MARCH, approximate_above=HALVES_ABOVE)

    def step_by_step() -> object:
        with patch.object(marching_kernels, "_is_for_one_kernel", lambda *_: False):
            return marching_kernels.march(sdf, o, d, start, mixed)

    calls = {
        "float32": lambda: marching_kernels.march(sdf, o, d, start, MARCH),
        "mixed": lambda: marching_kernels.march(sdf, o, d, start, mixed),
        "step_by_step": step_by_step,
        "torch": lambda: march_reference(lambda p: sdf.decoder(sdf.latent, p), o, d, start, MARCH),
    }
    rows = interleaved(calls, rounds, timer, most=4)
    found = {name: call() for name, call in calls.items()}
    hits = found["torch"].state == HIT
    for name, row in rows.items():
        both = hits & (found[name].state == HIT)
        row["queries"] = found[name].queries
        row["tflops"] = round(2e-9 * sdf.decoder.config.macs(folded=True) * row["queries"] / row["ms"], 2)
        row["unlike_torch"] = int((found[name].state != found["torch"].state).sum())
        row["mean_depth_error"] = float((found[name].depth - found["torch"].depth)[both].abs().mean())
    return {"size": size, "calls": rows}


def grid(samples: int, size: int, device: torch.device, rounds: int) -> dict:
    field = AnalyticSDF(smooth_union(Torus(0.6, 0.2), Rotate(Torus(0.5, 0.15), 1.5, 0.0, 0.0), k=0.1)).to(device)
    axis = torch.linspace(-1.05, 1.05, samples, device=device)
    with torch.no_grad():
        layers = [field(torch.stack(torch.meshgrid(z, axis, axis, indexing="ij"), -1).flip(-1)) for z in axis.split(1)]
    values = GridSDF(torch.cat(layers)).to(device)
    rays = rays_of(size, device)
    fields = {"analytic": field, "grid": values, "bricks": values.compact()}
    calls = {name: lambda of=of: tracing_kernels.march(of, *rays, MARCH) for name, of in fields.items()}
    calls["torch"] = lambda: march_reference(values, *rays, MARCH)
    rows = interleaved(calls, rounds, timer)
    for name, row in rows.items():
        found = calls[name]()
        row["queries"] = found.queries if name == "torch" else found[-1]
        row["steps_a_second"] = round(row["queries"] / row["ms"] * 1e3)
    return {"samples": samples, "size": size, "calls": rows}


def measure(quick: bool, sdf: CodedSDF, rounds: int) -> dict[str, list[dict]]:
    config, device = sdf.decoder.config, sdf.latent.device
    points, sizes, grids = (
        ((200,), (12,), ((16, 12),)) if quick else ((4096, 17000, 262144), (128, 512), ((128, 1024), (256, 1024)))
    )
    return {
        "decode": [decode(n, config, device, rounds) for n in points],
        "march": [march(size, sdf, rounds) for size in sizes],
        "grid": [grid(samples, size, device, rounds) for samples, size in grids],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    for kernels in (decoder_kernels._kernels, marching_kernels._kernels, tracing_kernels._kernels):
        if not kernels.load(args.device):
            raise SystemExit("the kernels cannot be built here: there is nothing to measure")
    torch.backends.cuda.matmul.allow_tf32 = False  # float32 means float32
    config = DecoderConfig(latent=8, hidden=64, layers=4, skip=(2,)) if args.quick else DecoderConfig()
    rounds = 2 if args.quick else 9
    sdf = fitted("chair", 150 if args.quick else 300, args.device, config)
    with torch.no_grad():
        results = measure(args.quick, sdf, rounds)
    for part, rows in results.items():
        for row in rows:
            print(part, ", ".join(f"{key} {value}" for key, value in row.items() if key != "calls"))
            for name, call in row["calls"].items():
                print(f"  {name:14}", "  ".join(f"{key} {value:.4g}" for key, value in call.items()))
    if args.json:
        machine = {
            "device": torch.cuda.get_device_name() if args.device == "cuda" else processor(),
            "torch": torch.__version__,
            "commit": commit(),
        }
        args.json.write_text(json.dumps({"machine": machine, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
