"""What an orthographic camera sees of a mesh, and which lights its points see: rays through Embree.

The camera looks along -z and sees the square [-1, 1] x [-1, 1]: pixel (row, column) of N looks down at
x = (2 column + 1) / N - 1 and y = 1 - (2 row + 1) / N.

Smooth normals on flat triangles make a light cast false shadows where it grazes the surface (the terminator problem).
Shadow rays therefore start on the smooth surface that the vertex normals describe: Hanika, "Hacking the shadow
terminator", Ray Tracing Gems II (2021), chapter 4.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FACING = 0.02  # the least n_z of a visible point: interpolated normals may point away where the triangle does not
OFF = 5e-4  # along the normal, from the surface to where a shadow ray starts; the image is 2 wide


@dataclass(frozen=True)
class Mesh:
    """Triangles with normals at their corners.

    Attributes:
        vertices: ``[V, 3]`` float32.
        faces: ``[F, 3]`` int32, counterclockwise from the side that the normals point to; both sides are drawn.
        normals: ``[V, 3]`` float32, unit.
        name: what samples call it.
    """

    vertices: np.ndarray
    faces: np.ndarray
    normals: np.ndarray
    name: str


@dataclass(frozen=True)
class GBuffer:
    """The N visible points of an image, in row-major order.

    Attributes:
        mask: ``[H, W]`` bool, where they are.
        points: ``[N, 3]`` float32, on the triangles.
        starts: ``[N, 3]`` float32, where rays to the lights begin.
        normals: ``[N, 3]`` float32, unit, n_z > 0.
        scene: Embree's, for the rays.
    """

    mask: np.ndarray
    points: np.ndarray
    starts: np.ndarray
    normals: np.ndarray
    scene: object


def smooth_normals(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """``[V, 3]`` unit normals at the vertices: the mean of the faces around, by area."""
    corners = vertices[faces]
    areas = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    index, weights = faces.T.ravel(), np.tile(areas, (3, 1))
    sums = np.stack([np.bincount(index, weights[:, i], len(vertices)) for i in range(3)], axis=1)
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-20)).astype(np.float32)


def creased_normals(vertices: np.ndarray, faces: np.ndarray, crease: float = 40.0) -> np.ndarray:
    """``[3 F, 3]`` unit normals at the corners of the faces, smooth but for edges sharper than ``crease`` degrees.

    Each is the mean, by area, of the faces around the vertex that are within that angle of the corner's own face.
    """
    from scipy.sparse import csr_array

    first, second, third = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
    areas = np.cross(second - first, third - first)
    units = areas / np.maximum(np.linalg.norm(areas, axis=1, keepdims=True), 1e-30)
    corners = np.arange(faces.size)
    at_vertex = csr_array((np.ones(faces.size, bool), (corners, faces.ravel())), (faces.size, len(vertices)))
    corner, other = (at_vertex @ at_vertex.T).nonzero()
    face, neighbour = corner // 3, other // 3
    near = np.einsum("ni,ni->n", units[face], units[neighbour]) >= np.cos(np.deg2rad(crease))
    near |= face == neighbour  # triangles without an area as well
    sums = [np.bincount(corner[near], areas[neighbour[near], i], faces.size) for i in range(3)]
    normals = np.stack(sums, axis=1)
    return (normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-30)).astype(np.float32)


def look_at(mesh: Mesh, size: int) -> GBuffer:
    """What the camera sees of the mesh in an image of ``size`` x ``size`` pixels."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    scene = EmbreeScene(robust=True)
    TriangleMesh(scene=scene, vertices=mesh.vertices, indices=mesh.faces)
    centres = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    x, y = np.meshgrid(centres, -centres)
    top = mesh.vertices[:, 2].max() + 1
    origins = np.stack([x, y, np.full_like(x, top)], axis=-1).reshape(-1, 3).astype(np.float32)
    down = np.broadcast_to(np.array([0, 0, -1], np.float32), origins.shape).copy()
    hits = scene.run(origins, down, output=True)
    hit = hits["primID"] >= 0
    corners = mesh.faces[hits["primID"][hit]]
    u, v = hits["u"][hit], hits["v"][hit]
    barycentric = np.stack([1 - u - v, u, v], axis=1)[..., None]
    at, around = mesh.vertices[corners], mesh.normals[corners]
    around = np.where(_seen_from_behind(at)[:, None, None], -around, around)
    points = (barycentric * at).sum(1)
    normals = (barycentric * around).sum(1)
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-20)
    normals = _facing(normals)
    # Hanika: lift the point to the tangent planes of the three corners, and mix.
    below = np.minimum(((points[:, None] - at) * around).sum(-1, keepdims=True), 0)
    starts = points - (barycentric * below * around).sum(1) + OFF * normals
    return GBuffer(hit.reshape(size, size), points, starts.astype(np.float32), normals.astype(np.float32), scene)


def unshadowed(seen: GBuffer, lights: np.ndarray) -> np.ndarray:
    """``[Q, N]`` bool: where a light is in front of the surface (n·l > 0) and nothing stands between.

    Args:
        seen: what the camera sees.
        lights: ``[Q, 3]`` unit vectors towards the lights.
    """
    lit = seen.normals @ lights.T > 0
    point, light = np.nonzero(lit)
    blocked = seen.scene.run(seen.starts[point], np.ascontiguousarray(lights[light]), query="OCCLUDED") >= 0
    lit[point[blocked], light[blocked]] = False
    return lit.T


def _seen_from_behind(corners: np.ndarray) -> np.ndarray:
    """``[N]`` bool for ``[N, 3, 3]`` triangles: the inside of open meshes, or those wound the other way."""
    first, second = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    return first[:, 0] * second[:, 1] < first[:, 1] * second[:, 0]


def _facing(normals: np.ndarray) -> np.ndarray:
    """Normals of visible points that point away are bent back until they just face the viewer."""
    away = normals[:, 2] < FACING
    if away.any():
        flat = normals[away, :2]
        flat *= np.sqrt(1 - FACING**2) / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-20)
        normals[away, :2], normals[away, 2] = flat, FACING
    return normals
