"""How long a prediction takes, beside PyTorch's convolutions alone and beside the network as it was published.

Turn by turn in one run, medians, for photographs of one object that fills them:

- ``psfcn``: :func:`psfcn.prediction.predict_normals`, all of it: masks, normalisation, maximum, packing of weights
- ``convolutions``: PyTorch's convolutions of the same layers and nothing else, on inputs that lie ready, 8 photographs
  at a time, contiguous and ``channels_last``
- ``released``: the published forward in plain PyTorch: one photograph after the other, their features in a list,
  stacked, and the maximum taken (float32)

Weights are random: no time depends on them. What sliding convolutions multiply and add is counted, and put in seconds
at PyTorch's rate in a product of large matrices. The peak of the memory above what was held before, with 8 photographs
and with 96, is taken in processes of their own (VmHWM).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from papershelf import measuring
from papershelf.errors import UserError
from torch import Tensor, nn
from torch.utils.benchmark import timer as waiting_for_gpus

from psfcn import inference
from psfcn.networks import PSFCN, STRIDE
from psfcn.prediction import predict_normals

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
BATCH = 8  # photographs at once in the convolutions alone
MATRIX = 1024  # side of the matrices
FEW, MANY = 8, 96  # photographs whose memory is compared
SAID = "memory:"  # before what a measuring process found

ONE = """
import numpy as np, torch
from psfcn import speed
def held(which):  # of this program alone: ru_maxrss would begin at its parent's
    return int(open("/proc/self/status").read().split(which + ":")[1].split()[0]) * 1024
torch.set_num_threads({threads})
speed.prediction(speed.network(), 8, 2, {precision!r}, "cpu")()
call = speed.prediction(speed.network(), {size}, {images}, {precision!r}, "cpu")
before = held("VmRSS")
call()
print("{said}", max(0, held("VmHWM") - before))
"""


@dataclass(frozen=True)
class Report:
    """What was measured, and on what.

    Attributes:
        machine: processor, threads, versions.
        size: pixels along each side.
        images: photographs.
        multiply_adds: of the sliding convolutions for these.
        clock: "wall", or "cpu" for the process's own seconds on all its cores.
        seconds: precision -> what -> median, interquartile range (``iqr``) and least (``min``) in seconds.
        matmul_rate: precision -> multiply-adds a second of large matrix products.
        of_convolutions: precision -> the time of the faster convolutions alone over that of the prediction.
        memory: precision -> number of photographs -> bytes above what was held before.
    """

    machine: dict
    size: int
    images: int
    multiply_adds: int
    clock: str
    seconds: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    matmul_rate: dict[str, float] = field(default_factory=dict)
    of_convolutions: dict[str, float] = field(default_factory=dict)
    memory: dict[str, dict[str, int]] = field(default_factory=dict)

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    def table(self) -> str:
        about = ", ".join(f"{key} {value}" for key, value in self.machine.items())
        count = f"{self.size}x{self.size}, {self.images} photographs, {self.multiply_adds / 1e9:.1f}e9 multiply-adds"
        lines = [about, count, f"{'precision':10} {'':28} {'seconds':>8} {'spread':>8} {'of psfcn':>9}"]
        for precision, rows in self.seconds.items():
            for name, row in rows.items():
                times = row["median"] / rows["psfcn"]["median"]
                lines.append(f"{precision:10} {name:28} {row['median']:8.3f} {row['iqr']:8.3f} {times:9.2f}")
            best = self.multiply_adds / self.matmul_rate[precision]
            lines.append(f"{precision:10} {'sliding, at matmul rate':28} {best:8.3f}")
        for precision, held in self.memory.items():
            peaks = ", ".join(f"{size / 1e6:.0f} MB with {images} photographs" for images, size in held.items())
            lines.append(f"{precision:10} peak memory: {peaks}")
        return "\n".join(lines)


def measure(
    size: int = 256,
    images: int = 32,
    precisions: Sequence[str] = tuple(DTYPES),
    *,
    device: torch.device | str = "cpu",
    rounds: int = 3,
    cpu_time: bool = False,
    memory: bool = True,
) -> Report:
    """Take the times, and the memory on a CPU.

    Args:
        size: pixels along each side.
        images: photographs.
        precisions: of :data:`DTYPES`.
        device: where to compute.
        rounds: turns of each contestant, after three that do not count.
        cpu_time: seconds of this process on all its cores: for one thread on a machine that others use.
        memory: whether to measure the memory.

    Raises:
        UserError: seconds of the processor were asked for on a GPU.
    """
    device = torch.device(device)
    if cpu_time and device.type != "cpu":
        raise UserError("the processor's seconds say nothing about a GPU; leave --cpu-time out")
    timer = time.process_time if cpu_time else waiting_for_gpus
    calls, products = {}, {}
    for precision in precisions:
        model = network().to(device)
        calls[precision, "psfcn"] = prediction(model, size, images, precision, device)
        for name, layout in {
            "convolutions": torch.contiguous_format,
            "convolutions, channels_last": torch.channels_last,
        }.items():
            calls[precision, name] = convolutions(network().to(device), size, images, DTYPES[precision], layout)
        if precision == "float32":
            calls[precision, "released"] = released(model, size, images)
        products[precision] = _product(DTYPES[precision], device)
    log.info("timing %d contestants, %d turns each", len(calls), 3 + rounds)
    taken = measuring.interleaved(calls, rounds, timer)
    rates = measuring.interleaved(products, 3 * rounds, timer)
    machine = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else measuring.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "commit": measuring.commit(),
        "kernels": "built" if inference.serves(device) else "none",
    }
    report = Report(machine, size, images, multiply_adds(size, images), "cpu" if cpu_time else "wall")
    for precision in precisions:
        rows = {name: _seconds(row) for (of, name), row in taken.items() if of == precision}
        report.seconds[precision] = rows
        report.matmul_rate[precision] = MATRIX**3 / (rates[precision]["min_ms"] / 1e3)
        alone = min(row["median"] for name, row in rows.items() if name.startswith("convolutions"))
        report.of_convolutions[precision] = round(alone / rows["psfcn"]["median"], 3)
        if memory and device.type == "cpu":
            report.memory[precision] = {str(number): peak_memory(size, number, precision) for number in (FEW, MANY)}
    return report


def network() -> PSFCN:
    """PS-FCN+N with random weights, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PSFCN(normalise=True).eval()


def prediction(
    model: PSFCN, size: int, images: int, precision: str, device: torch.device | str
) -> Callable[[], np.ndarray]:
    """A prediction from random photographs of an object that fills them."""
    rng = np.random.default_rng(0)
    photographs = rng.random((images, size, size, 3), dtype=np.float32)
    lights, mask = rng.normal(size=(images, 3)), np.ones((size, size), bool)
    lights /= np.linalg.norm(lights, axis=1, keepdims=True)
    return lambda: predict_normals(model, photographs, lights, mask, precision=precision, device=device)


def convolutions(
    model: PSFCN, size: int, images: int, dtype: torch.dtype, layout: torch.memory_format
) -> Callable[[], None]:
    """All convolutions of a prediction and nothing else, on inputs that lie ready."""
    layers = []
    for layer, height in _layers(model, size):
        photographs = images if _repeated(model, layer) else 1
        x = torch.randn(min(BATCH, photographs), layer.in_channels, height, height, device=layer.weight.device)
        layers.append((layer.to(dtype, memory_format=layout), x.to(dtype, memory_format=layout), photographs))

    @torch.inference_mode()
    def call() -> None:
        for layer, x, photographs in layers:
            for first in range(0, photographs, BATCH):
                layer(x[: photographs - first])

    return call


def released(model: PSFCN, size: int, images: int) -> Callable[[], Tensor]:
    """The published forward on photographs that are normalised and joined with their lights already."""
    side = size + -size % STRIDE
    inputs = torch.rand(images, 1, model.in_channels, side, side, device=next(model.parameters()).device)

    @torch.inference_mode()
    def call() -> Tensor:
        features = [model.extractor(x) for x in inputs]
        return F.normalize(model.regressor(torch.stack(features, 1).max(1).values), dim=1)

    return call


def multiply_adds(size: int, images: int) -> int:
    """Of sliding convolutions, all photographs and the regressor."""
    with torch.device("meta"):
        model = PSFCN()
    total = 0
    for layer, height in _layers(model, size):
        # Every weight meets an input (transposed) or an output (else) once.
        side = height if isinstance(layer, nn.ConvTranspose2d) else height // layer.stride[0]
        total += (images if _repeated(model, layer) else 1) * layer.weight.numel() * side**2
    return total


def peak_memory(size: int, images: int, precision: str) -> int:
    """Bytes that a prediction takes beyond the photographs and the network, in a process of its own."""
    log.info("memory of %d photographs in %s", images, precision)
    program = ONE.format(size=size, images=images, precision=precision, threads=torch.get_num_threads(), said=SAID)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True, env=os.environ
    )
    return int(done.stdout.rpartition(SAID)[2])


def _layers(model: PSFCN, size: int) -> list[tuple[nn.Conv2d | nn.ConvTranspose2d, int]]:
    """Every convolution, and the side of its inputs."""
    height, found = size + -size % STRIDE, []
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            found.append((layer, height))
            height = height * 2 if isinstance(layer, nn.ConvTranspose2d) else height // layer.stride[0]
    return found


def _repeated(model: PSFCN, layer: nn.Module) -> bool:
    """Whether a layer is the extractor's, which sees every photograph."""
    return any(layer is own for own in model.extractor.modules())


def _product(dtype: torch.dtype, device: torch.device) -> Callable[[], Tensor]:
    a, b = torch.randn(2, MATRIX, MATRIX, device=device).to(dtype)
    return lambda: a @ b


def _seconds(row: dict[str, float]) -> dict[str, float]:
    return {"median": row["ms"] / 1e3, "iqr": row["iqr_ms"] / 1e3, "min": row["min_ms"] / 1e3}
