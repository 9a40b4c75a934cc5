"""Triangles from polygons of any size, without new vertices.

Polygons are cut one corner (an "ear") at a time, many polygons at once: all that have the same number of corners are
rows of one array. Quads, which most meshes consist of, have a direct formula. Only the surface's shape depends on the
cut, never a vertex, so a polygon that has no clean cut (self-crossing, all corners on a line) is cut anyway.
"""

from __future__ import annotations

import numpy as np

from ..errors import SprigError

BATCH_CORNERS = 1_000_000  # polygons x corners worked on at once; bounds the memory at some 100 MB
CUT_BUDGET = 100_000_000  # sum of corners squared that is cut with care, some ten seconds; the rest become fans


def triangulate(counts, indices, points) -> np.ndarray:
    """Cut polygons into triangles (M,3) int32 that keep the polygons' order and winding.

    counts (P,) corners of each polygon; indices (sum of counts,) its vertices one after the other; points (V,3)
    decides where to cut. Triangles with a repeated vertex, and polygons with fewer than three corners, are dropped.
    Raises SprigError when counts and indices do not belong together or point outside the mesh.
    """
    counts = np.asarray(counts, dtype=np.int64)
    indices = np.asarray(indices, dtype=np.int64)
    if (counts.size and counts.min() < 0) or counts.sum() != len(indices):
        raise SprigError(f"The faces need {counts.sum()} corners and have {len(indices)}; export the mesh again.")
    if indices.size and not 0 <= indices.min() <= indices.max() < len(points):
        raise SprigError(
            f"The faces have vertex indices from {indices.min()} to {indices.max()}, "
            f"but the mesh has {len(points)} vertices; export the mesh again."
        )
    starts = np.cumsum(counts) - counts
    by_size = np.argsort(counts, kind="stable")
    sizes, polygons_of_size = np.unique(counts, return_counts=True)
    pieces, owners = [np.empty((0, 3), np.int64)], [np.empty(0, np.int64)]
    spent = 0
    with np.errstate(invalid="ignore", over="ignore"):  # positions are checked elsewhere, here they only guide
        points = np.asarray(points, dtype=np.float64)
        for size, polygons in zip(sizes.tolist(), np.split(by_size, np.cumsum(polygons_of_size))[:-1], strict=True):
            if size < 3:
                continue
            if size > 4:
                spent += len(polygons) * size**2
            cut = {3: _keep, 4: _cut_quads}.get(size, _cut_ears if spent <= CUT_BUDGET else _cut_fans)
            batch = max(1, BATCH_CORNERS // size)
            for first in range(0, len(polygons), batch):
                some = polygons[first : first + batch]
                corners = indices[starts[some, None] + np.arange(size)]
                pieces.append(cut(corners, points).reshape(-1, 3))
                owners.append(np.repeat(some, size - 2))
    triangles, owner = np.concatenate(pieces), np.concatenate(owners)
    triangles = triangles[np.argsort(owner, kind="stable")]
    a, b, c = triangles.T
    return np.ascontiguousarray(triangles[(a != b) & (b != c) & (c != a)], dtype=np.int32)


def _keep(corners, points):
    return corners


def _cut_fans(corners, points):
    """Every triangle from the first corner: (P, n-2, 3)."""
    fan = np.arange(1, corners.shape[1] - 1)
    return corners[:, np.stack([np.zeros_like(fan), fan, fan + 1], axis=1)]


def _cut_quads(corners, points):
    """Cut quads (P,4) along the shorter diagonal that lies inside: (P,2,3)."""
    a, b, c, d = np.moveaxis(points[corners], 1, 0)
    across_ac, across_bd = c - a, d - b
    normal = np.cross(across_ac, across_bd)

    def faces_up(p, q, r):
        return np.einsum("pi,pi->p", np.cross(q - p, r - p), normal) > 0

    inside_ac = faces_up(a, b, c) & faces_up(a, c, d)
    inside_bd = faces_up(a, b, d) & faces_up(b, c, d)
    shorter_ac = (across_ac**2).sum(axis=1) <= (across_bd**2).sum(axis=1)
    use_ac = np.where(inside_ac == inside_bd, shorter_ac, inside_ac)
    ac, bd = [[0, 1, 2], [0, 2, 3]], [[0, 1, 3], [1, 2, 3]]
    return np.where(use_ac[:, None, None], corners[:, ac], corners[:, bd])


def _cut_ears(corners, points):
    """Cut polygons (P,n) by removing the ear with the shortest diagonal again and again: (P,n-2,3).

    An ear is a convex corner whose triangle holds no other corner. Where rounding or self-crossing leaves no ear, the
    shortest diagonal is taken, so n - 3 steps always finish. Removing an ear changes its two neighbours alone.
    """
    rows = np.arange(len(corners))
    flat = _flatten(points[corners])
    size = corners.shape[1]
    cost = np.stack([_ear_cost(flat, np.full(len(flat), k)) for k in range(size)], axis=1)
    triangles = []
    while size > 3:
        ear = cost.argmin(axis=1)
        triangles.append(
            np.stack([corners[rows, (ear - 1) % size], corners[rows, ear], corners[rows, (ear + 1) % size]], 1)
        )
        left = np.ones((len(rows), size), dtype=bool)
        left[rows, ear] = False
        size -= 1
        corners, cost = corners[left].reshape(-1, size), cost[left].reshape(-1, size)
        flat = flat[left].reshape(-1, size, 2)
        for neighbour in ((ear - 1) % size, ear % size):
            cost[rows, neighbour] = _ear_cost(flat, neighbour)
    triangles.append(corners)
    return np.stack(triangles, axis=1)


def _ear_cost(flat, corner):
    """Squared length of the cut at `corner` (P,) of polygons `flat` (P,n,2), made to lose to any ear when it is none.

    A cost is in [0, 1] for ears (lengths relative to the polygon's size) and above 1 for the rest.
    """
    rows, size = np.arange(len(flat)), flat.shape[1]
    before, here, after = (flat[rows, (corner + step) % size] for step in (-1, 0, 1))
    convex = _turn(before, here, after) > 0
    sides = [
        _turn(start[:, None], end[:, None], flat) for start, end in ((before, here), (here, after), (after, before))
    ]
    within = (sides[0] >= 0) & (sides[1] >= 0) & (sides[2] >= 0)
    for own in (before, here, after):  # the triangle's own corners, and others at the same place, do not block it
        within &= (flat != own[:, None]).any(axis=2)
    length = ((after - before) ** 2).sum(axis=1)
    return np.where(convex & ~within.any(axis=1), length, 2 + length)


def _turn(a, b, c):
    """Twice the signed area of the triangles a, b, c: positive when they turn left."""
    return (b[..., 0] - a[..., 0]) * (c[..., 1] - a[..., 1]) - (b[..., 1] - a[..., 1]) * (c[..., 0] - a[..., 0])


def _flatten(polygons):
    """Project polygons (P,n,3) on the plane of their Newell normal, into the square of side 1/2: (P,n,2)."""
    centred = polygons - polygons.mean(axis=1, keepdims=True)
    normal = np.cross(centred, np.roll(centred, -1, axis=1)).sum(axis=1)
    # the plane's axes: x perpendicular to the normal and to the world axis that is farthest from it
    farthest = np.eye(3)[np.abs(normal).argmin(axis=1)]
    x = np.cross(farthest, normal)
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
    y = np.cross(normal, x)
    y /= np.maximum(np.linalg.norm(y, axis=1, keepdims=True), np.finfo(float).tiny)
    flat = np.stack([np.einsum("pni,pi->pn", centred, axis) for axis in (x, y)], axis=2)
    low = flat.min(axis=1, keepdims=True)
    extent = (flat.max(axis=1, keepdims=True) - low).max(axis=2, keepdims=True)
    return np.nan_to_num((flat - low) / np.maximum(2 * extent, np.finfo(float).tiny))
