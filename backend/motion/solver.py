"""The motion solver: parts, free bones, skeleton, poses under the skeleton; how many joints, and where the time goes.

trajectories -> parts -> free bones -> tree of joints -> hierarchical refit (poses, joints, weights, rest shape)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import no_progress
from .free_bones import correct_rest_shape, fit_free_bones, vertex_errors
from .hierarchy import at_poses, bone_matrices, joint_prior_strength, refine_pose, start_pose, stretch_gains
from .joints import connect_bones
from .parts import rigid_fits, split_into_parts
from .problem import Problem, at_frames, bone_errors, diverse_frames, make_problem, moments, rmse
from .weights import solve_weights

KEY_FRAMES = 48  # that differ most tell the skeleton and nearly the weights; the others join in the final rounds
PART_FRAMES = 24  # of them are enough to find the rigid parts
FREE_ITERATIONS = 6  # with momentum; more lowers the free bones' error but hardly the finished rig's
ROUNDS = 11  # of poses and joints, weights, rest shape on the key frames
FINAL_ROUNDS = 2  # of poses, weights, rest shape on all frames
FIRST_STEPS = 3  # Gauss-Newton steps from the free bones' rotations
FINAL_STEPS = 1
MOMENTUM = 0.7  # as in free_bones
FIRST_PRIOR, LAST_PRIOR = 1e-3, 1e-5  # pull of the joints to their prior, loosened from round to round
NOISE = 5e-4  # diagonals: motion explained better than this is evidence, and the joints' prior counts for less
STRETCH_GAIN = 0.03  # a bone may stretch when that could lower the squared error by this share
STRETCH_SHARE = 1 / 8  # of the bones, at most, may stretch
PARTS_PER_TOLERANCE = 4.5  # rigid parts with this error become a skinned hierarchy within the tolerance, by experience
TOLERANCE_MARGIN = 0.99  # aim this far below the tolerance: the rig is rounded to float32
ATTEMPTS = 6  # numbers of joints that are tried
GROWTH, LEAST_GAIN = 1.4, 0.9  # so many times the joints must bring the error below this share, else they do not pay
MOST_JOINTS = 128  # found automatically; a rig with more is no longer one that a person can use


@dataclass(frozen=True, eq=False)
class MotionFit:
    """Rig of the welded mesh in the trajectories' own units.

    weights (N,B); motion (F,B,4,4), rest pose to frame f; joints (B,3); parents (B,), -1 for a root, parents first;
    rest (N,3); rmse: fraction of the diagonal over the user's vertices; stretching: bones with keyed location.
    Without a hierarchy all parents are -1 and the joints are the bones' weight centroids.
    """

    weights: np.ndarray
    motion: np.ndarray
    joints: np.ndarray
    parents: np.ndarray
    rest: np.ndarray
    rmse: float
    stretching: tuple[int, ...] = ()
    warnings: tuple[str, ...] = ()


def solve_motion(
    trajectories,
    edges,
    anchor: int,
    *,
    counts=None,
    joints: int | None = None,
    tolerance: float = 0.1,
    influences: int = 4,
    rest_correction: bool = True,
    stretch: bool = False,
    hierarchy: bool = True,
    iterations: int = FREE_ITERATIONS,
    device: str = "cpu",
    progress=no_progress,
) -> MotionFit:
    """Explain trajectories (F,N,3) by skinned bones on a connected graph `edges` (E,2); rest pose near frame `anchor`.

    `counts` (N,) says how many vertices of the user's mesh lie at each; only the error uses it, so that seams change
    nothing else.
    With `joints` None their number is found: the smallest tried that meets `tolerance` (per cent of the diagonal), or
    the last that still paid. With `hierarchy` False every bone has its own rigid motion per frame.
    """
    problem, centre, scale = make_problem(trajectories, edges, anchor, device)
    key = few = problem
    nearest = None
    if hierarchy:
        frames, nearest = diverse_frames(problem, anchor, KEY_FRAMES)
        key, few = at_frames(problem, frames), at_frames(problem, frames[:PART_FRAMES])
    counts = torch.ones(problem.vertices) if counts is None else torch.as_tensor(counts)
    solve = _Solve(
        problem, counts.to(problem.X), key, few, nearest, influences, rest_correction, stretch, hierarchy, iterations
    )
    if joints is not None:
        fit = solve.run(joints, progress)
        warnings = ()
        if len(fit.parents) < joints:
            warnings = (
                f"The motion holds only {len(fit.parents)} parts that move differently, so the rig has "
                f"{len(fit.parents)} joints instead of the {joints} asked for.",
            )
    else:
        fit, warnings = _find_joint_count(solve, tolerance / 100, progress)
    return replace(_in_scene_units(fit, centre, scale), warnings=warnings)


@dataclass(frozen=True, eq=False)
class _Solve:
    """One way of solving, to be run with several numbers of bones."""

    problem: Problem
    counts: torch.Tensor  # (N,) vertices of the user's mesh at each
    key: Problem  # the key frames alone
    few: Problem  # the first of the key frames
    nearest: torch.Tensor | None  # (F,) most similar key frame of every frame
    influences: int
    rest_correction: bool
    stretch: bool
    hierarchy: bool
    iterations: int

    def run(self, bones: int, progress) -> MotionFit:
        problem = self.key
        progress(0.0, "Finding rigid parts")
        labels, parts = split_into_parts(self.few, bones)
        M = rigid_fits(problem, labels, parts.shape[1])
        W = torch.nn.functional.one_hot(labels, M.shape[1]).to(M.dtype)
        share = 0.4 if self.hierarchy else 0.9
        M, W, u = fit_free_bones(
            problem,
            M,
            W,
            self.influences,
            iterations=self.iterations,
            rest_correction=self.rest_correction and not self.hierarchy,
            tick=lambda done: progress(0.1 + (share - 0.1) * done, "Fitting bones"),
        )
        used = torch.nonzero(W.sum(0) > 0)[:, 0]
        M, W = M[:, used], W[:, used]
        if not self.hierarchy:
            centroids = (W.square().T @ u) / W.square().sum(0)[:, None]
            return _to_numpy(M, W, u, centroids, np.full(M.shape[1], -1), self._error(M, W, u), ())
        return self._fit_skeleton(M, W, u, lambda done: progress(share + (1 - share) * done, "Fitting the skeleton"))

    def _fit_skeleton(self, M, W, u, tick) -> MotionFit:
        problem = self.key
        tree = connect_bones(problem, M, W, u)
        order = torch.as_tensor(tree.order, device=W.device)
        W = W[:, order]
        priors = torch.as_tensor(tree.priors, device=W.device)
        A, Q = moments(problem, W, u)
        pose = refine_pose(start_pose(M[:, order], tree.joints, tree.parents, priors), A, Q, steps=FIRST_STEPS)
        last, stretching = None, ()
        for round_ in range(ROUNDS):
            tick(round_ / (ROUNDS + FINAL_ROUNDS))
            prior = FIRST_PRIOR * (LAST_PRIOR / FIRST_PRIOR) ** (round_ / (ROUNDS - 1))
            noise = min(1.0, (rmse(problem, bone_matrices(pose), A, Q) / NOISE) ** 2)
            pull = joint_prior_strength(pose, A, priors, prior * noise)
            pose = refine_pose(pose, A, Q, steps=1, stretching=stretching, joints=pull, priors=priors)
            M = bone_matrices(pose)
            ahead = M if last is None else M + MOMENTUM * (M - last)
            last = M
            W, u = self._skin(problem, ahead, W, u)
            A, Q = moments(problem, W, u)
            if self.stretch and round_ == ROUNDS // 2:
                stretching = _bones_to_stretch(problem, pose, A, Q)
        problem = self.problem
        pose = at_poses(pose, self.nearest)
        for round_ in range(FINAL_ROUNDS):
            tick((ROUNDS + round_) / (ROUNDS + FINAL_ROUNDS))
            pose = refine_pose(pose, *moments(problem, W, u), steps=FINAL_STEPS, stretching=stretching)
            M = bone_matrices(pose)
            W, u = self._skin(problem, M, W, u)
        return _to_numpy(M, W, u, pose.c, np.asarray(pose.parents), self._error(M, W, u), stretching)

    def _error(self, M, W, u) -> float:
        """RMSE over the vertices of the user's mesh, as a fraction of the diagonal."""
        squared = self.counts @ vertex_errors(self.problem, M, W, u) / (self.problem.frames * self.counts.sum())
        return float(squared.sqrt())

    def _skin(self, problem: Problem, M, W, u):
        """Weights and rest shape for given poses."""
        errors = bone_errors(problem, M, u)
        W = solve_weights(problem, errors, u, W, self.influences)
        return W, correct_rest_shape(problem, errors, W) if self.rest_correction else u


def _bones_to_stretch(problem: Problem, pose, A, Q) -> tuple[int, ...]:
    """The few bones whose own translation would explain most of what is left."""
    gains = stretch_gains(pose, A, Q)
    left = rmse(problem, bone_matrices(pose), A, Q) ** 2 * problem.frames * problem.vertices
    most = max(1, int(len(gains) * STRETCH_SHARE))
    chosen = torch.argsort(gains, descending=True, stable=True)[:most].tolist()
    return tuple(sorted(b for b in chosen if float(gains[b]) > STRETCH_GAIN * left))


def _find_joint_count(solve: _Solve, tolerance: float, progress):
    """Smallest number of joints among a few well-chosen ones whose rig meets the tolerance; (fit, warnings)."""
    aim = tolerance * TOLERANCE_MARGIN
    most = max(1, min(MOST_JOINTS, solve.problem.vertices // 4))
    progress(0.0, "Counting joints")
    labels, _ = split_into_parts(solve.few, most, enough=PARTS_PER_TOLERANCE * tolerance)
    bones = int(labels.max()) + 1
    tried: dict[int, MotionFit] = {}
    for attempt in range(ATTEMPTS):
        fit = solve.run(
            bones,
            lambda share, text, a=attempt, b=bones: progress((a + share) / ATTEMPTS, f"{text} ({b} joints)"),
        )
        tried[bones] = fit
        good = min((b for b, f in tried.items() if f.rmse <= aim), default=None)
        bad = max((b for b, f in tried.items() if f.rmse > aim and (good is None or b < good)), default=None)
        if good is None:
            fewer = [f.rmse for b, f in tried.items() if b * GROWTH <= bones]
            no_longer_pays = bool(fewer) and fit.rmse > LEAST_GAIN * min(fewer)
            if no_longer_pays or bones >= most or len(fit.parents) < bones:
                break
            bones = min(most, max(bones + 1, round(bones * min(2.0, (fit.rmse / aim) ** 0.8 * 1.05))))
        elif bad is None:
            if good <= 2 or tried[good].rmse > 0.8 * aim:
                break
            bones = max(2, round(good * max(0.6, (tried[good].rmse / aim) ** 0.8)))
        else:
            if good - bad <= max(1, good // 8):
                break
            bones = (good + bad) // 2
        if bones in tried:
            break
    if good is not None:
        return tried[good], ()
    best = min(tried.values(), key=lambda f: f.rmse)
    warning = (
        f"The rig reaches {100 * best.rmse:.3g} % instead of the tolerance of {100 * tolerance:.2g} %: more joints no "
        "longer pay (noise, quantised positions or stretching that joint rotations cannot follow); raise --joints or "
        "the tolerance, or allow stretch."
    )
    return best, (warning,)


def _to_numpy(M, W, u, joints, parents, error, stretching) -> MotionFit:
    frames, bones = M.shape[:2]
    motion = np.zeros((frames, bones, 4, 4))
    motion[..., :3, :] = M.cpu().numpy()
    motion[..., 3, 3] = 1
    return MotionFit(W.cpu().numpy(), motion, joints.cpu().numpy(), parents, u.cpu().numpy(), error, stretching)


def _in_scene_units(fit: MotionFit, centre, scale: float) -> MotionFit:
    motion = fit.motion.copy()
    motion[..., :3, 3] = motion[..., :3, 3] * scale + centre - motion[..., :3, :3] @ centre
    return replace(fit, motion=motion, joints=fit.joints * scale + centre, rest=fit.rest * scale + centre)
