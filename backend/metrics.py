"""Every measure of quality that needs no network, one definition each.

Distances between skeletons are taken in the unit cube of the anchor frame (`unit_cube`: centre 0, longest side 1);
"per cent" means of the diagonal of the anchor frame's bounding box. A skeleton is joints (J,3) and parents (J,) with
-1 for a root. Cases that have no value (no valid skeleton, no common pair) are counted beside the averages, never
dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist, pdist
from scipy.stats import wasserstein_distance

CHUNK_BYTES = 64e6  # posed vertices in memory at a time, whatever the length of the clip
BONE_STEP = 0.005  # distance between samples on a bone, in the unit cube (RigNet, Puppeteer)
CARRIES_WEIGHT = 0.01  # a joint of the ground truth counts when its largest weight exceeds this
MATCH_DISTANCE = 0.05  # joints farther apart than this in the unit cube are not the same joint
SHARPEN = 0.35  # network weights below this share of their row's maximum are dropped (RigNet, Puppeteer)
NO_WEIGHT = 1e-3  # weights below this count as none
INFLUENCES = 0.15  # a joint influences a vertex when its weight exceeds this
ROW_SUM = 0.01  # rows of the truth whose sum is farther from 1 than this are unusable
ALIGN_ROUNDS = 20  # matching and rotation alternate until the matching repeats; a handful is usual


# ---- RMSE


def diagonal(points) -> float:
    """Diagonal of the bounding box of points (V,3)."""
    return float(np.linalg.norm(np.ptp(np.asarray(points, dtype=np.float64), axis=0)))


def rmse_per_frame(rest_vertices, weights, motion, vertices, anchor_diagonal: float) -> np.ndarray:
    """RMSE of linear blend skinning against the vertices (F,V,3) of each frame: (F,) float64, per cent.

    rest_vertices (V,3), weights (V,J), motion (F,J,4,4) and vertices are relative to the same origin. Skinning is the
    product P M_f, where row v of P (V,4J) holds weights[v,j] * [rest_vertices[v], 1], which is sparse.
    """
    weights = csr_matrix(weights)
    count, joints = weights.shape
    rest = np.column_stack([rest_vertices, np.ones(count)]).astype(np.float64)
    row = np.repeat(np.arange(count), np.diff(weights.indptr))
    columns = 4 * weights.indices[:, None].astype(np.int64) + np.arange(4)
    blend = csr_matrix(
        ((weights.data[:, None] * rest[row]).reshape(-1), columns.reshape(-1), 4 * weights.indptr),
        shape=(count, 4 * joints),
    )
    squared = np.empty(len(motion))
    step = max(1, int(CHUNK_BYTES / (count * 3 * 8)))
    for start in range(0, len(motion), step):
        chunk = np.asarray(motion[start : start + step], dtype=np.float64)[:, :, :3]  # (f,J,3,4)
        frames = len(chunk)
        posed = blend @ chunk.transpose(1, 3, 0, 2).reshape(4 * joints, 3 * frames)
        for f in range(frames):
            posed[:, 3 * f : 3 * f + 3] -= vertices[start + f]
            squared[start + f] = np.square(posed[:, 3 * f : 3 * f + 3]).sum() / count
    return 100 / anchor_diagonal * np.sqrt(squared)


def rmse_percent(rest_vertices, weights, motion, vertices, anchor_diagonal: float) -> float:
    """RMSE over all frames and vertices, per cent of the diagonal; arguments as for `rmse_per_frame`."""
    per_frame = rmse_per_frame(rest_vertices, weights, motion, vertices, anchor_diagonal)
    return float(np.sqrt(np.mean(per_frame**2)))


def left_out_split(frame_count: int, anchor: int) -> tuple[np.ndarray, np.ndarray]:
    """Frames to fit and frames left out: every second one, such that the anchor is fitted."""
    frames = np.arange(frame_count)
    fitted = frames % 2 == anchor % 2
    return frames[fitted], frames[~fitted]


def with_noise(vertices, percent: float, anchor_diagonal: float, seed: int = 0) -> np.ndarray:
    """Vertices (F,V,3) float32 displaced by Gaussian noise whose RMS *length* is `percent` of the diagonal."""
    noisy = np.random.default_rng(seed).standard_normal(np.shape(vertices), dtype=np.float32)
    length = np.sqrt(np.mean([np.square(frame, dtype=np.float64).sum(axis=1).mean() for frame in noisy]))
    noisy *= percent / 100 * anchor_diagonal / length
    noisy += vertices
    return noisy


# ---- skeletons


def unit_cube(points) -> tuple[np.ndarray, float]:
    """Centre (3,) and longest side of the bounding box of points (V,3); (x - centre) / side is in the unit cube."""
    points = np.asarray(points, dtype=np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    return (low + high) / 2, float((high - low).max())


def weighted_joints(weights, parents) -> np.ndarray:
    """Which joints count in a ground truth, (J,) bool: those that carry weight (V,J), and all their ancestors."""
    keep = np.asarray(weights).max(axis=0) > CARRIES_WEIGHT
    for j in range(len(parents) - 1, 0, -1):  # parents come before their children
        if keep[j] and parents[j] >= 0:
            keep[parents[j]] = True
    return keep


def parents_among(parents, keep) -> np.ndarray:
    """Parents (K,) of the kept joints (J,) bool, renumbered; all ancestors of a kept joint must be kept."""
    parents = np.asarray(parents)
    number = np.append(np.cumsum(keep) - 1, -1)  # the last entry answers for -1
    assert keep[parents[keep & (parents >= 0)]].all(), "an ancestor of a kept joint is not kept"
    return number[parents[keep]]


def bones_of(parents) -> np.ndarray:
    """Bones (B,2) as parent and child."""
    children = np.flatnonzero(np.asarray(parents) >= 0)
    return np.stack([np.asarray(parents)[children], children], axis=1)


def bone_samples(joints, bones, step: float = BONE_STEP) -> np.ndarray:
    """Points along the bones (B,2), round(length/step) + 1 on each from end to end; the joints if there is no bone."""
    joints = np.asarray(joints, dtype=np.float64)
    if len(bones) == 0:
        return joints
    start, along = joints[bones[:, 0]], joints[bones[:, 1]] - joints[bones[:, 0]]
    intervals = np.round(np.linalg.norm(along, axis=1) / step).astype(int)
    bone = np.repeat(np.arange(len(bones)), intervals + 1)
    first = np.cumsum(intervals + 1) - (intervals + 1)
    share = (np.arange(len(bone)) - first[bone]) / np.maximum(intervals, 1)[bone]
    return start[bone] + share[:, None] * along[bone]


def chamfer(a, b) -> float:
    """Mean of the two directed mean nearest-neighbour distances (not squared) between points (A,3) and (B,3)."""
    return float(cKDTree(b).query(a)[0].mean() + cKDTree(a).query(b)[0].mean()) / 2


@dataclass(frozen=True)
class ChamferDistances:
    """Between two skeletons in the unit cube: joints to joints, joints to bones, bones to bones."""

    j2j: float
    j2b: float
    b2b: float


def chamfer_distances(joints_a, bones_a, joints_b, bones_b) -> ChamferDistances:
    """CD-J2J, CD-J2B and CD-B2B of two skeletons in the unit cube; bones (B,2) as `bones_of` gives them."""
    samples_a, samples_b = bone_samples(joints_a, bones_a), bone_samples(joints_b, bones_b)
    to_b, to_a = cKDTree(samples_b).query(joints_a)[0].mean(), cKDTree(samples_a).query(joints_b)[0].mean()
    return ChamferDistances(chamfer(joints_a, joints_b), float(to_b + to_a) / 2, chamfer(samples_a, samples_b))


def match_joints(joints_a, joints_b, limit: float = MATCH_DISTANCE) -> np.ndarray:
    """Pairs (K,2) that match joints one to one, sorted: as many as the limit allows, then of least total distance."""
    apart = cdist(joints_a, joints_b)
    too_far = apart > limit
    unmatched = 2 * limit * (min(apart.shape) + 1)  # dearer than any number of matches
    a, b = linear_sum_assignment(np.where(too_far, unmatched, apart))
    matched = ~too_far[a, b]
    return np.stack([a[matched], b[matched]], axis=1)


def topology_f1(joints_a, parents_a, joints_b, parents_b) -> float:
    """F1 of the parent-child pairs of two skeletons in the unit cube, joints matched by `match_joints`.

    A pair is found when both its joints are matched and their partners are parent and child too. All pairs of both
    skeletons count, so joints without a partner cost. Two skeletons without bones agree (1) if their joints match.
    """
    pairs = match_joints(joints_a, joints_b)
    partner = np.full(len(joints_a) + 1, -2)  # -2: none; the last entry answers for the parent -1
    partner[pairs[:, 0]] = pairs[:, 1]
    bones_a, bones_b = bones_of(parents_a), bones_of(parents_b)
    if len(bones_a) + len(bones_b) == 0:
        return float(len(pairs) > 0)
    found = set(map(tuple, partner[bones_a].tolist())) & set(map(tuple, bones_b.tolist()))
    return 2 * len(found) / (len(bones_a) + len(bones_b))


def gsd(parents_a, parents_b) -> float:
    """Graph spectral distance: Wasserstein-1 between the spectra of the normalised Laplacians (Gu, Hua, Liu 2015).

    The eigenvalues, all in [0, 2], are taken as uniform measures, so the numbers of joints may differ.
    """
    return float(wasserstein_distance(_spectrum(parents_a), _spectrum(parents_b)))


def _spectrum(parents) -> np.ndarray:
    """Eigenvalues (J,) of I - D^-1/2 A D^-1/2 of the skeleton's graph; a joint alone has the eigenvalue 0 (Chung)."""
    adjacent = np.zeros((len(parents), len(parents)))
    parent, child = bones_of(parents).T
    adjacent[parent, child] = adjacent[child, parent] = 1
    degree = adjacent.sum(axis=1)
    scale = 1 / np.sqrt(np.maximum(degree, 1))
    return np.linalg.eigvalsh(np.diag((degree > 0).astype(float)) - scale[:, None] * adjacent * scale)


# ---- stability over the frames


@dataclass(frozen=True)
class JointDistanceDrift:
    """PJDD of one network on one clip: mean change of the distance between two joints, x100, in the unit cube.

    index pairs joints by their position in the sequence, matched by Hungarian assignment after rigid alignment; NaN
    when no frame could be measured. changed: share of frames whose joint count or tree is not the anchor's. failed:
    frames without two joints to measure (no valid skeleton), left out of both means.
    """

    index: float
    matched: float
    changed: float
    failed: int


def pjdd(skeletons, anchor: int) -> JointDistanceDrift:
    """Pairwise joint distance drift of the skeletons decoded on every frame against the anchor's own.

    skeletons: per frame (joints (J,3), parents (J,)) in the unit cube, or None where decoding failed. The anchor
    itself is not averaged in. Raises ValueError when the anchor has fewer than two joints.
    """
    if skeletons[anchor] is None or len(skeletons[anchor][0]) < 2:
        raise ValueError(f"expected a skeleton of two joints or more in the anchor frame {anchor}, got none")
    joints_a, parents_a = np.asarray(skeletons[anchor][0], dtype=np.float64), np.asarray(skeletons[anchor][1])
    index, matched, changed, failed = [], [], 0, 0
    others = [skeleton for frame, skeleton in enumerate(skeletons) if frame != anchor]
    for skeleton in others:
        if skeleton is None or len(skeleton[0]) < 2:
            failed += 1
            changed += 1
            continue
        joints = np.asarray(skeleton[0], dtype=np.float64)
        changed += not np.array_equal(skeleton[1], parents_a)
        common = min(len(joints), len(joints_a))
        index.append(_distance_change(joints[:common], joints_a[:common]))
        here, there = _match_after_alignment(joints, joints_a)
        matched.append(_distance_change(joints[here], joints_a[there]))
    return JointDistanceDrift(
        index=100 * float(np.mean(index)) if index else float("nan"),
        matched=100 * float(np.mean(matched)) if matched else float("nan"),
        changed=changed / len(others) if others else 0.0,
        failed=failed,
    )


def _distance_change(a, b) -> float:
    """Mean absolute change of the distance between two joints, over all pairs of (J,3) and (J,3)."""
    return float(np.abs(pdist(a) - pdist(b)).mean())


def _match_after_alignment(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Hungarian matching of points (A,3) to (B,3), invariant to a rigid motion of either.

    Matching and rotation (Kabsch) alternate from several starts: as they are, and with the principal axes laid on each
    other in the four ways that are rotations. The start that ends with the least total distance wins, the first of
    equals.
    """
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    axes_a, axes_b = (np.linalg.svd(points, full_matrices=True)[2] for points in (a, b))
    starts = [np.eye(3)]
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        rotation = axes_b.T @ np.diag([*signs, 1]) @ axes_a
        starts.append(axes_b.T @ np.diag([*signs, np.sign(np.linalg.det(rotation))]) @ axes_a)
    best = None
    for rotation in starts:
        shift, pairs = np.zeros(3), None
        for _ in range(ALIGN_ROUNDS):
            apart = cdist(a @ rotation.T + shift, b)
            before, pairs = pairs, linear_sum_assignment(apart)
            if before is not None and np.array_equal(before[1], pairs[1]) and np.array_equal(before[0], pairs[0]):
                break
            rotation, shift = _kabsch(a[pairs[0]], b[pairs[1]])
        total = apart[pairs].sum()
        if best is None or total < best[0] - 1e-9:
            best = (total, pairs)
    return best[1]


def _kabsch(a, b) -> tuple[np.ndarray, np.ndarray]:
    """Rotation (3,3) and shift (3,) that bring points (N,3) closest to (N,3): rotation @ a + shift = b."""
    mean_a, mean_b = a.mean(axis=0), b.mean(axis=0)
    u, _, v = np.linalg.svd((b - mean_b).T @ (a - mean_a))
    rotation = u @ np.diag([1, 1, 1 if np.linalg.det(u @ v) > 0 else -1]) @ v
    return rotation, mean_b - rotation @ mean_a


@dataclass(frozen=True)
class TemporalSkinError:
    """Change of skin weights against the anchor's, mean over the other frames: over all points, and per point."""

    total: float
    per_point: float


def temporal_skin_error(weights, anchor: int) -> TemporalSkinError:
    """Sum over points of the L1 norm of W^t - W^a; weights (F,N,J) of the same tracked points in every frame."""
    others = [frame for frame in range(len(weights)) if frame != anchor]
    reference = np.asarray(weights[anchor], dtype=np.float64)
    total = float(np.mean([np.abs(weights[frame] - reference).sum() for frame in others])) if others else 0.0
    return TemporalSkinError(total, total / len(reference))


# ---- skin weights against a truth


def sharpened(weights, share: float = SHARPEN) -> np.ndarray:
    """A network's rows (V,J) after the usual post-processing: small entries dropped, rows summing to 1 again."""
    weights = np.asarray(weights, dtype=np.float64)
    kept = np.where(weights < share * weights.max(axis=1, keepdims=True), 0, weights)
    return kept / kept.sum(axis=1, keepdims=True)


def matched_columns(predicted, truth, pairs) -> tuple[np.ndarray, np.ndarray]:
    """Weights (V,A) and (V,B) side by side: both (V,K), matched joints in the same column.

    pairs (P,2) as `match_joints` gives them. Joints without a partner stand against a column of zeros.
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    alone_a = np.setdiff1d(np.arange(predicted.shape[1]), pairs[:, 0])
    alone_b = np.setdiff1d(np.arange(truth.shape[1]), pairs[:, 1])
    nothing_a, nothing_b = np.zeros((len(truth), len(alone_b))), np.zeros((len(predicted), len(alone_a)))
    return (
        np.concatenate([predicted[:, pairs[:, 0]], predicted[:, alone_a], nothing_a], axis=1),
        np.concatenate([truth[:, pairs[:, 1]], nothing_b, truth[:, alone_b]], axis=1),
    )


@dataclass(frozen=True)
class SkinScores:
    """precision and recall of (vertex, joint) influences in [0, 1]; l1 in [0, 2]; rows of the truth left out."""

    precision: float
    recall: float
    l1: float
    dropped_rows: int


def skin_scores(predicted, truth, influence: float = INFLUENCES) -> SkinScores:
    """Compare skin weights (V,J) with matched columns (`matched_columns`); a network's are `sharpened` before.

    Rows of the truth that do not sum to 1 are left out and counted. L1 is the mean over vertices of the summed absolute
    difference, without any threshold. Precision (recall) is 0 where nothing is predicted (true).
    """
    predicted, truth = np.asarray(predicted, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    usable = np.abs(np.where(truth < NO_WEIGHT, 0, truth).sum(axis=1) - 1) <= ROW_SUM
    predicted, truth = predicted[usable], truth[usable]
    if len(truth) == 0:
        return SkinScores(float("nan"), float("nan"), float("nan"), len(usable))
    claimed, real = (np.where(w < NO_WEIGHT, 0, w) > influence for w in (predicted, truth))
    both = np.count_nonzero(claimed & real)
    return SkinScores(
        precision=both / max(np.count_nonzero(claimed), 1),
        recall=both / max(np.count_nonzero(real), 1),
        l1=float(np.abs(predicted - truth).sum(axis=1).mean()),
        dropped_rows=int(np.count_nonzero(~usable)),
    )
