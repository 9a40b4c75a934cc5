"""A rigged mesh to learn from: what every source of training data returns."""

from dataclasses import dataclass

import numpy as np

WEIGHT_TOLERANCE = 1e-3  # how far a row of weights may sum from one


@dataclass(frozen=True, eq=False)
class Character:
    """One rigged mesh. V vertices, M triangles, J joints, P poses; units free, Z up."""

    name: str
    rig_id: str  # equal for characters that share names and hierarchy of joints
    category: str
    source: str
    licence: str
    vertices: np.ndarray  # (V,3) float32, rest pose
    faces: np.ndarray  # (M,3) int32
    weights: np.ndarray  # (V,J) float32 rows on the simplex
    joints: np.ndarray  # (J,3) float32 rest positions
    parents: np.ndarray  # (J,) int32, one root (-1) first, parents before children
    motion: np.ndarray  # (P,J,4,4) float32 rest to pose; P may be 0 (augmentation poses)

    def __post_init__(self):
        vertices, joints, poses = len(self.vertices), len(self.joints), len(self.motion)
        self._check("vertices", np.float32, (vertices, 3))
        self._check("faces", np.int32, (len(self.faces), 3))
        self._check("weights", np.float32, (vertices, joints))
        self._check("joints", np.float32, (joints, 3))
        self._check("parents", np.int32, (joints,))
        self._check("motion", np.float32, (poses, joints, 4, 4))
        if not vertices or not len(self.faces) or not joints:
            raise ValueError(f"{self.name}: no vertices, faces or joints")
        if self.faces.min() < 0 or self.faces.max() >= vertices:
            raise ValueError(f"{self.name}: faces name vertices that are not there")
        sums = self.weights.sum(axis=1, dtype=np.float64)
        if self.weights.min() < 0 or np.abs(sums - 1).max() > WEIGHT_TOLERANCE:
            raise ValueError(f"{self.name}: rows of weights are not on the simplex")
        children = self.parents[1:]
        if self.parents[0] != -1 or (children < 0).any():
            raise ValueError(f"{self.name}: there must be one root, the first joint")
        if (children >= np.arange(1, joints)).any():
            raise ValueError(f"{self.name}: parents must come before children")

    def _check(self, field, dtype, shape):
        value = getattr(self, field)
        if value.dtype != dtype or value.shape != shape:
            raise ValueError(f"{self.name}: {field} is {value.dtype} {value.shape}, not {shape}")
        if not np.isfinite(value).all():
            raise ValueError(f"{self.name}: {field} is not finite")
