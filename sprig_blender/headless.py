"""The command line's Blender side: a scene of its own, the importers in front of the rigging and the exporters behind.

The rigging between is the operator's (`read_sequence`, `rig_sequence`, `write_armature`); here is only what a person
does by hand in a window: import, choose the objects, set the frame range, save. This module needs bpy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import bpy
import numpy as np

from ..backend import surface
from ..backend.errors import SprigError
from ..backend.given_skeleton import GivenSkeleton
from ..backend.rig import Rig
from ..backend.sequence import MeshSequence
from .export import export
from .import_sequence import import_file
from .own_armature import OwnArmature, read_armature
from .preview_picture import render_preview
from .read_sequence import read_sequence
from .write_armature import WrittenRig, evaluated_positions, mesh_from_sequence, write_armature

SAME_POSITIONS = 1e-5  # of the size: two readers of one archive differ by the rounding of one matrix product
LEFT_OUT_NAMED = 5  # meshes that a warning names one by one


def read_scene(options, progress) -> tuple[MeshSequence, list]:
    """Import a file that only Blender reads: its animated meshes as a sequence, and the objects in its order.

    A floor is no part of a character: of several meshes those that move are taken, unless none does or some are named.
    """
    _empty_scene()
    progress(0.0, f"Importing {Path(options.input).name}")
    chosen = import_file(options.input, fps=options.fps)
    meshes = _meshes()
    if options.object:
        chosen = _named(meshes, options.object)
    start, end, step = options.frames or (None, None, 1)
    sequence = read_sequence(
        bpy.context, chosen, start, end, step, lambda fraction, text: progress(0.1 + 0.9 * fraction, text)
    )
    if options.object:
        return sequence, chosen
    moving = _moving(sequence)
    if not any(moving):
        return sequence, chosen
    chosen = [thing for thing, moves in zip(chosen, moving, strict=True) if moves]
    sequence = sequence.with_objects([thing.name for thing in chosen])
    left_out = [thing.name for thing in meshes if thing not in chosen]
    if left_out:
        names = ", ".join(left_out[:LEFT_OUT_NAMED]) + (", …" if len(left_out) > LEFT_OUT_NAMED else "")
        warning = f"Meshes that do not move were left out: {names}; name them with --object to include them."
        sequence = replace(sequence, warnings=(*sequence.warnings, warning))
    return sequence, chosen


def own_armature(options, sequence: MeshSequence, sources: list) -> tuple[GivenSkeleton, OwnArmature]:
    """The armature of the scene that `options.skeleton` names, as a skeleton to fit to the sequence just read."""
    armatures = {thing.name: thing for thing in bpy.context.scene.objects if thing.type == "ARMATURE"}
    if options.skeleton not in armatures:
        there = f"the input has {', '.join(armatures)}" if armatures else "the input has none"
        raise SprigError(f"There is no armature {options.skeleton!r}; {there}.")
    numbers = sequence.frame_numbers.tolist()
    reading = read_armature(
        bpy.context,
        armatures[options.skeleton],
        sources,
        numbers,
        rest_frame=options.rest_frame,
        poses=options.fit == "weights",
    )
    while True:
        try:
            next(reading)
        except StopIteration as done:
            return done.value


def _empty_scene():
    """Start from the factory's scene without objects; preferences and add-ons stay as they are."""
    if not bpy.app.background:
        raise SprigError("The command line runs without a window; here, use Auto-Rig Sequence in the sidebar.")
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)


def _meshes() -> list:
    return [thing for thing in bpy.context.scene.objects if thing.type == "MESH"]


def _named(objects: list, names) -> list:
    """The objects of these names, in the file's order."""
    there = [thing.name for thing in objects]
    missing = [name for name in names if name not in there]
    if missing:
        raise SprigError(f"There is no mesh object {missing[0]!r}; the input has {', '.join(there)}.")
    return [thing for thing in objects if thing.name in names]


def _moving(sequence: MeshSequence) -> np.ndarray:
    """Which objects of the sequence move at all: bool by object_id."""
    furthest = np.zeros(len(sequence.object_names))
    for frame in sequence.vertices[1:]:
        moved = np.linalg.norm(np.subtract(frame, sequence.vertices[0], dtype=np.float64), axis=1)
        np.maximum.at(furthest, sequence.object_id, moved)
    return furthest > surface.STILL_TOLERANCE * surface.size(sequence.vertices)


def read_archive(options, sequence: MeshSequence, progress) -> tuple[MeshSequence, list]:
    """The objects that Blender makes (UVs, materials) of the Alembic archive that a sequence was read from.

    Blender's reading is checked against the sequence on one frame. Where the two disagree Blender is what the user
    will look at, so its positions are taken instead, with a warning.
    """
    _empty_scene()
    progress(0.0, f"Importing {Path(options.input).name}")
    import_file(options.input, fps=options.fps)
    sources = _matching(_meshes(), sequence)
    if sources is not None:
        return sequence, sources
    warning = "Blender shows this archive differently from its samples; the rig follows what Blender shows."
    sequence, objects = read_scene(options, progress)
    return replace(sequence, warnings=(*sequence.warnings, warning)), objects


def _matching(objects: list, sequence: MeshSequence) -> list | None:
    """The objects in object_id order, each with its mesh's positions on the middle frame; None if any is missing."""
    middle = sequence.frame_count // 2
    bpy.context.scene.frame_set(int(sequence.frame_numbers[middle]))
    depsgraph = bpy.context.evaluated_depsgraph_get()
    shown = {thing: evaluated_positions(thing, depsgraph) for thing in objects}
    limit = SAME_POSITIONS * surface.size(sequence.vertices[middle : middle + 1])
    limit += float(np.spacing(np.abs(sequence.origin).max().astype(np.float32)))  # Blender has no float64 origin
    found = []
    for index in range(len(sequence.object_names)):
        wanted = sequence.world_vertices(middle)[sequence.object_id == index]
        match = (
            thing
            for thing, positions in shown.items()
            if thing not in found and positions.shape == wanted.shape and np.abs(positions - wanted).max() <= limit
        )
        thing = next(match, None)
        if thing is None:
            return None
        found.append(thing)
    return found


@dataclass(frozen=True)
class RiggedScene:
    """A rig in the scene of this process, ready to be saved in any format."""

    written: WrittenRig
    sources: list
    rig: Rig
    sequence: MeshSequence
    own: OwnArmature | None = None

    @classmethod
    def build(
        cls,
        rig: Rig,
        sequence: MeshSequence,
        sources: list | None,
        own: OwnArmature | None = None,
        root_motion: str = "hips",
    ) -> RiggedScene:
        """Add the rig to the scene of its sources; None stands for a sequence from a file without a scene.

        own: the armature in that scene whose bones the rig has; root_motion: as for write_armature.
        """
        if sources is None:
            _empty_scene()
            sources = mesh_from_sequence(bpy.context, sequence)
        written = write_armature(bpy.context, rig, sources, sequence.object_id, own=own, root_motion=root_motion)
        return cls(written, sources, rig, sequence, own)

    def export(self, path) -> None:
        """Write .blend, .glb, .fbx or .usdc."""
        sources = self.sources if self.own is None else [*self.sources, self.own.armature]
        export(path, bpy.context, self.written, sources=sources)

    def render(self, path) -> None:
        """Write the preview picture."""
        render_preview(path, self.rig, self.sequence)
