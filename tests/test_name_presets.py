"""Names of other software: by hand on a human, chains of any length, what has no name, and what is no humanoid."""

import numpy as np
import pytest

from sprig.backend.errors import SprigError
from sprig.backend.name_presets import NAMES, joint_names, with_preset
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.sprig_blender import cli

from .creatures import chain
from .test_naming import human, quadruped

LIMBS = ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")
HUMANOID = ["hips", "chest", "head", *(f"{name}.{side}" for name in LIMBS for side in "LR")]


def renamed(ours, preset) -> dict:
    found, warnings = with_preset(ours, preset)
    assert not warnings and len(set(found)) == len(ours)
    return dict(zip(ours, found, strict=True))


@pytest.mark.parametrize(
    ("preset", "expected"),
    [
        ("unity", "Hips Spine Chest Neck Head LeftUpperArm LeftLowerArm LeftHand RightUpperArm RightLowerArm RightHand "
         "LeftUpperLeg LeftLowerLeg LeftFoot LeftToes RightUpperLeg RightLowerLeg RightFoot RightToes"),
        ("unreal", "pelvis spine_01 spine_02 neck_01 head upperarm_l lowerarm_l hand_l upperarm_r lowerarm_r hand_r "
         "thigh_l calf_l foot_l ball_l thigh_r calf_r foot_r ball_r"),
        ("mixamo", " ".join(f"mixamorig:{name}" for name in (
            "Hips Spine Spine1 Neck Head LeftArm LeftForeArm LeftHand RightArm RightForeArm RightHand "
            "LeftUpLeg LeftLeg LeftFoot LeftToeBase RightUpLeg RightLeg RightFoot RightToeBase").split())),
        ("rigify", "spine spine.001 spine.002 spine.004 spine.006 upper_arm.L forearm.L hand.L upper_arm.R forearm.R "
         "hand.R thigh.L shin.L foot.L toe.L thigh.R shin.R foot.R toe.R"),
    ],
)  # fmt: skip
def test_a_human_by_hand(preset, expected):
    joints, parents, _ = human()
    assert joint_names(joints, parents, preset) == (expected.split(), ())


def test_our_own_names_are_the_default():
    joints, parents, names = human()
    assert joint_names(joints, parents) == joint_names(joints, parents, "sprig") == (names, ())


def test_a_long_spine_ends_with_the_last_name():
    """What carries the arms keeps its meaning; what lies between keeps our names, made unique where they clash."""
    spine = [f"spine_{k:02d}" for k in range(1, 7)]
    found = renamed([*spine, "neck_01", "neck_02", "neck_03", *HUMANOID], "unreal")
    assert [found[name] for name in (*spine, "chest")] == [
        "spine_01", "spine_02", "spine_03", "spine_04", "spine_05_extra", "spine_06", "spine_05",
    ]  # fmt: skip
    assert [found[f"neck_{k:02d}"] for k in (1, 2, 3)] == ["neck_01", "neck_02_extra", "neck_02"]
    found = renamed([*spine, *HUMANOID], "unity")
    assert [found[name] for name in ("spine_01", "spine_02", "spine_03", "chest")] == [
        "Spine", "Chest", "spine_03", "UpperChest",
    ]  # fmt: skip


def test_a_chest_on_the_hips_is_the_first_of_the_spine():
    assert {preset: renamed(HUMANOID, preset)["chest"] for preset in NAMES[1:]} == {
        "unity": "Spine", "unreal": "spine_01", "mixamo": "mixamorig:Spine", "rigify": "spine.001",
    }  # fmt: skip


@pytest.mark.parametrize("preset", NAMES[1:])
def test_extra_bones_keep_our_names(preset):
    """A tail, shoulders, toes beyond the preset's; numbered hands and heads begin with the preset's bone."""
    numbered = [name.replace("hand", "hand_01").replace("head", "head_01") for name in HUMANOID]
    extra = ["root", "tail_01", "hand_02.L", "hand_02.R", "head_02", "finger_A_01.L", "arm_branch_A.R"]
    found = renamed([*numbered, *extra], preset)
    assert [found[name] for name in extra] == extra
    assert renamed(HUMANOID, preset)["hand.L"] == found["hand_01.L"]
    assert renamed(HUMANOID, preset)["head"] == found["head_01"]


@pytest.mark.parametrize("preset", NAMES[1:])
@pytest.mark.parametrize("missing", HUMANOID)
def test_half_a_humanoid_keeps_our_names(preset, missing):
    ours = [name for name in HUMANOID if name != missing]
    found, (warning,) = with_preset(ours, preset)
    assert found == ours and "no whole humanoid" in warning


def test_a_quadruped_is_no_humanoid():
    joints, parents, names = quadruped()
    found, (warning,) = joint_names(joints, parents, "mixamo")
    assert found == names
    assert warning == "The skeleton shows no whole humanoid; its joints have SPRig's names, not Mixamo's."


def test_a_human_with_shoulders_and_fingers():
    joints, parents, names = human()
    shoulders, hands = (np.array([names.index(f"{name}.{s}") for s in "LR"]) for name in ("upper_arm", "hand"))
    places = np.concatenate([joints[shoulders] * [0.3, 1, 1], joints[hands] + [[0.1, y, 0] for y in (0, 0)]])
    joints, parents = np.concatenate([joints, places]), np.concatenate([parents, parents[shoulders], hands])
    parents[shoulders] = len(names) + np.arange(2)
    order = np.argsort([depth(parents, j) for j in range(len(parents))], kind="stable")
    place = np.argsort(order)
    parents = np.where(parents[order] >= 0, place[parents[order]], -1)
    found, warnings = joint_names(joints[order], parents, "unreal")
    assert not warnings
    assert {"clavicle_l", "clavicle_r", "upperarm_l", "hand_r"} <= set(found)


def depth(parents, j) -> int:
    return 0 if parents[j] < 0 else 1 + depth(parents, parents[j])


def test_the_pipeline_warns_where_a_preset_does_not_fit():
    rig = rig_sequence(chain(frames=6)[0], RigOptions(joints=3, names="mixamo"))
    assert any("no whole humanoid" in warning for warning in rig.warnings)
    assert not any("mixamorig" in name for name in rig.skeleton.names)


def test_the_command_line_knows_all_names():
    assert cli.NAMES == NAMES


def test_unknown_names_are_refused():
    with pytest.raises(SprigError, match="no joint names 'maya'; choose sprig, unity, unreal, mixamo or rigify"):
        RigOptions(names="maya")
