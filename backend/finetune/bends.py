"""Poses that a clip does not show: the teacher's rig of the anchor, bent at random.

A clip shows a character in a few motions; a student that has seen no more gives other clips of the character other
skeletons. The rig needs no label: it is the one that the student is to give anyway.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from ..kinematics import linear_blend_skinning
from ..metrics import unit_cube

BEND_ROOT, BEND_LEAF = 10.0, 50.0  # degrees: largest turn of a joint near the root and at the end of a limb


def random_motion(joints, parents, poses: int, random: np.random.Generator) -> np.ndarray:
    """Motions (P,J,4,4) float32 of joints (J,3) at rest, parents (J,) before children, the first one the root.

    Every joint but the root turns by a random angle, most at the ends of limbs, and of some poses all of it less.
    """
    depth = np.zeros(len(parents), dtype=int)
    below = np.zeros_like(depth)
    for joint, parent in enumerate(parents[1:], 1):
        depth[joint] = depth[parent] + 1
    for joint in range(len(depth) - 1, 0, -1):
        parent = parents[joint]
        below[parent] = max(below[parent], below[joint] + 1)
    limit = np.radians(BEND_ROOT + (BEND_LEAF - BEND_ROOT) * depth / np.maximum(depth + below, 1))
    axes = random.standard_normal((poses, len(depth), 3))
    axes /= np.linalg.norm(axes, axis=-1, keepdims=True)
    angles = limit * random.random((poses, len(depth))) * random.random((poses, 1))
    turn = Rotation.from_rotvec((angles[..., None] * axes).reshape(-1, 3)).as_matrix().reshape(poses, -1, 3, 3)
    motion = np.tile(np.eye(4, dtype=np.float32), (poses, len(depth), 1, 1))
    for joint, parent in enumerate(parents[1:], 1):
        local = np.tile(np.eye(4), (poses, 1, 1))
        local[:, :3, :3] = turn[:, joint]
        local[:, :3, 3] = joints[joint] - turn[:, joint] @ joints[joint]
        motion[:, joint] = motion[:, parent] @ local
    return motion


def bent_vertices(vertices, weights, joints, parents, random: np.random.Generator) -> np.ndarray:
    """Vertices (V,3) in the cube, skinned with weights (V,J) and bent at random; centred as every frame is."""
    (motion,) = random_motion(joints, parents, 1, random)
    bent = linear_blend_skinning(vertices, weights, motion)
    return (bent - unit_cube(bent)[0]).astype(np.float32)
