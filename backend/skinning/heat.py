"""Skin weights by heat that flows from the bones over the mesh (Baran & Popovic 2007), which the network corrects.

    -Lap w_j + H w_j = H p_j        p_j = 1 where j's bone is the nearest, H = RATE / distance^2

Every vertex takes the heat of its nearest bone, and the surface passes it on; a joint's weight is the heat of its own
bone. With the cotangent Laplacian and lumped areas this is one sparse matrix for all joints of a shape.

Choices that a reader would question:
* RATE is 6, not 1 as in the paper: on artists' rigs (the rig bank) rates near it are closest, a lower one blurs joints.
* A joint owns the bones to all its children, because which one is its tail is not known; a leaf owns a bone on from its
  own, as long as half of the one that leads to it.
* No rays are cast to see whether a bone lies inside. A bone that a vertex turns its face to counts as up to twice as
  far: such bones are a neighbouring limb's, and a hand on a hip should not follow it.
* Cotangents are kept positive, so that weights stay in [0, 1] on any triangles.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import splu

from ..metrics import unit_cube
from ..surface import edges, face_areas, islands, vertex_normals

RATE = 6.0
TIP = 0.5  # length of a leaf's bone, of the bone that leads to it
BEHIND = 0.1  # cosine between normal and way from the bone from which on a bone counts as inside
NEAR = 0.002  # of the box: bones nearer than this are equally near, or the matrix could not be solved
TIE = 1e-4  # bones whose distances differ by less, relatively, share
PIECE_JOINTS = 8  # joints that a connected piece may name
COTANGENT = (0.05, 20.0)  # limits


def heat_weights(vertices, faces, joints, parents) -> np.ndarray:
    """Weights (V,J) float32, rows on the simplex, of vertices (V,3) with faces (M,3) for joints (J,3), parents (J,).

    parents: -1 for a root, in any order; positions in any unit. Vertices without a face follow their nearest bone.
    """
    centre, side = unit_cube(vertices)
    vertices, joints = (np.asarray(vertices) - centre) / side, (np.asarray(joints) - centre) / side
    faces, parents = np.asarray(faces), np.asarray(parents)
    distance = bone_distances(vertices, vertex_normals(vertices, faces), joints, parents)
    least = distance.min(axis=1, keepdims=True)
    nearest = (distance <= (1 + TIE) * least + 1e-9).astype(np.float64)
    nearest /= nearest.sum(axis=1, keepdims=True)
    laplacian, area = _laplacian(vertices, faces)
    taken = RATE * area / np.maximum(least[:, 0], NEAR) ** 2
    weights = splu((laplacian + diags(taken)).tocsc()).solve(taken[:, None] * nearest)
    weights = np.where(np.isfinite(weights), weights, nearest).clip(0)
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > 0, weights / np.where(total > 0, total, 1), nearest).astype(np.float32)


def heat_features(vertices, faces, joints, parents) -> np.ndarray:
    """What the skinning network is told of heat: (V,J,2) float32, arguments as `heat_weights`.

    [..., 0] a vertex's own weights by heat; [..., 1] their mean, by area, over the connected piece of the surface that
    it is on, of which the PIECE_JOINTS largest are kept, on the simplex too. Artists bind hats, eyes, shields and
    wheels to one joint whole, and which one the piece knows better than its parts.
    """
    vertices, faces = np.asarray(vertices), np.asarray(faces)
    heat = heat_weights(vertices, faces, joints, parents)
    label = islands(len(vertices), edges(faces))
    area = np.bincount(faces.ravel(), np.repeat(face_areas(vertices, faces), 3), minlength=len(vertices))
    area = np.maximum(area, 1e-9 * max(area.max(), 1e-30))  # a vertex without a face is a piece by itself
    pieces = coo_matrix((area, (label, np.arange(len(vertices)))), (label.max() + 1, len(vertices))) @ heat
    few = np.sort(pieces, axis=1)[:, -min(PIECE_JOINTS, pieces.shape[1]), None]
    pieces = np.where(pieces >= few, pieces, 0)
    pieces /= pieces.sum(axis=1, keepdims=True)
    return np.stack([heat, pieces[label].astype(np.float32)], axis=2)


def bone_distances(vertices, normals, joints, parents) -> np.ndarray:
    """Distances (V,J) of vertices (V,3) to the own bones of each joint; more for bones that the normals point to."""
    child = np.flatnonzero(parents >= 0)
    leaves = np.setdiff1d(np.arange(len(parents)), parents)
    above = np.where(parents < 0, np.arange(len(parents)), parents)
    tips = joints + TIP * (joints - joints[above])
    starts = np.concatenate([joints[parents[child]], joints[leaves]])
    ends = np.concatenate([joints[child], tips[leaves]])
    found = np.full((len(vertices), len(parents)), np.inf)
    for start, end, owner in zip(starts, ends, np.concatenate([parents[child], leaves]), strict=True):
        along = end - start
        length = along @ along
        share = np.clip((vertices - start) @ along / length, 0, 1) if length > 0 else np.zeros(len(vertices))
        away = vertices - start - share[:, None] * along
        distance = np.linalg.norm(away, axis=1)
        facing = np.einsum("vk,vk->v", away, normals) / np.maximum(distance, 1e-12)
        found[:, owner] = np.minimum(found[:, owner], distance * (1 + np.clip(BEHIND - facing, 0, 1)))
    return found


def _laplacian(vertices, faces):
    """The cotangent Laplacian (V,V), positive semidefinite, and each vertex's area (V,), not quite zero anywhere."""
    count = len(vertices)
    corners = vertices[faces]
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    lumped = np.bincount(faces.ravel(), weights=np.repeat(area / 3, 3), minlength=count)
    rows, columns, values = [], [], []
    for k in range(3):
        a, b = corners[:, k - 2] - corners[:, k], corners[:, k - 1] - corners[:, k]
        cross = np.linalg.norm(np.cross(a, b), axis=1)
        cotangent = np.einsum("fk,fk->f", a, b) / np.maximum(cross, 1e-12)
        rows.append(faces[:, k - 2])
        columns.append(faces[:, k - 1])
        values.append(cotangent.clip(*COTANGENT) / 2)
    rows, columns, values = map(np.concatenate, (rows, columns, values))
    graph = coo_matrix((values, (rows, columns)), (count, count)).tocsr()
    graph = graph + graph.T
    return diags(np.asarray(graph.sum(axis=1)).ravel()) - graph, np.maximum(lumped, 1e-9)
