"""What the motion says about a skeleton that something else proposed: joints to move, to merge, to add.

Every change has to pass gates, because a lower error does not mean better joints: weights absorb wrong joints, and
joints that are freely solved run away while the error falls. A joint moves only where both its bones carry skin, turn
far enough against each other, the move is small and stays inside the mesh, and frames that were not used for it are
explained better. A joint without evidence stays if whoever proposed it was sure of it; limbs that this clip keeps
still may move in the next. A bone is added where a connected patch of skin moves as no bone explains.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from ..skeletons import rotation_ranges
from .alternate import ROUNDS, Setting, State, alternate
from .free_bones import refit_transforms, rigid_motion, vertex_errors
from .hierarchy import at_poses, bone_matrices, refine_pose
from .joints import fit_joints
from .problem import at_frames, bone_errors, energy, moments

TURN = np.radians(15.0)  # largest turn of a joint's two bones against each other from which its place can be told
SUPPORT = 3.0  # vertices, as a sum of squared weights, that each of the two bones carries at least
FARTHEST, NEAREST = 0.05, 1e-3  # diagonals: a longer move is no correction, a shorter one is not worth it
PAYS = 0.995  # of the squared error in the left-out frames: a move must bring it below this share
TRIAL_STEPS = 2  # Gauss-Newton steps that each alternative gets in the left-out frames
SWEEPS = 4  # over the free bones, whose motions tell where joints are
STILL = np.radians(5.0)  # a joint that turns less against its parent was not shown by the clip
SURE = 0.5  # confidence from which a joint without evidence stays
RISE = 1.05  # error that merging may cost, as a factor
INVISIBLE = 1e-4  # diagonals: no one sees such an error
UNEXPLAINED = 3.0  # times the median error of the vertices: there a patch may need a bone of its own
ANYWHERE = 1.0  # the same where the whole skeleton may be too poor
CORE = 0.5  # of the largest error: the patch is what is explained worst, not all that suffers with it
LEAST_PATCH = 8  # vertices of a patch
MOST_NEW = 8  # bones
MORE = 0.5  # times the bones of a skeleton that is to stay: so many may come where that is more than MOST_NEW
ROUNDS_AFTER = 5  # of poses and weights after a change of the skeleton


def correct(
    setting: Setting, state: State, confidence, inside, tick, *, same_count: bool = False, enough: float | None = None
) -> tuple[State, np.ndarray]:
    """The skeleton after all that the motion has to say, and which of the given joints each is (J,), -1 for new ones.

    confidence (B,) of the joints, NaN where unknown, which counts as none; `inside(points)` (K,) tells which of some
    places (K,3) in the solver's units lie inside the mesh; `tick(share)` is called between the steps. With `same_count`
    joints only move; `enough` as in add_bones.
    """
    origin = np.arange(len(state.pose.parents))
    tick(0.0)
    state = move_joints(setting, state, inside)
    if same_count:
        return state, origin
    tick(0.3)
    state, kept = merge_still_joints(setting, state, confidence)
    origin = origin[kept]
    tick(0.5)
    state = add_bones(setting, state, lambda share: tick(0.5 + 0.5 * share), enough)
    return state, np.concatenate([origin, np.full(len(state.pose.parents) - len(origin), -1)])


# ---- joints that move


def move_joints(setting: Setting, state: State, inside) -> State:
    """The state with the joints moved that pass all gates; the other half of the key frames judges each move."""
    problem, pose = setting.key, state.pose
    frames = torch.arange(problem.frames, device=problem.device)
    if problem.frames < 4:
        return state
    told, judging = frames[::2], frames[1::2]
    free = refit_transforms(bone_matrices(pose), *moments(problem, state.W, state.u), SWEEPS)
    gram = bone_errors(at_frames(problem, told), free[told], state.u).gram.cpu().numpy()
    child = np.array([b for b, p in enumerate(pose.parents) if p >= 0], dtype=int)
    parent = np.array(pose.parents)[child]
    places = pose.c.cpu().numpy()
    proposed, _ = fit_joints(gram, parent, child, places[child])
    distance = np.linalg.norm(proposed - places[child], axis=1)
    mass = state.W.square().sum(0).cpu().numpy()
    turn = rotation_ranges(free[..., :3].cpu().numpy(), pose.parents, 0)[child]
    passes = (turn > TURN) & (distance > NEAREST) & (distance < FARTHEST)
    passes &= (mass[child] > SUPPORT) & (mass[parent] > SUPPORT)
    passes[passes] = inside(proposed[passes])
    A, Q = moments(at_frames(problem, judging), state.W, state.u)
    moved = at_poses(pose, judging)
    constant = float(problem.X[judging].square().sum())

    def judged(places):
        trial = refine_pose(replace(moved, c=places), A, Q, steps=TRIAL_STEPS)
        return float(energy(bone_matrices(trial), A, Q)) + constant

    c, best = pose.c, judged(pose.c)
    for k in np.flatnonzero(passes)[np.argsort(-turn[passes], kind="stable")]:
        trial = c.clone()
        trial[child[k]] = torch.as_tensor(proposed[k], dtype=c.dtype, device=c.device)
        value = judged(trial)
        if value < PAYS * best:
            c, best = trial, value
    if c is pose.c:
        return state
    return alternate(setting, replace(state, pose=replace(pose, c=c)), _silent, rounds=ROUNDS_AFTER)


# ---- joints without evidence


def merge_still_joints(setting: Setting, state: State, confidence) -> tuple[State, np.ndarray]:
    """The state without the joints that neither the motion nor the network vouches for, and which stay.

    Their skin and children go to their parents; where the error rises by more than RISE, all stay.
    """
    pose = state.pose
    turn = rotation_ranges(pose.R.cpu().numpy(), pose.parents, 0)
    merged = (turn < STILL) & ~(np.nan_to_num(confidence) >= SURE) & (np.asarray(pose.parents) >= 0)
    kept = np.flatnonzero(~merged)
    if len(kept) in (len(turn), 1):
        return state, np.arange(len(turn))
    stands = np.arange(len(turn))  # the joint that each has become; parents come first
    for b, p in enumerate(pose.parents):
        if merged[b]:
            stands[b] = stands[p]
    number = np.full(len(turn), -1)
    number[kept] = np.arange(len(kept))
    W = torch.zeros_like(state.W)
    W.index_add_(1, torch.as_tensor(stands, device=W.device), state.W)
    parents = tuple(-1 if pose.parents[b] < 0 else int(number[stands[pose.parents[b]]]) for b in kept)
    located = tuple(int(number[b]) for b in pose.located if not merged[b])
    rows = torch.as_tensor(kept, device=W.device)
    fewer = replace(pose, R=pose.R[:, rows], c=pose.c[rows], s=pose.s[:, rows], parents=parents, located=located)
    trial = alternate(setting, State(fewer, W[:, rows], state.u), _silent, rounds=ROUNDS_AFTER)
    if _error(setting, trial) > RISE * _error(setting, state) + INVISIBLE:
        return state, np.arange(len(turn))
    return trial, kept


# ---- bones that are missing


def add_bones(setting: Setting, state: State, tick, enough: float | None = None) -> State:
    """The state with bones for patches of skin that move unexplained, one at a time, as long as each pays.

    One with n bones in place of n - 1 has to bring the error below (n - 1) / n of what it was. Where the skeleton
    beneath is to stay whatever that costs, `enough` is the error to reach, as a fraction of the diagonal: bones come
    until it is reached as long as each lowers it, and where it is not, only those stay that pay together.
    """
    if enough is None:
        most, unexplained, rounds = MOST_NEW, UNEXPLAINED, ROUNDS_AFTER
    else:
        most, unexplained, rounds = max(MOST_NEW, round(MORE * len(state.pose.parents))), ANYWHERE, ROUNDS
    error = _error(setting, state)
    paying, least = state, error * len(state.pose.parents)
    for attempt in range(most):
        tick(attempt / most)
        patch = None if enough is not None and error <= enough else _worst_patch(setting, state, unexplained)
        if patch is None:
            break
        trial = alternate(setting, _with_bone(setting, state, patch), _silent, rounds=rounds)
        bones, trial_error = len(trial.pose.parents), _error(setting, trial)
        pays = bones * trial_error <= (bones - 1) * error
        if not pays and (enough is None or trial_error >= error):
            break
        state, error = trial, trial_error
        if bones * error <= least:
            paying, least = state, bones * error
    return state if enough is not None and error <= enough else paying


def _worst_patch(setting: Setting, state: State, unexplained: float):
    """Vertices (K,) of the connected patch with most squared error among the worst explained ones; None if none is.

    unexplained: times the median error of the vertices that each of them has at least.
    """
    problem = setting.key
    error = vertex_errors(problem, bone_matrices(state.pose), state.W, state.u).clamp_min(0)
    bad = error > torch.maximum(unexplained**2 * error.median().clamp_min(1e-16), CORE**2 * error.max())
    label = torch.where(bad, torch.arange(problem.vertices, device=error.device), -1)
    rows, columns = _edges(problem)
    linked = bad[rows] & bad[columns]
    rows, columns = rows[linked], columns[linked]
    while True:  # the largest number among connected vertices spreads
        spread = label.scatter_reduce(0, rows, label[columns], "amax")
        if bool((spread == label).all()):
            break
        label = spread
    total = torch.zeros_like(error).index_add_(0, label[bad], error[bad])
    size = torch.bincount(label[bad], minlength=problem.vertices)
    total[size < LEAST_PATCH] = 0
    worst = int(total.argmax())
    return None if float(total[worst]) <= 0 else torch.nonzero(label == worst)[:, 0]


def _edges(problem):
    """Both directions (E,), (E,) of the mesh's edges."""
    coo = problem.neighbours.to_sparse_coo().coalesce()
    return coo.indices()


def _with_bone(setting: Setting, state: State, patch) -> State:
    """The state with one more bone, which takes a patch of vertices (K,) and hangs from the bone that moved most of it.

    The joint lies where the motions of both agree, near the patch's border.
    """
    problem, pose, W, u = setting.key, state.pose, state.W, state.u
    parent = int(W[patch].sum(0).argmax())
    M = rigid_motion(problem, patch, u)
    inside = torch.zeros(problem.vertices, dtype=torch.bool, device=W.device)
    inside[patch] = True
    rows, columns = _edges(problem)
    border = torch.unique(rows[inside[rows] & ~inside[columns]])
    prior = u[border if len(border) else patch].mean(0)
    both = torch.stack([bone_matrices(pose)[:, parent], M], dim=1)
    gram = bone_errors(problem, both, u).gram.cpu().numpy()
    joint, _ = fit_joints(gram, np.array([0]), np.array([1]), prior.cpu().numpy()[None])
    joint = torch.as_tensor(joint[0], dtype=u.dtype, device=u.device)
    joint = joint if float((joint - prior).norm()) < FARTHEST else prior
    W = torch.cat([W, torch.zeros_like(W[:, :1])], dim=1)
    W[patch] = 0
    W[patch, -1] = 1
    grown = replace(
        pose,
        R=torch.cat([pose.R, M[:, None, :, :3]], dim=1),
        c=torch.cat([pose.c, joint[None]]),
        s=torch.cat([pose.s, torch.zeros_like(pose.s[:, :1])], dim=1),
        parents=(*pose.parents, parent),
    )
    return State(grown, W, u)


# ---- limbs that were not seen


def keep_still_weights(weights, start, motion_range, parents, influences: int) -> np.ndarray:
    """Weights (N,J) in which joints that never turn against each other share their skin as in `start` (N,J).

    What the motion cannot tell apart is the network's to divide: the sum over each group of joints that move as one
    stays. motion_range (J,) radians.
    """
    group = np.arange(len(parents))
    for j, p in enumerate(parents):
        if p >= 0 and motion_range[j] < STILL:
            group[j] = group[p]
    weights = np.array(weights)
    for one in np.unique(group):
        members = np.flatnonzero(group == one)
        if len(members) < 2:
            continue
        share = start[:, members]
        total = share.sum(1, keepdims=True)
        told = total[:, 0] > 1e-3
        sums = weights[:, members].sum(1, keepdims=True)
        weights[np.ix_(told, members)] = (sums * share / np.maximum(total, 1e-3))[told]
    if weights.shape[1] > influences:
        least = np.partition(weights, -influences, axis=1)[:, -influences, None]
        weights = np.where(weights >= least, weights, 0)
    return weights / weights.sum(1, keepdims=True)


def _error(setting: Setting, state: State) -> float:
    """RMSE in the key frames, as a fraction of the diagonal."""
    squared = vertex_errors(setting.key, bone_matrices(state.pose), state.W, state.u).mean() / setting.key.frames
    return float(squared.clamp_min(0).sqrt())


def _silent(_share):
    """Short rounds report no progress of their own."""
