"""What fine-tuning learns from: some frames of a sequence, and the rig that the teacher gives its anchor.

Every frame is in the frame of the networks, at the anchor's scale and about its own box's centre (METHOD 1: `UnitCube.
centred_on`). What the skinning network is told of a frame goes through the poses that the motion fit finds for the
teacher's rig: the anchor's skeleton carried along, and heat from its bones. The paper shows it the anchor's own
skeleton in every frame; with limbs that have left their bones that asks for weights by heart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..anchor import anchor_frame
from ..errors import no_progress
from ..learned import Networks, find_skeleton, weigh
from ..metrics import unit_cube
from ..motion.poses import fit_poses
from ..points import UnitCube, sample_surface
from ..sequence import MeshSequence
from ..skeleton.tokens import BINS, encode
from ..skinning.heat import heat_features
from ..surface import prepare


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one sequence in the cube, welded.

    vertices (F,V,3) float32; faces (M,3); anchor: which frame it is; frames (F,) their positions in the sequence;
    held_out (F,) bool: frames that nothing is learned from, never the anchor.
    """

    name: str
    vertices: np.ndarray
    faces: np.ndarray
    edges: np.ndarray
    anchor: int
    frames: np.ndarray
    held_out: np.ndarray

    def points(self, frame: int, count: int, seed: int) -> np.ndarray:
        """`count` surface points with normals of a frame, uniform by area: (N,6) float32."""
        return sample_surface(self.vertices[frame], self.faces, count, seed).at(self.vertices[frame], self.faces)


def make_clip(
    sequence: MeshSequence, name: str = "clip", *, anchor: int | None = None, most_frames: int = 64, held_out: int = 8
) -> Clip:
    """The sequence's frames, evenly spread if there are more than `most_frames`, with its anchor among them.

    anchor: a position in the sequence; None takes the frame of greatest area (METHOD 1). Every `held_out`-th frame is
    kept back for validation, none for 0. Raises SprigError where the sequence cannot be rigged.
    """
    prepared = prepare(sequence, may_be_still=True)
    anchor = anchor_frame(prepared.areas) if anchor is None else anchor
    return _frames_of(prepared, name, anchor, most_frames, held_out)


def _frames_of(prepared, name, anchor, most_frames, held_out) -> Clip:
    count = len(prepared.trajectories)
    chosen = np.unique(np.linspace(0, count - 1, min(count, most_frames)).round().astype(int))
    chosen[np.abs(chosen - anchor).argmin()] = anchor
    cube = UnitCube.of(prepared.trajectories[anchor])
    vertices = np.stack([cube.centred_on(frame).to_cube(frame) for frame in prepared.trajectories[chosen]])
    place = int(np.flatnonzero(chosen == anchor)[0])
    kept = np.zeros(len(chosen), dtype=bool)
    if held_out:
        kept[held_out // 2 :: held_out] = True
        kept[place] = False
    edges = np.concatenate([prepared.edges, prepared.bridges])
    return Clip(name, vertices, prepared.faces, edges, place, chosen, kept)


# ---- the teacher's rig of the anchor, as each network's losses want it


@dataclass(frozen=True, eq=False)
class SkeletonTarget:
    """The teacher's skeleton of the anchor: ids (T,) long, from BOS to EOS, and the joints (J,3) and parents (J,) in
    the cube that they spell."""

    clip: Clip
    ids: Tensor
    joints: Tensor
    parents: Tensor


def skeleton_target(clip: Clip, teacher: Networks, progress=no_progress) -> SkeletonTarget:
    """The sequence that the teacher writes for the anchor, greedily (METHOD 3)."""
    vertices = clip.vertices[clip.anchor]
    centre, scale = unit_cube(vertices)
    found = find_skeleton(vertices, clip.faces, teacher, progress=progress)
    joints = (found.joints - centre) / scale
    return SkeletonTarget(
        clip,
        torch.as_tensor(encode(joints + (0.5 - teacher.skeleton.offset) / BINS, found.parents)),  # centres are safe
        torch.as_tensor(joints, dtype=torch.float32),
        torch.as_tensor(found.parents),
    )


@dataclass(frozen=True, eq=False)
class SkinningTarget:
    """Tracked points of the clip and the teacher's weights of them on the anchor.

    points (F,N,6); joints (F,J,3) posed, parents (J,); heat (F,N,J,2), or None for a network that needs none; weights
    W* (N,J); all in the cube. Every joint is valid.
    """

    clip: Clip
    points: Tensor
    joints: Tensor
    parents: Tensor
    heat: Tensor | None
    weights: Tensor


def skinning_target(
    clip: Clip, joints, parents, teacher: Networks, *, points: int = 1024, seed: int = 0, progress=no_progress
) -> SkinningTarget:
    """Weigh the anchor for a skeleton, joints (J,3) in the cube and parents (J,), fit its poses, and track points."""
    rest = clip.vertices[clip.anchor]
    progress(0.0, "Weighting the anchor")
    weights = weigh(rest, clip.faces, joints, parents, teacher, seed=seed + 1)
    motion = fit_poses(
        clip.vertices, clip.edges, clip.anchor, weights, np.asarray(joints, np.float64), parents,
        progress=lambda share, text: progress(0.1 + 0.3 * share, text),
    )  # fmt: skip
    posed = np.einsum("fjab,jb->fja", motion[..., :3, :3], joints) + motion[..., :3, 3]
    surface = sample_surface(rest, clip.faces, points, seed)
    heats = []
    for frame, vertices in enumerate(clip.vertices):
        progress(0.4 + 0.6 * frame / len(clip.vertices), "Heating the frames")
        if "skinning" not in teacher.released:
            heats.append(surface.blend(heat_features(vertices, clip.faces, posed[frame], parents), clip.faces))
    target = SkinningTarget(
        clip,
        torch.as_tensor(np.stack([surface.at(vertices, clip.faces) for vertices in clip.vertices])),
        torch.as_tensor(posed, dtype=torch.float32),
        torch.as_tensor(parents),
        torch.as_tensor(np.stack(heats)) if heats else None,
        torch.empty(0),
    )
    with torch.no_grad():
        found = frame_weights(teacher.skinning, target, [clip.anchor], teacher.device)[0].cpu()
    return SkinningTarget(**{**vars(target), "weights": found})


def frame_weights(network, target: SkinningTarget, frames, device) -> Tensor:
    """A skinning network's weights W^t (B,N,J) of a clip's tracked points in some frames (SPRig eq. 4)."""
    count = len(frames)
    seen = [
        target.points[frames],
        target.joints[frames],
        target.parents.expand(count, -1),
        torch.ones((count, len(target.parents)), dtype=torch.bool),
    ]
    if target.heat is not None:
        seen.append(target.heat[frames])
    return network(*(value.to(device) for value in seen))
