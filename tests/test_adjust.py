"""What the motion says about a rig's joints, symmetry, what refitting begins with, and the network's raw skeletons."""

from dataclasses import replace

import numpy as np
import pytest

from sprig.backend.adjust import (
    merges,
    rig_of,
    rigid_motions,
    same_joints,
    splits,
    suggest,
    symmetrised,
    to_refit,
    to_segment,
    two_parts,
)
from sprig.backend.armature import rig_with
from sprig.backend.errors import SprigError
from sprig.backend.given_skeleton import GivenSkeleton
from sprig.backend.learned import load_networks
from sprig.backend.pipeline import RigOptions
from sprig.backend.raw_network import decode_frames, matched_shift
from sprig.backend.sequence import MeshSequence

from .creatures import chain, tube
from .small_networks import small_networks

OPTIONS = RigOptions(device="cpu")
NAMES = ("hip", "knee", "ankle", "toe")


@pytest.fixture(scope="module")
def leg():
    """A sequence that four joints in a row have made, and these joints with everything that is known."""
    sequence, joints, weights, motion = chain(4, 16)
    tails = joints + [0.5, 0, 0]
    return sequence, GivenSkeleton(
        joints, tails, np.arange(-1, 3), NAMES, rest_vertices=tube()[0], frames=np.tile(np.eye(4), (4, 1, 1)),
        weights=weights, motion=motion,
    )  # fmt: skip


@pytest.fixture(scope="module")
def rig(leg):
    """The rig that the known joints are."""
    return rig_of(*leg, anchor=3)


def bones_of(rig, **changes) -> GivenSkeleton:
    """The rig's bones in world space, as an artist has left them."""
    skeleton = rig.skeleton
    whole = {
        "joints": skeleton.joints + rig.origin,
        "tails": skeleton.tails + rig.origin,
        "parents": skeleton.parents,
        "names": skeleton.names,
    }
    return GivenSkeleton(**{**whole, **changes})


def with_some(leg, which):
    """The best rig of the leg that has only these of its joints, each hanging from the one before."""
    sequence, given = leg
    which = list(which)
    few = GivenSkeleton(
        given.joints[which], given.tails[which], np.arange(-1, len(which) - 1), tuple(NAMES[j] for j in which),
        rest_vertices=given.rest_vertices,
    )  # fmt: skip
    return rig_with(sequence, few, OPTIONS)


# ---- a rig from what is known


def test_a_rig_of_its_own_bones_replays(rig, leg):
    sequence, given = leg
    assert rig.rmse < 1e-3 and rig.seen_in_motion.all()
    np.testing.assert_allclose(rig.skeleton.joints + rig.origin, given.joints, atol=1e-6)
    unweighted = given.weights.copy()
    unweighted[7] = 0
    with pytest.raises(SprigError, match="1 vertices of the rig have no weights; assign them"):
        rig_of(sequence, replace(given, weights=unweighted), anchor=3)


# ---- merging


def test_nothing_to_do_for_a_rig_that_is_right(rig, leg):
    assert suggest(rig, leg[0]) == []


def test_a_joint_that_stays_still_is_to_be_merged(leg):
    """The knee's motion is given to the ankle, so nothing turns there."""
    sequence, given = leg
    motion = given.motion.copy()
    motion[:, 2] = motion[:, 1]
    (found,) = merges(rig_of(sequence, replace(given, motion=motion), anchor=3))
    assert (found.kind, found.bone, found.touches) == ("merge", "ankle", ("ankle", "knee"))
    assert found.reason == "turns only 0.0°"


def test_a_joint_without_skin_is_to_be_merged_unless_it_carries_a_limb(leg):
    sequence, given = leg
    weights = given.weights.copy()
    weights[:, 2] += weights[:, 3]
    weights[:, 3] = 0
    (found,) = merges(rig_of(sequence, replace(given, weights=weights), anchor=3))
    assert found.bone == "toe" and found.reason == "moves nearly no skin"
    weights = given.weights.copy()
    weights[:, 0] += weights[:, 1]
    weights[:, 1] = 0  # the knee turns the foot that hangs from it
    assert merges(rig_of(sequence, replace(given, weights=weights), anchor=3)) == []


# ---- splitting


@pytest.mark.parametrize(
    ("kept", "bends", "missing", "followers"),
    [((0, 2, 3), "hip", 1, ("ankle",)), ((0, 1, 3), "knee", 2, ("toe",)), ((0, 1, 2), "ankle", 3, ())],
)
def test_a_missing_joint_is_found(leg, kept, bends, missing, followers):
    """The bone that has taken its skin is to be split near where the joint was, and what hung from it goes along."""
    sequence, given = leg
    poor = with_some(leg, kept)
    found = splits(poor, sequence)
    assert [one.bone for one in found] == [bends]
    (one,) = found
    np.testing.assert_allclose(one.head, given.joints[missing], atol=0.1)  # of a leg 2 long
    assert one.followers == followers and one.touches == (bends,)


def test_following_the_split_brings_the_error_down(leg):
    sequence, _given = leg
    poor = with_some(leg, (0, 1, 3))
    (split,) = splits(poor, sequence)
    bones = bones_of(poor)
    more = GivenSkeleton(
        np.vstack([bones.joints, split.head]),
        np.vstack([bones.tails, split.tail]),
        np.array([-1, 0, 3, 1]),
        (*bones.names, "new"),
    )
    better = rig_with(sequence, to_refit(poor, more), OPTIONS)
    assert better.rmse < 0.3 * poor.rmse


def test_noise_is_no_reason_to_split(leg):
    sequence, given = leg
    noise = np.random.default_rng(0).normal(scale=0.01, size=sequence.vertices.shape).astype(np.float32)
    noise *= 1 + 2 * (given.rest_vertices[:, 0] > 1)[:, None]  # more of it on one side
    noisy = MeshSequence(sequence.vertices + noise, sequence.faces, fps=24.0, origin=sequence.origin)
    assert splits(rig_of(noisy, given, anchor=3), noisy) == []


def test_two_rigid_parts_are_told_apart():
    """Points that really are two rigid parts, by any labels; and their motions exactly."""
    rng = np.random.default_rng(2)
    rest, part = rng.normal(size=(60, 3)), np.arange(60) < 25
    rest[part] += [3, 0, 0]
    turns = np.linalg.qr(rng.normal(size=(2, 9, 3, 3)))[0]
    turns *= np.linalg.det(turns)[..., None, None]
    shifts = rng.normal(size=(2, 9, 3))
    moved = [rest @ turn.swapaxes(-1, -2) + shift[:, None] for turn, shift in zip(turns, shifts, strict=True)]
    both = np.where(part[:, None], moved[0], moved[1])
    found = two_parts(rest, both, enough=1e-6)
    assert np.array_equal(found, part) or np.array_equal(found, ~part)
    assert two_parts(rest, rng.normal(size=both.shape), enough=0.5) is None
    rotation, shift = rigid_motions(rest[part], both[:, part])
    np.testing.assert_allclose(rotation, turns[0], atol=1e-12)
    np.testing.assert_allclose(shift, shifts[0], atol=1e-12)


# ---- symmetry

SPINE_AND_ARMS = np.array([[0, 0, 0], [0.03, 0, 1], [1, 0, 1], [-1.1, 0.1, 1], [2, 0.1, 1], [-2, 0, 0.9]])
ARMS = [(2, 3), (5, 4)]  # in either order
FREE = np.zeros(6, dtype=bool)


def moved(points, seed=1) -> tuple[np.ndarray, np.ndarray]:
    """The points somewhere else, looking elsewhere, and the turn."""
    turn = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))[0]
    turn *= np.linalg.det(turn)
    return points @ turn.T + [5, -3, 2], turn


def test_pairs_mirror_each_other_wherever_the_character_stands():
    tails = SPINE_AND_ARMS + [0, 0, 0.3]
    (joints, turn), (tails, _) = moved(SPINE_AND_ARMS), moved(tails)
    joints, tails = symmetrised(joints, tails, ARMS, FREE)
    for points in (joints, tails):
        across = [points[2] - points[3], points[4] - points[5]]
        normal = across[0] / np.linalg.norm(across[0])
        np.testing.assert_allclose(across[1] / np.linalg.norm(across[1]), normal, atol=1e-9)
        middle = [points[2] + points[3], points[4] + points[5], 2 * points[0], 2 * points[1]]
        assert np.ptp([point @ normal for point in middle]) < 1e-9  # the spine is on the plane
        assert abs(normal @ turn[:, 0]) > 0.99
    again = symmetrised(joints, tails, ARMS, FREE)
    np.testing.assert_allclose(again, (joints, tails), atol=1e-9)


def test_locked_joints_stay_and_their_partners_follow():
    locked = np.array([False, True, True, False, True, True])
    joints, tails = symmetrised(SPINE_AND_ARMS, SPINE_AND_ARMS + [0, 0, 0.3], ARMS, locked)
    np.testing.assert_array_equal(joints[locked], SPINE_AND_ARMS[locked])
    np.testing.assert_array_equal(tails[locked], SPINE_AND_ARMS[locked] + [0, 0, 0.3])
    assert np.linalg.norm(joints[3] - [-1, 0, 1]) < 0.12 and np.abs(joints[3] - SPINE_AND_ARMS[3]).max() > 0.01


def test_a_tail_at_a_head_goes_with_it():
    """A spine whose tail is at a shoulder, as bones point at their heaviest child."""
    tails = SPINE_AND_ARMS + [0, 0, 0.3]
    tails[1] = SPINE_AND_ARMS[3]
    joints, tails = symmetrised(SPINE_AND_ARMS, tails, ARMS, FREE)
    np.testing.assert_array_equal(tails[1], joints[3])


def test_what_cannot_be_made_symmetric():
    with pytest.raises(SprigError, match=r"No two bones are called left and right of each other; give them names"):
        symmetrised(SPINE_AND_ARMS, SPINE_AND_ARMS, [], FREE)
    walking = SPINE_AND_ARMS.copy()
    walking[4] += [-1, 1.5, -0.5]
    with pytest.raises(SprigError, match=r"The pairs of joints are \d+ % of the skeleton's size off from mirroring"):
        symmetrised(walking, walking, ARMS, FREE)


# ---- fitting again


def test_bones_are_known_again_by_name_or_place(rig):
    bones = bones_of(rig, names=("hip", "Knie", "new", "toe"))
    tails = bones.tails.copy()
    tails[2] += 0.1  # the third is renamed and moved
    tails[3] += 0.1  # the last keeps its name
    np.testing.assert_array_equal(same_joints(rig, replace(bones, tails=tails)), [0, 1, -1, 3])


def test_unchanged_bones_begin_as_they_were(rig):
    given = to_refit(rig, bones_of(rig))
    np.testing.assert_array_equal(given.weights, rig.weights)
    np.testing.assert_array_equal(given.rest_vertices, rig.rest_vertices + rig.origin)
    assert not given.located.any() and not given.locked.any()


def test_deleted_bones_leave_their_skin_to_the_next_above(rig):
    bones = bones_of(rig)
    few = GivenSkeleton(bones.joints[[0, 3]], bones.tails[[0, 3]], np.array([-1, 0]), ("hip", "toe"))
    weights = to_refit(rig, few).weights
    np.testing.assert_allclose(weights[:, 0], rig.weights[:, :3].sum(axis=1))
    np.testing.assert_allclose(weights[:, 1], rig.weights[:, 3])
    rootless = GivenSkeleton(bones.joints[1:], bones.tails[1:], np.array([-1, 0, 1]), NAMES[1:])
    np.testing.assert_allclose(to_refit(rig, rootless).weights, rig.weights[:, 1:])  # empty rows are found anew


def test_new_bones_take_what_is_nearer_to_them(rig):
    """A bone cut in two at its middle, as Subdivide does it, in an order of the artist's."""
    bones = bones_of(rig)
    middle = (bones.joints[1] + bones.tails[1]) / 2
    tails = np.vstack([bones.tails, bones.tails[1]])
    tails[1] = middle
    more = GivenSkeleton(
        np.vstack([bones.joints, middle]), tails, np.array([-1, 0, 4, 2, 1]), (*NAMES, "knee.001")
    )  # fmt: skip
    given = to_refit(rig, more)
    assert set(given.names) == {*NAMES, "knee.001"}
    column = {name: given.weights[:, k] for k, name in enumerate(given.names)}
    np.testing.assert_allclose(column["knee"] + column["knee.001"], rig.weights[:, 1])
    along = (rig.rest_vertices - rig.skeleton.joints[1])[:, 0]
    half = (middle - bones.joints[1])[0]
    assert (column["knee.001"][along < half - 1e-3] == 0).all() and (column["knee"][along > half + 1e-3] == 0).all()


def test_locked_bones_give_and_take_nothing(rig):
    bones = bones_of(rig, locked=[False, True, False, False])
    more = GivenSkeleton(
        np.vstack([np.delete(bones.joints, 2, axis=0), bones.tails[1] - 0.1]),
        np.vstack([np.delete(bones.tails, 2, axis=0), bones.tails[1]]),
        np.array([-1, 0, 1, 1]),
        ("hip", "knee", "toe", "new"),
        locked=[False, True, False, True],
    )
    given = to_refit(rig, more)
    np.testing.assert_array_equal(given.weights[:, 1], rig.weights[:, 1])
    assert list(given.locked) == [False, True, False, False]  # a new bone has no weights to keep
    assert given.weights[:, 3].sum() == 8  # what is nearest to it, since it takes nothing from its parent


def test_bones_that_slide_may_go_on(rig, leg):
    sequence, given = leg
    motion = given.motion.copy()
    motion[:, 3, 0, 3] += np.linspace(0, 0.2, len(motion))
    sliding = rig_of(sequence, replace(given, motion=motion), anchor=3)
    assert list(to_refit(sliding, bones_of(sliding)).located) == [False, False, False, True]


def test_distance_to_a_segment():
    points = np.array([[-1, 0, 0], [0.5, 2, 0], [3, 0, 0], [1, 0, 0]], dtype=float)
    start, end = np.zeros(3), np.array([2.0, 0, 0])
    np.testing.assert_allclose(to_segment(points, start, end), [1, 2, 1, 0])
    np.testing.assert_allclose(to_segment(points, start, start), np.linalg.norm(points, axis=1))


# ---- the network's own skeletons


def test_every_frame_is_decoded_by_itself(rig, leg, tmp_path, monkeypatch):
    sequence, _given = leg
    networks = load_networks(small_networks(tmp_path)["checkpoint_skeleton"], kinds=("skeleton",))
    texts = []
    raw = decode_frames(sequence, rig, networks, progress=lambda _share, text: texts.append(text))
    assert list(raw.frames) == list(range(16)) and len(raw.joints) == len(raw.parents) == len(texts) == 16
    assert all(joints.shape == (len(parents), 3) for joints, parents in zip(raw.joints, raw.parents, strict=True))
    one = MeshSequence(sequence.vertices[5:6], sequence.faces, fps=24.0, origin=sequence.origin)
    (alone,) = decode_frames(one, replace(rig, **{**_only(rig, 5)}), networks).joints
    np.testing.assert_allclose(alone, raw.joints[5], atol=1e-5)
    steps = []
    for f in range(15):
        for j in range(4):
            here, there = (rig.motion[g, j, :3] @ [*rig.skeleton.joints[j], 1] for g in (f, f + 1))
            steps.append(np.linalg.norm(there - here))
    size = np.linalg.norm(np.ptp(sequence.vertices[3], axis=0))
    assert raw.rig_shift == pytest.approx(100 * np.mean(steps) / size, rel=1e-5)
    monkeypatch.setattr("sprig.backend.raw_network.MOST_FRAMES", 6)
    assert list(decode_frames(sequence, rig, networks).frames) == [0, 3, 6, 9, 12, 15]


def _only(rig, f: int) -> dict:
    """The fields of the rig with a single frame."""
    return {
        "motion": rig.motion[f : f + 1], "frame_numbers": rig.frame_numbers[:1], "frame_index": rig.frame_index[:1],
        "rmse_per_frame": rig.rmse_per_frame[:1], "anchor": 0,
    }  # fmt: skip


def test_joints_are_matched_before_they_are_compared():
    """The second frame's joints come in another order, and one is new; the third is the second."""
    first = np.array([[0, 0, 0], [1, 0, 0]], dtype=float)
    second = np.array([[9, 9, 9], [1, 0, 0.2], [0, 0, 0.1]])
    assert matched_shift([first, second, second]) == pytest.approx((0.15 + 0) / 2)
    assert matched_shift([first]) == 0
