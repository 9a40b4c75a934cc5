"""*Fine-tune on Sequence*: read frames as the rigging does, teach the networks beside the window, remember the student.

Until the student is on disk nothing is changed, so stopping it keeps the networks as they were.
"""

from __future__ import annotations

import threading

import bpy

from ..backend.errors import Cancelled, SprigError
from . import backend_work, call_backend
from .auto_rig import READ, check_meshes, chosen_meshes, frame_numbers, read_frames, rig_choices
from .jobs import Job, Step, Steps
from .students import students_folder


def steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Fine-tune on what is chosen, step by step (see jobs.LongOperator.steps)."""
    sources = chosen_meshes(context)
    check_meshes(sources)
    numbers, choices, folder = frame_numbers(context.scene), rig_choices(context), students_folder()
    epochs = context.scene.sprig.finetune_epochs
    uids = [source.session_uid for source in sources]
    sequence = yield from read_frames(context, sources, numbers, cancel, patience)

    with Job(call_backend.work(context, backend_work.fine_tune, sequence, choices, epochs, folder), cancel) as job:
        while job.wait(patience):
            yield Step(READ + (1 - READ) * job.fraction, job.text)
    student, learned = job.result()
    if cancel.is_set():
        raise Cancelled
    found = [thing for thing in bpy.data.objects if thing.session_uid in uids]  # undo makes references invalid
    if len(found) < len(uids):
        raise SprigError("A mesh was deleted while the networks were fine-tuned on it; undo that and run it again.")
    for source in found:
        source.sprig.student = student
    return f"Fine-tuned on {', '.join(source.name for source in found)}{learned}; Auto-Rig Sequence uses it"
