"""The motion solver: parts, free bones, skeleton, poses under the skeleton; how many joints, and where the time goes.

trajectories -> parts -> free bones -> tree of joints -> hierarchical refit (poses, joints, weights, rest shape)
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import no_progress
from .alternate import LAST_PRIOR, MotionFit, Setting, State, alternate, finish, in_scene_units, to_numpy
from .free_bones import fit_free_bones
from .hierarchy import start_pose
from .joints import connect_bones
from .noise import noise_level
from .parts import living_parts, rigid_fits, split_into_parts
from .problem import Problem, at_frames, diverse_frames, make_problem

KEY_FRAMES = 48  # that differ most tell the skeleton and nearly the weights; the others join in the final rounds
PART_FRAMES = 24  # of them are enough to find the rigid parts
FREE_ITERATIONS = 6  # with momentum; more lowers the free bones' error but hardly the finished rig's
PROPOSED_NEAR = 0.06  # diagonals: a proposed joint this near to where the skin expects one means the same joint
PROPOSED_PRIOR = 1e-4  # last pull to priors that a network has a say in; ten times the plain one
PARTS_PER_TOLERANCE = 4.5  # rigid parts with this error become a skinned hierarchy within the tolerance, by experience
TOLERANCE_MARGIN = 0.99  # aim this far below the tolerance: the rig is rounded to float32
NOISE_MARGIN = 1.05  # times the noise: no rig follows it, and one that tries has joints for nothing
NEAR_NOISE = 1.2  # times the noise: a rig with less error leaves little but the noise
ATTEMPTS = 6  # numbers of joints that are tried
GROWTH, LEAST_GAIN = 1.4, 0.9  # so many times the joints must bring the error below this share, else they do not pay
MOST_JOINTS = 128  # found automatically; a rig with more is no longer one that a person can use


@dataclass(frozen=True, eq=False)
class Hints:
    """What another skeleton tells the motion: where joints may be, and which vertices may move together.

    joints (K,3) in the trajectories' units, perhaps none; labels (N,) parts to start from, or None to find them from
    scratch.
    """

    joints: np.ndarray
    labels: np.ndarray | None = None


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
    hints: Hints | None = None,
    least: int = 2,
    device: str = "cpu",
    progress=no_progress,
) -> MotionFit:
    """Explain trajectories (F,N,3) by skinned bones on a connected graph `edges` (E,2); rest pose near frame `anchor`.

    `counts` (N,) says how many vertices of the user's mesh lie at each; only the error uses it, so that seams change
    nothing else.
    With `joints` None their number is found: the smallest tried from `least` on that meets `tolerance` (per cent of the
    diagonal) or, in noisy trajectories, the noise; or the last that still paid. Joints near those of the `hints` are
    drawn to them. With `hierarchy` False every bone has its own rigid motion per frame.
    """
    problem, centre, scale = make_problem(trajectories, edges, anchor, device)
    setting = make_setting(problem, anchor, counts, influences, rest_correction, stretch)
    key, few = (setting.key, at_frames(setting.key, slice(PART_FRAMES))) if hierarchy else (problem, problem)
    solve = _Solve(setting, key, few, hierarchy, iterations, *_in_solver_units(hints, few, centre, scale))
    if joints is not None:
        fit = solve.run(joints, progress)
        warnings = ()
        if len(fit.parents) < joints:
            warnings = (
                f"The motion holds only {len(fit.parents)} parts that move differently, so the rig has "
                f"{len(fit.parents)} joints instead of the {joints} asked for.",
            )
    else:
        noise = noise_level(problem)
        fit = _find_joint_count(solve, tolerance / 100, noise, least, progress)
        warnings = tolerance_warnings(fit.rmse, tolerance / 100, noise)
    return replace(in_scene_units(fit, centre, scale), warnings=warnings)


def make_setting(
    problem: Problem, anchor: int, counts=None, influences=4, rest_correction=True, stretch=False
) -> Setting:
    """What a fit of `problem` may change, with the key frames chosen; `counts` (N,) as in solve_motion."""
    frames, nearest = diverse_frames(problem, anchor, KEY_FRAMES)
    counts = torch.ones(problem.vertices) if counts is None else torch.as_tensor(counts)
    key = at_frames(problem, frames)
    return Setting(problem, counts.to(problem.X), key, frames, nearest, influences, rest_correction, stretch)


@dataclass(frozen=True, eq=False)
class _Solve:
    """One way of solving, to be run with several numbers of bones."""

    setting: Setting
    key: Problem  # the frames that the bones are found in
    few: Problem  # the first of them, for the parts
    hierarchy: bool
    iterations: int
    near: torch.Tensor | None = None  # (K,3) where joints are proposed
    labels: torch.Tensor | None = None  # (N,) parts that are proposed

    def run(self, bones: int, progress) -> MotionFit:
        setting, problem = self.setting, self.key
        progress(0.0, "Finding rigid parts")
        start = self.labels if self.labels is not None and int(self.labels.max()) < bones else None
        labels, parts = split_into_parts(self.few, bones, labels=start)
        M = rigid_fits(problem, labels, parts.shape[1])
        W = torch.nn.functional.one_hot(labels, M.shape[1]).to(M.dtype)
        share = 0.4 if self.hierarchy else 0.9
        M, W, u = fit_free_bones(
            problem,
            M,
            W,
            setting.influences,
            iterations=self.iterations,
            rest_correction=setting.rest_correction and not self.hierarchy,
            tick=lambda done: progress(0.1 + (share - 0.1) * done, "Fitting bones"),
        )
        used = torch.nonzero(W.sum(0) > 0)[:, 0]
        M, W = M[:, used], W[:, used]
        if not self.hierarchy:
            centroids = (W.square().T @ u) / W.square().sum(0)[:, None]
            bones = M.shape[1]
            return to_numpy(M, W, u, centroids, np.full(bones, -1), setting.error(M, W, u), range(bones))
        tree = connect_bones(problem, M, W, u)
        order = torch.as_tensor(tree.order, device=W.device)
        priors = self._drawn(torch.as_tensor(tree.priors, device=W.device))
        pose = start_pose(M[:, order], tree.joints, tree.parents, priors)
        state = alternate(
            setting,
            State(pose, W[:, order], u),
            lambda done: progress(share + (0.9 - share) * done, "Fitting the skeleton"),
            priors=priors,
            last_prior=LAST_PRIOR if self.near is None else PROPOSED_PRIOR,
        )
        return finish(setting, state, lambda done: progress(0.9 + 0.1 * done, "Fitting all frames"))

    def _drawn(self, priors):
        """Where joints are expected (B,3), those with a proposed joint nearby halfway to it."""
        if self.near is None:
            return priors
        distance, nearest = torch.cdist(priors, self.near).min(1)
        return torch.where((distance < PROPOSED_NEAR)[:, None], (priors + self.near[nearest]) / 2, priors)


def _in_solver_units(hints: Hints | None, few: Problem, centre, scale: float):
    """Proposed joints (K,3) and living parts (N,), or None where nothing is proposed."""
    if hints is None:
        return None, None
    near = None
    if len(hints.joints):
        near = torch.as_tensor((hints.joints - centre) / scale, dtype=few.rest.dtype, device=few.device)
    if hints.labels is None:
        return near, None
    return near, living_parts(few, torch.as_tensor(hints.labels, dtype=torch.long, device=few.device))


def tolerance_warnings(error: float, tolerance: float, noise: float) -> tuple[str, ...]:
    """What to say of a rig whose number of joints was found; all three as fractions of the diagonal."""
    if error <= tolerance:
        return ()
    if error <= NEAR_NOISE * noise:
        return (
            f"The vertices move at random by {100 * noise:.2g} % of the size (noise or quantised positions), so the "
            f"rig aims at that instead of the tolerance of {100 * tolerance:.2g} %.",
        )
    return (
        f"The rig reaches {100 * error:.3g} % instead of the tolerance of {100 * tolerance:.2g} %: more joints no "
        "longer pay (noise, quantised positions or stretching that joint rotations cannot follow); raise --joints or "
        "the tolerance, or allow stretch.",
    )


def _find_joint_count(solve: _Solve, tolerance: float, noise: float, least: int, progress) -> MotionFit:
    """The fit with the smallest number of joints among a few well-chosen ones whose rig meets the tolerance."""
    whole = max(tolerance * TOLERANCE_MARGIN, NOISE_MARGIN * noise)
    aim = math.sqrt(whole**2 - noise**2)  # what the skeleton may leave beside the noise
    most = max(1, min(MOST_JOINTS, solve.setting.problem.vertices // 4))
    progress(0.0, "Counting joints")
    labels, _ = split_into_parts(solve.few, most, enough=PARTS_PER_TOLERANCE * max(tolerance, whole))
    bones = max(int(labels.max()) + 1, min(least, most))
    tried: dict[int, MotionFit] = {}
    left: dict[int, float] = {}  # unexplained beside the noise, of each
    for attempt in range(ATTEMPTS):
        fit = solve.run(
            bones,
            lambda share, text, a=attempt, b=bones: progress((a + share) / ATTEMPTS, f"{text} ({b} joints)"),
        )
        tried[bones] = fit
        left[bones] = math.sqrt(max(fit.rmse**2 - noise**2, 0.0))
        good = min((b for b, error in left.items() if error <= aim), default=None)
        bad = max((b for b, error in left.items() if error > aim and (good is None or b < good)), default=None)
        if good is None:
            fewer = [error for b, error in left.items() if b * GROWTH <= bones]
            no_longer_pays = bool(fewer) and left[bones] > LEAST_GAIN * min(fewer)
            if no_longer_pays or bones >= most or len(fit.parents) < bones:
                break
            bones = min(most, max(bones + 1, round(bones * min(2.0, (left[bones] / aim) ** 0.8 * 1.05))))
        elif bad is None:
            if good <= least or left[good] > 0.8 * aim:
                break
            bones = max(least, round(good * max(0.6, (left[good] / aim) ** 0.8)))
        else:
            if good - bad <= max(1, good // 8):
                break
            bones = (good + bad) // 2
        if bones in tried:
            break
    return tried[good] if good is not None else min(tried.values(), key=lambda fit: fit.rmse)
