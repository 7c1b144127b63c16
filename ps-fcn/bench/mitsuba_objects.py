"""Objects rendered by Mitsuba 3, which is not our renderer: a test set for `psfcn eval`.

The held-out shapes (a sphere and two blobs, or with ``--meshes`` the meshes that are held out) in eight materials of
Mitsuba's own, path traced with interreflections and pixels averaged over their area, under 32 lights. Written as
`psfcn render` writes its samples, with the normals at the pixels' centres.

python ps-fcn/bench/mitsuba_objects.py -o FOLDER [--size 64] [--meshes FOLDER]        (pip install mitsuba)
psfcn eval FOLDER --method ls,trimmed,robust,psfcn,auto
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from psfcn import blobs, held_out, light_sets
from psfcn.gbuffer import Mesh, look_at
from psfcn.rendering import EXPOSURE
from psfcn.samples import WHITE, Sample
from tqdm import tqdm

LIGHTS, SEED = 32, 3
BOUNCES = 4
RGB = {"red": (0.6, 0.15, 0.1), "sand": (0.7, 0.55, 0.35), "green": (0.1, 0.35, 0.15), "grey": (0.5, 0.5, 0.5)}


def plain(colour: str) -> dict[str, object]:
    return {"type": "rgb", "value": list(RGB[colour])}


def principled(colour: str, **parameters: float) -> dict[str, object]:
    return {"type": "principled", "base_color": plain(colour), **parameters}


def metal(name: str, alpha: float) -> dict[str, object]:
    return {"type": "roughconductor", "material": name, "distribution": "ggx", "alpha": alpha}


def plastic(colour: str, alpha: float) -> dict[str, object]:
    return {"type": "roughplastic", "diffuse_reflectance": plain(colour), "distribution": "beckmann", "alpha": alpha}


MATERIALS = {
    "matt": {"type": "diffuse", "reflectance": plain("sand")},
    "plastic": plastic("red", 0.1),
    "soft-plastic": plastic("grey", 0.3),
    "copper": metal("Cu", 0.35),
    "aluminium": metal("Al", 0.2),
    "velvet": principled("red", roughness=0.9, sheen=1.0),
    "car-paint": principled("green", roughness=0.5, metallic=0.5, clearcoat=1.0, clearcoat_gloss=0.8),
    "wax": principled("sand", roughness=0.35, specular=0.6),
}


def written(mesh: Mesh, folder: Path) -> Path:
    """The file of a mesh of ours that Mitsuba reads."""
    import mitsuba

    copy = mitsuba.Mesh("shape", len(mesh.vertices), len(mesh.faces), has_vertex_normals=True)
    parameters = mitsuba.traverse(copy)
    parameters["vertex_positions"] = mesh.vertices.ravel()
    parameters["vertex_normals"] = mesh.normals.ravel()
    parameters["faces"] = mesh.faces.ravel().astype(np.uint32)
    parameters.update()
    file = folder / "shape.ply"
    copy.write_ply(str(file))
    return file


def picture(
    file: Path, light: np.ndarray, bsdf: dict[str, object], size: int, *, samples: int = 64, bounces: int = 1
) -> np.ndarray:
    """``[size, size, 3]``: a mesh seen along -z under one directional light of irradiance pi.

    Args:
        file: from :func:`written`.
        light: ``[3]`` unit vector towards the light.
        bsdf: Mitsuba's description of the material; both sides show it.
        size: pixels along each side, of the square [-1, 1] x [-1, 1].
        samples: rays a pixel, a square number.
        bounces: 1 is direct light alone.
    """
    import mitsuba

    seen_from = mitsuba.ScalarTransform4f().look_at(origin=[0, 0, 6], target=[0, 0, 0], up=[0, 1, 0])
    film = {"type": "hdrfilm", "width": size, "height": size, "pixel_format": "rgb", "rfilter": {"type": "box"}}
    sampler = {"type": "stratified", "sample_count": samples}
    irradiance = {"type": "rgb", "value": [np.pi] * 3}
    scene = {
        "type": "scene",
        "integrator": {"type": "path", "max_depth": 1 + bounces},
        "sensor": {"type": "orthographic", "to_world": seen_from, "film": film, "sampler": sampler},
        "light": {"type": "directional", "direction": [-float(x) for x in light], "irradiance": irradiance},
        "object": {
            "type": "ply",
            "filename": str(file),
            "face_normals": False,
            "bsdf": {"type": "twosided", "inner": bsdf},
        },
    }
    return np.array(mitsuba.render(mitsuba.load_dict(scene)))


def sample(mesh: Mesh, file: Path, material: str, lights: np.ndarray, size: int) -> Sample:
    """A shape of a material under lights ``[Q, 3]``."""
    seen = look_at(mesh, size)
    radiance = np.stack([picture(file, light, MATERIALS[material], size, bounces=BOUNCES) for light in lights])
    radiance *= seen.mask[..., None]
    scale = np.float32(np.percentile(radiance.max(-1)[radiance.max(-1) > 0], EXPOSURE))
    normal, depth = np.zeros((size, size, 3), np.float16), np.zeros((size, size), np.float16)
    normal[seen.mask], depth[seen.mask] = seen.normals, seen.points[:, 2] * (size / 2)
    images = np.rint(np.clip(radiance / scale, 0, 1) * WHITE).astype(np.uint16)
    ones = np.ones_like(lights)
    return Sample(images, scale, normal, depth, seen.mask, lights, ones, mesh.name, f"mitsuba:{material}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder for the samples")
    parser.add_argument("--size", type=int, default=64, help="pixels along each side")
    parser.add_argument("--meshes", type=Path, help="folder of meshes: take homer and rocker-arm, not the blobs")
    args = parser.parse_args()
    import mitsuba

    mitsuba.set_variant("scalar_rgb")
    args.output.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    lights = light_sets.spread_first(light_sets.half_sphere(rng, LIGHTS)).astype(np.float32)
    shapes = ["sphere", *(blobs.held_out_files(args.meshes) if args.meshes else ["blob1", "blob2"])]
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes:
            mesh = held_out.mesh_of(shape, args.size)
            file = written(mesh, Path(folder))
            for material in tqdm(MATERIALS, desc=str(getattr(shape, "stem", shape)), disable=None):
                name = f"{getattr(shape, 'stem', shape)}_{material}.npz"
                sample(mesh, file, material, lights, args.size).save(args.output / name)
    print(f"{args.output}: {len(shapes) * len(MATERIALS)} samples")


if __name__ == "__main__":
    main()
