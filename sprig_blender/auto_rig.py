"""The button's work from selection to result: read frames, solve beside the window, write in one go.

Nothing is written before everything else has succeeded, and what was selected is looked up again and compared before
it is touched: the user works on while the solver runs, and may rename, edit or delete whatever they like.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import bpy

from ..backend.errors import Cancelled, SprigError
from ..backend.rig import Rig
from ..backend.sequence import MeshSequence
from . import backend_work, call_backend, preferences
from .jobs import Job, Step, Steps
from .read_sequence import SequenceReader, corners_of
from .students import student_of
from .what_moves import is_animated
from .write_armature import MARK, WrittenRig, result_of, sources_of, writing

SLICE = 0.05  # seconds of reading or writing between two looks at the window's events
READ, SOLVED = 0.15, 0.97  # progress at which reading ends, and solving


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
    identities = tuple((yield from identities_of(sources, cancel)))
    scene_uid = scene.session_uid
    sequence = yield from read_frames(context, sources, numbers, cancel, patience)

    with Job(call_backend.work(context, backend_work.rig, sequence, choices, student), cancel) as job:
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
    sources = yield from found_again(context, computed.identities, cancel, since)
    rig, sequence = computed.rig, computed.sequence
    corrective = sequence if computed.corrective else None
    written = yield from written_in_slices(
        context, rig, sources, sequence.object_id, cancel, corrective=corrective, root_motion=computed.root_motion
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


def in_slices(portions: Generator, cancel: threading.Event, step: Callable[[Any], Step]) -> Generator[Step, None, Any]:
    """Go through small portions of work that needs Blender, and return what their generator returns.

    Every SLICE seconds the window gets a look at its events, and is told what `step` makes of the last portion.
    """
    with closing(portions):
        pause = time.perf_counter() + SLICE
        while True:
            if cancel.is_set():
                raise Cancelled
            try:
                portion = next(portions)
            except StopIteration as end:
                return end.value
            if time.perf_counter() > pause:
                yield step(portion)
                pause = time.perf_counter() + SLICE


def _each(function: Callable[[Any], Any], things) -> Generator[None, None, list]:
    """The results of a function for each of many things, one thing at a time."""
    results = []
    for thing in things:
        results.append(function(thing))
        yield
    return results


def _looking(_portion) -> Step:
    return Step(0.0, "Looking at the meshes", exclusive=True)


def read_frames(
    context, sources, numbers, cancel: threading.Event, patience: float
) -> Generator[Step, None, MeshSequence]:
    """Read the frames step by step; the scene is the reader's until it is back as it was."""

    def frames():
        while not reader.done:
            number = reader.next_frame
            reader.step()
            yield number

    def reading(number: int) -> Step:
        return Step(READ * reader.fraction, f"Reading frame {number}", exclusive=True)

    with SequenceReader(context, sources, numbers) as reader:
        yield from in_slices(reader.prepare(), cancel, _looking)
        yield from in_slices(frames(), cancel, reading)
        yield Step(READ, "Frames read", exclusive=True)
    with Job(lambda _progress: reader.result(), cancel) as job:
        while job.wait(patience):
            yield Step(READ, "Frames read")
    return job.result()


def identities_of(sources, cancel: threading.Event) -> Generator[Step, None, list[Identity]]:
    """What is remembered of the objects that are read."""
    return (yield from in_slices(_each(Identity.of, sources), cancel, _looking))


def found_again(
    context, identities, cancel: threading.Event, since: str = "while it was rigged"
) -> Generator[Step, None, list[bpy.types.Object]]:
    """The objects as they are now; SprigError when one is gone or its mesh is another; `since` as for `write`."""
    present = {thing.session_uid: thing for thing in context.scene.objects}
    found = _each(lambda identity: identity.find(present, since), identities)
    return (yield from in_slices(found, cancel, lambda _: Step(SOLVED, "Looking at the meshes", exclusive=True)))


def written_in_slices(
    context, rig: Rig, sources, object_id, cancel: threading.Event, **options
) -> Generator[Step, None, WrittenRig]:
    """`write_armature` in slices; the scene is as before when that ends early."""
    portions = writing(context, rig, sources, object_id, **options)
    try:
        return (yield from in_slices(portions, cancel, lambda text: Step(SOLVED, text, exclusive=True)))
    except ReferenceError as error:
        raise SprigError("Something was deleted while the rig was written; undo that and run it again.") from error


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
        counts = len(mesh.vertices), len(mesh.edges), len(mesh.polygons)
        topology = 0 if mesh.is_editmode else hash(corners_of(mesh).tobytes())
        return cls(source.session_uid, source.name, counts, topology)

    def find(self, present: dict[int, bpy.types.Object], since: str) -> bpy.types.Object:
        """The object among those present, by their uid; SprigError as `found_again` says."""
        source = present.get(self.uid)
        if source is None:
            raise SprigError(f"{self.name!r} was deleted {since}; undo that and run the rigging again.")
        now = self.of(source)
        if (now.counts, now.topology) != (self.counts, self.topology):
            raise SprigError(f"The mesh of {source.name!r} was edited {since}; run the rigging again.")
        return source
