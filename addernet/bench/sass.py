"""What a GPU executes for each term of an adder layer: instructions in the innermost loops of adder.cu's kernels.

The least is two floating-point instructions a term, a subtraction and an addition that takes the absolute value or
the clamp for nothing; halves come two to an instruction. What exceeds that is loads from shared memory and the
loop's own. Needs nvcc and cuobjdump, no GPU: ``pip install nvidia-cuda-cuobjdump`` brings the latter.

python addernet/bench/sass.py [--sm 90] [--cuobjdump PATH] [--json addernet/bench/results/sass-sm90.json]
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "addernet" / "src" / "addernet" / "csrc" / "adder.cu"
INCLUDE = ROOT / "shared" / "src" / "papershelf" / "csrc"
ARITHMETIC = ("FADD", "FFMA", "FMUL", "HADD2", "HFMA2", "HMUL2", "DADD", "DFMA")
ELEMENTS = {"float": 4, "BFloat16": 4, "Half": 8, "double": 2}  # in 16 bytes of what is computed in
KERNEL = re.compile(
    r"adder_kernel<\S*?(Forward|InputGradient)<(?:\w+::)?(\w+), \w+>, \S*?Tile<(\d+), (\d+), (\d+), (\d+)>"
)
INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)(.*?);")


def find_cuobjdump() -> str | None:
    """On the PATH, or where pip puts it."""
    installed = (place for folder in sys.path for place in Path(folder).glob("nvidia/*/bin/cuobjdump"))
    return shutil.which("cuobjdump") or next(map(str, installed), None)


def disassemble(nvcc: str, cuobjdump: str, sm: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        code = Path(scratch) / "adder.cubin"
        target = ["-std=c++20", "-O3", f"-gencode=arch=compute_{sm},code=sm_{sm}", "-cubin"]
        subprocess.run([nvcc, *target, f"-I{INCLUDE}", str(SOURCE), "-o", str(code)], check=True)
        done = subprocess.run([cuobjdump, "-sass", str(code)], capture_output=True, text=True, check=True)
    return subprocess.run(["c++filt"], input=done.stdout, capture_output=True, text=True, check=True).stdout


def innermost_loop(lines: list[str]) -> list[str]:
    """Opcodes of the loop that computes: of those that hold no other, the one with most arithmetic."""
    code = [(int(m[1], 16), m[2], m[3]) for m in map(INSTRUCTION.search, lines) if m]
    ends = {int(m[1], 16): at for at, op, rest in code if op.startswith("BRA") and (m := re.search(r"0x(\w+)", rest))}
    loops = [(start, end) for start, end in ends.items() if start < end]
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    bodies = [[op for at, op, _ in code if start <= at <= end] for start, end in inner]
    return max(bodies, key=lambda body: sum(op.startswith(ARITHMETIC) for op in body))


def examine(name: str, lines: list[str]) -> dict:
    """One kernel's figures."""
    direction, stored, *tile = KERNEL.search(name).groups()
    height, width, rows, columns = map(int, tile)
    body = innermost_loop(lines)
    counts = Counter(re.sub(r"\.(RN|FTZ|F32|MMA|U32|WIDE|LUT|MOV|SHL|64|H0_H0)\b|\.X\d+", "", op) for op in body)
    # A thread loads 16 bytes for each of its rows and columns, and makes rows x columns results of them.
    pieces = sum(count for op, count in counts.items() if op.startswith("LDS")) / (rows + columns)
    terms = int(pieces * ELEMENTS[stored] * rows * columns)
    arithmetic = sum(count for op, count in counts.items() if op.startswith(ARITHMETIC))
    return {
        "pass": direction,
        "x": stored,
        "tile": f"{height}x{width}",
        "results_per_thread": rows * columns,
        "terms": terms,
        "instructions": len(body),
        "arithmetic_per_term": round(arithmetic / terms, 3),
        "instructions_per_term": round(len(body) / terms, 3),
        "counts": dict(counts.most_common()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--cuobjdump", default=find_cuobjdump())
    parser.add_argument("--sm", default="90", help="GPU generation, as in sm_90")
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    if not (shutil.which(args.nvcc) and args.cuobjdump):
        raise SystemExit("nvcc and cuobjdump are needed: pip install nvidia-cuda-cuobjdump, or --cuobjdump PATH")

    functions = re.split(r"^\s*Function : ", disassemble(args.nvcc, args.cuobjdump, args.sm), flags=re.M)[1:]
    parts = (function.partition("\n") for function in functions)
    found = [examine(name, body.splitlines()) for name, _, body in parts]
    found.sort(key=lambda row: (row["pass"], row["x"], -row["results_per_thread"], row["tile"]))
    for row in found:
        print(
            f"{row['pass']:14} {row['x']:9} {row['tile']:>7}: {row['instructions']:4} instructions, {row['terms']:4} "
            f"terms: {row['instructions_per_term']:.3f} a term, {row['arithmetic_per_term']:.3f} of it arithmetic  "
            + " ".join(f"{op} {count}" for op, count in row["counts"].items())
        )
    if args.json:
        release = subprocess.run([args.nvcc, "--version"], capture_output=True, text=True).stdout.splitlines()[-2:]
        args.json.write_text(json.dumps({"sm": args.sm, "nvcc": " ".join(release), "kernels": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
