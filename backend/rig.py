"""The result: a skeleton in the anchor frame, skin weights, and the motion that replays the sequence.

Linear blend skinning of frame f is  x[f,v] = sum_j weights[v,j] * motion[f,j] @ [rest_vertices[v], 1].
Positions are relative to `origin`, as in MeshSequence. Quaternions, rolls and modes are the writer's business.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .errors import SprigError
from .sequence import ClipSpan

ROW_SUM_TOLERANCE = 1e-4  # float32 rows of a handful of entries sum to 1 within a few 1e-7; more means a bug


@dataclass(frozen=True, eq=False)
class Skeleton:
    """joints, tails (J,3) float64; parents (J,) int32 with parent < child and -1 for a root; names (J,) unique;
    frames (J,4,4) float64: rest matrices of bones that were given with rolls of their own, else None."""

    joints: np.ndarray
    tails: np.ndarray
    parents: np.ndarray
    names: tuple[str, ...]
    frames: np.ndarray | None = None

    def __post_init__(self):
        object.__setattr__(self, "joints", np.ascontiguousarray(self.joints, dtype=np.float64))
        object.__setattr__(self, "tails", np.ascontiguousarray(self.tails, dtype=np.float64))
        object.__setattr__(self, "parents", np.ascontiguousarray(self.parents, dtype=np.int32))
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        count = len(self.parents)
        for name, shape in (("joints", (count, 3)), ("tails", (count, 3)), ("parents", (count,))):
            if getattr(self, name).shape != shape:
                raise SprigError(f"{name} should have shape {shape}, shape is {getattr(self, name).shape}.")
        if count == 0 or len(self.names) != count or len(set(self.names)) != count:
            raise SprigError("A skeleton needs at least one joint and as many different names as joints.")
        if self.frames is not None:
            object.__setattr__(self, "frames", np.ascontiguousarray(self.frames, dtype=np.float64))
            if self.frames.shape != (count, 4, 4):
                raise SprigError(f"frames should have shape {(count, 4, 4)}, shape is {self.frames.shape}.")
        if not (np.isfinite(self.joints).all() and np.isfinite(self.tails).all()):
            raise SprigError("The skeleton has joints that are not finite.")
        if (self.parents < -1).any() or (self.parents >= np.arange(count)).any():
            raise SprigError("Parents should come before their children, with -1 for a root.")

    def __len__(self) -> int:
        return len(self.parents)


@dataclass(frozen=True, eq=False)
class Rig:
    """A finished rig. J joints, V vertices, F frames.

    weights (V,J) float32, rows on the simplex; motion (F,J,4,4) float64 takes the rest pose to frame f;
    rest_vertices (V,3) float32; faces (M,3); anchor: 0-based position among these frames; origin (3,) float64;
    frame_numbers, frame_index (F,) and clips as in MeshSequence; seen_in_motion (J,) bool: the motion moves this joint
    against its parent; rotation_range (J,) radians, largest rotation against the parent relative to the anchor pose;
    confidence (J,) in [0, 1], NaN where nothing is known; rmse_per_frame (F,) in per cent of the anchor frame's
    bounding-box diagonal; provenance: what made it; warnings: sentences for the user; seconds: wall time per stage.
    """

    skeleton: Skeleton
    weights: np.ndarray
    motion: np.ndarray
    rest_vertices: np.ndarray
    faces: np.ndarray
    anchor: int
    origin: np.ndarray
    fps: float
    frame_numbers: np.ndarray
    frame_index: np.ndarray
    seen_in_motion: np.ndarray
    rotation_range: np.ndarray
    rmse_per_frame: np.ndarray
    confidence: np.ndarray = None
    provenance: dict = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    seconds: dict = field(default_factory=dict)
    clips: tuple[ClipSpan, ...] = ()

    def __post_init__(self):
        joints = len(self.skeleton)
        if self.confidence is None:
            object.__setattr__(self, "confidence", np.full(joints, np.nan))
        dtypes = {
            "weights": np.float32, "motion": np.float64, "rest_vertices": np.float32, "faces": np.int32,
            "origin": np.float64, "frame_numbers": np.int32, "frame_index": np.int32, "seen_in_motion": bool,
            "rotation_range": np.float64, "rmse_per_frame": np.float64, "confidence": np.float64,
        }  # fmt: skip
        for name, dtype in dtypes.items():
            object.__setattr__(self, name, np.ascontiguousarray(getattr(self, name), dtype=dtype))
        frames, count = len(self.frame_numbers), len(self.rest_vertices)
        shapes = {
            "weights": (count, joints), "motion": (frames, joints, 4, 4), "rest_vertices": (count, 3), "origin": (3,),
            "frame_index": (frames,), "seen_in_motion": (joints,), "rotation_range": (joints,),
            "rmse_per_frame": (frames,), "confidence": (joints,),
        }  # fmt: skip
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise SprigError(f"{name} should have shape {shape}, shape is {getattr(self, name).shape}.")
        for name in ("weights", "motion", "rest_vertices", "origin"):
            if not np.isfinite(getattr(self, name)).all():
                raise SprigError(f"The rig's {name} are not finite.")
        if not 0 <= self.anchor < frames:
            raise SprigError(f"The anchor should be one of the {frames} frames, is {self.anchor}.")
        row_error = np.abs(self.weights.sum(axis=1, dtype=np.float64) - 1).max()
        if self.weights.min() < 0 or row_error > ROW_SUM_TOLERANCE:
            raise SprigError(f"Skin weights should be non-negative rows that sum to 1 (one is off by {row_error:.2g}).")

    @property
    def rmse(self) -> float:
        """RMSE over all frames and vertices, per cent of the anchor frame's diagonal (METRICS.md)."""
        return float(np.sqrt(np.mean(self.rmse_per_frame**2)))

    @property
    def worst_frame(self) -> int:
        """0-based position of the frame with the largest error."""
        return int(self.rmse_per_frame.argmax())
