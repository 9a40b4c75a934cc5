"""Saving a result as .blend, .glb, .fbx or .usdc: our armature and meshes and nothing else of the user's scene.

Everything is exported from a scene made for the purpose, whose frame rate and range are the rig's. So keys land on
whole frames, other objects are neither evaluated nor written, and the user's scene stays as it is.

Game engines differ in how they read one and the same format:
* Unity takes a file's unit from its header. With FBX_SCALE_ALL that says metres, and objects keep a scale of 1.
* Unreal leaves an armature out that is called Armature (since 4.24) and makes any other its root bone. So ours is
  called that in the file, unless it carries the travel itself: then it is the root bone, and is called so.
  FBX_SCALE_NONE says centimetres, Unreal's own, whether or not units are converted on import.
* Godot reads glTF, whose animations should start at 0 s.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import bpy

from ..backend.errors import SprigError
from .compat import curves_of
from .console import PendingFiles, writing_error
from .write_armature import MADE_FROM_SEQUENCE, WrittenRig

ZSTD_START, ZSTD_END = bytes.fromhex("28b52ffd"), bytes.fromhex("b1ea928f")  # of a compressed .blend (seekable format)


@dataclass(frozen=True)
class Engine:
    """What a game engine takes: a format, settings of its exporter beside our own, and names for the armature."""

    title: str
    suffix: str
    settings: dict = field(default_factory=dict)
    armature: str | None = None  # None: its own
    travelling_armature: str | None = None  # where it carries the travel


ENGINES = {
    "UNITY": Engine("Unity", ".fbx", {"apply_scale_options": "FBX_SCALE_ALL"}),
    "UNREAL": Engine("Unreal", ".fbx", {"apply_scale_options": "FBX_SCALE_NONE"}, "Armature", "root"),
    "GODOT": Engine("Godot", ".glb", {"export_anim_slide_to_zero": True}),
}


def export(path, context, written: WrittenRig, *, sources=(), engine: Engine | None = None):
    """Write the result to `path`, in the format of its suffix, replacing what is there.

    A .blend also holds the source objects, hidden, unless they only stood in for a file. The file appears under its
    name when it is complete. SprigError for another suffix, a place that cannot be written, or a full disk.
    engine: the game engine that it is for, whose format the suffix has to be.
    """
    path = Path(path)
    if engine is not None and path.suffix.lower() != engine.suffix:
        raise SprigError(f"{path} should end in {engine.suffix}, which is what {engine.title} takes; rename it.")
    if path.suffix.lower() not in FORMATS:
        raise SprigError(f"{path.name} has no suffix that can be written; choose one of {', '.join(FORMATS)}.")
    _check_exporter(path.suffix.lower())
    settings = {} if engine is None else engine.settings
    with PendingFiles() as files, _scene_of(context, written) as scene, _called_for(engine, written.armature):
        pending = files.add(path)
        with context.temp_override(scene=scene, view_layer=scene.view_layers[0]):
            try:
                FORMATS[path.suffix.lower()](pending, scene, written, sources, settings)
            except (OSError, RuntimeError) as error:
                if isinstance(error, OSError) and error.errno:
                    raise writing_error(error, path) from error
                # Blender's own errors have text only; those of its Python exporters are a whole traceback.
                reason = "" if "Traceback" in str(error) else f" ({_sentence(error)})"
                raise SprigError(
                    f"{path} could not be written{reason}; check the free space or choose another folder."
                ) from error
        if not _is_complete(pending):
            raise SprigError(f"{path} could not be written completely; check the free space or choose another folder.")
        files.commit()


def _check_exporter(suffix: str):
    """SprigError when this Blender was built without the exporter, or its add-on is off."""
    try:
        if suffix in EXPORTERS:
            EXPORTERS[suffix].get_rna_type()
    except KeyError as error:
        raise SprigError(
            f"This Blender has no exporter for {suffix}; enable its add-on in the preferences or choose another format."
        ) from error


@contextmanager
def _scene_of(context, written: WrittenRig):
    """A scene with the result alone, at its frame rate and range and in the user's units; removed afterwards."""
    scene = bpy.data.scenes.new("SPRig")
    try:
        scene.render.fps = max(1, round(written.fps))
        scene.render.fps_base = scene.render.fps / written.fps
        first, last = written.action.frame_range
        scene.frame_start, scene.frame_end = int(first), int(last)
        scene.frame_set(int(first))
        scene.unit_settings.system = context.scene.unit_settings.system
        scene.unit_settings.scale_length = context.scene.unit_settings.scale_length
        for thing in (written.armature, *written.meshes):
            scene.collection.objects.link(thing)
        yield scene
    finally:
        bpy.data.scenes.remove(scene)
        written.armature.update_tag(refresh={"OBJECT", "DATA", "TIME"})  # the user's scene shows a frame of its own
        context.view_layer.update()


def _called_for(engine: Engine | None, armature):
    """The armature has the name that the engine expects meanwhile."""
    if engine is None or engine.armature is None:
        return nullcontext()
    travels = any(curve.data_path == "location" for curve in curves_of(armature))
    return _called(armature, engine.travelling_armature if travels else engine.armature)


@contextmanager
def _called(thing, name: str):
    """An object has another name meanwhile, and who had it gives it away so long."""
    before = thing.name
    others = [one for one in bpy.data.objects if one.name == name and one.is_editable and one != thing]
    for other in others:
        other.name = f"{name} (not exported)"
    thing.name = name
    try:
        yield
    finally:
        thing.name = before
        for other in others:
            other.name = name


def _write_blend(path: Path, scene, written: WrittenRig, sources, _settings):
    """A file of this scene and what it needs; caches, images and libraries by paths relative to it."""
    for thing in (written.armature, *written.meshes):
        scene.collection.objects.unlink(thing)  # they come with their collection, by which a later run finds them
    scene.collection.children.link(written.collection)
    layer = scene.view_layers[0]
    for source in sources:
        if MADE_FROM_SEQUENCE not in source:
            scene.collection.objects.link(source)
            source.hide_set(True, view_layer=layer)
    layer.objects.active = written.armature
    bpy.data.libraries.write(str(path), {scene}, path_remap="RELATIVE", compress=True)


def _write_glb(path: Path, scene, written: WrittenRig, _sources, settings):
    if len(written.actions) == 1:
        animation = {
            "export_animation_mode": "ACTIVE_ACTIONS",  # not every action of the file
            "export_nla_strips_merged_animation_name": written.action.name,
        }
    else:
        animation = {"export_animation_mode": "NLA_TRACKS"}  # an animation for each, named and timed as its track
        if "export_merge_animation" in EXPORTERS[".glb"].get_rna_type().properties:
            animation["export_merge_animation"] = "NONE"
    EXPORTERS[".glb"](
        filepath=str(path),
        export_format="GLB",
        use_active_scene=True,
        **animation,
        export_force_sampling=True,
        export_optimize_animation_size=False,  # would drop keys within a tolerance of its own
        export_influence_nb=4,
        export_all_influences=_most_influences(written) > 4,
        export_extras=True,  # the bones' evidence
        **settings,
    )


def _write_fbx(path: Path, scene, written: WrittenRig, _sources, settings):
    scene.name = written.action.name  # what a single animation is called in the file
    with _unmuted(written.armature):
        EXPORTERS[".fbx"](
            filepath=str(path),
            object_types={"ARMATURE", "MESH"},
            use_mesh_modifiers=False,  # the armature stays an armature; shape keys survive
            mesh_smooth_type="FACE",
            add_leaf_bones=False,
            bake_anim=True,
            bake_anim_use_nla_strips=len(written.actions) > 1,  # an animation for each, named and timed as its strip
            bake_anim_use_all_actions=False,
            bake_anim_step=1.0,
            bake_anim_simplify_factor=0.0,
            **settings,
        )


@contextmanager
def _unmuted(armature):
    """The armature's NLA tracks are not muted meanwhile: the exporter leaves out those that are."""
    muted = [track for track in armature.animation_data.nla_tracks if track.mute]
    for track in muted:
        track.mute = False
    try:
        yield
    finally:
        for track in muted:
            track.mute = True


def _write_usd(path: Path, scene, written: WrittenRig, _sources, _settings):
    settings = {
        "filepath": str(path),
        "export_animation": True,
        "export_armatures": True,
        "export_shapekeys": True,
        "export_textures": False,  # a folder of textures beside the file would outlive a failure; Blender 4.2
        "export_textures_mode": "KEEP",  # the same since 4.5
        "relative_paths": True,
    }
    known = EXPORTERS[".usdc"].get_rna_type().properties
    EXPORTERS[".usdc"](**{name: value for name, value in settings.items() if name in known})


def _sentence(error: Exception) -> str:
    """What Blender reported, without its prefix."""
    return str(error).strip().splitlines()[-1].removeprefix("Error: ").rstrip(".")


def _is_complete(path: Path) -> bool:
    """Whether the file has its end: on a full disk several of Blender's writers print a line and report success."""
    content = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(24)
        file.seek(max(0, content - 64))
        tail = file.read()
        if path.suffix.lower() == ".usdc":  # its table of contents, written last, is a count and 32 bytes per section
            contents = int.from_bytes(head[16:24], "little")
            file.seek(contents)
            return content == contents + 8 + 32 * int.from_bytes(file.read(8), "little")
    if path.suffix.lower() == ".glb":  # the header says the length
        return content == int.from_bytes(head[8:12], "little")
    if path.suffix.lower() == ".fbx":  # Blender's Python exporter raises when a write fails
        return content > 0
    return tail.endswith(ZSTD_END) or (b"ENDB" in tail and not head.startswith(ZSTD_START))


def _most_influences(written: WrittenRig) -> int:
    """The largest number of bones that move one vertex."""
    return max((len(vertex.groups) for mesh in written.meshes for vertex in mesh.data.vertices), default=0)


FORMATS = {".blend": _write_blend, ".glb": _write_glb, ".fbx": _write_fbx, ".usdc": _write_usd}
EXPORTERS = {".glb": bpy.ops.export_scene.gltf, ".fbx": bpy.ops.export_scene.fbx, ".usdc": bpy.ops.wm.usd_export}
