"""Networks for other programs: ONNX with plain operators, and PyTorch's own .pt2.

ONNX knows no adder layer, so it is written out: the image shifted to each tap of the filter, one behind the other,
then minus the sum of absolute differences to each filter, for as many filters at a time as keep that difference
within ``PIECE`` elements an image. A .pt2 file keeps ``addernet::forward``, as fast as here, and whoever loads it
imports ``addernet.adder`` first.
"""

from __future__ import annotations

import copy
import importlib.util
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from papershelf.errors import UserError
from papershelf.files import atomic_path
from torch import Tensor, nn

from addernet import adder  # noqa: F401 (the operator that models hold)

FORMATS = ("onnx", "pt2")
PIECE = 2**22  # elements an image: 16 MiB in float32
EXAMPLES = 2  # images; a batch of one would be taken for a constant


def export(
    model: nn.Module,
    path: Path | str,
    input_size: int | Sequence[int],
    format: Literal["onnx", "pt2"] | None = None,
    *,
    in_channels: int | None = None,
) -> None:
    """Write ``model`` for inference, for batches of any size.

    Args:
        model: with adder layers or without; it is left as it is.
        path: the file. Input and output of the ONNX graph are called ``images`` and ``logits``, both float32;
            strings of ``model.metadata`` go into its ``metadata_props``.
        input_size: of the images in pixels: a side, or (height, width); it is fixed in the file.
        format: by default what ``path`` ends in.
        in_channels: of the images; by default what ``model.config`` says, else 3.

    Raises:
        UserError: the format is unknown, packages for it are missing, or the file cannot be written.
    """
    path = Path(path)
    if format is None:
        format = path.suffix.removeprefix(".")
    if format not in FORMATS:
        raise UserError(f"{path}: networks are exported as {' or '.join(FORMATS)}, got {format!r}")
    if path.suffix != f".{format}":
        raise UserError(f"{path}: the file of a network exported as {format} ends in .{format}")
    height, width = (input_size, input_size) if isinstance(input_size, int) else input_size
    if in_channels is None:
        in_channels = getattr(getattr(model, "config", None), "in_channels", 3)
    twin = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    # Without a memory format of its own: programs that read the file choose theirs.
    twin = twin.to(memory_format=torch.contiguous_format)
    images = torch.zeros(EXAMPLES, in_channels, height, width)
    if format == "onnx":
        _write_onnx(twin, images, path, getattr(model, "metadata", {}))
    else:
        program = torch.export.export(twin, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        with atomic_path(path) as temporary:
            torch.export.save(program, temporary)


def _write_onnx(model: nn.Module, images: Tensor, path: Path, metadata: dict[str, str]) -> None:
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"export to ONNX needs {' and '.join(missing)}: install the extra papershelf-addernet[export], "
            "or export a .pt2 file"
        )
    with _quiet_exporter():
        program = torch.onnx.export(
            model,
            (images,),
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            custom_translation_table={torch.ops.addernet.forward.default: _adder_in_onnx},
            dynamo=True,
            optimize=False,  # ten times the work; runtimes do it anyway
            verbose=False,
        )
    program.model.metadata_props.update({"producer": "addernet", **metadata})
    with atomic_path(path) as temporary:
        program.save(temporary)


def _adder_in_onnx(x, weight, stride, padding, dilation, groups: int):
    """What ``addernet::forward`` becomes; x and the filters are values of the graph, onnxscript notes the calls."""
    from onnxscript import opset18 as op

    (sy, sx), (py, px), (dy, dx) = stride, padding, dilation
    channels, h, w = (int(size) for size in x.shape[1:])
    filters, kh, kw = (int(weight.shape[axis]) for axis in (0, 2, 3))
    height, width = (h + 2 * py - dy * (kh - 1) - 1) // sy + 1, (w + 2 * px - dx * (kw - 1) - 1) // sx + 1
    filters, channels = filters // groups, channels // groups
    k = kh * kw * channels
    # [groups, O / groups, K, 1, 1], channels fastest in K
    weight = op.Reshape(op.Transpose(weight, perm=[0, 2, 3, 1]), [groups, filters, k, 1, 1])
    if py or px:
        x = op.Pad(x, [0, 0, py, px, 0, 0, py, px])
    x = op.Reshape(x, [0, groups, 1, channels, h + 2 * py, w + 2 * px])  # 0 stands for the batch, whatever it is
    taps = [(i * dy, j * dx) for i in range(kh) for j in range(kw)]
    shifted = [
        op.Slice(x, [i, j], [i + (height - 1) * sy + 1, j + (width - 1) * sx + 1], [4, 5], [sy, sx]) for i, j in taps
    ]
    patches = op.Concat(*shifted, axis=3)  # [N, groups, 1, K, Ho, Wo]
    some_filters = max(1, min(filters, PIECE // (k * height * width)))
    some_groups = max(1, min(groups, PIECE // (k * height * width * some_filters)))
    rows = []
    for g in range(0, groups, some_groups):
        bank, part = weight, patches
        if some_groups < groups:
            bank, part = (op.Slice(t, [g], [g + some_groups], [a]) for t, a in ((weight, 0), (patches, 1)))
        pieces = []
        for f in range(0, filters, some_filters):
            some = op.Slice(bank, [f], [f + some_filters], [1]) if some_filters < filters else bank
            pieces.append(op.ReduceSum(op.Abs(op.Sub(part, some)), [3], keepdims=0))
        rows.append(op.Concat(*pieces, axis=2))
    return op.Reshape(op.Neg(op.Concat(*rows, axis=1)), [0, groups * filters, height, width])


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without what PyTorch's exporter says of itself: that torchvision is missing, that PyTorch will change."""
    log = logging.getLogger("torch.onnx._internal.exporter._registration")
    was = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        log.setLevel(was)
