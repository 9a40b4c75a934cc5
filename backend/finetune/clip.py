"""What fine-tuning learns from: some frames of a sequence, and the rig that the teacher gives its anchor.

Every frame is in the frame of the networks, at the anchor's scale and about its own box's centre (METHOD 1: `UnitCube.
centred_on`). What the skinning network is told of a frame goes through the poses that the motion fit finds for the
teacher's rig: the anchor's skeleton carried along, and heat from its bones. The paper shows it the anchor's own
skeleton in every frame; with limbs that have left their bones that asks for weights by heart.

And what it is to say of every frame is not what the teacher says of the anchor alone, as in the paper (eq. 5), but what
it says on the mean of all frames, with a share of the weights that the motion itself tells for the skeleton. The mean
is nearer to what each frame shows, so it is learned sooner; the share makes the rig replay the sequence better, which
no agreement with the teacher does. `target="anchor"` is the paper's way (training/LOG.md has both).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..anchor import anchor_frame
from ..errors import SprigError, no_progress
from ..kinematics import carry_joints
from ..learned import Networks, find_skeleton, weigh
from ..metrics import unit_cube
from ..motion.given import fit_given
from ..points import UnitCube, sample_surface
from ..sequence import MeshSequence
from ..skeleton.tokens import BINS, decode, encode, order_joints, reorder
from ..skinning.heat import heat_features, heat_weights
from ..surface import STILL_TOLERANCE, Prepared, prepare

TARGETS = ("sequence", "anchor")  # what W* is made from
MOTION_SHARE = 0.1  # of the motion's weights in W*; with more they replay better still, and are learned worse
MOTION_FRAMES = 24  # that these are solved on


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

    @property
    def has_poses(self) -> bool:
        """Whether anything moves but the character as a whole, which in the cube does not show."""
        return bool(np.ptp(self.vertices, axis=0).max() > STILL_TOLERANCE)

    def points(self, frame: int, count: int, seed: int) -> np.ndarray:
        """`count` surface points with normals of a frame, uniform by area: (N,6) float32."""
        return sample_surface(self.vertices[frame], self.faces, count, seed).at(self.vertices[frame], self.faces)


def make_clip(
    sequence: MeshSequence, name: str = "clip", *, anchor: int | None = None, most_frames: int = 64, held_out: int = 8
) -> Clip:
    """The sequence's frames, evenly spread if there are more than `most_frames`, with its anchor among them.

    anchor: a position in the sequence; None takes the frame of greatest area (METHOD 1). Every `held_out`-th frame is
    kept back for validation, none for 0 or of fewer than half as many. Raises SprigError where the sequence cannot be
    rigged.
    """
    assert most_frames >= 1, most_frames
    prepared = prepare(sequence, may_be_still=True)
    if anchor is None:
        anchor = anchor_frame(prepared.areas)
    elif not 0 <= anchor < sequence.frame_count:
        raise SprigError(f"There is no frame {anchor} among {sequence.frame_count}; choose another anchor.")
    return clip_of(prepared, name, anchor, most_frames, held_out)


def clip_of(prepared: Prepared, name: str, anchor: int, most_frames: int = 64, held_out: int = 8) -> Clip:
    """As `make_clip`, of a sequence that is prepared already."""
    count = len(prepared.trajectories)
    chosen = np.unique(np.linspace(0, count - 1, min(count, most_frames)).round().astype(int))
    chosen[np.abs(chosen - anchor).argmin()] = anchor  # in order still, and none twice
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

    @cached_property
    def heat(self) -> np.ndarray:
        """Weights (V,J) of the anchor's vertices by heat, to bend it with."""
        return heat_weights(self.clip.vertices[self.clip.anchor], self.clip.faces, self.joints, self.parents)


def skeleton_target(
    clip: Clip, teacher: Networks, *, greedy: bool = False, progress=no_progress
) -> SkeletonTarget:  # fmt: skip
    """The sequence that spells the teacher's best skeleton of the anchor, as `find_skeleton` decodes it; or, `greedy`,
    the one that it writes greedily, as the paper has it (METHOD 3).

    SPRig's own network finds its best skeleton in another view than the clip's, maybe, so its joints are brought into
    the order in which they are written in this one. Raises SprigError for a teacher whose tokens are not joints, and
    where it finds no bones.
    """
    vertices, network = clip.vertices[clip.anchor], teacher.skeleton
    most = network.most_joints
    centre, scale = unit_cube(vertices)
    found = find_skeleton(vertices, clip.faces, teacher, greedy=greedy, progress=progress)
    joints = (found.joints - centre) / scale
    if len(joints) < 2 or np.ptp(joints, axis=0).max() < 1 / BINS:
        raise SprigError(f"The skeleton network finds no bones in the anchor frame of {clip.name}; choose another one.")
    if len(joints) > most:
        raise SprigError(f"The skeleton network cannot read the {len(joints)} joints that it found in {clip.name}.")
    parents = found.parents
    if "skeleton" not in teacher.released:
        joints, parents = reorder(joints, parents, order_joints(joints, parents))
    ids = encode(joints + (0.5 - network.offset) / BINS, parents)  # centres are safe
    joints, parents = decode(ids, network.offset)
    return SkeletonTarget(clip, torch.as_tensor(ids), torch.as_tensor(joints), torch.as_tensor(parents))


@dataclass(frozen=True, eq=False)
class SkinningTarget:
    """Tracked points of the clip and the weights that are taught of them.

    points (F,N,6); joints (F,J,3) posed, parents (J,) long; heat (F,N,J,2) float16, the bulk of a clip, or None for a
    network that needs none; weights W* (N,J); all in the cube. Every joint is valid.
    """

    clip: Clip
    points: Tensor
    joints: Tensor
    parents: Tensor
    heat: Tensor | None
    weights: Tensor


def skinning_target(
    clip: Clip,
    joints,
    parents,
    teacher: Networks,
    *,
    target: str = "sequence",
    points: int = 1024,
    seed: int = 0,
    progress=no_progress,
) -> SkinningTarget:
    """Weigh the anchor for a skeleton, joints (J,3) in the cube and parents (J,), pose it, and track points.

    In every frame joints are where the skin around them has carried them. Poses of the hierarchy, fitted to the motion,
    put them several per cent of the character beside the skin that they move where the network's joints are not quite
    right, and weights cannot be steady for joints that are not. `target`, one of TARGETS, says what W* is made from:
    the anchor, or all frames that are not held out.
    """
    assert target in TARGETS, target
    rest = clip.vertices[clip.anchor]
    progress(0.0, "Weighting the anchor")
    weights = weigh(rest, clip.faces, joints, parents, teacher, seed=seed + 1)
    posed = carry_joints(joints, parents, weights, rest, clip.vertices)
    surface = sample_surface(rest, clip.faces, points, seed)
    heats = []
    for frame, vertices in enumerate(clip.vertices):
        progress(0.1 + 0.7 * frame / len(clip.vertices), "Heating the frames")
        if "skinning" not in teacher.released:
            heats.append(surface.blend(heat_features(vertices, clip.faces, posed[frame], parents), clip.faces))
    tracked = SkinningTarget(
        clip,
        torch.as_tensor(np.stack([surface.at(vertices, clip.faces) for vertices in clip.vertices])),
        torch.as_tensor(posed, dtype=torch.float32),
        torch.as_tensor(parents, dtype=torch.long),
        torch.as_tensor(np.stack(heats)).half() if heats else None,
        torch.empty(0),
    )
    progress(0.8, "Weighting the frames")
    learned = [clip.anchor] if target == "anchor" else np.flatnonzero(~clip.held_out).tolist()
    found = sum(_teachers_weights(tracked, frame, teacher) for frame in learned) / len(learned)
    if target == "sequence":
        moved = torch.as_tensor(surface.blend(_motions_weights(clip, learned, joints, parents, weights), clip.faces))
        found = (1 - MOTION_SHARE) * found + MOTION_SHARE * moved.float()
    return replace(tracked, weights=found)


@torch.no_grad()
def _teachers_weights(target: SkinningTarget, frame: int, teacher: Networks) -> Tensor:
    """W (N,J) of the tracked points in a frame."""
    return frame_weights(teacher.skinning, target, [frame], teacher.device)[0].float().cpu()


def _motions_weights(clip: Clip, frames: list[int], joints, parents, weights):
    """Vertex weights (V,J) that explain the motion in some frames, from the teacher's, for joints (J,3) that stay."""
    few = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), MOTION_FRAMES)).round().astype(int))
    shown = np.union1d(np.asarray(frames)[few], [clip.anchor])
    anchor = int(np.flatnonzero(shown == clip.anchor)[0])
    fit = fit_given(clip.vertices[shown], clip.edges, anchor, joints, parents, weights, rest_correction=False)
    return fit.weights


def frame_weights(network, target: SkinningTarget, frames, device, chosen=None) -> Tensor:
    """A skinning network's weights W^t (B,N,J) of a clip's tracked points in some frames (SPRig eq. 4).

    chosen (K,) long: of these points alone, (B,K,J). The network sees all of them anyway.
    """
    frames = torch.as_tensor(np.asarray(frames, dtype=np.int64))
    chosen = slice(None) if chosen is None else chosen
    points, joints = target.points[frames].to(device), target.joints[frames].to(device)
    parents = target.parents.to(device).expand(len(frames), -1)
    valid = torch.ones_like(parents, dtype=torch.bool)
    if target.heat is None:
        return network(points, joints, parents, valid)[:, chosen]
    heat = target.heat[frames][:, chosen].to(device).float()
    return network.weights(points[:, chosen], heat, network.encode(points, joints, parents, valid))
