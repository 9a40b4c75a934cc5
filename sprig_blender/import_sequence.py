"""Animated files into the current scene through Blender's own importers, at the file's own frame rate.

Choices a reader would question:
* Importers place keys by time, so a scene at another rate than the file's would be read between its keys. glTF and
  Collada state no rate and FBX often a wrong one: it is taken from the spacing of the keys, and they are moved to whole
  frames.
* Importers written in C++ can crash on damaged files and take the whole process with them. Alembic archives are probed
  by the backend; USD, Collada and .blend files are first imported in a process of their own.
* A .blend is opened, not appended: physics, caches, render settings and linked libraries come along. That replaces what
  is open, so it happens without a window only; scripts in the file do not run.
* Of several animations in a file the importer's choice is kept if it moves a mesh; otherwise the first that does so is
  played. The others stay in the file as actions.
"""

from __future__ import annotations

import ctypes
import io
import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import bpy
import numpy as np

from ..backend.errors import SprigError
from ..backend.formats import alembic, checks
from .compat import action_curves, curves_of, slot_curves
from .read_sequence import LAST_FRAME, animated_meshes
from .what_moves import datablocks, influences, varies

IMPORT_RATE = 24  # of the scene while formats without a rate are imported; whole, since glTF misuses fps_base
SAME_TIME = 1e-3  # seconds; keys closer than this are one frame written twice
SLOWEST_SAMPLING = 5.0  # frames per second; keys further apart are poses to interpolate between, not samples
WHOLE_RATE_TOLERANCE = 1e-4  # relative; 30 and 29.97 are ten times as far apart, rounding of key times is 1e-6
WHOLE_FRAME_TOLERANCE = 1e-2  # of a frame; key times are float32
HIGHEST_RATE = 32767  # Blender's own limit
REHEARSAL_SECONDS, REHEARSAL_SECONDS_PER_MB = 60, 1  # a damaged file can keep an importer busy for ever

OPERATORS = {  # in order of preference: the C++ FBX importer (Blender 4.5) also reads ASCII files and copes with damage
    ".abc": ("wm.alembic_import",),
    ".fbx": ("wm.fbx_import", "import_scene.fbx"),
    ".glb": ("import_scene.gltf",),
    ".gltf": ("import_scene.gltf",),
    ".usd": ("wm.usd_import",),
    ".usda": ("wm.usd_import",),
    ".usdc": ("wm.usd_import",),
    ".dae": ("wm.collada_import",),
    ".blend": ("wm.open_mainfile",),
}
ARGUMENTS = {
    "wm.alembic_import": {"as_background_job": False},
    "wm.open_mainfile": {"load_ui": False, "use_scripts": False},
    "import_scene.gltf": {"disable_bone_shape": True},
}
REHEARSED = frozenset(("wm.usd_import", "wm.collada_import", "wm.open_mainfile"))
BEGINNINGS = {  # what the files of a suffix begin with, for a clearer sentence than the importers'
    ".glb": (b"glTF",),
    ".usd": (b"PXR-USDC", b"#usda"),
    ".usda": (b"#usda", b"PXR-USDC"),
    ".usdc": (b"PXR-USDC",),
    ".blend": (b"BLENDER", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"),  # plain, or compressed by zstd or (old) gzip
}


def import_file(path, *, fps: float | None = None) -> list[bpy.types.Object]:
    """Import .abc .fbx .glb .gltf .usd .usda .usdc .dae or .blend; its animated mesh objects, ordered by name.

    Sets the scene's frame rate (the file's own, or `fps`) and frame range, and plays the animation that moves. When
    nothing in the file moves all of its meshes are returned. Raises SprigError and leaves the scene as before when the
    file cannot be read; a .blend replaces the open file once it has proved to be sound.
    """
    path = Path(path).absolute()
    _check_file(path)
    if fps is not None and not 0 < fps <= HIGHEST_RATE:
        raise SprigError(f"The frame rate is {fps}; give one above 0 and up to {HIGHEST_RATE}.")
    operator = _operator(path)
    if operator == "wm.open_mainfile":
        return _open_blend(path, operator, fps)
    importers = {"wm.alembic_import": _import_alembic, "wm.usd_import": _import_usd}
    with undone_on_error():
        new = set(importers.get(operator, _import_keyed)(path, operator, fps))
        scene = bpy.context.scene
        scene.frame_set(scene.frame_start)
        return _animated(path, [mesh for mesh in _meshes(scene) if mesh in new])


@contextmanager
def captured_output() -> Iterator[None]:
    """Keep what is printed meanwhile, by Python and by C++ code, out of stdout and stderr."""
    flush_c = ctypes.CDLL("ucrtbase" if os.name == "nt" else None).fflush

    def flush():
        sys.stdout.flush()
        sys.stderr.flush()
        flush_c(None)

    flush()
    with open(os.devnull, "wb") as nowhere, ExitStack() as undo:
        # Python's own streams may lead elsewhere than to the descriptors. Never closed: a log may go on holding them.
        undo.enter_context(redirect_stdout(io.StringIO()))
        undo.enter_context(redirect_stderr(io.StringIO()))
        for descriptor in (1, 2):
            kept = os.dup(descriptor)
            undo.callback(os.close, kept)
            undo.callback(os.dup2, kept, descriptor)
            os.dup2(nowhere.fileno(), descriptor)
        undo.callback(flush)
        yield


# ---- before the import


def _check_file(path: Path):
    """Refuse what is no readable file of a format we import, by its name and its first bytes."""
    suffix = path.suffix.lower()
    if suffix not in OPERATORS:
        raise SprigError(f"{path.name}: Blender imports {' '.join(OPERATORS)}; convert the file to one of these.")
    if not path.exists():
        raise SprigError(f"There is no file {path}; check its name.")
    try:
        with path.open("rb") as file:
            beginning = file.read(8)
    except OSError as error:
        raise SprigError(f"{path.name} cannot be read: {error.strerror or error}.") from error
    if not beginning:
        raise SprigError(f"{path.name} is empty; export it again.")
    if not beginning.startswith(BEGINNINGS.get(suffix, b"")):
        raise SprigError(f"{path.name} is no {suffix} file, although it is named like one; export it again.")
    if suffix in (".glb", ".gltf"):
        _check_gltf(path)


def _check_gltf(path: Path):
    """Refuse a glTF that is cut off, or whose accessors claim more than any mesh has: Blender would allocate it."""
    with path.open("rb") as file:
        if path.suffix.lower() == ".glb":
            whole_size, json_size = np.frombuffer(file.read(20).ljust(20, b"\0"), dtype="<u4")[2:4]
            size = path.stat().st_size
            if not 20 <= whole_size <= size or json_size > size - 20:
                raise SprigError(f"{path.name} is truncated; export it again.")
            data = file.read(json_size)
        else:
            data = file.read()
    try:
        counts = [accessor["count"] for accessor in json.loads(data).get("accessors", ())]
        too_many = any(count > checks.MAX_CORNERS for count in counts)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise SprigError(f"{path.name} is damaged: its JSON part is not glTF; export it again.") from error
    if too_many:
        raise SprigError(
            f"{path.name} claims {max(counts)} values in one array, more than any mesh has; it is damaged."
        )


def _operator(path: Path) -> str:
    """The operator of this Blender that imports the file."""
    for operator in OPERATORS[path.suffix.lower()]:
        group, name = operator.split(".")
        if name in dir(getattr(bpy.ops, group)):
            return operator
    raise SprigError(
        f"Blender {bpy.app.version_string} cannot import {path.suffix} files as it is set up; "
        "enable the format's add-on in the preferences, or convert the file to .glb."
    )


def _rehearse(path: Path, operator: str) -> dict:
    """Import in a process of its own; what that found out. SprigError when the importer refuses, crashes or hangs."""
    script = str(Path(__file__).with_name("rehearse_import.py"))
    if bpy.app.binary_path:
        command = [bpy.app.binary_path, "--background", "--factory-startup", "--python", script, "--"]
    else:  # bpy as a module
        command = [sys.executable, script, "--"]
    patience = REHEARSAL_SECONDS + REHEARSAL_SECONDS_PER_MB * path.stat().st_size / 1e6
    with tempfile.TemporaryDirectory(prefix="sprig_", ignore_cleanup_errors=True) as folder:
        result = Path(folder) / "result.json"
        arguments = {"filepath": str(path), **ARGUMENTS.get(operator, {})}
        try:
            subprocess.run(
                [*command, str(result), operator, json.dumps(arguments)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),  # Windows opens a console otherwise
                timeout=patience,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SprigError(f"{path.name} keeps Blender's importer busy without end; export it again.") from error
        if not result.exists():
            raise SprigError(f"{path.name} is damaged: Blender's importer crashes on it; export it again.")
        found = json.loads(result.read_text(encoding="utf-8"))
    if "refused" in found:
        raise _refusal(path, found["refused"])
    return found


# ---- the import


def _import_alembic(path: Path, operator: str, fps: float | None) -> list[bpy.types.ID]:
    """Blender shows an archive at frame / rate seconds; caches are shifted by what is missing to whole frames."""
    own_rate, times = alembic.probe(path)
    rate = fps or own_rate
    _set_rate(rate)
    new = _run(path, operator)
    shift = round(times[0] * rate) - times[0] * rate
    if abs(shift) > WHOLE_FRAME_TOLERANCE:
        for cache in (block for block in new if isinstance(block, bpy.types.CacheFile)):
            cache.frame_offset = shift
    _set_range(path, times[0] * rate + shift, times[-1] * rate + shift)
    return new


def _import_usd(path: Path, operator: str, fps: float | None) -> list[bpy.types.ID]:
    """USD counts in time codes, which Blender takes for frames; only the rate has to be told."""
    found = _rehearse(path, operator)
    if fps or found["rate"]:
        _set_rate(fps or found["rate"])
    new = _run(path, operator)
    if found["range"]:
        _set_range(path, *found["range"])
    return new


def _import_keyed(path: Path, operator: str, fps: float | None) -> list[bpy.types.ID]:
    """Formats whose animation becomes keys, at frame time x rate (+ 1 for FBX): move them to whole frames."""
    if operator in REHEARSED:
        _rehearse(path, operator)
    render = bpy.context.scene.render
    _set_rate(IMPORT_RATE)
    new = _run(path, operator)
    # FBX importers set the scene's rate; the one in Python then places keys without looking at fps_base.
    imported_at = render.fps / render.fps_base if operator == "wm.fbx_import" else render.fps
    frame_of_zero = 1 if path.suffix.lower() == ".fbx" else 0

    deciding = _deciding_blocks(new)
    _play_what_moves(new, deciding)
    keys = [_key_frames(curve) for block in deciding for curve in curves_of(block)]
    frames = np.unique(np.concatenate(keys)) if keys else np.array([float(frame_of_zero)])
    if not np.isfinite(frames).all():
        raise SprigError(f"{path.name} has animation keys at times that are no numbers; export it again.")
    rate = fps or _sampling_rate((frames - frame_of_zero) / imported_at) or IMPORT_RATE
    scale = rate / imported_at
    first = frame_of_zero + (frames[0] - frame_of_zero) * scale
    shift = max(0, round(first)) - first + frame_of_zero * (1 - scale)
    for action in (block for block in new if isinstance(block, bpy.types.Action)):
        for curve in action_curves(action):
            _move_keys(curve, scale, shift)
    _set_rate(rate)
    _set_range(path, *(frames[[0, -1]] * scale + shift))
    return new


def _open_blend(path: Path, operator: str, fps: float | None) -> list[bpy.types.Object]:
    """Open the file in place of the one that is open; its scene keeps its frame rate and range."""
    if not bpy.app.background:
        raise SprigError(f"Open {path.name} with File > Open, then use Auto-Rig Sequence in the sidebar.")
    _rehearse(path, operator)
    _run(path, operator)
    if fps is not None:
        _set_rate(fps)
    return _animated(path, _meshes(bpy.context.scene))


def _run(path: Path, operator: str) -> list[bpy.types.ID]:
    """Call an import operator; the IDs that it added."""
    before = _everything()
    group, name = operator.split(".")
    try:
        with captured_output():
            outcome = getattr(getattr(bpy.ops, group), name)(filepath=str(path), **ARGUMENTS.get(operator, {}))
    except RuntimeError as error:
        raise _refusal(path, str(error)) from error
    if "FINISHED" not in outcome:
        raise _refusal(path, "")
    return [block for uid, block in _everything().items() if uid not in before]


def _refusal(path: Path, words: str) -> SprigError:
    """One sentence from what an importer says: the last line, where a traceback names its reason."""
    lines = [line.strip() for line in words.splitlines()]
    lines = [line.removeprefix("Error: ") for line in lines if line and not line.startswith("Location:")]
    reason = f" ({lines[-1][:200]})" if lines else ""
    return SprigError(f"{path.name} cannot be imported by Blender{reason}; it may be damaged, export it again.")


def _everything() -> dict[int, bpy.types.ID]:
    """All IDs of the open file by their session's number, which is never used twice."""
    kinds = [prop.identifier for prop in bpy.data.bl_rna.properties if prop.type == "COLLECTION"]
    return {block.session_uid: block for kind in kinds for block in getattr(bpy.data, kind)}


@contextmanager
def undone_on_error() -> Iterator[None]:
    """Remove what was imported, and restore the frame rate and range, when something fails after all."""
    scene, before = bpy.context.scene, _everything()
    render, world, active = scene.render, scene.world, bpy.context.view_layer.objects.active
    rate = render.fps, render.fps_base
    frames = scene.frame_start, scene.frame_end, scene.frame_current, scene.frame_subframe
    selected = [thing for thing in bpy.context.view_layer.objects if thing.select_get()]
    try:
        yield
    except BaseException:
        bpy.data.batch_remove([block for uid, block in _everything().items() if uid not in before])
        render.fps, render.fps_base = rate
        scene.frame_start, scene.frame_end = frames[:2]
        scene.frame_set(frames[2], subframe=frames[3])
        scene.world = world
        for thing in bpy.context.view_layer.objects:
            thing.select_set(thing in selected)
        bpy.context.view_layer.objects.active = active
        raise


# ---- after the import


def _meshes(scene: bpy.types.Scene) -> list[bpy.types.Object]:
    return sorted((thing for thing in scene.objects if thing.type == "MESH"), key=lambda mesh: mesh.name)


def _animated(path: Path, meshes: list[bpy.types.Object]) -> list[bpy.types.Object]:
    """Those of the meshes that move, or all where none does."""
    if not meshes:
        raise SprigError(f"{path.name} holds no mesh; export meshes rather than points or curves.")
    moving = animated_meshes(bpy.context.scene)
    return [mesh for mesh in meshes if mesh in moving] or meshes


def _set_rate(rate: float):
    render = bpy.context.scene.render
    render.fps = min(max(1, round(rate)), HIGHEST_RATE)
    render.fps_base = render.fps / rate


def _set_range(path: Path, first: float, last: float):
    """The scene's range as the whole frames around; Blender has no negative ones there."""
    if not (np.isfinite([first, last]).all() and max(-first, last) <= LAST_FRAME and last - first <= checks.MAX_FRAMES):
        raise SprigError(
            f"{path.name} claims animation from frame {first:.6g} to {last:.6g}, more than {checks.MAX_FRAMES} frames; "
            "it may be damaged, export it again."
        )
    scene = bpy.context.scene
    scene.frame_start = max(0, math.floor(first + WHOLE_FRAME_TOLERANCE))
    scene.frame_end = max(0, math.ceil(last - WHOLE_FRAME_TOLERANCE))


def _sampling_rate(times: np.ndarray) -> float | None:
    """Frames per second of animation with keys at these increasing times (N,); None when that says nothing.

    It is 1 / median spacing. Keys further apart than samples are (by hand, or thinned out) are poses: then it is the
    lowest multiple, at least the usual rate, that still has every key on a frame.
    """
    times = times[np.diff(times, prepend=-np.inf) > SAME_TIME]
    if len(times) < 2:
        return None
    spacing = float(np.median(np.diff(times)))
    intervals = round((times[-1] - times[0]) / spacing)
    even = (times[-1] - times[0]) / intervals  # the same without the rounding of single key times
    rate = 1 / (even if abs(even / spacing - 1) < WHOLE_FRAME_TOLERANCE / intervals else spacing)
    if abs(round(rate) - rate) < WHOLE_RATE_TOLERANCE * rate:
        rate = float(round(rate))
    return rate if rate >= SLOWEST_SAMPLING else rate * math.ceil(checks.DEFAULT_FPS / rate)


def _key_frames(curve: bpy.types.FCurve) -> np.ndarray:
    """Frames (K,) float64 of a curve's keys."""
    points = np.empty(2 * len(curve.keyframe_points), dtype=np.float32)
    curve.keyframe_points.foreach_get("co", points)
    return points[::2].astype(np.float64)


def _move_keys(curve: bpy.types.FCurve, scale: float, shift: float):
    """Take the keys of a curve from frame x to scale x + shift; the keys, not their handles, to whole frames nearby."""
    for attribute in ("co", "handle_left", "handle_right"):
        points = np.empty(2 * len(curve.keyframe_points), dtype=np.float32)
        curve.keyframe_points.foreach_get(attribute, points)
        frames = points[::2].astype(np.float64) * scale + shift
        if attribute == "co":
            near = np.abs(frames - np.round(frames)) < WHOLE_FRAME_TOLERANCE
            frames[near] = np.round(frames[near])
        points[::2] = frames
        curve.keyframe_points.foreach_set(attribute, points)
    curve.update()


# ---- several animations in one file


@dataclass(frozen=True)
class _Part:
    """What one animation of a file does to one ID; without slots (before Blender 4.4) `slot` is None."""

    animation: str
    block: bpy.types.ID
    action: bpy.types.Action
    slot: object

    @property
    def moves(self) -> bool:
        return any(varies(curve) for curve in slot_curves(self.action, self.slot))

    @property
    def is_played(self) -> bool:
        animation = self.block.animation_data
        return animation is not None and animation.action == self.action

    def play(self):
        self.block.animation_data_create().action = self.action
        if self.slot is not None:
            self.block.animation_data.action_slot = self.slot


def _deciding_blocks(new: list[bpy.types.ID]) -> list[bpy.types.ID]:
    """The imported IDs whose animation moves a mesh."""
    meshes = [block for block in new if isinstance(block, bpy.types.Object) and block.type == "MESH"]
    things = {thing: None for mesh in meshes for thing in influences(mesh)}
    return list({block: None for thing in things for block in datablocks(thing)})


def _play_what_moves(new: list[bpy.types.ID], deciding: list[bpy.types.ID]):
    """Leave one animation playing, of the animations in a file, and the others as actions without a user."""
    parts = [part for part in _parts(new) if part.block in deciding]
    if not any(part.is_played and part.moves for part in parts):
        moving = next((part.animation for part in parts if part.moves), None)
        for part in parts:
            if part.animation == moving:
                part.play()
    for block in new:
        if isinstance(block, bpy.types.Action):
            block.use_fake_user = True
        elif getattr(block, "animation_data", None):
            for track in reversed(block.animation_data.nla_tracks):
                block.animation_data.nla_tracks.remove(track)


def _parts(new: list[bpy.types.ID]) -> list[_Part]:
    """All animations in what was imported, in the file's order: glTF's are also strips, FBX's often have no user."""
    parts = []
    for block in new:
        animation = getattr(block, "animation_data", None)
        if animation is None:
            continue
        for track in reversed(animation.nla_tracks):  # glTF's importer pushes each below the one before
            parts += [
                _Part(track.name, block, strip.action, getattr(strip, "action_slot", None))
                for strip in track.strips
                if strip.action
            ]
        if animation.action and not any(part.block == block and part.is_played for part in parts):
            slot = getattr(animation, "action_slot", None)
            parts.append(_Part(_take(animation.action), block, animation.action, slot))
    known = {part.action for part in parts}
    for action in (block for block in new if isinstance(block, bpy.types.Action) and block not in known):
        owner = action.name.partition("|")[0]  # FBX importers name actions Object|Take
        for slot in getattr(action, "slots", (None,)):
            parts += [
                _Part(_take(action), block, action, slot)
                for block in new
                if isinstance(block, bpy.types.Object | bpy.types.Key)
                and (slot is None or slot.target_id_type == block.id_type)
                and block.name in (owner, slot and slot.name_display)
            ]
    return parts


def _take(action: bpy.types.Action) -> str:
    """The animation that an action is of. Without slots each object has its own: Object|Take|Layer."""
    return action.name if hasattr(action, "slots") else action.name.partition("|")[2] or action.name
