"""The decoder's kernel: the network in float64 for any width and number of points, and packed weights never stale."""

import os

import pytest
import torch
from distrender import decoder_kernels
from distrender.decoder import DecoderConfig, DeepSDFDecoder, evaluate

CONFIGS = [
    DecoderConfig(latent=6, hidden=37, layers=4, skip=(2,)),
    DecoderConfig(latent=3, hidden=28, layers=3, skip=(1, 3), final_tanh=0),
    DecoderConfig(latent=0, hidden=15, layers=2, skip=(), xyz_in_all=True),
    DecoderConfig(latent=2, hidden=14, layers=1, skip=(), final_tanh=2),
    DecoderConfig(latent=4, hidden=1, layers=2, skip=()),
]
ON_CPU_THREADS = os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu"  # slow: fewer points
COUNTS = [1, 15, 16, 17, 32, 33, 127, 128, 129, 300]

pytestmark = pytest.mark.skipif(not decoder_kernels._kernels.load("cpu"), reason="the kernels cannot be built here")


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel was called."""
    made, decode = [], decoder_kernels.decode
    monkeypatch.setattr(decoder_kernels, "decode", lambda *args: made.append(1) or decode(*args))
    return made


def coded(config, seed=0, scale=0.5):
    torch.manual_seed(seed)
    decoder = DeepSDFDecoder(config)
    with torch.no_grad():
        for p in decoder.parameters():
            p.add_(torch.randn_like(p), alpha=scale / p.shape[-1] ** 0.5)
    return decoder.with_code(torch.randn(config.latent))


def exact(sdf, points):
    layers = [(w.double(), b.double()) for w, b in sdf.decoder.folded(sdf.latent)]
    return evaluate(sdf.decoder.config, layers, points.double())


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_the_network_for_any_number_of_points(config, calls):
    sdf = coded(config)
    for count in COUNTS:
        points = torch.rand(count, 3) * 2 - 1
        with torch.no_grad():
            expected, plain = exact(sdf, points), sdf.decoder(sdf.latent, points)
            got = sdf(points)
        assert got.dtype == torch.float32
        error = (got - expected).abs().max()
        assert error <= 2 * (plain - expected).abs().max() + 2e-7
    assert len(calls) == len(COUNTS)


def test_the_published_network_is_as_exact_as_pytorch():
    sdf = coded(DecoderConfig(), scale=0.0)
    points = torch.rand(20 if ON_CPU_THREADS else 200, 3) * 2 - 1
    with torch.no_grad():
        expected, plain = exact(sdf, points), sdf.decoder(sdf.latent, points)
        got, rough = sdf(points), sdf.approximate(points)
    # Sums go in one order here; PyTorch's are shorter ones added up.
    assert (got - expected).abs().max() <= 4 * (plain - expected).abs().max()
    assert (rough - expected).abs().max() <= 1e-3


@pytest.mark.parametrize("config", CONFIGS)
def test_sixteen_bits_are_good_to_their_precision(config):
    sdf = coded(config, scale=0.1)
    packed = decoder_kernels.Packed(sdf.decoder, torch.bfloat16)
    for count in (1, 33, 129):
        points = torch.rand(count, 3) * 2 - 1
        with torch.no_grad():
            expected = exact(sdf, points)
            rough = decoder_kernels.decode(packed, sdf.latent, points)
        assert (rough - expected).abs().max() <= 0.02


def test_whole_numbers_are_exact_in_either_precision():
    decoder = DeepSDFDecoder(DecoderConfig(latent=1, hidden=33, layers=3, skip=(2,), final_tanh=0))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in decoder.parameters():
            # One weight in seven, so that no number between layers exceeds bfloat16's 8 bits.
            p.copy_(
                torch.randint(-1, 2, p.shape, generator=generator) * (torch.rand(p.shape, generator=generator) < 0.14)
            )
        points = torch.randint(-2, 3, (131, 3), generator=generator).float()
        latent = torch.tensor([2.0])
        expected = decoder(latent, points)
        for dtype in (torch.float32, torch.bfloat16):
            got = decoder_kernels.decode(decoder_kernels.Packed(decoder, dtype), latent, points)
            assert torch.equal(got, expected), dtype
    assert len(expected.unique()) > 5


def test_any_shape_strides_and_no_points(calls):
    sdf = coded(CONFIGS[0])
    points = torch.rand(4, 3, 5).permute(2, 0, 1)
    with torch.no_grad():
        torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))
        assert sdf(torch.zeros(0, 3)).shape == (0,)
        torch.testing.assert_close(sdf(points[1, 2]), sdf(points)[1, 2])
    assert len(calls) == 4


def test_nan_stays_with_its_point():
    sdf = coded(CONFIGS[0])
    points = torch.rand(140, 3)
    bad = points.clone()
    bad[[3, 131], 1] = torch.nan
    with torch.no_grad():
        for call in (sdf, sdf.approximate):
            got, expected = call(bad), call(points)
            assert got[[3, 131]].isnan().all()
            rest = [i for i in range(140) if i not in (3, 131)]
            assert torch.equal(got[rest], expected[rest])


def test_changed_weights_are_packed_anew():
    sdf = coded(CONFIGS[0])
    points = torch.rand(20, 3)
    with torch.no_grad():
        before = sdf(points)
        assert sdf.decoder.packed(torch.float32) is sdf.decoder.packed(torch.float32)
        sdf.decoder.lin1.weight.mul_(2)
        sdf.decoder.lin2.bias.add_(1)
        torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))
        assert not torch.allclose(sdf(points), before)
        other = {name: p + 0.1 for name, p in sdf.decoder.state_dict().items()}
        sdf.decoder.load_state_dict(other, assign=True)
        torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))
        sdf.latent.add_(1)
        torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))


def test_a_code_that_changes_is_folded_anew():
    sdf = coded(CONFIGS[0])
    other = sdf.decoder.with_code(-sdf.latent)
    points = torch.rand(20, 3)
    with torch.no_grad():
        for one in (sdf, other, sdf):
            torch.testing.assert_close(one(points), sdf.decoder(one.latent, points))
        packed = sdf.decoder.packed(torch.float32)
        assert packed.heads(sdf.latent) is packed.heads(sdf.latent)
        sdf.latent[2] += 0.5
        torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))
    leaf = torch.nn.Parameter(sdf.latent.clone())
    followed = sdf.decoder.with_code(leaf)
    for _ in range(2):
        loss = followed(points).square().sum()
        loss.backward()
        torch.optim.SGD([leaf], lr=0.1).step()
        with torch.no_grad():
            torch.testing.assert_close(followed(points), sdf.decoder(leaf, points))
            assert not packed.heads(leaf).requires_grad


def test_weights_without_versions_work_too():
    with torch.inference_mode():
        sdf = coded(CONFIGS[1])
        points = torch.rand(20, 3)
        torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))
        sdf.decoder.lin1.weight.mul_(2)
        torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))


def test_what_the_kernel_does_not_serve_goes_without(calls):
    points = torch.rand(5, 3)
    sdf = coded(CONFIGS[0])
    wanted = points.clone().requires_grad_()
    sdf(wanted).sum().backward()
    assert wanted.grad.abs().sum() > 0
    smooth = coded(DecoderConfig(latent=2, hidden=16, layers=2, skip=(), activation="softplus"))
    with torch.no_grad():
        assert sdf(points.double()).dtype == torch.float64
        torch.testing.assert_close(smooth(points), smooth.decoder(smooth.latent, points))
        assert smooth.approximate(points).shape == (5,)
    assert not calls


def test_without_a_compiler_it_is_pytorch(monkeypatch):
    sdf = coded(CONFIGS[0])
    points = torch.rand(5, 3)
    monkeypatch.setattr(decoder_kernels, "serves", lambda *args: False)
    with torch.no_grad():
        assert torch.equal(sdf(points), sdf.decoder(sdf.latent, points))
        assert torch.equal(sdf.approximate(points), sdf(points))


def test_threads_do_not_change_a_bit():
    sdf = coded(CONFIGS[0])
    points = torch.rand(700, 3)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            with torch.no_grad():
                results.append(sdf(points))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*results)


def test_the_operator_is_registered_as_it_should_be():
    sdf = coded(CONFIGS[0])
    packed = decoder_kernels.Packed(sdf.decoder)
    with torch.no_grad():
        arguments = (torch.rand(9, 3), packed.heads(sdf.latent), packed.weights, packed.sizes, 1)
    torch.library.opcheck(torch.ops.distrender.decode.default, arguments)
