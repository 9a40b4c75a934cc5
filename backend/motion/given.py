"""A skeleton that is given, by a network or an artist: weights and poses from the motion, joints as they are.

Where the start weights say little, the poses that fit them say little, too: both are therefore solved in turn, and a
vertex may go to any bone that explains it better (Le & Deng 2014 refine their own skeletons in the same way).
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import torch

from ..errors import no_progress
from .alternate import ROUNDS, MotionFit, Setting, State, alternate, finish, in_scene_units, skin
from .hierarchy import bone_matrices, refine_pose, start_pose
from .parts import split_into_parts
from .poses import rigid_starts
from .problem import at_frames, make_problem, moments, rmse
from .solver import PART_FRAMES, make_setting

START_STEPS = 7  # Gauss-Newton steps from the start weights alone: the poses of long chains settle slowly
TRIAL_ROUNDS = 12  # after which the ways to begin are compared
FEW_FIRST = ((1, 4), (2, 3))  # influences and rounds of the way that begins with few
PARTS_PER_BONE = 2  # parts that the motion is split into, whole pieces of one bone rather than of two
WEIGHT_ROUNDS = 4  # of weights and rest shape for poses that stay


def fit_given(
    trajectories,
    edges,
    anchor: int,
    joints,
    parents,
    weights,
    *,
    rest=None,
    located=(),
    held=None,
    priors=None,
    counts=None,
    influences: int = 4,
    rest_correction: bool = True,
    rounds: int = ROUNDS,
    several_starts: bool = False,
    device: str = "cpu",
    progress=no_progress,
) -> MotionFit:
    """Weights and poses of a skeleton, joints (J,3) and parents (J,) parents first, for trajectories (F,N,3).

    `weights` (N,J) to start from. The rest shape, in which the joints are where they are, is frame `anchor` or `rest`
    (N,3). Every root moves; `located` bones have a location of their own as well. Bones of which `held` (J,) is true
    keep their weights, which may be none at all. several_starts: also begin with few influences, and from the rigid
    parts of the motion, and take what leads furthest. Other arguments as in solve_motion.
    """
    problem, centre, scale = make_problem(trajectories, edges, anchor, device, rest=rest)
    setting = _with_held(make_setting(problem, anchor, counts, influences, rest_correction), held)
    W = torch.as_tensor(np.asarray(weights), dtype=torch.float64, device=device)
    places = torch.as_tensor((np.asarray(joints) - centre) / scale, dtype=torch.float64, device=device)
    near = None if priors is None else torch.as_tensor((np.asarray(priors) - centre) / scale, device=device)
    start = partial(start_state, setting, places, parents, located=located)
    begun = 0.75 if several_starts else 0.0  # three dozen rounds of four
    if several_starts:
        state = _best_start(setting, W, start, lambda share: progress(begun * share, "Finding a good start"))
    else:
        state = start(W)
    state = alternate(
        setting,
        state,
        lambda share: progress(begun + (0.9 - begun) * share, "Fitting the skeleton"),
        priors=near,
        rounds=rounds,
    )
    fit = finish(setting, state, lambda share: progress(0.9 + 0.1 * share, "Fitting all frames"))
    return in_scene_units(fit, centre, scale)


def start_state(setting: Setting, joints, parents, W, located=()) -> State:
    """A skeleton, joints (J,3) in the solver's units, in the poses that its start weights W (N,J) alone tell."""
    pose = start_pose(rigid_starts(setting.key, W, parents), joints, parents, located=located)
    pose = refine_pose(pose, *moments(setting.key, W, setting.problem.rest), steps=START_STEPS)
    return State(pose, W, setting.problem.rest)


def _best_start(setting: Setting, W, start, tick) -> State:
    """The state after some rounds, begun in the way that explains most: from the start weights W (N,J), from the same
    with few influences at first, or from the rigid parts of the motion. start: makes a state of weights.
    """
    many = setting.influences
    few = [(influences, rounds) for influences, rounds in FEW_FIRST if influences < many]
    few.append((many, TRIAL_ROUNDS - sum(rounds for _, rounds in few)))
    plain = [(many, TRIAL_ROUNDS)]
    found = []
    for k, (weights, schedule) in enumerate(((W, plain), (W, few), (_rigid_weights(setting, W), plain))):
        tried, done = start(weights), 0
        for influences, rounds in schedule:
            tried = alternate(
                replace(setting, influences=influences),
                tried,
                lambda _, share=(k + done / TRIAL_ROUNDS) / 3: tick(share),
                rounds=rounds,
            )
            done += rounds
        left = rmse(setting.key, bone_matrices(tried.pose), *moments(setting.key, tried.W, tried.u))
        found.append((left, k, tried))
    return min(found, key=lambda one: one[:2])[2]


def _rigid_weights(setting: Setting, W):
    """Weights (N,J) that give every near-rigid part of the motion whole to the bone that has most of it in W.

    Where a mesh is made of rigid pieces, weights that blend them are a valley that rounds of weights and poses do not
    leave. Columns that are held stay.
    """
    labels, M = split_into_parts(at_frames(setting.key, slice(PART_FRAMES)), PARTS_PER_BONE * W.shape[1])
    part = torch.nn.functional.one_hot(labels, M.shape[1]).to(W.dtype)
    kept = torch.zeros_like(W) if setting.held is None else torch.where(setting.held, W, 0.0)
    most = part.T @ (W - kept)
    if setting.held is not None:
        most[:, setting.held] = -1
    whole = torch.nn.functional.one_hot(most.argmax(1)[labels], W.shape[1]).to(W.dtype)
    return kept + (1 - kept.sum(1, keepdim=True)) * whole


def fit_weights(
    trajectories,
    edges,
    anchor: int,
    motion,
    weights,
    *,
    rest=None,
    held=None,
    counts=None,
    influences: int = 4,
    rest_correction: bool = True,
    device: str = "cpu",
    progress=no_progress,
):
    """Weights (N,J) and rest shape (N,3) for bones whose motion (F,J,4,4), rest pose to frame f, is known.

    The motion may be any affine one. Other arguments as in fit_given.
    """
    problem, centre, scale = make_problem(trajectories, edges, anchor, device, rest=rest)
    setting = _with_held(make_setting(problem, anchor, counts, influences, rest_correction), held)
    M = torch.as_tensor(np.asarray(motion)[..., :3, :], dtype=torch.float64, device=device).clone()
    middle = torch.as_tensor(centre, dtype=torch.float64, device=device)
    M[..., 3] = (M[..., 3] + M[..., :3] @ middle - middle) / scale
    W = torch.as_tensor(np.asarray(weights), dtype=torch.float64, device=device)
    u = problem.rest
    for round_ in range(WEIGHT_ROUNDS):
        progress(round_ / WEIGHT_ROUNDS, "Fitting weights")
        W, u = skin(setting, problem, M, W, u)
    return W.cpu().numpy(), u.cpu().numpy() * scale + centre


def _with_held(setting: Setting, held) -> Setting:
    if held is None or not np.any(held):
        return setting
    return replace(setting, held=torch.as_tensor(np.asarray(held, dtype=bool), device=setting.problem.device))
