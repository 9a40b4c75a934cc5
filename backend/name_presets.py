"""Joint names that other software expects of a humanoid: Unity, Unreal Engine 5, Mixamo, Rigify.

A preset is taken as a whole or not at all: half a Mixamo skeleton retargets nothing. The tree matches when naming.py
found hips, a spine up to the chest, a head, and two arms and legs with all their bones. What the target has no name
for keeps ours, fingers among them, since a skeleton does not show which is which.

A spine or neck longer than the target's gives the first names to its first joints and the last name to its last joint,
which carries arms or head; the joints between keep ours.

Where the names come from:
* Unity: HumanBodyBones in Unity's Scripting API.
* Unreal: the skeleton of the mannequins Manny and Quinn, which unlike that of Unreal Engine 4 has five spine bones
  (Character Creator manual, Skeleton Structures Relations between CC HD and UE Characters) and two of the neck.
* Mixamo: the Mixamo-compatible joints in the table of Ready Player Me's page Templates, with the prefix of Mixamo's
  files.
* Rigify: the bones of the metarig Basic Human, which comes with Blender.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .naming import name_joints

OWN_NAMES = "sprig"


@dataclass(frozen=True)
class _Preset:
    """The target's title, its names for chains from below upwards, and its names for limbs with {side} in them."""

    title: str
    spine: tuple[str, ...]
    neck: tuple[str, ...]
    single: dict[str, str]
    limbs: dict[str, str]
    sides: tuple[str, str]


PRESETS = {
    "unity": _Preset(
        title="Unity",
        spine=("Spine", "Chest", "UpperChest"),
        neck=("Neck",),
        single={"hips": "Hips", "head": "Head"},
        limbs={
            "shoulder": "{side}Shoulder", "upper_arm": "{side}UpperArm", "forearm": "{side}LowerArm",
            "hand": "{side}Hand", "thigh": "{side}UpperLeg", "shin": "{side}LowerLeg", "foot": "{side}Foot",
            "toe": "{side}Toes",
        },
        sides=("Left", "Right"),
    ),
    "unreal": _Preset(
        title="Unreal",
        spine=("spine_01", "spine_02", "spine_03", "spine_04", "spine_05"),
        neck=("neck_01", "neck_02"),
        single={"hips": "pelvis", "head": "head"},
        limbs={
            "shoulder": "clavicle_{side}", "upper_arm": "upperarm_{side}", "forearm": "lowerarm_{side}",
            "hand": "hand_{side}", "thigh": "thigh_{side}", "shin": "calf_{side}", "foot": "foot_{side}",
            "toe": "ball_{side}",
        },
        sides=("l", "r"),
    ),
    "mixamo": _Preset(
        title="Mixamo",
        spine=("mixamorig:Spine", "mixamorig:Spine1", "mixamorig:Spine2"),
        neck=("mixamorig:Neck",),
        single={"hips": "mixamorig:Hips", "head": "mixamorig:Head"},
        limbs={
            "shoulder": "mixamorig:{side}Shoulder", "upper_arm": "mixamorig:{side}Arm",
            "forearm": "mixamorig:{side}ForeArm", "hand": "mixamorig:{side}Hand", "thigh": "mixamorig:{side}UpLeg",
            "shin": "mixamorig:{side}Leg", "foot": "mixamorig:{side}Foot", "toe": "mixamorig:{side}ToeBase",
        },
        sides=("Left", "Right"),
    ),
    "rigify": _Preset(
        title="Rigify",
        spine=("spine.001", "spine.002", "spine.003"),
        neck=("spine.004", "spine.005"),
        single={"hips": "spine", "head": "spine.006"},
        limbs={
            name: f"{name}.{{side}}"
            for name in ("shoulder", "upper_arm", "forearm", "hand", "thigh", "shin", "foot", "toe")
        },
        sides=("L", "R"),
    ),
}  # fmt: skip
NAMES = (OWN_NAMES, *PRESETS)
NEEDED = ("hips", "chest", "head")
NEEDED_ON_BOTH_SIDES = ("upper_arm", "forearm", "hand", "thigh", "shin", "foot")


def joint_names(joints, parents, names: str = OWN_NAMES) -> tuple[list[str], tuple[str, ...]]:
    """Names for joints (J,3), parents (J,), of one of NAMES; and warnings: a sentence where a preset does not fit."""
    return with_preset(name_joints(joints, parents), names)


def with_preset(ours: list[str], names: str) -> tuple[list[str], tuple[str, ...]]:
    """The names of naming.py (J,) as a preset has them, unique; as they are, and a sentence, without a humanoid."""
    if names == OWN_NAMES:
        return list(ours), ()
    preset = PRESETS[names]
    renamed = _renamed(ours, preset)
    if renamed is None:
        return list(ours), (
            f"The skeleton shows no whole humanoid; its joints have SPRig's names, not {preset.title}'s.",
        )
    taken, result = set(renamed.values()), []
    for name in ours:
        found = renamed.get(name, name)
        while name not in renamed and found in taken:
            found = _another(found)
        taken.add(found)
        result.append(found)
    return result, ()


def _another(name: str) -> str:
    """A similar name: spine_02_extra, hand_extra.L."""
    return re.sub(r"(\.[LR])?$", r"_extra\1", name, count=1)


def _renamed(ours: list[str], preset: _Preset) -> dict[str, str] | None:
    """The target's name for every name of ours that it knows; None where the skeleton is no whole humanoid."""
    first = {re.sub(r"_01(?=$|\.)", "", name): name for name in ours}  # hand: hand or hand_01
    needed = [*NEEDED, *(f"{name}.{side}" for name in NEEDED_ON_BOTH_SIDES for side in "LR")]
    if not all(name in first for name in needed):
        return None
    found = {first[name]: target for name, target in preset.single.items()}
    for chain, targets in (
        ([*sorted(name for name in ours if re.fullmatch(r"spine(_\d+)?", name)), "chest"], preset.spine),
        (sorted(name for name in ours if re.fullmatch(r"neck(_\d+)?", name)), preset.neck),
    ):
        found.update(zip(chain[:-1], targets[:-1], strict=False))
        if chain:
            found[chain[-1]] = targets[min(len(chain), len(targets)) - 1]
    for name, target in preset.limbs.items():
        for side, word in zip("LR", preset.sides, strict=True):
            if f"{name}.{side}" in first:
                found[first[f"{name}.{side}"]] = target.format(side=word)
    return found
