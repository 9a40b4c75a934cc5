"""What turns solved joints into a skeleton an animator can use: bone tails, and evidence for every joint."""

from __future__ import annotations

import numpy as np

SHORTEST_BONE = 1e-3  # of the diagonal: Blender drops bones of no length
SEEN_ANGLE = np.radians(5.0)  # a joint that turns less against its parent was not shown by this clip
SEEN_SHIFT = 5e-3  # of the diagonal: the same for a root or a stretching joint that travels


def bone_tails(joints, parents, weights, rest_vertices) -> np.ndarray:
    """Tails (J,3): towards the heaviest child; a leaf points through the centre of its own vertices to where they end,
    but no farther beyond it than before. Squared weights say which they are: where a bone only helps does not count.

    joints (J,3), parents (J,), weights (V,J), rest_vertices (V,3).
    """
    joints = np.asarray(joints, dtype=np.float64)
    mass = weights.sum(axis=0, dtype=np.float64)
    below = mass.copy()
    for j in range(len(parents) - 1, 0, -1):
        if parents[j] >= 0:
            below[parents[j]] += below[j]
    shortest = SHORTEST_BONE * np.linalg.norm(np.ptp(rest_vertices, axis=0))
    tails = np.empty_like(joints)
    for j, head in enumerate(joints):
        children = [c for c in np.flatnonzero(parents == j) if np.linalg.norm(joints[c] - head) > shortest]
        if children:
            tails[j] = joints[max(children, key=lambda c: below[c])]
            continue
        share = weights[:, j] ** 2
        along = share @ (rest_vertices - head) / max(share.sum(), 1e-12)
        if np.linalg.norm(along) < shortest and parents[j] >= 0:
            along = head - joints[parents[j]]
        if np.linalg.norm(along) < shortest:
            along = np.array([0.0, 0.0, 1.0])
        most = 2 * np.linalg.norm(along)
        along /= np.linalg.norm(along)
        own = weights[:, j] > 0.5 * weights[:, j].max()
        reach = ((rest_vertices[own] - head) @ along).max(initial=0.0)
        tails[j] = head + max(min(reach, most), 2 * shortest) * along
    return tails


def joint_evidence(motion, joints, parents, anchor: int, diagonal: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotation range (J,) in radians against the parent relative to the anchor pose, and whether the motion shows it.

    motion (F,J,4,4), rest pose to frame; a joint is seen when it turns by more than SEEN_ANGLE against its parent, or
    travels (roots and stretching joints).
    """
    parent = np.asarray(parents)
    has_parent = parent >= 0
    angle = rotation_ranges(motion[..., :3, :3], parent, anchor)
    heads = np.concatenate([joints, np.ones((len(joints), 1))], axis=1)
    own = np.einsum("fjik,jk->fji", motion[..., :3, :], heads)
    carried = np.einsum("fjik,jk->fji", motion[:, np.maximum(parent, 0), :3, :], heads)
    travel = own - np.where(has_parent[:, None], carried, own[anchor])
    shift = np.linalg.norm(travel - travel[anchor], axis=-1).max(axis=0)
    return angle, (angle > SEEN_ANGLE) | (shift > SEEN_SHIFT * diagonal)


def rotation_ranges(rotation, parents, anchor: int) -> np.ndarray:
    """Largest turn (J,) of each joint against its parent, relative to frame `anchor`: radians; rotation (F,J,3,3)."""
    parent = np.asarray(parents)
    above = np.where((parent >= 0)[:, None, None], rotation[:, np.maximum(parent, 0)], np.eye(3))
    local = above.swapaxes(-1, -2) @ rotation
    change = local[anchor].swapaxes(-1, -2) @ local
    cosine = (np.trace(change, axis1=-2, axis2=-1) - 1) / 2
    return np.arccos(np.clip(cosine, -1, 1)).max(axis=0)
