"""Files that are dropped on the viewport or chosen in File > Import: in at their own rate, selected for the button.

A file with meshes goes through our own checks and Blender's importer (import_sequence.py). A point cache has positions
alone: a Mesh Cache modifier puts it on the active mesh, in front of all others, where the mesh still has its own
vertices; a modifier that is there already gets the new file. Blender itself takes dropped .abc files, too, and lets the
user choose.
"""

from __future__ import annotations

import math
from pathlib import Path

import bpy
from bpy.types import FileHandler

from ..backend.errors import SprigError
from ..backend.formats import point_cache
from .import_sequence import OPERATORS, import_file, undone_on_error
from .write_armature import select

IMPORT_OPERATOR = "sprig.import_sequence"
POINT_CACHES = (".pc2", ".mdd")
SUFFIXES = (*(suffix for suffix in OPERATORS if suffix != ".blend"), *POINT_CACHES)


def import_files(context, paths: list[Path]) -> str:
    """Import all of the files, select what came of them and say so; SprigError, and the scene as before, or none."""
    if not paths:
        raise SprigError("No file was given; choose one that holds an animated mesh.")
    caches = [path for path in paths if path.suffix.lower() in POINT_CACHES]
    if caches:
        if len(paths) > 1:
            raise SprigError(f"{caches[0].name} is for one mesh alone; import it by itself.")
        return attach_point_cache(context, caches[0])
    scene, meshes, starts, ends = context.scene, [], [], []
    with undone_on_error():
        for path in paths:
            meshes += import_file(path)
            starts.append(scene.frame_start)
            ends.append(scene.frame_end)
    _show_range(scene, min(starts), max(ends))
    select(context, meshes, meshes[0])
    names = ", ".join(mesh.name for mesh in meshes)
    return f"Imported {names}, frames {scene.frame_start} to {scene.frame_end}"


def attach_point_cache(context, path: Path) -> str:
    """Let the active mesh be moved by a .pc2 or .mdd; SprigError when they do not belong together."""
    cache = point_cache.probe(path)
    mesh = context.view_layer.objects.active
    if mesh is None or mesh.type != "MESH":
        raise SprigError(f"{path.name} holds positions alone; select the mesh that it moves and import it again.")
    if len(mesh.data.vertices) != cache.vertices:
        raise SprigError(
            f"{path.name} moves {cache.vertices:,} vertices and {mesh.name} has {len(mesh.data.vertices):,}; select "
            "the mesh that the cache was made from."
        )
    if not mesh.is_editable:
        raise SprigError(f"{mesh.name} is linked from another file; make it local first.")
    modifier = next((modifier for modifier in mesh.modifiers if modifier.type == "MESH_CACHE"), None)
    if modifier is None:
        modifier = mesh.modifiers.new("Point Cache", "MESH_CACHE")
        mesh.modifiers.move(len(mesh.modifiers) - 1, 0)
    modifier.cache_format, modifier.filepath = path.suffix.lower()[1:].upper(), str(path)
    modifier.time_mode, modifier.play_mode, modifier.interpolation = "FRAME", "SCENE", "LINEAR"
    modifier.frame_scale, modifier.frame_start = 1 / cache.step, cache.start / cache.step  # it scales, then subtracts
    modifier.show_viewport = modifier.show_render = True
    last = cache.start + (cache.samples - 1) * cache.step
    _show_range(context.scene, math.floor(cache.start), math.ceil(last))
    select(context, [mesh], mesh)
    return f"{mesh.name} is moved by {path.name}, frames {context.scene.frame_start} to {context.scene.frame_end}"


def _show_range(scene: bpy.types.Scene, start: int, end: int) -> None:
    """Blender's scenes have no negative frames in their range."""
    scene.frame_start, scene.frame_end = max(0, start), max(0, end)
    scene.frame_set(scene.frame_start)


class SPRIG_FH_sequence(FileHandler):
    bl_idname = "SPRIG_FH_sequence"
    bl_label = "SPRig, to be rigged"
    bl_import_operator = IMPORT_OPERATOR
    bl_file_extensions = ".abc;.pc2;.mdd"

    @classmethod
    def poll_drop(cls, context):
        return context.area is not None and context.area.type == "VIEW_3D" and context.mode == "OBJECT"


def draw_menu_entry(self, _context) -> None:
    """In File > Import."""
    self.layout.operator(IMPORT_OPERATOR, text="Animated Mesh for SPRig (.abc, .pc2, .mdd, ...)")


CLASSES = (SPRIG_FH_sequence,)


def register() -> None:
    bpy.types.TOPBAR_MT_file_import.append(draw_menu_entry)


def unregister() -> None:
    bpy.types.TOPBAR_MT_file_import.remove(draw_menu_entry)
