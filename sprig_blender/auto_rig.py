"""The button's work from selection to result: read frames, solve beside the window, write in one go.

Nothing is written before everything else has succeeded, and what was selected is looked up again and compared before
it is touched: the user works on while the solver runs, and may rename, edit or delete whatever they like.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bpy
import numpy as np

from ..backend.errors import Cancelled, SprigError
from ..backend.rig import Rig
from ..backend.sequence import MeshSequence
from . import dependencies, preferences
from .jobs import Job, Step, Steps
from .read_sequence import SequenceReader
from .students import student_of, with_student
from .what_moves import is_animated
from .write_armature import MARK, WrittenRig, result_of, sources_of, write_armature

READING_SLICE = 0.05  # seconds of reading frames between two looks at the window's events
READ, SOLVED = 0.15, 0.97  # progress at which reading ends, and solving
LOADED = 0.05  # of the solver's part: importing torch


def chosen_meshes(context) -> list[bpy.types.Object]:
    """The meshes that the button rigs: those selected, or the active object where nothing is (it may be hidden).

    For a result of ours, armature or mesh, that is what it was made from.
    """
    active = context.view_layer.objects.active
    chosen = context.selected_objects or ([active] if active else [])
    meshes: dict[bpy.types.Object, None] = {}  # a set that keeps the order
    for thing in chosen:
        sources = sources_of(thing)
        if sources or thing.type == "MESH":
            meshes.update(dict.fromkeys(sources or [thing]))
    return list(meshes)


def result_for(thing: bpy.types.Object) -> bpy.types.Object | None:
    """The armature of ours that `thing` belongs to: as itself, as one of its meshes, or as what it was made from."""
    result = result_of(thing)
    return None if result is None else result[MARK]["objects"][0]


def frame_numbers(scene: bpy.types.Scene) -> range:
    """The frames that the settings ask for; SprigError when that is no sequence."""
    settings = scene.sprig
    own = settings.range_mode == "CUSTOM"
    start = settings.frame_start if own else scene.frame_start
    end = settings.frame_end if own else scene.frame_end
    if end < start:
        raise SprigError(f"The frame range {start} to {end} is reversed; give the first frame before the last.")
    numbers = range(start, end + 1, settings.frame_step)
    if len(numbers) < 2 and settings.skeleton != "learned":
        raise SprigError(
            f"Frames {start} to {end} in steps of {settings.frame_step} are a single frame; "
            "choose a longer range or a smaller step."
        )
    if settings.anchor_mode == "FRAME" and settings.anchor_frame not in numbers:
        raise SprigError(
            f"The rest pose's frame {settings.anchor_frame} is not one of the frames {numbers[0]} to {numbers[-1]}"
            f"{f' in steps of {numbers.step}' if numbers.step > 1 else ''}; choose one of them."
        )
    return numbers


def rig_choices(context) -> dict[str, Any]:
    """The settings as arguments of RigOptions (which is imported together with torch, in the worker)."""
    settings = context.scene.sprig
    files = {name: getattr(settings, name) for name in ("checkpoint_skeleton", "checkpoint_skinning")}
    return {
        "skeleton": settings.skeleton,
        "candidates": settings.candidates,
        "temperature": settings.temperature,
        **{name: bpy.path.abspath(file) if file else None for name, file in files.items()},
        "joints": settings.joints if settings.joints_mode == "NUMBER" else None,
        "tolerance": settings.tolerance,
        "influences": settings.influences,
        "rest_correction": settings.rest_correction,
        "stretch": "auto" if settings.stretch else "off",
        "names": settings.names,
        "anchor": settings.anchor_frame if settings.anchor_mode == "FRAME" else None,
        "seed": settings.seed,
        "device": preferences.device(context),
    }


def steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Rig what is chosen, step by step (see jobs.LongOperator.steps)."""
    computed = yield from compute(context, cancel, patience)
    return (yield from write(context, computed, cancel))


@dataclass(frozen=True, eq=False)
class Computed:
    """A rig that is not written yet, and what writing it takes; nothing of it belongs to Blender.

    identities: the objects that were read, in object_id order; corrective: whether shape keys are wanted as well;
    root_motion: what carries the travel; seconds: what it took so far.
    """

    rig: Rig
    sequence: MeshSequence
    identities: tuple[Identity, ...]
    scene_uid: int
    corrective: bool
    root_motion: str
    seconds: float


def compute(context, cancel: threading.Event, patience: float) -> Generator[Step, None, Computed]:
    """Read and solve what is chosen, step by step; nothing is written."""
    started = time.perf_counter()
    sources = chosen_meshes(context)
    check_meshes(sources, may_be_still=context.scene.sprig.skeleton == "learned")
    scene, numbers, choices = context.scene, frame_numbers(context.scene), rig_choices(context)
    corrective, root_motion = scene.sprig.corrective, scene.sprig.root_motion
    student = None if choices["skeleton"] == "motion" else student_of(sources)
    identities = tuple(Identity.of(source) for source in sources)
    scene_uid = scene.session_uid
    sequence = yield from read_frames(context, sources, numbers, cancel)

    with Job(lambda progress: _solve(sequence, choices, student, progress), cancel) as job:
        while job.wait(patience):
            yield Step(READ + (SOLVED - READ) * job.fraction, job.text)
    seconds = time.perf_counter() - started
    return Computed(job.result(), sequence, identities, scene_uid, corrective, root_motion, seconds)


def write(
    context, computed: Computed, cancel: threading.Event, since: str = "while it was rigged"
) -> Generator[Step, None, str]:
    """Write a computed rig into its scene as soon as that is possible, and say in a sentence how it went.

    since: words for the time in which the objects may have changed.
    """
    started = time.perf_counter()
    started += yield from ready_to_write(context, computed.scene_uid, cancel)
    sources = [identity.find(context, since) for identity in computed.identities]
    rig, sequence = computed.rig, computed.sequence
    corrective = sequence if computed.corrective else None
    written = write_armature(
        context, rig, sources, sequence.object_id, corrective=corrective, root_motion=computed.root_motion
    )
    remember(written, rig, sequence, computed.seconds + time.perf_counter() - started)
    result = written.armature.sprig
    return f"{written.armature.name}: {result.joints} joints, RMSE {result.rmse:.3f} %, in {result.seconds:.1f} s"


def ready_to_write(context, scene_uid: int, cancel: threading.Event) -> Generator[Step, None, float]:
    """Wait until the scene can be written to; returns the seconds that took, which are not our time."""
    yield Step(SOLVED, "Writing the armature")
    solved = time.perf_counter()
    while context.mode != "OBJECT" or context.scene.session_uid != scene_uid:
        if cancel.is_set():
            raise Cancelled
        yield Step(SOLVED, f"Ready; waiting for Object Mode in {scene_name(scene_uid)}")
    if cancel.is_set():
        raise Cancelled
    return time.perf_counter() - solved


def check_meshes(sources: list[bpy.types.Object], may_be_still: bool = False) -> None:
    """SprigError where there is nothing to read, or nothing that moves."""
    if not sources:
        raise SprigError("Nothing is selected that could be rigged; select one or several animated meshes.")
    if not may_be_still and not any(is_animated(source) for source in sources):
        names = ", ".join(source.name for source in sources)
        raise SprigError(f"{names} neither moves nor changes shape with time; select a mesh that is animated.")


def read_frames(context, sources, numbers, cancel: threading.Event) -> Generator[Step, None, MeshSequence]:
    """Read the frames step by step; the scene is the reader's until it is back as it was."""
    with SequenceReader(context, sources, numbers) as reader:
        while not reader.done:
            pause = time.perf_counter() + READING_SLICE
            while not reader.done and time.perf_counter() < pause:
                if cancel.is_set():
                    raise Cancelled
                reader.step()
            text = "Frames read" if reader.done else f"Reading frame {reader.next_frame}"
            yield Step(READ * reader.fraction, text, exclusive=True)
        return reader.result()


def _solve(sequence: MeshSequence, choices: dict[str, Any], student: Path | None, progress):
    """The worker's part; returns the Rig."""
    progress(0.0, "Loading PyTorch")
    dependencies.load()
    from ..backend.pipeline import RigOptions, rig_sequence

    if student is not None:
        sequence, choices = with_student(sequence, choices, student)

    def after_loading(fraction, text):
        progress(LOADED + (1 - LOADED) * fraction, text)

    try:
        return rig_sequence(sequence, RigOptions(**choices), after_loading)
    except MemoryError as error:
        raise SprigError("There is not enough memory for this sequence; take fewer frames or a larger step.") from error


def remember(written: WrittenRig, rig, sequence: MeshSequence, seconds: float) -> None:
    """Keep on the armature what the result box shows."""
    result = written.armature.sprig
    result.joints = len(rig.skeleton)
    result.vertices = len(rig.rest_vertices)
    result.first_frame, result.last_frame = int(rig.frame_numbers[0]), int(rig.frame_numbers[-1])
    result.rmse = rig.rmse
    result.worst_frame = int(rig.frame_numbers[rig.worst_frame])
    result.worst_rmse = float(rig.rmse_per_frame.max())
    result.anchor_frame = int(rig.frame_numbers[rig.anchor])
    result.seconds = seconds
    result.warnings = "\n".join(dict.fromkeys([*sequence.warnings, *rig.warnings]))


def scene_name(uid: int) -> str:
    for scene in bpy.data.scenes:
        if scene.session_uid == uid:
            return f"the scene {scene.name}"
    raise SprigError("The scene was deleted while its meshes were rigged; undo that and run the rigging again.")


@dataclass(frozen=True)
class Identity:
    """Which object was read, without a reference to it (undo makes those invalid), and what its mesh was like."""

    uid: int
    name: str
    counts: tuple[int, ...]
    topology: int

    @classmethod
    def of(cls, source: bpy.types.Object) -> Identity:
        mesh = source.data
        corners = np.empty(len(mesh.loops), dtype=np.int32)
        mesh.loops.foreach_get("vertex_index", corners)
        counts = len(mesh.vertices), len(mesh.edges), len(mesh.polygons)
        return cls(source.session_uid, source.name, counts, hash(corners.tobytes()))

    def find(self, context, since: str = "while it was rigged") -> bpy.types.Object:
        """The object as it is now; SprigError when it is gone or its mesh is another; `since` as for `write`."""
        for source in context.scene.objects:
            if source.session_uid == self.uid:
                now = self.of(source)
                if (now.counts, now.topology) != (self.counts, self.topology):
                    raise SprigError(f"The mesh of {source.name!r} was edited {since}; run the rigging again.")
                return source
        raise SprigError(f"{self.name!r} was deleted {since}; undo that and run the rigging again.")
