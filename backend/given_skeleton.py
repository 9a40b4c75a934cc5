"""A skeleton that the user brings, in its rest pose, together with what it says about mesh, weights and motion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .errors import SprigError

MOVES = 1e-4  # of the mesh's diagonal: a bone whose place against its parent varies by less only turns


@dataclass(frozen=True, eq=False)
class GivenSkeleton:
    """A skeleton of the user's in its rest pose, in world space. J bones, V vertices, F frames.

    joints, tails (J,3); parents (J,) -1 for a root, in any order; names (J,) unique; the shape that the mesh has in the
    rest pose is rest_vertices (V,3), or that of the frame numbered rest_frame. frames (J,4,4): rest matrices that say
    the rolls, None for none; located (J,): bones that may move against their parent, roots always may; deform (J,):
    bones that may carry weights; weights (V,J) as the user has them, rows need not sum to 1, None for none; locked
    (J,): bones that keep those weights; motion (F,J,4,4): rest pose to frame f, None where it is not known.
    """

    joints: np.ndarray
    tails: np.ndarray
    parents: np.ndarray
    names: tuple[str, ...]
    rest_vertices: np.ndarray | None = None
    rest_frame: int | None = None
    frames: np.ndarray | None = None
    located: np.ndarray | None = None
    deform: np.ndarray | None = None
    weights: np.ndarray | None = None
    locked: np.ndarray | None = None
    motion: np.ndarray | None = None

    def __post_init__(self):
        joints = np.asarray(self.joints, dtype=np.float64).reshape(-1, 3)
        count = len(joints)
        settle = {
            "joints": joints,
            "tails": np.asarray(self.tails, dtype=np.float64),
            "parents": np.asarray(self.parents, dtype=np.int64),
            "names": tuple(str(name) for name in self.names),
            "located": np.zeros(count, bool) if self.located is None else np.asarray(self.located, dtype=bool),
            "deform": np.ones(count, bool) if self.deform is None else np.asarray(self.deform, dtype=bool),
            "locked": np.zeros(count, bool) if self.locked is None else np.asarray(self.locked, dtype=bool),
        }
        for field, value in settle.items():
            object.__setattr__(self, field, value)
        if not self.deform.any():
            raise SprigError("The skeleton has no bone that deforms; switch Deform on for the bones that should.")
        for name in ("joints", "tails", "frames", "rest_vertices", "weights", "motion"):
            values = getattr(self, name)
            if values is not None and not np.isfinite(values).all():
                raise SprigError(f"The skeleton's {name.replace('_', ' ')} are not finite; repair or export it again.")

    def parents_first(self) -> GivenSkeleton:
        """The same skeleton with parents before their children."""
        order = _parents_first(self.parents)
        if (order == np.arange(len(order))).all():
            return self
        number = np.append(np.argsort(order), -1)
        pick = {
            field: None if getattr(self, field) is None else getattr(self, field)[order]
            for field in ("joints", "tails", "frames", "located", "deform", "locked")
        }
        return GivenSkeleton(
            **pick,
            parents=number[self.parents[order]],
            names=tuple(self.names[j] for j in order),
            rest_vertices=self.rest_vertices,
            rest_frame=self.rest_frame,
            weights=None if self.weights is None else self.weights[:, order],
            motion=None if self.motion is None else self.motion[:, order],
        )


def _parents_first(parents) -> np.ndarray:
    """The bones (J,) with parents before their children, otherwise in their own order; SprigError for a ring."""
    if (parents < -1).any() or (parents >= len(parents)).any():
        raise SprigError("The skeleton has a parent that is none of its bones; export it again.")
    if (parents < np.arange(len(parents))).all():
        return np.arange(len(parents))
    depth = np.zeros(len(parents), dtype=np.int64)
    above = parents
    while (above >= 0).any():
        depth += above >= 0
        if depth.max() >= len(parents):
            raise SprigError("The skeleton has bones that are their own ancestors; export it again.")
        above = np.where(above >= 0, parents[above], -1)
    return np.argsort(depth, kind="stable")


def moving_bones(motion, joints, parents, diagonal: float) -> np.ndarray:
    """Bones (J,) whose place against their parent varies in a motion (F,J,4,4), rest pose to frame; False for roots.

    joints (J,3) in the rest pose, parents (J,), diagonal of the mesh.
    """
    parents = np.asarray(parents)
    heads = np.concatenate([joints, np.ones((len(parents), 1))], axis=1)
    own = np.einsum("fjik,jk->fji", motion, heads)
    against = np.einsum("fjik,fjk->fji", np.linalg.inv(motion[:, np.maximum(parents, 0)]), own)
    span = np.linalg.norm(np.ptp(against[..., :3], axis=0), axis=1)
    return (parents >= 0) & (span > MOVES * diagonal)
