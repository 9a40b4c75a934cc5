"""An armature of the artist's: read as a skeleton to fit, and copied to carry the result.

Choices that a reader would question:
* The result plays on a copy whose bones are the artist's in everything; their own armature, action and mesh are only
  hidden. Constraints of keyed bones are muted on the copy, and its drivers go, since they would fight with the keys.
* A bone may move against its parent where its location is keyed and varies. Where the artist has locked the location of
  some bones, the others may, too, unless they are connected; an armature without any lock says nothing.
* A locked vertex group keeps its weights. Groups of bones that do not deform are no weights.
* The armature stays where it is in the frame that is current, or in the rest frame that is named.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import bpy
import numpy as np
from mathutils import Matrix, Quaternion

from ..backend.errors import SprigError
from ..backend.given_skeleton import GivenSkeleton
from .compat import curves_of
from .what_moves import varies

EVEN = 1e-4  # relative difference of the axes' scales that is still rounding
RIGID = 1e-3  # largest entry of RᵀR - 1 that is still rounding in a posed bone


@dataclass(frozen=True)
class OwnArmature:
    """The artist's armature, and the world matrix (4,4) float64 that its copy gets."""

    armature: bpy.types.Object
    world: np.ndarray


def is_bound(mesh: bpy.types.Object, armature: bpy.types.Object) -> bool:
    """Whether the armature deforms the mesh, by a modifier or as its parent."""
    by_modifier = any(modifier.type == "ARMATURE" and modifier.object == armature for modifier in mesh.modifiers)
    return by_modifier or (mesh.parent == armature and mesh.parent_type == "ARMATURE")


def read_armature(
    context, armature, meshes, numbers, *, rest_frame: int | None = None, poses: bool = False
) -> Generator[float, None, tuple[GivenSkeleton, OwnArmature]]:
    """The armature as a skeleton to fit to `meshes` in their order, step by step; yields how far it is.

    The rest shape is that of the undeformed meshes where all are bound, unless a `rest_frame` is named. With `poses`
    those of the frames `numbers` are read, too. The scene's frame is as before in the end. SprigError for an armature
    that is scaled unevenly, or a bone that is scaled in a pose.
    """
    scene = context.scene
    before = scene.frame_current, scene.frame_subframe
    bones = armature.data.bones
    if not len(bones):
        raise SprigError(f"{armature.name} has no bones; choose the armature of this mesh.")
    posed = []
    try:
        if rest_frame is not None:
            scene.frame_set(rest_frame)
        world = np.array(armature.matrix_world, dtype=np.float64)
        rest_vertices = None
        if rest_frame is None and all(is_bound(mesh, armature) for mesh in meshes):
            rest_vertices = np.concatenate([_undeformed(mesh) for mesh in meshes])
        for k, number in enumerate(numbers if poses else ()):
            yield k / len(numbers)
            scene.frame_set(int(number))
            posed.append(_pose(context, armature))
    finally:
        scene.frame_set(before[0], subframe=before[1])
    rest = rest_bones(armature, world)
    motion = None
    if poses:
        local = np.array([bone.matrix_local for bone in bones], dtype=np.float64)
        motion = np.array(posed) @ np.linalg.inv(world @ local)
        _check_rigid(armature, motion, numbers)
    index = {name: j for j, name in enumerate(rest["names"])}
    deform = np.array([bone.use_deform for bone in bones])
    if not deform.any():
        raise SprigError(f"{armature.name} has no bone that deforms; switch Deform on for the bones that should.")
    weights, locked = _weights(meshes, index)
    weights[:, ~deform] = 0
    given = GivenSkeleton(
        **rest,
        rest_vertices=rest_vertices,
        rest_frame=rest_frame,
        located=_may_move(armature),
        deform=deform,
        weights=weights if weights.any() else None,
        locked=locked,
        motion=motion,
    )
    return given, OwnArmature(armature, world)


def rest_bones(armature, world=None) -> dict:
    """joints, tails, parents, names and frames of a GivenSkeleton: the bones in their rest pose, in world space.

    world (4,4): the armature's matrix where it is not the present one. SprigError for one that scales unevenly.
    """
    world = np.array(armature.matrix_world, dtype=np.float64) if world is None else world
    bones = armature.data.bones
    index = {bone.name: j for j, bone in enumerate(bones)}
    frames = world @ np.array([bone.matrix_local for bone in bones], dtype=np.float64)
    frames[:, :3, :3] /= _even_scale(armature, world)
    return {
        "joints": _moved(world, [bone.head_local for bone in bones]),
        "tails": _moved(world, [bone.tail_local for bone in bones]),
        "parents": np.array([index[bone.parent.name] if bone.parent else -1 for bone in bones]),
        "names": tuple(index),
        "frames": frames,
    }


def copy_armature(context, collection, own: OwnArmature, keyed) -> bpy.types.Object:
    """A copy of the armature in `collection`, in its rest pose; bones in `keyed` (names) are free of constraints."""
    copy = own.armature.copy()
    copy.data = own.armature.data.copy()
    collection.objects.link(copy)
    copy.animation_data_clear()
    copy.constraints.clear()
    copy.parent = None
    copy.delta_location, copy.delta_rotation_euler, copy.delta_scale = (0, 0, 0), (0, 0, 0), (1, 1, 1)
    copy.delta_rotation_quaternion = (1, 0, 0, 0)
    copy.data.pose_position = "POSE"
    copy.hide_render = copy.hide_viewport = False
    context.view_layer.update()
    copy.matrix_world = Matrix(own.world)
    for bone in copy.pose.bones:
        bone.matrix_basis = Matrix()
        for constraint in bone.constraints:
            constraint.mute |= bone.name in keyed
            if getattr(constraint, "target", None) == own.armature:
                constraint.target = copy
    return copy


def local_poses(armature, names, motion, parents) -> np.ndarray:
    """What Blender calls matrix_basis (F,J,4,4) for a motion (F,J,4,4), rest pose to frame, in the armature's space."""
    bones = [armature.data.bones[name] for name in names]
    rest = np.array([bone.matrix_local for bone in bones])
    above = np.where((parents >= 0)[:, None, None], motion[:, parents], np.eye(4))
    basis = np.linalg.inv(rest) @ np.linalg.inv(above) @ motion @ rest
    for j, bone in enumerate(bones):
        if bone.parent is None or (bone.use_inherit_rotation and bone.use_local_location):
            continue
        parent = int(parents[j])
        for f in range(len(motion)):
            basis[f, j] = bone.convert_local_to_pose(
                Matrix(motion[f, j] @ rest[j]),
                bone.matrix_local,
                parent_matrix=Matrix(motion[f, parent] @ rest[parent]),
                parent_matrix_local=bones[parent].matrix_local,
                invert=True,
            )
    return basis


def rotation_channel(mode: str, quaternions) -> tuple[str, np.ndarray]:
    """Property and values (F,C) of a bone's keys in its own rotation mode, from quaternions (F,4) without jumps."""
    if mode == "QUATERNION":
        return "rotation_quaternion", quaternions
    turns = [Quaternion(turn) for turn in quaternions]
    if mode == "AXIS_ANGLE":
        axes = [turn.to_axis_angle() for turn in turns]
        return "rotation_axis_angle", np.array([[angle, *axis] for axis, angle in axes])
    eulers = []
    for turn in turns:
        eulers.append(turn.to_euler(mode, eulers[-1]) if eulers else turn.to_euler(mode))
    return "rotation_euler", np.array(eulers)


def keep_locks(source, mesh):
    """Vertex groups that are locked on the source are on its skinned copy, too."""
    for group in source.vertex_groups:
        if group.lock_weight and group.name in mesh.vertex_groups:
            mesh.vertex_groups[group.name].lock_weight = True


def keep_action(armature) -> bpy.types.Action | None:
    """The artist's action stays in the file even where nothing else uses it; returned if that needed our help."""
    animation = armature.animation_data
    if animation is None or animation.action is None:
        return None
    action = animation.action
    if not action.is_editable or action.use_fake_user:
        return None
    action.use_fake_user = True
    return action


# ---- reading


def _moved(world, points) -> np.ndarray:
    return np.array(points, dtype=np.float64) @ world[:3, :3].T + world[:3, 3]


def _undeformed(mesh) -> np.ndarray:
    """World positions (V,3) of the mesh before shape keys and modifiers."""
    keys = mesh.data.shape_keys
    local = np.empty((len(mesh.data.vertices), 3), dtype=np.float32)
    if keys:
        keys.reference_key.data.foreach_get("co", local.ravel())
    else:
        mesh.data.attributes["position"].data.foreach_get("vector", local.ravel())
    return _moved(np.array(mesh.matrix_world, dtype=np.float64), local)


def _pose(context, armature) -> np.ndarray:
    """World matrices (J,4,4) of the posed bones in the current frame."""
    evaluated = armature.evaluated_get(context.evaluated_depsgraph_get())
    posed = np.array([evaluated.pose.bones[bone.name].matrix for bone in armature.data.bones], dtype=np.float64)
    return np.array(evaluated.matrix_world, dtype=np.float64) @ posed


def _even_scale(armature, world) -> float:
    """The armature's scale; SprigError where its axes differ or are mirrored."""
    linear = world[:3, :3]
    squared = linear.T @ linear
    scale = float(np.sqrt(np.trace(squared) / 3))
    if np.linalg.det(linear) <= 0 or np.abs(squared - scale**2 * np.eye(3)).max() > EVEN * scale**2:
        raise SprigError(f"{armature.name} is scaled unevenly or mirrored; apply its scale (Object > Apply > Scale).")
    return scale


def _check_rigid(armature, motion, numbers):
    """SprigError where a pose scales a bone: keys of rotation and location could not replay it."""
    turn = motion[..., :3, :3]
    error = np.abs(np.swapaxes(turn, -1, -2) @ turn - np.eye(3)).max(axis=(-1, -2))
    scaled = np.argwhere(error > RIGID)
    if len(scaled):
        frame, bone = scaled[0]
        raise SprigError(
            f"The bone {armature.data.bones[int(bone)].name} of {armature.name} is scaled in frame {numbers[frame]}; "
            "take the scale out of its poses, or fit weights and motion both."
        )


def _weights(meshes, index: dict[str, int]) -> tuple[np.ndarray, np.ndarray]:
    """Weights (V,J) of the groups named like bones, and which bones (J,) have a locked group on any of the meshes."""
    weights = np.zeros((sum(len(mesh.data.vertices) for mesh in meshes), len(index)))
    locked = np.zeros(len(index), dtype=bool)
    row = 0
    for mesh in meshes:
        column = {group.index: index[group.name] for group in mesh.vertex_groups if group.name in index}
        for group in mesh.vertex_groups:
            if group.lock_weight and group.name in index:
                locked[index[group.name]] = True
        for vertex in mesh.data.vertices:
            for element in vertex.groups if column else ():
                if element.group in column:
                    weights[row, column[element.group]] = element.weight
            row += 1
    return weights, locked


def _may_move(armature) -> np.ndarray:
    """Bones (J,) that may move against their parents (see the module's head)."""
    keyed = {curve.data_path for curve in curves_of(armature) if varies(curve)}
    locks = any(any(bone.lock_location) for bone in armature.pose.bones)
    found = []
    for bone in (armature.pose.bones[bone.name] for bone in armature.data.bones):
        moves = f'pose.bones["{bpy.utils.escape_identifier(bone.name)}"].location' in keyed
        open_ = locks and not any(bone.lock_location)
        found.append(bone.parent is not None and not bone.bone.use_connect and (moves or open_))
    return np.array(found)
