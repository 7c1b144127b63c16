"""On a machine with a GPU: build every kernel with CUDA, test it, sanitize it, measure it; one JSON file.

Needs no network and no installed package of ours: ``python3`` with PyTorch, pytest and nvcc. What is run
is found by name, so that a new tool or kernel needs no line here:

- kernels: every ``native.Kernels`` of a module in a package that has ``csrc/*.cu``
- tests: the cases whose name has ``cuda`` in it (``pytest.param("cuda", marks=skipif(...))``) in the test
  files that say "cuda"; a file whose imports are missing here is left out, and the report says so
- compute-sanitizer, where it is there: memcheck and racecheck over the same cases of the kernels' own tests
- benchmarks: ``bench/OP.py`` of every ``csrc/OP.cu``, and others that say ``make gpu-check`` in their docstring;
  each is called with ``--json FILE``

python3 tools/gpu_check.py [--output bench/results] [--skip sanitize bench]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SANITIZERS = ("memcheck", "racecheck")
SANITIZE_LIMIT = 150  # seconds for each; they slow kernels by 10 to 100 times
FAULTS = 99  # the exit code asked for; pytest's own end at 5
BENCH_LIMIT = 600
COUNTS = ("tests", "failures", "errors", "skipped")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results", help="folder for DEVICE.json")
    parser.add_argument("--skip", nargs="*", choices=["test", "sanitize", "bench"], default=[])
    args = parser.parse_args()

    sources = [str(folder) for folder in sorted(ROOT.glob("*/src"))]
    sys.path[:0] = sources
    os.environ["PYTHONPATH"] = os.pathsep.join([*sources, *filter(None, [os.environ.get("PYTHONPATH")])])
    os.environ["PAPERSHELF_NATIVE"] = "require"
    os.chdir(ROOT)
    try:
        import torch
    except ImportError:
        return _fail(f"{sys.executable} has no PyTorch; name one that has: make gpu-check PYTHON=...")
    if not torch.cuda.is_available():
        return _fail("no GPU that PyTorch can use; `make cuda-check` compiles the kernels without one")

    report = {"machine": machine(torch), "commit": commit(), "date": datetime.now(UTC).isoformat(timespec="seconds")}
    print(json.dumps(report, indent=2), flush=True)
    report["build"] = build_kernels()
    if "test" not in args.skip:
        report["tests"] = run_tests()
    if "sanitize" not in args.skip:
        report["sanitizers"] = {tool: sanitize(tool) for tool in SANITIZERS}
    if "bench" not in args.skip:
        report["benchmarks"] = {str(script): measure(script) for script in benchmarks()}

    args.output.mkdir(parents=True, exist_ok=True)
    file = args.output / f"{re.sub(r'[^a-z0-9]+', '-', report['machine']['device'].lower()).strip('-')}.json"
    file.write_text(json.dumps(report, indent=2) + "\n")
    faults = list(found_faults(report))
    print(f"\nwritten: {file}\n" + ("\n".join(faults) or "all well"))
    return bool(faults)


def found_faults(report: dict):
    """What in the report is not as it should be, a line each."""
    if tests := report.get("tests"):
        if tests["failures"] or tests["errors"]:
            yield f"FAILED: {tests['failures']} tests failed, {tests['errors']} could not run"
        if tests["tests"] == tests["skipped"]:
            yield "FAILED: no test ran on the GPU"
    for tool, found in report.get("sanitizers", {}).items():
        if not found["verdict"].startswith(("clean", "not run")):
            yield f"FAILED: compute-sanitizer {tool}: {found['verdict']}"
    for script, result in report.get("benchmarks", {}).items():
        if "error" in result:
            yield f"FAILED: {script}: {result['error']}"


def machine(torch) -> dict:
    properties = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    ).stdout
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver.partition("\n")[0],
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu_threads": torch.get_num_threads(),
    }


def commit() -> str:
    """The commit checked out, with a + where files differ from it; a copy without .git has none."""
    if known := os.environ.get("COMMIT"):
        return known
    head = subprocess.run(["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True)
    if head.returncode:
        return "unknown"
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True)
    return head.stdout.strip() + ("+" if changed.stdout else "")


def build_kernels() -> dict[str, float]:
    """Build each package's kernels for this GPU; returns the seconds each took (0 where built before)."""
    from papershelf import native

    seconds = {}
    for package in sorted({source.parent.parent for source in ROOT.glob("*/src/*/csrc/*.cu")}):
        for module in sorted(package.rglob("*.py")):
            if "native.Kernels(" not in module.read_text() or module.name == "native.py":
                continue
            name = ".".join(module.relative_to(package.parent).with_suffix("").parts)
            for kernels in vars(importlib.import_module(name)).values():
                if isinstance(kernels, native.Kernels):
                    start = time.perf_counter()
                    kernels.load("cuda")
                    seconds[name] = round(time.perf_counter() - start, 1)
                    print(f"built {name}: {seconds[name]} s", flush=True)
    return seconds


def importable(tests: list[Path]) -> tuple[list[Path], dict[str, str]]:
    """Those test files that can be imported here, and for each other one what it lacks."""
    ours = {package.name for package in ROOT.glob("*/src/*")}
    here, lacking = [], {}
    for file in tests:
        sys.path.insert(0, str(file.parent))  # as pytest does
        spec = importlib.util.spec_from_file_location(file.stem, file)
        try:
            spec.loader.exec_module(importlib.util.module_from_spec(spec))
        except ModuleNotFoundError as error:
            if error.name.partition(".")[0] in ours:
                raise
            lacking[str(file.relative_to(ROOT))] = f"not installed here: {error.name}"
        else:
            here.append(file)
        sys.path.remove(str(file.parent))
    return here, lacking


def run_tests() -> dict:
    """Run every test case named ``cuda``."""
    files, lacking = importable([f for f in sorted(ROOT.glob("*/tests/test_*.py")) if '"cuda"' in f.read_text()])
    for file, reason in lacking.items():
        print(f"left out {file}: {reason}")
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.xml"
        subprocess.run([*pytest_on(files, "-q"), f"--junitxml={result}"], check=False)
        suite = next(ElementTree.parse(result).iter("testsuite")).attrib
    counts = {name: int(suite[name]) for name in COUNTS}
    names = [str(file.relative_to(ROOT)) for file in files]
    return {**counts, "seconds": float(suite["time"]), "files": names, "left_out": lacking}


def pytest_on(files: list[Path], *options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "cuda", *options, *map(str, files)]


def sanitize(tool: str) -> dict:
    """The kernels' own tests under a tool of compute-sanitizer, as far as the time limit lets it come."""
    program = shutil.which("compute-sanitizer")
    if not program:
        return {"verdict": "not run", "why": "no compute-sanitizer here"}
    files, _ = importable(
        [
            test
            for source in ROOT.glob("*/src/*/csrc/*.cu")
            for test in sorted((source.parents[3] / "tests").glob(f"test_{source.parents[1].name}_{source.stem}*.py"))
        ]
    )
    command = [program, "--tool", tool, "--error-exitcode", str(FAULTS), *pytest_on(files, "-v")]
    # The caching allocator hands out parts of one large block: an address beyond a tensor would be a valid one.
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as log:
        try:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, timeout=SANITIZE_LIMIT)
            verdict = {0: "clean", FAULTS: "faults"}.get(done.returncode, f"exit code {done.returncode}")
        except subprocess.TimeoutExpired:
            verdict = "clean until the time limit"
        log.seek(0)
        lines = log.read().splitlines()
    found = [line for line in lines if line.startswith("=========") or "FAILED" in line]
    if any("Invalid __" in line or "Race reported" in line for line in found):
        verdict = "faults"
    passed = sum(" PASSED" in line for line in lines)
    report = {"verdict": verdict, "passed": passed, "seconds": round(time.perf_counter() - start, 1)}
    print(f"compute-sanitizer {tool}: {report}", flush=True)
    if not verdict.startswith("clean"):
        print("\n".join(found[:100] or lines[-30:]))
    return report


def benchmarks() -> list[Path]:
    of_kernels = {source.parents[3] / "bench" / f"{source.stem}.py" for source in ROOT.glob("*/src/*/csrc/*.cu")}
    asking = {script for script in ROOT.glob("*/bench/*.py") if "make gpu-check" in script.read_text()}
    return [script.relative_to(ROOT) for script in sorted(asking | {s for s in of_kernels if s.is_file()})]


def measure(script: Path) -> dict:
    """What a benchmark writes with ``--json``."""
    print(f"\n== {script}", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        try:
            done = subprocess.run([sys.executable, str(script), "--json", str(result)], timeout=BENCH_LIMIT)
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {BENCH_LIMIT} s"}
        return json.loads(result.read_text()) if done.returncode == 0 else {"error": f"exit code {done.returncode}"}


def _fail(why: str) -> int:
    print(f"gpu-check: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
