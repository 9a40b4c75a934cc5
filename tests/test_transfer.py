"""Weights at surface points carried to the vertices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from sprig.backend import surface
from sprig.backend.points import sample_surface
from sprig.backend.skinning.transfer import largest, points_to_vertices

from .creatures import tube


def grid(rows, columns):
    """Triangles (M,3) of a grid of vertices numbered row by row."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).reshape(-1, 1)
    return np.concatenate([corner + [0, columns, 1], corner + [1, columns, columns + 1]])


def hairpin(gap=0.02, radius=0.1, length=1.0, along=120, around=16):
    """Two round fingers side by side, `gap` apart, and the bend that joins them: vertices, faces, finger -1, 0 or 1."""
    turn = np.pi * (radius + gap / 2)
    way = np.linspace(0, 2 * length + turn, along)
    angle = np.clip((way - length) / turn, 0, 1) * np.pi
    middle = np.stack([np.minimum(way, 2 * length + turn - way).clip(max=length), 0 * way, 0 * way], axis=1)
    middle += (radius + gap / 2) * np.stack([np.sin(angle), -np.cos(angle), 0 * angle], axis=1)
    outward = np.stack([np.sin(angle), -np.cos(angle), 0 * angle], axis=1)
    turned = np.linspace(0, 2 * np.pi, around + 1)
    ring = np.cos(turned)[:, None] * outward[:, None] + np.sin(turned)[:, None] * np.array([0, 0, 1.0])
    vertices = (middle[:, None] + radius * ring).reshape(-1, 3)
    # the last of a ring is its first: fold the seam
    number = np.arange(along)[:, None] * around + np.arange(around + 1) % around
    faces = number.reshape(-1)[grid(along, around + 1)]
    finger = np.where(way < length, 0, np.where(way > length + turn, 1, -1))
    return vertices.reshape(along, around + 1, 3)[:, :-1].reshape(-1, 3), faces, np.repeat(finger, around)


def folded_sheet(gap=0.02, along=40, across=20):
    """A strip folded twice into three layers, `gap` apart; the first and the third face the same way."""
    way = np.linspace(0, 3, 3 * along)
    layer = np.minimum(way.astype(int), 2)
    x = np.where(layer % 2 == 0, way - layer, 1 - (way - layer))
    vertices = np.stack(np.broadcast_arrays(x[:, None], np.linspace(0, 1, across), gap * layer[:, None]), axis=-1)
    return vertices.reshape(-1, 3), grid(3 * along, across), np.repeat(layer, across)


def carry(vertices, faces, count, field, seed=0, neighbours=8, influences=4, exact=True, walk=True):
    """Transfer field(face positions, nearest vertex) sampled at `count` points; returns vertices' weights (V,J)."""
    edges = surface.edges(faces)
    island = surface.islands(len(vertices), edges)
    sampled = sample_surface(vertices, faces, count, seed)
    points, corner = sampled.at(vertices, faces), sampled.nearest_corner(faces)
    normals = surface.vertex_normals(vertices, faces)
    mesh, options = (vertices, normals, island, edges if walk else None), (influences, neighbours)
    return points_to_vertices(
        field(points, corner), points, island[corner], *mesh, *options, point_vertex=corner if exact else None
    )


def one_hot(label, count):
    return np.eye(count, dtype=np.float32)[np.asarray(label, dtype=int)]


def test_constant_weights_stay_constant():
    row = np.array([0.5, 0.25, 0.125, 0.125], dtype=np.float32)
    weights = carry(*tube(), 200, lambda points, corner: np.tile(row, (len(points), 1)))
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, np.tile(row, (len(weights), 1)), atol=1e-6)


@pytest.mark.parametrize(("count", "tolerance"), [(500, 0.02), (4000, 0.008)])
def test_a_smooth_function_of_the_position_is_reproduced(count, tolerance):
    """The mean error is well below the change over one spacing of the points, and shrinks with it."""
    vertices, faces = tube(rings=61, around=16)

    def field(x):
        rise = 0.5 + 0.5 * np.sin(3 * x)
        return np.stack([rise, 1 - rise], axis=1).astype(np.float32)

    weights = carry(vertices, faces, count, lambda points, corner: field(points[:, 0]))
    error = np.abs(weights - field(vertices[:, 0]))
    assert error.mean() < tolerance and error.max() < 8 * tolerance


def plain_nearest(vertices, faces, count):
    """For each vertex the vertex nearest to its nearest point: what a transfer without any tests would copy."""
    sampled = sample_surface(vertices, faces, count)
    nearest = cKDTree(sampled.at(vertices, faces)[:, :3]).query(vertices)[1]
    return sampled.nearest_corner(faces)[nearest]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("count", [300, 3000])
def test_fingers_that_nearly_touch_do_not_bleed(count, exact):
    vertices, faces, finger = hairpin(gap=0.01)
    arm = (finger >= 0) & (vertices[:, 0] < 0.7)  # farther from the bend than points are apart
    weights = carry(vertices, faces, count, lambda points, corner: one_hot((finger == 1)[corner], 2), exact=exact)
    np.testing.assert_array_equal(weights[arm], one_hot(finger[arm], 2))
    assert (finger[plain_nearest(vertices, faces, count)] != finger)[arm].sum() > 10


@pytest.mark.parametrize("count", [600, 6000])
def test_layers_of_a_folded_sheet_do_not_bleed(count):
    """The neighbouring layer faces the other way, the one after it does not and is still nearer than most points."""
    vertices, faces, layer = folded_sheet(gap=0.01)
    flat = np.abs(vertices[:, 0] - 0.5) < 0.25
    weights = carry(vertices, faces, count, lambda points, corner: one_hot(layer[corner], 3))
    np.testing.assert_array_equal(weights[flat], one_hot(layer[flat], 3))
    assert (layer[plain_nearest(vertices, faces, count)] != layer)[flat].mean() > 0.2
    weights = carry(vertices, faces, count, lambda points, corner: one_hot(layer[corner], 3), walk=False)
    assert (weights[flat, layer[flat]] < 0.9).mean() > 0.1  # normals alone do not do it


def test_islands_keep_to_themselves_and_one_without_points_takes_the_nearest():
    first, faces = tube()
    vertices = np.concatenate([first, first + [0, 0.001, 0], first[:40] + [0, 5, 0]])  # two tubes within each other
    edges = surface.edges(np.concatenate([faces, faces + len(first)]))
    island = np.repeat([0, 1, 2], [len(first), len(first), 40])
    sampled = sample_surface(vertices, np.concatenate([faces, faces + len(first)]), 400)
    face = np.concatenate([faces, faces + len(first)])
    points, point_island = sampled.at(vertices, face), island[sampled.nearest_corner(face)]
    for links in (edges, None):
        weights = points_to_vertices(
            one_hot(point_island, 2), points, point_island, vertices, np.zeros_like(vertices), island, links
        )
        np.testing.assert_array_equal(weights[:-40], one_hot(island[:-40], 2))
        np.testing.assert_allclose(weights[-40:].sum(axis=1), 1, atol=1e-6)
    lonely = points_to_vertices(
        one_hot((points[:, 0] > 1).astype(int), 2), points, point_island, vertices, 0 * vertices, island, edges
    )
    np.testing.assert_array_equal(lonely[-40:], one_hot(np.zeros(40, int), 2))  # the nearest lie at small x


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.integers(1, 12),
    st.integers(1, 5),
    st.integers(1, 9),
    st.sampled_from([True, False]),
)
def test_rows_lie_on_the_simplex_with_few_influences(seed, count, joints, influences, neighbours, walk):
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(30, 3))
    edges = np.sort(rng.integers(0, 30, (25, 2)), axis=1)
    edges = np.unique(edges[edges[:, 0] < edges[:, 1]], axis=0)
    island = surface.islands(30, edges)
    normals = surface.vertex_normals(vertices, rng.integers(0, 30, (12, 3)))
    direction = rng.normal(size=(count, 3))
    points = np.hstack([rng.normal(size=(count, 3)), direction / np.linalg.norm(direction, axis=1, keepdims=True)])
    point_weights = rng.dirichlet(np.full(joints, 0.3), count)
    arguments = (point_weights, points, rng.integers(0, island.max() + 1, count), vertices, normals, island)
    weights = points_to_vertices(*arguments, edges if walk else None, influences, neighbours)
    assert weights.shape == (30, joints) and weights.dtype == np.float32
    assert (weights >= 0).all() and ((weights > 0).sum(axis=1) <= influences).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(
        weights, points_to_vertices(*arguments, edges if walk else None, influences, neighbours)
    )


def test_one_neighbour_is_a_copy():
    """Points on the vertices themselves, and nothing else to take from."""
    vertices, faces = tube()
    normals = surface.vertex_normals(vertices, faces)
    expected = np.random.default_rng(0).dirichlet(np.ones(3), len(vertices)).astype(np.float32)
    points, island = np.hstack([vertices, normals]), np.zeros(len(vertices), int)
    weights = points_to_vertices(
        expected, points, island, vertices, normals, island, surface.edges(faces), neighbours=1
    )
    np.testing.assert_allclose(weights, expected, atol=1e-6)


def test_vertices_in_chunks_give_the_same(monkeypatch):
    whole = carry(*tube(), 300, lambda points, corner: one_hot(corner % 5, 5))
    monkeypatch.setattr("sprig.backend.skinning.transfer.CHUNK", 17)
    np.testing.assert_array_equal(carry(*tube(), 300, lambda points, corner: one_hot(corner % 5, 5)), whole)


def test_largest_by_hand():
    rows = np.array([[0.1, 0.4, 0.2, 0.3], [1, 0, 0, 0]])
    np.testing.assert_allclose(largest(rows, 2), [[0, 4 / 7, 0, 3 / 7], [1, 0, 0, 0]])
    np.testing.assert_allclose(largest(rows, 9), rows)
