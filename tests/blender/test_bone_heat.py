"""Bone heat as the evaluation's baseline: in this process, and as the child process that `sprig evaluate` starts."""

from pathlib import Path

import numpy as np
import pytest

from sprig.training import evaluate

from .rigs import triangles, tube

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
JOINTS, TAILS, PARENTS = [[0, 0, 0], [0, 0, 1.0]], [[0, 0, 1], [0, 0, 2.0]], [-1, 0]


@pytest.fixture
def bone_heat(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import bone_heat

    return bone_heat


def bar():
    vertices, faces = tube(rings=21)
    return vertices, triangles(faces)


def check(weights, vertices):
    """Each half of the bar belongs to its bone, and the middle to both."""
    assert weights.shape == (len(vertices), 2)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)
    low, high, middle = vertices[:, 2] < 0.5, vertices[:, 2] > 1.5, np.isclose(vertices[:, 2], 1)
    assert weights[low, 0].min() > 0.9 and weights[high, 1].min() > 0.9
    np.testing.assert_allclose(weights[middle], 0.5, atol=0.1)


def test_two_bones_share_a_bar(bone_heat):
    vertices, faces = bar()
    for size in (1e-2, 1, 100):
        weights = bone_heat.heat_weights(
            size * vertices, faces, *(size * np.array(p) for p in (JOINTS, TAILS)), PARENTS
        )
        check(weights, vertices)


def test_bones_without_length_are_kept(bone_heat):
    vertices, faces = bar()
    weights = bone_heat.heat_weights(vertices, faces, [*JOINTS, [0, 0, 2]], [*TAILS, [0, 0, 2]], [-1, 0, 1])
    assert weights.shape == (len(vertices), 3)
    np.testing.assert_allclose(weights.sum(axis=1), 1, atol=1e-5)


def test_vertices_that_no_face_holds_stay_without_weights(bone_heat):
    vertices, faces = bar()
    weights = bone_heat.heat_weights(np.vstack([vertices, [[0, 0, 50]]]), faces, JOINTS, TAILS, PARENTS)
    assert set(np.round(weights.sum(axis=1), 4)) <= {0.0, 1.0}


def test_from_another_process():
    """Two shapes through files: the evaluation's own way, with tails made from the nearest bones."""
    vertices, faces = bar()
    truth = np.eye(2)[(vertices[:, 2] > 1).astype(int)]
    shapes = [
        evaluate.Shape(
            "bar", "snake", size * vertices + 5, faces, size * np.array(JOINTS) + 5, np.array(PARENTS), truth
        )
        for size in (1, 0.01)
    ]
    assert evaluate.why_no_bone_heat() is None
    found = evaluate.bone_heat(shapes)
    for weights, shape in zip(found, shapes, strict=True):
        check(weights, vertices)
        scores = evaluate.weight_scores(weights, shape)
        assert scores["l1"] < 0.2 and scores["unweighted"] == 0
