"""Fitting skeletons that are given: what stays, what is found, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest

from sprig.backend.armature import rig_with
from sprig.backend.errors import SprigError
from sprig.backend.formats.npz import read_rig, read_skeleton, write_rig
from sprig.backend.given_skeleton import GivenSkeleton, moving_bones
from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.pipeline import RigOptions
from sprig.backend.sequence import MeshSequence

from .creatures import chain, tube

OPTIONS = RigOptions(device="cpu")
FOUND = 0.05  # per cent of the diagonal: a chain whose bones are given is explained nearly completely


@pytest.fixture(scope="module")
def chain_of_four():
    """A sequence, and the skeleton that made it with everything that a user may bring."""
    sequence, joints, weights, motion = chain(4, 16)
    given = GivenSkeleton(
        joints,
        joints + [0.4, 0, 0],
        np.array([-1, 0, 1, 2]),
        ("hip", "Knee.L", "foot", "toe"),
        rest_vertices=tube()[0],
        weights=weights,
        motion=motion,
    )
    return sequence, given


def without(given: GivenSkeleton, **changes) -> GivenSkeleton:
    """The bones and the rest shape alone."""
    return replace(given, **{"weights": None, "motion": None, **changes})


def places(given: GivenSkeleton, sequence: MeshSequence):
    return given.joints - sequence.origin, given.tails - sequence.origin


# ---- what is found


def test_weights_and_motion_of_a_chain_are_found_and_no_bone_changes(chain_of_four):
    sequence, given = chain_of_four
    rig = rig_with(sequence, without(given), OPTIONS)
    joints, tails = places(given, sequence)
    np.testing.assert_array_equal(rig.skeleton.joints, joints)
    np.testing.assert_array_equal(rig.skeleton.tails, tails)
    np.testing.assert_array_equal(rig.skeleton.parents, given.parents)
    assert rig.skeleton.names == given.names
    assert rig.rmse < FOUND
    assert (rig.weights > 0).sum(axis=1).max() <= 4
    assert rig.provenance["skeleton_source"] == "given"


def test_two_roots_and_a_bone_that_slides(chain_of_four):
    """The last two bones hang from nothing and the last slides out of its joint, as its location allows."""
    sequence, given = chain_of_four
    motion = given.motion.copy()
    slide = np.tile(np.eye(4), (16, 1, 1))
    slide[:, 0, 3] = np.linspace(0, 0.2, 16)
    motion[:, 3] = motion[:, 2] @ slide @ np.linalg.inv(motion[:, 2]) @ motion[:, 3]
    motion[:, 2:, 2, 3] += np.sin(np.linspace(0, 3, 16))[:, None]
    posed = np.stack([linear_blend_skinning(given.rest_vertices, given.weights, pose) for pose in motion])
    moved = MeshSequence.from_world(posed, sequence.faces)
    two = replace(given, parents=np.array([-1, 0, -1, 2]), motion=None)
    stiff, sliding = (
        rig_with(moved, replace(two, located=np.array(located)), OPTIONS, fit="motion")
        for located in ([0, 0, 0, 0], [0, 0, 0, 1])
    )
    assert sliding.rmse < 1e-3 < 0.1 < stiff.rmse
    np.testing.assert_array_equal(sliding.skeleton.parents, two.parents)
    both = rig_with(moved, without(two, located=np.array([0, 0, 0, 1])), OPTIONS)
    assert both.rmse < 0.2 * stiff.rmse


def test_motion_only_keeps_the_weights(chain_of_four):
    sequence, given = chain_of_four
    rig = rig_with(sequence, replace(given, motion=None, weights=3 * given.weights), OPTIONS, fit="motion")
    np.testing.assert_allclose(rig.weights, given.weights, atol=1e-6)
    np.testing.assert_allclose(rig.rest_vertices + rig.origin, given.rest_vertices, atol=1e-6)
    assert rig.rmse < 1e-3


def test_weights_only_keeps_the_poses(chain_of_four):
    sequence, given = chain_of_four
    rig = rig_with(sequence, replace(given, weights=None), OPTIONS, fit="weights")
    world = rig.motion.copy()
    world[..., :3, 3] += sequence.origin - world[..., :3, :3] @ sequence.origin
    np.testing.assert_allclose(world, given.motion, atol=1e-9)
    np.testing.assert_allclose(rig.weights, given.weights, atol=0.05)
    assert rig.rmse < 0.01


@pytest.mark.parametrize("fit", ["both", "weights"])
def test_locked_columns_keep_their_weights_and_the_others_share_the_rest(chain_of_four, fit):
    sequence, given = chain_of_four
    kept = given.weights.copy()
    kept[:, 1] = np.where(tube()[0][:, 0] > 1.2, 0.3, 0.5 * kept[:, 1])  # as no solver would have it
    locked = np.array([False, True, False, False])
    rig = rig_with(sequence, replace(given, weights=kept, locked=locked), replace(OPTIONS, influences=2), fit=fit)
    np.testing.assert_allclose(rig.weights[:, 1], kept[:, 1], atol=1e-6)
    assert (rig.weights > 0).sum(axis=1).max() == 2
    free = rig_with(sequence, replace(given, weights=kept), replace(OPTIONS, influences=2), fit=fit)
    assert free.rmse < rig.rmse


def test_bones_that_do_not_deform_carry_nothing_and_follow(chain_of_four):
    """A control that leads the chain is solved; a handle at its end follows the last bone, a target beside it stays."""
    sequence, given = chain_of_four
    joints = np.vstack([[[-0.5, 0, 0]], given.joints, [[2.1, 0, 0], [3, 0, 0]]])
    wide = GivenSkeleton(
        joints,
        joints + [0.2, 0, 0],
        np.array([-1, 0, 1, 2, 3, 4, -1]),
        ("control", *given.names, "handle", "target"),
        rest_vertices=given.rest_vertices,
        deform=np.array([0, 1, 1, 1, 1, 0, 0]),
    )
    rig = rig_with(sequence, wide, OPTIONS)
    assert not rig.weights[:, [0, 5, 6]].any()
    np.testing.assert_array_equal(rig.motion[:, 5], rig.motion[:, 4])
    np.testing.assert_array_equal(rig.motion[:, 6], np.broadcast_to(np.eye(4), (16, 4, 4)))
    assert rig.rmse < FOUND


def test_children_may_come_before_their_parents(chain_of_four):
    sequence, given = chain_of_four
    mixed = np.array([2, 0, 3, 1])
    order = replace(
        given,
        joints=given.joints[mixed],
        tails=given.tails[mixed],
        names=tuple(given.names[j] for j in mixed),
        parents=np.array([3, -1, 0, 1]),
        weights=given.weights[:, mixed],
        motion=given.motion[:, mixed],
    )
    rig = rig_with(sequence, order, OPTIONS, fit="motion")
    assert rig.skeleton.names == given.names
    np.testing.assert_array_equal(rig.skeleton.parents, given.parents)
    np.testing.assert_allclose(rig.weights, given.weights, atol=1e-6)
    assert rig.rmse < 1e-3


def test_a_frame_may_be_the_rest_shape(chain_of_four):
    sequence, given = chain_of_four
    positions = np.concatenate([given.rest_vertices[None], sequence.vertices + sequence.origin])
    longer = MeshSequence.from_world(positions, sequence.faces)
    rig = rig_with(longer, without(given, rest_vertices=None, rest_frame=1), OPTIONS)
    assert rig.anchor == 0 and rig.rmse < FOUND
    np.testing.assert_allclose(rig.rest_vertices + rig.origin, given.rest_vertices, atol=5e-3)


def test_heat_starts_where_there_is_no_network(chain_of_four, monkeypatch, tmp_path):
    sequence, given = chain_of_four
    monkeypatch.setattr("sprig.backend.learned.SHIPPED", tmp_path)
    rig = rig_with(sequence, without(given), OPTIONS)
    assert rig.provenance["checkpoints"] == {} and rig.rmse < FOUND


# ---- files


def test_a_skeleton_goes_through_a_file_unchanged(chain_of_four, tmp_path):
    sequence, given = chain_of_four
    frames = np.tile(np.eye(4), (4, 1, 1))
    frames[:, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]  # rolls of their own
    frames[:, :3, 3] = given.joints
    write_rig(tmp_path / "a.npz", rig_with(sequence, replace(given, frames=frames), OPTIONS, fit="motion"))
    read = read_skeleton(tmp_path / "a.npz")
    assert read.names == given.names and not read.located.any() and read.deform.all()
    np.testing.assert_allclose(read.frames, frames, atol=1e-6)
    np.testing.assert_allclose(read.motion, given.motion, atol=1e-4)
    write_rig(tmp_path / "b.npz", rig_with(sequence, read, OPTIONS))
    first, second = read_rig(tmp_path / "a.npz"), read_rig(tmp_path / "b.npz")
    for key in ("joint_names", "parents", "joints_rest", "tails_rest", "bone_rest"):
        np.testing.assert_array_equal(first[key], second[key])


def test_bones_that_move_in_the_file_may_move(chain_of_four):
    _, given = chain_of_four
    motion = given.motion.copy()
    assert not moving_bones(motion, given.joints, given.parents, 2.0).any()
    motion[:, 3, :3, 3] += np.linspace(0, 1e-3, 16)[:, None]
    assert moving_bones(motion, given.joints, given.parents, 2.0).tolist() == [False, False, False, True]


SKELETON = {
    "joint_names": np.array(["a", "b"]),
    "parents": np.array([-1, 0]),
    "joints_rest": np.zeros((2, 3)),
    "tails_rest": np.ones((2, 3)),
    "rest_vertices": np.zeros((5, 3)),
}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"parents": None}, "lacks the array 'parents'"),
        ({"parents": np.array([-1, 2])}, "none of its 2 joints"),
        ({"joint_names": np.array(["a", "a"])}, "several joints of one name"),
        ({"joints_rest": np.full((2, 3), np.nan)}, "not finite"),
        ({"tails_rest": np.zeros((3, 3))}, "expected shape (2, 3)"),
        ({"weights": np.full((5, 2), -1.0)}, "below zero"),
        ({"weights": np.ones((4, 2))}, "expected shape (5, 2)"),
        ({"bone_rest": np.zeros((2, 4, 4))}, "no inverse"),
        ({"bone_rest": np.array([np.eye(4)] * 2), "bone_world": np.zeros((3, 2, 4, 4))}, "no inverse"),
        ({"joint_names": np.array(["a", {}], dtype=object)}, "Python objects"),
    ],
)
def test_files_that_hold_no_skeleton_are_refused(tmp_path, change, words):
    arrays = {key: value for key, value in {**SKELETON, **change}.items() if value is not None}
    np.savez(tmp_path / "rig.npz", **arrays)
    with pytest.raises(SprigError) as refusal:
        read_skeleton(tmp_path / "rig.npz")
    assert words in str(refusal.value)


# ---- what does not belong together


@pytest.mark.parametrize(
    ("change", "fit", "words"),
    [
        ({"rest_vertices": np.zeros((7, 3))}, "both", "has 7 vertices, but the sequence has 212"),
        ({"rest_vertices": np.random.default_rng(0).permutation(tube()[0])}, "both", "another order"),
        ({"rest_vertices": 0.01 * tube()[0]}, "both", "100 times as large"),
        ({"joints": chain(4, 2)[1] + [0, 5, 0]}, "both", "far outside"),
        ({"rest_vertices": None}, "both", "name the rest frame"),
        ({"rest_frame": 99}, "both", "Frame 99"),
        ({"parents": np.array([1, 0, 1, 2])}, "both", "their own ancestors"),
        ({"locked": np.ones(4)}, "both", "are locked"),
        ({"motion": None}, "weights", "brings no poses"),
        ({"motion": np.tile(np.eye(4), (9, 4, 1, 1))}, "weights", "poses for 9 frames"),
        ({"weights": None}, "motion", "brings no weights"),
        ({"weights": np.zeros((212, 4))}, "motion", "212 vertices have no weight"),
        ({"weights": np.zeros((7, 4))}, "motion", "weights are of 7 vertices"),
        ({}, "neither", "no fit 'neither'"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_sentence(chain_of_four, change, fit, words):
    sequence, given = chain_of_four
    with pytest.raises(SprigError) as refusal:
        rig_with(sequence, replace(given, **change), OPTIONS, fit=fit)
    assert words in str(refusal.value)


def test_a_skeleton_needs_a_bone_that_deforms(chain_of_four):
    with pytest.raises(SprigError, match="no bone that deforms"):
        replace(chain_of_four[1], deform=np.zeros(4))
