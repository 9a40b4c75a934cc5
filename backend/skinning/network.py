"""A compact skinning network: how much each joint moves each surface point.

For every point there is one feature per joint, and blocks of a graph network pass messages between the joints, along
the bones:

    x[n,j] = geometry of the pair (how far from which bone, on which side of it), heat of n at j,
             heat of the connected piece that n is on, traits of j (lengths and number of the bones around it), what
             lies around n
    block:  x[n,j] += f( x[n,j], x[n,parent j], mean of x[n,children j], sum_k a[n,k] x[n,k] )
    logit[n,j] = w . x[n,j] + c log h[n,j],   weights = soft-max over j,

with a an attention that starts at the heat, and h the point's weights by heat (heat.py): the network corrects those,
and knows through them how the surface hangs together.

Choices that a reader would question:
* Nothing says where in the cube a point or a joint is. With the hundred different rigs that there are to learn from, a
  network that sees places learns these rigs by heart (training/LOG.md has both curves); one that sees how points lie to
  bones has learned from every joint of every rig.
* The pair's geometry is given, not learned from coordinates: distance to the bones of a joint is most of what skinning
  is about, and a network of this size that must discover it from sines of coordinates needs far more data.
* No index is ever embedded, so neither the order of joints nor that of points matters, and padding is never seen.
* Points do not attend to points. What surrounds a point (on a finger also the far side, which gives its thickness) it
  reads from its nearest neighbours in the encoded cloud. So points can be weighted in any number, in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAR = 0.01  # of the cube: distances below this are alike in the logarithm, it is about the radius of a finger
TIP = 0.5  # a leaf's bone goes on beyond the joint for this part of the bone that leads to it
LEAST_HEAT = 0.01  # shares below this are alike in the logarithm
PAIR_FEATURES = 20
TRAITS = 9
NEIGHBOUR_FEATURES = 9
SEARCH = 1 << 24  # distances in memory at a time while neighbours are searched


@dataclass(frozen=True)
class SkinningConfig:
    """Size of a `SkinningNetwork`; the defaults make 140,000 parameters."""

    width: int = 64  # of the feature of a point at a joint
    blocks: int = 3  # how many joints away a message comes from
    neighbours: int = 16  # points around a point that it reads
    support: int = 1024  # points that these are chosen from; of a larger cloud an even stride
    dropout: float = 0.1  # on what each block adds, in training


@dataclass(frozen=True, eq=False)
class Encoded:
    """What `SkinningNetwork.encode` keeps of a body for any number of points; padding joints hold zeros.

    support (B,S,6), joints (B,J,3), parents (B,J) (a root's is itself), valid (B,J), traits (B,J,W); to_parent and
    to_children (B,J,J) take values at joints to those at their parents and to the means over their children.
    """

    support: Tensor
    joints: Tensor
    parents: Tensor
    valid: Tensor
    traits: Tensor
    to_parent: Tensor
    to_children: Tensor


class SkinningNetwork(nn.Module):
    """Points with normals and a skeleton in the unit cube -> weights on the simplex (SPRig eq. 4)."""

    kind = "skinning"
    encoder_parts = ("pair", "traits", "around", "around_to_pair")  # modules that fine-tuning leaves as they are

    def __init__(self, config: SkinningConfig | None = None):
        super().__init__()
        self.config = config = config or SkinningConfig()
        width = config.width
        self.pair = _mlp(PAIR_FEATURES, 2 * width, width)
        self.traits = nn.Linear(TRAITS, width)
        self.around = _mlp(NEIGHBOUR_FEATURES, width, width)
        self.around_to_pair = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, config.dropout) for _ in range(config.blocks))
        self.norm = nn.LayerNorm(width)
        self.logit = nn.Linear(width, 1)
        nn.init.zeros_(self.logit.weight)  # it starts at the heat
        self.trust = nn.Parameter(torch.ones(()))  # in the heat

    def forward(self, points: Tensor, joints: Tensor, parents: Tensor, valid: Tensor, heat: Tensor) -> Tensor:
        """Weights (B,N,J) float32 of points (B,N,6) for joints (B,J,3): rows sum to 1, padding columns are 0.

        parents (B,J) long, -1 for a root and where not valid; valid (B,J) bool, at least one in every row; heat
        (B,N,J,2) by `heat_features`. Positions lie in [-0.5, 0.5]^3, normals are unit. Joints may come in any order.
        """
        return self.weights(points, heat, self.encode(points, joints, parents, valid))

    @torch.no_grad()
    def predict(self, points, joints, parents, valid, heat, chunk: int = 1024) -> Tensor:
        """`forward` without gradients, `chunk` points at a time: only the result grows with their number."""
        encoded = self.encode(points, joints, parents, valid)
        parts = zip(points.split(chunk, dim=1), heat.split(chunk, dim=1), strict=True)
        return torch.cat([self.weights(part, warm, encoded) for part, warm in parts], dim=1)

    def encode(self, points: Tensor, joints: Tensor, parents: Tensor, valid: Tensor) -> Encoded:
        """What `weights` needs of a body, whatever points it weighs; shapes as in `forward`."""
        points = points[:, :: -(-points.shape[1] // self.config.support)]
        joints = torch.where(valid[..., None], joints, 0.0)
        own = torch.arange(joints.shape[1], device=joints.device)
        root = (parents < 0) | ~valid
        up = torch.where(root, own, parents)
        to_parent = ((up[..., None] == own) & ~root[..., None]).to(joints.dtype)
        children = to_parent.sum(1)
        to_children = to_parent.mT / children[..., None].clamp_min(1)
        return Encoded(
            points, joints, up, valid, self.traits(_traits(joints, up, root, children)), to_parent, to_children
        )

    def weights(self, points: Tensor, heat: Tensor, encoded: Encoded) -> Tensor:
        """Weights (B,N,J) of points (B,N,6) with heat (B,N,J,2), of the encoded cloud or not.

        Each row depends on its own point alone.
        """
        geometry = pair_geometry(points, encoded.joints, encoded.parents, encoded.valid)
        heat, piece = heat.unbind(-1)
        log_heat = torch.log(heat + LEAST_HEAT)
        most, most_of_piece = (values.amax(2, keepdim=True).clamp_min(1e-6) for values in (heat, piece))
        warmth = [
            heat + LEAST_HEAT,
            log_heat / 2 + 1,
            heat @ encoded.to_parent.mT,
            heat @ encoded.to_children.mT,
            heat / most,
            (heat >= most).to(heat.dtype),
            piece,
            torch.log(piece + LEAST_HEAT) / 2 + 1,
            piece / most_of_piece,
        ]
        x = self.pair(torch.cat([geometry, torch.stack(warmth, dim=-1)], dim=-1))  # (B,N,J,W)
        around = self.around(_neighbourhood(points, encoded.support, self.config.neighbours)).amax(dim=2)
        x = x + self.around_to_pair(around)[:, :, None] + encoded.traits[:, None]
        for block in self.blocks:
            x = block(x, encoded, log_heat)
        logits = self.logit(self.norm(x))[..., 0].float() + self.trust * log_heat
        return logits.masked_fill(~encoded.valid[:, None], -torch.inf).softmax(dim=-1)


class Block(nn.Module):
    """Messages along the bones, for every point by itself."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.own = nn.Linear(width, 2 * width)
        self.from_parent, self.from_children, self.from_all = (
            nn.Linear(width, 2 * width, bias=False) for _ in range(3)
        )
        self.score = nn.Linear(width, 1)
        self.out = nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, body: Encoded, log_heat: Tensor) -> Tensor:
        """x (B,N,J,W) -> (B,N,J,W); log_heat (B,N,J)."""
        normed = self.norm(x)
        score = self.score(normed)[..., 0].float() + log_heat
        attention = score.masked_fill(~body.valid[:, None], -torch.inf).softmax(-1)
        every = attention[:, :, None].to(normed.dtype) @ normed  # (B,N,1,W)
        parent = body.to_parent[:, None].to(normed.dtype) @ normed
        children = body.to_children[:, None].to(normed.dtype) @ normed
        mixed = self.own(normed) + self.from_parent(parent) + self.from_children(children) + self.from_all(every)
        return x + self.dropout(self.out(F.gelu(mixed)))


def _traits(joints: Tensor, parents: Tensor, root: Tensor, children: Tensor) -> Tensor:
    """What is known of joints (B,J,3) from their bones alone: (B,J,9), invariant to rigid motion.

    Logarithms of the lengths of the bone from the parent, of the longest to a child, and of the parent's; whether it is
    a leaf, a root, has one child, and how many children (B,J); how straight the chain goes on at the parent, as the
    cosine between the two bones; and whether it lies at its parent's place.
    """
    bone = joints - _rows(joints, parents)
    length = bone.norm(dim=-1)
    longest = torch.zeros_like(length).scatter_reduce(1, parents, torch.where(root, 0.0, length), "amax")
    above, above_length = _rows(bone, parents), length.gather(1, parents)
    straight = (bone * above).sum(-1) / (length * above_length).clamp_min(1e-6)
    logs = [torch.log(value + NEAR) / 2 + 1 for value in (length, longest, above_length)]
    kind = [children == 0, root, children == 1, length < NEAR / 2]
    return torch.stack([*logs, *(value.to(length.dtype) for value in kind), children / 4, straight], dim=-1)


def pair_geometry(points: Tensor, joints: Tensor, parents: Tensor, valid: Tensor) -> Tensor:
    """How points (B,N,6) lie to the bones of joints (B,J,3): (B,N,J,11), invariant to rigid motion of both.

    parents (B,J), a root's or padding joint's being itself. Bone c runs from the parent of c to c. For every joint: the
    distances to it, to its own bone (the nearest of those to its children; at a leaf, TIP of its parent's bone beyond
    it) and to the bone from its parent, as they are and as logarithms; where along both bones the point lies; on which
    side of them it faces, as the cosine between its normal and the way from bone to point (about 1 on the limb's own
    skin, negative on a limb beside it); and how the distance to its own bone compares with the smallest one of all.
    """
    position, normal = points[:, :, None, :3], points[:, :, None, 3:]
    head, tail = _rows(joints, parents)[:, None], joints[:, None]
    bone, where, side = _to_segment(position, normal, head, tail)
    from_joint = position - tail
    joint = from_joint.norm(dim=-1)

    # The nearest bone to a child: every bone offers its values to its parent, a joint without children has a tip.
    to_parent = parents[:, None].expand_as(bone)
    own = torch.arange(joints.shape[1], device=joints.device)
    has_parent = (parents != own)[:, None].expand_as(bone)
    none = torch.full_like(bone, torch.inf)
    child = none.scatter_reduce(2, to_parent, torch.where(has_parent, bone, torch.inf), "amin")
    nearest = has_parent & (bone <= child.gather(2, to_parent))
    low = torch.full_like(bone, -2.0)
    child_where = low.scatter_reduce(2, to_parent, torch.where(nearest, where.clamp(0, 1), -2.0), "amax")
    child_side = low.scatter_reduce(2, to_parent, torch.where(nearest, side, -2.0), "amax")
    leaf = child.isinf()
    tip, tip_where, tip_side = _to_segment(position, normal, tail, tail + TIP * (tail - head))
    child = torch.where(leaf, tip, child)
    child_where = torch.where(leaf, tip_where.clamp(0, 1), child_where)
    child_side = torch.where(leaf, tip_side, child_side)

    smallest = torch.where(valid[:, None], child, torch.inf).amin(2, keepdim=True)
    nearer = torch.log((smallest + NEAR) / (child + NEAR))
    features = [joint, child, bone, *(torch.log(d + NEAR) / 2 + 1 for d in (joint, child, bone))]
    features += [child_where, where.clamp(-1, 2), child_side, side, nearer]
    return torch.stack(features, dim=-1)


def _to_segment(position, normal, start, end):
    """Distances (B,N,J) of positions (B,N,1,3) with normals from segments (B,1,J,3); where along them the nearest point
    lies, 0 at the start, 1 at the end, unlimited; the cosine between the way to the position and its normal."""
    along = end - start
    from_start = position - start
    where = (from_start * along).sum(-1) / along.square().sum(-1).clamp_min(1e-12)
    away = from_start - where.clamp(0, 1)[..., None] * along
    distance = away.norm(dim=-1)
    return distance, where, (away * normal).sum(-1) / distance.clamp_min(1e-6)


def _neighbourhood(points: Tensor, support: Tensor, count: int) -> Tensor:
    """The `count` nearest of support (B,S,6) seen from points (B,N,6): (B,N,K,9).

    Offset in units of the neighbourhood's radius, and that radius; the neighbour's normal; how far the neighbour lies
    along the point's own normal (far below it: the other side of something thin), and the cosine of the two normals.
    """
    count = min(count, support.shape[1])
    rows = max(1, SEARCH // (len(support) * support.shape[1]))
    exact = "donot_use_mm_for_euclid_dist"  # by matrix product near distances drown in rounding
    with torch.no_grad():
        nearest = torch.cat(
            [
                torch.cdist(part[..., :3], support[..., :3], compute_mode=exact).topk(count, largest=False).indices
                for part in points.split(rows, dim=1)
            ],
            dim=1,
        )
    found = _rows(support, nearest.flatten(1)).unflatten(1, nearest.shape[1:])
    position, normal = points[:, :, None, :3], points[:, :, None, 3:]
    offset = found[..., :3] - position
    radius = offset.norm(dim=-1, keepdim=True).amax(dim=2, keepdim=True).clamp_min(1e-6)
    offset = offset / radius
    above = (offset * normal).sum(-1, keepdim=True)
    facing = (found[..., 3:] * normal).sum(-1, keepdim=True)
    size = (radius.log() / 2 + 1).expand_as(facing)
    return torch.cat([offset, size, found[..., 3:], above, facing], dim=-1)


def _rows(values: Tensor, index: Tensor) -> Tensor:
    """values (B,M,D) at index (B,K): (B,K,D)."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))


def _mlp(width_in: int, hidden: int, width_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width_in, hidden), nn.GELU(), nn.Linear(hidden, width_out))
