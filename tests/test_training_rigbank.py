"""The rig bank as ground truth: each rule of the clean-up by hand, real files posed as before, and an honest split."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sprig.backend.errors import SprigError
from sprig.training import rigbank
from sprig.training.character import Character


@pytest.fixture(scope="module")
def bank(shared):
    return rigbank.inspect_rigbank(shared / "data" / "rigbank")


def skin(columns, joints):
    """(V,J) rigid weights: vertex v belongs to joint columns[v]."""
    return np.eye(joints)[columns]


def turns(axis, degrees):
    """(P,4,4) turns about an axis through the origin."""
    motion = np.tile(np.eye(4), (len(degrees), 1, 1))
    motion[:, :3, :3] = Rotation.from_rotvec(np.outer(np.radians(degrees), axis)).as_matrix()
    return motion


def small_character(**changes):
    values = {
        "name": "two", "rig_id": "new", "category": "machine", "source": "", "licence": "",
        "vertices": np.zeros((3, 3), np.float32),
        "faces": np.array([[0, 1, 2]], np.int32),
        "weights": skin([0, 1, 1], 2).astype(np.float32),
        "joints": np.zeros((2, 3), np.float32),
        "parents": np.array([-1, 0], np.int32),
        "motion": np.zeros((0, 2, 4, 4), np.float32),
    }  # fmt: skip
    return Character(**{**values, **changes})


def small_file():
    """The arrays of a file: helper root, hip, an idle joint, knee, weapon slot."""
    rest = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    rest[:, 2, 3] = [9, 0, 1, 2, 3]
    return {
        "name": np.array("small"), "source": np.array("here"), "licence": np.array("CC0-1.0"),
        "rest_vertices": np.eye(3, dtype=np.float32),
        "faces": np.array([[0, 1, 2]]),
        "weights": skin([1, 3, 3], 5).astype(np.float16),
        "joint_names": np.array(["helper", "hip", "idle", "knee", "weapon"]),
        "parents": np.array([-1, 0, 1, 2, 3]),
        "joints_rest": rest[:, :3, 3],
        "bone_rest": rest,
        "pose_world": rest[None],
    }  # fmt: skip


# ---- the character


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"parents": np.array([-1, -1], np.int32)}, "one root"),
        ({"parents": np.array([-1, 1], np.int32)}, "before children"),
        ({"weights": np.full((3, 2), 0.6, np.float32)}, "simplex"),
        ({"faces": np.array([[0, 1, 3]], np.int32)}, "not there"),
        ({"joints": np.full((2, 3), np.nan, np.float32)}, "joints is not finite"),
        ({"vertices": np.zeros((3, 3))}, "vertices is float64"),
    ],
)
def test_character_refuses_what_is_not_one(changes, complaint):
    with pytest.raises(ValueError, match=complaint):
        small_character(**changes)


# ---- the clean-up by hand


def test_needed_joints_are_the_skinned_ones_and_what_connects_them():
    #       0 helper ─ 1 pelvis ┬ 2 leg (skin) ─ 3 toe end
    #                           └ 4 idle ─ 5 arm (skin) ─ 6 weapon slot (weight 0.01)       7 IK target, a root
    parents = np.array([-1, 0, 1, 2, 1, 4, 5, -1])
    weights = skin([2, 5], 8)
    weights[1, 5:7] = [0.99, 0.01]
    assert rigbank.needed_joints(weights, parents).tolist() == [False, True, True, False, True, True, False, False]


def test_needed_joints_keeps_a_skinned_root_with_one_child():
    assert rigbank.needed_joints(skin([0, 1], 2), np.array([-1, 0])).all()


def test_removed_joints_hand_children_and_weights_to_the_nearest_ancestor_left():
    parents = np.array([-1, 0, 1, 2, 3])
    keep = np.array([False, True, False, False, True])
    joints = np.array([[0, 0, 9.0], [0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 0, 8]])
    weights = np.array([[0.1, 0.2, 0.3, 0.15, 0.25]])
    assert rigbank.remove_joints(parents, keep).tolist() == [-1, 0]
    # 0 has no ancestor left, and 4 is nearer to it than 1
    np.testing.assert_allclose(rigbank.move_weights(weights, joints, parents, keep), [[0.65, 0.35]])


def test_join_roots_takes_the_tree_that_carries_most():
    parents = np.array([-1, 0, -1, 2, 3])
    joined = rigbank.join_roots(skin([1, 2, 3, 4], 5), parents)
    assert joined.tolist() == [2, 0, -1, 2, 3]
    assert rigbank.parents_first(joined).tolist() == [2, 0, 3, 1, 4]


STRAIGHT_ARM = np.array([[0, 0, 0], [1.0, 0, 0], [2, 0, 0]])
BENT_ARM = np.array([[0, 0, 0], [1.0, 0, 0], [1, 1, 0]])
FORWARD, UP = [1, 0, 0], [0, 0, 1]


@pytest.mark.parametrize(
    ("joints", "axis", "degrees", "name", "twist"),
    [
        (STRAIGHT_ARM, FORWARD, [0, 40], "lower", True),  # turns about the chain
        (STRAIGHT_ARM, UP, [0, 40], "lower", False),  # an elbow
        (STRAIGHT_ARM, FORWARD, [0, 0], "lower", False),  # no sign of anything
        (STRAIGHT_ARM, FORWARD, [], "lower", False),  # no poses
        (STRAIGHT_ARM, FORWARD, [], "UpperArmTwist.L", True),
        (BENT_ARM, FORWARD, [0, 40], "UpperArmTwist.L", False),  # not in line
    ],
)
def test_twist_joints(joints, axis, degrees, name, twist):
    base = turns([0.6, 0, 0.8], np.linspace(20, 80, len(degrees)))  # the whole arm moves too
    motion = np.stack([base, base @ turns(axis, degrees), base], axis=1)
    names = np.array(["upper", name, "hand"])
    assert rigbank.twist_joints(joints, np.array([-1, 0, 1]), motion, names).tolist() == [False, twist, False]


def test_twist_joints_never_take_the_start_of_a_limb():
    joints = np.vstack([STRAIGHT_ARM, [[0, 1.0, 0]]])  # the root has a second child
    names = np.array(["root", "twist", "hand", "tail"])
    none = np.zeros((0, 4, 4, 4))
    assert not rigbank.twist_joints(joints, np.array([-1, 0, 1, 0]), none, names).any()


def test_nearest_rotations_see_through_scale():
    turn = turns(UP, [30.0])
    scaled = turn.copy()
    scaled[:, :3, :3] *= 3
    np.testing.assert_allclose(rigbank.nearest_rotations(scaled), turn[:, :3, :3], atol=1e-12)


def test_a_small_file_is_cleaned():
    character = rigbank.clean_character(small_file(), "id", "biped")
    assert character.parents.tolist() == [-1, 0, 1]  # hip, idle, knee
    assert character.joints[:, 2].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(character.weights, skin([0, 2, 2], 3))
    np.testing.assert_array_equal(character.motion, np.tile(np.eye(4), (1, 3, 1, 1)))


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("faces", np.zeros((0, 3), int), "no faces"),
        ("pose_world", np.full((1, 5, 4, 4), np.inf), "pose_world is not finite"),
        ("weights", np.zeros((3, 5)), "without weights"),
        ("weights", skin([1, 1, 1], 5), "1 joints"),
    ],
)
def test_a_file_that_teaches_nothing_is_refused(key, value, reason):
    with pytest.raises(ValueError, match=reason):
        rigbank.clean_character({**small_file(), key: value}, "id", "biped")


def test_too_many_joints_are_refused():
    count = rigbank.MOST_JOINTS + 1
    rest = np.tile(np.eye(4), (count, 1, 1))
    many = {
        "rest_vertices": np.zeros((count, 3)),
        "weights": np.eye(count),
        "joint_names": np.array(["link"] * count),
        "parents": np.arange(count) - 1,
        "joints_rest": np.zeros((count, 3)),
        "bone_rest": rest,
        "pose_world": rest[None],
    }
    with pytest.raises(ValueError, match="102 joints"):
        rigbank.clean_character({**small_file(), **many}, "id", "machine")


def test_a_folder_that_is_no_bank_is_named(tmp_path):
    with pytest.raises(SprigError, match=r"no CATALOGUE\.csv"):
        rigbank.read_rigbank(tmp_path)


# ---- the split by hand


def test_families_chain_and_join_levels_of_detail_and_meshes():
    hand = set("abcdefgh")
    names = {"1": hand, "2": hand - {"a"}, "3": hand - {"a", "b"}, "4": {"x"}, "5": {"y"}, "6": {"z"}, "7": {"w"}}
    models = {rig: {f"model {rig}"} for rig in names} | {"4": {"trapper"}, "5": {"trapper_low"}}
    meshes = {rig: {rig.encode()} for rig in names} | {"6": {b"fox", b"wolf"}, "7": {b"wolf"}}
    assert rigbank.rig_families(names, models, meshes) == [("1", "2", "3"), ("4", "5"), ("6", "7")]


def test_chosen_are_whole_families_of_every_category():
    families = [[str(i)] for i in range(20)] + [["a", "b"], ["c"], ["d", "e", "f"]]
    kinds = {"a": "snake", "c": "snake", "d": "robot"}
    chosen = rigbank.choose_validation(families, lambda rig: kinds.get(rig, "biped"), {"7", "z"})
    assert chosen == rigbank.choose_validation(reversed(families), lambda rig: kinds.get(rig, "biped"), {"7", "z"})
    assert {"c", "d", "e", "f", "7"} <= set(chosen) and not {"a", "b"} & set(chosen)
    assert len(set(chosen) - set("cdef")) == 3  # of 20


def test_split_goes_by_rig():
    held_out = small_character(rig_id=rigbank.validation_rigs()[0])
    new = small_character()
    assert rigbank.split([held_out, new]) == ([new], [held_out])


def test_lists_are_sorted_and_name_nothing_twice():
    for names in (rigbank.validation_rigs(), rigbank.validation_clips()):
        assert names and names == sorted(set(names))


# ---- the bank


def test_all_files_are_usable_or_have_a_reason(bank, shared):
    characters, rejected = bank
    assert len(characters) + len(rejected) == len(list((shared / "data" / "rigbank").glob("*.npz")))
    assert not rejected
    assert len({character.rig_id for character in characters}) == 133


def test_cleaned_characters_move_as_the_files_say(bank, shared):
    """Only weights up to LEAST_WEIGHT and merged twists may make a difference: 1 % of the diagonal is plenty."""
    for character in bank[0][::10]:
        with np.load(shared / "data" / "rigbank" / f"{character.name}.npz") as arrays:
            weights = arrays["weights"].astype(float)
            motion = arrays["pose_world"][:3] @ np.linalg.inv(arrays["bone_rest"])
        points = np.c_[character.vertices, np.ones(len(character.vertices))]
        before = np.einsum("vj,pjkl,vl->pvk", weights, motion, points, optimize=True)[..., :3]
        after = np.einsum("vj,pjkl,vl->pvk", character.weights, character.motion[:3], points, optimize=True)[..., :3]
        diagonal = np.linalg.norm(np.ptp(character.vertices, axis=0))
        assert np.sqrt(((after - before) ** 2).sum(-1).mean()) < 0.01 * diagonal, character.name


def test_the_lists_are_those_that_the_rule_writes(shared, tmp_path):
    rigbank.write_split(shared / "data" / "rigbank", shared / "data" / "sequences", tmp_path)
    for path in (rigbank.RIGS_LIST, rigbank.CLIPS_LIST):
        assert (tmp_path / path.name).read_text(encoding="utf-8") == path.read_text(encoding="utf-8")


def test_the_split_holds_out_every_category_and_about_15_percent(bank):
    training, validation = rigbank.split(bank[0])
    assert {c.category for c in validation} == {c.category for c in bank[0]}
    rigs = [{c.rig_id for c in part} for part in (training, validation)]
    assert not rigs[0] & rigs[1]
    assert 0.12 < len(rigs[1]) / 133 < 0.2
    assert 0.10 < len(validation) / len(bank[0]) < 0.2


def test_no_skeleton_of_a_listed_clip_is_trained_on(bank, shared):
    training = {character.rig_id for character in rigbank.split(bank[0])[0]}
    trained = set()
    for entry in rigbank.read_catalogue(shared / "data" / "rigbank"):
        if entry["rig_id"] in training:
            with np.load(shared / "data" / "rigbank" / f"{entry['name']}.npz") as arrays:
                trained.add(rigbank.skeleton_key(arrays))
    for clip in rigbank.validation_clips():
        with np.load(shared / "data" / "sequences" / f"{clip}.npz") as arrays:
            assert rigbank.skeleton_key(arrays) not in trained, clip


def test_characters_are_frozen(bank):
    with pytest.raises(dataclasses.FrozenInstanceError):
        bank[0][0].name = "other"
