"""The motion solver: parts, free bones, skeleton, poses under the skeleton; how many joints, and where the time goes.

trajectories -> parts -> free bones -> tree of joints -> hierarchical refit (poses, joints, weights, rest shape)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..errors import no_progress
from .alternate import MotionFit, Setting, alternate, in_scene_units, to_numpy
from .free_bones import fit_free_bones
from .hierarchy import start_pose
from .joints import connect_bones
from .parts import rigid_fits, split_into_parts
from .problem import Problem, at_frames, diverse_frames, make_problem

KEY_FRAMES = 48  # that differ most tell the skeleton and nearly the weights; the others join in the final rounds
PART_FRAMES = 24  # of them are enough to find the rigid parts
FREE_ITERATIONS = 6  # with momentum; more lowers the free bones' error but hardly the finished rig's
PARTS_PER_TOLERANCE = 4.5  # rigid parts with this error become a skinned hierarchy within the tolerance, by experience
TOLERANCE_MARGIN = 0.99  # aim this far below the tolerance: the rig is rounded to float32
ATTEMPTS = 6  # numbers of joints that are tried
GROWTH, LEAST_GAIN = 1.4, 0.9  # so many times the joints must bring the error below this share, else they do not pay
MOST_JOINTS = 128  # found automatically; a rig with more is no longer one that a person can use


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
    setting = make_setting(problem, anchor, counts, influences, rest_correction, stretch)
    if hierarchy:
        solve = _Solve(setting, setting.key, at_frames(setting.key, slice(PART_FRAMES)), True, iterations)
    else:
        solve = _Solve(setting, problem, problem, False, iterations)
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
    return replace(in_scene_units(fit, centre, scale), warnings=warnings)


def make_setting(
    problem: Problem, anchor: int, counts=None, influences=4, rest_correction=True, stretch=False
) -> Setting:
    """What a fit of `problem` may change, with the key frames chosen; `counts` (N,) as in solve_motion."""
    frames, nearest = diverse_frames(problem, anchor, KEY_FRAMES)
    counts = torch.ones(problem.vertices) if counts is None else torch.as_tensor(counts)
    key = at_frames(problem, frames)
    return Setting(problem, counts.to(problem.X), key, nearest, influences, rest_correction, stretch)


@dataclass(frozen=True, eq=False)
class _Solve:
    """One way of solving, to be run with several numbers of bones."""

    setting: Setting
    key: Problem  # the frames that the bones are found in
    few: Problem  # the first of them, for the parts
    hierarchy: bool
    iterations: int

    def run(self, bones: int, progress) -> MotionFit:
        setting, problem = self.setting, self.key
        progress(0.0, "Finding rigid parts")
        labels, parts = split_into_parts(self.few, bones)
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
        priors = torch.as_tensor(tree.priors, device=W.device)
        pose = start_pose(M[:, order], tree.joints, tree.parents, priors)
        return alternate(
            setting,
            pose,
            W[:, order],
            u,
            lambda done: progress(share + (1 - share) * done, "Fitting the skeleton"),
            priors=priors,
        )


def _find_joint_count(solve: _Solve, tolerance: float, progress):
    """Smallest number of joints among a few well-chosen ones whose rig meets the tolerance; (fit, warnings)."""
    aim = tolerance * TOLERANCE_MARGIN
    most = max(1, min(MOST_JOINTS, solve.setting.problem.vertices // 4))
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
