"""What ``import psfcn`` offers, and that it costs nothing until it is used."""

import ast
import subprocess
import sys
from pathlib import Path

import numpy as np
import psfcn
import pytest
from papershelf.images import write_image
from psfcn_spheres import sphere_sample

MODULES = {file.stem for file in Path(psfcn.__file__).parent.glob("*.py")}
HEAVY = ("torch", "numpy", "scipy", "skimage", "trimesh", "click")


@pytest.mark.parametrize("name", psfcn.__all__)
def test_a_name_is_where_it_says(name):
    found = getattr(psfcn, name)
    assert found.__name__ == name
    assert found.__module__.startswith("psfcn.")
    assert found.__doc__


def test_names_are_listed_and_hide_no_module():
    assert set(psfcn.__all__) <= set(dir(psfcn))
    assert not set(psfcn.__all__) & MODULES  # psfcn.name would be one or the other, by what was imported before
    with pytest.raises(AttributeError, match="module 'psfcn' has no attribute 'psfcnn'"):
        _ = psfcn.psfcnn


def test_the_package_imports_nothing_heavy_until_asked():
    code = f"""
import sys, psfcn
before = [name for name in {HEAVY} if name in sys.modules]
psfcn.PSFCN
print(before, "torch" in sys.modules)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[] True"


@pytest.mark.parametrize("file", sorted(Path(psfcn.__file__).parent.glob("cli*.py")), ids=lambda file: file.stem)
def test_commands_import_pytorch_late(file):
    """A help page must answer at once."""
    top = [node for node in ast.parse(file.read_text()).body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {name.name for node in top if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert not {name.partition(".")[0] for name in names} & (set(HEAVY) - {"click"})


def test_from_photographs_to_normals_in_the_library(tmp_path):
    sample = sphere_sample(2, 24, 12)
    for number, image in enumerate(sample.images):
        write_image(tmp_path / f"{number:02}.png", image)
    write_image(tmp_path / "mask.png", sample.mask[..., None] * np.uint8(255))
    np.savetxt(tmp_path / "lights.txt", sample.lights)
    np.savetxt(tmp_path / "strengths.txt", sample.intensities)
    options = psfcn.ReadOptions(lights=tmp_path / "lights.txt", intensities=tmp_path / "strengths.txt")
    capture = psfcn.read(tmp_path, options)
    found = psfcn.estimate(capture, "robust")
    cosine = (found.normals * sample.normal).sum(-1)[sample.mask]
    assert np.rad2deg(np.arccos(cosine.clip(-1, 1))).mean() < 3
    assert found.confidence[sample.mask].mean() > 0.8
    learnt = psfcn.estimate(capture, "psfcn", psfcn.PSFCN(normalise=True).eval())
    np.testing.assert_allclose(np.linalg.norm(learnt.normals[sample.mask], axis=-1), 1, rtol=1e-5)
    depth = psfcn.integrate(found.normals, capture.mask)
    assert depth[sample.mask].std() > 1
