"""The mesh that the armature moves: a copy of a source object's mesh, at the rest pose, with vertex groups.

The copy is a new object without the source's parent, animation, constraints and deforming modifiers; its world
transform is baked into the vertices, since exporters and engines want a skinned mesh without rotation and scale.
"""

from __future__ import annotations

from collections.abc import Iterator

import bmesh
import bpy
import numpy as np

from ..backend.errors import SprigError

SMALLEST_WEIGHT = 1e-4  # an influence below this moves a vertex by less than game formats resolve
PORTION = 50_000  # weights that are written at a time, which takes some ten milliseconds

# Modifiers that refine a surface whatever the object's axes and scale, so they mean the same on the copy. Mirror,
# Array, Solidify and the like depend on the source's own transform and stay there.
SURFACE_MODIFIERS = ("SUBSURF", "TRIANGULATE", "EDGE_SPLIT", "WEIGHTED_NORMAL", "DECIMATE")
SMOOTHING_NODES = ("Smooth by Angle", "Auto Smooth")  # Blender's own node groups: only shading, no positions


def copy_at_rest(context, source, rest_vertices, collection, name: str):
    """A new mesh object in `collection`: the source's mesh with its vertices at rest_vertices (V,3), in local space.

    Materials (object-linked ones too), UVs, colours, custom normals, seams and sharp edges come along; modifiers that
    only refine the surface after the deformation are kept. SprigError when the mesh has another vertex count.
    """
    trailing = _trailing_modifiers(source)
    mesh, kept = _single_user_mesh(context, source, len(rest_vertices), trailing, collection)
    mesh.name = name
    mesh.animation_data_clear()
    copy = bpy.data.objects.new(name, mesh)
    collection.objects.link(copy)
    if mesh.shape_keys:
        keys = mesh.shape_keys.session_uid
        copy.shape_key_clear()
        # Copying a mesh counts one user too many on its keys, which would stay in the file for ever.
        bpy.data.batch_remove([block for block in bpy.data.shape_keys if block.session_uid == keys])
    copy.vertex_groups.clear()
    for slot, original in zip(copy.material_slots, source.material_slots, strict=False):
        if original.link == "OBJECT":
            slot.link = "OBJECT"
            slot.material = original.material
    copy.color = source.color
    _move_vertices(mesh, rest_vertices, is_mirrored(source))
    for modifier in kept:
        _copy_modifier(modifier, copy)
    return copy


def mesh_from_arrays(name: str, vertices, triangles):
    """A new mesh of vertices (V,3) and triangles (M,3)."""
    mesh = bpy.data.meshes.new(name)
    mesh.vertices.add(len(vertices))
    mesh.loops.add(3 * len(triangles))
    mesh.polygons.add(len(triangles))
    mesh.attributes["position"].data.foreach_set("vector", np.asarray(vertices, dtype=np.float32).ravel())
    mesh.loops.foreach_set("vertex_index", np.asarray(triangles, dtype=np.int32).ravel())
    mesh.polygons.foreach_set("loop_start", np.arange(0, 3 * len(triangles), 3, dtype=np.int32))
    mesh.update(calc_edges=True)
    return mesh


def is_mirrored(source) -> bool:
    """Whether the object's world transform turns the surface inside out (an odd number of negative scales).

    Read from the object and its parents instead of matrix_world, which Blender does not update in excluded collections.
    """
    sign = 1.0
    while source is not None:
        for matrix in (source.matrix_basis, source.matrix_parent_inverse):
            sign *= np.sign(np.linalg.det(np.array(matrix)[:3, :3]))
        source = source.parent
    return sign < 0


def _trailing_modifiers(source) -> list:
    """The modifiers at the end of the stack that only refine the surface: those after the last deformation."""
    trailing = []
    for modifier in reversed(source.modifiers):
        smoothing = (
            modifier.type == "NODES" and modifier.node_group and modifier.node_group.name.startswith(SMOOTHING_NODES)
        )
        if modifier.type not in SURFACE_MODIFIERS and not smoothing:
            break
        trailing.insert(0, modifier)
    return trailing


def _single_user_mesh(context, source, count: int, trailing: list, collection):
    """A local mesh of the source with `count` vertices, and the modifiers it does not contain yet.

    Usually the object's own mesh; where a modifier makes the geometry (nodes, a mirror before the armature, a curve),
    the evaluated one, without or with the trailing modifiers.
    """
    if source.type == "MESH" and len(source.data.vertices) == count:
        return source.data.copy(), trailing
    twin = source.copy()  # the source itself may be hidden or excluded, and its modifiers are the user's
    collection.objects.link(twin)
    try:
        for kept in (trailing, []):
            for original in source.modifiers:
                twin.modifiers[original.name].show_viewport = original.show_viewport and original not in kept
            context.view_layer.update()
            depsgraph = context.evaluated_depsgraph_get()
            mesh = bpy.data.meshes.new_from_object(
                twin.evaluated_get(depsgraph), preserve_all_data_layers=True, depsgraph=depsgraph
            )
            if len(mesh.vertices) == count:
                return mesh, kept
            bpy.data.meshes.remove(mesh)
    finally:
        bpy.data.objects.remove(twin)
    raise SprigError(
        f"The object {source.name!r} no longer has the {count} vertices that were read; run the rigging again."
    )


def _move_vertices(mesh, positions, mirrored: bool):
    """Put the vertices at positions (V,3); custom normals follow, and a mirrored mesh keeps its outside outside.

    Custom normals are stored relative to the surface, except for the free ones of Blender 5, which are fixed vectors:
    writing them once before the vertices move makes them relative.
    """
    corners = np.empty((len(mesh.loops), 3), dtype=np.float32)
    has_normals = mesh.has_custom_normals
    if (
        has_normals
        and mesh.attributes.get("custom_normal")
        and mesh.attributes["custom_normal"].data_type == "FLOAT_VECTOR"
    ):
        mesh.corner_normals.foreach_get("vector", corners.ravel())
        mesh.normals_split_custom_set(corners)
    if not mirrored:
        _set_positions(mesh, positions)
        return
    # Mirrored back, the mesh is congruent with the one that the winding and the normals belong to.
    mirror = np.array([-1.0, 1.0, 1.0], dtype=np.float32)
    if has_normals:
        _set_positions(mesh, positions * mirror)
        mesh.corner_normals.foreach_get("vector", corners.ravel())
        order = _order_after_flip(mesh)
    _set_positions(mesh, positions)
    mesh.flip_normals()
    if has_normals:
        mesh.normals_split_custom_set(corners[order] * mirror)


def _set_positions(mesh, positions):
    mesh.attributes["position"].data.foreach_set("vector", np.ascontiguousarray(positions, dtype=np.float32).ravel())
    mesh.update()


def _order_after_flip(mesh) -> np.ndarray:
    """For each corner of the flipped mesh the one it was: the first corner of a face stays, the others reverse."""
    starts = np.empty(len(mesh.polygons), dtype=np.int32)
    totals = np.empty_like(starts)
    mesh.polygons.foreach_get("loop_start", starts)
    mesh.polygons.foreach_get("loop_total", totals)
    start, total = np.repeat(starts, totals), np.repeat(totals, totals)
    within = np.arange(len(mesh.loops)) - start
    return start + (total - within) % total


def _copy_modifier(original, target):
    """Add a modifier with the same settings; vertex groups are left out, since the copy has none of the source's."""
    modifier = target.modifiers.new(original.name, original.type)
    for rna in original.bl_rna.properties:
        if not rna.is_readonly and rna.identifier not in ("name", "vertex_group", "is_active"):
            setattr(modifier, rna.identifier, getattr(original, rna.identifier))
    if original.type == "NODES":
        _copy_node_inputs(original, modifier)


def _copy_node_inputs(original, modifier):
    """The inputs of a geometry nodes modifier: its own custom properties, in Blender 5.2 under `properties`."""
    origin, target = (getattr(m, "properties", m) for m in (original, modifier))
    for key in origin.keys():
        target[key] = origin[key]


def pruned(weights) -> np.ndarray:
    """Weights (V,J) without entries below SMALLEST_WEIGHT, rows summing to 1: what is written."""
    kept = np.where(np.asarray(weights) < SMALLEST_WEIGHT, 0.0, np.asarray(weights, dtype=np.float64))
    return kept / kept.sum(axis=1, keepdims=True)


def write_vertex_groups(copy, weights, names) -> Iterator[None]:
    """One vertex group per bone, filled from weights (V,J) through bmesh's deform layer: exact, and one pass.

    Goes on portion by portion, so that a window can look at its events meanwhile.
    """
    for name in names:
        copy.vertex_groups.new(name=name)
    mesh = bmesh.new()
    try:
        mesh.from_mesh(copy.data)
        yield
        layer = mesh.verts.layers.deform.verify()
        mesh.verts.ensure_lookup_table()
        rows, columns = np.nonzero(weights)
        values = weights[rows, columns].tolist()
        for number, (row, column, value) in enumerate(zip(rows.tolist(), columns.tolist(), values, strict=True), 1):
            mesh.verts[row][layer][column] = value
            if number % PORTION == 0:
                yield
        mesh.to_mesh(copy.data)
    finally:
        mesh.free()
