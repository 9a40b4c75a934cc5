"""The surface of a sequence: weld, islands, bridges, areas, normals, and sample points that ride on the triangles.

Files deliver a character torn along texture seams and in loose parts (eyes, armour, teeth), and a motion solver that
walks over mesh edges stops at every tear. `prepare` closes them for the solver: vertices that stay together in every
frame become one, and every island is linked to its nearest neighbours. All of it is internal: the user's vertices keep
their order and number, and `Prepared.vertex_map` leads back to them.

Choices that a reader would question:
* Welding looks at positions only, and at all frames: lips that touch in one frame are not sewn together, and formats
  with coarse coordinates (MD2, MD3), where distinct vertices coincide now and then, are not collapsed.
* Objects make no difference: head and body that share a seam in every frame weld there like one mesh, so they get the
  same weights and no crack opens, and a character gives the same rig whether its file keeps objects apart or not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from .errors import SprigError
from .sequence import MeshSequence

WELD_TOLERANCE = 1e-5  # of the size; float32 noise of file round trips stays below 2e-6, real edges above 2e-5
STILL_TOLERANCE = (
    1e-5  # of the size; a still mesh that went through a float32 file moves by less, a real motion by more
)
FLAT_TOLERANCE = 1e-12  # of the size squared; the area of a surface whose triangles are all lines or points
PROJECTIONS = 6  # random directions in which trajectories are compared first: enough to tell distinct ones apart
WELD_NEIGHBOURS = 16  # candidates per vertex and round; clusters with more close over several rounds
BRIDGES_PER_ISLAND = 4  # links from each island: one would be enough to connect it, four hold it in place
BRIDGE_SAMPLE = 64  # points of an island that are searched first; any number gives the same bridges
BRIDGE_FRAMES = 4  # frames spread over the clip in which "nearest" is judged, so that passing by is not belonging


@dataclass(frozen=True, eq=False)
class Prepared:
    """A welded, connected sequence for the solver; N welded vertices stand for the sequence's V.

    trajectories (F,N,3) float32, C-contiguous; faces (M,3) int32 on welded vertices, none degenerate or repeated;
    edges (E,2) int32 of the faces; bridges (K,2) int32 join the islands, so that edges and bridges together connect
    all N vertices; vertex_map (V,) int32 gives each original vertex its welded one; counts (N,) int32 says how many
    original vertices each stands for (errors are averages over the original ones); areas (F,) float64 is the surface
    area per frame; island_count before bridging; warnings are sentences for the user.
    """

    trajectories: np.ndarray
    faces: np.ndarray
    edges: np.ndarray
    bridges: np.ndarray
    vertex_map: np.ndarray
    counts: np.ndarray
    areas: np.ndarray
    island_count: int
    warnings: tuple[str, ...]


def prepare(sequence: MeshSequence, may_be_still: bool = False) -> Prepared:
    """Weld and bridge a sequence for the motion solver.

    Raises SprigError when the surface has no area in any frame, or when nothing moves unless it `may_be_still`. A rigid
    motion of the whole counts as motion, and parts that never move are fine.
    """
    vertices = sequence.vertices
    scale = size(vertices)
    areas = surface_areas(vertices, sequence.faces)
    if areas.max() <= FLAT_TOLERANCE * scale**2:
        raise SprigError("All faces have zero area in every frame; export the mesh with its real shape.")
    moved = np.zeros(sequence.vertex_count)  # largest squared distance of each vertex from its place in the first frame
    for frame in vertices[1:]:
        np.maximum(moved, _squared_distance(frame, vertices[0]), out=moved)
    if moved.max() <= (STILL_TOLERANCE * scale) ** 2 and not may_be_still:
        raise SprigError("Nothing moves in this sequence, so there is no motion to rig from; use --skeleton learned.")

    vertex_map = weld(vertices)
    faces = weld_faces(sequence.faces, vertex_map)
    trajectories, counts = _welded(vertices, vertex_map)
    mesh_edges = edges(faces)
    labels = islands(len(counts), mesh_edges)
    return Prepared(
        trajectories=trajectories,
        faces=faces,
        edges=mesh_edges,
        bridges=bridge(spread_positions(trajectories), mesh_edges),
        vertex_map=vertex_map,
        counts=counts,
        areas=areas,
        island_count=int(labels.max()) + 1,
        warnings=_warnings(sequence),
    )


def _warnings(sequence: MeshSequence) -> tuple[str, ...]:
    found = list(sequence.warnings)
    loose = sequence.vertex_count - len(np.unique(sequence.faces))
    if loose:
        found.append(f"{loose} vertices belong to no face; they follow what lies nearest to them.")
    return tuple(found)


def size(vertices) -> float:
    """How large the mesh (F,V,3) is: twice the largest distance from its mean vertex, the median over the frames.

    Unlike a bounding box it does not change when the character turns, and a few exploded frames do not matter.
    """
    radius = []
    for frame in vertices:
        frame = frame.astype(np.float64)
        radius.append(np.sqrt(_squared_distance(frame, frame.mean(axis=0)).max()))
    return 2 * float(np.median(radius))


def _squared_distance(a, b) -> np.ndarray:
    """Squared distances (V,) float64 between points (V,3), which may be float32."""
    difference = np.subtract(a, b, dtype=np.float64)
    return np.einsum("vi,vi->v", difference, difference)


# ---- weld


def weld(vertices, tolerance: float = WELD_TOLERANCE) -> np.ndarray:
    """Find vertices that stay together: a map (V,) int32 from each vertex of (F,V,3) to its welded vertex 0..N-1.

    Two vertices weld when they are at most `tolerance` times `size` apart in *every* frame, and so do all that are
    linked through such pairs. Welded vertices are numbered by their first original vertex.

    Trajectories are points in 3F dimensions. Projected orthogonally on a few random directions they can only come
    closer, so a search within the tolerance misses no pair; each pair found is then checked on all frames.
    """
    vertices = np.asarray(vertices)
    frames, count = vertices.shape[:2]
    limit = tolerance * size(vertices)
    radius = limit * np.sqrt(frames) * (1 + 1e-6)  # in 3F dimensions; the factor covers the projection's rounding
    points = _project(vertices)

    # Exact copies first: thousands in one place would crowd out every other neighbour.
    order = np.lexsort(points.T)
    copies = (points[order[1:]] == points[order[:-1]]).all(axis=1)
    pairs = np.stack([order[:-1][copies], order[1:][copies]], axis=1)
    labels = islands(count, pairs[_are_together(vertices, pairs, limit)])
    while True:
        kept = np.unique(labels, return_index=True)[1]  # the first vertex of each group so far
        pairs = _near(points[kept], radius)
        pairs = pairs[_are_together(vertices, kept[pairs], limit)]
        if len(pairs) == 0:
            return labels.astype(np.int32)
        labels = islands(len(kept), pairs)[labels]


def _project(vertices) -> np.ndarray:
    """Trajectories (F,V,3) seen along a few orthonormal random directions of their 3F dimensions: (V,K) float64.

    Element by element rather than by matrix product, so that equal trajectories give equal bits.
    """
    frames, count = vertices.shape[:2]
    directions = np.random.default_rng(0).standard_normal((3 * frames, min(PROJECTIONS, 3 * frames)))
    directions = np.linalg.qr(directions)[0].reshape(frames, 3, -1)
    projected = np.zeros((directions.shape[2], count))
    for frame, direction in zip(vertices, directions, strict=True):
        centred = frame.T.astype(np.float64) - frame.mean(axis=0, dtype=np.float64)[:, None]
        for axis in range(3):
            for k in range(len(projected)):
                projected[k] += centred[axis] * direction[axis, k]
    return projected.T


def _near(points, radius: float) -> np.ndarray:
    """Pairs (P,2) of points (N,K) within the radius, for each point its nearest few."""
    neighbours = min(WELD_NEIGHBOURS, len(points))
    near = cKDTree(points).query(points, k=neighbours, distance_upper_bound=radius)[1].reshape(len(points), neighbours)
    first, column = np.nonzero(near < len(points))  # the tree fills up with N where there are fewer
    pairs = np.sort(np.stack([first, near[first, column]], axis=1), axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0)


def _are_together(vertices, pairs, limit: float) -> np.ndarray:
    """Which vertex pairs (P,2) are within the limit in every frame of (F,V,3): (P,) bool."""
    left = np.arange(len(pairs))
    for frame in vertices:
        apart = _squared_distance(frame[pairs[left, 0]], frame[pairs[left, 1]])
        left = left[apart <= limit**2]
    together = np.zeros(len(pairs), bool)
    together[left] = True
    return together


def _welded(vertices, vertex_map) -> tuple[np.ndarray, np.ndarray]:
    """Mean trajectories (F,N,3) float32 of the welded vertices, and how many original ones each stands for (N,)."""
    counts = np.bincount(vertex_map).astype(np.int32)
    mean = csr_matrix(
        (1 / counts[vertex_map], (vertex_map, np.arange(len(vertex_map)))), shape=(len(counts), len(vertex_map))
    )
    trajectories = np.empty((len(vertices), len(counts), 3), dtype=np.float32)
    for frame, welded in zip(vertices, trajectories, strict=True):
        welded[:] = mean @ frame.astype(np.float64)
    return trajectories, counts


def weld_faces(faces, vertex_map) -> np.ndarray:
    """Faces (M,3) int32 on welded vertices, without degenerate ones and without repeats (whatever their winding)."""
    welded = np.asarray(vertex_map)[np.asarray(faces)]
    a, b, c = welded.T
    welded = welded[(a != b) & (b != c) & (c != a)]
    first = np.unique(np.sort(welded, axis=1), axis=0, return_index=True)[1]
    return np.ascontiguousarray(welded[np.sort(first)], dtype=np.int32)


# ---- graph


def edges(faces) -> np.ndarray:
    """Each edge of the triangles (M,3) once: (E,2) int32, smaller index first, sorted."""
    faces = np.asarray(faces, dtype=np.int64)
    pairs = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    return _unique_pairs(pairs[pairs[:, 0] < pairs[:, 1]])


def _unique_pairs(pairs) -> np.ndarray:
    """Sorted rows of (P,2), each once, as int32; one number per row sorts far faster than rows do."""
    pairs = np.asarray(pairs, dtype=np.int64).reshape(-1, 2)
    stride = int(pairs.max(initial=0)) + 1
    keys = np.unique(pairs[:, 0] * stride + pairs[:, 1])
    return np.stack([keys // stride, keys % stride], axis=1).astype(np.int32)


def islands(vertex_count: int, edges) -> np.ndarray:
    """Label (V,) int32 of the connected part each vertex is in; parts are numbered by their first vertex."""
    a, b = np.asarray(edges, dtype=np.int64).reshape(-1, 2).T
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(vertex_count, vertex_count))
    found = connected_components(graph, directed=False)[1]
    first, label = np.unique(found, return_index=True, return_inverse=True)[1:]
    rank = np.empty(len(first), dtype=np.int32)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[label.reshape(-1)]


def spread_positions(trajectories, count: int = BRIDGE_FRAMES) -> np.ndarray:
    """Positions (N,3K) in K frames spread over (F,N,3): their distance is the RMS distance over those frames."""
    chosen = np.unique(np.linspace(0, len(trajectories) - 1, count).round().astype(int))
    picked = np.asarray(trajectories)[chosen].astype(np.float64)
    return picked.transpose(1, 0, 2).reshape(picked.shape[1], -1) / np.sqrt(len(chosen))


def bridge(points, edges) -> np.ndarray:
    """Extra edges (K,2) int32 that join every island of the graph to its nearest neighbours, until it is one part.

    points (N,D): positions, or `spread_positions` so that islands that merely pass each other do not count as near.
    Each round links every island from its few vertices that are nearest to any other island; islands at least halve
    in number, so the rounds are few.
    """
    points = np.asarray(points, dtype=np.float64)
    labels = islands(len(points), edges)
    bridges = np.zeros((0, 2), dtype=np.int32)
    while labels.max() > 0:
        found = _nearest_links(points, labels)
        bridges = _unique_pairs(np.concatenate([bridges, found]))
        labels = islands(labels.max() + 1, labels[found])[labels]
    return bridges


def _nearest_links(points, labels) -> np.ndarray:
    """For every label, links (K,2) from its few points that are nearest to any other label to what they are near.

    Few points need a search, and far searches are what a k-d tree is slow at. A sample of each label is searched
    first: it gives a point elsewhere, so that nothing beyond it matters; and as the distance to elsewhere cannot
    change faster than one moves, points around a sample that is far from everything are far too.
    """
    count = labels.max() + 1
    rank = _rank_within(labels, np.random.default_rng(0).random(len(labels)))
    sample = np.flatnonzero(rank < BRIDGE_SAMPLE)
    distance = np.full(len(points), np.inf)
    target = np.zeros(len(points), dtype=np.int64)
    distance[sample], target[sample] = _nearest_elsewhere(points, labels, sample, np.full(len(sample), np.inf))

    nearest = np.flatnonzero(_rank_within(labels, distance) == 0)
    elsewhere = np.empty(count, dtype=np.int64)  # for every label a point of another
    elsewhere[labels[nearest]] = target[nearest]
    reach = np.linalg.norm(points - points[elsewhere[labels]], axis=1)
    limit = np.zeros(count)  # the label's links are at most this long
    inner = _rank_within(labels, reach) < BRIDGES_PER_ISLAND
    np.maximum.at(limit, labels[inner], reach[inner])

    at_least = np.zeros(len(points))
    for r in range(BRIDGE_SAMPLE):
        chosen = np.full(count, -1)
        chosen[labels[rank == r]] = np.flatnonzero(rank == r)
        from_sample = chosen[labels]
        known = distance[from_sample] - np.linalg.norm(points - points[from_sample], axis=1)
        np.maximum(at_least, known, out=at_least, where=from_sample >= 0)
    rest = np.flatnonzero((rank >= BRIDGE_SAMPLE) & (at_least <= limit[labels]))
    distance[rest], target[rest] = _nearest_elsewhere(points, labels, rest, limit[labels[rest]])
    source = np.flatnonzero((_rank_within(labels, distance) < BRIDGES_PER_ISLAND) & np.isfinite(distance))
    return np.sort(np.stack([source, target[source]], axis=1), axis=1)


def _rank_within(labels, value) -> np.ndarray:
    """Position (N,) of each point among those of its label, smallest value first, ties by index."""
    order = np.lexsort([value, labels])
    start = np.searchsorted(labels[order], np.arange(labels.max() + 1))
    rank = np.empty(len(labels), dtype=np.int64)
    rank[order] = np.arange(len(labels)) - start[labels[order]]
    return rank


def _nearest_elsewhere(points, labels, query, limit) -> tuple[np.ndarray, np.ndarray]:
    """Distance to and index of the nearest point with another label, for the points `query` (Q,): (Q,) and (Q,).

    Nothing beyond `limit` (Q,) has to be found; the distance is inf where nothing was. Two different labels differ in
    at least one binary digit: one search per digit, between the points that have it and those that do not, finds the
    nearest of all other labels, however many labels there are.
    """
    distance = np.full(len(query), np.inf)
    target = np.zeros(len(query), dtype=np.int64)
    # A tree takes one limit per search, so points with about the same limit search together.
    bound = np.exp2((np.floor(16 * np.log2(np.maximum(limit, np.finfo(np.float64).tiny))) + 1) / 16)
    for digit in range(int(labels.max()).bit_length()):
        has = (labels >> digit & 1).astype(bool)
        for side in (has, ~has):
            there = np.flatnonzero(~side)
            tree = cKDTree(points[there])
            for largest in np.unique(bound[side[query]]):
                here = np.flatnonzero(side[query] & (bound == largest))
                apart, index = tree.query(points[query[here]], distance_upper_bound=largest)
                closer = apart < distance[here]
                distance[here[closer]] = apart[closer]
                target[here[closer]] = there[index[closer]]
    return distance, target


# ---- areas, normals and points that ride on the triangles


def _face_cross(vertices, faces) -> np.ndarray:
    """Twice the area along the normal of each face, (…,M,3) float64."""
    vertices = np.asarray(vertices, dtype=np.float64)
    a, b, c = (vertices[..., corner, :] for corner in np.asarray(faces).T)
    (ax, ay, az), (bx, by, bz) = np.moveaxis(b - a, -1, 0), np.moveaxis(c - a, -1, 0)
    return np.stack([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx], axis=-1)  # np.cross is 3 times slower


def face_areas(vertices, faces) -> np.ndarray:
    """Areas (…,M) float64 of the triangles of vertices (…,V,3)."""
    return np.linalg.norm(_face_cross(vertices, faces), axis=-1) / 2


def surface_areas(vertices, faces) -> np.ndarray:
    """Total area (F,) float64 per frame of (F,V,3), one frame in memory at a time (SPRig: A(t), METHOD 1)."""
    return np.array([face_areas(frame, faces).sum() for frame in vertices])


def winding_numbers(points, vertices, faces) -> np.ndarray:
    """How often the surface winds around points (K,3): (K,), 1 inside of a closed one, 0 outside, between for holes.

    Solid angles of all triangles (van Oosterom & Strackee 1983), summed (Jacobson et al. 2013).
    """
    found = np.empty(len(points))
    corners = np.asarray(vertices, dtype=np.float64)[faces]
    for k, point in enumerate(np.asarray(points, dtype=np.float64)):
        a, b, c = (corners[:, i] - point for i in range(3))
        la, lb, lc = (np.linalg.norm(side, axis=1) for side in (a, b, c))
        volume = np.einsum("ij,ij->i", a, np.cross(b, c))
        spread = la * lb * lc + (a * b).sum(1) * lc + (b * c).sum(1) * la + (c * a).sum(1) * lb
        found[k] = np.arctan2(volume, spread).sum() / (2 * np.pi)
    return found


def vertex_normals(vertices, faces) -> np.ndarray:
    """Unit normals (…,V,3) float64, weighted by area; zero where a vertex has no face with an area."""
    vertices, faces = np.asarray(vertices), np.asarray(faces)
    count, corner = vertices.shape[-2], faces.reshape(-1)
    gather = csr_matrix((np.ones(len(corner)), (corner, np.arange(len(corner)) // 3)), shape=(count, len(faces)))
    normals = np.stack([gather @ _face_cross(frame, faces) for frame in vertices.reshape(-1, count, 3)])
    length = np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.divide(normals, length, out=np.zeros_like(normals), where=length > 0).reshape(vertices.shape)


def area_weighted_points(vertices, faces, count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random points on the surface of one frame (V,3), uniform by area: their face (N,) and barycentrics (N,3)."""
    generator = np.random.default_rng(seed)
    areas = face_areas(vertices, faces)
    face = generator.choice(len(areas), size=count, p=areas / areas.sum())
    root, along = np.sqrt(generator.random(count)), generator.random(count)  # uniform on a triangle (Osada et al. 2002)
    return face, np.stack([1 - root, root * (1 - along), root * along], axis=1)


def points_on(vertices, faces, face, barycentric) -> np.ndarray:
    """Positions (…,N,3) float64 of surface points in the frames (…,V,3): the same points tracked through the clip."""
    corners = np.asarray(vertices)[..., np.asarray(faces)[face], :]
    return np.einsum("...nci,nc->...ni", corners, np.asarray(barycentric, dtype=np.float64))
