"""Poses of a given rig: only joint rotations and the roots' translations are solved, weights and joints are kept.

This is what makes a network's rig comparable: the LBS RMSE of METRICS.md is the error that is left.
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import no_progress
from .free_bones import rigid_motion
from .hierarchy import bone_matrices, refine_pose, start_pose
from .problem import energy, homogeneous, make_problem, moments
from .procrustes import rotation_from_covariance

MOST_STEPS = 30  # Gauss-Newton; they end earlier, when
SETTLED = 1e-4  # a step lowers no frame's error by this share of itself
LEAST_MASS = 1e-6  # share of the vertices: a bone with less follows its parent


def fit_poses(
    trajectories,
    edges,
    anchor: int,
    weights,
    joints,
    parents,
    *,
    rest=None,
    located=(),
    device: str = "cpu",
    progress=no_progress,
):
    """Motion (F,J,4,4), rest pose to frame f, of a rig whose weights (N,J), joints (J,3) and parents (J,) stay.

    trajectories (F,N,3); the rest shape is frame `anchor`, or `rest` (N,3), which need be no frame. Parents first.
    Roots travel, and the `located` joints may move against their parents as well; all others only turn.
    """
    problem, centre, scale = make_problem(trajectories, edges, anchor, device, rest=rest)
    W = torch.as_tensor(np.asarray(weights), dtype=torch.float64, device=device)
    c = torch.as_tensor((np.asarray(joints) - centre) / scale, dtype=torch.float64, device=device)
    A, Q = moments(problem, W, problem.rest)
    pose = start_pose(rigid_starts(problem, W, parents), c, parents, located=located)
    error = _frame_errors(problem, pose, A, Q)
    for step in range(MOST_STEPS):
        progress(step / MOST_STEPS, "Fitting poses")
        pose = refine_pose(pose, A, Q, steps=1)
        last, error = error, _frame_errors(problem, pose, A, Q)
        if step > 2 and bool((error >= last * (1 - SETTLED)).all()):
            break
    motion = np.zeros((problem.frames, len(c), 4, 4))
    motion[..., :3, :] = bone_matrices(pose).cpu().numpy()
    motion[..., 3, 3] = 1
    motion[..., :3, 3] = motion[..., :3, 3] * scale + centre - motion[..., :3, :3] @ centre
    return motion


def _frame_errors(problem, pose, A, Q):
    """Squared error (F,) of every frame."""
    constant = problem.X.square().sum((1, 2))
    return (energy(bone_matrices(pose), A, Q, per_frame=True) + constant).clamp_min(0)


def rigid_starts(problem, W, parents):
    """Rigid motions (F,J,3,4): of every bone the one that explains its vertices best, each counted by its weight."""
    U = homogeneous(problem.rest)
    P = (W[:, :, None] * U[:, None, :]).flatten(1)
    moment = (problem.X.flatten(0, 1) @ P).reshape(problem.frames, 3, -1, 4).transpose(1, 2)
    sums = W.T @ U  # (J,4): sum of weighted rest positions, sum of weights
    mass = sums[:, 3:].clamp_min(1e-12)
    source, target = sums[:, :3] / mass, moment[..., 3] / mass
    R = rotation_from_covariance(moment[..., :3] - target[..., None] * sums[None, :, None, :3])
    M = torch.cat([R, (target - torch.einsum("fbij,bj->fbi", R, source))[..., None]], dim=-1)
    light = (sums[:, 3] < LEAST_MASS * problem.vertices).tolist()
    for bone, parent in enumerate(parents):
        if light[bone]:
            everything = torch.arange(problem.vertices, device=problem.device)
            M[:, bone] = M[:, parent] if parent >= 0 else rigid_motion(problem, everything, problem.rest)
    return M
