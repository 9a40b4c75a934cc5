"""What a game engine would stumble over in a rig, one sentence each; nothing is changed.

A name with a dot, such as `arm.L`, is no finding: engines take it, at most as `arm_L`. The colon of Mixamo's names is
none either, since everyone expects it there.
"""

from __future__ import annotations

import bpy
import numpy as np

from .compat import curves_of, slot_curves
from .write_armature import FRAME_RATE

MOST_INFLUENCES = 4  # of one vertex; what every engine takes on every platform
FAINT = 1e-6  # a weight below this is none
SUM_TOLERANCE = 1e-3  # of a vertex's weights
SCALE_TOLERANCE = 1e-4  # of 1
SHORTEST_BONE = 1e-4  # of the armature's size
WHOLE_FRAME = 1e-3  # frames: float32 rounding of a key's place
RATE_TOLERANCE = 1e-3  # frames per second
FORBIDDEN = frozenset('/\\:|"%@<>*?,;')  # in names, by one engine or another
MIXAMO = "mixamorig:"
NAMED = 3  # things that a sentence names one by one


def export_findings(armature, meshes, scene, fps: float | None = None) -> list[str]:
    """What is wrong with an armature and the meshes it moves, and what to do; empty when they are ready for export.

    fps: the rate that the keys were made for, None where that is not known.
    """
    return [
        *(finding for mesh in meshes for finding in _weight_findings(armature, mesh)),
        *_bone_findings(armature),
        *_scale_findings(armature, meshes),
        *_name_findings(armature, meshes),
        *_time_findings(armature, scene, fps),
    ]


def _weight_findings(armature, mesh) -> list[str]:
    bones = armature.data.bones
    moved_by = {group.index: group.name for group in mesh.vertex_groups if group.name in bones}
    influences, total = np.zeros(len(mesh.data.vertices), dtype=int), np.zeros(len(mesh.data.vertices))
    idle = {}  # a set that keeps the order
    for vertex in mesh.data.vertices:
        for element in vertex.groups:
            name = moved_by.get(element.group)
            if name is None or element.weight <= FAINT:
                continue
            if bones[name].use_deform:
                influences[vertex.index] += 1
                total[vertex.index] += element.weight
            else:
                idle[name] = True
    many, none = (influences > MOST_INFLUENCES).sum(), (influences == 0).sum()
    uneven = ((influences > 0) & (np.abs(total - 1) > SUM_TOLERANCE)).sum()
    found = []
    if many:
        found.append(
            f"{mesh.name}: more than {MOST_INFLUENCES} bones move {_vertices(many)}; use Weights > Limit Total in "
            "Weight Paint Mode."
        )
    if none:
        found.append(f"{mesh.name}: no bone moves {_vertices(none)}; give weights to what stays behind.")
    if uneven:
        found.append(
            f"{mesh.name}: the weights of {_vertices(uneven)} do not sum to 1; use Weights > Normalize All in Weight "
            "Paint Mode."
        )
    if idle:
        found.append(
            f"{mesh.name} has weights for {_list(idle)}, which do not deform; switch Deform on in the bone's "
            "properties, or remove these vertex groups."
        )
    return found


def _bone_findings(armature) -> list[str]:
    bones = armature.data.bones
    found = []
    roots = [bone.name for bone in bones if bone.parent is None]
    if len(roots) > 1:
        found.append(f"{armature.name} has {len(roots)} root bones ({_list(roots)}); parent all of them to one bone.")
    ends = np.array([point for bone in bones for point in (bone.head_local, bone.tail_local)]).reshape(-1, 3)
    size = np.linalg.norm(np.ptp(ends, axis=0)) if len(ends) else 0.0
    short = [bone.name for bone in bones if bone.length <= SHORTEST_BONE * size]
    if short:
        found.append(f"{armature.name} has bones without length ({_list(short)}); make them longer in Edit Mode.")
    return found


def _scale_findings(armature, meshes) -> list[str]:
    """Of the armature in the world, and of the meshes against it."""
    around = np.array(armature.matrix_world, dtype=np.float64)[:3, :3]
    places = [(armature, around)]
    for mesh in meshes:
        own = np.array(mesh.matrix_world, dtype=np.float64)[:3, :3]
        places.append((mesh, np.linalg.pinv(around) @ own))
    found = []
    for thing, linear in places:
        scale = np.linalg.norm(linear, axis=0)
        said = " x ".join(f"{axis:.3g}" for axis in scale)
        if np.linalg.det(linear) < 0:
            wrong = "is mirrored by a negative scale"
        elif np.ptp(scale) > SCALE_TOLERANCE * max(1.0, scale.max()):
            wrong = f"has an uneven scale of {said}"
        elif np.abs(scale - 1).max() > SCALE_TOLERANCE:
            wrong = f"has a scale of {scale[0]:.3g}"
        else:
            continue
        found.append(f"{thing.name} {wrong}; use Object > Apply > Scale.")
    return found


def _name_findings(armature, meshes) -> list[str]:
    bones = [bone.name for bone in armature.data.bones]
    things = [armature.name, *(mesh.name for mesh in meshes)]
    found = []
    odd = [name for name in (*bones, *things) if not FORBIDDEN.isdisjoint(name.removeprefix(MIXAMO))]
    if odd:
        letters = " ".join(sorted(FORBIDDEN & set("".join(name.removeprefix(MIXAMO) for name in odd))))
        found.append(f"The names {_list(odd)} have characters that engines replace ({letters}); rename them.")
    of_things = {name.lower() for name in things}
    lower = [name.lower() for name in bones]
    alike = [name for name in bones if name.lower() in of_things or lower.count(name.lower()) > 1]
    if alike:
        found.append(
            f"The bones {_list(alike)} share their names with another bone or an object, but for capitals; rename them."
        )
    return found


def _time_findings(armature, scene, fps: float | None) -> list[str]:
    found = []
    rate = scene.render.fps / scene.render.fps_base
    if fps is not None and abs(rate - fps) > RATE_TOLERANCE:
        found.append(
            f"The keys were made for {fps:g} frames a second and the scene plays {rate:g}; set the frame rate in the "
            "output properties."
        )
    clips = _clips(armature)
    if not clips:
        return [*found, f"{armature.name} has no keys; assign an action in the Action Editor."]
    if any(np.abs(frames - np.round(frames)).max() > WHOLE_FRAME for frames in clips):
        found.append("Some keys lie between frames, where exporters do not look; use Key > Snap in the Action Editor.")
    if len(clips) == 1:  # several are exported each with its own range
        frames = clips[0]
        first, last = round(float(frames[0])), round(float(frames[-1]))
        step = float(np.diff(frames).max(initial=1.0))  # the scene may end between two keys
        start, end = scene.frame_start, scene.frame_end
        if first < start or last > end or first - start >= step or end - last >= step:
            found.append(
                f"The keys are on frames {first} to {last} and the scene plays {start} to {end}; set the scene's frame "
                "range to that of the keys."
            )
    return found


def _clips(armature) -> list[np.ndarray]:
    """The frames that have keys, of each clip of a rig of several, else of what the armature plays."""
    animation = armature.animation_data
    strips = [strip for track in animation.nla_tracks for strip in track.strips] if animation else []
    clips = [
        slot_curves(strip.action, getattr(strip, "action_slot", None))
        for strip in strips
        if strip.action is not None and FRAME_RATE in strip.action
    ]
    times = [_frames(curves) for curves in clips or [curves_of(armature)]]
    return [frames for frames in times if len(frames)]


def _frames(curves: list[bpy.types.FCurve]) -> np.ndarray:
    """The sorted frames on which any of the curves has a key."""
    times = []
    for curve in curves:
        keys = np.empty((len(curve.keyframe_points), 2), dtype=np.float32)
        curve.keyframe_points.foreach_get("co", keys.ravel())
        times.append(keys[:, 0])
    return np.unique(np.concatenate(times)) if times else np.empty(0)


def _vertices(count) -> str:
    return f"{count} vertex" if count == 1 else f"{count} vertices"


def _list(names) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")
