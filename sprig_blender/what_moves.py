"""Which objects change their shape or place with time: found by following what they depend on, without evaluating.

Evaluating a few frames instead would miss a blink between them and be slow with simulations. The answer errs on the
side of "moves": a driver counts as motion, and so does a cache or a simulation.
"""

from __future__ import annotations

from collections.abc import Iterator

import bpy
import numpy as np

from .compat import curves_of, node_input, slot_curves

TIMED_MODIFIERS = frozenset(
    "MESH_SEQUENCE_CACHE MESH_CACHE CLOTH SOFT_BODY FLUID WAVE BUILD DYNAMIC_PAINT EXPLODE PARTICLE_INSTANCE".split()
)
TIMED_CONSTRAINTS = frozenset("TRANSFORM_CACHE CAMERA_SOLVER FOLLOW_TRACK OBJECT_SOLVER".split())
TIMED_NODES = frozenset("GeometryNodeInputSceneTime GeometryNodeSimulationOutput GeometryNodeImageTexture".split())
MOVING_CURVE_MODIFIERS = frozenset(("NOISE", "GENERATOR", "FNGENERATOR"))  # move a curve whose keys are all equal
STILL = 1e-6  # values of a curve that differ by less than this share are the rounding of an exporter


def is_animated(thing: bpy.types.Object) -> bool:
    """Whether the object, or anything that places or deforms it, changes with time."""
    return any(_changes(other) for other in influences(thing))


def kind_of_motion(thing: bpy.types.Object) -> str:
    """What changes a mesh with time, in a word or two for the user; empty when nothing does."""
    for modifier in reversed(_enabled(thing)):  # the last one decides where the vertices are
        if modifier.type == "MESH_SEQUENCE_CACHE" and modifier.cache_file:
            return "Alembic cache" if modifier.cache_file.filepath.lower().endswith(".abc") else "USD cache"
        if modifier.type == "MESH_CACHE":
            return f"{modifier.cache_format} cache"
        if modifier.type in TIMED_MODIFIERS:
            return "Simulation"
        if modifier.type == "ARMATURE" and modifier.object and is_animated(modifier.object):
            return "Armature"
    keys = getattr(thing.data, "shape_keys", None)
    if keys and is_keyed(keys):
        return "Shape keys"
    return "Animation" if is_animated(thing) else ""


def influences(thing: bpy.types.Object) -> list[bpy.types.Object]:
    """The objects that decide the object's place and shape, itself first: parents, targets, modifiers' objects."""
    found = {thing: None}  # a set that keeps its order
    waiting = [thing]
    while waiting:
        for other in _direct_influences(waiting.pop()):
            if other not in found:
                found[other] = None
                waiting.append(other)
    return list(found)


def simulation_start(scene: bpy.types.Scene, objects) -> int | None:
    """First frame of the simulations that the objects depend on and that are not baked; None without any."""
    starts = []
    for thing in {other: None for object_ in objects for other in influences(object_)}:
        caches = [modifier.point_cache for modifier in _enabled(thing) if modifier.type in ("CLOTH", "SOFT_BODY")]
        for modifier in _enabled(thing):
            if modifier.type == "DYNAMIC_PAINT" and modifier.canvas_settings:
                caches += [surface.point_cache for surface in modifier.canvas_settings.canvas_surfaces]
            if modifier.type == "NODES" and any(
                _holds(tree, "GeometryNodeSimulationOutput") for tree in _trees(modifier)
            ):
                starts.append(scene.frame_start)
        if thing.rigid_body and scene.rigidbody_world:
            caches.append(scene.rigidbody_world.point_cache)
        starts += [cache.frame_start for cache in caches if not (cache.is_baked or cache.use_external)]
    return min(starts, default=None)


def _changes(thing: bpy.types.Object) -> bool:
    """Whether something of the object's own changes with time, whatever it depends on."""
    if any(is_keyed(block) for block in datablocks(thing)):
        return True
    if thing.rigid_body and thing.rigid_body.type == "ACTIVE":
        return True
    if any(constraint.type in TIMED_CONSTRAINTS for constraint in _constraints(thing)):
        return True
    return any(
        modifier.type in TIMED_MODIFIERS
        or (modifier.type == "NODES" and any(_holds(tree, *TIMED_NODES) for tree in _trees(modifier)))
        for modifier in _enabled(thing)
    )


def is_keyed(block: bpy.types.ID) -> bool:
    """Whether an ID has drivers, a curve whose value changes, or strips of such."""
    animation = block.animation_data
    if animation is None:
        return False
    curves = curves_of(block)
    for track in animation.nla_tracks if animation.use_nla else ():
        for strip in track.strips if not track.mute else ():
            if strip.action and not strip.mute:
                curves += slot_curves(strip.action, getattr(strip, "action_slot", None))
    return len(animation.drivers) > 0 or any(varies(curve) for curve in curves)


def varies(curve: bpy.types.FCurve) -> bool:
    """Whether the curve's value changes with time."""
    if any(modifier.type in MOVING_CURVE_MODIFIERS for modifier in curve.modifiers):
        return True
    values = np.empty(2 * len(curve.keyframe_points), dtype=np.float32)
    curve.keyframe_points.foreach_get("co", values)
    values = values[1::2]
    return len(values) > 1 and bool(np.ptp(values) > STILL * np.abs(values).max())


def datablocks(thing: bpy.types.Object) -> Iterator[bpy.types.ID]:
    """The IDs whose animation changes the object: itself, its data, shape keys, node trees, textures."""
    yield thing
    if thing.data is not None:
        yield thing.data
        if getattr(thing.data, "shape_keys", None):
            yield thing.data.shape_keys
    for modifier in _enabled(thing):
        if modifier.type == "NODES":
            yield from _trees(modifier)
        if isinstance(getattr(modifier, "texture", None), bpy.types.ID):
            yield modifier.texture


def _direct_influences(thing: bpy.types.Object) -> Iterator[bpy.types.Object]:
    if thing.parent:
        yield thing.parent
    for constraint in _constraints(thing):
        yield from _objects_of(constraint)
        for target in getattr(constraint, "targets", ()):  # of the Armature constraint
            yield from _objects_of(target)
    for modifier in _enabled(thing):
        yield from _objects_of(modifier)
        if modifier.type == "NODES":
            for tree in _trees(modifier):
                for socket in (socket for node in tree.nodes for socket in node.inputs):
                    yield from _as_objects(getattr(socket, "default_value", None))
            if modifier.node_group:
                for item in modifier.node_group.interface.items_tree:
                    if item.item_type == "SOCKET" and item.in_out == "INPUT":
                        yield from _as_objects(node_input(modifier, item.identifier))
    for block in datablocks(thing):
        for driver in block.animation_data.drivers if block.animation_data else ():
            for variable in driver.driver.variables:
                for target in variable.targets:
                    yield from _as_objects(target.id)


def _enabled(thing: bpy.types.Object) -> list[bpy.types.Modifier]:
    return [modifier for modifier in thing.modifiers if modifier.show_viewport]


def _constraints(thing: bpy.types.Object) -> list[bpy.types.Constraint]:
    """The active constraints of the object and of its pose bones."""
    holders = [thing, *(thing.pose.bones if thing.pose else ())]
    return [constraint for holder in holders for constraint in holder.constraints if not constraint.mute]


def _objects_of(struct) -> Iterator[bpy.types.Object]:
    """The objects (those of collections too) that the pointers of a modifier or constraint name."""
    for prop in struct.bl_rna.properties:
        if prop.type == "POINTER":
            yield from _as_objects(getattr(struct, prop.identifier))


def _as_objects(value) -> Iterator[bpy.types.Object]:
    if isinstance(value, bpy.types.Object):
        yield value
    elif isinstance(value, bpy.types.Collection):
        yield from value.all_objects


def _trees(modifier: bpy.types.Modifier) -> list[bpy.types.NodeTree]:
    """The node tree of a modifier and all groups within it."""
    found = {modifier.node_group: None} if modifier.node_group else {}
    waiting = list(found)
    while waiting:
        for node in waiting.pop().nodes:
            inner = getattr(node, "node_tree", None)
            if inner is not None and inner not in found:
                found[inner] = None
                waiting.append(inner)
    return list(found)


def _holds(tree: bpy.types.NodeTree, *kinds: str) -> bool:
    return any(node.bl_idname in kinds for node in tree.nodes)
