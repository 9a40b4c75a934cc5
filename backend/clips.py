"""Several clips of one character as one sequence, so that they get one rig.

Their frames follow each other: the anchor is the frame of greatest area of all, vertices weld that stay together in
every clip, and every joint is seen that any clip moves. Skeleton and weights are solved once, on all frames.

Choices that a reader would question:
* Which clips belong together is told by the mesh, vertex by vertex and triangle by triangle: no file says so, and
  there is nothing to match by once the vertices are in another order.
* Quads may be cut along the other diagonal: readers cut them by the shape of a clip's own first frame. The first clip's
  cut is taken for all.
* Names of meshes are no sign (files call the same mesh after themselves) unless the same names come in another order.
"""

from __future__ import annotations

import numpy as np

from .errors import SprigError
from .sequence import ClipSpan, MeshSequence

LISTED = 5  # meshes that an error names one by one


def join_clips(sequences: list[MeshSequence], labels: list[str] | None = None) -> MeshSequence:
    """One sequence with the frames of all, in this order; `clips` says which are whose.

    labels: what errors call them, their names where not given. Origin, rate and meshes are the first one's. Raises
    SprigError, naming the clip, for one that is not of the first one's character.
    """
    first, labels = sequences[0], labels or [one.name for one in sequences]
    for one, label in zip(sequences[1:], labels[1:], strict=True):
        difference = _difference(one, first)
        if difference:
            raise SprigError(
                f"{label} is not the character of {labels[0]}: {difference}; give clips of one mesh, or rig it alone."
            )
    stops = np.cumsum([one.frame_count for one in sequences]).tolist()
    names = unique_names([one.name for one in sequences])
    vertices = np.empty((stops[-1], first.vertex_count, 3), dtype=np.float32)
    spans = []
    for one, name, stop in zip(sequences, names, stops, strict=True):
        span = ClipSpan(name, one.fps, stop - one.frame_count, stop)
        np.add(one.vertices, one.origin - first.origin, out=vertices[span.rows], casting="same_kind")
        spans.append(span)
    return MeshSequence(
        vertices,
        first.faces,
        fps=first.fps,
        origin=first.origin,
        object_id=first.object_id,
        object_names=first.object_names,
        frame_numbers=np.concatenate([one.frame_numbers for one in sequences]),
        frame_index=np.concatenate([one.frame_index for one in sequences]),
        name=", ".join(names),
        warnings=tuple(dict.fromkeys(warning for one in sequences for warning in one.warnings)),
        clips=tuple(spans),
    )


def unique_names(names: list[str]) -> list[str]:
    """The names, those that were there before with the first number from 2 on that makes them new: walk, walk_2."""
    taken: list[str] = []
    for name in names:
        unique, number = name, 2
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        taken.append(unique)
    return taken


def _difference(one: MeshSequence, first: MeshSequence) -> str | None:
    """What says that a sequence has not the first one's meshes, in words; None if nothing does."""
    ours, theirs = one.object_names, first.object_names
    if len(ours) != len(theirs):
        return f"it has {_listed(ours)} where that has {_listed(theirs)}"
    if ours != theirs and sorted(ours) == sorted(theirs):
        return f"its meshes are in another order ({_listed(ours)})"
    if one.vertex_count != first.vertex_count:
        return f"it has {one.vertex_count} vertices where that has {first.vertex_count}"
    if not np.array_equal(one.object_id, first.object_id):
        return "its meshes have other numbers of vertices"
    if len(one.faces) != len(first.faces):
        return f"it has {len(one.faces)} triangles where that has {len(first.faces)}"
    if not _same_polygons(one.faces, first.faces):
        return "its faces join other vertices"
    return None


def _listed(names) -> str:
    some = ", ".join(names[:LISTED]) + (", …" if len(names) > LISTED else "")
    return f"{len(names)} mesh{'es' if len(names) > 1 else ''} ({some})"


def _same_polygons(a, b) -> bool:
    """Whether triangles (M,3) and (M,3) are the same polygons in the same order, be they cut differently.

    However a polygon is cut, the outlines of its triangles add up to its own, since edges inside are passed once in
    either direction. So rows that differ are taken together until their outlines are equal, and these few must be the
    triangles of a polygon: of a closed surface any two outlines are equal, but it has more triangles than corners.
    """
    outline: dict[tuple[int, int], int] = {}  # how often edges are passed upwards in a, less the same in b
    corners, triangles = set(), 0
    differ = np.flatnonzero((a != b).any(axis=1))
    for ours, theirs in zip(a[differ].tolist(), b[differ].tolist(), strict=True):
        for (p, q, r), passed in ((ours, 1), (theirs, -1)):
            for u, v in ((p, q), (q, r), (r, p)):
                edge, upwards = ((u, v), passed) if u < v else ((v, u), -passed)
                outline[edge] = outline.get(edge, 0) + upwards
                if outline[edge] == 0:
                    del outline[edge]
        corners.update(ours)
        triangles += 1
        if not outline:
            if len(corners) < triangles + 2:
                return False
            corners, triangles = set(), 0
    return not outline
