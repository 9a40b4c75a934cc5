"""Adjusting a rig by hand: joints to merge or split, joints made symmetric, and what fitting changed bones begins with.

The bones themselves are edited elsewhere; here is only what the motion and the mirror plane say about them.

Choices that a reader would question:
* A joint is worth merging where the motion does not show it, or where nearly no skin hangs on it and on all below it. A
  joint with little skin that carries a limb which turns stays: without it the limb would have to stretch.
* A bone is worth splitting where its own vertices are replayed clearly worse than the others, and where two rigid parts
  follow them better than the whole rig does, although these do not even blend. Where the surface stretches two parts do
  not help, and nothing is suggested.
* The plane of symmetry is that of the pairs themselves, wherever the character stands and looks.
* New bones begin with the skin that is nearer to them than to the bone they hang from; the fit goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .errors import SprigError, no_progress
from .given_skeleton import GivenSkeleton, moving_bones
from .kinematics import linear_blend_skinning
from .metrics import diagonal, rmse_per_frame
from .rig import Rig, Skeleton
from .sequence import MeshSequence
from .skeletons import joint_evidence

SUPPORT = 3.0  # vertices, as a sum of squared weights: what carries less is no bone of its own
ABOVE = 1.3  # times the RMSE of the other vertices: a bone whose own have more is replayed badly
VISIBLE = 2e-4  # diagonals: smaller errors are nobody's business
EXPLAINED = 0.85  # of the error that the rig leaves: two rigid parts have to leave less
LEAST_VERTICES = 16  # of a bone that is split
MOST_FRAMES = 48  # spread over the sequence, in which rigid parts are sought
PART_ROUNDS = 8  # of labels and rigid motions; they settle after a few
FARTHEST = 0.05  # diagonals: a joint that the parts' motions put farther from their border is put on it
SKEWED = 0.08  # of the skeleton's size: pairs that are farther from mirroring each other are in no symmetric pose
NEAR_PLANE = 0.06  # of the skeleton's size: what has no partner and is nearer to the plane than this belongs on it
SAME_PLACE = 1e-5  # of the skeleton's size: a tail this near to a head goes with it
FEWEST = 8  # vertices that a new bone begins with, where it is nearest to none


@dataclass(frozen=True, eq=False)
class Suggestion:
    """What could be done with a bone: "merge" it into its parent, or "split" it in two.

    reason: what speaks for it, in a few words; touches: names of the bones whose place or skin would change. Of a
    split: head and tail (3,) of the new bone, in world space; followers: children of the bone that go with the new one;
    ends: whether the bone's own tail does, so that the bone now ends at the new one's head.
    """

    kind: str
    bone: str
    reason: str
    touches: tuple[str, ...]
    head: np.ndarray | None = None
    tail: np.ndarray | None = None
    followers: tuple[str, ...] = ()
    ends: bool = False


def suggest(rig: Rig, sequence: MeshSequence, progress=no_progress) -> list[Suggestion]:
    """Bones of a rig that could be split, and joints that could be merged, most rewarding first within either kind."""
    return [*splits(rig, sequence, progress), *merges(rig)]


# ---- merging


def merges(rig: Rig) -> list[Suggestion]:
    """Joints that do not turn against their parents in the motion, or carry nearly no skin, stillest first."""
    skeleton = rig.skeleton
    support = np.square(rig.weights, dtype=np.float64).sum(axis=0)
    for j in range(len(skeleton) - 1, 0, -1):  # children come after their parents
        if skeleton.parents[j] >= 0:
            support[skeleton.parents[j]] += support[j]
    found = []
    for j in np.argsort(rig.rotation_range, kind="stable"):
        parent = skeleton.parents[j]
        if parent < 0:
            continue
        if not rig.seen_in_motion[j]:
            reason = f"turns only {np.degrees(rig.rotation_range[j]):.1f}°"
        elif support[j] < SUPPORT:
            reason = "moves nearly no skin"
        else:
            continue
        found.append(Suggestion("merge", skeleton.names[j], reason, (skeleton.names[j], skeleton.names[parent])))
    return found


# ---- splitting


def splits(rig: Rig, sequence: MeshSequence, progress=no_progress) -> list[Suggestion]:
    """Bones whose own vertices are replayed badly and move like two rigid parts, worst first."""
    size = diagonal(sequence.vertices[rig.anchor])
    frames = np.unique(np.linspace(0, len(rig.motion) - 1, MOST_FRAMES).round().astype(int))
    squared = np.zeros(len(rig.rest_vertices))  # mean over frames
    for f in frames:
        replay = linear_blend_skinning(rig.rest_vertices, rig.weights, rig.motion[f])
        squared += np.square(replay - sequence.vertices[f]).sum(axis=1) / len(frames)
    owner = rig.weights.argmax(axis=1)
    errors = {}
    for j in range(len(rig.skeleton)):
        own = owner == j
        if own.sum() >= LEAST_VERTICES:
            error, others = (float(np.sqrt(squared[rows].mean())) if rows.any() else 0.0 for rows in (own, ~own))
            if error > max(ABOVE * others, VISIBLE * size):
                errors[j] = error
    found = []
    for k, j in enumerate(sorted(errors, key=errors.get, reverse=True)):
        progress(k / len(errors), "Looking for bones to split")
        own = np.flatnonzero(owner == j)
        rest, there = rig.rest_vertices[own].astype(np.float64), sequence.vertices[np.ix_(frames, own)]
        part = two_parts(rest, there.astype(np.float64), EXPLAINED * errors[j])
        if part is not None:
            found.append(_split(rig, j, rest, there, part, size, errors[j]))
    return found


def two_parts(rest, trajectories, enough: float) -> np.ndarray | None:
    """Two parts of some vertices, labels (N,) bool, whose rigid motions leave an RMSE below `enough`; None without.

    rest (N,3), trajectories (F,N,3). Labels and motions are found in turn, from a cut through the middle along each
    axis of the shape and from one by what a single motion leaves.
    """
    whole = _part_errors(rest, trajectories, np.ones(len(rest), dtype=bool))
    middle = rest - rest.mean(axis=0)
    along = np.concatenate([middle @ np.linalg.svd(middle, full_matrices=False)[2].T, whole[:, None]], axis=1)
    least, best, labels = LEAST_VERTICES // 4, enough**2, None
    for coordinate in along.T:
        part = coordinate > np.median(coordinate)
        for _ in range(PART_ROUNDS):
            if min(part.sum(), (~part).sum()) < least:
                break
            errors = np.stack([_part_errors(rest, trajectories, which) for which in (~part, part)])
            left, part = errors.min(axis=0).mean(), errors[1] < errors[0]
            if left < best and min(part.sum(), (~part).sum()) >= least:
                best, labels = left, part
    return labels


def _part_errors(rest, trajectories, part) -> np.ndarray:
    """Squared error (N,), mean over frames, of all vertices moved as the best rigid motions of `part` (N,) bool."""
    rotation, shift = rigid_motions(rest[part], trajectories[:, part])
    replay = np.einsum("fij,nj->fni", rotation, rest, optimize=True) + shift[:, None]
    return np.square(replay - trajectories).sum(axis=2).mean(axis=0)


def rigid_motions(rest, trajectories) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (F,3,3) and shifts (F,3) that bring points (N,3) closest to trajectories (F,N,3) (Kabsch 1976)."""
    source, goals = rest.mean(axis=0), trajectories.mean(axis=1)
    covariance = np.einsum("fni,nj->fij", trajectories - goals[:, None], rest - source, optimize=True)
    u, _, vt = np.linalg.svd(covariance)
    u[..., 2] *= np.sign(np.linalg.det(u @ vt))[:, None]
    rotation = u @ vt
    return rotation, goals - rotation @ source


def _split(rig: Rig, j: int, rest, trajectories, part, size: float, error: float) -> Suggestion:
    """The suggestion to split bone j, whose vertices rest (K,3), trajectories (F,K,3), form two parts (K,) bool."""
    skeleton = rig.skeleton
    head, tail = skeleton.joints[j], skeleton.tails[j]
    if np.linalg.norm(rest[part].mean(axis=0) - head) < np.linalg.norm(rest[~part].mean(axis=0) - head):
        part = ~part  # now True away from the joint
    near, far = rest[~part].mean(axis=0), rest[part].mean(axis=0)
    place = _joint_between(rest, trajectories.astype(np.float64), part, size)

    def is_far(point) -> bool:
        return bool(np.linalg.norm(point - far) < np.linalg.norm(point - near))

    ends = is_far(tail)
    children = np.flatnonzero(skeleton.parents == j)
    return Suggestion(
        "split",
        skeleton.names[j],
        f"its skin is off by {100 * error / size:.2g} %",
        (skeleton.names[j],),
        head=place + rig.origin,
        tail=(tail if ends else 2 * far - place) + rig.origin,
        followers=tuple(skeleton.names[c] for c in children if is_far(skeleton.joints[c])),
        ends=ends,
    )


def _joint_between(rest, trajectories, part, size: float) -> np.ndarray:
    """Where two rigid parts (N,) bool of vertices rest (N,3) are joined: the point that both motions take to one place.

    Along the axis of a hinge that is any point: the one nearest to the parts' border is taken.
    """
    turns, shifts = zip(*(rigid_motions(rest[which], trajectories[:, which]) for which in (~part, part)), strict=True)
    between = [np.linalg.norm(rest - rest[which].mean(axis=0), axis=1) for which in (~part, part)]
    border = rest[np.argsort(np.abs(between[0] - between[1]), kind="stable")[: 4 + len(rest) // 10]].mean(axis=0)
    difference, gap = turns[0] - turns[1], shifts[1] - shifts[0]
    normal = np.einsum("fji,fjk->ik", difference, difference)
    hold = 1e-2 * np.trace(normal) / 3 + 1e-12
    right = np.einsum("fji,fj->i", difference, gap) + hold * border
    place = np.linalg.solve(normal + hold * np.eye(3), right)
    return place if np.linalg.norm(place - border) < FARTHEST * size else border


# ---- symmetry


def symmetrised(joints, tails, pairs, locked) -> tuple[np.ndarray, np.ndarray]:
    """Joints and tails (J,3) made symmetric: each of the pairs (P,2) in the mean of both.

    What is in no pair and near the plane is put on it, but for tails at a head, which go with that. Locked joints (J,)
    bool stay where they are, and their partners follow them. SprigError without pairs or in no symmetric pose.
    """
    joints, tails = np.array(joints, dtype=np.float64), np.array(tails, dtype=np.float64)
    pairs, locked = np.asarray(pairs, dtype=int).reshape(-1, 2), np.asarray(locked, dtype=bool)
    if not len(pairs):
        raise SprigError(
            "No two bones are called left and right of each other; give them names such as hand.L and hand.R."
        )
    left, right = pairs.T
    normal = np.linalg.svd(joints[left] - joints[right], full_matrices=False)[2][0]
    offset = float(((joints[left] + joints[right]) @ normal).mean() / 2)
    size = float(np.linalg.norm(np.ptp(np.concatenate([joints, tails]), axis=0)))

    def mirrored(points):
        return points - 2 * (points @ normal - offset)[..., None] * normal

    skew = np.linalg.norm(mirrored(joints[right]) - joints[left], axis=1).mean() / size
    if skew > SKEWED:
        raise SprigError(
            f"The pairs of joints are {100 * skew:.0f} % of the skeleton's size off from mirroring each other; preview "
            "again with a rest pose in which the character stands symmetrically."
        )
    at_head = np.linalg.norm(tails[:, None] - joints, axis=2)
    goes_with = np.where(at_head.min(axis=1) < SAME_PLACE * size, at_head.argmin(axis=1), -1)
    alone = np.setdiff1d(np.arange(len(joints)), pairs)
    stays, flips = locked[left], locked[right]
    for points in (joints, tails):
        one, other = points[left], mirrored(points[right])
        mean = np.where(stays[:, None], one, np.where(flips[:, None], other, (one + other) / 2))
        points[left] = mean
        points[right] = np.where((stays & flips)[:, None], points[right], mirrored(mean))
        height = points[alone] @ normal - offset
        drawn = (np.abs(height) < NEAR_PLANE * size) & ~locked[alone]
        points[alone[drawn]] -= height[drawn, None] * normal
    follows = (goes_with >= 0) & ~locked
    tails[follows] = joints[goes_with[follows]]
    return joints, tails


# ---- fitting again


def rig_of(sequence: MeshSequence, bones: GivenSkeleton, anchor: int) -> Rig:
    """The rig that bones with weights, motion and rest_vertices make of their sequence; anchor: a position in it."""
    bones, origin = bones.parents_first(), sequence.origin
    size = diagonal(sequence.vertices[anchor])
    joints, rest = bones.joints - origin, bones.rest_vertices - origin
    sums = bones.weights.sum(axis=1, keepdims=True)
    if (sums <= 0).any():
        raise SprigError(
            f"{np.count_nonzero(sums <= 0)} vertices of the rig have no weights; assign them, or rig the mesh again."
        )
    weights = bones.weights / sums
    motion = np.array(bones.motion)
    motion[..., :3, 3] += motion[..., :3, :3] @ origin - origin
    frames = np.array(bones.frames)
    frames[:, :3, 3] -= origin
    rotation_range, seen = joint_evidence(motion, joints, bones.parents, anchor, size)
    return Rig(
        skeleton=Skeleton(joints, bones.tails - origin, bones.parents, bones.names, frames),
        weights=weights,
        motion=motion,
        rest_vertices=rest,
        faces=sequence.faces,
        anchor=anchor,
        origin=origin,
        fps=sequence.fps,
        frame_numbers=sequence.frame_numbers,
        frame_index=sequence.frame_index,
        seen_in_motion=seen,
        rotation_range=rotation_range,
        rmse_per_frame=rmse_per_frame(rest, weights, motion, sequence.vertices, size),
        provenance={"skeleton_source": "given"},
    )


def to_refit(rig: Rig, bones: GivenSkeleton) -> GivenSkeleton:
    """Changed bones as a skeleton to fit to the rig's own sequence, parents first, with what the rig knows of them.

    The rest shape is the rig's, whichever frame it is from; a bone that slides against its parent may go on doing so,
    and a locked bone that the rig has keeps its weights.
    """
    bones, skeleton = bones.parents_first(), rig.skeleton
    known = same_joints(rig, bones)
    slides = np.append(moving_bones(rig.motion, skeleton.joints, skeleton.parents, diagonal(rig.rest_vertices)), False)
    bones = replace(
        bones,
        rest_vertices=rig.rest_vertices + rig.origin,
        located=slides[known],  # the last entry answers for -1
        locked=bones.locked & (known >= 0),
    )
    return replace(bones, weights=_start_weights(rig, bones, known))


def same_joints(rig: Rig, bones: GivenSkeleton) -> np.ndarray:
    """The rig's joint that each bone is (K,), by its name or, renamed, by its unchanged place; -1 for a new one."""
    skeleton = rig.skeleton
    number = {name: j for j, name in enumerate(skeleton.names)}
    known = np.array([number.get(name, -1) for name in bones.names])
    moved = np.linalg.norm(bones.joints[:, None] - rig.origin - skeleton.joints, axis=2)
    moved += np.linalg.norm(bones.tails[:, None] - rig.origin - skeleton.tails, axis=2)
    moved[:, known[known >= 0]] = np.inf
    for k in np.flatnonzero(known < 0):
        j = int(moved[k].argmin())
        if moved[k, j] < SAME_PLACE * diagonal(rig.rest_vertices):
            known[k], moved[:, j] = j, np.inf
    return known


def _start_weights(rig: Rig, bones: GivenSkeleton, known) -> np.ndarray:
    """Weights (V,K) for the bones, parents first, which are the rig's joints `known` (K,), -1 for new ones.

    A joint that is gone leaves its skin to the nearest one above it that is left, if any. A new bone takes what is
    nearer to it than to the bone it hangs from (a root: than to its children). Locked bones neither give nor take.
    """
    weights = np.zeros((len(rig.rest_vertices), len(bones.names)))
    place = {int(j): k for k, j in enumerate(known) if j >= 0}
    for j in range(len(rig.skeleton)):
        stands = j
        while stands >= 0 and stands not in place:
            stands = int(rig.skeleton.parents[stands])
        if stands == j or (stands >= 0 and not bones.locked[place[stands]]):
            weights[:, place[stands]] += rig.weights[:, j]
    rest = rig.rest_vertices + rig.origin
    distance = np.stack([to_segment(rest, *ends) for ends in zip(bones.joints, bones.tails, strict=True)], axis=1)
    for k in np.flatnonzero((known < 0) & bones.deform):
        around = bones.parents[k : k + 1] if bones.parents[k] >= 0 else np.flatnonzero(bones.parents == k)
        for giver in around[~bones.locked[around]]:
            nearer = distance[:, k] < distance[:, giver]
            weights[nearer, k] += weights[nearer, giver]
            weights[nearer, giver] = 0
        if not weights[:, k].any():
            weights[np.argsort(distance[:, k], kind="stable")[:FEWEST], k] = 1
    return weights


def to_segment(points, start, end) -> np.ndarray:
    """Distance (N,) of points (N,3) to the segment from `start` (3,) to `end` (3,)."""
    along = end - start
    share = np.clip((points - start) @ along / max(along @ along, 1e-30), 0, 1)
    return np.linalg.norm(points - start - share[:, None] * along, axis=1)
