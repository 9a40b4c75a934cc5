"""*Adjust Joints*: the previewed skeleton as an armature for Blender's own Edit Mode, fitted again without reading.

    preview -> armature in Edit Mode -> the artist's changes -> Refit: a new preview -> Apply, or Discard: the former

Choices a reader would question:
* That joints are being adjusted is known from the armature alone, which carries a mark, so that undo takes it back with
  everything else. The mark also remembers what Discard restores.
* A locked joint is one that Blender's Edit Mode has locked; it keeps its weights as well.
* A rig that was applied is read back first, since its preview is gone: its frames once more, and its bones, weights
  and keys as the artist has left them. It stays until Apply replaces it.
* Suggestions are those of the previewed rig. They are offered as long as their bones are there and none is locked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import replace

import bpy
import numpy as np
from mathutils import Vector

from ..backend.errors import Cancelled, SprigError
from ..backend.given_skeleton import GivenSkeleton
from . import auto_rig, backend_work, call_backend, preview
from .fit_armature import read_in_steps
from .jobs import Job, Step, Steps
from .own_armature import rest_bones
from .write_armature import MARK as RESULT
from .write_armature import in_view_layer, read_result, result_of, select, sources_of, write_skeleton

MARK = "sprig_adjust"  # on the armature: {"collection", "frame", "subframe", "selected", "active"}
UNCHANGED = 1e-5  # diagonals: bones that were moved by less have only gone through Blender's float32
AT_TAIL = 1e-6  # of a bone's length: a child this near to its end begins there


def armature_of(context) -> bpy.types.Object | None:
    """The armature whose joints are being adjusted, in the scene of the preview."""
    shown = preview.current()
    if shown is None or shown.computed.scene_uid != context.scene.session_uid:
        return None
    return _marked(context)


def _marked(context) -> bpy.types.Object | None:
    return next((thing for thing in context.scene.objects if MARK in thing and thing.type == "ARMATURE"), None)


def edited(context) -> bpy.types.Object | None:
    """That armature while it is in Edit Mode."""
    armature = armature_of(context)
    return armature if armature is not None and armature.mode == "EDIT" else None


def result_for(context) -> bpy.types.Collection | None:
    """The rig of ours that the active object belongs to."""
    active = context.view_layer.objects.active
    return None if active is None else result_of(active)


# ---- the way there and back


def steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Offer the previewed skeleton in Edit Mode, as it was left where it is there (see jobs.LongOperator.steps)."""
    from ..backend.adjust import suggest

    shown = preview.current()
    computed = shown.computed if shown else (yield from _of_result(context, cancel, patience))
    rig, sequence = computed.rig, computed.sequence
    with Job(lambda progress: suggest(rig, sequence, progress), cancel) as job:
        while job.wait(patience):
            yield Step(job.fraction, job.text)
    yield from auto_rig.ready_to_write(context, computed.scene_uid, cancel)
    source, *_ = yield from auto_rig.found_again(context, computed.identities, cancel, "after it was previewed")
    if preview.current() is not shown:
        raise Cancelled
    if shown is None:
        preview.show(computed, of_result=True)
    preview.current().suggestions = job.result()
    scene, armature = context.scene, armature_of(context)
    if armature is None:
        state = {
            "frame": scene.frame_current,
            "subframe": scene.frame_subframe,
            "selected": list(context.selected_objects),
        }
        if context.view_layer.objects.active:
            state["active"] = context.view_layer.objects.active
        armature = write_skeleton(context, rig, source)
        armature[MARK] = {**state, "collection": armature.users_collection[0]}
    elif not in_view_layer(context, armature):
        raise SprigError(f"The armature {armature.name} is not in this view layer; show its collection.")
    armature.hide_set(False)
    scene.frame_set(int(rig.frame_numbers[rig.anchor]))
    select(context, [armature], armature)
    bpy.ops.object.mode_set(mode="EDIT")
    bpy.ops.armature.select_all(action="DESELECT")
    return f"{armature.name}: edit the bones, then press Refit"


def _of_result(context, cancel: threading.Event, patience: float) -> Generator[Step, None, auto_rig.Computed]:
    """What was applied, read back: the chosen result's bones, weights and keys as they are now, and its sequence."""
    from ..backend.adjust import rig_of

    started = time.perf_counter()
    collection = result_for(context)
    armature, *skins = collection[RESULT]["objects"]
    if collection[RESULT].get("armature") is not None:
        raise SprigError(
            f"The bones of {armature.name} are copies of your own; edit those and press Fit Armature to Sequence."
        )
    written, scene, settings = read_result(context, collection), context.scene, context.scene.sprig
    sources, numbers = sources_of(armature), auto_rig.frame_numbers(scene)
    if len(written.meshes) != len(sources) or len(skins) != len(sources):
        raise SprigError(f"Some meshes of {armature.name} or of its sources are gone; undo that, or rig again.")
    identities = yield from auto_rig.identities_of(sources, cancel)
    scene_uid = scene.session_uid
    bones, _own = yield from read_in_steps(context, armature, skins, numbers, None, True, cancel)
    sequence = yield from auto_rig.read_frames(context, sources, numbers, cancel, patience)
    rig = rig_of(sequence, bones, sequence.position_of(written.anchor_frame))
    root_motion = settings.root_motion if bones.deform.all() else "hips"  # it has its root bone
    seconds = time.perf_counter() - started
    return auto_rig.Computed(rig, sequence, tuple(identities), scene_uid, settings.corrective, root_motion, seconds)


def refit_steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Fit the bones as they are now to the previewed sequence, and preview that."""
    started = time.perf_counter()
    from ..backend.adjust import same_joints, to_refit

    shown, armature = preview.current(), armature_of(context)
    computed = shown.computed
    bones = read_bones(armature)
    choices = auto_rig.rig_choices(context)
    choices.update(skeleton="auto", joints=None, stretch="off", names="sprig")  # of skeletons that are made
    choices["anchor"] = int(computed.rig.frame_numbers[computed.rig.anchor])
    given = to_refit(computed.rig, bones)
    work = call_backend.work(context, backend_work.fit, computed.sequence, given, choices, "both")
    with Job(work, cancel) as job:
        while job.wait(patience):
            yield Step(job.fraction, job.text)
    rig = job.result()
    if preview.current() is not shown or armature_of(context) is None:
        raise Cancelled
    known = same_joints(computed.rig, given)
    rig = replace(rig, confidence=np.append(computed.rig.confidence, np.nan)[known])
    former = shown.former or computed
    computed = replace(computed, rig=rig, seconds=time.perf_counter() - started)
    preview.show(computed, former, shown.overlay.raw, shown.of_result)
    armature = armature_of(context)
    if armature.mode == "EDIT":
        bpy.ops.object.mode_set(mode="OBJECT")
    if in_view_layer(context, armature):
        armature.hide_set(True)
    return f"{preview.current().name}: {len(rig.skeleton)} joints, RMSE {rig.rmse:.3f} %; Apply writes the rig"


def apply_steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Write the previewed rig; joints that were adjusted for it are done with."""
    armature = armature_of(context)
    if armature is not None and _changed(armature):
        raise SprigError("The joints were changed after they were fitted; press Refit first, or discard the changes.")
    sentence = yield from preview.apply_steps(context, cancel, patience)
    if _marked(context) is not None:
        _remove(_marked(context))
    return sentence


def discard(context, armature) -> str:
    """Take the armature away, and bring back the preview and what else was there before."""
    shown = preview.current()
    if context.mode != "OBJECT":
        bpy.ops.object.mode_set(mode="OBJECT")
    state = armature[MARK].to_dict()
    _remove(armature)
    context.scene.frame_set(state["frame"], subframe=state["subframe"])
    there = [thing for thing in (*state["selected"], state.get("active")) if thing and in_view_layer(context, thing)]
    active = state.get("active")
    select(context, [thing for thing in there if thing in state["selected"]], active if active in there else None)
    if shown.of_result:
        preview.discard()
    elif shown.former is not None:
        preview.show(shown.former, raw=shown.overlay.raw)
    return "The joints are as they were"


def _remove(armature) -> None:
    """Remove our armature, and its collection unless the user has put something in."""
    data, collection = armature.data, armature[MARK].get("collection")
    bpy.data.objects.remove(armature)
    bpy.data.armatures.remove(data)
    if collection is not None and not collection.objects and not collection.children:
        bpy.data.collections.remove(collection)


def read_bones(armature) -> GivenSkeleton:
    """The bones as they are now, in world space; in Edit Mode as they are edited, and which of them are locked."""
    locked = {bone.name for bone in armature.data.edit_bones if bone.lock}  # there are none outside of Edit Mode
    armature.update_from_editmode()
    bones = armature.data.bones
    if not len(bones):
        raise SprigError(f"{armature.name} has no bones left; undo that, or discard the changes.")
    return GivenSkeleton(
        **rest_bones(armature),
        deform=[bone.use_deform for bone in bones],
        locked=[bone.name in locked for bone in bones],
    )


def _changed(armature) -> bool:
    """Whether the bones are others than those of the previewed rig, in place, parent or name."""
    shown = preview.current()
    rig, bones = shown.computed.rig, read_bones(armature).parents_first()
    if set(bones.names) != set(rig.skeleton.names):
        return True
    order = [bones.names.index(name) for name in rig.skeleton.names]
    parents = [bones.names[p] if p >= 0 else None for p in bones.parents[order]]
    if parents != [rig.skeleton.names[p] if p >= 0 else None for p in rig.skeleton.parents]:
        return True
    moved = np.abs(bones.joints[order] - rig.origin - rig.skeleton.joints).max()
    turned = np.abs(bones.tails[order] - rig.origin - rig.skeleton.tails).max()
    return max(moved, turned) > UNCHANGED * shown.overlay.diagonal


# ---- in Edit Mode


def offered(armature) -> list:
    """The suggestions that were not followed, for bones of which none is locked; the armature is in Edit Mode."""
    bones = armature.data.edit_bones
    return [
        one
        for one in preview.current().suggestions
        if one.bone in bones
        and not (one.kind == "split" and _far_name(one.bone) in bones)
        and not any(bones[name].lock for name in one.touches if name in bones)
    ]


def select_bone(armature, name: str) -> None:
    """Select one bone and no other."""
    bones = armature.data.edit_bones
    for bone in bones:
        bone.select = bone.select_head = bone.select_tail = bone.name == name
    bones.active = bones[name]


def follow(armature, kind: str, name: str) -> str:
    """Merge or split a bone as suggested, and select what became of it."""
    suggestion = next((one for one in offered(armature) if (one.kind, one.bone) == (kind, name)), None)
    if suggestion is None:
        raise SprigError(f"There is no such suggestion for {name!r} any more; press Refit for new ones.")
    bones = armature.data.edit_bones
    bone = bones[suggestion.bone]
    result = _merge(bones, bone) if suggestion.kind == "merge" else _split(armature, bone, suggestion)
    select_bone(armature, result.name)
    done = "merged into" if suggestion.kind == "merge" else "split, with the new bone"
    return f"{suggestion.bone}: {done} {result.name}"


def _merge(bones, bone):
    """Take a bone away and give its children to its parent, which ends where the bone did if the bone began there."""
    parent = bone.parent
    if parent is None:
        raise SprigError(f"{bone.name} has no parent any more; there is nothing to merge it into.")
    ends, tail = _begins_at_tail(bone), bone.tail.copy()
    for other in (*parent.children, *bone.children):
        other.use_connect = False
    for child in bone.children:
        child.parent = parent
    bones.remove(bone)
    if ends:
        parent.tail = tail
    _connect(parent)
    return parent


def _split(armature, bone, suggestion):
    """A new bone for the far part of one that moves like two."""
    into = armature.matrix_world.inverted()
    head, tail = (into @ Vector(place) for place in (suggestion.head, suggestion.tail))
    new = armature.data.edit_bones.new(_far_name(bone.name))
    children = list(bone.children)
    for child in children:
        child.use_connect = False
        if child.name in suggestion.followers or (suggestion.ends and _begins_at_tail(child)):
            child.parent = new
    new.head, new.tail = head, bone.tail if suggestion.ends else tail
    new.align_roll(bone.z_axis)
    new.parent = bone
    if suggestion.ends:
        bone.tail = head
    for one in (bone, new):
        _connect(one)
    return new


def _far_name(name: str) -> str:
    """What the far part of a bone is called: forearm_end.L for forearm.L."""
    stem, side = (name[:-2], name[-2:]) if name.endswith((".L", ".R")) else (name, "")
    return f"{stem}_end{side}"


def _begins_at_tail(bone) -> bool:
    return (bone.head - bone.parent.tail).length <= AT_TAIL * bone.parent.length


def _connect(parent) -> None:
    """Connect the children that begin at the bone's tail, so that moving one end moves both."""
    for child in parent.children:
        child.use_connect = _begins_at_tail(child)


def symmetrise(armature) -> str:
    """Make the joints symmetric about the plane between those that are called left and right."""
    from ..backend.adjust import symmetrised

    bones = list(armature.data.edit_bones)
    number = {bone.name: k for k, bone in enumerate(bones)}
    partner = [number.get(bpy.utils.flip_name(bone.name), k) for k, bone in enumerate(bones)]
    pairs = [(k, other) for k, other in enumerate(partner) if k < other]
    joints, tails = symmetrised(
        [bone.head for bone in bones], [bone.tail for bone in bones], pairs, [bone.lock for bone in bones]
    )
    connected = [bone.use_connect for bone in bones]
    for bone in bones:
        bone.use_connect = False
    for bone, head, tail in zip(bones, joints, tails, strict=True):
        bone.head, bone.tail = head, tail
    for bone, was_connected in zip(bones, connected, strict=True):
        bone.use_connect = was_connected and _begins_at_tail(bone)
    return f"{len(pairs)} pairs of joints are symmetric"
