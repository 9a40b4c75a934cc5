"""From free bones to a tree: where two bones could be joined, which joints make the skeleton, which is the root."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial import cKDTree

from .problem import bone_errors

PAIR_PRIOR = 1e-2  # pull to the shared-weight centroid, in largest eigenvalues of the joint's own evidence
MISFIT_FLOOR = 1e-8  # squared diagonals: below a misfit of 1e-4 of the diagonal the shared weight alone decides
SHARED_FLOOR = 1e-9
LEAST_SHARED = 0.05  # bones that share less of a vertex than this do not meet in the skin
GAP_COST = 0.1  # a gap between two parts counts like a tenth of it in misfit
CONTACT_POINTS = 300  # vertices of a part that are looked at for where it comes nearest to another


@dataclass(frozen=True, eq=False)
class Tree:
    """order (B,) bones with parents first; parents (B,) positions in that order, -1 for the root; joints (B,3)."""

    order: np.ndarray
    parents: np.ndarray
    joints: np.ndarray
    priors: np.ndarray  # (B,3) where each joint is expected when the motion does not say: shared-weight centroids


def connect_bones(problem, M, W, u) -> Tree:
    """Minimum spanning tree over (joint misfit / shared weight), rooted at the centroid of the vertex mass.

    The misfit of bones a and b is min_c mean_f |M_a c - M_b c|^2 (Le & Deng 2014), from Gram matrices alone.
    """
    frames, bones = M.shape[:2]
    gram = bone_errors(problem, M, u).gram.cpu().numpy()
    weights, rest = W.cpu().numpy(), u.cpu().numpy()
    shared = weights.T @ weights
    own = weights**2
    centroids = (own.T @ rest) / np.maximum(own.sum(0), 1e-12)[:, None]
    a, b = np.triu_indices(bones, 1)
    linked = shared[a, b] > LEAST_SHARED
    a, b = a[linked], b[linked]
    prior = _shared_centroids(weights, rest, a, b)
    joint, misfit = fit_joints(gram, a, b, prior)
    cost = (misfit / frames + MISFIT_FLOOR) / (shared[a, b] + SHARED_FLOOR)
    a, b, cost, joint, prior = _bridge(a, b, cost, joint, prior, weights, rest, gram, frames)
    graph = sp.coo_matrix((cost, (a, b)), (bones, bones)).tocsr()
    chosen = minimum_spanning_tree(graph).tocoo()
    position = {(int(i), int(j)): k for k, (i, j) in enumerate(zip(a, b, strict=True))}
    tree = sp.coo_matrix((np.ones(chosen.nnz), (chosen.row, chosen.col)), (bones, bones))
    neighbours = (tree + tree.T).tolil().rows
    root = _mass_centroid(neighbours, own.sum(0))
    order, parent = _depth_first(neighbours, root)
    rank = np.empty(bones, dtype=int)
    rank[order] = np.arange(bones)
    joints, priors = centroids[order].copy(), centroids[order].copy()
    for i, bone in enumerate(order):
        if parent[bone] >= 0:
            k = position[min(bone, parent[bone]), max(bone, parent[bone])]
            joints[i], priors[i] = joint[k], prior[k]
    parents = np.array([-1 if parent[bone] < 0 else rank[parent[bone]] for bone in order])
    return Tree(order, parents, joints, priors)


def fit_joints(gram, a, b, prior, strength: float = PAIR_PRIOR):
    """Joints (K,3) minimising sum_f |M_a c - M_b c|^2 and their misfits (K,), for pairs of bones a, b (K,).

    Along a hinge's axis the motion says nothing about c; the pull to `prior` is proportional to the largest eigenvalue
    of that joint's own evidence, so that it decides there and hardly matters elsewhere.
    """
    evidence = gram[a, a] + gram[b, b] - gram[a, b] - gram[b, a]  # (K,4,4)
    H = evidence[:, :3, :3]
    pull = strength * np.linalg.eigvalsh(H)[:, -1] + 1e-12
    system = H + pull[:, None, None] * np.eye(3)
    joint = np.linalg.solve(system, (pull[:, None] * prior - evidence[:, :3, 3])[..., None])[..., 0]
    c = np.concatenate([joint, np.ones((len(joint), 1))], axis=1)
    return joint, np.maximum(np.einsum("ki,kij,kj->k", c, evidence, c), 0)


def _shared_centroids(weights, rest, a, b):
    out = np.empty((len(a), 3))
    for k, (i, j) in enumerate(zip(a, b, strict=True)):
        both = weights[:, i] * weights[:, j]
        out[k] = both @ rest / both.sum()
    return out


def _bridge(a, b, cost, joint, prior, weights, rest, gram, frames):
    """Candidate joints between parts that share no vertex, so that one tree is possible: where the parts come nearest.

    They cost more than any joint inside a component; among them, motion that fits a joint there and a small gap count.
    """
    bones = weights.shape[1]
    count, label = connected_components(sp.coo_matrix((np.ones(len(a)), (a, b)), (bones, bones)), directed=False)
    if count == 1:
        return a, b, cost, joint, prior
    i, j = np.triu_indices(bones, 1)
    apart = label[i] != label[j]
    i, j = i[apart], j[apart]
    owner = weights.argmax(1)
    points = [_some_points(rest, np.flatnonzero(owner == k), weights[:, k]) for k in range(bones)]
    trees = [cKDTree(p) for p in points]
    gap, contact = np.empty(len(i)), np.empty((len(i), 3))
    for k, (first, second) in enumerate(zip(i, j, strict=True)):
        distance, nearest = trees[second].query(points[first])
        best = distance.argmin()
        gap[k], contact[k] = distance[best], (points[first][best] + points[second][nearest[best]]) / 2
    fitted, misfit = fit_joints(gram, i, j, contact)
    dearest = cost.max() if len(cost) else 0.0
    new_cost = dearest + np.sqrt(misfit / frames) + GAP_COST * gap + SHARED_FLOOR
    return np.r_[a, i], np.r_[b, j], np.r_[cost, new_cost], np.r_[joint, fitted], np.r_[prior, contact]


def _some_points(rest, owned, weight):
    """At most CONTACT_POINTS of a bone's own vertices, evenly through their list; else the one it moves most."""
    if len(owned) == 0:
        return rest[weight.argmax()][None]
    return rest[owned[np.linspace(0, len(owned) - 1, min(len(owned), CONTACT_POINTS)).astype(int)]]


def _mass_centroid(neighbours, mass) -> int:
    """The bone whose heaviest branch is lightest: pelvis or torso."""
    order, parent = _depth_first(neighbours, 0)
    below = mass.copy()
    for bone in order[::-1]:
        if parent[bone] >= 0:
            below[parent[bone]] += below[bone]
    total = below[0]
    heaviest = [
        max([below[n] if parent[n] == bone else total - below[bone] for n in neighbours[bone]], default=0.0)
        for bone in range(len(mass))
    ]
    return int(np.argmin(heaviest))


def _depth_first(neighbours, root: int):
    """Depth-first order (B,) from the root and the parent (B,) of every bone."""
    parent = np.full(len(neighbours), -1)
    order, stack, seen = [], [root], {root}
    while stack:
        bone = stack.pop()
        order.append(bone)
        for n in sorted(neighbours[bone], reverse=True):
            if n not in seen:
                seen.add(n)
                parent[n] = bone
                stack.append(n)
    return np.array(order), parent
