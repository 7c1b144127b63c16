"""The adder layer, and its local learning rate inside optimizers, scalers and accumulation."""

import copy
import math

import pytest
import torch
from addernet.adder import adder2d
from papershelf.errors import UserError
from torch import nn

from addernet import Adder2d, attach


def network(local_rate="optimizer", seed=0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        Adder2d(4, 6, 3, padding=1, local_rate=local_rate),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        Adder2d(6, 5, 3, stride=2, local_rate=local_rate),
        nn.BatchNorm2d(5),
    )


def loss_of(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (model(x) ** 3).mean()


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_stands_in_for_conv2d():
    for arguments in (
        {"kernel_size": 3},
        {"kernel_size": (3, 5), "stride": (2, 1), "padding": (1, 2), "dilation": (1, 2), "groups": 2, "bias": True},
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": "valid"},
    ):
        adder, conv = Adder2d(4, 6, **arguments), nn.Conv2d(4, 6, **({"bias": False} | arguments))
        x = torch.randn(2, 4, 12, 13)
        assert adder(x).shape == conv(x).shape
        assert {k: v.shape for k, v in adder.state_dict().items()} == {k: v.shape for k, v in conv.state_dict().items()}


def test_bias_is_added():
    layer = Adder2d(3, 2, 1, bias=True)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, -2.0]))
    expected = adder2d(X, layer.weight) + torch.tensor([1.0, -2.0])[:, None, None]
    assert torch.equal(layer(X), expected)


def test_filters_begin_normal():
    weight = Adder2d(64, 64, 3).weight
    assert abs(weight.mean().item()) < 0.02
    assert abs(weight.std().item() - 1) < 0.02


@pytest.mark.parametrize(
    "arguments", [{"local_rate": "never"}, {"groups": 3}, {"padding": "same", "stride": 2}, {"padding": "full"}]
)
def test_wrong_arguments_are_told(arguments):
    with pytest.raises(UserError):
        Adder2d(4, 6, 3, **arguments)


def released_normalisation(grad: torch.Tensor) -> torch.Tensor:
    """As the authors' code has it: over the norm, times the root of the number of elements, over 5."""
    return grad / grad.norm(p=2).clamp(min=1e-12) * math.sqrt(grad.numel()) / 5


def test_backward_mode_is_the_released_normalisation():
    plain, released = network("off"), network("backward")
    loss_of(plain, X).backward()
    loss_of(released, X).backward()
    # The input's gradient does not pass through the normalisation, so both networks' raw gradients are alike.
    for a, b in zip(plain, released, strict=True):
        if isinstance(a, Adder2d):
            torch.testing.assert_close(b.weight.grad, released_normalisation(a.weight.grad), rtol=1e-4, atol=0)
            assert math.isclose(b.weight.grad.norm(), 0.2 * math.sqrt(b.weight.numel()), rel_tol=1e-4)
    assert torch.equal(plain[0].weight.grad, released[0].weight.grad)


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, count=3, scaler=None, parts=1) -> None:
    for step in range(count):
        optimizer.zero_grad()
        for part in (X + step).chunk(parts):
            loss = loss_of(model, part) / parts
            (scaler.scale(loss) if scaler else loss).backward()
        if scaler:
            scaler.step(optimizer)
            scaler.update()
        else:
            optimizer.step()


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=5e-4, **options)


def test_optimizer_mode_equals_backward_mode_in_plain_training():
    ours, released = network("optimizer"), network("backward")
    optimizer = sgd(ours)
    attach(optimizer, ours)
    steps(ours, optimizer)
    steps(released, sgd(released))
    for a, b in zip(ours.parameters(), released.parameters(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_changes_nothing(fused):
    models = [network(), network()]
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    for model, used in zip(models, (None, scaler), strict=True):
        optimizer = sgd(model, fused=fused)
        attach(optimizer, model)
        steps(model, optimizer, scaler=used)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_scaler_skips_steps_without_numbers():
    model = network()
    optimizer, scaler = sgd(model), torch.amp.GradScaler("cpu")
    attach(optimizer, model)
    before = copy.deepcopy(model.state_dict())
    scaler.scale(loss_of(model, X) * torch.inf).backward()
    scaler.step(optimizer)
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name])


def test_accumulated_gradients_are_normalised_once():
    """Two halves of a batch give the step of the whole one, where no batch norm sees the halves."""
    models = [nn.Sequential(Adder2d(3, 4, 3)), nn.Sequential(Adder2d(3, 4, 3))]
    models[1].load_state_dict(models[0].state_dict())
    for model, parts in zip(models, (1, 2), strict=True):
        optimizer = sgd(model)
        attach(optimizer, model)
        steps(model, optimizer, parts=parts)
    torch.testing.assert_close(models[0][0].weight, models[1][0].weight)


def test_eta_sets_the_length_of_a_step():
    model = nn.Sequential(Adder2d(3, 4, 3, eta=0.7))
    for eta in (None, 0.1):
        optimizer = torch.optim.SGD(model.parameters(), 1.0)
        attach(optimizer, model, eta)
        before = model[0].weight.detach().clone()
        optimizer.zero_grad()
        loss_of(model, X).backward()
        optimizer.step()
        step = (model[0].weight - before).norm().item()
        assert math.isclose(step, (eta or 0.7) * math.sqrt(3 * 4 * 9), rel_tol=1e-4)


def test_wrong_use_is_told():
    model = network()
    with pytest.raises(UserError, match="does not hold"):
        attach(torch.optim.SGD(network().parameters(), 0.1), model)
    optimizer = sgd(model)
    attach(optimizer, model)
    with pytest.raises(UserError, match="already"):
        attach(optimizer, model)
    with pytest.raises(UserError, match="without a closure"):
        optimizer.step(lambda: loss_of(model, X))


def test_twice_under_autocast():
    model = network()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        first = model(X)
        second = model(X + 1)
    (first + second).mean().backward()
    assert first.dtype == torch.float32
    assert all(p.grad is not None for p in model.parameters())


def test_learns_where_a_plain_gradient_would_not():
    """A deep stack overfits a handful of images with the local rate."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    for _ in range(4):
        layers += [Adder2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    x, labels = torch.randn(12, 3, 8, 8), torch.arange(12) % 4
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    attach(optimizer, model)
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimizer.step()
    assert loss < 0.2


def test_copies_and_describes_itself():
    layer = Adder2d(4, 6, 3, padding=1, groups=2, local_rate="backward")
    twin = copy.deepcopy(layer)
    assert torch.equal(twin(torch.ones(1, 4, 5, 5)), layer(torch.ones(1, 4, 5, 5)))
    assert repr(layer) == (
        "Adder2d(4, 6, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=2, local_rate='backward')"
    )
