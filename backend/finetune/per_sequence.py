"""Fine-tune the networks on one sequence: the artist's clip, or a scan that nobody will animate again (SPRig 4 to 6).

The skeleton decoder first, then the skinning network, which learns with the skeleton that the teacher gave the anchor:
the students are judged by the same rig, whichever of them is trained.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..errors import SprigError, no_progress
from ..learned import KINDS as STAGES
from ..learned import Networks
from ..report import version
from ..sequence import MeshSequence
from .clip import Clip, skeleton_target, skinning_target
from .train import FIGURES, FineTuneConfig, SkeletonStage, SkinningStage, fine_tune, kept

SCHEMA = "sprig-finetune-1"  # of the report: raised whenever a key changes its name, unit or meaning
SHARES = {"skeleton": (0.03, 0.65), "skinning": (0.7, 1.0)}  # of the progress, when both are trained


@dataclass(frozen=True, eq=False)
class FineTuned:
    """networks: students in place of what was tuned, `checkpoints` saying so; history: of each stage the figures of
    every epoch, the first of them the teacher's."""

    networks: Networks
    history: dict[str, list[dict]]


def fine_tune_on(
    clip: Clip,
    networks: Networks,
    config: FineTuneConfig = FineTuneConfig(),  # noqa: B008 - it is frozen
    stages=STAGES,
    progress=no_progress,
) -> FineTuned:
    """Students of the networks for one clip; the networks themselves are not changed.

    `progress(fraction, text)` tells how far joints or weights still drift, and may raise Cancelled. The skinning stage
    needs both networks, the skeleton stage its own. Raises SprigError for a clip that has nothing to teach.
    """
    _check(clip)
    assert stages and set(stages) <= set(STAGES), stages
    progress(0.0, "Rigging the anchor")
    taught = skeleton_target(clip, networks, progress=_part(progress, 0.0, 0.03))
    students, history = {}, {}
    for stage in sorted(stages, key=STAGES.index):
        start, end = SHARES[stage] if len(stages) > 1 else (0.1, 1.0)
        if stage == "skeleton":
            work = SkeletonStage([taught], config, networks.device)
        else:
            target = skinning_target(
                clip, taught.joints.numpy(), taught.parents.numpy(), networks,
                target=config.target, seed=config.seed, progress=_part(progress, start - 0.05, start),
            )  # fmt: skip
            work = SkinningStage([target], config, networks.device)
        teacher = getattr(networks, stage)
        students[stage], history[stage] = fine_tune(teacher, work, config, progress=_part(progress, start, end))
    checkpoints = {**networks.checkpoints}
    for stage in students:
        checkpoints[stage] = {**checkpoints.get(stage, {}), "finetuned": summary(stage, history[stage], config)}
    return FineTuned(replace(networks, **students, checkpoints=checkpoints), history)


def summary(stage: str, history: list[dict], config: FineTuneConfig) -> dict:
    """What a report says of a student: epochs asked for and kept, seed, and its figure beside the teacher's."""
    key, _ = FIGURES[stage]
    chosen = kept(history)
    figures = {f"{key}_teacher": history[0][key], f"{key}_student": chosen[key]}
    finite = {name: float(value) for name, value in figures.items() if math.isfinite(value)}
    return {"epochs": config.epochs, "kept_epoch": chosen["epoch"], "seed": config.seed, **finite}


def fine_tune_report(
    tuned: FineTuned, sequence: MeshSequence, clip: Clip, config: FineTuneConfig, *, source, seconds, peak_memory
) -> dict:
    """Describe a fine-tuning in JSON types: what it saw, the figures of every epoch (null where there is none), cost.

    source: the sequence as the user named it; seconds: wall time of every stage; peak_memory: MiB beyond the imports.
    Frames are named by their numbers, as in the report of a rig.
    """
    numbers = sequence.frame_numbers[clip.frames]
    return {
        "schema": SCHEMA,
        "sprig_version": version(),
        "input": source,
        "object": ", ".join(sequence.object_names),
        "vertices": sequence.vertex_count,
        "faces": len(sequence.faces),
        "frames": sequence.frame_count,
        "anchor_frame": int(numbers[clip.anchor]),
        "learned_frames": numbers[~clip.held_out].tolist(),
        "held_out_frames": numbers[clip.held_out].tolist(),
        "epochs": config.epochs,
        "seed": config.seed,
        "device": tuned.networks.device,
        "checkpoints": tuned.networks.checkpoints,
        "history": {
            stage: [
                {name: value if math.isfinite(value) else None for name, value in epoch.items()} for epoch in epochs
            ]
            for stage, epochs in tuned.history.items()
        },
        "seconds": {stage: float(spent) for stage, spent in seconds.items()},
        "peak_memory_mb": peak_memory,
        "warnings": list(dict.fromkeys([*sequence.warnings, *tuned.networks.warnings])),
    }


def _check(clip):
    if len(clip.vertices) < 2:
        raise SprigError("This is a single frame; fine-tuning learns from a character in several poses.")
    if not clip.has_poses:
        raise SprigError("All frames show the same pose, so fine-tuning has nothing to learn; choose other frames.")


def _part(progress, start, end):
    return lambda share, text: progress(start + (end - start) * share, text)
