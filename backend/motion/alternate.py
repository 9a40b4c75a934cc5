"""Poses, joints, weights and rest shape of one skeleton in turn, until it replays the motion as well as it can.

The key frames, those that differ most, tell nearly everything (`alternate`); the others join in the final rounds
(`finish`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from .free_bones import correct_rest_shape, vertex_errors
from .hierarchy import Pose, at_poses, bone_matrices, joint_prior_strength, refine_pose, start_pose, stretch_gains
from .problem import Problem, bone_errors, moments, rmse
from .weights import solve_free_weights, solve_weights

ROUNDS = 11  # of poses and joints, weights, rest shape on the key frames
FINAL_ROUNDS = 2  # of poses, weights, rest shape on all frames
FIRST_STEPS = 3  # Gauss-Newton steps from the free bones' rotations
FINAL_STEPS = 1
FAR_STEPS = 10  # from the most similar key frame's pose, which in long or joined sequences may be far away
MOMENTUM = 0.7  # as in free_bones
FIRST_PRIOR, LAST_PRIOR = 1e-3, 1e-5  # pull of the joints to their prior, loosened from round to round
FAR = 1e-5  # squared diagonals per frame and weight: what a bone pays for skin far from its own
NOISE = 5e-4  # diagonals: motion explained better than this is evidence, and the joints' prior counts for less
STRETCH_GAIN = 0.03  # a bone may stretch when that could lower the squared error by this share
STRETCH_SHARE = 1 / 8  # of the bones, at most, may stretch


@dataclass(frozen=True, eq=False)
class MotionFit:
    """Rig of the welded mesh in the trajectories' own units.

    weights (N,B); motion (F,B,4,4), rest pose to frame f; joints (B,3); parents (B,), -1 for a root, parents first;
    rest (N,3); rmse: fraction of the diagonal over the user's vertices; located: bones with keyed location, the roots
    among them. Without a hierarchy all parents are -1 and the joints are the bones' weight centroids.
    """

    weights: np.ndarray
    motion: np.ndarray
    joints: np.ndarray
    parents: np.ndarray
    rest: np.ndarray
    rmse: float
    located: tuple[int, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Setting:
    """What is solved, and what may change."""

    problem: Problem
    counts: torch.Tensor  # (N,) vertices of the user's mesh at each
    key: Problem  # the key frames alone
    frames: torch.Tensor  # (K,) which these are
    nearest: torch.Tensor  # (F,) most similar key frame of every frame
    influences: int = 4
    rest_correction: bool = True
    stretch: bool = False
    held: torch.Tensor | None = None  # (B,) bones whose weights stay; None for none

    def error(self, M, W, u) -> float:
        """RMSE over the vertices of the user's mesh, as a fraction of the diagonal."""
        squared = self.counts @ vertex_errors(self.problem, M, W, u) / (self.problem.frames * self.counts.sum())
        return float(squared.sqrt())


@dataclass(frozen=True, eq=False)
class State:
    """A skeleton at work: its pose in the key frames, weights (N,B), rest shape (N,3)."""

    pose: Pose
    W: torch.Tensor
    u: torch.Tensor


def alternate(
    setting: Setting, state: State, tick, *, priors=None, last_prior: float = LAST_PRIOR, rounds: int = ROUNDS
) -> State:
    """Solve a skeleton on the key frames, from where it is.

    With `priors` (B,3) joints are solved, too, near them, in the end with the pull `last_prior`; without, they stay
    where they are. `tick(share)` is called before every round.
    """
    problem, W, u = setting.key, state.W, state.u
    A, Q = moments(problem, W, u)
    pose = refine_pose(state.pose, A, Q, steps=FIRST_STEPS)
    last = None
    for round_ in range(rounds):
        tick(round_ / rounds)
        pull = None
        if priors is not None:
            prior = FIRST_PRIOR * (last_prior / FIRST_PRIOR) ** (round_ / (rounds - 1))
            noise = min(1.0, (rmse(problem, bone_matrices(pose), A, Q) / NOISE) ** 2)
            pull = joint_prior_strength(pose, A, priors, prior * noise)
        pose = refine_pose(pose, A, Q, steps=1, joints=pull, priors=priors)
        M = bone_matrices(pose)
        ahead = M if last is None else M + MOMENTUM * (M - last)
        last = M
        W, u = skin(setting, problem, ahead, W, u)
        A, Q = moments(problem, W, u)
        if setting.stretch and round_ == rounds // 2:
            pose = replace(pose, located=(*pose.located, *_bones_to_stretch(problem, pose, A, Q)))
    return State(pose, W, u)


def finish(setting: Setting, state: State, tick) -> MotionFit:
    """The final rounds on all frames; the joints stay."""
    problem, W, u = setting.problem, state.W, state.u
    pose = at_poses(state.pose, setting.nearest)
    far = problem.frames > setting.key.frames
    for round_ in range(FINAL_ROUNDS):
        tick(round_ / FINAL_ROUNDS)
        steps = FAR_STEPS if far and round_ == 0 else FINAL_STEPS
        pose = refine_pose(pose, *moments(problem, W, u), steps=steps)
        M = bone_matrices(pose)
        W, u = skin(setting, problem, M, W, u)
    return to_numpy(M, W, u, pose.c, np.asarray(pose.parents), setting.error(M, W, u), pose.located)


def go_on(setting: Setting, fit: MotionFit, tick, rounds: int) -> MotionFit:
    """A finished fit, in the solver's units, after more rounds in which its joints stay, where these gain anything."""
    M, W, u, joints = (
        torch.as_tensor(one, device=setting.problem.device)
        for one in (fit.motion[:, :, :3], fit.weights, fit.rest, fit.joints)
    )
    state = State(start_pose(M[setting.frames], joints, fit.parents, located=fit.located), W, u)
    setting = replace(setting, stretch=False)  # the bones that stretch are chosen
    state = alternate(setting, state, lambda share: tick(0.9 * share), rounds=rounds)
    longer = finish(setting, state, lambda share: tick(0.9 + 0.1 * share))
    return longer if longer.rmse < fit.rmse else fit


def skin(setting: Setting, problem: Problem, M, W, u):
    """Weights (N,B) and rest shape (N,3) for given poses M (F,B,3,4), from the ones before."""
    errors = bone_errors(problem, M, u)
    if setting.held is None:
        W = solve_weights(problem, errors, u, W, setting.influences, far=FAR)
    else:
        W = solve_free_weights(problem, M, u, W, setting.held, setting.influences, far=FAR)
    return W, correct_rest_shape(problem, errors, W) if setting.rest_correction else u


def _bones_to_stretch(problem: Problem, pose, A, Q) -> tuple[int, ...]:
    """The few bones whose own translation would explain most of what is left."""
    gains = stretch_gains(pose, A, Q)
    left = rmse(problem, bone_matrices(pose), A, Q) ** 2 * problem.frames * problem.vertices
    most = max(1, int(len(gains) * STRETCH_SHARE))
    chosen = torch.argsort(gains, descending=True, stable=True)[:most].tolist()
    return tuple(sorted(b for b in chosen if float(gains[b]) > STRETCH_GAIN * left))


def to_numpy(M, W, u, joints, parents, error: float, located) -> MotionFit:
    """The fit in the solver's units, from its tensors."""
    frames, bones = M.shape[:2]
    motion = np.zeros((frames, bones, 4, 4))
    motion[..., :3, :] = M.cpu().numpy()
    motion[..., 3, 3] = 1
    return MotionFit(W.cpu().numpy(), motion, joints.cpu().numpy(), parents, u.cpu().numpy(), error, tuple(located))


def in_scene_units(fit: MotionFit, centre, scale: float) -> MotionFit:
    """The same fit in the trajectories' units: the solver's are centred at `centre` (3,) and divided by `scale`."""
    motion = fit.motion.copy()
    motion[..., :3, 3] = motion[..., :3, 3] * scale + centre - motion[..., :3, :3] @ centre
    return replace(fit, motion=motion, joints=fit.joints * scale + centre, rest=fit.rest * scale + centre)


def in_solver_units(fit: MotionFit, centre, scale: float) -> MotionFit:
    """What in_scene_units was made from."""
    return in_scene_units(fit, -np.asarray(centre) / scale, 1 / scale)
