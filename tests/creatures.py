"""Small animated creatures with known rigs, made on the spot."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.sequence import MeshSequence


def tube(rings: int = 21, around: int = 10, length: float = 2.0, radius: float = 0.15):
    """A closed tube along X: vertices (V,3), faces (M,3)."""
    x = np.linspace(0, length, rings)
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    ring = np.stack([np.zeros(around), radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    vertices = (ring[None] + np.stack([x, 0 * x, 0 * x], axis=1)[:, None]).reshape(-1, 3)
    faces = []
    for i in range(rings - 1):
        for j in range(around):
            a, b = i * around + j, i * around + (j + 1) % around
            faces += [(a, b, a + around), (b, b + around, a + around)]
    ends = len(vertices)
    vertices = np.vstack([vertices, [[0, 0, 0], [length, 0, 0]]])
    last = (rings - 1) * around
    for j in range(around):
        faces += [(ends, (j + 1) % around, j), (ends + 1, last + j, last + (j + 1) % around)]
    return vertices, np.array(faces)


def chain(bones: int = 3, frames: int = 24, seed: int = 0, blend: float = 0.1, travel: float = 0.3):
    """A tube moved by a chain of `bones` joints: (MeshSequence, joints (J,3), weights (V,J), motion (F,J,4,4)).

    Joint rotations are smooth in time, neighbouring bones blend linearly over `blend` on either side of a joint, and
    the root travels.
    """
    rng = np.random.default_rng(seed)
    vertices, faces = tube()
    length = vertices[:, 0].max()
    joints = np.stack([np.linspace(0, length, bones + 1)[:-1], np.zeros(bones), np.zeros(bones)], axis=1)
    position = vertices[:, 0]
    weights = np.zeros((len(vertices), bones))
    for b in range(bones):
        rise = np.clip((position - joints[b, 0] + blend) / (2 * blend), 0, 1) if b else np.ones(len(position))
        after = np.clip((position - joints[b + 1, 0] + blend) / (2 * blend), 0, 1) if b + 1 < bones else 0
        weights[:, b] = rise - after
    time = np.linspace(0, 2 * np.pi, frames)
    motion = np.empty((frames, bones, 4, 4))
    amplitude, phase = rng.uniform(0.3, 0.9, (bones, 3)), rng.uniform(0, 2 * np.pi, (bones, 3))
    for f in range(frames):
        above = np.eye(4)
        above[:3, 3] = travel * np.array([np.sin(time[f]), np.cos(time[f]), time[f]])
        for b in range(bones):
            local = np.eye(4)
            local[:3, :3] = Rotation.from_rotvec(amplitude[b] * np.sin(time[f] + phase[b])).as_matrix()
            local[:3, 3] = joints[b] - local[:3, :3] @ joints[b]
            above = above @ local
            motion[f, b] = above
    posed = np.stack([linear_blend_skinning(vertices, weights, m) for m in motion])
    return MeshSequence.from_world(posed, faces, fps=24.0), joints, weights, motion
