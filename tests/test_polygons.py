"""Triangulation: by hand, and that what is cut off a polygon adds up to the polygon."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sprig.backend.errors import SprigError
from sprig.backend.formats import polygons
from sprig.backend.formats.polygons import triangulate


def area_vectors(points, triangles):
    """Normals of the triangles, as long as their areas: (M,3)."""
    a, b, c = np.moveaxis(np.asarray(points, float)[triangles], 1, 0)
    return np.cross(b - a, c - a) / 2


def polygon_area_vector(points):
    return np.cross(points, np.roll(points, -1, axis=0)).sum(axis=0) / 2


def as_set(triangles):
    """Triangles without regard to which corner is written first; the winding counts."""
    return {tuple(np.roll(t, -t.argmin()).tolist()) for t in np.asarray(triangles)}


def flat(*corners):
    return np.array([[x, y, 0.0] for x, y in corners])


def test_triangles_are_kept_as_they_are():
    assert triangulate([3, 3], [0, 1, 2, 2, 1, 3], np.eye(4, 3)).tolist() == [[0, 1, 2], [2, 1, 3]]


def test_a_quad_is_cut_along_its_shorter_diagonal():
    kite = flat((0, 0), (1, -1), (5, 0), (1, 1))  # 0-2 is 5 long, 1-3 is 2 long
    assert as_set(triangulate([4], [0, 1, 2, 3], kite)) == {(0, 1, 3), (1, 2, 3)}


def test_a_concave_quad_is_cut_inside_even_if_the_cut_is_longer():
    arrow = flat((0, 0), (4, 1), (1, 0), (4, -1))[::-1]  # the dent is at (1, 0); the outer diagonal is 2 long
    triangles = triangulate([4], [0, 1, 2, 3], arrow)
    vectors = area_vectors(arrow, triangles)
    assert (vectors[:, 2] > 0).all() or (vectors[:, 2] < 0).all()
    assert np.allclose(vectors.sum(axis=0), polygon_area_vector(arrow))


def test_polygons_keep_their_order_and_the_rest_is_dropped():
    points = np.vstack([flat((0, 0), (1, 0), (1, 1), (0, 1), (-1, 0.5)), [[9, 9, 9]]])
    pentagon, line, point, repeated = [0, 1, 2, 3, 4], [0, 1], [5], [0, 0, 1]
    triangles = triangulate([3, 5, 2, 1, 3, 4], [0, 1, 2, *pentagon, *line, *point, *repeated, 0, 1, 2, 3], points)
    assert triangles.dtype == np.int32
    assert triangles[0].tolist() == [0, 1, 2]
    assert 4 in triangles[1:4] and 4 not in triangles[4:] and len(triangles) == 1 + 3 + 2


def test_a_quad_with_a_repeated_corner_is_a_triangle():
    assert as_set(triangulate([4], [0, 1, 2, 2], np.eye(3))) == {(0, 1, 2)}


@settings(max_examples=60, deadline=None)
@given(st.integers(5, 30), st.integers(0, 2**32 - 1))
def test_any_star_shaped_polygon_is_covered_once(corners, seed):
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    # seen from the centre every corner is visible as long as no gap between neighbours reaches half a turn
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False) + 0.3 * (angles - angles.mean()) / corners
    radii = rng.uniform(0.05, 1, corners)
    points = np.stack([radii * np.cos(angles), radii * np.sin(angles), np.zeros(corners)], axis=1)
    points = Rotation.random(random_state=int(rng.integers(2**31))).apply(points) * 10.0 ** rng.integers(-4, 5) + 100
    triangles = triangulate([corners], np.arange(corners), points)
    assert len(triangles) == corners - 2
    whole = polygon_area_vector(points - points.mean(axis=0))
    size = np.linalg.norm(whole)
    along = area_vectors(points - points.mean(axis=0), triangles) @ whole / size
    assert along.min() > -1e-9 * size  # none lies the other way round, so none lies outside or on another
    assert np.isclose(along.sum(), size)


def test_corners_on_a_straight_edge_do_not_confuse_the_cut():
    points = flat((0, 0), (1, 0), (2, 0), (2, 2), (1, 2), (0, 2))
    triangles = triangulate([6], range(6), points)
    areas = area_vectors(points, triangles)[:, 2]
    assert np.isclose(areas.sum(), 4) and areas.min() > 0.1


@pytest.mark.parametrize(
    "points",
    [
        flat((0, 0), (1, 1), (0, 1), (1, 0), (0.5, 2)),  # crosses itself
        flat(*[(k, 0) for k in range(7)]),  # all on one line
        np.zeros((6, 3)),  # all in one place
        np.full((6, 3), np.nan),
        np.full((5, 3), 1e300),
    ],
)
def test_polygons_without_a_clean_cut_are_cut_anyway(points):
    corners = len(points)
    triangles = triangulate([corners], range(corners), points)
    assert len(triangles) == corners - 2
    assert set(triangles.ravel().tolist()) == set(range(corners))


def test_polygons_with_a_hole_cut_in_through_a_slit():
    outer = [(0, 0), (4, 0), (4, 4), (0, 4)]
    inner = [(1, 1), (1, 3), (3, 3), (3, 1)]
    points = flat(*outer, *inner)
    ring = [0, 1, 2, 3, 0, 4, 5, 6, 7, 4]  # around, in along the slit 0-4, around the hole, back out
    triangles = triangulate([len(ring)], ring, points)
    areas = area_vectors(points, triangles)[:, 2]
    assert np.isclose(areas.sum(), 12) and areas.min() > -1e-12


def test_a_huge_polygon_becomes_a_fan(monkeypatch):
    monkeypatch.setattr(polygons, "CUT_BUDGET", 100)
    corners = 11
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    points = flat(*zip(np.cos(angles), np.sin(angles), strict=True))
    triangles = triangulate([corners], range(corners), points)
    assert (triangles[:, 0] == 0).all() and len(triangles) == corners - 2


def test_batches_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(200, 3))
    counts = rng.integers(3, 8, 120)
    indices = np.concatenate([rng.permutation(200)[:count] for count in counts])
    at_once = triangulate(counts, indices, points)
    monkeypatch.setattr(polygons, "BATCH_CORNERS", 16)
    assert np.array_equal(triangulate(counts, indices, points), at_once)


@pytest.mark.parametrize(
    ("counts", "indices", "message"),
    [
        ([3], [0, 1], "need 3 corners and have 2"),
        ([-1, 4], [0, 1, 2], "corners"),
        ([3], [0, 1, 3], "from 0 to 3"),
        ([3], [0, 1, -1], "from -1 to 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(counts, indices, message):
    with pytest.raises(SprigError, match=message):
        triangulate(counts, indices, np.eye(3))
