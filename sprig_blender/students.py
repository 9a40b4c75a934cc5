"""Networks that were fine-tuned on a sequence: where they are kept, and which meshes they belong to.

A mesh remembers its student by the name of a file, so undo, copies and saved files keep it. Whether it still is the
sequence that was fine-tuned on shows only when its frames have been read: the student knows them by fingerprint.
This module needs no Blender: the command line keeps its students in the same way.
"""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..backend.errors import SprigError
from ..backend.sequence import MeshSequence

STUDENT = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}\.safetensors")  # a file from elsewhere may say anything


def students_folder() -> Path:
    """The folder of students: the extension's own inside Blender, else one among the user's caches."""
    if "bpy" in sys.modules:
        from . import dependencies

        if dependencies.own_folder() is not None:
            return dependencies.own_folder().parent / "students"
    return _user_cache() / "sprig" / "students"


def _user_cache() -> Path:
    """The folder that the system has for what programs can make again."""
    if sys.platform == "win32" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"])
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    chosen = os.environ.get("XDG_CACHE_HOME", "")
    return Path(chosen) if os.path.isabs(chosen) else Path.home() / ".cache"  # the standard ignores relative ones


# ---- meshes and their students


def student_of(meshes) -> Path | None:
    """The student that was fine-tuned on these meshes together, if it is still kept."""
    names = {mesh.sprig.student for mesh in meshes}
    if len(names) != 1 or not STUDENT.fullmatch(name := names.pop()):
        return None
    path = students_folder() / name
    return path if path.is_file() else None


def forget(meshes) -> None:
    """Take the students of these meshes away."""
    for mesh in meshes:
        if STUDENT.fullmatch(mesh.sprig.student):
            with suppress(OSError):  # gone already, or in use by another Blender (Windows)
                (students_folder() / mesh.sprig.student).unlink()
        mesh.sprig.student = ""


def with_student(sequence: MeshSequence, choices: dict[str, Any], student: Path) -> tuple[MeshSequence, dict[str, Any]]:
    """Choices with the student in place of the networks; where it does not fit, a warning on the sequence instead.

    choices: arguments of RigOptions. Called by the worker, because it loads torch.
    """
    from ..backend.checkpoint import fingerprint, read_provenance
    from ..backend.finetune.students import sequence_fingerprint
    from ..backend.learned import KINDS, shipped_file

    options = [f"checkpoint_{kind}" for kind in KINDS]
    teachers = [choices[option] or shipped_file(kind) for option, kind in zip(options, KINDS, strict=True)]
    problem = ""
    try:
        made_from = read_provenance(student)
    except SprigError:
        problem = "The fine-tuned networks of this sequence cannot be read"
    else:
        if made_from.get("sequence") != sequence_fingerprint(sequence):
            problem = "The frames are not those that the networks were fine-tuned on"
        elif made_from.get("teachers") != dict(zip(KINDS, map(fingerprint, teachers), strict=True)):
            problem = "These are not the networks that were fine-tuned on this sequence"
    if not problem:
        return sequence, {**choices, **dict.fromkeys(options, str(student))}
    warning = f"{problem}, so the rig is that of the networks as they are; fine-tune again, or forget it."
    return replace(sequence, warnings=(*sequence.warnings, warning)), choices
