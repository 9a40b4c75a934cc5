"""What the add-on asks of the backend, one function for each of its long operators.

This module knows no bpy: its functions run in a thread of Blender or in a process of their own, whichever
call_backend.py chooses. Their arguments and results are what backend_child.py can write to a file. All take a progress
callback last. The backend's own modules are imported inside, since most of them load torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backend.errors import SprigError
from ..backend.given_skeleton import GivenSkeleton
from ..backend.rig import Rig
from ..backend.sequence import MeshSequence
from .students import with_student


def call(function: Callable, arguments: tuple, progress: Callable[[float, str], None]) -> Any:
    """Call one of the functions below; a lack of memory becomes a sentence."""
    try:
        return function(*arguments, progress)
    except MemoryError as error:
        raise SprigError("There is not enough memory for this sequence; take fewer frames or a larger step.") from error


def rig(sequence: MeshSequence, choices: dict[str, Any], student: Path | None, progress: Callable) -> Rig:
    """Rig a sequence. choices: arguments of RigOptions; student: networks that were fine-tuned on it."""
    from ..backend.pipeline import RigOptions, rig_sequence

    if student is not None:
        sequence, choices = with_student(sequence, choices, student)
    return rig_sequence(sequence, RigOptions(**choices), progress)


def fit(sequence: MeshSequence, given: GivenSkeleton, choices: dict[str, Any], what: str, progress: Callable) -> Rig:
    """Fit the bones that were given to a sequence. choices: as above; what: see `rig_with`."""
    from ..backend.armature import rig_with
    from ..backend.pipeline import RigOptions

    return rig_with(sequence, given, RigOptions(**choices), progress, fit=what)


def raw_skeletons(sequence: MeshSequence, the_rig: Rig, choices: dict[str, Any], progress: Callable) -> tuple:
    """What the skeleton network says of single frames of the sequence; the fields of RawSkeletons."""
    from ..backend.device import resolve_device
    from ..backend.learned import load_networks
    from ..backend.raw_network import decode_frames

    device = resolve_device(choices["device"])
    networks = load_networks(choices["checkpoint_skeleton"], device=device, kinds=("skeleton",))
    return tuple(decode_frames(sequence, the_rig, networks, seed=choices["seed"], progress=progress))


def fine_tune(
    sequence: MeshSequence, choices: dict[str, Any], epochs: int, folder: Path, progress: Callable
) -> tuple[str, str]:
    """Teach the networks a sequence; returns the name of the student in `folder`, and what it has learned in words."""
    from ..backend.device import resolve_device
    from ..backend.finetune.clip import make_clip
    from ..backend.finetune.students import networks_for, student_name
    from ..backend.finetune.train import FineTuneConfig
    from ..backend.learned import load_networks

    files = choices["checkpoint_skeleton"], choices["checkpoint_skinning"]
    networks = load_networks(*files, resolve_device(choices["device"]))
    anchor = None if choices["anchor"] is None else sequence.position_of(choices["anchor"])
    clip = make_clip(sequence, sequence.name, anchor=anchor)
    config = FineTuneConfig(epochs=epochs, seed=choices["seed"])
    tuned, problems = networks_for(sequence, clip, networks, config, folder, progress=progress)
    if problems:  # it could not be kept
        raise SprigError(problems[0])
    figures = tuned.checkpoints["skeleton"]["finetuned"]
    learned = ""
    if "pjdd_teacher" in figures and "pjdd_student" in figures:
        learned = f", PJDD from {figures['pjdd_teacher']:.3g} to {figures['pjdd_student']:.3g}"
    return student_name(sequence, clip, networks, config), learned
