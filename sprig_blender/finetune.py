"""*Fine-tune on Sequence*: read frames as the rigging does, teach the networks beside the window, remember the student.

Until the student is on disk nothing is changed, so stopping it keeps the networks as they were.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import bpy

from ..backend.errors import Cancelled, SprigError
from ..backend.sequence import MeshSequence
from . import dependencies
from .auto_rig import LOADED, READ, check_meshes, chosen_meshes, frame_numbers, read_frames, rig_choices
from .jobs import Job, Step, Steps
from .students import students_folder


def steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Fine-tune on what is chosen, step by step (see jobs.LongOperator.steps)."""
    sources = chosen_meshes(context)
    check_meshes(sources)
    numbers, choices, folder = frame_numbers(context.scene), rig_choices(context), students_folder()
    epochs = context.scene.sprig.finetune_epochs
    uids = [source.session_uid for source in sources]
    sequence = yield from read_frames(context, sources, numbers, cancel)

    with Job(lambda progress: _teach(sequence, choices, epochs, folder, progress), cancel) as job:
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


def _teach(sequence: MeshSequence, choices: dict[str, Any], epochs: int, folder: Path, progress) -> tuple[str, str]:
    """The worker's part; returns the student's name, and what it has learned in words."""
    progress(0.0, "Loading PyTorch")
    dependencies.load()
    from ..backend.device import resolve_device
    from ..backend.finetune.clip import make_clip
    from ..backend.finetune.students import networks_for, student_name
    from ..backend.finetune.train import FineTuneConfig
    from ..backend.learned import load_networks

    try:
        files = choices["checkpoint_skeleton"], choices["checkpoint_skinning"]
        networks = load_networks(*files, resolve_device(choices["device"]))
        anchor = None if choices["anchor"] is None else sequence.position_of(choices["anchor"])
        clip = make_clip(sequence, sequence.name, anchor=anchor)
        config = FineTuneConfig(epochs=epochs, seed=choices["seed"])
        tuned, problems = networks_for(
            sequence, clip, networks, config, folder,
            progress=lambda share, text: progress(LOADED + (1 - LOADED) * share, text),
        )  # fmt: skip
    except MemoryError as error:
        raise SprigError("There is not enough memory for this sequence; take fewer frames or a larger step.") from error
    if problems:  # it could not be kept
        raise SprigError(problems[0])
    figures = tuned.checkpoints["skeleton"]["finetuned"]
    learned = ""
    if "pjdd_teacher" in figures and "pjdd_student" in figures:
        learned = f", PJDD from {figures['pjdd_teacher']:.3g} to {figures['pjdd_student']:.3g}"
    return student_name(sequence, clip, networks, config), learned
