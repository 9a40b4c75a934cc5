"""Poses of a rig that is given: what moved it comes back."""

import numpy as np

from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.motion.poses import fit_poses
from sprig.backend.surface import edges

from .creatures import chain, tube


def tube_from_rest(bones: int, frames: int):
    """The chain's tube with its rest shape as frame 0: positions (F,V,3), edges, joints, weights, motion (F,J,4,4)."""
    sequence, joints, weights, motion = chain(bones, frames - 1)
    rest = tube()[0]
    motion = np.concatenate([np.broadcast_to(np.eye(4), (1, bones, 4, 4)), motion])
    posed = np.stack([linear_blend_skinning(rest, weights, m) for m in motion])
    return posed, edges(sequence.faces), joints, weights, motion


def replay_error(positions, weights, motion):
    """RMSE of a rig whose rest shape is frame 0, as a share of its diagonal."""
    posed = np.stack([linear_blend_skinning(positions[0], weights, m) for m in motion])
    return np.sqrt(((posed - positions) ** 2).sum(2).mean()) / np.linalg.norm(np.ptp(positions[0], axis=0))


def test_the_poses_of_a_known_rig_come_back():
    positions, mesh_edges, joints, weights, motion = tube_from_rest(4, 16)
    found = fit_poses(positions, mesh_edges, 0, weights, joints, [-1, 0, 1, 2])
    np.testing.assert_allclose(found, motion, atol=1e-4)
    assert replay_error(positions, weights, found) < 1e-5


def test_joints_stay_joined_where_the_rig_does_not_fit():
    positions, mesh_edges, joints, weights, _ = tube_from_rest(4, 16)
    joints = joints + [0.1, 0.05, 0]
    found = fit_poses(positions, mesh_edges, 0, weights, joints, [-1, 0, 1, 2])
    for j in (1, 2, 3):
        here, above = (np.einsum("fik,k->fi", found[:, b, :3, :3], joints[j]) + found[:, b, :3, 3] for b in (j, j - 1))
        np.testing.assert_allclose(here, above, atol=1e-6)
    assert 1e-3 < replay_error(positions, weights, found) < 0.05


def test_a_bone_without_vertices_follows_its_parent():
    positions, mesh_edges, joints, weights, _ = tube_from_rest(3, 10)
    joints, weights = np.vstack([joints, joints[2] + [0, 0, 0.3]]), np.c_[weights, np.zeros(len(weights))]
    found = fit_poses(positions, mesh_edges, 0, weights, joints, [-1, 0, 1, 2])
    np.testing.assert_allclose(found[:, 3, :3, :3], found[:, 2, :3, :3], atol=1e-6)
    assert replay_error(positions, weights, found) < 1e-5


def test_a_root_without_vertices_is_no_obstacle():
    positions, mesh_edges, joints, weights, _ = tube_from_rest(3, 10)
    joints, weights = np.vstack([joints[:1], joints]), np.c_[np.zeros(len(weights)), weights]
    found = fit_poses(positions, mesh_edges, 0, weights, joints, [-1, 0, 1, 2])
    assert replay_error(positions, weights, found) < 1e-5


def test_the_rest_shape_need_be_no_frame():
    positions, mesh_edges, joints, weights, motion = tube_from_rest(4, 16)
    found = fit_poses(positions[5:], mesh_edges, 0, weights, joints, [-1, 0, 1, 2], rest=positions[0])
    np.testing.assert_allclose(found, motion[5:], atol=1e-4)


def test_only_located_joints_move_against_their_parents():
    """The last bone of the chain slides out of its joint, along the tube at rest."""
    positions, mesh_edges, joints, weights, motion = tube_from_rest(3, 12)
    slide = np.tile(np.eye(4), (12, 1, 1))
    slide[:, 0, 3] = np.linspace(0, 0.3, 12)
    motion[:, 2] = motion[:, 1] @ slide @ np.linalg.inv(motion[:, 1]) @ motion[:, 2]
    positions = np.stack([linear_blend_skinning(positions[0], weights, pose) for pose in motion])
    jointed, located = (
        fit_poses(positions, mesh_edges, 0, weights, joints, [-1, 0, 1], located=which) for which in ((), (2,))
    )
    assert replay_error(positions, weights, jointed) > 1e-2
    np.testing.assert_allclose(located, motion, atol=1e-4)
