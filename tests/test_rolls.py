"""Rolls: by hand on a body, mirror images, one bend axis along a limb, and frames for any tree."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sprig.backend.naming import read_anatomy
from sprig.backend.rolls import rest_frames

from .test_naming import body, human, mirrored, quadruped


def frames_of(joints, parents, seed=None):
    """Rest frames (J,4,4) with tails at the children's middle; a leaf goes on as its parent does, or at random."""
    rng = np.random.default_rng(seed)
    tails = np.empty_like(joints)
    for j, head in enumerate(joints):
        children = joints[np.flatnonzero(parents == j)]
        onward = head - joints[parents[j]] if seed is None else rng.normal(size=3)
        tails[j] = children.mean(axis=0) if len(children) else head + onward
    return rest_frames(joints, tails, parents, read_anatomy(joints, parents))


def standing_human():
    """Both legs as the right one: the body is its own mirror image."""
    joints, parents, names = human()
    for name in ("shin", "foot", "toe"):
        joints[names.index(name + ".L")] = joints[names.index(name + ".R")] * [-1, 1, 1]
    return joints, parents, names


def turned(frame, degrees):
    """Where a bone points after a turn about its own X."""
    return frame[:3, :3] @ Rotation.from_euler("x", degrees, degrees=True).as_matrix()[:, 1]


def test_a_positive_turn_bends_knees_back_elbows_forward_and_the_spine_down():
    """The human faces -Y; knees and elbows are straight here, so that only the rule says where they bend."""
    joints, parents, names = standing_human()
    frames = dict(zip(names, frames_of(joints, parents), strict=True))
    for name in ("thigh.L", "shin.L", "shin.R"):
        assert frames[name][:3, 0] == pytest.approx([1, 0, 0]) and turned(frames[name], 30)[1] > 0.4
    for name in ("upper_arm.L", "forearm.L", "forearm.R", "hand.R"):
        assert turned(frames[name], 30)[1] < -0.4
    for name in ("hips", "spine", "chest", "neck", "head"):
        assert frames[name][:3, 0] == pytest.approx([1, 0, 0]) and turned(frames[name], 30)[1] < -0.4


def test_the_whole_spine_and_tail_turn_one_way():
    """Forward and backward bones of a quadruped alike: world X for all, Z up on the tail."""
    joints, parents, names = quadruped()
    frames = dict(zip(names, frames_of(joints, parents), strict=True))
    for name in ("hips", "spine_01", "chest", "neck", "head_01", "tail_01", "tail_03"):
        assert frames[name][:3, 0] == pytest.approx([1, 0, 0], abs=1e-9)
    assert frames["tail_01"][2, 2] > 0


def test_a_bent_limb_bends_further_about_its_own_axis():
    """An elbow bent in an oblique plane shows its axis; the shoulder before it and the hand behind share it."""
    joints, parents, names = standing_human()
    plane = Rotation.from_euler("x", 35, degrees=True)
    for name, place in (("forearm", (0.25, 0, -0.05)), ("hand", (0.35, -0.2, -0.05))):
        joints[names.index(name + ".L")] = [0.2, 0, 0.5] + plane.apply(place)
        joints[names.index(name + ".R")] = joints[names.index(name + ".L")] * [-1, 1, 1]
    frames = dict(zip(names, frames_of(joints, parents), strict=True))
    upper, fore = (frames[name][:3, 1] for name in ("upper_arm.L", "forearm.L"))
    axis = np.cross(upper, fore) / np.linalg.norm(np.cross(upper, fore))
    for name in ("upper_arm.L", "forearm.L", "hand.L"):
        assert frames[name][:3, 0] == pytest.approx(axis)
    assert turned(frames["forearm.L"], 10) @ upper < fore @ upper


@pytest.mark.parametrize("angle", [0, 40, 200])
@pytest.mark.parametrize("creature", [standing_human, quadruped])
def test_partners_are_mirror_images(creature, angle):
    """Y and Z mirrored, X the negative of the mirror image, across whatever plane; X across the plane on the trunk."""
    joints, parents, names = creature()
    turn = Rotation.from_euler("z", angle, degrees=True).as_matrix()
    joints = joints @ turn.T
    frames = frames_of(joints, parents)
    left = turn[:, 0]
    mirror = np.eye(3) - 2 * np.outer(left, left)
    for name, frame in zip(names, frames, strict=True):
        if name.endswith(".L"):
            other = frames[names.index(name[:-1] + "R")]
            np.testing.assert_allclose(other[:3, 1:3], mirror @ frame[:3, 1:3], atol=1e-9)
            np.testing.assert_allclose(other[:3, 0], -mirror @ frame[:3, 0], atol=1e-9)
        elif not name.endswith(".R"):
            assert frame[:3, 0] == pytest.approx(left, abs=1e-9)


def test_rolls_follow_a_pair_into_another_pose():
    """Mid-stride the two legs differ, but both keep turning about one axis."""
    joints, parents, names = human()
    frames = dict(zip(names, frames_of(joints, parents), strict=True))
    for name in ("thigh.L", "thigh.R", "shin.L", "shin.R", "foot.L", "foot.R"):
        assert frames[name][:3, 0] == pytest.approx([1, 0, 0], abs=1e-9)


def test_every_finger_bends_about_its_own_axis():
    """The elbow bends in the plane of X and Y, the fingers curl in that of X and Z."""
    fingers = [
        (f"hand.{side}", f"{finger}1.{side} {finger}2.{side} {finger}3.{side}",
         [(sign * 0.7, y, 0.5), (sign * 0.8, y, 0.5), (sign * 0.85, y, 0.4)])
        for finger, y in (("a", -0.3), ("b", -0.1))
        for side, sign in (("L", 1), ("R", -1))
    ]  # fmt: skip
    joints, parents, names = body(
        ("root", "spine", [(0, 0, 0.5)]),
        *mirrored("spine", "arm elbow hand", [(0.2, 0, 0.5), (0.4, 0, 0.5), (0.6, -0.2, 0.5)]),
        *fingers,
    )
    frames = dict(zip(names, frames_of(joints, parents), strict=True))
    for side, sign in (("L", 1), ("R", -1)):
        for name in ("arm", "elbow"):
            assert frames[f"{name}.{side}"][:3, 0] == pytest.approx([0, 0, -sign], abs=1e-9)
        for name in ("a1", "a2", "a3", "b2"):
            assert frames[f"{name}.{side}"][:3, 0] == pytest.approx([0, sign, 0], abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 40), roots=st.integers(1, 3), flat=st.booleans())
def test_any_tree_gets_frames_along_its_bones(seed, size, roots, flat):
    rng = np.random.default_rng(seed)
    parents = np.array([-1 if j < roots else int(rng.integers(0, j)) for j in range(size)])
    joints = rng.normal(size=(size, 3)).round(1) * [1, 1, not flat]
    tails = joints + rng.integers(-1, 2, size=(size, 3))  # axes, diagonals, and bones without length
    frames = rest_frames(joints, tails, parents, read_anatomy(joints, parents))
    rotation = frames[:, :3, :3]
    np.testing.assert_allclose(rotation.swapaxes(1, 2) @ rotation, np.tile(np.eye(3), (size, 1, 1)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(rotation), 1)
    np.testing.assert_array_equal(frames[:, :3, 3], joints)
    length = np.linalg.norm(tails - joints, axis=1)
    np.testing.assert_allclose(np.sum(rotation[:, :, 1] * (tails - joints), axis=1), length, atol=1e-9)
