"""A compact tri-stream skinning network: how much each joint moves each surface point.

Three streams read one another, after Puppeteer's skinning network, in a hundredth of its size:

    shape   a few learned tokens read all points (cross-attention) and describe the body as a whole;
    joints  joints attend to each other with a learned bias by hop distance on the tree, and to points and shape;
    points  points, with what lies around them, attend to joints and shape; the attention is biased by the geometry of
            the pair (how far from which bone, on which side of it).

    logit[n,j] = <a_n, b_j> / sqrt(D) + w . gelu(P g[n,j] + A p_n + B q_j) + c log h[n,j],   weights = soft-max over j,

with g the geometry of the pair, p and q the features of point and joint, and h the point's weights by heat (heat.py):
the network corrects those, and knows through them how the surface hangs together.

Choices that a reader would question:
* The pair's geometry is given, not learned from coordinates: distance to the bones of a joint is most of what skinning
  is about, and a network of this size that must discover it from sines of coordinates needs far more data.
* No index is ever embedded, so neither the order of joints nor that of points matters, and padding is never seen.
* Points do not attend to points. What surrounds a point (on a finger also the far side, which gives its thickness) it
  reads from its nearest neighbours in the encoded cloud. So points can be weighted in any number, in chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import pi, sqrt

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAR = 0.01  # of the cube: distances below this are alike in the logarithm, it is about the radius of a finger
TIP = 0.5  # a leaf's bone goes on beyond the joint for this part of the bone that leads to it
LEAST_HEAT = 0.01  # shares below this are alike in the logarithm
PAIR_FEATURES = 13
NEIGHBOUR_FEATURES = 9
SEARCH = 1 << 24  # distances in memory at a time while neighbours are searched


@dataclass(frozen=True)
class SkinningConfig:
    """Size of a `SkinningNetwork`; the defaults make 4.1 million parameters."""

    width: int = 192  # of every stream
    heads: int = 6
    shape_tokens: int = 32
    shape_blocks: int = 3
    joint_blocks: int = 4
    point_blocks: int = 3
    pair_width: int = 32  # of the geometry of (point, joint) pairs, the one thing that grows with both
    frequencies: int = 4  # octaves of sines per coordinate, the finest wave 1/4 of the cube
    neighbours: int = 16  # points around a point that it reads
    support: int = 1024  # points the encoder looks at; of a larger cloud an even stride
    most_hops: int = 8  # joints farther apart on the tree share one bias


@dataclass(frozen=True, eq=False)
class Encoded:
    """What `SkinningNetwork.encode` keeps of a body for any number of points; padding joints hold zeros.

    support (B,S,6), shape (B,T,D), features (B,J,D), joints (B,J,3), parents (B,J) (a root's is itself), valid (B,J).
    """

    support: Tensor
    shape: Tensor
    features: Tensor
    joints: Tensor
    parents: Tensor
    valid: Tensor


class SkinningNetwork(nn.Module):
    """Points with normals and a skeleton in the unit cube -> weights on the simplex (SPRig eq. 4)."""

    kind = "skinning"

    def __init__(self, config: SkinningConfig | None = None):
        super().__init__()
        self.config = config = config or SkinningConfig()
        width, heads = config.width, config.heads
        wave = 3 * 2 * config.frequencies + 3
        self.register_buffer("frequencies", pi * 2.0 ** torch.arange(config.frequencies), persistent=False)

        self.shape_points = _mlp(wave + 3, width, width)
        self.shape_queries = nn.Parameter(torch.randn(config.shape_tokens, width) / sqrt(width))
        self.shape_reads = Block(width, heads)
        self.shape_blocks = nn.ModuleList(Block(width, heads) for _ in range(config.shape_blocks - 1))

        self.joint_embedding = _mlp(2 * wave + 6, width, width)
        self.joint_reads = Block(width, heads)
        self.joint_blocks = nn.ModuleList(
            JointBlock(width, heads, config.most_hops) for _ in range(config.joint_blocks)
        )

        self.point_embedding = _mlp(wave + 3, width, width)
        self.around = _mlp(NEIGHBOUR_FEATURES, width // 3, width // 3)
        self.around_to_point = nn.Linear(width // 3, width)
        self.pair = _mlp(PAIR_FEATURES, config.pair_width, config.pair_width)
        self.point_blocks = nn.ModuleList(Block(width, heads) for _ in range(config.point_blocks))
        self.pair_bias = nn.Linear(config.pair_width, heads * config.point_blocks)

        self.point_norm, self.joint_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.point_key, self.joint_key = nn.Linear(width, width), nn.Linear(width, width)
        self.point_pair, self.joint_pair = nn.Linear(width, config.pair_width), nn.Linear(width, config.pair_width)
        self.geometry_pair = nn.Linear(config.pair_width, config.pair_width)
        self.logit = nn.Linear(config.pair_width, 1)
        self.trust = nn.Parameter(torch.ones(()))  # in the heat

    def forward(self, points: Tensor, joints: Tensor, parents: Tensor, valid: Tensor, heat: Tensor) -> Tensor:
        """Weights (B,N,J) float32 of points (B,N,6) for joints (B,J,3): rows sum to 1, padding columns are 0.

        parents (B,J) long, -1 for a root and where not valid; valid (B,J) bool, at least one in every row; heat (B,N,J)
        the points' weights by heat. Positions lie in [-0.5, 0.5]^3, normals are unit. Joints may come in any order.
        """
        return self.weights(points, heat, self.encode(points, joints, parents, valid))

    @torch.no_grad()
    def predict(self, points, joints, parents, valid, heat, chunk: int = 4096) -> Tensor:
        """`forward` without gradients, `chunk` points at a time: only the result grows with their number."""
        encoded = self.encode(points, joints, parents, valid)
        parts = zip(points.split(chunk, dim=1), heat.split(chunk, dim=1), strict=True)
        return torch.cat([self.weights(part, warm, encoded) for part, warm in parts], dim=1)

    def encode(self, points: Tensor, joints: Tensor, parents: Tensor, valid: Tensor) -> Encoded:
        """Shape tokens and joint features of a body, from which `weights` weighs any points; shapes as in `forward`."""
        points = points[:, :: -(-points.shape[1] // self.config.support)]
        cloud = self.shape_points(torch.cat([self._waves(points[..., :3]), points[..., 3:]], dim=-1))
        shape = self.shape_reads(self.shape_queries.expand(len(points), -1, -1), cloud)
        for block in self.shape_blocks:
            shape = block(shape, shape)

        joints = torch.where(valid[..., None], joints, 0.0)
        own = torch.arange(joints.shape[1], device=joints.device).expand_as(parents)
        root = parents < 0
        up = torch.where(root | ~valid, own, parents)
        parent_joints = _rows(joints, up)
        bone = joints - parent_joints
        children = torch.zeros_like(joints[..., 0]).scatter_add(1, up, (valid & ~root).to(joints.dtype))
        traits = [bone.norm(dim=-1), (children == 0).to(joints.dtype), root.to(joints.dtype)]
        features = self.joint_embedding(
            torch.cat([self._waves(joints), self._waves(parent_joints), bone, torch.stack(traits, dim=-1)], dim=-1)
        )
        features = self.joint_reads(features, torch.cat([cloud, shape], dim=1))
        hops = hop_distances(parents)
        for block in self.joint_blocks:
            features = block(features, shape, hops, valid)
        return Encoded(points, shape, features, joints, up, valid)

    def weights(self, points: Tensor, heat: Tensor, encoded: Encoded) -> Tensor:
        """Weights (B,N,J) of points (B,N,6) with heat (B,N,J), of the encoded cloud or not; each row depends on its own
        point alone."""
        heat = torch.log(heat + LEAST_HEAT)[..., None]
        geometry = pair_geometry(points, encoded.joints, encoded.parents, encoded.valid)
        pair = self.pair(torch.cat([geometry, heat.exp(), heat / 2 + 1], dim=-1))  # (B,N,J,P)
        bias = self.pair_bias(pair).permute(0, 3, 1, 2).masked_fill(~encoded.valid[:, None, None], -torch.inf)
        bias = F.pad(bias, (0, encoded.shape.shape[1])).unflatten(1, (len(self.point_blocks), -1))

        features = self.point_embedding(torch.cat([self._waves(points[..., :3]), points[..., 3:]], dim=-1))
        around = self.around(_neighbourhood(points, encoded.support, self.config.neighbours)).amax(dim=2)
        features = features + self.around_to_point(around)
        context = torch.cat([encoded.features, encoded.shape], dim=1)
        for i, block in enumerate(self.point_blocks):
            features = block(features, context, bias[:, i])

        features, joints = self.point_norm(features), self.joint_norm(encoded.features)
        alike = self.point_key(features) @ self.joint_key(joints).transpose(1, 2) / sqrt(self.config.width)
        mixed = self.geometry_pair(pair) + self.point_pair(features)[:, :, None] + self.joint_pair(joints)[:, None]
        logits = (alike + self.logit(F.gelu(mixed))[..., 0]).float() + self.trust * heat[..., 0]
        return logits.masked_fill(~encoded.valid[:, None], -torch.inf).softmax(dim=-1)

    def _waves(self, positions: Tensor) -> Tensor:
        """Positions (…,3) and their sines and cosines in octaves: (…, 3 + 6 frequencies)."""
        angle = (positions[..., None] * self.frequencies).flatten(-2)
        return torch.cat([positions, angle.sin(), angle.cos()], dim=-1)


class Block(nn.Module):
    """Attention to a context and a feed-forward, each on normalised input and added to what came in."""

    def __init__(self, width: int, heads: int, expansion: int = 2):
        super().__init__()
        self.attention = Attention(width, heads)
        self.norm = nn.LayerNorm(width)
        self.feed_forward = _mlp(width, expansion * width, width)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.attention(x, context, bias)
        return x + self.feed_forward(self.norm(x))


class JointBlock(nn.Module):
    """Joints attend to each other, biased by their hops on the tree (topology-aware, Puppeteer), then to the shape."""

    def __init__(self, width: int, heads: int, most_hops: int):
        super().__init__()
        self.hop_bias = nn.Embedding(most_hops + 1, heads)
        nn.init.zeros_(self.hop_bias.weight)
        self.attention = Attention(width, heads)
        self.shape = Block(width, heads)

    def forward(self, x: Tensor, shape: Tensor, hops: Tensor, valid: Tensor) -> Tensor:
        bias = self.hop_bias(hops.clamp_max(self.hop_bias.num_embeddings - 1)).permute(0, 3, 1, 2)
        x = x + self.attention(x, x, bias.masked_fill(~valid[:, None, None], -torch.inf))
        return self.shape(x, shape)


class Attention(nn.Module):
    """Multi-head attention of x (B,N,D) to a context (B,M,D); bias (B,H,N,M) is added to the logits."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        assert width % heads == 0, (width, heads)
        self.heads = heads
        self.norm, self.context_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, bias: Tensor | None = None) -> Tensor:
        query = self.query(self.norm(x)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        key, value = (
            self.key_value(self.context_norm(context)).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        )
        if bias is not None:
            bias = bias.to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        return self.out(mixed.transpose(1, 2).flatten(-2))


def hop_distances(parents: Tensor) -> Tensor:
    """Bones between every two joints on the tree: (B,J,J) long for parents (B,J), -1 for roots and padding.

    Joints in different trees are J apart, farther than any path. With A[i,a] = 1 where a is i or an ancestor of i, the
    common ancestors of i and j number (A A^T)[i,j], and hops = |A_i| + |A_j| - 2 (A A^T)[i,j].
    """
    joints = parents.shape[1]
    own = torch.arange(joints, device=parents.device)
    ancestors = (own == parents[..., None]) | (own == own[:, None])  # (B,J,J): oneself and the parent
    for _ in range(max(joints - 2, 0).bit_length()):  # every squaring doubles the steps covered, up to J - 1
        ancestors = (ancestors.float() @ ancestors.float()) > 0
    ancestors = ancestors.float()
    common = (ancestors @ ancestors.transpose(1, 2)).long()
    depth = common.diagonal(dim1=1, dim2=2)
    return torch.where(common > 0, depth[:, :, None] + depth[:, None, :] - 2 * common, joints)


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
