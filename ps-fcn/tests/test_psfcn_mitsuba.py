"""Our renderer against an independent one: Mitsuba 3 draws the same mesh, materials and lights, shadows included.

Mitsuba is no part of the project; with `pip install mitsuba` this test runs.
"""

import numpy as np
import pytest
from psfcn import blobs, materials
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


@pytest.fixture(scope="module")
def heap(tmp_path_factory):
    """Several blobs that shadow one another, as a mesh of ours and the file that Mitsuba reads."""
    mitsuba.set_variant("scalar_rgb")
    meshes = (blobs.random_blob(np.random.default_rng(seed), 128, zoom=False) for seed in range(100))
    mesh = next(mesh for mesh in meshes if mesh.name == "blobs")
    copy = mitsuba.Mesh("heap", len(mesh.vertices), len(mesh.faces), has_vertex_normals=True)
    parameters = mitsuba.traverse(copy)
    parameters["vertex_positions"] = mesh.vertices.ravel()
    parameters["vertex_normals"] = mesh.normals.ravel()
    parameters["faces"] = mesh.faces.ravel().astype(np.uint32)
    parameters.update()
    file = tmp_path_factory.mktemp("mitsuba") / "heap.ply"
    copy.write_ply(str(file))
    return mesh, file


def by_mitsuba(file, light, bsdf, spp=64):
    """``[SIZE, SIZE, 3]``: direct light alone, irradiance pi, seen along -z."""
    seen_from = mitsuba.ScalarTransform4f().look_at(origin=[0, 0, 6], target=[0, 0, 0], up=[0, 1, 0])
    film = {"type": "hdrfilm", "width": SIZE, "height": SIZE, "pixel_format": "rgb", "rfilter": {"type": "box"}}
    sensor = {
        "type": "orthographic",
        "to_world": seen_from,
        "film": film,
        "sampler": {"type": "stratified", "sample_count": spp},
    }
    irradiance = {"type": "rgb", "value": [np.pi] * 3}
    scene = {
        "type": "scene",
        "integrator": {"type": "direct"},
        "sensor": sensor,
        "light": {"type": "directional", "direction": [-float(x) for x in light], "irradiance": irradiance},
        "object": {"type": "ply", "filename": str(file), "face_normals": False, "bsdf": bsdf},
    }
    return np.array(mitsuba.render(mitsuba.load_dict(scene)))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_images_are_what_mitsuba_renders(heap, case):
    mesh, file = heap
    material, bsdf = CASES[case]
    seen = look_at(mesh, SIZE * FINER)
    lit = unshadowed(seen, LIGHTS)
    assert (lit.sum(1) < (seen.normals @ LIGHTS.T > 0).sum(0)).all()  # every light casts shadows
    fine = np.zeros((len(LIGHTS), SIZE * FINER, SIZE * FINER, 3), np.float32)
    fine[:, seen.mask] = shade(seen, [material], np.ones((len(seen.points), 1), np.float32), LIGHTS, lit)
    ours = fine.reshape(len(LIGHTS), SIZE, FINER, SIZE, FINER, 3).mean((2, 4))
    for light, image in zip(LIGHTS, ours, strict=True):
        theirs = by_mitsuba(file, light, bsdf)
        difference = np.abs(image - theirs)
        on_object = theirs.max(-1) > 0
        assert difference.mean() < (0.05 if case == "metal" else 0.02) * theirs.mean()  # small highlights are noisy
        assert np.median(difference[on_object]) < 0.008 * theirs[on_object].mean()
        assert image.mean() == pytest.approx(theirs.mean(), rel=0.015)
