"""Root motion: whoever carries the travel, every vertex is posed at the same place."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprig.backend.formats.npz import read_rig, write_rig
from sprig.backend.kinematics import linear_blend_skinning, world_bones
from sprig.backend.rig import Rig, Skeleton
from sprig.backend.root_motion import ROOT_MOTIONS, horizontal_travel, with_root_bone, without_travel
from sprig.sprig_blender import cli


def small_rig(seed=0, frames=5, roots=1, names=("root", "spine", "arm.L", "arm.R")) -> Rig:
    """Four joints that turn about Z and X, and roots that walk away along X and Y and jump."""
    rng = np.random.default_rng(seed)
    joints = rng.normal(size=(4, 3)) + [0, 0, 3]
    parents = np.array([-1, 0, 1, 1] if roots == 1 else [-1, -1, 0, 1])
    motion = np.tile(np.eye(4), (frames, 4, 1, 1))
    for j, parent in enumerate(parents):
        angle = rng.uniform(-1, 1, size=frames)
        turn = np.tile(np.eye(4), (frames, 1, 1))
        turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
        turn[:, 1, 0], turn[:, 0, 1] = np.sin(angle), -np.sin(angle)
        turn[:, :3, 3] = joints[j] - turn[:, :3, :3] @ joints[j]
        if parent < 0:
            turn[:, :3, 3] += rng.normal(size=(frames, 3)) * 5
        motion[:, j] = turn if parent < 0 else motion[:, parent] @ turn
    weights = rng.dirichlet(np.ones(4), 30)
    return Rig(
        Skeleton(joints, joints + [0, 0, 0.5], parents, names), weights, motion, rng.normal(size=(30, 3)) + [0, 0, 3],
        np.array([[0, 1, 2]]), anchor=0, origin=rng.normal(size=3) * 10, fps=24.0,
        frame_numbers=np.arange(frames), frame_index=np.arange(frames), seen_in_motion=np.ones(4, bool),
        rotation_range=np.ones(4), rmse_per_frame=np.zeros(frames),
    )  # fmt: skip


def posed(rig: Rig, shift=0.0) -> np.ndarray:
    """Every vertex on every frame (F,V,3)."""
    shapes = [linear_blend_skinning(rig.rest_vertices, rig.weights, pose) for pose in rig.motion]
    return np.array(shapes) + np.broadcast_to(shift, (len(shapes), 3))[:, None]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1, 2]))
def test_every_vertex_stays_where_it_is(seed, roots):
    rig = small_rig(seed, roots=roots)
    size = np.ptp(posed(rig))
    np.testing.assert_allclose(posed(with_root_bone(rig)), posed(rig), atol=1e-12 * size)
    # Weights in float32 sum to 1 within 1e-7.
    np.testing.assert_allclose(posed(without_travel(rig), horizontal_travel(rig)), posed(rig), atol=1e-6 * size)


def test_the_travel_by_hand():
    """A root joint at (1, 2, 3) that goes to (5, 2, 9) while it turns has travelled 4 along X, and jumped 6."""
    rig = small_rig(frames=2)
    joints = rig.skeleton.joints.copy()
    joints[0] = 1, 2, 3
    motion = np.tile(np.eye(4), (2, 4, 1, 1))
    motion[1, 0, :3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    motion[1, 0, :3, 3] = np.array([5, 2, 9]) - motion[1, 0, :3, :3] @ joints[0]
    rig = replace(rig, skeleton=replace(rig.skeleton, joints=joints), motion=motion)
    np.testing.assert_allclose(horizontal_travel(rig), [[0, 0, 0], [4, 0, 0]], atol=1e-12)


def test_the_root_bone_stands_on_the_ground():
    rig = small_rig()
    rooted = with_root_bone(rig)
    skeleton = rooted.skeleton
    assert skeleton.names == ("root", "hips", "spine", "arm.L", "arm.R")
    assert skeleton.parents.tolist() == [-1, 0, 1, 2, 2]
    np.testing.assert_allclose(skeleton.joints[0, :2], rig.skeleton.joints[0, :2])
    assert skeleton.joints[0, 2] == rig.rest_vertices[:, 2].min()
    rest, world = world_bones(rooted)
    np.testing.assert_allclose(rest[0, :3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_allclose(world[:, 0, :3, 3] - rest[0, :3, 3], horizontal_travel(rig), atol=1e-12)
    # The joint that carried all keeps heights alone: below the root bone it goes neither along X nor Y.
    hips = np.einsum("fij,j->fi", rooted.motion[:, 1], [*rig.skeleton.joints[0], 1])[:, :2]
    np.testing.assert_allclose(hips, world[:, 0, :2, 3] - rig.origin[:2], atol=1e-12)
    assert rooted.seen_in_motion[0] and rooted.rotation_range[0] == 0 and not rooted.weights[:, 0].any()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("pelvis", "spine", "a", "b"), ("pelvis", "spine", "a", "b")),
        (("root", "hips", "a", "b"), ("pelvis", "hips", "a", "b")),
        (("root", "hips", "pelvis", "body"), ("hips_2", "hips", "pelvis", "body")),
    ],
)
def test_names_stay_unique(names, expected):
    assert with_root_bone(small_rig(names=names)).skeleton.names == ("root", *expected)


def test_rolls_of_bones_stay():
    rig = small_rig()
    frames = np.tile(np.eye(4), (4, 1, 1))
    frames[:, :3, 3] = rig.skeleton.joints
    rooted = with_root_bone(replace(rig, skeleton=replace(rig.skeleton, frames=frames)))
    np.testing.assert_array_equal(rooted.skeleton.frames[1:], frames)
    np.testing.assert_array_equal(rooted.skeleton.frames[0, :3, 3], rooted.skeleton.joints[0])


def test_an_archive_holds_the_root_bone(tmp_path):
    rig = small_rig()
    write_rig(tmp_path / "rig.npz", with_root_bone(rig))
    read = read_rig(tmp_path / "rig.npz")
    motion = read["bone_world"] @ np.linalg.inv(read["bone_rest"])
    shapes = [linear_blend_skinning(read["rest_vertices"], read["weights"], pose) for pose in motion]
    np.testing.assert_allclose(shapes, posed(rig) + rig.origin, atol=1e-4)
    assert read["joint_names"][0] == "root" and len(read["joint_names"]) == 5


def test_the_command_line_knows_the_choices():
    assert cli.ROOT_MOTIONS == ROOT_MOTIONS
