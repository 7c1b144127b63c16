"""The decoder's CUDA kernels, on a GPU or their code on CPU threads: widths, skips and counts around their tiles."""

import os
import re
from pathlib import Path

import pytest
import torch
from distrender import decoder_kernels
from distrender.decoder import DecoderConfig, DeepSDFDecoder, evaluate

ON_CPU_THREADS = os.environ.get("PAPERSHELF_NATIVE") == "cuda-on-cpu"
DEVICES = [
    pytest.param("cpu", marks=pytest.mark.skipif(not ON_CPU_THREADS, reason="not the CUDA kernels")),
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
CONFIGS = {
    "one warp": DecoderConfig(latent=5, hidden=64, layers=3, skip=(2,)),
    "one more": DecoderConfig(latent=3, hidden=65, layers=2, skip=(), final_tanh=2),
    "point everywhere": DecoderConfig(latent=4, hidden=100, layers=3, skip=(2,), xyz_in_all=True, final_tanh=0),
    "last layer sees the input": DecoderConfig(latent=2, hidden=30, layers=2, skip=(1, 2)),
    "one layer": DecoderConfig(latent=2, hidden=9, layers=1, skip=()),
    "one number": DecoderConfig(latent=0, hidden=1, layers=3, skip=()),
    "more warps": DecoderConfig(latent=7, hidden=150, layers=2, skip=(1,)),
}
CSRC = Path(decoder_kernels.__file__).parent / "csrc"


@pytest.fixture(params=DEVICES)
def device(request):
    assert decoder_kernels._kernels.load(request.param)
    return torch.device(request.param)


def coded(config, device, seed=0):
    torch.manual_seed(seed)
    return DeepSDFDecoder(config).with_code(torch.randn(config.latent)).to(device)


def exact(sdf, points):
    layers = [(w.double(), b.double()) for w, b in sdf.decoder.folded(sdf.latent)]
    return evaluate(sdf.decoder.config, layers, points.double())


def by_kernel(sdf, points, dtype):
    return decoder_kernels.decode(sdf.decoder.packed(dtype), sdf.latent, points)


@pytest.mark.parametrize("name", CONFIGS)
@torch.no_grad()
def test_any_width_and_number_of_points(device, name):
    sdf = coded(CONFIGS[name], device)
    for count in (1, 31, 32, 33, 64, 65, 129, 200):  # over 64 points tiles are larger there
        points = torch.rand(count, 3, device=device) * 2 - 1
        expected, plain = exact(sdf, points), sdf.decoder(sdf.latent, points)
        error = (by_kernel(sdf, points, torch.float32) - expected).abs().max()
        assert error <= 2 * (plain - expected).abs().max() + 2e-7
        if count in (33, 129):
            assert (by_kernel(sdf, points, torch.float16) - expected).abs().max() <= 1e-3
            assert (by_kernel(sdf, points, torch.bfloat16) - expected).abs().max() <= 8e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@torch.no_grad()
def test_whole_numbers_are_exact(device, dtype):
    """Each weight in its own place: sums of whole numbers that 16 bits hold do not round."""
    decoder = DeepSDFDecoder(DecoderConfig(latent=1, hidden=140, layers=3, skip=(2,), final_tanh=0)).to(device)
    generator = torch.Generator().manual_seed(0)
    for p in decoder.parameters():
        if p.ndim == 1:
            p.fill_(1)
            continue
        chosen = torch.rand(p.shape, generator=generator) < (1 if len(p) == 1 else 6 / p.shape[-1])
        p.copy_((torch.randint(-1, 2, p.shape, generator=generator) * chosen).to(device))
    points = torch.randint(-2, 3, (131, 3), generator=generator).float().to(device)
    latent = torch.tensor([2.0], device=device)
    expected = decoder(latent, points)
    for some in (points[:40], points):
        got = decoder_kernels.decode(decoder_kernels.Packed(decoder, dtype), latent, some)
        assert torch.equal(got, expected[: len(some)])
    assert len(expected.unique()) > 5


@torch.no_grad()
def test_no_points_views_and_nan(device):
    sdf = coded(CONFIGS["one warp"], device)
    points = torch.rand(5, 3, 7, device=device).permute(2, 0, 1)
    torch.testing.assert_close(sdf(points), sdf.decoder(sdf.latent, points))
    assert sdf(points[:0]).shape == (0, 5)
    bad = points.clone()
    bad[3, 2, 1] = torch.nan
    for call in (sdf, sdf.approximate):
        same = call(bad) == call(points)
        assert not same[3, 2]
        assert same.sum() == same.numel() - 1
        assert call(bad)[3, 2].isnan()


@torch.no_grad()
def test_what_is_beyond_halves_is_no_number(device):
    """So that marching knows, which asks again in float32."""
    sdf = coded(CONFIGS["one warp"], device)
    sdf.decoder.lin0.weight.mul_(1e6)
    points = torch.rand(20, 3, device=device)
    assert sdf(points).isfinite().all()
    sdf.decoder.lin1.weight.mul_(1e-6)
    assert not by_kernel(sdf, points, torch.float16).isfinite().all()


def test_networks_beyond_the_kernels_go_without(device):
    wide = DecoderConfig(latent=0, hidden=decoder_kernels.COLUMNS * decoder_kernels.WARPS + 1, layers=1, skip=())
    deep = DecoderConfig(latent=0, hidden=4, layers=decoder_kernels.LAYERS, skip=())
    for config in (wide, deep):
        sdf = coded(config, device)
        points = torch.rand(3, 3, device=device)
        assert not decoder_kernels.serves(config, points)
        with torch.no_grad():
            assert torch.equal(sdf(points), sdf.decoder(sdf.latent, points))
        with pytest.raises(RuntimeError, match=r"too (wide|many layers)"):
            by_kernel(sdf, points, torch.float32)
    fits = DecoderConfig(latent=0, hidden=512, layers=decoder_kernels.LAYERS - 1, skip=())
    assert decoder_kernels.serves(fits, points)


@torch.no_grad()
def test_the_operator_is_registered_as_it_should_be(device):
    sdf = coded(CONFIGS["one layer"], device)
    for dtype in (torch.float32, torch.float16):
        packed = sdf.decoder.packed(dtype)
        arguments = (torch.rand(9, 3, device=device), packed.heads(sdf.latent), packed.weights, packed.sizes, 1)
        torch.library.opcheck(torch.ops.distrender.decode.default, arguments)


def test_header_and_python_agree_on_numbers():
    text = (CSRC / "decoder_slabs.h").read_text() + (CSRC / "decoder_tile.h").read_text()
    found = {name: int(value) for name, value in re.findall(r"constexpr int k(\w+) = (\d+);", text)}
    assert found["Columns"] == decoder_kernels.COLUMNS
    assert found["MostWarps"] == decoder_kernels.WARPS
    assert found["MostLayers"] == decoder_kernels.LAYERS
