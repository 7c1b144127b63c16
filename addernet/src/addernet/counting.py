"""Additions and multiplications of a network, and their energy (AdderNet, sections 1 and 4).

For one image, inference. With k taps per filter, a convolution's output element costs k multiplications and k
additions, an adder layer's 2 k additions (the difference and the sum; the sign bit costs nothing): what the paper's
tables count. As there, batch norms, activations, poolings, and sums of shortcuts are left out, being small beside it.

The paper gives 41.17 M multiplications for ResNet-20 on 32x32 pixels and 82.34 M additions for its AdderNet, taking
every layer as an adder. The layers of its released network come to 40.81 M here, 0.9 % less; what else the paper
counts it does not say. The stem and the classifier, which stay ordinary, are counted as what they are.

Energies are of Horowitz, "Computing's Energy Problem (and what we can do about it)", ISSCC 2014, figure 1.1.9:
picojoules in a 45 nm process at 0.9 V. They are of the arithmetic alone; moving data costs more and is not in them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from papershelf.errors import UserError
from torch import Tensor, nn

from addernet.layer import Adder2d

PICOJOULES = {  # (one addition, one multiplication)
    "float32": (0.9, 3.7),
    "float16": (0.4, 1.1),
    "int32": (0.1, 3.1),
    "int8": (0.03, 0.2),
}
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
COUNTED = (Adder2d, nn.modules.conv._ConvNd, nn.Linear)


@dataclass(frozen=True)
class LayerCount:
    """A module with parameters of its own, or what it computes.

    Attributes:
        name: as in ``named_modules()``.
        kind: its class.
        output: shape of its last output, without the batch; empty where it was not called or is not counted.
        additions: for one image, over all its calls.
        multiplications: likewise.
        parameters: of its own, those of modules inside it not included.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    additions: int
    multiplications: int
    parameters: int


@dataclass(frozen=True)
class Count:
    """All layers of a network for images of one size.

    Attributes:
        layers: in the order of registration.
        input: ``(C, H, W)``.
        parameters: of the whole network, shared ones once.
    """

    layers: tuple[LayerCount, ...]
    input: tuple[int, int, int]
    parameters: int

    @property
    def additions(self) -> int:
        return sum(layer.additions for layer in self.layers)

    @property
    def multiplications(self) -> int:
        return sum(layer.multiplications for layer in self.layers)

    def microjoules(self, number: str = "float32") -> float:
        """Energy of the arithmetic for one image, all of it in numbers of one kind of ``PICOJOULES``."""
        addition, multiplication = PICOJOULES[number]
        return (self.additions * addition + self.multiplications * multiplication) / 1e6


def count(model: nn.Module, input_size: int | Sequence[int], in_channels: int | None = None) -> Count:
    """Count what ``model`` computes for one image; nothing is computed for it.

    Adder layers, ``nn.Conv`` and ``nn.Linear`` layers are counted, not what a forward method does by functions.

    Args:
        model: any network that takes ``[N, C, H, W]``.
        input_size: of the image in pixels: a side, or (height, width).
        in_channels: of the image; by default what ``model.config`` says, else 3.

    Raises:
        UserError: the network does not take such an image.
    """
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if in_channels is None:
        in_channels = getattr(getattr(model, "config", None), "in_channels", 3)
    shape = (in_channels, height, width)
    twin = copy.deepcopy(model).to("meta").eval()
    found: dict[nn.Module, tuple[tuple[int, ...], int]] = {}  # module -> shape of its output, pairs of operations

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found[module] = (tuple(output.shape[1:]), found.get(module, ((), 0))[1] + _pairs(module, inputs[0], output))

    for module in twin.modules():
        if isinstance(module, COUNTED):
            module.register_forward_hook(note)
    dtype = next((p.dtype for p in twin.parameters() if p.is_floating_point()), torch.float32)
    try:
        with torch.no_grad():
            twin(torch.empty(1, *shape, dtype=dtype, device="meta"))
    except (RuntimeError, UserError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{type(model).__name__} does not take images of {list(shape)}: {reason}") from error
    layers = []
    for name, module in twin.named_modules():
        parameters = sum(p.numel() for p in module.parameters(recurse=False))
        output, pairs = found.get(module, ((), 0))
        if parameters or pairs:
            multiplied = 0 if isinstance(module, Adder2d) else pairs
            layers.append(
                LayerCount(name, type(module).__name__, output, 2 * pairs - multiplied, multiplied, parameters)
            )
    return Count(tuple(layers), shape, sum(p.numel() for p in twin.parameters()))


def as_json(counted: Count) -> str:
    """Layers, sums, and energies in microjoules for an image, for machines."""
    return json.dumps(
        {
            "input": counted.input,
            "layers": [vars(layer) for layer in counted.layers],
            "additions": counted.additions,
            "multiplications": counted.multiplications,
            "parameters": counted.parameters,
            "microjoules": {number: counted.microjoules(number) for number in PICOJOULES},
        },
        indent=2,
    )


def as_table(counts: Mapping[str, Count], *, layers: bool = False) -> str:
    """Networks side by side, for people.

    Args:
        counts: a name -> its count.
        layers: also a table of the layers of each.
    """
    parts = []
    if layers:
        for name, counted in counts.items():
            rows = [
                (
                    layer.name,
                    layer.kind,
                    "x".join(map(str, layer.output)),
                    *map("{:,}".format, (layer.additions, layer.multiplications, layer.parameters)),
                )
                for layer in counted.layers
            ]
            parts.append(_aligned((name, "kind", "output", "additions", "multiplications", "parameters"), rows, text=3))
    numbers = ("float32", "int8")
    rows = [
        (
            name,
            *(f"{value / 1e6:,.2f} M" for value in (counted.additions, counted.multiplications, counted.parameters)),
            *(f"{counted.microjoules(number):,.1f} µJ" for number in numbers),
        )
        for name, counted in counts.items()
    ]
    parts.append(_aligned(("for one image", "additions", "multiplications", "parameters", *numbers), rows, text=1))
    return "\n\n".join(parts)


def _pairs(module: nn.Module, x: Tensor, y: Tensor) -> int:
    """Pairs of an input and a weight that meet: multiplied and added, or subtracted and added."""
    if isinstance(module, _TRANSPOSED):
        return x.numel() // module.in_channels * module.weight.numel()
    outputs = module.out_features if isinstance(module, nn.Linear) else module.out_channels
    return y.numel() // outputs * module.weight.numel()


def _aligned(head: Sequence[str], rows: Sequence[Sequence[str]], text: int) -> str:
    """Columns two spaces apart, the first ``text`` of them to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if index < text else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
