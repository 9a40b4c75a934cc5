"""The last step of every way to a rig: from a fit of the welded mesh to a Rig of the user's mesh, measured.

`Fit` is what the solvers hand over, `Clock` keeps the time of the stages.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from .metrics import diagonal, rmse_per_frame
from .rig import Rig, Skeleton
from .sequence import MeshSequence
from .skeletons import joint_evidence
from .surface import Prepared

HIGH_ERROR = 1.0  # per cent of the diagonal; a rig with more does not replay the sequence faithfully


@dataclass(frozen=True, eq=False)
class Fit:
    """Rig of the welded mesh: joints (J,3), parents (J,), weights (N,J), rest (N,3), motion (F,J,4,4)."""

    joints: np.ndarray
    parents: np.ndarray
    weights: np.ndarray
    rest: np.ndarray
    motion: np.ndarray
    provenance: dict
    warnings: tuple[str, ...]
    confidence: np.ndarray | None = None


class Clock:
    """Wall time per stage, seconds."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str):
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def finished_rig(
    sequence: MeshSequence,
    prepared: Prepared,
    anchor: int,
    skeleton: Skeleton,
    fit: Fit,
    provenance: dict,
    clock: Clock,
    *,
    warnings=(),
    advice: str,
) -> Rig:
    """The Rig that a fit is on the vertices of the sequence, with its errors and the evidence for every joint.

    skeleton: the fit's joints with tails and names; provenance and warnings: beside the fit's own; advice: what to do
    where the error is high, as the end of a sentence.
    """
    weights = fit.weights[prepared.vertex_map].astype(np.float32)
    rest = fit.rest[prepared.vertex_map].astype(np.float32)
    size = diagonal(sequence.vertices[anchor])
    rotation_range, seen = joint_evidence(fit.motion, fit.joints, fit.parents, anchor, size)
    errors = rmse_per_frame(rest, weights, fit.motion, sequence.vertices, size)
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
        provenance={**fit.provenance, **provenance},
        warnings=(*prepared.warnings, *fit.warnings, *warnings, *_error_warning(errors, advice)),
        seconds=clock.seconds,
        clips=sequence.clips,
    )


def _error_warning(errors, advice: str) -> list[str]:
    error = float(np.sqrt(np.mean(errors**2)))
    if error <= HIGH_ERROR:
        return []
    return [f"The rig replays the sequence only to {error:.2g} % of its size; {advice}."]
