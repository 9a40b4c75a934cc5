"""One skeleton out of many: the shape is decoded in several views and at several temperatures, and the skeleton that
has least to do to become any of the others is taken (minimum Bayes risk; Kumar & Byrne 2004, for translations).

Greedy decoding commits itself with the first joint; what it then writes may be one of few unlucky continuations: a
spine without limbs, a tail repeated to the end. The likeliest of many skeletons is no better, because short ones are
likely. The risk is the chamfer distance between joints, so what most candidates agree on wins. The views are those
that training draws at random (quarter turns about the vertical, mirrored or not), so all are equally good to the
network; skeletons are taken back before they are compared.

Joints that lie closer to an earlier one than any limb is long are repetitions and are merged into it, unless the
caller asked for a number of joints. What is left moves to the mean of where the others have these joints, as far as
they have them: one skeleton says how joints hang together, all of them where each is.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from ..errors import no_progress
from .generate import FEWEST_JOINTS, GeneratedSkeleton, generate_each

TEMPERATURES = (0.0, 0.5, 0.5, 0.5, 0.5)  # in each of the views
SAME_PLACE = 0.03  # unit cube: joints nearer than this are one
MATCHED = 0.1  # unit cube: joints of two skeletons that lie farther apart are not the same one
ROUNDS = 3  # of matching and moving; more change nothing
AGREED = 0.05  # unit cube: two skeletons that have joints this near have the same joint, as in metrics.topology_f1


def consensus(model, points, *, joints: int | None = None, seed: int = 0, progress=no_progress) -> GeneratedSkeleton:
    """What all skeletons that were decoded for points (N,6), position in [-0.5, 0.5] and unit normal, agree on.

    confidence: the share of all decoded skeletons that have this joint. `joints`: that many exactly. The same `seed`
    gives the same skeleton. Raises SprigError for a number of joints that the network cannot make.
    """
    turns = views()
    every = torch.as_tensor(turns, dtype=points.dtype, device=points.device)
    seen = torch.cat([points[:, :3] @ every.mT, points[:, 3:] @ every.mT], dim=2)
    found = generate_each(model, seen, TEMPERATURES, joints=joints, seed=seed, progress=progress)
    candidates = [
        (one, (one.joints @ turn).astype(np.float32)) for turn, row in zip(turns, found, strict=True) for one in row
    ]
    places = [place for _, place in candidates]
    chosen, place = candidates[medoid(places)]
    parents = chosen.parents
    if joints is None:
        place, parents = merge_repeated(place, parents)
    place = averaged(place, places).astype(np.float32)
    agreement = np.mean([cdist(place, other).min(axis=1) < AGREED for other in places], axis=0, dtype=np.float32)
    agreement = np.maximum(agreement, np.float32(1 / len(places)))  # the one that it came from has it in any case
    return GeneratedSkeleton(place, parents, agreement, chosen.log_probability, chosen.cut, agreed=True)


def views() -> np.ndarray:
    """Rotations and reflections (8,3,3) of the views, the first of them the identity."""
    quarters = [np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1))]
    return np.stack([turn @ np.diag([mirror, 1, 1]) for turn in quarters for mirror in (1, -1)]).astype(np.float64)


def medoid(places: list) -> int:
    """Which of several sets of joints (J,3) has the least mean chamfer distance to all the others."""
    total = np.zeros(len(places))
    for a in range(len(places)):
        for b in range(a):
            apart = cdist(places[a], places[b])
            distance = apart.min(axis=0).mean() + apart.min(axis=1).mean()
            total[[a, b]] += distance
    return int(total.argmin())


def averaged(joints, places: list) -> np.ndarray:
    """Joints (J,3) float64, each at the mean of itself and its matches, at most one in each of the `places` (K,3)."""
    own = joints = np.asarray(joints, dtype=np.float64)
    for _ in range(ROUNDS):
        total, count = own.copy(), np.ones(len(own))
        for place in places:
            apart = np.minimum(cdist(joints, place), MATCHED)
            ours, theirs = linear_sum_assignment(apart)
            near = apart[ours, theirs] < MATCHED
            total[ours[near]] += place[theirs[near]]
            count[ours[near]] += 1
        joints = total / count[:, None]
    return joints


def merge_repeated(joints, parents, near: float = SAME_PLACE):
    """Joints (J,3) and parents (J,) without those that are nearer than `near` to an earlier one that stays.

    Their children go to that one. At least FEWEST_JOINTS stay, in their order.
    """
    spare = len(parents) - FEWEST_JOINTS
    keep, stands_for = [0], {-1: -1, 0: 0}  # joints that stay; which of them, by place in `keep`, is meant by a joint
    for joint in range(1, len(parents)):
        distance = np.linalg.norm(joints[keep] - joints[joint], axis=1)
        if distance.min() < near and spare > 0:
            stands_for[joint] = int(distance.argmin())
            spare -= 1
        else:
            stands_for[joint] = len(keep)
            keep.append(joint)
    return joints[keep], np.array([stands_for[parents[joint]] for joint in keep], dtype=np.int64)
