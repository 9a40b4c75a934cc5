"""Rolls: which way the X axis of every bone points, so that it is the axis that an animator bends.

Three rules, the same for every skeleton, whatever pose it was found in:
* On the trunk X points to the character's left, so that a turn about X bends the whole spine, neck or tail in the
  mirror plane.
* Along a limb X is one axis, that of its bends: the direction that is closest to perpendicular to all its bones. A
  positive turn bends the knee or elbow further, that is the joint between its two longest bones. A straight limb takes
  the axis that swings it back, an arm forwards, which is where knees and elbows bend.
* A pair shares its axis, found on both, and one side is the mirror image of the other. Blender's mirror tools flip a
  pose by negating turns about Y and Z, which is right exactly when a bone's Y and Z are the mirror images of its
  partner's and X is the negative of one; hence the trunk's rule, too.

A bone that lies along its limb's axis, such as a shoulder, takes the rule for straight limbs.
"""

from __future__ import annotations

import numpy as np

from .kinematics import bone_frames
from .naming import UP, Anatomy

BENT = np.sin(np.radians(10.0))  # a limb whose bones turn less against each other is straight
ALONG = np.sin(np.radians(20.0))  # a bone closer to an axis than this cannot turn about it
LIKE_BRANCHES = 0.5  # of the longest: a branch as long as this is a finger, and each finger bends by itself


def rest_frames(joints, tails, parents, anatomy: Anatomy) -> np.ndarray:
    """Rest matrices of bones (J,4,4), as bone_frames gives them but with rolls by the rules above.

    joints, tails (J,3); parents (J,) before their children, -1 for roots; anatomy: of these joints and parents.
    """
    frames = bone_frames(joints, tails)
    along = frames[:, :3, 1]
    lengths = np.linalg.norm(np.subtract(tails, joints), axis=1)
    left = anatomy.left
    back = np.cross(UP, left)
    if np.linalg.norm(back) < ALONG:  # the character lies on its side
        back = np.array([0.0, 1.0, 0.0])
    parts = anatomy.parts
    mirror = np.eye(3) - 2 * np.outer(left, left)
    trunk = anatomy.side == 0 if anatomy.mirrors else np.zeros(len(along), dtype=bool)
    trunk &= np.linalg.norm(np.cross(along, left), axis=1) > ALONG
    across = np.tile(left, (len(along), 1))
    for chain in _chains(np.asarray(parents), along, lengths, anatomy, trunk):
        swing = -back if parts[chain[0]] == "arm" else back
        images = [(along[chain], lengths[chain])]
        partners = anatomy.partner[chain]
        if (partners >= 0).all():
            images.append((along[partners] @ mirror, lengths[partners]))
        axis = _bend_axis(images, swing)
        across[chain] = [_turning(axis, along[j], swing) for j in chain]
        for partner in partners[partners >= 0].tolist():
            across[partner] = -mirror @ _turning(axis, mirror @ along[partner], swing)
    x = across - np.sum(across * along, axis=1, keepdims=True) * along
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    frames[:, :3, 0], frames[:, :3, 2] = x, np.cross(x, along)
    return frames


def _chains(parents, along, lengths, anatomy: Anatomy, trunk) -> list[list[int]]:
    """The joints off the trunk as chains, each along its longest branch; of a pair the left side, or what is alone."""
    reach = lengths.copy()  # of a bone and the longest way below it
    children = [[] for _ in parents]
    for j in range(len(parents) - 1, -1, -1):
        if parents[j] >= 0:
            children[parents[j]].append(j)
            reach[parents[j]] = max(reach[parents[j]], lengths[parents[j]] + reach[j])
    stands = ~trunk & ~((anatomy.partner >= 0) & (anatomy.side < 0))
    chains, taken = [], set()
    for start in np.flatnonzero(stands).tolist():
        if start in taken:
            continue
        chain = [start]
        while onward := [c for c in children[chain[-1]] if stands[c] and _same_kind(anatomy, chain[-1], c)]:
            onward.sort(key=lambda c: (-reach[c], c))
            if len(onward) > 1 and reach[onward[1]] > LIKE_BRANCHES * reach[onward[0]]:
                break
            chain.append(onward[0])
        taken.update(chain)
        chains.append(chain)
    return chains


def _same_kind(anatomy: Anatomy, above: int, below: int) -> bool:
    """Whether two joints are both of a pair, both alone on the same side: a sword does not lead the arm."""
    paired = anatomy.partner[[above, below]] >= 0
    return paired[0] == paired[1] and anatomy.side[above] == anatomy.side[below]


def _bend_axis(images: list, swing) -> np.ndarray:
    """The axis (3,) about which a limb bends; images: directions (K,3), lengths (K,) of it and of its mirror image."""
    bends = np.concatenate([np.cross(along[:-1], along[1:]) for along, _ in images])
    values, vectors = np.linalg.eigh(bends.T @ bends)
    straight = _straight_axis(sum(lengths @ along for along, lengths in images), swing)
    if values[-1] < len(images) * BENT**2:
        return straight
    axis = vectors[:, -1]
    lengths = images[0][1]
    knee = int(np.minimum(lengths[:-1], lengths[1:]).argmax())
    bend = axis @ sum(np.cross(along[knee], along[knee + 1]) for along, _ in images)
    if abs(bend) < len(images) * BENT:
        bend = axis @ straight
    return axis if bend >= 0 else -axis


def _straight_axis(along, swing) -> np.ndarray:
    """The unit axis that swings a bone towards `swing`, or upwards where it lies along that."""
    for towards in (swing, UP):
        axis = np.cross(along, towards)
        if np.linalg.norm(axis) > ALONG * np.linalg.norm(along):
            break
    length = np.linalg.norm(axis)
    return axis / length if length > 0 else np.cross(swing, UP)


def _turning(axis, along, swing) -> np.ndarray:
    """The axis about which a bone turns: its limb's, or where it lies along that a straight limb's."""
    return axis if np.linalg.norm(np.cross(axis, along)) > ALONG else _straight_axis(along, swing)
