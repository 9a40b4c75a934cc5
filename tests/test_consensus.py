"""Consensus: views, the medoid, repeated joints; and that what most candidates say wins."""

import numpy as np
import pytest
import torch

from sprig.backend.errors import SprigError
from sprig.backend.skeleton.consensus import TEMPERATURES, averaged, consensus, medoid, merge_repeated, views
from sprig.backend.skeleton.generate import generate_each
from sprig.backend.skeleton.network import SkeletonConfig, SkeletonNetwork


def network(seed=0, **settings):
    torch.manual_seed(seed)
    sizes = dict(width=32, heads=2, seeds=32, neighbours=8, encoder_blocks=1, decoder_blocks=1, most_joints=10)
    return SkeletonNetwork(SkeletonConfig(**{**sizes, **settings})).eval()


def cloud(seed=0, count=200):
    generator = torch.Generator().manual_seed(seed)
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    return torch.cat([normals * torch.tensor([0.4, 0.2, 0.3]), normals], dim=1)


def test_views_are_eight_different_rigid_maps_that_keep_the_vertical():
    turns = views()
    assert turns.shape == (8, 3, 3) and (turns[0] == np.eye(3)).all()
    for turn in turns:
        np.testing.assert_array_equal(turn @ turn.T, np.eye(3))
        np.testing.assert_array_equal(turn @ [0, 0, 1], [0, 0, 1])
    assert len({turn.tobytes() for turn in turns + 0.0}) == 8
    assert sorted(round(np.linalg.det(turn)) for turn in turns) == [-1] * 4 + [1] * 4


def test_the_medoid_has_least_to_do_to_become_the_others():
    line = np.array([[0.0, 0, 0], [1, 0, 0]])
    assert medoid([line + [0, 5, 0], line, line + [0, 0.1, 0], line - [0, 0.2, 0]]) == 1
    assert medoid([line]) == 0


def test_repeated_joints_are_merged_and_their_children_kept():
    joints = np.array([[0.0, 0, 0], [0.2, 0, 0], [0.21, 0, 0], [0.4, 0, 0], [0.2, 0.01, 0], [0.2, 0.3, 0]])
    parents = np.array([-1, 0, 1, 2, 2, 4])
    merged, above = merge_repeated(joints, parents, near=0.03)
    np.testing.assert_array_equal(merged, joints[[0, 1, 3, 5]])
    np.testing.assert_array_equal(above, [-1, 0, 1, 1])


def test_joints_that_all_coincide_still_make_a_bone():
    merged, above = merge_repeated(np.zeros((5, 3)), np.array([-1, 0, 1, 2, 3]))
    assert len(merged) == 2
    np.testing.assert_array_equal(above, [-1, 0])


def test_far_joints_stay_as_they_are():
    joints, parents = np.eye(3), np.array([-1, 0, 0])
    merged, above = merge_repeated(joints, parents)
    np.testing.assert_array_equal(merged, joints)
    np.testing.assert_array_equal(above, parents)


def test_joints_move_to_the_mean_of_their_matches():
    """One to one: of two joints beside one, the farther finds no other; what is far from all stays."""
    joints = np.array([[0.0, 0, 0], [0.3, 0, 0], [0, 0, 0.4]])
    others = [np.array([[0.03, 0, 0], [0.33, 0, 0], [0.06, 0, 0]]), np.array([[0.3, 0.06, 0], [0, 0, -0.4]])]
    np.testing.assert_allclose(averaged(joints, others), [[0.015, 0, 0], [0.31, 0.02, 0], [0, 0, 0.4]], atol=1e-12)
    np.testing.assert_array_equal(averaged(joints, []), joints)


def test_the_chosen_one_is_the_nearest_to_all_that_were_decoded(monkeypatch):
    """Against the candidates themselves, decoded view by view and taken back here by hand."""
    monkeypatch.setattr("sprig.backend.skeleton.consensus.ROUNDS", 0)
    model, points = network(), cloud()
    found = consensus(model, points, joints=6, seed=3)
    turns = torch.as_tensor(views(), dtype=torch.float32)
    seen = torch.stack([torch.cat([points[:, :3] @ turn.T, points[:, 3:] @ turn.T], dim=1) for turn in turns])
    rows = generate_each(model, seen, TEMPERATURES, joints=6, seed=3)
    places = [one.joints @ turn.numpy() for turn, row in zip(turns, rows, strict=True) for one in row]
    risks = []
    for a in places:
        apart = [np.linalg.norm(a[:, None] - b[None], axis=2) for b in places]
        risks.append(np.mean([d.min(0).mean() + d.min(1).mean() for d in apart]))
    np.testing.assert_allclose(found.joints, places[int(np.argmin(risks))], atol=1e-6)


def test_a_mirrored_shape_gives_the_mirrored_skeleton(monkeypatch):
    """The set of views is the same, so only the draws differ: none here."""
    monkeypatch.setattr("sprig.backend.skeleton.consensus.TEMPERATURES", (0.0,))
    model, points = network(1), cloud(1)
    flip = torch.tensor([-1.0, 1, 1, -1, 1, 1])
    found, mirrored = consensus(model, points), consensus(model, points * flip)
    np.testing.assert_allclose(found.joints * [-1, 1, 1], mirrored.joints, atol=1e-6)
    np.testing.assert_array_equal(found.parents, mirrored.parents)


def test_confidence_is_the_share_that_agrees():
    found = consensus(network(2), cloud(2))
    count = 8 * len(TEMPERATURES)
    assert found.confidence.shape == (len(found.parents),) and found.confidence.dtype == np.float32
    assert (found.confidence >= 1 / count - 1e-6).all() and (found.confidence <= 1).all()
    np.testing.assert_allclose(found.confidence * count, np.round(found.confidence * count), atol=1e-4)


def test_a_number_that_was_asked_for_is_kept():
    assert len(consensus(network(), cloud(), joints=7).parents) == 7
    with pytest.raises(SprigError):
        consensus(network(), cloud(), joints=11)


def test_the_same_seed_gives_the_same_skeleton():
    first, second = consensus(network(), cloud(), seed=5), consensus(network(), cloud(), seed=5)
    np.testing.assert_array_equal(first.joints, second.joints)
