r"""Adder networks on bytes: which grid each layer gets, and the network that computes with them.

A layer's inputs and filters share a grid (:mod:`addernet.int8`). It needs to span the inputs only: where x lies
in [low, high] and a filter's number w does not, ``|x - w| = |x - clamp(w)| + |w - clamp(w)|`` exactly, and the
second part is a constant of the output channel. After a ReLU all 256 bytes are thus spent on [0, high]. What is
searched for is ``high`` (and ``low`` with it): clipping rare large inputs makes the steps smaller. Measured on
calibration images is the variance of the error that the layer's batch norm hands on; the mean error of each channel
is taken off.

The sums are whole numbers; the batch norm, the constants, the addition of a shortcut, the ReLU and the next layer's
grid are one pass over them. Shortcuts stay float32. Stem, poolings and classifier stay as they are.

Not in the paper. That clipping filters to the inputs' range loses nothing is from Nie et al., "Redistribution of
Weights and Activations for AdderNet Quantization" (NeurIPS 2022).
"""

from __future__ import annotations

import copy
import dataclasses
import json
import operator
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from papershelf.errors import UserError
from papershelf.files import atomic_path
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from addernet import int8
from addernet.architectures import Architecture, build
from addernet.int8 import Grid
from addernet.layer import Adder2d

KIND = "int8"  # metadata "quantized" of our files
SEARCH_IMAGES = 64  # that ranges are tried on; extremes are looked for in all
BATCH = 16
PERCENTILE = 0.9999  # where the search for a range begins, beside the extremes themselves
SHRINK, TRIALS = 0.8, 12  # each further trial spans this part of the one before
SAMPLES = 1 << 16  # values per layer and batch that percentiles are taken from


class QuantizedAdder2d(nn.Module):
    """An adder layer with its batch norm on bytes, and what follows them: shortcut, ReLU, the next layer's grid.

    Args:
        layer: its shape.
        grid: of its inputs and filters.
        relu: whether a ReLU follows.

    Attributes:
        filters: ``int8.pack``'s form of the filters' bytes.
        scale: ``[O]`` float32; times the sums, plus ``offset``, is what the batch norm would give.
        offset: ``[O]`` float32.
        next_grid: where its output is wanted as bytes: their grid.
        want_float: whether the output is wanted as float32.
    """

    def __init__(self, layer: Adder2d, grid: Grid, relu: bool = False) -> None:
        super().__init__()
        self.window = layer.stride, layer.padding, layer.dilation, layer.groups
        self.grid, self.relu = grid, relu
        self.next_grid: Grid | None = None
        self.want_float = True
        place = layer.weight.device
        self.register_buffer("filters", int8.pack(torch.zeros_like(layer.weight, dtype=torch.uint8), layer.groups))
        self.register_buffer("scale", torch.zeros(layer.out_channels, device=place))
        self.register_buffer("offset", torch.zeros(layer.out_channels, device=place))

    @torch.no_grad()
    def fold(self, layer: Adder2d, norm: nn.BatchNorm2d) -> QuantizedAdder2d:
        """Take the parameters of a float layer and its batch norm; returns self."""
        weight = layer.weight.detach().float()
        kept = weight.clamp(self.grid.low, self.grid.high)
        self.filters.copy_(int8.pack(int8.quantize(kept, self.grid).contiguous(), layer.groups))
        gain = norm_gain(norm)
        constant = -(weight - kept).abs().flatten(1).sum(1) + (0 if layer.bias is None else layer.bias)
        self.scale.copy_(-self.grid.step * gain)
        self.offset.copy_((constant - norm.running_mean) * gain + (0 if norm.bias is None else norm.bias))
        return self

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        """``[N, C, H, W]`` bytes or floats, and a shortcut to be added, to ``[N, O, Ho, Wo]``.

        Floats, bytes of ``next_grid``, or both, as ``want_float`` and ``next_grid`` have it.
        """
        if x.dtype != torch.uint8:
            x = int8.quantize(x, self.grid)
        next_step, next_zero = (
            (0.0, 0) if self.next_grid is None else (1 / self.next_grid.step, self.next_grid.zero_point)
        )
        shortcut = None if residual is None else residual.float()
        y, bytes_ = torch.ops.addernet.int8_layer(
            x, self.filters, self.grid.zero_point, *self.window,
            self.scale, self.offset, shortcut, self.relu, self.want_float, next_step, next_zero,
        )  # fmt: skip
        if self.next_grid is None:
            return y
        return (y, bytes_) if self.want_float else bytes_

    def extra_repr(self) -> str:
        return f"{self.grid}, relu={self.relu}, next_grid={self.next_grid}, want_float={self.want_float}"


def norm_gain(norm: nn.BatchNorm2d) -> Tensor:
    """``[C]``: what a batch norm multiplies each channel by in inference."""
    gain = (norm.running_var + norm.eps).rsqrt()
    return gain if norm.weight is None else gain * norm.weight


def quantize(model: nn.Module, images: Tensor, search_images: int = SEARCH_IMAGES) -> fx.GraphModule:
    """The network with its adder layers on bytes.

    Args:
        model: an adder network of ``addernet.build`` or ``addernet.checkpoints.load``; it is left as it is.
        images: ``[N, C, H, W]`` float32, normalised as in training; some hundreds that are like those to come.
        search_images: how many of them the ranges are tried on, which takes most of the time.

    Returns:
        A network for inference with ``.config`` and ``.metadata`` of the model, on its device.

    Raises:
        UserError: the network has no adder layers or is not one of ours, or there are no images.
    """
    config = getattr(model, "config", None)
    if not isinstance(config, Architecture) or config.op != "adder":
        raise UserError(f"only adder networks of addernet.build can be quantised, got {config or type(model).__name__}")
    if images.ndim != 4 or images.shape[1] != config.in_channels or not len(images):
        raise UserError(
            f"calibration needs images [N, {config.in_channels}, H, W] with N of 1 or more, got {list(images.shape)}"
        )
    model = copy.deepcopy(model).eval().float().requires_grad_(False)
    graph = _trace(model)
    chains = list(_chains(graph))
    with torch.no_grad():
        quantized = _rewrite(graph, chains, _calibrated(model, chains, images, search_images))
    quantized.config, quantized.metadata = config, dict(getattr(model, "metadata", {}))
    return quantized.eval()


def save(model: fx.GraphModule, path: Path | str, metadata: Mapping[str, str] | None = None) -> None:
    """Write a network of :func:`quantize` as safetensors; its metadata says ``quantized: int8``.

    Args:
        model: the network.
        path: ends in ``.safetensors``.
        metadata: strings to keep beside those of the model: ``class_names``, ``mean``, ``std``, ``command`` and
            so on, as in :func:`addernet.checkpoints.save`.

    Raises:
        UserError: the network is not one of :func:`quantize`, or the file cannot be written.
    """
    path = Path(path)
    grids = {name: dataclasses.astuple(module.grid) for name, module in _quantized(model)}
    if not grids:
        raise UserError(f"expected a network of addernet.quantize, got {type(model).__name__}; quantise it first")
    if path.suffix != ".safetensors":
        raise UserError(f"{path}: quantised networks are written as .safetensors; give a name that ends so")
    about = {"tool": "addernet", "version": version("papershelf-addernet"), "quantized": KIND}
    about |= {key: str(value) for key, value in dataclasses.asdict(model.config).items()}
    about["grids"] = json.dumps(grids)
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    content = to_bytes(state, {**model.metadata, **(metadata or {}), **about})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def load(path: Path | str) -> fx.GraphModule:
    """The network that :func:`save` wrote, on the CPU, ready for inference.

    Raises:
        UserError: the file cannot be read, or is none of :func:`save`.
    """
    try:
        with safe_open(path, "pt") as file:
            return assemble({name: file.get_tensor(name) for name in list(file.keys())}, file.metadata() or {}, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except SafetensorError as error:
        raise UserError(f"{path}: cannot be read as a network ({error}); quantise it anew") from error


def assemble(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: Path | str) -> fx.GraphModule:
    """The network of a file's tensors and metadata; ``where`` names the file in errors.

    Raises:
        UserError: they are not those that :func:`save` writes.
    """
    if metadata.get("quantized") != KIND:
        raise UserError(f"{where}: holds no network quantised to {KIND}; write one with addernet quantize")
    try:
        numbers = {key: int(metadata[key]) for key in ("classes", "in_channels", "input_size")}
        config = Architecture(metadata["arch"], metadata["op"], **numbers)
        with torch.device("meta"):
            graph = _trace(build(**dataclasses.asdict(config)).eval())
            chains = list(_chains(graph))
            grids = {name: Grid(float(step), int(zero)) for name, (step, zero) in json.loads(metadata["grids"]).items()}
            modules = {chain.name: QuantizedAdder2d(chain.layer, grids[chain.name], chain.relu) for chain in chains}
            model = _rewrite(graph, chains, modules)
        model.load_state_dict(tensors, assign=True)
    except (KeyError, ValueError, TypeError, RuntimeError, UserError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{where}: was written by another version of addernet ({reason}); quantise it anew") from error
    model.config, model.metadata = config, dict(metadata)
    return model.to(memory_format=torch.channels_last).requires_grad_(False).eval()


def _quantized(model: nn.Module) -> list[tuple[str, QuantizedAdder2d]]:
    return [(name, module) for name, module in model.named_modules() if isinstance(module, QuantizedAdder2d)]


# Calibration: ranges of what goes into the layers, then their errors under each candidate.


def _calibrated(
    model: nn.Module, chains: list[_Chain], images: Tensor, search_images: int
) -> dict[str, QuantizedAdder2d]:
    """For each layer, by its name, the one whose grid gives the least error.

    Layers that read the same tensor get the same grid, so that it is quantised once.
    """
    readers: dict[fx.Node, list[_Chain]] = defaultdict(list)
    for chain in chains:
        readers[chain.source].append(chain)
    ranges = {of[0].name: _Range() for of in readers.values()}
    device = next(model.parameters()).device

    def run(some: Tensor, see: Callable[[_Chain, Tensor, Tensor], None]) -> None:
        with _hooked(chains, see):
            for batch in some.split(BATCH):
                model(batch.to(device, memory_format=torch.channels_last))

    run(images, lambda chain, x, _: ranges[chain.name].add(x) if chain.name in ranges else None)
    trials: dict[str, list[QuantizedAdder2d]] = {}
    for of in readers.values():
        grids = ranges[of[0].name].candidates()
        for chain in of:
            trials[chain.name] = [QuantizedAdder2d(chain.layer, g).fold(chain.layer, chain.norm) for g in grids]
    errors = {name: [_Error() for _ in modules] for name, modules in trials.items()}

    def try_all(chain: _Chain, x: Tensor, y: Tensor) -> None:
        exact = chain.norm(y)
        for module, error in zip(trials[chain.name], errors[chain.name], strict=True):
            error.add(exact - module(x))

    run(images[:search_images], try_all)
    found = {}
    for of in readers.values():
        totals = torch.stack([torch.stack([e.variance().mean() for e in errors[chain.name]]) for chain in of]).sum(0)
        best = int(totals.argmin())
        for chain in of:
            module = found[chain.name] = trials[chain.name][best]
            module.offset += errors[chain.name][best].mean()
            module.relu = chain.relu
    return found


class _Range:
    """Extremes and a sample of the values that go into a layer."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.sample: list[Tensor] = []

    def add(self, x: Tensor) -> None:
        self.low, self.high = min(self.low, float(x.min())), max(self.high, float(x.max()))
        flat = x.reshape(-1)
        self.sample.append(flat[:: max(1, flat.numel() // SAMPLES)].float().cpu())

    def candidates(self) -> list[Grid]:
        values = torch.cat(self.sample).sort().values
        last = len(values) - 1
        low, high = (min(0.0, float(values[round(last * (1 - PERCENTILE))])), float(values[round(last * PERCENTILE)]))
        grids = [Grid.between(self.low, self.high)]
        return grids + [Grid.between(low * SHRINK**k, high * SHRINK**k) for k in range(TRIALS)]


class _Error:
    """Mean and variance of the errors of each channel."""

    def __init__(self) -> None:
        self.count = 0
        self.sum: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, error: Tensor) -> None:
        error = error.double()
        self.count += error.numel() // error.shape[1]
        self.sum = self.sum + error.sum((0, 2, 3))
        self.squares = self.squares + error.square().sum((0, 2, 3))

    def mean(self) -> Tensor:
        return (self.sum / self.count).float()

    def variance(self) -> Tensor:
        return self.squares / self.count - (self.sum / self.count) ** 2


@contextmanager
def _hooked(chains: list[_Chain], see: Callable[[_Chain, Tensor, Tensor], None]) -> Iterator[None]:
    """Calls ``see(chain, input, output)`` whenever an adder layer has run."""
    handles = [
        chain.layer.register_forward_hook(lambda _, inputs, y, chain=chain: see(chain, inputs[0], y))
        for chain in chains
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


# The network as a graph: layers with what follows them are found in it, and replaced.


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Adder2d | nn.BatchNorm2d) or super().is_leaf_module(module, name)

    def to_bool(self, proxy: fx.Proxy) -> bool:
        """Only checks of the images' size depend on values in our networks: they find nothing wrong."""
        return False if proxy.node.target is operator.ne else super().to_bool(proxy)


@dataclass(frozen=True)
class _Chain:
    """An adder layer and the nodes after it that become one with it: norm, then addition and ReLU where they are."""

    layer: Adder2d
    norm: nn.BatchNorm2d
    name: str
    nodes: tuple[fx.Node, ...]
    relu: bool

    @property
    def source(self) -> fx.Node:
        """What the layer reads, at the time of asking."""
        return self.nodes[0].args[0]

    @property
    def residual(self) -> fx.Node | None:
        """What is added to the norm's result, likewise."""
        added = [node for node in self.nodes if node.target is operator.add]
        return next(other for other in added[0].args if other is not self.nodes[1]) if added else None


def _trace(model: nn.Module) -> fx.GraphModule:
    return fx.GraphModule(model, _Tracer().trace(model))


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(node.target) if node.op == "call_module" else None


def _next(node: fx.Node) -> fx.Node | None:
    """What a node's result goes to, where that is one node only."""
    return next(iter(node.users)) if len(node.users) == 1 else None


def _chains(graph: fx.GraphModule) -> Iterator[_Chain]:
    claimed: set[fx.Node] = set()
    for node in graph.graph.nodes:
        layer = _module(graph, node)
        if not isinstance(layer, Adder2d):
            continue
        end = _next(node)
        norm = None if end is None else _module(graph, end)
        if not isinstance(norm, nn.BatchNorm2d):
            raise UserError(f"{node.target}: an adder layer must be followed by a batch norm to be quantised")
        nodes, relu = [node, end], False
        after = _next(end)
        if after is not None and after.target is operator.add and after not in claimed:
            nodes.append(after)
            claimed.add(after)
            after = _next(after)
        if after is not None and (after.target is F.relu or isinstance(_module(graph, after), nn.ReLU)):
            nodes.append(after)
            relu = True
        yield _Chain(layer, norm, node.target, tuple(nodes), relu)


def _rewrite(graph: fx.GraphModule, chains: list[_Chain], modules: dict[str, QuantizedAdder2d]) -> fx.GraphModule:
    """The chains replaced by ``modules``, bytes handed from one to the next, batch norms of convolutions folded."""
    calls: list[fx.Node] = []
    for chain in chains:
        operands = (chain.source,) if chain.residual is None else (chain.source, chain.residual)
        graph.set_submodule(chain.name, modules[chain.name])
        with graph.graph.inserting_after(chain.nodes[-1]):
            call = graph.graph.call_module(chain.name, operands)
        chain.nodes[-1].replace_all_uses_with(call)
        for node in reversed(chain.nodes):
            graph.graph.erase_node(node)
        calls.append(call)
    for call in calls:
        readers = [other for other in calls if other.args[0] is call]
        if readers:
            _hand_on_bytes(graph, call, readers)
    for node in list(graph.graph.nodes):
        convolution, after = _module(graph, node), _next(node)
        norm = None if after is None else _module(graph, after)
        if type(convolution) is nn.Conv2d and isinstance(norm, nn.BatchNorm2d):
            graph.set_submodule(node.target, fuse_conv_bn_eval(convolution, norm))
            after.replace_all_uses_with(node)
            graph.graph.erase_node(after)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def _hand_on_bytes(graph: fx.GraphModule, call: fx.Node, readers: list[fx.Node]) -> None:
    """Let the layers that read a layer's result read its bytes, and the others its floats."""
    module = _module(graph, call)
    module.next_grid = _module(graph, readers[0]).grid
    others = [user for user in call.users if user not in readers or call in user.args[1:]]
    module.want_float = bool(others)
    if not others:
        return
    with graph.graph.inserting_after(call):
        bytes_ = graph.graph.call_function(operator.getitem, (call, 1))
        floats = graph.graph.call_function(operator.getitem, (call, 0))
    for user in [user for user in call.users if user not in (bytes_, floats)]:
        first = bytes_ if user in readers else (floats if user.args[0] is call else user.args[0])
        user.args = (first, *(floats if arg is call else arg for arg in user.args[1:]))
