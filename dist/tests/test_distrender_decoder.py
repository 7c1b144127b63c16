"""The decoder: DeepSDF's network to the letter, its gradients, and codes folded into biases."""

import pytest
import torch
from distrender.decoder import DecoderConfig, DeepSDFDecoder
from papershelf.errors import UserError

SMALL = DecoderConfig(latent=5, hidden=24, layers=4, skip=(2,))
CONFIGS = [
    SMALL,
    DecoderConfig(latent=4, hidden=16, layers=1, skip=()),
    DecoderConfig(latent=0, hidden=16, layers=3, skip=(1, 3)),
    DecoderConfig(latent=3, hidden=16, layers=3, skip=(2,), xyz_in_all=True, final_tanh=2),
    DecoderConfig(latent=3, hidden=16, layers=2, skip=(), activation="softplus", final_tanh=0),
]


def decoder_of(config, seed=0):
    torch.manual_seed(seed)
    return DeepSDFDecoder(config).double()


def written_out(decoder, latent, points):
    """The network as DeepSDF describes it: everything concatenated, point by point."""
    config = decoder.config
    results = []
    for code, point in zip(latent, points, strict=True):
        given = torch.cat([code, point])
        x = given
        for k in range(config.layers + 1):
            if k in config.skip:
                x = torch.cat([x, given])
            elif k > 0 and config.xyz_in_all:
                x = torch.cat([x, point])
            linear = getattr(decoder, f"lin{k}")
            x = linear.weight @ x + linear.bias
            if k < config.layers:
                x = x.clamp(min=0) if config.activation == "relu" else (1 + (100 * x).exp()).log() / 100
        for _ in range(config.final_tanh):
            x = x.tanh()
        results.append(x[0])
    return torch.stack(results)


def test_published_network_has_the_papers_sizes():
    with torch.device("meta"):
        decoder = DeepSDFDecoder()
    shapes = [tuple(getattr(decoder, f"lin{k}").weight.shape) for k in range(9)]
    assert shapes == [(512, 259), (512, 512), (512, 512), (253, 512), *[(512, 512)] * 4, (1, 512)]
    assert decoder.config.macs() == 1_835_520
    assert decoder.config.macs(folded=True) == 1_573_376
    assert sum(w.numel() for k, w in decoder.state_dict().items() if k.endswith("weight")) == 1_835_520


def test_folded_weights_are_as_many_as_counted():
    decoder = decoder_of(SMALL)
    folded = decoder.folded(torch.zeros(5))
    assert sum(weight.numel() for weight, _ in folded) == SMALL.macs(folded=True)


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_the_network_written_out(config):
    decoder = decoder_of(config)
    latent, points = torch.randn(7, config.latent).double(), torch.rand(7, 3).double() * 2 - 1
    expected = written_out(decoder, latent, points)
    torch.testing.assert_close(decoder(latent, points), expected, rtol=1e-10, atol=1e-10)
    one = written_out(decoder, latent[:1].expand(7, -1), points)
    torch.testing.assert_close(decoder(latent[0], points), one, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(decoder.with_code(latent[0])(points), one, rtol=1e-10, atol=1e-10)


def test_codes_of_several_shapes_broadcast():
    decoder = decoder_of(SMALL)
    latent, points = torch.randn(2, 1, 5).double(), torch.randn(2, 6, 3).double()
    got = decoder(latent, points)
    assert got.shape == (2, 6)
    for one in range(2):
        torch.testing.assert_close(got[one], decoder.with_code(latent[one, 0])(points[one]), rtol=1e-10, atol=1e-10)


def test_no_points_and_points_in_any_shape():
    sdf = decoder_of(SMALL).with_code(torch.zeros(5).double())
    assert sdf(torch.zeros(0, 3)).shape == (0,)
    points = torch.randn(2, 3, 4, 3).double()
    torch.testing.assert_close(sdf(points).flatten(), sdf(points.reshape(-1, 3)), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("config", CONFIGS)
def test_gradients_to_code_points_and_weights(config):
    decoder = decoder_of(config)
    latent = torch.randn(config.latent, dtype=torch.float64, requires_grad=True)
    points = torch.randn(3, 3, dtype=torch.float64, requires_grad=True)
    names = [name for name, _ in decoder.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in decoder.parameters()]

    def call(latent, points, *weights):
        return torch.func.functional_call(decoder, dict(zip(names, weights, strict=True)), (latent, points))

    assert torch.autograd.gradcheck(call, (latent, points, *weights), fast_mode=True)


def test_a_coded_shape_can_be_fitted():
    decoder = decoder_of(SMALL)
    code = torch.nn.Parameter(torch.zeros(5, dtype=torch.float64))
    sdf = decoder.with_code(code)
    assert [p for p in sdf.parameters() if p is code]
    points = torch.randn(20, 3).double()
    target = decoder.with_code(torch.full((5,), 0.5).double())(points).detach()
    start = (sdf(points) - target).abs().mean().item()
    adam = torch.optim.Adam([code], 0.05)
    for _ in range(60):
        adam.zero_grad()
        (sdf(points) - target).abs().mean().backward()
        adam.step()
    assert (sdf(points) - target).abs().mean() < 0.2 * start


@pytest.mark.parametrize(
    ("weights", "points", "result"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
    ],
)
def test_the_wider_precision_wins(weights, points, result):
    sdf = decoder_of(SMALL).to(weights).with_code(torch.zeros(5))
    assert sdf(torch.zeros(2, 3, dtype=points)).dtype == result


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": (9,)}, "1 to 8"),
        ({"hidden": 200}, "latent"),
        ({"activation": "tanh"}, "relu, softplus"),
        ({"final_tanh": 3}, "final_tanh"),
        ({"layers": 0}, "layers >= 1"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        DecoderConfig(**options)


def test_codes_of_another_size_are_refused():
    decoder = decoder_of(SMALL)
    with pytest.raises(UserError, match="5 numbers"):
        decoder(torch.zeros(4), torch.zeros(1, 3))
    with pytest.raises(UserError, match=r"one code of \[5\]"):
        decoder.with_code(torch.zeros(2, 5))
