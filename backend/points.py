"""What the networks see of a mesh: the unit cube, and surface points with normals that can be found again in any frame.

Choices that a reader would question:
* Normals are face normals, as the released networks were trained with; a triangle that has collapsed in a frame takes
  the normals of its corners, because a network that expects unit normals must not get a zero one.
* A clip keeps the anchor's scale, but every frame its own box centre (`UnitCube.centred_on`): a character that walks
  would leave the cube, one that crouches must not grow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .errors import SprigError
from .metrics import unit_cube
from .surface import area_weighted_points, face_areas, points_on, vertex_normals

SLIVER = 1e-6  # of the longest edge: float32 coordinates do not say which way a triangle of less height faces
UP = (0.0, 0.0, 1.0)  # the normal of a point around which nothing has an area


@dataclass(frozen=True, eq=False)
class UnitCube:
    """The frame of the networks: a bounding box centred at 0 with longest side 1, so that it lies in [-0.5, 0.5]^3.

    centre (3,) float64 and scale, the longest side, are in the units and axes of the mesh (SPRig 3).
    """

    centre: np.ndarray
    scale: float

    @classmethod
    def of(cls, vertices) -> UnitCube:
        """The cube of vertices (V,3); raises SprigError when there is no box to speak of."""
        vertices = np.asarray(vertices)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or len(vertices) == 0:
            raise SprigError(f"Expected vertices (V, 3), got {vertices.shape}; pass the vertices of one frame.")
        centre, scale = unit_cube(vertices)
        if not (np.isfinite(scale) and scale > 0):
            raise SprigError("The mesh has no extent or is not finite; export it with its real shape.")
        return cls(centre, scale)

    def centred_on(self, vertices) -> UnitCube:
        """The same scale around the box centre of another frame (V,3)."""
        return replace(self, centre=unit_cube(vertices)[0])

    def to_cube(self, positions) -> np.ndarray:
        """Positions (…,3) of the mesh in the cube, float32."""
        return ((np.asarray(positions, dtype=np.float64) - self.centre) / self.scale).astype(np.float32)

    def from_cube(self, positions) -> np.ndarray:
        """Positions (…,3) of the cube back in the mesh's units, float64."""
        return np.asarray(positions, dtype=np.float64) * self.scale + self.centre


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """Points that ride on the triangles of a mesh: face (N,) and barycentric (N,3), rows summing to 1 (SPRig 5)."""

    face: np.ndarray
    barycentric: np.ndarray

    def at(self, vertices, faces) -> np.ndarray:
        """The points on one frame (V,3) of the mesh with faces (M,3): (N,6) float32, position and unit face normal."""
        vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces)
        normals = _face_normals(vertices, faces, self.face, self.barycentric)
        return np.hstack([points_on(vertices, faces, self.face, self.barycentric), normals]).astype(np.float32)

    def blend(self, values, faces) -> np.ndarray:
        """Values (N,…) at the points of values (V,…) at the vertices of faces (M,3)."""
        corners = np.asarray(values)[np.asarray(faces)[self.face]]
        return np.einsum("nk,nk...->n...", self.barycentric.astype(corners.dtype), corners)

    def nearest_corner(self, faces) -> np.ndarray:
        """The vertex (N,) of each point's own triangle with the largest barycentric coordinate."""
        return np.asarray(faces)[self.face, np.argmax(self.barycentric, axis=1)]


def sample_surface(vertices, faces, count: int, seed: int = 0) -> SurfacePoints:
    """`count` random points on one frame (V,3) with faces (M,3), uniform by area (SPRig 4.1); the same for a seed.

    Raises SprigError when the surface has no area, or when fewer than one point is asked for.
    """
    if count < 1:
        raise SprigError(f"Expected at least 1 surface point, got {count}; ask for more.")
    total = face_areas(vertices, faces).sum() if len(faces) else 0.0
    if not (np.isfinite(total) and total > 0):
        raise SprigError(
            "The surface has no area or is not finite, so it has no points; export the mesh with its faces."
        )
    return SurfacePoints(*area_weighted_points(vertices, faces, count, seed))


def _face_normals(vertices, faces, face, barycentric) -> np.ndarray:
    """Unit normals (N,3) of the faces; of collapsed ones, the normals of their corners, blended."""
    a, b, c = vertices[faces[face]].transpose(1, 0, 2)
    longest = np.sqrt(np.maximum.reduce([((q - p) ** 2).sum(axis=1) for p, q in ((a, b), (b, c), (c, a))]))
    safe = np.where(longest > 0, longest, 1)[:, None]
    normals = np.cross((b - a) / safe, (c - a) / safe)  # relative to the longest edge, so that no size underflows
    length = np.linalg.norm(normals, axis=1)
    collapsed = np.flatnonzero(length <= SLIVER)
    normals /= np.where(length > 0, length, 1)[:, None]
    if len(collapsed):
        around = points_on(vertex_normals(vertices, faces), faces, face[collapsed], barycentric[collapsed])
        length = np.linalg.norm(around, axis=1, keepdims=True)
        normals[collapsed] = np.where(length > SLIVER, around / np.where(length > 0, length, 1), UP)
    return normals
