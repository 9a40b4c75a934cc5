"""What the skeleton network says when every frame is asked by itself: the flicker that one rig for all frames removes.

Each frame is decoded greedily, as the paper measures its baseline: what the views of a frame agree on would flicker
less, but the rig does not depend on it either way.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from .errors import no_progress
from .kinematics import carried_points
from .learned import Networks, find_skeleton
from .metrics import diagonal
from .rig import Rig
from .sequence import MeshSequence
from .surface import prepare

MOST_FRAMES = 120  # that are decoded: some twenty seconds on a CPU; of longer sequences every second one, or fewer


class RawSkeletons(NamedTuple):
    """The network's skeletons of K frames, in the sequence's coordinates.

    frames (K,): positions in the sequence, evenly spaced; joints: for each frame (J,3), parents: for each (J,);
    raw_shift, rig_shift: how far a joint moves from one of these frames to the next, in the mean and in per cent of the
    diagonal: the network's, each joint matched to the nearest, and the rig's.
    """

    frames: np.ndarray
    joints: tuple[np.ndarray, ...]
    parents: tuple[np.ndarray, ...]
    raw_shift: float
    rig_shift: float


def decode_frames(
    sequence: MeshSequence, rig: Rig, networks: Networks, *, seed: int = 0, progress=no_progress
) -> RawSkeletons:
    """Decode the frames of the sequence that a rig was made from, one by one."""
    prepared = prepare(sequence, may_be_still=True)
    frames = np.arange(0, sequence.frame_count, -(-sequence.frame_count // MOST_FRAMES))
    found = []
    for k, f in enumerate(frames):
        progress(k / len(frames), f"Decoding frame {sequence.frame_numbers[f]}")
        shape = prepared.trajectories[f].astype(np.float64)
        found.append(find_skeleton(shape, prepared.faces, networks, greedy=True, seed=seed))
    joints = tuple(one.joints for one in found)
    heads = carried_points(rig.motion[frames], rig.skeleton.joints)
    share = 100 / diagonal(sequence.vertices[rig.anchor])
    rig_shift = np.linalg.norm(np.diff(heads, axis=0), axis=2)
    return RawSkeletons(
        frames,
        joints,
        tuple(one.parents for one in found),
        share * matched_shift(joints),
        share * float(rig_shift.mean()) if len(frames) > 1 else 0.0,
    )


def matched_shift(places) -> float:
    """Mean distance between the joints (J,3) of one frame and of the next, matched one to one for the least total.

    Joints without a match do not count: where their number changes, more flickers than this says.
    """
    shifts = []
    for one, other in pairwise(places):
        apart = cdist(one, other)
        shifts.append(apart[linear_sum_assignment(apart)].mean())
    return float(np.mean(shifts)) if shifts else 0.0
