"""Images of a shape of some material under many lights, one at a time: training and test samples.

A pixel under a directional light of intensity e has radiance pi * brdf * max(n·l, 0) * e where the light is seen, and
0 in attached and cast shadows: a white diffuse surface that faces a light of intensity 1 has radiance 1. There are no
interreflections.

Everything random comes from the seed, the split and the options, never from the order or the process, so that a
folder is the same from one worker or many.
"""

from __future__ import annotations

import numpy as np

from psfcn import blobs, light_sets, materials
from psfcn.gbuffer import GBuffer, Mesh, look_at, unshadowed
from psfcn.noise import Noise
from psfcn.render_options import SHAPES, Options
from psfcn.samples import WHITE, Sample

PAIRS = 1 << 16  # pixels times lights shaded at a time: what fits a processor's cache
EXPOSURE = 99.9  # percentile of the lit values that the range of 16 bits ends at


def render_sample(seed: int, options: Options) -> Sample:
    """One random object of a random material under random lights; the same for the same seed and options.

    Raises:
        UserError: the folder of meshes is missing, empty, or a file in it is damaged.
    """
    rng = np.random.default_rng((seed, options.split == "test"))
    mesh = _draw_mesh(rng, options)
    lights = _draw_lights(rng, options)
    intensities = light_sets.draw_intensities(rng, len(lights)) if options.intensities else np.ones_like(lights)
    return render(mesh, draw_material(rng, options), lights, intensities, options.size, rng=rng, noise=options.noise)


def render(
    mesh: Mesh,
    mixture: list[materials.Material],
    lights: np.ndarray,
    intensities: np.ndarray,
    size: int,
    *,
    rng: np.random.Generator | None = None,
    noise: float = 0.0,
) -> Sample:
    """Images of a mesh under lights.

    Args:
        mesh: the shape, in the camera's square [-1, 1] x [-1, 1].
        mixture: its material, or two or three that vary over the surface.
        lights: ``[Q, 3]`` unit vectors towards the lights.
        intensities: ``[Q, 3]`` in RGB.
        size: pixels along each side.
        rng: of the mixture's pattern and the noise.
        noise: see :class:`Options`.
    """
    seen = look_at(mesh, size)
    weights = _pattern(rng, seen.points, len(mixture)) if len(mixture) > 1 else np.ones((len(seen.points), 1))
    radiance = shade(seen, mixture, weights.astype(np.float32), lights, unshadowed(seen, lights))
    radiance *= intensities[:, None].astype(np.float32)
    lit = radiance.max(2)
    lit = lit[lit > 0]
    scale = np.float32(max(np.percentile(lit, EXPOSURE) if len(lit) else 0, 1e-6))
    if noise:
        radiance += rng.normal(0, noise * scale, radiance.shape).astype(np.float32)
    images = np.zeros((len(lights), size, size, 3), np.uint16)
    images[:, seen.mask] = np.rint(np.clip(radiance / scale, 0, 1) * WHITE).astype(np.uint16)
    normal, depth = np.zeros((size, size, 3), np.float16), np.zeros((size, size), np.float16)
    normal[seen.mask], depth[seen.mask] = seen.normals, seen.points[:, 2] * (size / 2)
    return Sample(
        images,
        scale,
        normal,
        depth,
        seen.mask,
        lights.astype(np.float32),
        intensities.astype(np.float32),
        mesh.name,
        " & ".join(material.name for material in mixture),
    )


def shade(
    seen: GBuffer,
    mixture: list[materials.Material],
    weights: np.ndarray,
    lights: np.ndarray,
    lit: np.ndarray,
) -> np.ndarray:
    """Radiance ``[Q, N, 3]`` float32 of the visible points under lights of intensity 1.

    Args:
        seen: the N points.
        mixture: M materials.
        weights: ``[N, M]``, how much of each; sums to 1.
        lights: ``[Q, 3]``.
        lit: ``[Q, N]`` bool, whether the light reaches the point.
    """
    radiance = np.zeros((*lit.shape, 3), np.float32)
    step = max(1, PAIRS // max(lit.shape[1], 1))
    n_z = seen.normals[:, 2]
    for first in range(0, len(lights), step):
        light, point = np.nonzero(lit[first : first + step])
        towards = lights[first : first + step].astype(np.float32)
        n_l = (seen.normals @ towards.T).T[light, point]
        n_h, l_h = materials.half_cosines(n_z[point], n_l, towards[light, 2])
        value = np.zeros((len(light), 3), np.float32)
        for material, weight in zip(mixture, weights.T, strict=True):
            part = np.nonzero(weight[point] > 0)[0] if len(mixture) > 1 else slice(None)
            at = (n_l[part], n_z[point[part]], n_h[part], l_h[part])
            value[part] += weight[point[part]][:, None] * materials.brdf(material, *at)
        radiance[first + light, point] = np.float32(np.pi) * n_l[:, None] * value
    return radiance


def draw_material(rng: np.random.Generator, options: Options) -> list[materials.Material]:
    """One material, or two or three to blend, of the kinds that the options name."""
    kind = rng.choice(options.materials)
    if kind == "blends":
        simple = [kind for kind in options.materials if kind != "blends"] or ["measured"]
        return [_draw_simple(rng, rng.choice(simple), options.split) for _ in range(int(rng.integers(2, 4)))]
    return [_draw_simple(rng, kind, options.split)]


def _draw_simple(rng: np.random.Generator, kind: str, split: str) -> materials.Material:
    if kind == "ggx":
        return materials.random_ggx(rng)
    name = rng.choice(materials.names(split))
    # The test has one fit of each material; training sees the other one as well, as a variation.
    family = "abc" if split == "train" and rng.uniform() < 0.25 else "sgd"
    material = materials.measured(str(name), family)
    return materials.recoloured(rng, material) if kind == "painted" else material


def _draw_mesh(rng: np.random.Generator, options: Options) -> Mesh:
    often = np.array([SHAPES[shape] for shape in options.shapes], float)
    kind = rng.choice(options.shapes, p=often / often.sum())
    if kind == "blobs":
        return blobs.random_blob(rng, options.size)
    if kind == "solids":
        return blobs.random_solid(rng)
    if kind == "patches":
        return blobs.random_patch(rng)
    if kind == "spheres":
        return blobs.random_sphere(rng)
    files = blobs.mesh_files(options.meshes, options.split)
    return blobs.from_file(files[int(rng.integers(len(files)))], rng)


def _draw_lights(rng: np.random.Generator, options: Options) -> np.ndarray:
    count = int(rng.integers(options.lights[0], options.lights[1] + 1))
    chance = rng.uniform()
    if chance < options.clustered:
        return light_sets.clustered(rng, count)
    if chance < options.clustered + options.rings:
        return light_sets.rings(rng, count)
    return light_sets.half_sphere(rng, count)


def _pattern(rng: np.random.Generator, points: np.ndarray, count: int) -> np.ndarray:
    """``[N, count]`` shares of materials that vary smoothly over space, from soft clouds to hard-edged spots."""
    frequency = np.exp(rng.uniform(np.log(0.4), np.log(4)))
    heights = Noise(rng, frequency, int(rng.integers(1, 4)), channels=count)(points)
    heights = np.exp(rng.uniform(np.log(1), np.log(40))) * heights
    shares = np.exp(heights - heights.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    shares[shares < 0.01] = 0  # spares shading what nobody would see
    return shares / shares.sum(1, keepdims=True)
