"""From a Rig to Blender: an armature with named bones and keys, and a skinned copy of every source mesh.

Choices a reader would question:
* The armature stands at the world's origin when the character is near it (what engines expect of an export), and at the
  rig's own origin otherwise, so that float32 coordinates stay small 10 km away. Its meshes sit exactly there too.
* Keys are computed from the rest matrices that Blender made of our bones, read back, so that rounding in a bone's roll
  changes nothing in the replay.
* Several clips become one action each, keyed at the clip's own frame numbers, with its frame rate as a property. The
  first one is played; all of them lie on muted NLA tracks, which keeps them through saving and makes glTF and FBX files
  of them. A clip at another rate than the first has its strip stretched, so that in one scene all last as they should.
* A custom property on the result's collection points to its objects and to the sources. Running again finds our result
  by it, whatever the user has renamed, and what the user has added or duplicated is never touched.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import bpy
import numpy as np
from mathutils import Vector

from ..backend.errors import SprigError
from ..backend.kinematics import with_rolls_of
from ..backend.naming import PARTS, Anatomy, read_anatomy
from ..backend.rig import Rig
from ..backend.rolls import rest_frames
from ..backend.root_motion import horizontal_travel, with_root_bone, without_travel
from ..backend.sequence import MeshSequence
from .compat import assign, channels_for, new_curve, new_strip
from .own_armature import OwnArmature, copy_armature, keep_action, keep_locks, local_poses, rotation_channel
from .skinned_mesh import copy_at_rest, mesh_from_arrays, pruned, write_vertex_groups

FRAME_RATE = "sprig_frame_rate"  # on an action that is one of several: frames per second
# On our collection: {"objects": [armature, ...], "sources", "actions", "fps", "anchor_frame"} and of a fitted armature
# {"armature", "kept"}, the artist's own and its action if we saw to it that it stays in the file.
MARK = "sprig_result"
MADE_FROM_SEQUENCE = "sprig_made_from_sequence"  # on meshes that stand in for a source that is no Blender object
NEAR_ORIGIN = 3.0  # diagonals: closer to the world's origin float32 still resolves 1e-6 of the character
SHORTEST_BONE = 1e-3  # diagonals; shorter could be neither seen nor picked, and its direction would be rounding noise
SHORTEST_BONE_IN_BLENDER = 2e-6  # units: Blender deletes bones below 1e-6 on leaving Edit Mode
TRANSLATION_TOLERANCE = 2e-6  # diagonals: a joint that moves less against its parent has float32 noise, not stretch
TURN_TOLERANCE = 1e-5  # entry of a rotation, or diagonals: a bone of the artist's that moves less follows its parent
RIGID_TOLERANCE = 1e-3  # largest entry of RᵀR - 1 that is still rounding in a rotation read from a float32 file
SIDED = ("arm", "leg", "limb")  # parts with a bone collection for either side
BONES, WEIGHTS = "Writing the armature", "Writing the skin weights"  # what it is at, for the user
KEYS, SHAPE_KEYS = "Writing the keys", "Writing the shape keys"
SAME_PLACE = 1e-6  # diagonals: a bone that begins this near to its parent's end is connected to it
SINGULAR = 1e-3  # blended matrices with a smaller determinant collapse space: no shape key can undo them


@dataclass(frozen=True)
class WrittenRig:
    """What was added to the scene: meshes in object_id order, an action for each clip, the frame number of the rest
    pose, frames per second of the first clip."""

    armature: bpy.types.Object
    meshes: tuple[bpy.types.Object, ...]
    actions: tuple[bpy.types.Action, ...]
    anchor_frame: int
    fps: float

    @property
    def action(self) -> bpy.types.Action:
        """The action that is played: the first clip's."""
        return self.actions[0]

    @property
    def collection(self) -> bpy.types.Collection:
        """The collection that holds the result."""
        return next(c for c in bpy.data.collections if MARK in c and self.armature in list(c[MARK]["objects"]))


@dataclass(frozen=True)
class _Placed:
    """A rig's geometry as float64 relative to the armature's location, which float32 represents exactly."""

    location: np.ndarray  # (3,) world
    frames: np.ndarray | None  # (J,4,4) rest matrices, None where the bones are there
    lengths: np.ndarray | None  # (J,)
    motion: np.ndarray  # (F,J,4,4)
    travel: np.ndarray | None  # (F,3) of the armature itself, None where it stays
    rest_vertices: np.ndarray  # (V,3)
    diagonal: float


def write_armature(context, rig: Rig, sources: list, object_id, **options) -> WrittenRig:
    """Add the rig to the scene in one go; arguments and errors as for `writing`."""
    portions = writing(context, rig, sources, object_id, **options)
    while True:
        try:
            next(portions)
        except StopIteration as end:
            return end.value


def writing(
    context,
    rig: Rig,
    sources: list,
    object_id,
    *,
    corrective: MeshSequence | None = None,
    own: OwnArmature | None = None,
    root_motion: str = "hips",
) -> Generator[str, None, WrittenRig]:
    """Add the rig to the scene: armature, skinned copies of `sources`, actions; the sources are kept and hidden.

    sources: the objects that were read, in object_id order; object_id (V,): the source each vertex belongs to.
    corrective: the sequence of one clip that the rig was made from; what the bones leave over becomes one shape key per
    frame.
    own: the artist's armature whose bones the rig has; the result gets a copy of it, and it is hidden.
    root_motion: what carries the horizontal travel of bones that we make (see root_motion.py): the root joint ("hips"),
    a bone more ("root") or the armature ("object").
    An earlier result for these sources is replaced. Scene range and frame rate are left alone. SprigError, and an
    unchanged scene, when the objects no longer fit the rig.

    Goes on portion by portion, so that a window can look at its events meanwhile, and yields what it is at; what was
    added is taken back when the generator is closed before its end.
    """
    object_id = np.asarray(object_id)
    if len(object_id) != len(rig.rest_vertices) or object_id.max(initial=0) >= len(sources):
        raise SprigError("The rig and the objects do not belong together; run the rigging again on these objects.")
    if corrective is not None and corrective.vertices.shape[:2] != (len(rig.motion), len(rig.rest_vertices)):
        raise SprigError("The corrective shape keys need the very sequence that the rig was made from.")
    anatomy, parents = read_anatomy(rig.skeleton.joints, rig.skeleton.parents), rig.skeleton.parents
    if own is None:
        rig, travel = _carried(_with_frames(rig, anatomy), root_motion)
        placed = _place(rig, travel)
    else:
        placed = _place_at(rig, own.world)
    if context.mode != "OBJECT":
        bpy.ops.object.mode_set(mode="OBJECT")
    selection = list(context.selected_objects), context.view_layer.objects.active
    collection = _new_collection(context, sources[0])
    try:
        yield BONES
        if own is None:
            armature = _make_armature(context, collection, placed)
            names = _make_bones(context, armature, rig.skeleton, placed)
            _collect_bones(armature, names[len(names) - len(parents) :], parents, anatomy)
            if root_motion == "root":
                _set_apart(armature, names[0])
            _describe_bones(armature, names, rig)
            keyed = np.ones(len(names), dtype=bool)
        else:
            names = list(rig.skeleton.names)
            keyed = rig.weights.any(axis=0) | _moves_by_itself(own, rig, placed)
            armature = copy_armature(context, collection, own, {names[j] for j in np.flatnonzero(keyed)})
        yield BONES
        weights = pruned(rig.weights)
        deform = [j for j, name in enumerate(names) if armature.data.bones[name].use_deform]  # the others have no group
        groups = [names[j] for j in deform]
        meshes = []
        for k, source in enumerate(sources):
            rows = object_id == k
            mesh = _make_skin(context, collection, armature, source, placed.rest_vertices[rows])
            meshes.append(mesh)
            for _ in write_vertex_groups(mesh, weights[rows][:, deform], groups):
                yield WEIGHTS
            if own is not None:
                keep_locks(source, mesh)
            yield WEIGHTS
        actions = yield from _write_actions(armature, names, keyed, rig, placed)
        made = list(actions)
        if corrective is not None:
            there = placed.location if placed.travel is None else placed.location + placed.travel[:, None]
            targets = corrective.vertices + (corrective.origin - there)
            rows = [object_id == k for k in range(len(meshes))]
            made += yield from _write_corrective_keys(meshes, rows, placed, weights, targets, rig.frame_numbers)
        yield KEYS
        # From here on nothing is taken back; a ReferenceError tells of what was deleted meanwhile.
        assert all(thing.name for thing in (*sources, armature, *meshes, *([own.armature] if own else [])))
    except BaseException:
        with suppress(ReferenceError):  # the user deletes things in another window
            _remove_collection(collection)
        with suppress(ReferenceError, RuntimeError):
            select(context, *selection)
        raise
    remove_previous(context, sources)
    lasting = [source for source in sources if MADE_FROM_SEQUENCE not in source]
    anchor_frame = int(rig.frame_numbers[rig.anchor])
    collection[MARK] = {
        "objects": [armature, *meshes],
        "sources": lasting,
        "actions": made,
        "fps": float(rig.fps),
        "anchor_frame": anchor_frame,
    }
    if own is not None:
        collection[MARK]["armature"] = own.armature
        kept = keep_action(own.armature)
        if kept is not None:
            collection[MARK]["kept"] = kept
        _hide(context, own.armature)
    _name_result(sources, collection, armature, meshes, actions, rig.clips)
    for source in sources:
        _hide(context, source)
    select(context, [armature], armature)
    return WrittenRig(armature, tuple(meshes), actions, anchor_frame, rig.fps)


def write_skeleton(context, rig: Rig, source) -> bpy.types.Object:
    """The skeleton alone in its rest pose, without keys, as an armature in a collection of its own beside the source.

    Bones that begin where their parent ends are connected to it, so that whoever edits them moves both.
    """
    placed = _place(_with_frames(rig, read_anatomy(rig.skeleton.joints, rig.skeleton.parents)), None)
    collection = _new_collection(context, source)
    try:
        armature = _make_armature(context, collection, placed)
        names = _make_bones(context, armature, rig.skeleton, placed, connect=True)
        for name, moves_skin in zip(names, rig.weights.any(axis=0), strict=True):
            armature.data.bones[name].use_deform = bool(moves_skin)
    except BaseException:
        _remove_collection(collection)
        raise
    collection.name = armature.name = armature.data.name = f"{source.name} Joints"
    return armature


def remove_previous(context, sources: list):
    """Remove earlier results of ours made from any of these sources; other sources of theirs are shown again."""
    for collection in list(bpy.data.collections):
        made_from = list(collection[MARK]["sources"]) if MARK in collection else []
        if any(source in sources for source in made_from):
            remove_result(context, collection, hidden=sources)


def remove_result(context, collection, hidden=()):
    """Remove a result of ours; what it was made from is shown again, but for what is in `hidden`."""
    mark = collection[MARK]
    made_from, kept = [*mark["sources"], mark.get("armature")], mark.get("kept")
    _remove_collection(collection)
    for source in made_from:
        if source is None or source in hidden:
            continue
        if source.users == 0:  # the user deleted it, and only our mark held it
            bpy.data.objects.remove(source)
        else:
            _show(context, source)
    if kept is not None:
        kept.use_fake_user = False


def sources_of(thing) -> list:
    """The source objects of our result that `thing` (its armature or one of its meshes) belongs to; else empty."""
    for collection in bpy.data.collections:
        if MARK in collection and thing in list(collection[MARK]["objects"]):
            return [source for source in collection[MARK]["sources"] if source is not None]
    return []


def result_of(thing) -> bpy.types.Collection | None:
    """The collection of our result that `thing` belongs to: as its armature, a mesh of it, or what it was made from."""
    for collection in bpy.data.collections:
        if MARK in collection and thing in [*collection[MARK]["objects"], *collection[MARK]["sources"]]:
            return collection
    return None


def read_result(context, collection) -> WrittenRig:
    """What a result of ours is now, with what its armature plays now, at the scene's rate; meshes may be fewer.

    SprigError when the armature, its animation or all its meshes are gone.
    """
    armature, *meshes = collection[MARK]["objects"]
    if armature is None or not in_view_layer(context, armature):
        raise SprigError(
            f"The armature of {collection.name!r} is not in this view layer; undo its deletion, or show its collection."
        )
    meshes = tuple(mesh for mesh in meshes if mesh is not None and in_view_layer(context, mesh))
    if not meshes:
        raise SprigError(
            f"The meshes of {armature.name!r} are not in this view layer; undo their deletion, or show the collection."
        )
    animation = armature.animation_data
    strips = [strip for track in animation.nla_tracks for strip in track.strips] if animation else []
    actions = tuple(strip.action for strip in strips if strip.action and FRAME_RATE in strip.action)
    if not actions:
        actions = (animation.action,) if animation and animation.action else ()
    if not actions:
        raise SprigError(f"{armature.name!r} has no action; assign one in the Action Editor, or rig again.")
    render = context.scene.render
    anchor_frame = collection[MARK].get("anchor_frame", context.scene.frame_start)
    return WrittenRig(armature, meshes, actions, anchor_frame, render.fps / render.fps_base)


def mesh_from_sequence(context, sequence: MeshSequence) -> list:
    """Mesh objects for a sequence that came from a file without a scene, one for each object_id, at the first frame.

    They have no animation and serve as sources of `write_armature`.
    """
    made = []
    place = np.cumsum(np.ones(sequence.vertex_count, dtype=np.int64)) - 1
    for k, name in enumerate(sequence.object_names):
        rows = sequence.object_id == k
        place[rows] = np.arange(rows.sum())
        faces = place[sequence.faces[rows[sequence.faces[:, 0]]]]
        mesh = mesh_from_arrays(name, sequence.vertices[0, rows], faces)
        mesh.validate()
        mesh.shade_smooth()
        source = bpy.data.objects.new(name, mesh)
        source.location = sequence.origin
        source[MADE_FROM_SEQUENCE] = True
        context.scene.collection.objects.link(source)
        made.append(source)
    return made


def evaluated_rmse(context, written: WrittenRig, sequence: MeshSequence) -> np.ndarray:
    """RMSE (F,) per frame of what Blender evaluates, per cent of the anchor frame's diagonal (METRICS.md)."""
    scene = context.scene
    before = scene.frame_current, scene.frame_subframe
    anchor = sequence.vertices[sequence.position_of(written.anchor_frame)].astype(np.float64)
    diagonal = np.linalg.norm(np.ptp(anchor, axis=0))
    rows = [np.flatnonzero(sequence.object_id == k) for k in range(len(written.meshes))]
    squared = np.zeros(sequence.frame_count)
    try:
        with _without_refinement(written.meshes):
            for f, number in enumerate(sequence.frame_numbers):
                scene.frame_set(int(number))
                depsgraph = context.evaluated_depsgraph_get()
                for mesh, its_rows in zip(written.meshes, rows, strict=True):
                    shape = evaluated_positions(mesh, depsgraph) - sequence.origin
                    squared[f] += ((shape - sequence.vertices[f, its_rows]) ** 2).sum()
    finally:
        scene.frame_set(before[0], subframe=before[1])
    return 100 / diagonal * np.sqrt(squared / sequence.vertex_count)


def evaluated_positions(mesh, depsgraph) -> np.ndarray:
    """World positions (V,3) float64 of a mesh object as the depsgraph evaluates it."""
    evaluated = mesh.evaluated_get(depsgraph)
    local = np.empty((len(evaluated.data.vertices), 3), dtype=np.float32)
    evaluated.data.attributes["position"].data.foreach_get("vector", local.ravel())
    world = np.array(evaluated.matrix_world)
    return local.astype(np.float64) @ world[:3, :3].T + world[:3, 3]


# --- placing -----------------------------------------------------------------------------------------------------


def _with_frames(rig: Rig, anatomy: Anatomy) -> Rig:
    """The rig whose bones have the rest matrices that are written: with rolls of their own, where they have some."""
    skeleton = rig.skeleton
    frames = rest_frames(skeleton.joints, skeleton.tails, skeleton.parents, anatomy)
    if skeleton.frames is not None:
        frames = with_rolls_of(skeleton.frames, frames)
    return replace(rig, skeleton=replace(skeleton, frames=frames))


def _carried(rig: Rig, root_motion: str) -> tuple[Rig, np.ndarray | None]:
    """The rig as it moves within its armature, and what the armature itself travels (F,3)."""
    if root_motion == "root":
        return with_root_bone(rig), None
    if root_motion == "object":
        return without_travel(rig), horizontal_travel(rig)
    return rig, None


def _place(rig: Rig, travel: np.ndarray | None) -> _Placed:
    """Move the rig from its origin to a location that float32 holds exactly, and settle the bones' lengths."""
    diagonal = float(np.linalg.norm(np.ptp(rig.rest_vertices.astype(np.float64), axis=0)))
    near = np.linalg.norm(rig.origin) <= NEAR_ORIGIN * diagonal
    location = np.zeros(3) if near else rig.origin.astype(np.float32).astype(np.float64)
    shift = rig.origin - location
    motion = rig.motion.copy()  # conjugated with the shift: x -> M (x - shift) + shift
    motion[..., :3, 3] += shift - motion[..., :3, :3] @ shift
    frames = rig.skeleton.frames.copy()
    frames[:, :3, 3] += shift
    shortest = max(SHORTEST_BONE * diagonal, SHORTEST_BONE_IN_BLENDER)
    lengths = np.maximum(np.linalg.norm(rig.skeleton.tails - rig.skeleton.joints, axis=1), shortest)
    return _Placed(location, frames, lengths, motion, travel, rig.rest_vertices + shift, diagonal)


def _place_at(rig: Rig, world) -> _Placed:
    """The rig in the space of an armature, where its bones are; world (4,4) turns, moves and scales evenly."""
    into = np.linalg.inv(world)
    into[:3, 3] += into[:3, :3] @ rig.origin
    rest = rig.rest_vertices.astype(np.float64) @ into[:3, :3].T + into[:3, 3]
    motion = into @ rig.motion @ np.linalg.inv(into)
    return _Placed(world[:3, 3], None, None, motion, None, rest, float(np.linalg.norm(np.ptp(rest, axis=0))))


def _moves_by_itself(own: OwnArmature, rig: Rig, placed: _Placed) -> np.ndarray:
    """Bones (J,) that do not just follow their parents."""
    basis = local_poses(own.armature, rig.skeleton.names, placed.motion, rig.skeleton.parents)
    turned = np.abs(basis[..., :3, :3] - np.eye(3)).max(axis=(0, 2, 3)) > TURN_TOLERANCE
    return turned | (np.abs(basis[..., :3, 3]).max(axis=(0, 2)) > TURN_TOLERANCE * placed.diagonal)


# --- the steps, each in one mode ---------------------------------------------------------------------------------


def _make_armature(context, collection, placed: _Placed):
    data = bpy.data.armatures.new("SPRig")
    data.display_type = "OCTAHEDRAL"
    armature = bpy.data.objects.new("SPRig", data)
    armature.location = placed.location
    armature.show_in_front = True
    collection.objects.link(armature)
    return armature


def _make_bones(context, armature, skeleton, placed: _Placed, connect: bool = False) -> list[str]:
    """The bones in Edit Mode; returns their names in joint order (Blender may shorten one or make it unique).

    connect: to the parent that ends where the bone begins.
    """
    names = []
    with _edit_mode(context, armature):
        bones = []
        for j, parent in enumerate(skeleton.parents):
            bone = armature.data.edit_bones.new(skeleton.names[j])
            _, along, up, head = placed.frames[j, :3].T
            bone.head = head
            bone.tail = head + placed.lengths[j] * along
            bone.align_roll(Vector(up))
            bone.use_connect = False
            if parent >= 0:
                bone.parent = bones[parent]
                gap = np.linalg.norm(skeleton.joints[j] - skeleton.tails[parent])
                bone.use_connect = connect and bool(gap < SAME_PLACE * placed.diagonal)
            bones.append(bone)
            names.append(bone.name)
    for name in names:
        armature.pose.bones[name].rotation_mode = "QUATERNION"
    return names


def _collect_bones(armature, names, parents, anatomy: Anatomy):
    """A bone collection for each part of the body, all within one called Deform.

    Ears belong to the head they leave, and other unnamed branches to theirs.
    """
    parts = list(anatomy.parts)
    for j, parent in enumerate(parents):
        if parts[j] == "other" and parent >= 0 and parts[parent] != "spine":
            parts[j] = parts[parent]
    sides = {0: "", 1: ".L", -1: ".R"}
    titles = [
        part.title() + (sides[int(side)] if part in SIDED else "")
        for part, side in zip(parts, anatomy.side, strict=True)
    ]
    deform = armature.data.collections.new("Deform")
    deform.is_expanded = True
    for part in (*PARTS, "other"):
        for title in sorted({title for title in titles if title.split(".")[0] == part.title()}):
            collection = armature.data.collections.new(title, parent=deform)
            for name, its_title in zip(names, titles, strict=True):
                if its_title == title:
                    collection.assign(armature.data.bones[name])


def _set_apart(armature, name: str):
    """The bone that only carries the others moves no vertex, and is in a collection of its own."""
    armature.data.bones[name].use_deform = False
    armature.data.collections.new("Root").assign(armature.data.bones[name])


def _describe_bones(armature, names, rig: Rig):
    """The motion's evidence for each bone, as custom properties that show in the bone's panel."""
    for j, name in enumerate(names):
        bone = armature.data.bones[name]
        bone["sprig_seen_in_motion"] = bool(rig.seen_in_motion[j])
        bone["sprig_rotation_range_deg"] = float(np.degrees(rig.rotation_range[j]))
        if np.isfinite(rig.confidence[j]):
            bone["sprig_confidence"] = float(rig.confidence[j])


def _make_skin(context, collection, armature, source, rest_vertices):
    """The skinned copy of one source: at the armature, its child, with an Armature modifier before any refinement."""
    mesh = copy_at_rest(context, source, rest_vertices, collection, source.name)
    mesh.parent = armature
    modifier = mesh.modifiers.new("Armature", "ARMATURE")
    modifier.object = armature
    mesh.modifiers.move(len(mesh.modifiers) - 1, 0)
    return mesh


def _write_actions(armature, names, keyed, rig: Rig, placed: _Placed) -> Generator[str, None, tuple]:
    """An action for each clip: keys of rotation on the `keyed` bones (J,), of location on roots and on joints that
    translate against their parent in any clip, and on the armature where it travels. The first one is assigned."""
    basis = local_poses(armature, names, placed.motion, rig.skeleton.parents)
    quaternions = _rotation_to_quaternion(basis[..., :3, :3])
    moves = np.linalg.norm(basis[..., :3, 3], axis=-1).max(axis=0) > TRANSLATION_TOLERANCE * placed.diagonal
    moves |= rig.skeleton.parents < 0
    actions = []
    for rows in [clip.rows for clip in rig.clips] or [slice(None)]:
        action = bpy.data.actions.new("SPRig")
        channels = channels_for(action, armature)
        numbers, places, turns = rig.frame_numbers[rows], basis[rows, :, :3, 3], _continuous(quaternions[rows])
        for j in np.flatnonzero(keyed):
            name = names[j]
            path = f'pose.bones["{bpy.utils.escape_identifier(name)}"].'
            if moves[j]:
                _write_curves(channels, path + "location", name, numbers, places[:, j])
            turn, values = rotation_channel(armature.pose.bones[name].rotation_mode, turns[:, j])
            _write_curves(channels, path + turn, name, numbers, values)
            yield KEYS
        if placed.travel is not None:
            _write_curves(channels, "location", "Object Transforms", numbers, placed.location + placed.travel[rows])
        if rig.clips:
            _keep_as_strip(armature, action, rig.clips[len(actions)].fps, rig.fps)
        actions.append(action)
    assign(armature, actions[0])
    return tuple(actions)


def _keep_as_strip(armature, action, rate: float, scene_rate: float):
    """Put an action, made for `rate` frames a second, on a muted NLA track of its own, to last as long at the scene's.

    A stretched strip ends on a whole frame, since exporters sample no others.
    """
    action[FRAME_RATE] = rate
    action.use_fake_user = True
    track, strip = new_strip(armature, action)
    track.mute = True
    first, last = action.frame_range
    if last > first:
        strip.scale = max(1, round((last - first) * scene_rate / rate)) / (last - first)


def _write_curves(channels, path: str, group: str, frames, values):
    """One curve per column of values (F,C), linear between keys (every frame is a key unless the user chose a step)."""
    items = bpy.types.Keyframe.bl_rna.properties["interpolation"].enum_items
    handles = bpy.types.Keyframe.bl_rna.properties["handle_left_type"].enum_items
    linear = np.full(len(frames), items["LINEAR"].value, dtype=np.int32)
    automatic = np.full(len(frames), handles["AUTO_CLAMPED"].value, dtype=np.int32)  # for who makes them smooth later
    keys = np.empty((len(frames), 2), dtype=np.float32)
    keys[:, 0] = frames
    for index in range(values.shape[1]):
        curve = new_curve(channels, path, index, group)
        curve.keyframe_points.add(len(frames))
        keys[:, 1] = values[:, index]
        curve.keyframe_points.foreach_set("co", keys.ravel())
        curve.keyframe_points.foreach_set("interpolation", linear)
        curve.keyframe_points.foreach_set("handle_left_type", automatic)
        curve.keyframe_points.foreach_set("handle_right_type", automatic)
        curve.update()


def _rotation_to_quaternion(rotation) -> np.ndarray:
    """Unit quaternions (...,4), w first, of rotation matrices (...,3,3); SprigError for matrices that scale or shear.

    Shepperd's method: of the four ways to write q, take the one that divides by its largest component.
    """
    error = np.abs(np.swapaxes(rotation, -1, -2) @ rotation - np.eye(3)).max(initial=0.0)
    if error > RIGID_TOLERANCE or (np.linalg.det(rotation) < 0).any():
        raise SprigError("The rig's bones scale or shear, which bone rotations cannot replay; make the rig again.")
    m = np.moveaxis(rotation, (-2, -1), (0, 1))
    squares = 1 + np.stack([m[0, 0] + m[1, 1] + m[2, 2], m[0, 0] - m[1, 1] - m[2, 2],
                            m[1, 1] - m[0, 0] - m[2, 2], m[2, 2] - m[0, 0] - m[1, 1]], axis=-1)  # fmt: skip
    wx, wy, wz = m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]
    xy, xz, yz = m[1, 0] + m[0, 1], m[0, 2] + m[2, 0], m[2, 1] + m[1, 2]
    products = np.stack([np.stack(row, axis=-1) for row in (
        (squares[..., 0], wx, wy, wz), (wx, squares[..., 1], xy, xz),
        (wy, xy, squares[..., 2], yz), (wz, xz, yz, squares[..., 3]))], axis=-2)  # fmt: skip
    best = np.take_along_axis(products, squares.argmax(axis=-1)[..., None, None], axis=-2)[..., 0, :]
    return best / np.linalg.norm(best, axis=-1, keepdims=True)


def _continuous(quaternions) -> np.ndarray:
    """The same rotations (F,J,4), signs chosen so that neighbouring frames interpolate the short way."""
    dots = np.concatenate([quaternions[:1, :, 0], (quaternions[1:] * quaternions[:-1]).sum(axis=-1)])
    return quaternions * np.cumprod(np.where(dots < 0, -1.0, 1.0), axis=0)[..., None]


# --- corrective shape keys ---------------------------------------------------------------------------------------


def _rest_space_residual(rest_vertices, motion, weights, target) -> np.ndarray:
    """What must be added to the rest shape (V,3) so that skinning hits one frame's target (V,3): B⁻¹ (target - B rest).

    B = sum_j w_j motion_j is the blended matrix of a vertex. Shape keys act before the armature, hence the inverse.
    """
    residual = np.empty(target.shape)
    blended = (weights @ motion[:, :3].reshape(-1, 12)).reshape(-1, 3, 4)
    linear = blended[:, :, :3]
    error = target - np.einsum("vij,vj->vi", linear, rest_vertices) - blended[:, :, 3]
    regular = np.abs(np.linalg.det(linear)) > SINGULAR
    residual[regular] = np.linalg.solve(linear[regular], error[regular, :, None])[..., 0]
    residual[~regular] = np.einsum("vij,vj->vi", np.linalg.pinv(linear[~regular], rcond=0.1), error[~regular])
    return residual


def _write_corrective_keys(meshes, rows, placed: _Placed, weights, targets, numbers) -> Generator[str, None, list]:
    """One relative shape key per frame, worth 1 at its frame and 0 at the keys beside it; returns their actions.

    rows: which vertices each mesh has; targets (F,V,3): where they should be, in the armature's space.
    """
    actions, channels, rest = [], [], []
    for mesh in meshes:
        mesh.shape_key_add(name="Basis")
        actions.append(bpy.data.actions.new(f"{mesh.name} Corrective"))
        channels.append(channels_for(actions[-1], mesh.data.shape_keys))
        rest.append(np.empty((len(mesh.data.vertices), 3), dtype=np.float32))
        mesh.data.vertices.foreach_get("co", rest[-1].ravel())
    for f, number in enumerate(numbers):
        residual = _rest_space_residual(placed.rest_vertices, placed.motion[f], weights, targets[f])
        near = slice(max(f - 1, 0), f + 2)
        values = (np.arange(len(numbers)) == f)[near, None].astype(np.float32)
        for k, mesh in enumerate(meshes):
            block = mesh.shape_key_add(name=f"frame {number}", from_mix=False)
            block.data.foreach_set("co", (rest[k] + residual[rows[k]]).astype(np.float32).ravel())
            path = f'key_blocks["{bpy.utils.escape_identifier(block.name)}"].value'
            _write_curves(channels[k], path, "Corrective", numbers[near], values)
            yield SHAPE_KEYS
    return actions


# --- scene housekeeping ------------------------------------------------------------------------------------------


@contextmanager
def _edit_mode(context, active):
    """Edit Mode on one object and no other; Object Mode again afterwards, whatever happens."""
    select(context, [active], active)
    bpy.ops.object.mode_set(mode="EDIT")
    try:
        yield
    finally:
        bpy.ops.object.mode_set(mode="OBJECT")


@contextmanager
def _without_refinement(meshes):
    """Show the meshes without the modifiers after the armature, which may change the vertex count."""
    shown = [m for mesh in meshes for m in mesh.modifiers if m.type != "ARMATURE" and m.show_viewport]
    for modifier in shown:
        modifier.show_viewport = False
    try:
        yield
    finally:
        for modifier in shown:
            modifier.show_viewport = True


def select(context, objects, active):
    """Select these objects and no others, and make one active."""
    for other in context.selected_objects:
        other.select_set(False)
    for chosen in objects:
        chosen.select_set(True)
    context.view_layer.objects.active = active


def _new_collection(context, source):
    """An empty collection beside the source's own, or in the scene's where that one is hidden, excluded or linked."""
    collection = bpy.data.collections.new("SPRig")
    _visible_parent(context.view_layer.layer_collection, source, context.scene).children.link(collection)
    return collection


def _visible_parent(layer, source, scene):
    """The collection in which the source's collection lies, when everything in it can be seen and edited."""
    for child in layer.children:
        if child.is_visible and child.collection.is_editable and child.collection.override_library is None:
            if source.name in child.collection.objects and child.collection.objects[source.name] == source:
                return layer.collection
            found = _visible_parent(child, source, scene)
            if found != scene.collection:
                return found
    return scene.collection


def _name_result(sources, collection, armature, meshes, actions, clips):
    """Names that say what each thing is; given last, when an earlier result no longer holds them."""
    name = sources[0].name
    collection.name = f"SPRig {name}"
    armature.name = armature.data.name = f"{name} Rig"
    if clips:
        for action, track, clip in zip(actions, armature.animation_data.nla_tracks, clips, strict=True):
            action.name = track.name = track.strips[0].name = clip.name
    else:
        actions[0].name = f"{name} Motion"
    for source, mesh in zip(sources, meshes, strict=True):
        mesh.name = mesh.data.name = f"{source.name} Skin"


def in_view_layer(context, thing) -> bool:
    """Whether an object can be seen and selected in the context's view layer, unless it is hidden."""
    return thing.name in context.view_layer.objects and context.view_layer.objects[thing.name] == thing


def _hide(context, source):
    """Hide with the eye icon, so that one click compares it with the result, and in renders."""
    source.hide_render = True
    with suppress(RuntimeError):  # it is in no collection of this view layer
        source.hide_set(True, view_layer=context.view_layer)


def _show(context, source):
    source.hide_render = False
    if in_view_layer(context, source):
        source.hide_set(False)


def _remove_collection(collection):
    """Remove our objects, their data and our actions; the collection goes too unless the user has put something in."""
    mark = collection.get(MARK)
    ours = list(collection.objects) if mark is None else [thing for thing in mark["objects"] if thing is not None]
    actions = _actions_of(ours) if mark is None or "actions" not in mark else set(mark["actions"]) - {None}
    if mark is not None:
        del collection[MARK]  # its pointers count as users
    data = {thing.data for thing in ours}
    for thing in ours:
        bpy.data.objects.remove(thing)
    for action in actions:
        action.use_fake_user &= FRAME_RATE not in action
    bpy.data.batch_remove([block for block in data if block.users == 0])
    bpy.data.batch_remove([action for action in actions if action.users == 0])
    if not collection.objects and not collection.children:
        bpy.data.collections.remove(collection)


def _actions_of(things) -> set:
    """What animates these objects and their shape keys: of a result that is not complete, or older than its mark."""
    actions = set()
    for thing in things:
        for animated in (thing, getattr(thing.data, "shape_keys", None)):
            if animated is not None and animated.animation_data:
                strips = (strip for track in animated.animation_data.nla_tracks for strip in track.strips)
                ours_on_strips = {strip.action for strip in strips if strip.action and FRAME_RATE in strip.action}
                actions |= ours_on_strips | ({animated.animation_data.action} - {None})
    return actions
