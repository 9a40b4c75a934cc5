"""Kinematics shared by the solver, the writers and the metrics.

Conventions: column vectors; a bone's matrix has its head as translation and its Y axis along head -> tail (as in
Blender); `motion = bone_world @ inv(bone_rest)` takes a rest position to the posed one.
"""

from __future__ import annotations

import numpy as np

FAINT = 1e-3  # share of a joint's own skin that counts where it shares none with its parent


def linear_blend_skinning(rest_vertices, weights, motion) -> np.ndarray:
    """Posed vertices (V,3) float64 of one frame: sum_j weights[v,j] * motion[j] @ [rest, 1], motion (J,4,4)."""
    rest = np.asarray(rest_vertices, dtype=np.float64)
    blended = np.asarray(weights, dtype=np.float64) @ np.asarray(motion, np.float64)[:, :3].reshape(-1, 12)
    blended = blended.reshape(-1, 3, 4)
    return np.einsum("vij,vj->vi", blended[:, :, :3], rest) + blended[:, :, 3]


def carried_points(motion, points) -> np.ndarray:
    """Points (J,3) of the rest pose, each moved by its joint's motion (F,J,4,4): (F,J,3)."""
    return np.einsum("fjab,jb->fja", motion[..., :3, :3], points) + motion[..., :3, 3]


def carry_joints(joints, parents, weights, shape, targets) -> np.ndarray:
    """Joints (F,J,3) in other poses of a mesh, targets (F,N,3), from where they are in one, shape (N,3).

    joints (J,3), parents (J,), weights (N,J). Each moves as the skin that it shares with its parent (Kabsch 1976).
    """
    joints, shape = np.asarray(joints, np.float64), np.asarray(shape, np.float64)
    targets = np.asarray(targets, np.float64)
    own = np.asarray(weights, np.float64).T  # (J,N)
    above = np.where(np.asarray(parents)[:, None] >= 0, own[np.maximum(parents, 0)], 1.0)
    share = own * above + FAINT * own + FAINT**2
    share /= share.sum(axis=1, keepdims=True)
    source, goal = share @ shape, share @ targets  # (J,3), (F,J,3)
    moments = (share[:, None] * shape.T).reshape(-1, len(shape)) @ targets  # (F,3J,3)
    covariance = moments.reshape(len(targets), len(joints), 3, 3) - source[None, :, :, None] * goal[:, :, None]
    u, _, vt = np.linalg.svd(covariance)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[..., None]
    turned = np.einsum("fjki,fjlk,jl->fji", vt, u, joints - source, optimize=True)
    return goal + turned


def bone_frames(heads, tails) -> np.ndarray:
    """Bone matrices (J,4,4) from heads and tails (J,3): Y along the bone, Z as close as possible to world up.

    A bone within about 8 degrees of the vertical takes its Z from world -Y (the front of a character that faces -Y),
    so that neighbouring bones of an upright limb get the same roll instead of a random one.
    """
    heads, tails = np.asarray(heads, np.float64), np.asarray(tails, np.float64)
    along = tails - heads
    length = np.linalg.norm(along, axis=1, keepdims=True)
    y = np.where(length > 0, along / np.where(length > 0, length, 1), [0.0, 0.0, 1.0])
    up = np.where(np.abs(y[:, 2:]) > 0.99, [0.0, -1.0, 0.0], [0.0, 0.0, 1.0])
    x = np.cross(y, up)
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    frames = np.tile(np.eye(4), (len(heads), 1, 1))
    frames[:, :3, 0], frames[:, :3, 1], frames[:, :3, 2], frames[:, :3, 3] = x, y, np.cross(x, y), heads
    return frames


def with_rolls_of(given, frames) -> np.ndarray:
    """Bone matrices `frames` (J,4,4) with their Z axes turned about Y towards those of `given` (J,4,4).

    A bone whose Y is along the given Z keeps its own.
    """
    y, z = frames[:, :3, 1], given[:, :3, 2]
    x = np.cross(y, z / np.linalg.norm(z, axis=1, keepdims=True))
    length = np.linalg.norm(x, axis=1, keepdims=True)
    x = np.where(length > 1e-6, x / np.maximum(length, 1e-30), frames[:, :3, 0])
    rolled = frames.copy()
    rolled[:, :3, 0], rolled[:, :3, 2] = x, np.cross(x, y)
    return rolled


def world_bones(rig) -> tuple[np.ndarray, np.ndarray]:
    """World bone matrices of a Rig: rest (J,4,4) and posed (F,J,4,4), both float64."""
    own = rig.skeleton.frames
    rest = bone_frames(rig.skeleton.joints, rig.skeleton.tails) if own is None else own.copy()
    posed = rig.motion @ rest
    rest[:, :3, 3] += rig.origin
    posed[:, :, :3, 3] += rig.origin
    return rest, posed
