"""Made creatures: sound meshes, exact weights, joints where artists put them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from sprig.backend.kinematics import linear_blend_skinning
from sprig.training.synthesize import KINDS, MACHINES, MOST_JOINTS, creature

SEEDS = range(25)


@pytest.fixture(scope="module", params=KINDS)
def family(request):
    """25 characters of one kind; their constructor has checked shapes, tree and rows of weights."""
    return [creature(seed, request.param) for seed in SEEDS]


def islands(character):
    """Island of every vertex (V,) and their number."""
    a, b = character.faces[:, 0], character.faces[:, 1]
    c, count = character.faces[:, 2], len(character.vertices)
    graph = coo_matrix((np.ones(2 * len(a)), (np.r_[a, b], np.r_[b, c])), shape=(count, count))
    number, label = connected_components(graph, directed=False)
    return label, number


def hanging(parents, joint):
    """Which joints (J,) bool hang from `joint`, itself included."""
    below = np.zeros(len(parents), dtype=bool)
    below[joint] = True
    for j in range(joint + 1, len(parents)):
        below[j] |= below[parents[j]]
    return below


def test_every_joint_moves_something_and_no_vertex_has_more_than_four(family):
    for c in family:
        assert 5 <= len(c.joints) <= MOST_JOINTS, c.name
        assert (c.weights > 0).sum(axis=1).max() <= 4
        assert (c.weights > 0).any(axis=0).all(), c.name
        assert c.weights.max(axis=0).min() > 0.4, c.name
        assert np.abs(c.weights.sum(axis=1) - 1).max() < 1e-5


def test_joints_lie_in_the_mesh(family):
    for c in family:
        low, high = c.vertices.min(axis=0), c.vertices.max(axis=0)
        margin = 0.02 * (high - low).max()
        assert (c.joints >= low - margin).all() and (c.joints <= high + margin).all(), c.name
        away = np.linalg.norm(c.joints[1:] - c.joints[c.parents[1:]], axis=1)
        assert away.min() > 1e-4 * (high - low).max(), c.name


def test_islands_are_closed_and_wound_outwards(family):
    for c in family:
        edges = np.concatenate([c.faces[:, [0, 1]], c.faces[:, [1, 2]], c.faces[:, [2, 0]]]).astype(np.int64)
        there = np.sort(edges[:, 0] * len(c.vertices) + edges[:, 1])
        back = np.sort(edges[:, 1] * len(c.vertices) + edges[:, 0])
        assert (np.diff(there) > 0).all() and np.array_equal(there, back), c.name
        label, number = islands(c)
        centre = np.array([c.vertices[label == i].mean(axis=0) for i in range(number)], dtype=np.float64)
        at = c.vertices[c.faces] - centre[label[c.faces[:, 0]]][:, None]
        volume = np.bincount(label[c.faces[:, 0]], np.einsum("mi,mi->m", at[:, 0], np.cross(at[:, 1], at[:, 2])) / 6)
        assert volume.min() > 0, (c.name, volume.argmin())


def test_no_triangle_has_collapsed_and_few_look_inwards(family):
    """A tube around a straight line faces away from its middle everywhere; bends may turn a few triangles."""
    for c in family[:6]:
        corners = c.vertices[c.faces].astype(np.float64)
        normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        assert (np.linalg.norm(normal, axis=1) > 0).all(), c.name
        label, number = islands(c)
        assert number >= 2
        mine = label[c.faces[:, 0]]
        inwards = 0
        for i in range(number):
            ring = corners[mine == i].mean(axis=1)
            near = np.linalg.norm(ring[:, None] - ring, axis=2).argsort(axis=1)[:, : min(len(ring), 40)]
            out = ring - ring[near].mean(axis=1)
            inwards += (np.einsum("mi,mi->m", out, normal[mine == i]) < 0).sum()
        assert inwards < 0.15 * len(c.faces), (c.name, inwards / len(c.faces))


def test_posing_a_joint_moves_only_what_hangs_from_it(family):
    turn = np.eye(4)
    turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    for c in family[:5]:
        wide = np.abs(c.vertices[:, 0]).max()
        for joint in range(1, len(c.joints), 3):
            below = hanging(c.parents, joint)
            motion = np.tile(np.eye(4), (len(c.joints), 1, 1))
            about = np.eye(4)
            about[:3, 3] = c.joints[joint]
            motion[below] = about @ turn @ np.linalg.inv(about)
            moved = np.linalg.norm(linear_blend_skinning(c.vertices, c.weights, motion) - c.vertices, axis=1)
            still = c.weights[:, below].sum(axis=1) == 0
            assert moved[still].max(initial=0) < 1e-5 * wide + 1e-6
            assert moved[~still].max() > 1e-4 * wide
            # A left limb leaves the right side of the body where it is.
            if c.joints[below, 0].min() > 0.3 * wide and not c.name.startswith("synthetic_snake"):
                assert moved[c.vertices[:, 0] < -0.3 * wide].max(initial=0) < 1e-5 * wide + 1e-6, (c.name, joint)


def test_limbs_come_in_pairs(family):
    paired = 0
    for c in family:
        size = np.ptp(c.vertices, axis=0).max()
        left = np.flatnonzero(c.joints[:, 0] > 0.02 * size)
        mirrored = c.joints[left] * [-1, 1, 1]
        if len(left):
            distance = np.linalg.norm(mirrored[:, None] - c.joints, axis=2).min(axis=1)
            paired += distance.max() < 0.06 * size
    if family[0].name.split("_")[1] not in ("snake", "arm"):  # a snake lies in bends, few arms have a gripper
        assert paired == len(family)


def test_weights_fall_along_a_smooth_tube():
    for seed in SEEDS:
        c = creature(seed, "fish")
        rigid = (c.weights.max(axis=1) > 0.999).all()
        mixed = ((c.weights > 0.05) & (c.weights < 0.95)).any(axis=1).mean()
        assert rigid or mixed > 0.02, c.name
    assert all((creature(seed, kind).weights.max(axis=1) == 1).all() for seed in range(5) for kind in MACHINES)


def test_same_seed_same_creature_other_seed_another():
    for kind in (None, *KINDS):
        first, again, other = creature(3, kind), creature(3, kind), creature(4, kind)
        for name in ("vertices", "faces", "weights", "joints", "parents"):
            assert np.array_equal(getattr(first, name), getattr(again, name))
        assert first.vertices.shape != other.vertices.shape or not np.allclose(first.vertices, other.vertices)
    assert creature(3, "fish").rig_id == "synthetic_fish_3"
    assert {creature(seed).rig_id.rsplit("_", 1)[0] for seed in range(80)} == {f"synthetic_{k}" for k in KINDS}


def test_there_is_variety_in_joint_counts():
    counts = np.array([len(creature(seed).joints) for seed in range(150)])
    assert counts.min() < 10 and counts.max() > 55


def test_unknown_kind():
    with pytest.raises(ValueError, match="dragon"):
        creature(0, "dragon")
