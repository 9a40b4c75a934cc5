"""From a mesh sequence to a rig, step by step; reads like the method (DESIGN 4)."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .anchor import anchor_frame
from .device import resolve_device
from .errors import SprigError, no_progress
from .metrics import diagonal, rmse_per_frame
from .naming import name_joints
from .rig import Rig, Skeleton
from .sequence import MeshSequence
from .skeletons import bone_tails, joint_evidence
from .surface import prepare

SKELETON_SOURCES = ("auto", "learned", "motion")  # auto means motion until the networks and the motion work together
HIGH_ERROR = 1.0  # per cent of the diagonal; a rig with more does not replay the sequence faithfully


@dataclass(frozen=True)
class RigOptions:
    """What the user may choose; the defaults are the command line's and the panel's. Raises SprigError for nonsense."""

    skeleton: str = "auto"  # "motion": from the motion alone; "learned": the networks' rig, only its poses are fitted
    joints: int | None = None  # number of joints; None finds it by the tolerance
    tolerance: float = 0.1  # RMSE to reach when the number of joints is found, per cent of the diagonal
    influences: int = 4  # joints that may move one vertex
    rest_correction: bool = True  # the rest shape may move by hundredths of a per cent
    stretch: str = "off"  # "auto": keyed location on the few bones where rotation alone costs most
    anchor: int | None = None  # frame number; None takes the frame of greatest surface area
    candidates: int = 1  # skeletons that the network proposes, of which the likeliest is taken
    temperature: float = 0.0  # 0: the likeliest tokens; above: drawn, the higher the more varied
    checkpoint_skeleton: str | None = None  # files of the networks; None takes SPRig's own
    checkpoint_skinning: str | None = None
    finetune: int = 0  # epochs that the networks learn this sequence first; "auto" then means their rig
    students: str | None = None  # folder where fine-tuned networks are kept and found again; None keeps none
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
        if self.candidates < 1:
            raise SprigError(f"Candidates is {self.candidates}; give 1 or more.")
        if not (np.isfinite(self.temperature) and self.temperature >= 0):
            raise SprigError(f"The temperature is {self.temperature}; give 0 or a positive number.")
        if self.finetune < 0:
            raise SprigError(f"Fine-tuning for {self.finetune} epochs makes no sense; give 0 or more.")
        if self.finetune and self.skeleton == "motion":
            raise SprigError("A skeleton from the motion has no networks to fine-tune; choose learned or auto.")

    @property
    def learned(self) -> bool:
        """Whether skeleton and weights come from the networks."""
        return self.skeleton == "learned" or self.finetune > 0


def rig_sequence(sequence: MeshSequence, options: RigOptions = RigOptions(), progress=no_progress) -> Rig:
    """Rig a sequence. `progress(fraction, text)` is called throughout and may raise Cancelled.

    A learned skeleton needs no motion: a single mesh gets a rig that stands still. Raises SprigError when the sequence
    cannot be rigged (too small, flat, or still where the motion is needed).
    """
    clock = _Clock()
    learned = options.learned
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
        size = diagonal(sequence.vertices[anchor])

    solve = _learned_fit if learned else _motion_fit
    fit = solve(
        sequence, prepared, anchor, options, device, clock, lambda share, text: progress(0.05 + 0.9 * share, text)
    )

    with clock.stage("rig"):
        progress(0.95, "Measuring the rig")
        weights = fit.weights[prepared.vertex_map].astype(np.float32)
        rest = fit.rest[prepared.vertex_map].astype(np.float32)
        skeleton = Skeleton(
            fit.joints,
            bone_tails(fit.joints, fit.parents, fit.weights, fit.rest),
            fit.parents,
            name_joints(fit.joints, fit.parents),
        )
        rotation_range, seen = joint_evidence(fit.motion, fit.joints, fit.parents, anchor, size)
        errors = rmse_per_frame(rest, weights, fit.motion, sequence.vertices, size)
        warnings = [*prepared.warnings, *fit.warnings, *_error_warning(errors, learned)]
    progress(1.0, "Done")
    return Rig(
        skeleton=skeleton,
        weights=weights,
        motion=fit.motion,
        rest_vertices=rest,
        faces=sequence.faces,
        anchor=anchor,
        origin=sequence.origin,
        fps=sequence.fps,
        frame_numbers=sequence.frame_numbers,
        frame_index=sequence.frame_index,
        seen_in_motion=seen,
        rotation_range=rotation_range,
        rmse_per_frame=errors,
        confidence=fit.confidence,
        provenance={**fit.provenance, "seed": options.seed, "device": device},
        warnings=tuple(warnings),
        seconds=clock.seconds,
    )


@dataclass(frozen=True, eq=False)
class _Fit:
    """Rig of the welded mesh: joints (J,3), parents (J,), weights (N,J), rest (N,3), motion (F,J,4,4)."""

    joints: np.ndarray
    parents: np.ndarray
    weights: np.ndarray
    rest: np.ndarray
    motion: np.ndarray
    provenance: dict
    warnings: tuple[str, ...]
    confidence: np.ndarray | None = None


def _motion_fit(_sequence, prepared, anchor: int, options: RigOptions, device: str, clock, progress) -> _Fit:
    """Skeleton, weights and poses from the motion alone."""
    with clock.stage("motion"):
        progress(0.0, "Reading the motion")
        from .motion.solver import solve_motion  # torch is loaded when work starts

        fit = solve_motion(
            prepared.trajectories,
            np.concatenate([prepared.edges, prepared.bridges]),
            anchor,
            counts=prepared.counts,
            joints=options.joints,
            tolerance=options.tolerance,
            influences=options.influences,
            rest_correction=options.rest_correction,
            stretch=options.stretch == "auto",
            device=device,
            progress=progress,
        )
    return _Fit(fit.joints, fit.parents, fit.weights, fit.rest, fit.motion, {"skeleton_source": "motion"}, fit.warnings)


def _learned_fit(sequence, prepared, anchor: int, options: RigOptions, device: str, clock, progress) -> _Fit:
    """Skeleton and weights from the networks, which see the anchor frame; only the poses come from the motion."""
    with clock.stage("networks"):
        progress(0.0, "Loading the networks")
        from .learned import load_networks, rig_shape

        networks = load_networks(
            options.checkpoint_skeleton, options.checkpoint_skinning, resolve_device(options.device)
        )
    warnings = ()
    tuned = 0.8 if options.finetune else 0.0  # of the progress
    if options.finetune:
        with clock.stage("finetune"):
            networks, warnings = _fine_tuned(
                sequence, anchor, networks, options, lambda share, text: progress(tuned * share, text)
            )

    def after_tuning(share, text):
        progress(tuned + (1 - tuned) * share, text)

    rest = prepared.trajectories[anchor].astype(np.float64)
    with clock.stage("learned"):
        rig = rig_shape(
            rest,
            prepared.faces,
            networks,
            joints=options.joints,
            candidates=options.candidates,
            temperature=options.temperature,
            influences=options.influences,
            seed=options.seed,
            progress=lambda share, text: after_tuning(0.1 + 0.5 * share, text),
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
            progress=lambda share, text: after_tuning(0.6 + 0.4 * share, text),
        )
    provenance = {"skeleton_source": "learned", "checkpoints": networks.checkpoints}
    warnings = (*warnings, *rig.warnings)
    return _Fit(rig.joints, rig.parents, rig.weights, rest, motion, provenance, warnings, rig.confidence)


def _fine_tuned(sequence, anchor: int, networks, options: RigOptions, progress):
    """Networks that know this sequence, found or made, and what the user should know."""
    from .finetune.clip import make_clip
    from .finetune.students import networks_for
    from .finetune.train import FineTuneConfig

    config = FineTuneConfig(epochs=options.finetune, seed=options.seed)
    clip = make_clip(sequence, sequence.name, anchor=anchor)
    return networks_for(sequence, clip, networks, config, options.students, progress=progress)


def _error_warning(errors, learned: bool) -> list[str]:
    error = float(np.sqrt(np.mean(errors**2)))
    if error <= HIGH_ERROR:
        return []
    advice = "take the skeleton from the motion" if learned else "ask for more joints or allow stretch"
    return [f"The rig replays the sequence only to {error:.2g} % of its size; {advice}."]


class _Clock:
    """Wall time per stage, seconds."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
