"""Bone tails, on a few vertices by hand."""

import numpy as np
import pytest

from sprig.backend.skeletons import bone_tails


def test_a_leaf_ends_where_its_vertices_end():
    vertices = np.array([[x, 0, 0] for x in np.linspace(0, 2, 21)])
    tails = bone_tails([[0, 0, 0], [1, 0, 0]], np.array([-1, 0]), _split(vertices, 1.0), vertices)
    np.testing.assert_allclose(tails, [[1, 0, 0], [2, 0, 0]], atol=0.06)


def test_a_leaf_does_not_point_to_where_it_only_helps_out():
    """The second bone's skin runs along x; a little of it is on a limb far along y, where it has no business."""
    limb = np.array([[1.2, y, 0] for y in np.linspace(3, 5, 21)])
    along = np.array([[x, 0, 0] for x in np.linspace(0, 2, 21)])
    vertices = np.concatenate([along, limb])
    weights = np.concatenate([_split(along, 1.0), np.tile([0.9, 0.1], (21, 1))])
    tail = bone_tails([[0, 0, 0], [1, 0, 0]], np.array([-1, 0]), weights, vertices)[1]
    assert tail[0] == pytest.approx(2, abs=0.1) and abs(tail[1]) < 0.2


def test_a_leaf_is_no_longer_than_its_skin():
    """One vertex of a faint bone lies far out in the direction of the others; most of them decide."""
    vertices = np.array([[0, 0, 0], *[[x, 0, 0] for x in np.linspace(1, 1.4, 9)], [6, 0, 0]])
    weights = np.array([[1, 0], *[[0.7, 0.3]] * 9, [0.8, 0.2]])
    tail = bone_tails([[0, 0, 0], [1, 0, 0]], np.array([-1, 0]), weights, vertices)[1]
    assert 1.3 < tail[0] < 3


def _split(vertices, at: float):
    """Weights (N,2) of two bones that meet at a place along x."""
    second = (vertices[:, 0] >= at).astype(float)
    return np.stack([1 - second, second], axis=1)
