"""Skeletons as token sequences: BOS, four ids for every joint (x, y, z, parent), EOS (SPRig section 4.1).

Ids: 0 BOS, 1 EOS, 2 PAD, bin b is id b + 3. Coordinates fall into BINS equal bins over [-0.5, 0.5]; those outside are
clipped to the first or last bin. The parent shares the bins: bin 0 says root, bin i + 1 says joint i, which came
earlier. Reading back puts a coordinate `offset` bins above the lower edge of its bin: 0.5, the centre, errs by half a
bin (0.0039) at most; Puppeteer reads lower edges, 0.0.

The order of the joints (`order_joints`) is depth-first. A limb is then one unbroken run, the parent is nearly always
the joint just written, and where two siblings change places, whole limbs do and nothing inside them; breadth-first
order would shuffle all limbs at every depth, and one joint more or less in one of them would move every later joint.
"""

from __future__ import annotations

import numpy as np

from ..errors import SprigError

BOS, EOS, PAD = 0, 1, 2
FIRST_BIN = 3  # id of bin 0
BINS = 128
VOCABULARY = FIRST_BIN + BINS
MOST_JOINTS = 101  # Puppeteer's limit; the parent's bins would allow 128
LEVEL = 3  # bins: siblings whose heights leave no larger gap count as equally high


def quantise(coordinates) -> np.ndarray:
    """Bins (...) int64 of coordinates (...); outside [-0.5, 0.5] the first or the last bin."""
    return np.clip(np.floor((np.asarray(coordinates, dtype=np.float64) + 0.5) * BINS), 0, BINS - 1).astype(np.int64)


def dequantise(bins, offset: float = 0.5) -> np.ndarray:
    """Coordinates (...) float32 of bins (...): `offset` bins above the lower edge."""
    return ((np.asarray(bins) + offset) / BINS - 0.5).astype(np.float32)


# ---- order


def order_joints(joints, parents) -> np.ndarray:
    """The canonical order: `order` (J,) such that joints[order] is depth-first, parents before their children.

    joints (J,3) in [-0.5, 0.5], z up; parents (J,), -1 for the one root, in any order. `reorder` applies it.

    Siblings are visited from the lowest level up; inside a level along x or y, whichever they spread more in. A level
    ends at a gap of more than LEVEL bins in z, so a left and a right limb stay one level however their heights round,
    and the axis that tells them apart decides, whichever way the character faces. Siblings that lie in the same bins
    (two collar bones that start at one point) are told apart in the same way by the mean of the joints that hang from
    them; those that agree even there keep the order they came in.

    Raises SprigError unless the parents make one tree.
    """
    joints, parents = np.asarray(joints, dtype=np.float64), np.asarray(parents)
    if joints.shape != (len(parents), 3) or not np.isfinite(joints).all():
        raise SprigError(f"joints should be finite and have shape {(len(parents), 3)}, shape is {joints.shape}.")
    if (parents < -1).any() or (parents >= len(parents)).any() or (parents < 0).sum() != 1:
        raise SprigError("The skeleton should have exactly one root (parent -1) and parents among its joints.")
    children = [np.flatnonzero(parents == j) for j in range(len(parents))]
    visited = _visit(children, np.flatnonzero(parents < 0), lambda siblings: siblings)
    if len(visited) != len(parents):
        raise SprigError("The skeleton has joints that hang in a loop; every joint should lead to the root.")
    # the mean of each joint's subtree: children add to their parents, last visited first
    below = np.column_stack([joints, np.ones(len(joints))])
    for j in visited[:0:-1]:
        below[parents[j]] += below[j]
    places, means = quantise(joints), quantise(below[:, :3] / below[:, 3:])
    return np.array(_visit(children, visited[:1], lambda siblings: _sort_siblings(siblings, places, means)))


def reorder(joints, parents, order) -> tuple[np.ndarray, np.ndarray]:
    """joints[order] (J,3) and their parents (J,) renumbered."""
    parents = np.asarray(parents)
    rank = np.append(np.argsort(order), -1)  # the last entry answers for -1
    return np.asarray(joints)[order], rank[parents[order]]


def _visit(children, roots, arrange) -> list[int]:
    """Depth-first; `arrange` puts siblings in order."""
    waiting, visited = list(roots), []
    while waiting:
        j = int(waiting.pop())
        visited.append(j)
        waiting.extend(arrange(children[j])[::-1])
    return visited


def _sort_siblings(siblings, places, means):
    """Indices `siblings` in canonical order; places, means (J,3) int bins of all joints and of their subtrees."""
    if len(siblings) < 2:
        return siblings
    ordered = _by_level(siblings, places)
    new = np.append(True, (np.diff(places[ordered], axis=0) != 0).any(axis=1))
    together = np.split(ordered, np.flatnonzero(new)[1:])
    return np.concatenate([_by_level(np.sort(group), means) if len(group) > 1 else group for group in together])


def _by_level(siblings, places):
    x, y, z = places[siblings].T
    upwards = np.argsort(z, kind="stable")
    level = np.empty(len(z), dtype=np.int64)
    level[upwards] = np.cumsum(np.append(0, np.diff(z[upwards]) > LEVEL))
    wide, narrow = np.empty_like(x), np.empty_like(x)
    for number in range(level.max() + 1):
        here = level == number
        swap = np.ptp(y[here]) > np.ptp(x[here])
        wide[here], narrow[here] = (y[here], x[here]) if swap else (x[here], y[here])
    return siblings[np.lexsort((z, narrow, wide, level))]


# ---- sequences


def encode(joints, parents) -> np.ndarray:
    """Ids (4J+2,) int64 of joints (J,3) and parents (J,), -1 for the root, in the order given (`order_joints`).

    Raises SprigError for no joints, more than MOST_JOINTS, coordinates that are not finite, or parents that are not
    one tree with the root first and parents before their children.
    """
    joints, parents = np.asarray(joints), np.asarray(parents)
    return encode_batch(joints[None], parents[None], np.ones((1, len(parents)), dtype=bool))[0]


def decode(ids, offset: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Joints (J,3) float32 and parents (J,) int64, -1 for the root, of ids (T,): BOS, quadruples, EOS, any PAD.

    Raises ValueError for ids that do not spell a skeleton.
    """
    joints, parents, _ = decode_batch(np.asarray(ids)[None], offset)
    return joints[0], parents[0]


def encode_batch(joints, parents, valid) -> np.ndarray:
    """Ids (B,4J+2) int64 of joints (B,J,3), parents (B,J), valid (B,J) bool (the first of each row), filled with PAD.

    What is not valid is not looked at. Raises SprigError as `encode` does.
    """
    joints, parents, valid = np.asarray(joints, np.float64), np.asarray(parents), np.asarray(valid, dtype=bool)
    if parents.ndim != 2 or joints.shape != (*parents.shape, 3) or valid.shape != parents.shape:
        raise SprigError(f"joints should have shape (J, 3) and parents (J,), got {joints.shape} and {parents.shape}.")
    batch, most = parents.shape
    counts = valid.sum(axis=1)
    if most == 0 or counts.min() == 0:
        raise SprigError("A skeleton needs at least one joint.")
    if counts.max() > MOST_JOINTS:
        raise SprigError(
            f"The skeleton has {counts.max()} joints, the network knows at most {MOST_JOINTS}; give one with fewer."
        )
    if not (valid[:, :-1] >= valid[:, 1:]).all():
        raise ValueError("valid joints come first in their row")
    if not np.isfinite(joints[valid]).all():
        raise SprigError("The skeleton has joints that are not finite.")
    if not _sorted_trees(parents)[valid].all():
        raise SprigError("The first joint should be the only root (parent -1) and parents come before their children.")
    quadruples = np.concatenate([quantise(np.where(valid[..., None], joints, 0)), parents[..., None] + 1], axis=2)
    ids = np.full((batch, 4 * most + 2), PAD, dtype=np.int64)
    ids[:, 0] = BOS
    ids[:, 1:-1] = np.where(valid[..., None], quadruples + FIRST_BIN, PAD).reshape(batch, -1)
    ids[np.arange(batch), 4 * counts + 1] = EOS
    return ids


def decode_batch(ids, offset: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints (B,J,3) float32, parents (B,J) int64, valid (B,J) bool of ids (B,T); 0 and -1 where not valid.

    Raises ValueError for ids that do not spell skeletons.
    """
    ids = np.asarray(ids)
    if ids.ndim != 2 or ids.dtype.kind not in "iu" or ids.shape[1] < 2:
        raise ValueError(f"expected whole numbers (B, T), got {ids.dtype} {ids.shape}")
    ends = (ids == EOS).argmax(axis=1)
    place = np.arange(ids.shape[1])
    inside = (place > 0) & (place < ends[:, None])
    if (ids[:, 0] != BOS).any() or (ends == 0).any() or (ids[place > ends[:, None]] != PAD).any():
        raise ValueError("ids should be BOS, joints, EOS and then PAD alone")
    counts = (ends - 1) // 4
    if (ends % 4 != 1).any() or (counts == 0).any() or (counts > MOST_JOINTS).any():
        raise ValueError(f"ids should hold 4 tokens for each of 1 to {MOST_JOINTS} joints, got {ends - 1} tokens")
    if (ids[inside] < FIRST_BIN).any() or (ids[inside] >= VOCABULARY).any():
        raise ValueError("tokens of joints should be bins")
    batch, most = len(ids), int(counts.max())
    valid = np.arange(most) < counts[:, None]
    bins = ids[:, 1 : 1 + 4 * most].reshape(batch, most, 4).astype(np.int64) - FIRST_BIN
    parents = np.where(valid, bins[..., 3] - 1, -1)
    if not _sorted_trees(parents)[valid].all():
        raise ValueError("the first joint should be the only root and parents come before their children")
    return np.where(valid[..., None], dequantise(bins[..., :3], offset), np.float32(0)), parents, valid


def _sorted_trees(parents) -> np.ndarray:
    """Which parents (B,J) are as they should be: -1 for the first joint, an earlier joint for the others."""
    joint = np.arange(parents.shape[1])
    return np.where(joint == 0, parents == -1, (parents >= 0) & (parents < joint))
