"""Weld, islands, bridges, areas, normals and surface points."""

import tracemalloc

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from sprig.backend import surface
from sprig.backend.errors import SprigError
from sprig.backend.sequence import MeshSequence

TETRAHEDRON = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=np.float64)
TETRAHEDRON_FACES = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]])


def moving(points, frames=6, seed=0) -> np.ndarray:
    """Trajectories (F,V,3) in which every vertex goes its own way."""
    rng = np.random.default_rng(seed)
    start, step = np.asarray(points, float), rng.normal(0, 0.1, np.shape(points))
    return np.stack([start + np.sin(f + 1) * step for f in range(frames)])


def torn(frames=6, distinct=40, copies=30, jitter=1e-6, seed=0):
    """Trajectories (F,V,3) with copies that differ by a file's rounding, and which original each vertex is (V,)."""
    rng = np.random.default_rng(seed)
    source = np.concatenate([np.arange(distinct), rng.integers(0, distinct, copies)])
    vertices = moving(rng.uniform(-1, 1, (distinct, 3)), frames, seed)[:, source]
    return vertices + rng.uniform(-jitter, jitter, vertices.shape), source


def same_partition(a, b) -> bool:
    """Whether two labellings put the same things together."""
    return len(set(zip(a.tolist(), b.tolist(), strict=True))) == len(set(a.tolist())) == len(set(b.tolist()))


# ---- weld


def test_a_seam_is_closed_and_the_first_vertex_keeps_its_place():
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]], dtype=float)
    vertices = np.stack([square, square + [0, 0, 1], square * 2])
    vertex_map = surface.weld(vertices)
    assert vertex_map.tolist() == [0, 1, 2, 2, 3, 0]
    assert vertex_map.dtype == np.int32
    assert surface.weld_faces([[0, 1, 2], [3, 4, 5]], vertex_map).tolist() == [[0, 1, 2], [2, 3, 0]]


def test_near_copies_weld_wherever_a_rounding_grid_would_lie():
    """Pairs 1e-7 apart at 2,000 places: about 1 % would straddle a line of a grid as coarse as the tolerance."""
    points = np.random.default_rng(0).uniform(-1, 1, (2000, 3))
    vertices = moving(np.concatenate([points, points + 1e-7]), frames=3)
    vertices[:, 2000:] = vertices[:, :2000] + 1e-7
    assert same_partition(surface.weld(vertices), np.tile(np.arange(2000), 2))


@pytest.mark.parametrize("apart_in", range(7))
def test_vertices_that_part_in_a_single_frame_stay_two(apart_in):
    vertices = moving(TETRAHEDRON[[0, 1, 2, 3, 3]], frames=7)
    vertices[:, 4] = vertices[:, 3]
    assert surface.weld(vertices).max() == 3
    vertices[apart_in, 4, 0] += 1e-3
    assert surface.weld(vertices).max() == 4


def test_coarse_coordinates_do_not_collapse_a_mesh():
    """Coordinates of 8 bits, as MD2 stores them: 3,000 vertices share places by chance in most frames, never in all."""
    rng = np.random.default_rng(1)
    start, swing = rng.uniform(-1, 1, (2, 3000, 3))
    vertices = np.stack([np.round((start + np.sin(f) * swing) * 20) / 20 for f in range(12)])
    assert len(np.unique(vertices[0], axis=0)) < 3000
    trajectories = np.unique(vertices.transpose(1, 0, 2).reshape(3000, -1), axis=0)
    assert surface.weld(vertices).max() + 1 == len(trajectories)


def test_thousands_of_vertices_in_one_place_become_one():
    vertices = np.concatenate([moving(TETRAHEDRON), np.repeat(moving([[0.3, 0.3, 0.3]], seed=1), 5000, axis=1)], axis=1)
    assert surface.weld(vertices).tolist() == [0, 1, 2, 3] + [4] * 5000


def test_a_crowd_of_near_copies_larger_than_one_search_becomes_one():
    crowd = 8 * surface.WELD_NEIGHBOURS
    vertices = np.concatenate(
        [moving(TETRAHEDRON), np.repeat(moving([[0.3, 0.3, 0.3]], seed=1), crowd, axis=1)], axis=1
    )
    vertices += np.random.default_rng(0).uniform(-1e-6, 1e-6, vertices.shape)
    assert surface.weld(vertices).tolist() == [0, 1, 2, 3] + [4] * crowd


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-4, 1e4))
def test_weld_does_not_depend_on_order_scale_or_pose(seed, scale):
    rng = np.random.default_rng(seed)
    vertices, source = torn(seed=seed)
    assert same_partition(surface.weld(vertices), source)
    rotation = Rotation.random(len(vertices), random_state=seed).as_matrix()
    moved = scale * (np.einsum("fij,fvj->fvi", rotation, vertices) + rng.normal(size=(len(vertices), 1, 3)))
    order = rng.permutation(len(source))
    assert same_partition(surface.weld(moved[:, order].astype(np.float32)), source[order])


def test_real_seams_close_and_nothing_that_moves_differently_welds(shared):
    clips = sorted((shared / "data" / "sequences").glob("*.npz"))
    assert len(clips) == 44
    for path in clips:
        with np.load(path) as clip:
            vertices, seams = clip["vertices"], clip["weld_index"]
        vertex_map = surface.weld(vertices)
        assert (vertex_map == vertex_map[seams]).all(), path.name
        first = np.unique(vertex_map, return_index=True)[1][vertex_map]
        apart = max(np.linalg.norm(frame - frame[first], axis=1).max() for frame in vertices)
        # a chain of two links at most has formed in these clips
        assert apart <= 2 * surface.WELD_TOLERANCE * surface.size(vertices), path.name


def test_weld_needs_no_more_memory_for_more_frames():
    peaks = []
    for frames in (20, 160):
        vertices = torn(frames, distinct=4000, copies=2000)[0].astype(np.float32)
        tracemalloc.start()
        surface.weld(vertices)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_weld_faces_drops_degenerate_and_repeated_faces():
    faces = [[0, 1, 2], [3, 1, 2], [2, 1, 0], [0, 3, 1], [4, 5, 6]]
    vertex_map = np.array([0, 1, 2, 0, 3, 4, 5])
    assert surface.weld_faces(faces, vertex_map).tolist() == [[0, 1, 2], [3, 4, 5]]


# ---- graph


def test_edges_and_islands_of_a_small_mesh():
    found = surface.edges([[2, 1, 0], [1, 2, 3], [6, 5, 4]])
    assert found.tolist() == [[0, 1], [0, 2], [1, 2], [1, 3], [2, 3], [4, 5], [4, 6], [5, 6]]
    assert surface.islands(8, found).tolist() == [0, 0, 0, 0, 1, 1, 1, 2]
    assert surface.islands(3, np.zeros((0, 2), int)).tolist() == [0, 1, 2]
    assert surface.islands(4, [[3, 1]]).tolist() == [0, 1, 2, 1]


def test_a_connected_mesh_needs_no_bridge():
    assert surface.bridge(TETRAHEDRON, surface.edges(TETRAHEDRON_FACES)).shape == (0, 2)


def test_islands_in_a_row_are_joined_to_their_neighbours():
    row = np.array([[0, 0, 0], [1, 0, 0], [1.5, 0, 0], [2.5, 0, 0], [4, 0, 0]])  # two edges and a loose vertex
    bridges = surface.bridge(row, [[0, 1], [2, 3]])
    assert [1, 2] in bridges.tolist() and [3, 4] in bridges.tolist() and [0, 4] not in bridges.tolist()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), parts=st.integers(2, 40), largest=st.integers(1, 150))
def test_bridges_connect_everything_over_the_shortest_gaps(seed, parts, largest):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(parts), rng.integers(1, largest + 1, parts))
    points = rng.normal(size=(parts, 3))[labels] * 2 + rng.normal(size=(len(labels), 3)) * 0.5
    chains = np.array([[v, v + 1] for v in range(len(labels) - 1) if labels[v] == labels[v + 1]], int).reshape(-1, 2)
    bridges = surface.bridge(points, chains)
    assert surface.islands(len(points), np.concatenate([chains, bridges])).max() == 0
    length = np.linalg.norm(points[bridges[:, 0]] - points[bridges[:, 1]], axis=1)
    for part in range(parts):
        inside = labels == part
        nearest = cdist(points[inside], points[~inside]).min()
        touching = inside[bridges].any(axis=1) & ~inside[bridges].all(axis=1)
        assert length[touching].min() == pytest.approx(nearest)

    order = rng.permutation(len(points))  # order[new] = old
    rank = np.argsort(order)
    shuffled = order[surface.bridge(points[order], rank[chains])]
    assert {frozenset(pair) for pair in shuffled.tolist()} == {frozenset(pair) for pair in bridges.tolist()}


def test_an_island_that_passes_by_is_not_joined_to_what_it_passes():
    """A sword stays in the hand and passes the leg closely in one frame."""
    hand, leg, sword = np.zeros((7, 3)), np.tile([1.0, 0, 0], (7, 1)), np.tile([-0.3, 0, 0], (7, 1))
    sword[4] = [0.9, 0, 0]
    trajectories = np.stack([hand, leg, sword], axis=1)
    nothing = np.zeros((0, 2), dtype=int)
    assert surface.bridge(trajectories[4], nothing).tolist() == [[0, 2], [1, 2]]
    assert surface.bridge(surface.spread_positions(trajectories), nothing).tolist() == [[0, 1], [0, 2]]


def test_spread_positions_measure_the_rms_distance():
    trajectories = np.zeros((4, 2, 3))
    trajectories[:, 1, 0] = [1, 2, 3, 4]
    a, b = surface.spread_positions(trajectories, count=4)
    assert np.linalg.norm(a - b) == pytest.approx(np.sqrt(30 / 4))


# ---- areas, normals, points


def test_areas_by_hand():
    faces = [[0, 1, 2], [1, 2, 3]]
    assert surface.face_areas(TETRAHEDRON, faces) == pytest.approx([0.5, np.sqrt(3) / 2])
    frames = np.stack([TETRAHEDRON, 2 * TETRAHEDRON])
    assert surface.face_areas(frames, faces).shape == (2, 2)
    assert surface.surface_areas(frames, faces) == pytest.approx((0.5 + np.sqrt(3) / 2) * np.array([1, 4]))


def test_areas_and_normals_of_a_sphere():
    sphere = trimesh.creation.icosphere(subdivisions=3)
    assert surface.surface_areas(sphere.vertices[None], sphere.faces)[0] == pytest.approx(sphere.area)
    normals = surface.vertex_normals(np.stack([sphere.vertices, 3 * sphere.vertices]), sphere.faces)
    # radians: a tenth of the angle of 9 degrees that an edge spans, since the triangles around a vertex nearly balance
    assert np.abs(normals - sphere.vertices).max() < 0.016


def test_a_loose_vertex_has_no_normal():
    normals = surface.vertex_normals(TETRAHEDRON, np.array([[0, 1, 2]]))
    assert normals.tolist() == [[0, 0, 1]] * 3 + [[0, 0, 0]]


def test_points_are_spread_by_area_and_ride_on_their_triangles():
    vertices = np.array([[0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 2]], dtype=float)  # areas 3 and 2, in two planes
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    face, barycentric = surface.area_weighted_points(vertices, faces, 20000, seed=3)
    assert barycentric.min() >= 0 and barycentric.sum(axis=1) == pytest.approx(1)
    assert (face == 0).mean() == pytest.approx(0.6, abs=4 * np.sqrt(0.24 / 20000))  # four standard deviations
    points = surface.points_on(vertices, faces, face, barycentric)
    # uniform on the first triangle: the mean is its centroid, within four standard errors of the widest coordinate
    assert points[face == 0].mean(axis=0) == pytest.approx([1, 2 / 3, 0], abs=4 * 0.71 / np.sqrt(12000))
    turn = Rotation.from_rotvec([0.3, -0.2, 1.0]).as_matrix()
    frames = np.stack([vertices, vertices @ turn.T + 5])
    tracked = surface.points_on(frames, faces, face, barycentric)
    assert tracked.shape == (2, 20000, 3)
    assert tracked[1] == pytest.approx(points @ turn.T + 5)
    again = surface.area_weighted_points(vertices, faces, 20000, seed=3)
    assert np.array_equal(face, again[0]) and np.array_equal(barycentric, again[1])


# ---- prepare


def two_tetrahedra(frames=5):
    """A torn tetrahedron that moves rigidly, another that stands still, a loose vertex that moves: (MeshSequence)."""
    rest = np.concatenate([TETRAHEDRON, TETRAHEDRON[[1]], TETRAHEDRON + [3, 0, 0], [[0.5, 0.5, 2]]])
    vertices = np.tile(rest, (frames, 1, 1))
    for f in range(frames):
        turn = Rotation.from_rotvec([0, 0, 0.1 * f]).as_matrix()
        vertices[f, :5] = rest[:5] @ turn.T
        vertices[f, 9] += [0, 0, 0.1 * f]
    faces = np.concatenate([TETRAHEDRON_FACES[:3], [[0, 3, 2], [4, 0, 2]], TETRAHEDRON_FACES + 5])
    return MeshSequence.from_world(vertices, faces, object_id=np.repeat([0, 1], 5), object_names=("a", "b"))


def test_prepare_connects_a_mesh_in_parts():
    sequence = two_tetrahedra()
    prepared = surface.prepare(sequence)
    assert prepared.vertex_map.tolist() == [0, 1, 2, 3, 1, 4, 5, 6, 7, 8]
    assert prepared.counts.tolist() == [1, 2, 1, 1, 1, 1, 1, 1, 1]
    assert len(prepared.faces) == 8  # the torn copy of a face is gone
    assert prepared.island_count == 3
    assert surface.islands(9, np.concatenate([prepared.edges, prepared.bridges])).max() == 0
    assert prepared.trajectories.dtype == np.float32 and prepared.trajectories.flags["C_CONTIGUOUS"]
    assert prepared.trajectories[:, prepared.vertex_map] == pytest.approx(sequence.vertices, abs=1e-6)
    assert prepared.areas.shape == (5,)
    assert "1 vertices belong to no face" in prepared.warnings[0]


def test_welded_trajectories_are_the_mean_of_what_they_weld():
    sequence = two_tetrahedra()
    apart = sequence.vertices.copy()
    apart[:, 4, 0] += 4e-6
    prepared = surface.prepare(MeshSequence(apart, sequence.faces))
    expected = (apart[:, 1].astype(float) + apart[:, 4]) / 2
    assert prepared.trajectories[:, 1] == pytest.approx(expected, abs=1e-7)


def test_objects_that_touch_in_every_frame_weld():
    sequence = two_tetrahedra()
    vertices = sequence.vertices.copy()
    vertices[:, 5] = vertices[:, 3]
    prepared = surface.prepare(MeshSequence(vertices, sequence.faces, object_id=sequence.object_id, object_names="ab"))
    assert prepared.vertex_map[5] == prepared.vertex_map[3]


def rigid(turn=0.0, shift=0.0, frames=3, scale=1.0):
    frames = [
        scale * (TETRAHEDRON @ Rotation.from_rotvec([0, 0, turn * f]).as_matrix().T + [shift * f, 0, 0])
        for f in range(frames)
    ]
    return MeshSequence.from_world(np.stack(frames), TETRAHEDRON_FACES)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
@pytest.mark.parametrize("motion", [{"turn": 0.01}, {"shift": 0.01}])
def test_a_rigid_motion_counts_as_motion(motion, scale):
    assert len(surface.prepare(rigid(**motion, scale=scale)).counts) == 4


@pytest.mark.parametrize("motion", [{}, {"frames": 1}, {"shift": 1e-6}])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_still_sequence_is_refused_with_a_hint(motion, scale):
    with pytest.raises(SprigError, match=r"Nothing moves.*--skeleton learned"):
        surface.prepare(rigid(**motion, scale=scale))


@pytest.mark.parametrize("shape", [[0, 0, 0], [1, 0, 0]])
def test_a_surface_without_area_is_refused(shape):
    vertices = moving(TETRAHEDRON) * shape
    with pytest.raises(SprigError, match="zero area"):
        surface.prepare(MeshSequence(vertices, TETRAHEDRON_FACES))
