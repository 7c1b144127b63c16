"""Run the CUDA kernels' tests with their code on the CPU under ThreadSanitizer, then AddressSanitizer.

There a missing __syncthreads() or atomic is a data race and a bad index a bad address, named by file and line;
the tests alone would notice neither. The sanitizers are those of g++; no GPU is needed. Fails on any report.

python tools/cuda_sanitize.py [--only thread|address] [pytest arguments]
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = {
    "thread": ("libtsan.so", {"TSAN_OPTIONS": "halt_on_error=1 exitcode=66 report_signal_unsafe=0"}),
    # Python keeps what it has at its end, which is no leak.
    "address": ("libasan.so", {"ASAN_OPTIONS": "detect_leaks=0"}),
}


def tests() -> list[Path]:
    """Those of every kernel: of TOOL/src/IMPORT/csrc/OP.cu, TOOL/tests/test_IMPORT_OP*.py."""
    found: set[Path] = set()
    for kernel in ROOT.glob("*/src/*/csrc/*.cu"):
        package, tool = kernel.parents[1], kernel.parents[3]
        found.update(tool.glob(f"tests/test_{package.name}_{kernel.stem}*.py"))
    return sorted(found)


# In a process of its own: the sanitizers find lines in the library that was loaded, and a build moves it.
BUILD = """
import importlib, sys
from papershelf import native
for name in sys.argv[1:]:
    for kernels in vars(importlib.import_module(name)).values():
        if isinstance(kernels, native.Kernels):
            kernels.load()
"""


def modules() -> list[str]:
    """Those with kernels, as Python imports them."""
    found = []
    for package in sorted({kernel.parents[1] for kernel in ROOT.glob("*/src/*/csrc/*.cu")}):
        files = [file for file in sorted(package.rglob("*.py")) if "native.Kernels(" in file.read_text()]
        found += [".".join(file.relative_to(package.parent).with_suffix("").parts) for file in files]
    return found


def library(name: str) -> str:
    """Where the compiler keeps one of its libraries."""
    done = subprocess.run(["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def run(sanitizer: str, arguments: list[str]) -> int:
    runtime, options = SANITIZERS[sanitizer]
    with tempfile.TemporaryDirectory() as scratch:
        environment = os.environ | options
        environment |= {
            "PAPERSHELF_NATIVE": "cuda-on-cpu",
            "PAPERSHELF_CXXFLAGS": f"-fsanitize={sanitizer} -fno-omit-frame-pointer -g",
            "TORCH_EXTENSIONS_DIR": scratch,
            "OMP_NUM_THREADS": "1",
            # Python itself is not built for the sanitizer, whose runtime must nevertheless come first; and that
            # of exceptions with it, which it intercepts.
            "LD_PRELOAD": f"{library(runtime)} {library('libstdc++.so')}",
        }
        # Without a fixed layout of the address space, ThreadSanitizer refuses the randomness of new kernels.
        fixed = ["setarch", platform.machine(), "-R"] if shutil.which("setarch") else []
        python = [*fixed, sys.executable]
        built = subprocess.run([*python, "-c", BUILD, *modules()], cwd=ROOT, env=environment)
        if built.returncode:
            return built.returncode
        command = [*python, "-m", "pytest", "-q", "-x", "-s", "-p", "no:cacheprovider", "-m", "not slow", *arguments]
        return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", choices=SANITIZERS, help="one of the two")
    args, arguments = parser.parse_known_args()
    failed = []
    for sanitizer in [args.only] if args.only else SANITIZERS:
        start = time.perf_counter()
        code = run(sanitizer, arguments or [str(file) for file in tests()])
        print(f"{sanitizer}: {'no report' if code == 0 else f'FAILED ({code})'}, {time.perf_counter() - start:.0f} s")
        failed += [sanitizer] if code else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
