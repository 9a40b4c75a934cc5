"""Scenes written in every format that comes in through Blender."""

import importlib.util
from pathlib import Path

import bpy

FORMATS = (".abc", ".fbx", ".glb", ".gltf", ".usd", ".usda", ".usdc", ".dae", ".blend")
# The USD library of Blender is missing from the wheel of 4.2 alone; without it the scene keeps its own rate.
KNOWS_USD_RATE = hasattr(bpy.utils, "expose_bundled_modules") or importlib.util.find_spec("pxr") is not None


def has(operator: str) -> bool:
    group, name = operator.split(".")
    return name in dir(getattr(bpy.ops, group))


def export(path: Path) -> Path:
    """Write the scene in the format of the suffix."""
    gltf = {"filepath": str(path), "export_frame_range": True}
    writers = {
        ".abc": lambda: bpy.ops.wm.alembic_export(filepath=str(path), uvs=True),
        ".fbx": lambda: bpy.ops.export_scene.fbx(filepath=str(path), bake_anim_simplify_factor=0),
        ".glb": lambda: bpy.ops.export_scene.gltf(**gltf),
        ".gltf": lambda: bpy.ops.export_scene.gltf(export_format="GLTF_SEPARATE", **gltf),
        ".usda": lambda: bpy.ops.wm.usd_export(filepath=str(path), export_animation=True, export_armatures=True),
        ".usdc": lambda: bpy.ops.wm.usd_export(filepath=str(path), export_animation=True),
        ".usd": lambda: bpy.ops.wm.usd_export(filepath=str(path), export_animation=True, export_armatures=True),
        ".dae": lambda: bpy.ops.wm.collada_export(filepath=str(path), include_animations=True),
        ".blend": lambda: bpy.ops.wm.save_as_mainfile(filepath=str(path), copy=True),
    }
    assert writers[path.suffix]() == {"FINISHED"}
    return path
