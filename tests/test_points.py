"""The unit cube and the surface points that the networks see."""

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sprig.backend import surface
from sprig.backend.errors import SprigError
from sprig.backend.points import SurfacePoints, UnitCube, sample_surface

from .creatures import chain, tube

SQUARE = np.array([[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]], dtype=np.float32)
SQUARE_FACES = np.array([[0, 1, 2], [0, 2, 3]])


def test_cube_by_hand():
    cube = UnitCube.of([[0, 0, 0], [4, 2, 1], [1, 1, 1]])
    np.testing.assert_allclose(cube.centre, [2, 1, 0.5])
    assert cube.scale == 4
    np.testing.assert_allclose(cube.to_cube([4, 2, 1]), [0.5, 0.25, 0.125])
    moved = cube.centred_on([[10, 0, 0], [12, 1, 1]])
    assert moved.scale == 4
    np.testing.assert_allclose(moved.to_cube([[11, 0.5, 0.5], [13, 0.5, 0.5]]), [[0, 0, 0], [0.5, 0, 0]])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.floats(-6, 6), st.floats(-1e3, 1e3))
def test_cube_holds_the_mesh_and_leads_back(seed, exponent, offset):
    vertices = np.random.default_rng(seed).normal(size=(20, 3)) * 10**exponent + offset * 10**exponent
    cube = UnitCube.of(vertices)
    inside = cube.to_cube(vertices)
    assert inside.dtype == np.float32
    np.testing.assert_allclose(np.ptp(inside, axis=0).max(), 1, rtol=1e-6)
    np.testing.assert_allclose(inside.max(axis=0), -inside.min(axis=0), atol=1e-6)
    np.testing.assert_allclose(cube.from_cube(inside), vertices, atol=1e-6 * cube.scale)


@pytest.mark.parametrize("vertices", [np.zeros((0, 3)), np.ones((5, 3)), np.full((4, 3), np.nan), np.zeros((4, 2))])
def test_no_cube_is_one_sentence(vertices):
    with pytest.raises(SprigError, match=r"; [^.]*\.$"):
        UnitCube.of(vertices)


def test_points_are_uniform_by_area_and_the_same_for_a_seed():
    vertices, faces = tube()
    sampled = sample_surface(vertices, faces, 20000, seed=1)
    areas = surface.face_areas(vertices, faces)
    expected = 20000 * areas / areas.sum()
    found = np.bincount(sampled.face, minlength=len(faces))
    assert ((found - expected) ** 2 / expected).sum() < len(faces) + 5 * np.sqrt(2 * len(faces))  # chi squared
    assert (sampled.barycentric >= 0).all()
    np.testing.assert_allclose(sampled.barycentric.sum(axis=1), 1)
    again = sample_surface(vertices, faces, 20000, seed=1)
    np.testing.assert_array_equal(sampled.barycentric, again.barycentric)
    assert (sample_surface(vertices, faces, 20000, seed=2).face != sampled.face).any()


def test_points_lie_on_their_triangles_with_the_normals_trimesh_gives():
    vertices, faces = tube()
    sampled = sample_surface(vertices, faces, 500)
    points = sampled.at(vertices, faces)
    assert points.shape == (500, 6) and points.dtype == np.float32
    mesh = trimesh.Trimesh(vertices, faces, process=False)
    np.testing.assert_allclose(points[:, 3:], mesh.face_normals[sampled.face], atol=1e-6)
    corners = trimesh.triangles.points_to_barycentric(mesh.triangles[sampled.face], points[:, :3])
    np.testing.assert_allclose(corners, sampled.barycentric, atol=1e-4)


def test_nearest_corner_by_hand():
    sampled = SurfacePoints(np.array([0, 1, 1]), np.array([[0.1, 0.7, 0.2], [0.6, 0.1, 0.3], [0, 0.1, 0.9]]))
    assert sampled.nearest_corner(SQUARE_FACES).tolist() == [1, 0, 3]


def test_points_follow_a_rigid_motion():
    sequence = chain(frames=3)[0]
    anchor, faces = sequence.vertices[0].astype(np.float64), sequence.faces
    turn = Rotation.from_rotvec([0.3, -0.5, 0.8])
    sampled = sample_surface(anchor, faces, 300)
    points, moved = sampled.at(anchor, faces), sampled.at(turn.apply(anchor) + [1, 2, 3], faces)
    np.testing.assert_allclose(moved[:, :3], turn.apply(points[:, :3]) + [1, 2, 3], atol=1e-5)
    np.testing.assert_allclose(moved[:, 3:], turn.apply(points[:, 3:]), atol=1e-5)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1e-30, 1e-3, 1.0, 1e6]))
def test_normals_are_unit_whatever_collapses(seed, scale):
    """Triangles that are a line or a point in some frame, and slivers, at any size of the mesh."""
    rng = np.random.default_rng(seed)
    vertices = rng.integers(-1, 2, (12, 3)).astype(np.float32) * np.float32(scale)
    faces = rng.integers(0, 12, (20, 3))
    point = SurfacePoints(np.arange(20), rng.dirichlet(np.ones(3), 20)).at(vertices, faces)
    np.testing.assert_allclose(np.linalg.norm(point[:, 3:], axis=1), 1, atol=1e-5)


def test_a_collapsed_triangle_faces_as_its_corners_do():
    vertices = np.vstack([SQUARE, [[1, 1, 0]]])
    faces = np.vstack([SQUARE_FACES, [[0, 4, 2]]])  # the last lies in the diagonal
    points = SurfacePoints(np.array([0, 2]), np.array([[0.2, 0.3, 0.5], [0.5, 0.0, 0.5]])).at(vertices, faces)
    np.testing.assert_allclose(points, [[1.6, 1, 0, 0, 0, 1], [1, 1, 0, 0, 0, 1]], atol=1e-6)


@pytest.mark.parametrize(
    ("vertices", "faces", "count"),
    [
        (SQUARE, SQUARE_FACES, 0),
        (SQUARE, np.zeros((0, 3), int), 10),
        (SQUARE * [1, 0, 0], SQUARE_FACES, 10),
        (SQUARE * np.nan, SQUARE_FACES, 10),
    ],
)
def test_no_points_is_one_sentence(vertices, faces, count):
    with pytest.raises(SprigError, match=r"; [^.]*\.$"):
        sample_surface(vertices, faces, count)


def test_values_at_the_vertices_are_blended_at_the_points():
    points = SurfacePoints(np.array([0, 1]), np.array([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0]]))
    values = np.array([[0, 1], [10, 2], [20, 3], [30, 4]], dtype=np.float32)
    blended = points.blend(values, SQUARE_FACES)
    assert blended.dtype == np.float32
    np.testing.assert_allclose(blended, [[13, 2.3], [20, 3]], rtol=1e-6)
