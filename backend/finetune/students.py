"""Students on disk: what fine-tuning has learned about a sequence, to be found again with the same sequence.

A student's file is named by what it was made from: the sequence; teachers, settings and anchor. So a changed sequence
has none, and nothing has to be asked whether it is still true. The folder is bounded; whoever was not used for longest
goes first. A file that cannot be read counts as not there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from ..checkpoint import load_checkpoint, read_provenance, save_checkpoint
from ..errors import SprigError, no_progress
from ..learned import Networks
from ..report import version
from ..sequence import MeshSequence
from .clip import Clip
from .per_sequence import STAGES, FineTuned, fine_tune_on
from .train import FineTuneConfig

METHOD = 2  # raised whenever the same settings would teach something else
MOST_FILES = 64
MOST_BYTES = 2e9  # of all students together; ours take 20 MB, Puppeteer's one or two thousand


def sequence_fingerprint(sequence: MeshSequence) -> str:
    """16 hexadecimal digits that name a sequence by its shapes (F,V,3) and faces, wherever it is in the world."""
    digest = hashlib.sha256(repr((sequence.vertices.shape, sequence.faces.shape)).encode())
    digest.update(memoryview(sequence.vertices).cast("B"))
    digest.update(memoryview(sequence.faces).cast("B"))
    return digest.hexdigest()[:16]


def student_name(sequence: MeshSequence, clip: Clip, networks: Networks, config: FineTuneConfig, stages=STAGES) -> str:
    """The file of the student that `fine_tune_on` would make; it begins with the sequence's fingerprint."""
    made_from = {
        "method": METHOD,
        "teachers": teachers_of(networks),
        "frames": [clip.anchor, clip.frames.tolist(), clip.held_out.tolist()],
        "config": dataclasses.asdict(config),
        "stages": sorted(stages),
        "device": networks.device,
    }
    rest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    return f"{sequence_fingerprint(sequence)}-{rest}.safetensors"


def teachers_of(networks: Networks) -> dict[str, str]:
    """Fingerprints of the networks' files."""
    return {kind: checkpoint["fingerprint"] for kind, checkpoint in networks.checkpoints.items()}


def networks_for(
    sequence: MeshSequence,
    clip: Clip,
    networks: Networks,
    config: FineTuneConfig = FineTuneConfig(),  # noqa: B008 - it is frozen
    folder=None,
    stages=STAGES,
    progress=no_progress,
) -> tuple[Networks, tuple[str, ...]]:
    """The networks' students for a sequence, of which `clip` has the frames, and what the user should know.

    They come out of the folder if they are there, else they are made and put there; None keeps none.
    `progress(fraction, text)` may raise Cancelled, and then nothing is kept.
    """
    if folder is not None:
        name = student_name(sequence, clip, networks, config, stages)
        with suppress(SprigError):
            return find(folder, name, networks, stages), ()
    tuned = fine_tune_on(clip, networks, config, stages, progress)
    if folder is not None:
        try:
            store(folder, name, tuned, provenance(sequence, clip, networks, tuned, stages), stages)
        except SprigError as error:
            return tuned.networks, (f"The fine-tuned networks could not be kept for another time: {error}",)
    return tuned.networks, ()


def provenance(sequence: MeshSequence, clip: Clip, networks: Networks, tuned: FineTuned, stages=STAGES) -> dict:
    """Where a student comes from, for its file."""
    return {
        "made_by": f"SPRig {version()}, fine-tuned on one sequence",
        "sequence": sequence_fingerprint(sequence),
        "anchor_frame": int(sequence.frame_numbers[clip.frames[clip.anchor]]),
        "frames": len(clip.frames),
        "device": networks.device,
        "teachers": teachers_of(networks),
        "finetuned": {stage: tuned.networks.checkpoints[stage]["finetuned"] for stage in stages},
    }


def find(folder, name: str, networks: Networks, stages=STAGES) -> Networks:
    """The networks with students out of the file in place of the teachers; SprigError where that cannot be used."""
    path = Path(folder) / name
    students = {stage: load_checkpoint(path, stage, networks.device) for stage in stages}
    told = read_provenance(path).get("finetuned", {})
    checkpoints = {**networks.checkpoints}
    for stage in stages:
        checkpoints[stage] = {**checkpoints.get(stage, {}), "finetuned": {**told.get(stage, {}), "reused": True}}
    with suppress(OSError):
        os.utime(path)  # used just now
    return dataclasses.replace(networks, **students, checkpoints=checkpoints)


def store(folder, name: str, tuned: FineTuned, provenance: dict, stages=STAGES) -> None:
    """Write students into the folder, which is made if need be, and make room by removing the oldest.

    Raises SprigError where that cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SprigError(f"{folder} cannot be made ({error.strerror or error}); check the permissions.") from error
    save_checkpoint(folder / name, [getattr(tuned.networks, stage) for stage in stages], provenance)
    _make_room(folder, folder / name)


def forget(folder, name: str) -> None:
    """Remove a student; none is left alone."""
    with suppress(OSError):
        (Path(folder) / name).unlink()


def _make_room(folder: Path, newest: Path) -> None:
    """Remove the students that were not used for longest, until the others are within the bounds with the newest."""
    found = []
    for path in folder.glob("*.safetensors"):
        with suppress(OSError):  # gone meanwhile
            status = path.stat()
            found.append((path != newest, -status.st_mtime_ns, status.st_size, path))
    total = 0
    for count, (_, _, size, path) in enumerate(sorted(found)):
        total += size
        if path != newest and (count >= MOST_FILES or total > MOST_BYTES):
            forget(folder, path.name)
