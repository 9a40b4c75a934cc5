"""Dem Bones (Le & Deng 2012) through py-dem-bones, in this process: the free rigid bones that our rigs are measured by.

Dem Bones walks over mesh edges and fails on torn meshes, so it is helped as its best baseline was: vertices that
coincide are welded, and islands are joined to their nearest neighbours by polygons of two vertices. Its options are the
library's but for `transAffine`: 10 is the default, 0 is better on nearly every clip ("tuned"). It may return fewer
bones than asked.
"""

import time
from dataclasses import dataclass

import numpy as np
from py_dem_bones import DemBones
from scipy.spatial import cKDTree

from sprig.backend import metrics
from sprig.backend.sequence import MeshSequence
from sprig.backend.surface import edges, islands, weld_faces

DEFAULT, TUNED = 10.0, 0.0  # transAffine
ITERATIONS = 30
INFLUENCES = 4
WELD_FRAMES = 5  # vertices that coincide in this many frames spread over the clip are welded
WELD_TOLERANCE = 2e-5  # of the first frame's diagonal
LINKS_PER_ISLAND = 4


@dataclass(frozen=True, eq=False)
class Input:
    """trajectories (F,N,3) float64 of the welded vertices, polygons over them, vertex_map (V,) to them."""

    trajectories: np.ndarray
    polygons: list[list[int]]
    vertex_map: np.ndarray


@dataclass(frozen=True, eq=False)
class FreeBones:
    """What Dem Bones found: B bones on N welded vertices, without a skeleton.

    rest (N,3), weights (N,B), motion (F,B,4,4) takes the rest pose to frame f; seconds is the solve alone.
    """

    rest: np.ndarray
    weights: np.ndarray
    motion: np.ndarray
    seconds: float


def weld_and_bridge(sequence: MeshSequence) -> Input:
    """The input that Dem Bones does best with."""
    vertices = sequence.vertices.astype(np.float64)
    chosen = np.unique(np.linspace(0, len(vertices) - 1, WELD_FRAMES).round().astype(int))
    grid = WELD_TOLERANCE * np.linalg.norm(np.ptp(vertices[0], axis=0))
    world = vertices[chosen] + sequence.origin  # the published figures were made on a grid in world space
    keys = np.round(world.transpose(1, 0, 2).reshape(sequence.vertex_count, -1) / grid).astype(np.int64)
    first, vertex_map = np.unique(keys, axis=0, return_index=True, return_inverse=True)[1:]
    faces = weld_faces(sequence.faces, vertex_map)
    links = _links(vertices[0, first], edges(faces))
    return Input(vertices[:, first], [*faces.tolist(), *links.tolist()], vertex_map.ravel())


def _links(points, mesh_edges) -> np.ndarray:
    """Pairs (K,2) that join every island of the mesh to its nearest neighbours in one frame (N,3), until it is one."""
    count, links, neighbours = len(points), np.zeros((0, 2), int), 8
    labels = islands(count, mesh_edges)
    while labels.max() > 0:
        distance, target = cKDTree(points).query(points, k=min(neighbours, count))
        source, target, distance = np.repeat(np.arange(count), target.shape[1]), target.ravel(), distance.ravel()
        across = labels[source] != labels[target]
        source, target, distance = source[across], target[across], distance[across]
        order = np.lexsort([distance, labels[source]])  # by island, nearest first
        island = labels[source[order]]
        nearest = order[np.arange(len(order)) - np.searchsorted(island, island) < LINKS_PER_ISLAND]
        links = np.concatenate([links, np.stack([source[nearest], target[nearest]], axis=1)])
        labels = islands(count, np.concatenate([mesh_edges, links]))
        neighbours *= 2
    return links


def dem_bones(given: Input, bones: int, rest_frame: int, trans_affine: float) -> FreeBones:
    """Fit `bones` free rigid bones to the welded trajectories; the rest shape is frame `rest_frame` (0-based)."""
    frames, count = given.trajectories.shape[:2]
    rest = given.trajectories[rest_frame]
    solver = DemBones()
    solver.nV, solver.nF, solver.nS, solver.nB = count, frames, 1, bones
    solver.nnz, solver.nIters, solver.transAffine = min(INFLUENCES, bones), ITERATIONS, trans_affine
    solver.fStart = np.array([0, frames], dtype=np.int32)
    solver.subjectID = np.zeros(frames, dtype=np.int32)
    solver.u = np.ascontiguousarray(rest.T)
    solver.v = np.ascontiguousarray(given.trajectories.transpose(0, 2, 1).reshape(3 * frames, count))
    solver.fv = given.polygons
    start = time.perf_counter()
    solver.compute()
    seconds = time.perf_counter() - start
    found = solver.nB
    motion = np.asarray(solver.m).reshape(frames, 4, found, 4).transpose(0, 2, 1, 3)
    return FreeBones(rest, np.asarray(solver.get_weights()).T.copy(), motion.copy(), seconds)


def rmse_percent(sequence: MeshSequence, given: Input, found: FreeBones, anchor: int) -> float:
    """RMSE in per cent of the anchor frame's diagonal, over all frames and all original vertices (METRICS.md)."""
    rest, weights = found.rest[given.vertex_map], found.weights[given.vertex_map]
    return metrics.rmse_percent(
        rest, weights, found.motion, sequence.vertices, metrics.diagonal(sequence.vertices[anchor])
    )
