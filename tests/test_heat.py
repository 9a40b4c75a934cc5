"""Skin weights by heat: known answers on a bar, and what must not matter."""

import numpy as np
import pytest

from sprig.backend.skinning.heat import PIECE_JOINTS, RATE, heat_features, heat_weights

from .creatures import tube

RADIUS = 0.03


@pytest.fixture(scope="module")
def bar():
    """A thin bar, and joints at its start and its middle, whose bones are each as long as half of it."""
    vertices, faces = tube(rings=101, around=16, length=1.0, radius=RADIUS)
    axis = int(np.argmax(np.ptp(vertices, axis=0)))
    low = vertices[:, axis].min()
    joints = np.tile(vertices.mean(axis=0), (2, 1))
    joints[:, axis] = low, low + 0.5
    return vertices, faces, joints, np.array([-1, 0]), vertices[:, axis] - low - 0.5


def test_heat_passes_from_one_bone_to_the_next(bar):
    """In one dimension w'' = RATE (w - p) / r^2: beyond the joint the share falls by e over r / sqrt(RATE)."""
    *given, x = bar
    weights = heat_weights(*given)
    assert weights.dtype == np.float32 and weights.min() >= 0
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    length = RADIUS / np.sqrt(RATE)
    expected = np.where(x < 0, 0.5 * np.exp(x / length), 1 - 0.5 * np.exp(-x / length))
    inner = np.abs(x) < 0.4  # off the caps
    assert np.abs(weights[inner, 1] - expected[inner]).max() < 0.03  # a ring is 0.01 away from the next


def test_units_places_and_the_order_of_joints_do_not_matter(bar):
    vertices, faces, joints, parents, _ = bar
    weights = heat_weights(vertices, faces, joints, parents)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = heat_weights(50 * vertices @ turn + 7, faces, 50 * joints @ turn + 7, parents)
    # the box, and with it the least distance, is another after a turn
    np.testing.assert_allclose(moved, weights, atol=1e-3)
    swapped = heat_weights(vertices, faces, joints[::-1], np.array([1, -1]))
    np.testing.assert_allclose(swapped[:, ::-1], weights, atol=1e-6)


def test_an_island_gets_the_bones_beside_it(bar):
    vertices, faces, joints, *_ = bar
    apart = np.concatenate([vertices, vertices + [0, 0, 5]])
    two = np.concatenate([faces, faces + len(vertices)])
    weights = heat_weights(apart, two, np.concatenate([joints, joints + [0, 0, 5]]), np.array([-1, 0, 0, 2]))
    ours = weights[: len(vertices), [0, 1]].sum(axis=1)
    theirs = weights[len(vertices) :, [2, 3]].sum(axis=1)
    assert np.quantile(ours, 0.05) > 0.9 and np.quantile(theirs, 0.05) > 0.9


def test_a_piece_has_the_mean_of_its_heat(bar):
    """A small ball beside each half of the bar belongs to that half; the bar itself to both."""
    vertices, faces, joints, parents, _ = bar
    ball, ball_faces = tube(rings=5, around=8, length=0.05, radius=0.02)
    ball = ball - ball.mean(axis=0)
    centres = [vertices.mean(axis=0) + 0.06 + side * (joints[1] - joints[0]) / 2 for side in (-1, 1)]
    whole = np.concatenate([vertices, ball + centres[0], ball + centres[1]])
    count, few = len(vertices), len(ball)
    every = np.concatenate([faces, ball_faces + count, ball_faces + count + few])
    own, piece = np.moveaxis(heat_features(whole, every, joints, parents), 2, 0)
    np.testing.assert_array_equal(own, heat_weights(whole, every, joints, parents))
    np.testing.assert_allclose(piece.sum(axis=1), 1, atol=1e-5)
    for part in (slice(0, count), slice(count, count + few), slice(count + few, None)):
        assert np.ptp(piece[part], axis=0).max() == 0
    np.testing.assert_allclose(piece[0], 0.5, atol=0.02)
    assert piece[count, 0] > 0.95 and piece[-1, 1] > 0.95


def test_a_piece_names_few_joints(bar):
    vertices, faces, joints, *_ = bar
    many = joints[0] + np.linspace(0, 1, 12)[:, None] * 2 * (joints[1] - joints[0])
    piece = heat_features(vertices, faces, many, np.arange(-1, 11))[..., 1]
    assert ((piece > 0).sum(axis=1) == PIECE_JOINTS).all()
    np.testing.assert_allclose(piece.sum(axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("case", ["loose vertex", "collapsed triangle", "one joint", "joints in one place"])
def test_awkward_shapes_have_weights(bar, case):
    vertices, faces, joints, parents, _ = bar
    if case == "loose vertex":
        vertices = np.concatenate([vertices, joints[1:] + 0.1])
    elif case == "collapsed triangle":
        faces = np.concatenate([faces, [[0, 0, 1], [2, 3, 2]]])
    elif case == "one joint":
        joints, parents = joints[:1], parents[:1]
    else:
        joints = joints[[0, 0]]
    weights = heat_weights(vertices, faces, joints, parents)
    assert weights.shape == (len(vertices), len(parents)) and np.isfinite(weights).all()
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
