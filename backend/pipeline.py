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

SKELETON_SOURCES = ("auto", "motion")  # without networks, auto means motion
HIGH_ERROR = 1.0  # per cent of the diagonal; a rig with more does not replay the sequence faithfully


@dataclass(frozen=True)
class RigOptions:
    """What the user may choose; the defaults are the command line's and the panel's. Raises SprigError for nonsense."""

    skeleton: str = "auto"  # where the skeleton comes from: "auto" or "motion"
    joints: int | None = None  # number of joints; None finds it by the tolerance
    tolerance: float = 0.1  # RMSE to reach when the number of joints is found, per cent of the diagonal
    influences: int = 4  # joints that may move one vertex
    rest_correction: bool = True  # the rest shape may move by hundredths of a per cent
    stretch: str = "off"  # "auto": keyed location on the few bones where rotation alone costs most
    anchor: int | None = None  # frame number; None takes the frame of greatest surface area
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


def rig_sequence(sequence: MeshSequence, options: RigOptions = RigOptions(), progress=no_progress) -> Rig:
    """Rig a sequence. `progress(fraction, text)` is called throughout and may raise Cancelled.

    Raises SprigError when the sequence cannot be rigged from its motion (too small, flat, or still).
    """
    clock = _Clock()
    device = resolve_device(options.device, double_precision=True)
    if options.joints is not None and options.joints > sequence.vertex_count:
        raise SprigError(
            f"{options.joints} joints are more than the mesh has vertices ({sequence.vertex_count}); give fewer."
        )
    if sequence.frame_count < 2:
        raise SprigError("This is a single frame, so there is no motion to rig from; use --skeleton learned.")

    with clock.stage("prepare"):
        progress(0.0, "Preparing the mesh")
        prepared = prepare(sequence)

    with clock.stage("anchor"):
        anchor = anchor_frame(prepared.areas) if options.anchor is None else sequence.position_of(options.anchor)
        size = diagonal(sequence.vertices[anchor])

    with clock.stage("motion"):
        progress(0.05, "Reading the motion")
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
            progress=lambda fraction, text: progress(0.05 + 0.9 * fraction, text),
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
        warnings = [*prepared.warnings, *fit.warnings, *_error_warning(errors)]
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
        provenance={"skeleton_source": "motion", "seed": options.seed, "device": device},
        warnings=tuple(warnings),
        seconds=clock.seconds,
    )


def _error_warning(errors) -> list[str]:
    error = float(np.sqrt(np.mean(errors**2)))
    if error <= HIGH_ERROR:
        return []
    return [f"The rig replays the sequence only to {error:.2g} % of its size; ask for more joints or allow stretch."]


class _Clock:
    """Wall time per stage, seconds."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start
