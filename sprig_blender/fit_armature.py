"""*Fit Armature to Sequence*: read frames and armature, fit beside the window, write a copy of the armature with keys.

The steps are auto_rig's; what is chosen is looked up again and compared before anything is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from dataclasses import dataclass

import bpy

from ..backend.errors import Cancelled, SprigError
from ..backend.given_skeleton import GivenSkeleton
from . import backend_work, call_backend
from .auto_rig import (
    READ,
    SOLVED,
    check_meshes,
    chosen_meshes,
    found_again,
    frame_numbers,
    identities_of,
    read_frames,
    ready_to_write,
    remember,
    rig_choices,
    written_in_slices,
)
from .jobs import Job, Step, Steps
from .own_armature import OwnArmature, is_bound, read_armature
from .write_armature import MARK


def chosen_armature(context) -> bpy.types.Object | None:
    """The armature to fit: the panel's, else the active or a selected one, else the one that moves the first mesh.

    For a result of ours that is the armature that it is a copy of.
    """
    meshes = chosen_meshes(context)
    active = context.view_layer.objects.active
    named = [context.scene.sprig.own_armature, active, *context.selected_objects]
    for thing in named:
        if thing is not None and thing.type == "ARMATURE":
            original = _original(thing)
            if original is not None:
                return original
    bound = (
        thing for mesh in meshes for thing in bpy.data.objects if thing.type == "ARMATURE" and is_bound(mesh, thing)
    )
    return next(bound, None)


def _original(armature) -> bpy.types.Object | None:
    """The armature itself; for a copy of ours the artist's, for one that we made none."""
    for collection in bpy.data.collections:
        if MARK in collection and armature in list(collection[MARK]["objects"]):
            return collection[MARK].get("armature")
    return armature


def steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Fit what is chosen, step by step (see jobs.LongOperator.steps)."""
    started = time.perf_counter()
    sources, armature = chosen_meshes(context), chosen_armature(context)
    scene = context.scene
    settings = scene.sprig
    fit = settings.fit
    check_meshes(sources, may_be_still=fit == "motion")
    numbers, choices = frame_numbers(scene), rig_choices(context)
    choices.update(skeleton="auto", joints=None, stretch="off", names="sprig")  # of skeletons that are made
    rest_frame = settings.rest_frame if settings.rest_mode == "FRAME" else None
    if rest_frame is not None and rest_frame not in numbers:
        raise SprigError(
            f"The rest frame {rest_frame} is not one of the frames {numbers[0]} to {numbers[-1]} that are read; choose "
            "one of them."
        )
    identities, bones = (yield from identities_of(sources, cancel)), _Bones.of(armature)
    scene_uid = scene.session_uid
    given, own = yield from read_in_steps(context, armature, sources, numbers, rest_frame, fit == "weights", cancel)
    sequence = yield from read_frames(context, sources, numbers, cancel, patience)

    with Job(call_backend.work(context, backend_work.fit, sequence, given, choices, fit), cancel) as job:
        while job.wait(patience):
            yield Step(READ + (SOLVED - READ) * job.fraction, job.text)
    rig = job.result()

    started += yield from ready_to_write(context, scene_uid, cancel)
    sources = yield from found_again(context, identities, cancel)
    own = OwnArmature(bones.find(context), own.world)
    written = yield from written_in_slices(context, rig, sources, sequence.object_id, cancel, own=own)
    remember(written, rig, sequence, time.perf_counter() - started)
    result = written.armature.sprig
    return f"{written.armature.name}: {bones.name} fitted, RMSE {result.rmse:.3f} %, in {result.seconds:.1f} s"


def read_in_steps(
    context, armature, sources, numbers, rest_frame, poses: bool, cancel: threading.Event
) -> Generator[Step, None, tuple[GivenSkeleton, OwnArmature]]:
    """Read the armature step by step; the scene's frame is the reader's until it is back."""
    reading = read_armature(context, armature, sources, numbers, rest_frame=rest_frame, poses=poses)
    try:
        while True:
            share = next(reading)
            if cancel.is_set():
                raise Cancelled
            yield Step(0.2 * READ * share, f"Reading the poses of {armature.name}", exclusive=True)
    except StopIteration as done:
        return done.value
    finally:
        reading.close()


@dataclass(frozen=True)
class _Bones:
    """Which armature was read, without a reference to it, and what its bones were like."""

    uid: int
    name: str
    bones: tuple

    @classmethod
    def of(cls, armature: bpy.types.Object) -> _Bones:
        bones = tuple(
            (
                bone.name,
                bone.parent.name if bone.parent else None,
                *(value for row in bone.matrix_local for value in row),
            )
            for bone in armature.data.bones
        )
        return cls(armature.session_uid, armature.name, bones)

    def find(self, context) -> bpy.types.Object:
        """The armature as it is now; SprigError when it is gone or its bones are others."""
        for thing in context.scene.objects:
            if thing.session_uid == self.uid:
                if self.of(thing).bones != self.bones:
                    raise SprigError(f"The bones of {thing.name!r} were edited while it was fitted; run it again.")
                return thing
        raise SprigError(f"{self.name!r} was deleted while it was fitted; undo that and run it again.")
