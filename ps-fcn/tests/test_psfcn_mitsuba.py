"""Our renderer against an independent one: Mitsuba 3 draws the same mesh, materials and lights, shadows included.

Mitsuba is no part of the project; with `pip install mitsuba` this test runs.
"""

import importlib.util
import tempfile
from pathlib import Path

import numpy as np
import pytest
from psfcn import blobs, classical, held_out, light_sets, materials
from psfcn.angles import mean_degrees
from psfcn.gbuffer import look_at, unshadowed
from psfcn.rendering import shade

mitsuba = pytest.importorskip("mitsuba", reason="Mitsuba 3 is not installed: pip install mitsuba (68 MB)")

SIZE, FINER = 64, 4  # pixels, and how many times as many of ours are averaged, as Mitsuba averages over a pixel's area
LIGHTS = np.float32([[0.3, 0.5, 0.81], [-0.8, 0.1, 0.59], [0.2, -0.93, 0.3]])
LIGHTS /= np.linalg.norm(LIGHTS, axis=1, keepdims=True)
COLOUR = np.float32([0.8, 0.5, 0.2])


def diffuse(share=1.0):
    return {"type": "diffuse", "reflectance": {"type": "rgb", "value": [float(x) for x in share * COLOUR]}}


def facets(alpha):
    return {"type": "roughconductor", "material": "none", "distribution": "ggx", "alpha": alpha}


CASES = {
    "diffuse": (materials.GGX("", COLOUR, np.zeros(3, np.float32), 1.0), diffuse()),
    "rough metal": (materials.GGX("", np.zeros(3, np.float32), np.ones(3, np.float32), 0.4), facets(0.4)),
    "metal": (materials.GGX("", np.zeros(3, np.float32), np.ones(3, np.float32), 0.15), facets(0.15)),
}


@pytest.fixture(scope="module", name="bench")
def _bench():
    """``bench/mitsuba_objects.py``."""
    mitsuba.set_variant("scalar_rgb")
    file = Path(__file__).parent.parent / "bench" / "mitsuba_objects.py"
    spec = importlib.util.spec_from_file_location("psfcn_bench_mitsuba_objects", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def heap(bench, tmp_path_factory):
    """Several blobs that shadow one another, as a mesh of ours and the file that Mitsuba reads."""
    meshes = (blobs.random_blob(np.random.default_rng(seed), 128, zoom=False) for seed in range(100))
    mesh = next(mesh for mesh in meshes if mesh.name == "blobs")
    return mesh, bench.written(mesh, tmp_path_factory.mktemp("mitsuba"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_images_are_what_mitsuba_renders(bench, heap, case):
    mesh, file = heap
    material, bsdf = CASES[case]
    seen = look_at(mesh, SIZE * FINER)
    lit = unshadowed(seen, LIGHTS)
    assert (lit.sum(1) < (seen.normals @ LIGHTS.T > 0).sum(0)).all()  # every light casts shadows
    fine = np.zeros((len(LIGHTS), SIZE * FINER, SIZE * FINER, 3), np.float32)
    fine[:, seen.mask] = shade(seen, [material], np.ones((len(seen.points), 1), np.float32), LIGHTS, lit)
    ours = fine.reshape(len(LIGHTS), SIZE, FINER, SIZE, FINER, 3).mean((2, 4))
    for light, image in zip(LIGHTS, ours, strict=True):
        theirs = bench.picture(file, light, bsdf, SIZE)
        difference = np.abs(image - theirs)
        on_object = theirs.max(-1) > 0
        assert difference.mean() < (0.05 if case == "metal" else 0.02) * theirs.mean()  # small highlights are noisy
        assert np.median(difference[on_object]) < 0.008 * theirs[on_object].mean()
        assert image.mean() == pytest.approx(theirs.mean(), rel=0.015)


@pytest.mark.slow
def test_objects_are_samples_that_least_squares_explains_where_they_are_matt(bench):
    mesh = held_out.mesh_of("sphere", 32)
    lights = light_sets.half_sphere(np.random.default_rng(0), 12).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        sample = bench.sample(mesh, bench.written(mesh, Path(folder)), "matt", lights, 32)
    found = classical.solve(sample.radiance(), lights, sample.mask, "sbl").normals
    assert mean_degrees(found, sample.normal, sample.mask) < 3  # the outline's pixels are half background
