"""Blender's automatic weights (bone heat) for characters with a skeleton: a child process of `sprig evaluate`.

    python benchmarks/bone_heat.py INPUT.npz ... --output FOLDER

Each INPUT has vertices (V,3), faces (M,3) and the skeleton: joints (J,3), tails (J,3), parents (J,) with -1 for a root
and parents before children; bones run from joint to tail, unconnected, as in the armatures that SPRig writes. FOLDER
gets one file of the same name for each, as soon as it is done: weights (V,J) float32 as the Armature modifier sees
them, rows that sum to 1. Rows of vertices that heat finds no weights for are zero. Needs numpy and bpy, nothing of
SPRig. The process ends without tearing down Blender's module, which can hang.
"""

import argparse
import os
import sys
from pathlib import Path

import bpy  # noqa: TID253 - this one is about Blender
import numpy as np

SHORTEST_BONE = 1e-3  # of the diagonal, as in write_armature.py: Blender drops bones of no length
NO_CONTRIBUTION = 1e-4  # the Armature modifier leaves vertices of less weight in all where they are


def heat_weights(vertices, faces, joints, tails, parents) -> np.ndarray:
    """Bone heat weights (V,J) float32 of one character; empties Blender's scene. Arguments as at the top."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    mesh = bpy.data.meshes.new("Body")
    mesh.from_pydata(np.asarray(vertices, dtype=float).tolist(), [], np.asarray(faces).tolist())
    mesh.validate()
    body = bpy.data.objects.new("Body", mesh)
    armature = bpy.data.objects.new("Armature", bpy.data.armatures.new("Armature"))
    for thing in (body, armature):
        bpy.context.scene.collection.objects.link(thing)
    names = make_bones(armature, joints, tails, parents, SHORTEST_BONE * np.linalg.norm(np.ptp(vertices, axis=0)))
    body.select_set(True)
    armature.select_set(True)
    bpy.context.view_layer.objects.active = armature
    bpy.ops.object.parent_set(type="ARMATURE_AUTO")  # where heat fails it only warns
    return vertex_group_weights(body, names)


def make_bones(armature, joints, tails, parents, shortest: float) -> list[str]:
    """One bone for each joint in Edit Mode, none shorter than `shortest`; their names in joint order."""
    bpy.context.view_layer.objects.active = armature
    bpy.ops.object.mode_set(mode="EDIT")
    bones = []
    for j, parent in enumerate(parents):
        along = np.asarray(tails[j], dtype=float) - joints[j]
        length = np.linalg.norm(along)
        along = along / length if length > 0 else np.array([0.0, 0.0, 1.0])
        bone = armature.data.edit_bones.new(f"joint_{j}")
        bone.head, bone.tail = joints[j], joints[j] + max(length, shortest) * along
        bone.use_connect = False
        if parent >= 0:
            bone.parent = bones[parent]
        bones.append(bone)
    names = [bone.name for bone in bones]
    bpy.ops.object.mode_set(mode="OBJECT")
    return names


def vertex_group_weights(body, names: list[str]) -> np.ndarray:
    """Weights (V,J) float32 of a mesh object's vertex groups, in the order of `names`; rows sum to 1, or to 0."""
    column = {body.vertex_groups[name].index: j for j, name in enumerate(names) if name in body.vertex_groups}
    weights = np.zeros((len(body.data.vertices), len(names)), dtype=np.float32)
    for v, vertex in enumerate(body.data.vertices):
        for group in vertex.groups:
            weights[v, column[group.group]] = group.weight
    total = weights.sum(axis=1, keepdims=True)
    return np.where(total > NO_CONTRIBUTION, weights / np.where(total > NO_CONTRIBUTION, total, 1), 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("inputs", nargs="+", type=Path, metavar="INPUT.npz")
    parser.add_argument("--output", required=True, type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    for path in arguments.inputs:
        with np.load(path, allow_pickle=False) as given:
            weights = heat_weights(**{key: given[key] for key in ("vertices", "faces", "joints", "tails", "parents")})
        pending = arguments.output / f".{path.name}.tmp"  # a file under its name is a whole one
        with pending.open("wb") as file:
            np.savez_compressed(file, weights=weights)
        pending.replace(arguments.output / path.name)


if __name__ == "__main__":
    try:
        main()
    except Exception:
        sys.excepthook(*sys.exc_info())
        status = 1
    else:
        status = 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
