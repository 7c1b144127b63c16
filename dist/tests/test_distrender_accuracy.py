"""What bench/accuracy.py and bench/memory.py say, at small size: closed forms, figures, memory bounded by chunks."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from distrender.analytic import AnalyticSDF
from distrender.cameras import Camera
from distrender.decoder import DecoderConfig
from distrender.tracing import MarchOptions, sphere_trace

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture(scope="module", name="bench")
def _bench():
    """``bench/accuracy.py``, which imports what lies beside it, and ``bench/memory.py``."""
    sys.path.insert(0, str(BENCH))
    modules = {}
    try:
        for name in ("accuracy", "memory"):
            spec = importlib.util.spec_from_file_location(f"distrender_bench_{name}", BENCH / f"{name}.py")
            modules[name] = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(modules[name])
    finally:
        sys.path.remove(str(BENCH))
    return modules


@pytest.fixture(name="accuracy")
def _accuracy(bench):
    return bench["accuracy"]


@pytest.mark.parametrize("name", ["sphere", "torus", "box"])
def test_closed_forms_lie_on_the_surface_and_nothing_before_them(accuracy, name):
    shape = accuracy.SHAPES[name]
    field = AnalyticSDF(shape).double().requires_grad_(False)
    o, d = (rays.reshape(-1, 3) for rays in Camera.orbit(1, size=(24, 24)).to(torch.float64).rays())
    depth = accuracy.DEPTHS[type(shape)](shape, o, d)
    hits = depth.isfinite()
    assert 100 < hits.sum() < 400
    points = (o + depth[:, None] * d)[hits]
    assert field(points).abs().max() < 1e-6
    # The field keeps its numbers in float32.
    torch.testing.assert_close(accuracy.sampled_depth(field, o, d)[hits], depth[hits], atol=2e-7, rtol=0)
    exact = sphere_trace(field, o, d, MarchOptions(steps=2000, ratio=1.0, threshold=1e-9), gradient="none")
    assert torch.equal(exact.mask, hits)
    expected = torch.func.grad(lambda p: field(p).sum())(points)
    smooth = accuracy.smooth_places(shape, points)
    torch.testing.assert_close(accuracy.true_normals(shape, points)[smooth], expected[smooth], atol=1e-5, rtol=0)


def test_surfaces_are_within_the_figures(accuracy):
    """Depth 1e-4, IoU 0.999, normals 0.1 degree; a coarse grid is another shape, and its own surface is met."""
    for row in accuracy.surfaces(64, 48):
        if row["march"] == "render":
            own = row["field"] != "function"
            assert row["depth_error_own" if own else "depth_error"]["mean"] < 1e-4
            assert row["iou_own" if own else "iou"] >= 0.999
            if not own:
                assert row["normal_error_degrees"]["mean"] < 0.1


def test_derivatives_are_within_one_percent(accuracy):
    decoder, code = accuracy.sphere_decoder(DecoderConfig(latent=8, hidden=48, layers=4, skip=(2,)))
    exact = decoder.double().requires_grad_(False)
    o, d = (rays.reshape(-1, 3) for rays in Camera.orbit(1, size=(16, 16)).to(torch.float64).rays())
    latent = accuracy.Case("latent", code.double(), lambda z: (exact.with_code(z), o, d), 1e-6, 4)
    others = {case.name: case for case in accuracy.cases(16, 16) if not case.name.startswith("latent")}
    assert set(others) == {"pose, torus", "pose, grid", "grid values"}
    for case in (latent, *others.values()):
        case.entries = 4
        for row in accuracy.differences(case):
            assert row["entries"] > 3, row
            assert row["median"] < 0.01, row


def test_seeded_decoders_are_bent_spheres(accuracy):
    decoder, code = accuracy.sphere_decoder(DecoderConfig(latent=8, hidden=128, layers=8, skip=(4,)), radius=0.5)
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(0)), dim=-1)
    with torch.no_grad():
        assert (decoder(code, 0.05 * directions) < 0).all()
        assert (decoder(code, 0.98 * directions) > 0).all()
        assert decoder(code, 0.5 * directions).mean().abs() < 0.05
        assert not torch.equal(decoder(code, 0.5 * directions), decoder(-code, 0.5 * directions))


@pytest.mark.slow
def test_memory_is_bounded_by_chunks(bench):
    found = bench["memory"].measure(48, 1, whole=False)
    assert 0.1 < found["covered"] < 0.6
    assert found["bytes_above"] < 1e9
