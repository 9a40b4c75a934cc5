"""From a mesh sequence to a rig, step by step; reads like the method (DESIGN 4)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .anchor import anchor_frame
from .device import resolve_device
from .errors import SprigError, no_progress
from .finish import Clock, Fit, finished_rig
from .name_presets import NAMES, joint_names
from .rig import Rig, Skeleton
from .sequence import MeshSequence
from .skeletons import bone_tails
from .surface import prepare

SKELETON_SOURCES = ("auto", "learned", "motion")


@dataclass(frozen=True)
class RigOptions:
    """What the user may choose; the defaults are the command line's and the panel's. Raises SprigError for nonsense."""

    skeleton: str = "auto"  # networks propose, motion decides; "motion" alone; "learned": networks alone, then posed
    joints: int | None = None  # number of joints; None finds it by the tolerance
    tolerance: float = 0.1  # RMSE to reach when the number of joints is found, per cent of the diagonal
    influences: int = 4  # joints that may move one vertex
    rest_correction: bool = True  # the rest shape may move by hundredths of a per cent
    stretch: str = "off"  # "auto": keyed location on the few bones where rotation alone costs most
    anchor: int | None = None  # frame number; None takes the frame of greatest surface area
    candidates: int = (
        1  # skeletons that the network proposes: "auto" takes what fits the motion, "learned" the likeliest
    )
    temperature: float = 0.0  # 0: the likeliest tokens; above: drawn, the higher the more varied
    checkpoint_skeleton: str | None = None  # files of the networks; None takes SPRig's own
    checkpoint_skinning: str | None = None
    finetune: int = 0  # epochs that the networks learn this sequence first
    students: str | None = None  # folder where fine-tuned networks are kept and found again; None keeps none
    names: str = "sprig"  # of the joints; one of NAMES, the others for humanoids
    seed: int = 0
    device: str = "auto"  # "auto", "cpu", "cuda" or "mps"

    def __post_init__(self):
        if self.skeleton not in SKELETON_SOURCES:
            raise SprigError(
                f"There is no skeleton source {self.skeleton!r} yet; choose {' or '.join(SKELETON_SOURCES)}."
            )
        if self.joints is not None and self.joints < 2:
            raise SprigError(
                f"A rig needs at least 2 joints, not {self.joints}; give 2 or more, or leave the number out."
            )
        if self.influences < 1:
            raise SprigError(f"Influences is {self.influences}; give 1 or more (game engines take 4).")
        if not (np.isfinite(self.tolerance) and self.tolerance > 0):
            raise SprigError(f"The tolerance is {self.tolerance} %; give a positive number.")
        if self.stretch not in ("off", "auto"):
            raise SprigError(f"Stretch is {self.stretch!r}; choose off or auto.")
        if self.names not in NAMES:
            raise SprigError(f"There are no joint names {self.names!r}; choose {', '.join(NAMES[:-1])} or {NAMES[-1]}.")
        if self.candidates < 1:
            raise SprigError(f"Candidates is {self.candidates}; give 1 or more.")
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise SprigError(f"The temperature is {self.temperature}; give 0 or a positive number.")
        if self.finetune < 0:
            raise SprigError(f"Fine-tuning for {self.finetune} epochs makes no sense; give 0 or more.")
        if self.finetune and self.skeleton == "motion":
            raise SprigError("A skeleton from the motion has no networks to fine-tune; choose learned or auto.")


def rig_sequence(sequence: MeshSequence, options: RigOptions = RigOptions(), progress=no_progress) -> Rig:
    """Rig a sequence. `progress(fraction, text)` is called throughout and may raise Cancelled.

    A learned skeleton needs no motion: a single mesh gets a rig that stands still. Raises SprigError when the sequence
    cannot be rigged (too small, flat, or still where the motion is needed).
    """
    clock = Clock()
    learned = options.skeleton == "learned"
    device = resolve_device(options.device, double_precision=True)
    if options.joints is not None and options.joints > sequence.vertex_count:
        raise SprigError(
            f"{options.joints} joints are more than the mesh has vertices ({sequence.vertex_count}); give fewer."
        )
    if sequence.frame_count < 2 and not learned:
        raise SprigError("This is a single frame, so there is no motion to rig from; use --skeleton learned.")

    with clock.stage("prepare"):
        progress(0.0, "Preparing the mesh")
        prepared = prepare(sequence, may_be_still=learned)

    with clock.stage("anchor"):
        anchor = anchor_frame(prepared.areas) if options.anchor is None else sequence.position_of(options.anchor)

    solve = {"auto": _auto_fit, "learned": _learned_fit, "motion": _motion_fit}
    fit = solve[options.skeleton](
        sequence, prepared, anchor, options, device, clock, lambda share, text: progress(0.05 + 0.9 * share, text)
    )

    with clock.stage("rig"):
        progress(0.95, "Measuring the rig")
        names, name_warnings = joint_names(fit.joints, fit.parents, options.names)
        tails = bone_tails(fit.joints, fit.parents, fit.weights, fit.rest)
        rig = finished_rig(
            sequence,
            prepared,
            anchor,
            Skeleton(fit.joints, tails, fit.parents, names),
            fit,
            {"seed": options.seed, "device": device},
            clock,
            warnings=name_warnings,
            advice="take the skeleton from the motion" if learned else "ask for more joints or allow stretch",
        )
    progress(1.0, "Done")
    return rig


def _motion_fit(_sequence, prepared, anchor: int, options: RigOptions, device: str, clock, progress) -> Fit:
    """Skeleton, weights and poses from the motion alone."""
    with clock.stage("motion"):
        progress(0.0, "Reading the motion")
        from .motion.solver import solve_motion  # torch is loaded when work starts

        fit = solve_motion(
            prepared.trajectories,
            np.concatenate([prepared.edges, prepared.bridges]),
            anchor,
            counts=prepared.counts,
            device=device,
            progress=progress,
            **_of_the_motion(options),
        )
    return Fit(fit.joints, fit.parents, fit.weights, fit.rest, fit.motion, {"skeleton_source": "motion"}, fit.warnings)


def _learned_fit(sequence, prepared, anchor: int, options: RigOptions, device: str, clock, progress) -> Fit:
    """Skeleton and weights from the networks, which see the anchor frame; only the poses come from the motion."""
    networks, warnings, progress = _networks(sequence, prepared, anchor, options, clock, progress)
    rest = prepared.trajectories[anchor].astype(np.float64)
    with clock.stage("learned"):
        from .learned import rig_shape

        rig = rig_shape(
            rest,
            prepared.faces,
            networks,
            progress=lambda share, text: progress(0.6 * share, text),
            **_of_the_networks(options),
        )
    with clock.stage("motion"):
        from .motion.poses import fit_poses

        motion = fit_poses(
            prepared.trajectories,
            np.concatenate([prepared.edges, prepared.bridges]),
            anchor,
            rig.weights,
            rig.joints,
            rig.parents,
            device=device,
            progress=lambda share, text: progress(0.6 + 0.4 * share, text),
        )
    provenance = {"skeleton_source": "learned", "checkpoints": networks.checkpoints}
    return Fit(
        rig.joints, rig.parents, rig.weights, rest, motion, provenance, (*warnings, *rig.warnings), rig.confidence
    )


def _auto_fit(sequence, prepared, anchor: int, options: RigOptions, device: str, clock, progress) -> Fit:
    """What the networks propose on the anchor frame, decided by the motion."""
    networks, warnings, progress = _networks(sequence, prepared, anchor, options, clock, progress)
    with clock.stage("learned"):
        from .fusion import fuse, propose

        proposal = propose(
            prepared,
            anchor,
            networks,
            progress=lambda share, text: progress(0.3 * share, text),
            **_of_the_networks(options),
        )
    with clock.stage("motion"):
        choice = fuse(
            prepared,
            anchor,
            proposal.rig,
            device=device,
            progress=lambda share, text: progress(0.3 + 0.7 * share, text),
            **_of_the_motion(options),
        )
    fit = choice.taken.fit
    provenance = {
        "skeleton_source": "auto",
        "checkpoints": networks.checkpoints,
        "choice": {
            "proposals": proposal.tried,
            "candidates": [
                {
                    "source": one.source,
                    "joints": len(one.fit.parents),
                    "rmse_percent": 100 * one.fit.rmse,
                    "chosen": one is choice.taken,
                }
                for one in choice.tried
            ],
            "reason": choice.reason,
        },
    }
    warnings = (*warnings, *proposal.rig.warnings, *choice.warnings)
    return Fit(
        fit.joints, fit.parents, fit.weights, fit.rest, fit.motion, provenance, warnings, choice.taken.confidence
    )


def _of_the_networks(options: RigOptions) -> dict:
    """What the user chose about the networks' proposals."""
    return {name: getattr(options, name) for name in ("joints", "candidates", "temperature", "influences", "seed")}


def _of_the_motion(options: RigOptions) -> dict:
    """What the user chose about the solver."""
    chosen = {name: getattr(options, name) for name in ("joints", "tolerance", "influences", "rest_correction")}
    return {**chosen, "stretch": options.stretch == "auto"}


def _networks(sequence, prepared, anchor: int, options: RigOptions, clock, progress):
    """The networks, fine-tuned where that is asked for, what the user should know, and the progress of what follows."""
    with clock.stage("networks"):
        progress(0.0, "Loading the networks")
        from .learned import load_networks

        networks = load_networks(
            options.checkpoint_skeleton, options.checkpoint_skinning, resolve_device(options.device)
        )
    if not options.finetune:
        return networks, (), lambda share, text: progress(0.05 + 0.95 * share, text)
    tuned = 0.8  # of the progress
    with clock.stage("finetune"):
        networks, warnings = _fine_tuned(
            sequence, prepared, anchor, networks, options, lambda share, text: progress(tuned * share, text)
        )
    return networks, warnings, lambda share, text: progress(tuned + (1 - tuned) * share, text)


def _fine_tuned(sequence, prepared, anchor: int, networks, options: RigOptions, progress):
    """Networks that know this sequence, found or made, and what the user should know."""
    from .finetune.clip import clip_of
    from .finetune.students import networks_for
    from .finetune.train import FineTuneConfig

    config = FineTuneConfig(epochs=options.finetune, seed=options.seed)
    clip = clip_of(prepared, sequence.name, anchor)
    students, warnings = networks_for(sequence, clip, networks, config, options.students, progress=progress)
    return replace(students, teacher=networks), warnings
