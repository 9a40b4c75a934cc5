"""What carries a character through the scene: its root joint, a bone on the ground below it, or the whole object.

The travel is what the root joint moves horizontally between the rest pose and a frame; heights and turns are never part
of it, so that a jump and a pirouette stay with the body. Whoever carries it, every vertex is posed at the same place:
the motion of a joint takes the rest pose to a frame in the world, and a bone above it changes nothing in that.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .rig import Rig, Skeleton

ROOT_MOTIONS = ("hips", "root", "object")
ROOT_BONE = "root"
ROOT_LENGTH = 0.1  # diagonals
BODY_NAMES = ("hips", "pelvis", "body")  # of a joint that was called like the new bone


def horizontal_travel(rig: Rig) -> np.ndarray:
    """How far the root joint, or the middle of several, is from its rest place: (F,3) float64, nothing along Z."""
    roots = rig.skeleton.parents < 0
    joints, motion = rig.skeleton.joints[roots], rig.motion[:, roots]
    moved = np.einsum("frij,rj->fri", motion[..., :3, :3], joints) + motion[..., :3, 3] - joints
    travel = moved.mean(axis=1)
    travel[:, 2] = 0.0
    return travel


def with_root_bone(rig: Rig) -> Rig:
    """The rig with one more joint, the first, that stands on the ground and makes the horizontal travel.

    It is called root and points along +Y with Z up, so that its axes are the world's. It moves no vertex by itself; the
    roots that there were are its children, and one that was called root is called hips.
    """
    skeleton = rig.skeleton
    roots = skeleton.parents < 0
    head = np.array([*skeleton.joints[roots, :2].mean(axis=0), rig.rest_vertices[:, 2].min()], dtype=np.float64)
    length = ROOT_LENGTH * np.linalg.norm(np.ptp(rig.rest_vertices.astype(np.float64), axis=0))
    motion = np.tile(np.eye(4), (len(rig.motion), 1, 1, 1))
    motion[:, 0, :3, 3] = horizontal_travel(rig)
    frames = skeleton.frames
    if frames is not None:
        own = np.eye(4)
        own[:3, 3] = head
        frames = np.concatenate([own[None], frames])
    return replace(
        rig,
        skeleton=Skeleton(
            np.concatenate([head[None], skeleton.joints]),
            np.concatenate([head[None] + [0.0, length, 0.0], skeleton.tails]),
            np.concatenate([[-1], np.where(roots, 0, skeleton.parents + 1)]),
            (ROOT_BONE, *_renamed(skeleton.names)),
            frames,
        ),
        weights=np.pad(rig.weights, ((0, 0), (1, 0))),
        motion=np.concatenate([motion, rig.motion], axis=1),
        seen_in_motion=np.concatenate([[bool(motion[:, 0, :3, 3].any())], rig.seen_in_motion]),
        rotation_range=np.concatenate([[0.0], rig.rotation_range]),
        confidence=np.concatenate([[np.nan], rig.confidence]),
    )


def without_travel(rig: Rig) -> Rig:
    """The rig as it moves in a space that makes the horizontal travel with it."""
    motion = rig.motion.copy()
    motion[:, :, :3, 3] -= horizontal_travel(rig)[:, None]
    return replace(rig, motion=motion)


def _renamed(names: tuple[str, ...]) -> list[str]:
    """The names, where none is that of the new bone."""
    numbered = (f"{BODY_NAMES[0]}_{number}" for number in range(2, len(names) + 2))
    free = next(name for name in (*BODY_NAMES, *numbered) if name not in names)
    return [free if name == ROOT_BONE else name for name in names]
