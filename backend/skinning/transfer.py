"""Weights at sampled surface points carried to all vertices of a mesh.

The nearest sampled point is often on the wrong limb: fingers touch, an arm lies on the hip, a skirt on the leg. So a
vertex takes from several points around it that pass three tests, loosened one after the other where none is left:

* the surface leads there. Every point stands for a vertex beside it, the mesh is split among those vertices by
  distance along the edges, and the point's cell must be within two of the vertex's own: near as one walks,
  whatever the density of points and vertices, at the price of one search over the mesh;
* the same side: the normals agree, which tells the two faces of a thin sheet apart where its rim is near;
* the same island. An island without a single point takes from the nearest points anywhere.

How much each counts falls with its distance, to almost nothing at the farthest of them, so that weights change
smoothly as one neighbour replaces another; and with the cosine between the normals. The points' weights are blended,
not interpolated: a network's small errors at single points average out.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import dijkstra
from scipy.spatial import cKDTree

CANDIDATES = 4  # times `neighbours`: points looked at for each vertex, enough to find those on its side of a gap
CHUNK = 16384  # vertices at a time: bounds the memory of the candidates and of dense rows
REACH = 1.05  # of the farthest neighbour's distance, where the weight ends: that neighbour still counts a little


def points_to_vertices(
    point_weights,
    points,
    point_island,
    vertices,
    normals,
    vertex_island,
    edges,
    influences: int = 4,
    neighbours: int = 8,
    point_vertex=None,
) -> np.ndarray:
    """Weights (V,J) float32 on the simplex, at most `influences` not zero in a row, from those of points (N,J).

    points (N,6) are positions and unit normals, vertices (V,3) and normals (V,3) in the same frame (a zero normal
    agrees with all); point_island (N,) and vertex_island (V,) number the connected parts alike. edges (E,2) of the
    mesh, each once, or None where there are none to walk along. point_vertex (N,): the vertex each point stands for
    (`SurfacePoints.nearest_corner`); without it the nearest vertex that faces its way.
    """
    point_weights, points = np.asarray(point_weights, dtype=np.float32), np.asarray(points, dtype=np.float64)
    vertices, normals = np.asarray(vertices, dtype=np.float64), np.asarray(normals, dtype=np.float64)
    point_island, vertex_island = np.asarray(point_island), np.asarray(vertex_island)
    assert len(points) == len(point_weights) == len(point_island) > 0, (points.shape, point_weights.shape)
    assert len(vertices) == len(normals) == len(vertex_island), (vertices.shape, normals.shape)
    cells = None
    if edges is not None:
        if point_vertex is None:
            point_vertex = _nearest_vertex(vertices, normals, vertex_island, points, point_island)
        cells = _Cells(vertices, np.asarray(edges), np.asarray(point_vertex))
    search = _Search(points[:, :3], point_island)
    weights = np.empty((len(vertices), point_weights.shape[1]), dtype=np.float32)
    for start in range(0, len(vertices), CHUNK):
        rows = np.arange(start, min(start + CHUNK, len(vertices)))
        blend = _blend(search, cells, points, point_island, rows, vertices, normals, vertex_island, neighbours)
        weights[rows] = largest(blend @ point_weights, influences)
    return weights


def largest(weights, influences: int) -> np.ndarray:
    """Rows (V,J) with all but their largest few entries set to zero, and divided by their sum."""
    if influences < weights.shape[1]:
        kept = np.argpartition(-weights, influences - 1, axis=1)[:, :influences]
        few = np.zeros_like(weights)
        np.put_along_axis(few, kept, np.take_along_axis(weights, kept, axis=1), axis=1)
        weights = few
    return weights / weights.sum(axis=1, keepdims=True)


def _blend(search, cells, points, point_island, rows, vertices, normals, vertex_island, neighbours) -> csr_matrix:
    """Sparse (R,N), rows summing to 1: how much each of the vertices `rows` takes from which point."""
    index = search.nearest(vertices[rows], vertex_island[rows], CANDIDATES * neighbours)  # (R,C)
    if cells is not None:
        index = np.hstack([index, cells.own_point(rows)[:, None]])
    distance = np.linalg.norm(points[index, :3] - vertices[rows, None], axis=2)
    facing = np.einsum("rci,ri->rc", points[index, 3:], normals[rows])
    facing[~normals[rows].any(axis=1)] = 1.0
    # How many of the tests are failed, the last ones first: only the best of a vertex's candidates count.
    same_island = point_island[index] == vertex_island[rows, None]
    reached = same_island if cells is None else same_island & cells.near(rows, index)
    failed = np.where(reached & (facing > 0), 0, np.where(reached, 1, np.where(same_island, 2, 3)))
    if cells is not None:  # it may be among the nearest already: a point counts once
        failed[:, -1] = np.where((index[:, :-1] == index[:, -1:]).any(axis=1), 4, failed[:, -1])
    best = failed == failed.min(axis=1, keepdims=True)
    order = np.argsort(np.where(best, distance, np.inf), axis=1, kind="stable")[:, :neighbours]
    index, distance, facing, best = (np.take_along_axis(a, order, axis=1) for a in (index, distance, facing, best))

    reach = REACH * np.where(best, distance, 0).max(axis=1, keepdims=True)
    share = distance / np.where(reach > 0, reach, 1.0)
    weight = np.where(best, (1 - share) ** 2 * np.where(facing > 0, facing, 1.0), 0.0)
    weight /= weight.sum(axis=1, keepdims=True)
    count = index.shape[1]
    start = np.arange(0, count * len(rows) + 1, count)
    return csr_matrix((weight.astype(np.float32).ravel(), index.ravel(), start), shape=(len(rows), len(points)))


class _Search:
    """Nearest points (N,3) of the same island, of any island where it has none."""

    def __init__(self, points, island):
        self.everywhere = cKDTree(points)
        self.known = np.unique(island)
        # The island as a fourth coordinate, farther apart than anything is wide: one tree for all of them.
        self.apart = 4 * (np.abs(points).max() + 1)
        self.by_island = cKDTree(np.column_stack([points, self.apart * np.searchsorted(self.known, island)]))

    def nearest(self, positions, island, count: int) -> np.ndarray:
        """Indices (R,C) of points, nearest first; where an island has fewer, points of others follow."""
        count = min(count, self.everywhere.n)
        rank = np.searchsorted(self.known, island)
        has_points = self.known[np.minimum(rank, len(self.known) - 1)] == island
        place = np.column_stack([positions, self.apart * rank])
        found = np.empty((len(positions), count), dtype=np.int64)
        ranks = np.arange(1, count + 1)
        found[has_points] = self.by_island.query(place[has_points], ranks)[1]
        found[~has_points] = self.everywhere.query(positions[~has_points], ranks)[1]
        return found


class _Cells:
    """The vertices split among those that carry points, by distance along the edges; and which cells are neighbours."""

    def __init__(self, vertices, edges, point_vertex):
        count = len(vertices)
        self.seeds, self.seed_of_point = np.unique(point_vertex, return_inverse=True)
        self.seed_of_point = self.seed_of_point.reshape(-1)
        self.point_of_seed = np.unique(self.seed_of_point, return_index=True)[1]
        a, b = edges.T
        length = np.linalg.norm(vertices[a] - vertices[b], axis=1)
        length = np.maximum(length, np.finfo(np.float64).tiny)  # a sparse graph does not tell 0 from no edge
        graph = coo_matrix((length, (a, b)), shape=(count, count)).tocsr()
        source = dijkstra(graph, directed=False, indices=self.seeds, min_only=True, return_predecessors=True)[2]
        number = np.full(count + 1, -1)
        number[self.seeds] = np.arange(len(self.seeds))
        self.cell = number[np.where(source >= 0, source, count)]  # -1: no point can be reached
        a, b = self.cell[a], self.cell[b]
        crossing = (a >= 0) & (b >= 0)
        a, b, own = a[crossing], b[crossing], np.arange(len(self.seeds))
        step = coo_matrix(
            (np.ones(2 * len(a) + len(own)), (np.concatenate([a, b, own]), np.concatenate([b, a, own]))),
            shape=(len(own), len(own)),
        ).tocsr()
        two_steps = (step @ step).tocoo()
        self.keys = np.sort(two_steps.row.astype(np.int64) * len(own) + two_steps.col)

    def own_point(self, rows) -> np.ndarray:
        """A point (R,) of each vertex's own cell; any point where there is no cell."""
        return self.point_of_seed[self.cell[rows]]

    def near(self, rows, index) -> np.ndarray:
        """Which points (R,C) lie within two cells of the vertices (R,)."""
        cell = self.cell[rows][:, None]
        key = cell * len(self.seeds) + self.seed_of_point[index]
        place = np.minimum(np.searchsorted(self.keys, key), len(self.keys) - 1)
        return (cell >= 0) & (self.keys[place] == key)


def _nearest_vertex(vertices, normals, vertex_island, points, point_island) -> np.ndarray:
    """For each point (N,6) the nearest vertex of its island that faces its way, or else the nearest of its island."""
    found = _Search(vertices, vertex_island).nearest(points[:, :3], point_island, CANDIDATES)
    agree = np.einsum("nci,ni->nc", normals[found], points[:, 3:]) > 0
    agree &= vertex_island[found] == point_island[:, None]
    return np.take_along_axis(found, agree.argmax(axis=1)[:, None], axis=1)[:, 0]
