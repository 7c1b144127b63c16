"""From a convolutional network of the user's to an AdderNet (AdderNet, section 4: which layers stay as they are)."""

from __future__ import annotations

import dataclasses
import logging
import warnings
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from papershelf.errors import UserError
from torch import fx, nn

from addernet.architectures import Architecture
from addernet.layer import ETA, Adder2d

log = logging.getLogger(__name__)

LAYERS = (nn.modules.conv._ConvNd, nn.Linear, Adder2d)  # what can be a network's first or last layer
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
NAMED = 5  # layers named in a message before it says how many more there are


def convert(
    model: nn.Module,
    *,
    keep: Sequence[str] = ("first", "last"),
    eta: float = ETA,
    init: Literal["normal", "keep"] = "normal",
    local_rate: Literal["optimizer", "backward", "off"] = "optimizer",
) -> nn.Module:
    """Replace the convolutions of ``model`` by adder layers, in place; ``copy.deepcopy`` it first to keep yours.

    Every ``nn.Conv2d`` is replaced. What derives from it stays as it is, and so do convolutions whose weight is
    computed (``weight_norm``): a line of the log says so. Another line names adder layers that no normalisation
    follows, since an adder layer gives values far below zero only. Weights and biases stay the same parameters,
    so an optimizer made before still holds them; call ``addernet.attach(optimizer, model)``.

    Args:
        model: any network; it is changed.
        keep: what stays ordinary: ``"first"`` and ``"last"``, the outermost of its convolutions and linear layers
            in the order of execution (of registration, where the code cannot be traced), and names of modules as in
            ``named_modules()``, with all that is in them.
        eta: of the layers' local learning rate.
        init: filters of the new layers: ``"normal"``, N(0, 1) as in the authors' code, biases 0; or ``"keep"``,
            those of the convolution.
        local_rate: where that rate is applied, see :class:`addernet.layer.Adder2d`.

    Returns:
        ``model``.

    Raises:
        UserError: ``keep`` names what is not there, or a convolution pads other than with zeros, or unevenly; then
            nothing has been changed.
    """
    if init not in ("normal", "keep"):
        raise UserError(f"init must be normal or keep, got {init!r}")
    modules = dict(model.named_modules())
    graph = _trace(model)
    kept = _kept(modules, graph, keep)
    adders: dict[nn.Module, Adder2d] = {}
    names: dict[nn.Module, str] = {}
    left = []
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d) or any(name == k or name.startswith(f"{k}.") for k in kept):
            continue
        if type(module) is nn.Conv2d and "weight" in module._parameters:
            adders[module], names[module] = _adder(name, module, eta, local_rate), name
        else:
            left.append(f"{name} ({type(module).__name__})")
    followed = _followed(modules, graph)
    bare = [names[module] for module in adders if names[module] not in followed]
    for module, adder in adders.items():
        adder.weight, adder.bias = module.weight, module.bias
        if init == "normal":
            adder.reset_parameters()
        adder.train(module.training)
    for parent in modules.values():
        for name, child in parent._modules.items():
            if child in adders:
                setattr(parent, name, adders[child])
    if isinstance(getattr(model, "config", None), Architecture):
        model.config = dataclasses.replace(model.config, op="adder")
    if not adders:
        log.warning("no convolution was replaced: %d are kept or not plain nn.Conv2d", len(kept) + len(left))
    if left:
        log.warning("left as they are, not being plain nn.Conv2d: %s", _listed(left))
    if bare:
        log.warning("no batch norm follows these adder layers, whose output is far below zero: %s", _listed(bare))
    return model


def _adder(name: str, conv: nn.Conv2d, eta: float, local_rate: str) -> Adder2d:
    """The layer in the convolution's place, still without parameters."""
    if conv.padding_mode != "zeros" and any(conv._reversed_padding_repeated_twice):
        raise UserError(
            f"{name}: padding_mode {conv.padding_mode!r}, but adder layers pad with zeros; put an nn.ReflectionPad2d "
            "or the like before it with padding=0, or name it in keep"
        )
    try:
        return Adder2d(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            conv.groups,
            conv.bias is not None,
            eta=eta,
            local_rate=local_rate,
            device="meta",
        )
    except UserError as error:
        raise UserError(f"{name}: {error}; or name it in keep") from error


def _kept(modules: dict[str, nn.Module], graph: fx.Graph | None, keep: Sequence[str]) -> set[str]:
    order = [name for name, module in modules.items() if isinstance(module, LAYERS)]
    if graph is not None:
        run = [node.target for node in graph.nodes if node.op == "call_module" and node.target in order]
        order = run or order
    names = set()
    for name in keep:
        if name in ("first", "last"):
            names |= {order[0 if name == "first" else -1]} if order else set()
        elif name in modules:
            names.add(name)
        else:
            raise UserError(f"keep names {name!r}, which is no module of this {type(modules['']).__name__}")
    return names


def _followed(modules: dict[str, nn.Module], graph: fx.Graph | None) -> set[str]:
    """Names of modules whose output goes into a normalisation and nowhere else."""
    if graph is None:  # the next in the order of registration
        leaves = [(name, module) for name, module in modules.items() if next(module.children(), None) is None]
        return {name for (name, _), (_, after) in pairwise(leaves) if isinstance(after, NORMS)}
    calls = [node for node in graph.nodes if node.op == "call_module"]
    into_norm = {
        node.target: all(
            user.op == "call_module" and isinstance(modules.get(user.target), NORMS) for user in node.users
        )
        for node in calls
    }
    return {name for name, all_norms in into_norm.items() if all_norms}


def _trace(model: nn.Module) -> fx.Graph | None:
    """What calls what, without running the network on data; None where its code decides by values."""
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return _Tracer().trace(model)
    except Exception as error:  # whatever a user's code does with what it is given instead of a tensor
        log.debug("cannot trace %s (%s): going by the order of registration", type(model).__name__, error)
        return None


class _Tracer(fx.Tracer):
    """Stops at layers and normalisations of any class, looks into everything else that is not of PyTorch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
