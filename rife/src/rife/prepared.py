"""A v4 network made ready for inference: the same answer as :class:`rife.model.Rife`, sooner.

What is done once: weights in the layout and dtype of the convolutions, v4.6's ``beta`` multiplied into its
weights. What is done once per source frame: padding, and the context net's features, which both pairs of
a frame and all times between them share. What is not done: warping at full size for a block that works
at 1/8, joining planes, and every pass over memory that :mod:`rife.fused` saves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rife import flow_net, fused
from rife.flow_net import IFBlock, resize
from rife.model import WIDE_MOTION, Rife
from rife.presets import V4_0, V4_6, RifeConfig
from rife.refinement import Refinement
from rife.warping import warp

GRAPHS_KEPT = 4  # recordings, each for one size and number of times; they hold their memory
REFINED = ("img0", "img1", "warped0", "warped1", "mask", "flow")  # what the fusion net sees


@dataclass
class Frame:
    """A source frame as the prepared network wants it; make it once and use it for both its pairs."""

    rgb: Tensor  # [H, W, 4], padded
    height: int
    width: int
    context: list[Tensor]  # [1, C, h, w] each; none without a refinement


def supports(config: RifeConfig, scale: float) -> bool:
    """Whether a release can be prepared: the v4 line without an encoder, at whole scales."""
    alike = config.first == V4_6.first and config.later == V4_6.later and not config.encoder and not config.symmetric
    known = config.style in (flow_net.PAPER, flow_net.RESIDUAL) and (config.refinement in (None, V4_0.refinement))
    return alike and known and not config.replace_mask and all((s / scale) % 1 == 0 for s in config.scales)


class Prepared:
    """The prepared network.

    Args:
        model: of a release that :func:`supports`.
        device: where it runs; :func:`rife.fused.available` must say yes.
        dtype: of the convolutions; flow, mask and blend stay float32.
        scale: as for :meth:`rife.model.Rife.forward`.
    """

    def __init__(self, model: Rife, device: torch.device, dtype: torch.dtype = torch.float32, scale: float = 1) -> None:
        self.config, self.device, self.dtype = model.config, device, dtype
        self.multiple = model.padding_multiple(scale)
        self.scales = [int(s / scale) for s in model.config.scales]
        self.blocks = [_Block(block, device, dtype) for block in model.blocks]
        self.refinement = _Refinement(model.refinement, device, dtype) if model.config.refinement else None
        self.graphs: dict[tuple, _Graph] = {}

    def frame(self, rgb: Tensor) -> Frame:
        """A frame ``[3, H, W]`` float32 made ready."""
        height, width = rgb.shape[-2:]
        padded = fused.pad_frame(rgb.to(self.device), height + -height % self.multiple, width + -width % self.multiple)
        return Frame(padded, height, width, self.refinement.context(padded) if self.refinement else [])

    def between(self, a: Frame, b: Frame, t: Sequence[float], *, ensemble: bool = False) -> Tensor:
        """The frames at times ``t`` between ``a`` (0) and ``b`` (1): ``[T, 3, H, W]`` float32, not clamped."""
        times = torch.tensor(t, dtype=torch.float32, device=self.device)
        if self.device.type != "cuda":
            return self._all(a, b, times, ensemble, look=True)[0]
        # On a GPU starting the kernels takes longer than they do, so all of them are recorded and
        # replayed as one; whether v4.0 must start anew is then known only at the end.
        key = (a.rgb.shape, a.height, a.width, len(t), ensemble)
        if key not in self.graphs:
            while len(self.graphs) >= GRAPHS_KEPT:
                self.graphs.pop(next(iter(self.graphs)))
            self.graphs[key] = _Graph(lambda *args: self._all(*args, ensemble, look=False), (a, b, times))
        frames, moved = self.graphs[key]((a, b, times))
        if moved is None or not bool((moved > WIDE_MOTION).all(1).any()):
            return frames
        return self._all(a, b, times, ensemble, look=True)[0]

    def _all(self, a: Frame, b: Frame, t: Tensor, ensemble: bool, look: bool) -> tuple[Tensor, Tensor | None]:
        """The frames, and how far block1 moved at most where nobody has looked at that (see ``_estimate``)."""
        state, moved = self._estimate(a.rgb, b.rgb, t, self.scales, ensemble, look)
        residual = self.refinement(a, b, state) if self.refinement else None
        return fused.blend_pair(a.rgb, b.rgb, state, residual, a.height, a.width), moved

    def _estimate(
        self, img0: Tensor, img1: Tensor, t: Tensor, scales: Sequence[int], ensemble: bool, look: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Flow and mask ``[T, H, W, 5]``, coarse to fine.

        With ``look``, v4.0's rule of wide motion is heeded on the way, which waits for the device;
        without, the bound of block1's motions is returned, for the caller to look at.
        """
        moved = None
        state = img0.new_zeros(t.shape[0], *img0.shape[:2], fused.STATE)
        for i, (block, scale) in enumerate(zip(self.blocks, scales, strict=True)):
            names = self.config.later if i else self.config.first
            x = fused.assemble(img0, img1, state if i else None, t, names, scale, self.dtype, block.inputs)
            if ensemble:
                swapped = _swapped(state) if i else None
                back = fused.assemble(img1, img0, swapped, 1 - t, names, scale, self.dtype, block.inputs)
                ahead, back = block(torch.cat([x, back])).chunk(2)
                change = (ahead + block.swapped(back)) / 2
            else:
                change = block(x)
            factor = scale * block.grow
            if i == 1 and self.config.wide_motion and scales is self.scales:
                # Enlarging never exceeds the largest value, so mostly the small answer settles it.
                moved = _farthest(change[:, :4].float()) * factor
                if look and bool((moved > WIDE_MOTION).all(1).any()):
                    exact = _farthest(resize(change[:, :4].float(), factor)) * factor
                    wide = (exact > WIDE_MOTION).all(1)
                    if wide.all():
                        return self._estimate(img0, img1, t, [2 * s for s in scales], ensemble, look)
                    if wide.any():  # each time gets what it would get alone
                        each = [self._estimate(img0, img1, one, scales, ensemble, look)[0] for one in t.split(1)]
                        return torch.cat(each), None
            fused.add_upsampled(state, change, factor, shuffle=block.shuffle)
        return state, moved


class _Graph:
    """A function's kernels, recorded once and replayed on other tensors of the same shapes."""

    def __init__(self, function: Callable, inputs: tuple) -> None:
        self.inputs = tuple(_mapped(torch.clone, x) for x in inputs)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # cuDNN chooses its algorithms before anything is recorded
            for _ in range(2):
                function(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.outputs = function(*self.inputs)

    def __call__(self, inputs: tuple) -> tuple:
        for own, given in zip(self.inputs, inputs, strict=True):
            for to, start in zip(_tensors(own), _tensors(given), strict=True):
                to.copy_(start)
        self.graph.replay()
        return tuple(None if out is None else out.clone() for out in self.outputs)


def _tensors(x: Frame | Tensor) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else [x.rgb, *x.context]


def _mapped(function: Callable[[Tensor], Tensor], x: Frame | Tensor) -> Frame | Tensor:
    if isinstance(x, Tensor):
        return function(x)
    return Frame(function(x.rgb), x.height, x.width, [function(level) for level in x.context])


class _Layer:
    """A convolution and its PReLU, if it has one, with weights where and as the device wants them."""

    def __init__(self, conv: nn.Module, slope: Tensor | float | None, device: torch.device, dtype: torch.dtype) -> None:
        self.transposed = isinstance(conv, nn.ConvTranspose2d)
        self.stride = conv.stride
        weight = conv.weight.detach()
        if device.type == "cuda" and not self.transposed:  # tensor cores take channels by eight
            weight = F.pad(weight, (0, 0, 0, 0, 0, -weight.shape[1] % 8))
        self.inputs = weight.shape[0 if self.transposed else 1]
        self.weight = weight.to(device, dtype, memory_format=torch.channels_last)
        bias = conv.bias.detach().to(device, torch.float32)
        outputs = bias.shape[0]
        self.slope, self.leaky = None, None
        if isinstance(slope, float) and device.type == "cpu" and hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
            self.leaky = slope  # oneDNN takes it along
        if slope is not None:
            full = torch.full((outputs,), slope) if isinstance(slope, float) else slope.detach().float()
            self.slope = full.to(device)
        # On a CPU the convolution adds its bias for nothing, on a GPU in a pass of its own: not there.
        self.late_bias = bias if device.type == "cuda" and self.slope is not None else None
        self.bias = None if self.late_bias is not None else bias.to(dtype)

    def __call__(self, x: Tensor, *, before: Tensor | None = None, after: Tensor | None = None) -> Tensor:
        if self.leaky is not None and before is None:
            where = [1, 1], list(self.stride), [1, 1]
            y = torch.ops.mkldnn._convolution_pointwise(
                x, self.weight, self.bias, *where, 1, "leaky_relu", [self.leaky], ""
            )
            return y.contiguous(memory_format=torch.channels_last)
        if self.transposed:
            y = F.conv_transpose2d(x, self.weight, self.bias, self.stride, 1)
        else:
            y = F.conv2d(x, self.weight, self.bias, self.stride, 1)
        y = y.contiguous(memory_format=torch.channels_last)
        return y if self.slope is None else fused.activate(y, self.late_bias, self.slope, before=before, after=after)


def _layer(pair: nn.Sequential, device: torch.device, dtype: torch.dtype) -> _Layer:
    """From a convolution and its activation."""
    conv, activation = pair
    slope = activation.weight if isinstance(activation, nn.PReLU) else activation.negative_slope
    return _Layer(conv, slope, device, dtype)


class _Block:
    """An IFBlock from its assembled input to its answer, before enlarging (and before the pixel shuffle)."""

    def __init__(self, block: IFBlock, device: torch.device, dtype: torch.dtype) -> None:
        self.residual = block.style.body == "residual"
        self.shuffle = block.style.shuffle
        self.grow = int(block.style.shrink)
        self.stem = [_layer(pair, device, dtype) for pair in block.stem]
        # The identity fits into the weights where they hold 1 + w without rounding w away.
        self.folded = self.residual and device.type == "cpu" and dtype == torch.float32
        if self.residual:
            parts = [(_scaled(part.conv, part.beta, self.folded), 0.2) for part in block.body]
            self.body = [_Layer(conv, slope, device, dtype) for conv, slope in parts]
        else:
            self.body = [_layer(pair, device, dtype) for pair in block.body]
        self.head = _Layer(block.head[0], None, device, dtype)
        self.inputs = self.stem[0].inputs

    def __call__(self, x: Tensor) -> Tensor:
        for layer in self.stem:
            x = layer(x)
        if self.residual:
            for layer in self.body:
                x = layer(x) if self.folded else layer(x, before=x)
        else:
            first = x
            for layer in self.body[:-1]:
                x = layer(x)
            x = self.body[-1](x, after=first)
        return self.head(x)

    def swapped(self, change: Tensor) -> Tensor:
        """An answer for the swapped pair, put the right way round: ``[T, C, h, w]``."""
        each = 4 if self.shuffle else 1  # channels that make one plane
        flow0, flow1, mask, rest = change.split([2 * each, 2 * each, each, change.shape[1] - 5 * each], 1)
        return torch.cat([flow1, flow0, -mask, rest], 1).contiguous(memory_format=torch.channels_last)


def _scaled(conv: nn.Conv2d, beta: Tensor, identity: bool) -> nn.Conv2d:
    """``conv(x) * beta``, or ``conv(x) * beta + x``, as one convolution."""
    out = nn.Conv2d(conv.in_channels, conv.out_channels, 3, 1, 1)
    out.weight.data = conv.weight.detach() * beta.detach().view(-1, 1, 1, 1)
    out.bias.data = conv.bias.detach() * beta.detach().view(-1)
    if identity:
        out.weight.data[:, :, 1, 1] += torch.eye(conv.in_channels)
    return out


class _Refinement:
    """Context net and fusion U-Net."""

    def __init__(self, module: Refinement, device: torch.device, dtype: torch.dtype) -> None:
        self.dtype = dtype
        pairs = (module.context.levels, module.fusion.down)
        self.levels, self.down = ([[_layer(p, device, dtype) for p in pair] for pair in part] for part in pairs)
        self.up = [_layer(pair, device, dtype) for pair in module.fusion.up]
        self.out = _Layer(module.fusion.out, None, device, dtype)

    def __call__(self, a: Frame, b: Frame, state: Tensor) -> Tensor:
        """Logits of the residual, ``[T, 3, H, W]`` channels_last."""
        t = state.new_zeros(state.shape[0])
        flow = fused.assemble(a.rgb, b.rgb, state, t, ("flow",), 2, torch.float32)
        x = fused.assemble(a.rgb, b.rgb, state, t, REFINED, 1, self.dtype, self.down[0][0].inputs)
        skips = []
        for down, *features in zip(self.down, a.context, b.context, strict=True):
            for layer in down:
                x = layer(x)
            skips.append(x)
            n = x.shape[0]
            warped = [warp(f.expand(n, -1, -1, -1), flow[:, 2 * i : 2 * i + 2]) for i, f in enumerate(features)]
            x = torch.cat([x, *warped], 1)
            flow = resize(flow, 0.5) * 0.5
        for up, skip in zip(self.up, (*reversed(skips[:-1]), None), strict=True):
            x = up(x)
            if skip is not None:
                x = torch.cat([x, skip], 1)
        return self.out(x)

    def context(self, rgb: Tensor) -> list[Tensor]:
        """The context net's features of a padded frame, before warping."""
        x = rgb[..., :3].permute(2, 0, 1)[None].to(self.dtype)
        x = F.pad(x, (0, 0, 0, 0, 0, self.levels[0][0].inputs - 3)).contiguous(memory_format=torch.channels_last)
        features = []
        for level in self.levels:
            for layer in level:
                x = layer(x)
            features.append(x)
        return features


def _swapped(state: Tensor) -> Tensor:
    """The estimate seen from the other end."""
    flow0, flow1, mask = state.split([2, 2, 1], -1)
    return torch.cat([flow1, flow0, -mask], -1)


def _farthest(flow: Tensor) -> Tensor:
    """``[T, 4, h, w]`` to ``[T, 2]``: the largest shift towards either frame."""
    return flow.unflatten(1, (2, 2)).abs().amax((2, 3, 4))
