"""DeepSDF's decoder with one code, for many points: our kernel against PyTorch's linear layers, in one run.

``torch`` is the same network with the code folded into its biases too; ``unfolded`` concatenates the code to every
point, as DeepSDF's own code does. Turn by turn, medians, in GFLOP/s of the 1,573,376 multiply-adds that a point takes
once the code is folded. With one thread it is that thread's own time that counts, so that other programs on the machine
do little harm.

python dist/bench/decoder.py [--points 2048 ...] [--threads 1] [--rounds 9] [--json results.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter, thread_time

import torch
from distrender import decoder_kernels
from distrender.decoder import DecoderConfig, DeepSDFDecoder, evaluate
from papershelf.measuring import commit, interleaved, processor


@torch.no_grad()
def measure(points: int, threads: int, rounds: int) -> dict[str, object]:
    """Milliseconds and GFLOP/s of each way, and the largest error of each against float64."""
    torch.manual_seed(0)
    config = DecoderConfig()
    decoder = DeepSDFDecoder(config).eval()
    sdf = decoder.with_code(0.1 * torch.randn(config.latent))
    at = torch.rand(points, 3) * 2 - 1
    codes = sdf.latent.expand(points, -1)
    calls = {
        "kernel": lambda: sdf(at),
        "torch": lambda: decoder(sdf.latent, at),
        "unfolded": lambda: decoder(codes, at),
    }
    if decoder_kernels.MULTIPLIES_BFLOAT16:
        calls["kernel_bfloat16"] = lambda: sdf.approximate(at)
    exact = evaluate(config, [(w.double(), b.double()) for w, b in decoder.folded(sdf.latent)], at.double())
    errors = {name: float((call() - exact).abs().max()) for name, call in calls.items()}
    times = interleaved(calls, rounds, thread_time if threads == 1 else perf_counter, most=4)
    for row in times.values():
        row["gflops"] = round(2e-6 * config.macs(folded=True) * points / row["ms"], 1)
    faster = {name: round(times["torch"]["ms"] / row["ms"], 2) for name, row in times.items()}
    return {"points": points, "threads": threads, "calls": times, "times_torch": faster, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, nargs="+", default=[128, 2048])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not decoder_kernels.serves(DecoderConfig()):
        raise SystemExit("the kernels could not be built: nothing to compare (PAPERSHELF_NATIVE=require says why)")
    rows = [measure(points, args.threads, args.rounds) for points in args.points]
    for row in rows:
        print(f"{row['points']} points, {args.threads} thread(s)")
        for name, call in row["calls"].items():
            print(
                f"  {name:16} {call['ms']:9.2f} ms ({call['iqr_ms']:.2f}) {call['gflops']:7.1f} GFLOP/s "
                f"{row['times_torch'][name]:5.2f} times torch, off by {row['errors'][name]:.1e}"
            )
    if args.json:
        head = {"processor": processor(), "threads": args.threads, "torch": torch.__version__, "commit": commit()}
        args.json.write_text(json.dumps({"machine": head, "results": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
