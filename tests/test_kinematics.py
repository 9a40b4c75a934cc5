"""Skinning and bone matrices: by hand, against another form, and what must not matter."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sprig.backend.kinematics import bone_frames, carry_joints, linear_blend_skinning, world_bones

from .creatures import chain
from .test_rig import make_rig

DIRECTIONS = st.tuples(*[st.floats(-1, 1)] * 3).filter(lambda v: np.linalg.norm(v) > 1e-3)


def test_skinning_by_hand():
    """Half of a quarter turn about Z and half of a shift blend the positions, not the angles."""
    turn, shift = np.eye(4), np.eye(4)
    turn[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    shift[:3, 3] = [0, 0, 2]
    posed = linear_blend_skinning([[1, 0, 0], [1, 0, 0], [1, 0, 0]], [[1, 0], [0, 1], [0.5, 0.5]], [turn, shift])
    assert posed == pytest.approx(np.array([[0, 1, 0], [1, 0, 2], [0.5, 0.5, 1]]))
    assert posed.dtype == np.float64


@given(st.integers(0, 2**32 - 1))
def test_skinning_is_the_weighted_sum_of_rigid_motions(seed):
    rng = np.random.default_rng(seed)
    rest, weights = rng.normal(size=(5, 3)), rng.dirichlet(np.ones(3), 5)
    motion = rng.normal(size=(3, 4, 4))
    motion[:, 3] = [0, 0, 0, 1]
    expected = sum(weights[:, j, None] * (rest @ motion[j, :3, :3].T + motion[j, :3, 3]) for j in range(3))
    assert linear_blend_skinning(rest, weights, motion) == pytest.approx(expected)


@given(DIRECTIONS, st.floats(1e-4, 1e4))
def test_a_bones_frame_is_a_rotation_along_the_bone_with_its_roll_up(direction, length):
    along = np.array(direction) / np.linalg.norm(direction)
    frame = bone_frames([[1, 2, 3]], [[1, 2, 3] + length * along])[0]
    rotation = frame[:3, :3]
    assert rotation.T @ rotation == pytest.approx(np.eye(3), abs=1e-9) and np.linalg.det(rotation) == pytest.approx(1)
    # the head lies at 1..3, so a bone as short as 1e-4 keeps its direction to 1e-11
    assert rotation[:, 1] == pytest.approx(along, abs=1e-9) and frame[:, 3].tolist() == [1, 2, 3, 1]
    assert abs(rotation[2, 0]) < 1e-9 or abs(along[2]) > 0.99  # X is level, so Z is as close to up as it can be
    if abs(along[2]) < 0.99:
        assert rotation[2, 2] > 0


def test_upright_bones_take_their_roll_from_the_front():
    frames = bone_frames(np.zeros((3, 3)), [[0, 0, 1], [0, 0, -1], [0.1, 0, 1]])
    assert frames[0, :3, :3] == pytest.approx(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]))  # Z towards -Y
    assert frames[1, :3, 2] == pytest.approx([0, -1, 0])
    assert frames[2, :3, 2] == pytest.approx([0, -1, 0], abs=1e-9)


def test_a_bone_without_length_points_up():
    frame = bone_frames([[1, 1, 1]], [[1, 1, 1]])[0]
    assert frame[:3, 1].tolist() == [0, 0, 1] and np.isfinite(frame).all()


def test_world_bones_give_back_the_motion():
    rig = make_rig(origin=[1000.0, -2000, 500])
    rest, posed = world_bones(rig)
    assert rest.shape == (3, 4, 4) and posed.shape == (4, 3, 4, 4)
    assert rest[:, :3, 3] == pytest.approx(rig.skeleton.joints + rig.origin)
    # the definition of the .npz: world vertices = (posed @ inv(rest)) applied to the world's rest vertices
    weights = rig.weights / rig.weights.sum(axis=1, keepdims=True, dtype=np.float64)  # exact: the origin is far away
    world = np.c_[rig.rest_vertices + rig.origin, np.ones(len(rig.rest_vertices))]
    for frame in range(4):
        relative = posed[frame] @ np.linalg.inv(rest)
        expected = linear_blend_skinning(rig.rest_vertices, weights, rig.motion[frame]) + rig.origin
        found = np.einsum("vj,jik,vk->vi", weights, relative, world)[:, :3]
        assert found == pytest.approx(expected, abs=1e-9)
        rigid = np.array([Rotation.from_matrix(m[:3, :3]).magnitude() for m in rig.motion[frame]])
        assert [Rotation.from_matrix(m[:3, :3]).magnitude() for m in relative] == pytest.approx(rigid)


def test_joints_are_carried_with_the_skin():
    sequence, rest, weights, motion = chain(3, 16)
    homogeneous = np.column_stack([rest, np.ones(3)])
    truth = np.einsum("fjab,jb->fja", motion[:, :, :3], homogeneous) - sequence.origin
    shapes = sequence.vertices.astype(np.float64)
    found = carry_joints(truth[0], [-1, 0, 1], weights, shapes[0], shapes)
    assert np.linalg.norm(found - truth, axis=2)[:, 1:].max() < 0.06
    np.testing.assert_allclose(found[0], truth[0], atol=1e-6)
    turn = Rotation.from_rotvec([0.3, -0.5, 1.0]).as_matrix()
    moved = carry_joints(truth[0], [-1, 0, 1], weights, shapes[0], (shapes[0] @ turn.T + [1, 2, 3])[None])
    np.testing.assert_allclose(moved[0], truth[0] @ turn.T + [1, 2, 3], atol=1e-6)
