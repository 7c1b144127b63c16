"""The adaptive local learning rate (AdderNet, section 3.3) as part of an optimizer's step.

Filter gradients of adder layers are far smaller than those of convolutions and differ between layers by orders of
magnitude, so each layer's is brought to the length ``eta * sqrt(k)`` (k elements). That does not commute with sums
and factors: a gradient that is normalised in the backward pass no longer grows with GradScaler's factor, which is
divided out all the same; and sums over micro-batches or processes are no longer those of the joined batch. Here it
happens once, at the start of ``optimizer.step()``, on the gradient that is about to be applied; weight decay and
momentum come after it.
"""

from __future__ import annotations

import torch
from papershelf.errors import UserError
from torch import nn

from addernet.layer import Adder2d, normalize_gradient


def attach(optimizer: torch.optim.Optimizer, model: nn.Module, eta: float | None = None) -> None:
    """Let ``optimizer.step()`` normalise the filter gradients of the model's adder layers.

    Works with ``torch.amp.GradScaler``, ``DistributedDataParallel`` and gradient accumulation.

    Args:
        optimizer: any of ``torch.optim`` that is not called with a closure.
        model: layers in it with ``local_rate="optimizer"`` are concerned.
        eta: instead of each layer's own.

    Raises:
        UserError: the optimizer does not hold these layers' weights, or has been attached to this model already.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Adder2d) and layer.local_rate == "optimizer"]
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    attached: set[int] = optimizer.__dict__.setdefault("_adder_weights", set())
    etas: dict[nn.Parameter, float] = {}
    for layer in layers:
        if id(layer.weight) not in held:
            raise UserError("the optimizer does not hold the weights of this model's adder layers; make it from them")
        if id(layer.weight) in attached:
            raise UserError("this optimizer has been attached to this model already; once is enough")
        etas[layer.weight] = layer.eta if eta is None else eta
    attached.update(id(weight) for weight in etas)

    def normalize(optimizer: torch.optim.Optimizer, args: tuple, kwargs: dict) -> None:
        if len(args) > 1 or kwargs.get("closure") is not None:  # the first is the optimizer itself
            raise UserError("adder layers' local learning rate needs step() without a closure")
        # A fused optimizer under GradScaler divides by the factor itself, after this.
        scale = getattr(optimizer, "grad_scale", None)
        with torch.no_grad():
            for weight, rate in etas.items():
                if weight.grad is not None:
                    weight.grad.copy_(normalize_gradient(weight.grad, rate))
                    if scale is not None:
                        weight.grad.mul_(scale)

    optimizer.register_step_pre_hook(normalize)
