"""Near-rigid parts by residual-driven splitting: where every bone starts.

One part is split again and again where it explains its vertices worst; a vertex may only take a label found within two
rings of it, so that parts stay local on the (bridged) mesh.
"""

from __future__ import annotations

import torch

from .problem import Problem, bone_errors, homogeneous
from .procrustes import rotation_from_covariance

SMALLEST_PART = 3  # vertices; fewer do not determine a rotation
SPLIT_MINIMUM = 7  # a part needs this many vertices to be split in two parts that can live
ROUNDING = 1e-7  # diagonals: a part explained this well is rigid within the rounding of float32 caches
ROUNDS_PER_SPLIT = 5
SEED_SHARE = 0.1  # of a part's vertices seed the new one; less where that gave none that lived
STALLED_ROUNDS = 3  # rounds without a new part after which the motion holds no more parts


def rigid_fits(problem: Problem, labels, count: int):
    """Rigid motion (F,B,3,4) of every part from its vertices' trajectories, labels (N,)."""
    U = homogeneous(problem.rest)
    one_hot = torch.nn.functional.one_hot(labels, count).to(U.dtype)
    P = (one_hot[:, :, None] * U[:, None, :]).reshape(len(U), -1)
    Q = (problem.X.reshape(-1, len(U)) @ P).reshape(problem.frames, 3, count, 4).transpose(1, 2)
    sums = one_hot.T @ U  # (B,4): sum of rest positions, count
    size = sums[:, 3:].clamp_min(1)
    source, target = sums[:, :3] / size, Q[..., 3] / size
    rotation = rotation_from_covariance(Q[..., :3] - target[..., None] * sums[None, :, None, :3])
    shift = target - torch.einsum("fbij,bj->fbi", rotation, source)
    return torch.cat([rotation, shift[..., None]], dim=-1)


def _relabel(problem: Problem, alone, labels, count: int):
    """Best label among those within two rings."""
    near = torch.nn.functional.one_hot(labels, count).to(alone.dtype)
    for _ in range(2):
        near = near + problem.neighbours @ near
    return torch.where(near > 0, alone, torch.inf).argmin(1)


def living_parts(problem: Problem, labels):
    """Labels (N,) without gaps and without parts too small to live: their vertices go where they move alike."""
    size = torch.bincount(labels)
    alive = torch.nonzero(size >= SMALLEST_PART)[:, 0]
    number = torch.full_like(size, -1)
    number[alive] = torch.arange(len(alive), device=labels.device)
    M = rigid_fits(problem, labels, len(size))[:, alive]
    moves_alike = bone_errors(problem, M, problem.rest).alone.argmin(1)
    return torch.where(number[labels] >= 0, number[labels], moves_alike)


def split_into_parts(problem: Problem, wanted: int, enough: float = 0.0, labels=None):
    """Labels (N,) and rigid motions (F,B,3,4) of at most `wanted` parts.

    Stops early when the RMSE of the parts, as a fraction of the diagonal, is below `enough`, or when splitting no
    longer gives parts that survive. `labels` continues from an earlier split.
    """
    if labels is None:
        labels = torch.zeros(problem.vertices, dtype=torch.long, device=problem.device)
    count = int(labels.max()) + 1
    M = rigid_fits(problem, labels, count)
    alone = bone_errors(problem, M, problem.rest).alone
    stalled = 0
    while count < wanted and stalled < STALLED_ROUNDS:
        before = count
        error = alone.gather(1, labels[:, None])[:, 0].clamp_min(0)
        if float(error.sum()) <= problem.frames * problem.vertices * enough**2:
            break
        share = SEED_SHARE / 4**stalled
        labels, count = _split_worst(problem, labels, count, error, min(wanted - count, count), share)
        if count == before:
            break
        for _ in range(ROUNDS_PER_SPLIT):
            M = rigid_fits(problem, labels, count)
            labels = _relabel(problem, bone_errors(problem, M, problem.rest).alone, labels, count)
            size = torch.bincount(labels, minlength=count)
            if bool((size < SMALLEST_PART).any()):
                alive = torch.nonzero(size >= SMALLEST_PART)[:, 0]
                labels = bone_errors(problem, M[:, alive], problem.rest).alone.argmin(1)
                count = len(alive)
        M = rigid_fits(problem, labels, count)
        alone = bone_errors(problem, M, problem.rest).alone
        stalled = stalled + 1 if count <= before else 0
    return labels, M


def _split_worst(problem: Problem, labels, count: int, error, splits: int, share: float):
    """Give up to `splits` of the worst parts a second seed: the vertex that is both badly explained and far out."""
    total = torch.zeros(count, dtype=error.dtype, device=error.device).index_add_(0, labels, error)
    size = torch.bincount(labels, minlength=count)
    worth = (size >= SPLIT_MINIMUM) & (total > ROUNDING**2 * problem.frames * size)
    order = torch.argsort(total, descending=True, stable=True)
    order = [b for b in order.tolist() if bool(worth[b])][:splits]
    labels = labels.clone()
    for part in order:
        members = torch.nonzero(labels == part)[:, 0]
        points = problem.rest[members]
        score = error[members].sqrt() * (points - points.mean(0)).norm(dim=1)
        distance = (points - points[score.argmax()]).norm(dim=1)
        nearest = torch.argsort(distance, stable=True)[: max(SMALLEST_PART + 1, int(share * len(members)))]
        labels[members[nearest]] = count
        count += 1
    return labels, count
