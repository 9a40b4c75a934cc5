"""Puppeteer's skinning network (Song et al. 2025): points, joints and shape tokens attend to one another.

Attribute names are those of the released files, so that a state dict loads key for key. Peculiarities that the weights
depend on: all attention normalises its context with a norm of its own, even where the context is the query; the gate
of a feed-forward is the second half of its input; and the released soft-max runs over all columns, padding included
(`weights_with_padding`). `forward`, the interface every skinning network of this package has, keeps to the valid
joints, which is what Puppeteer's own later steps renormalise to.

A released file holds PartField's weights: NON_COMMERCIAL says what that means, and has to be shown to the user. Any
module that maps points (B,N,3) to features (B,N,part_channels) can take the place of `point_embed`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .michelangelo import Michelangelo, MichelangeloConfig, to_encoder_frame
from .partfield import PartField, PartFieldConfig

NON_COMMERCIAL = (
    "This Puppeteer skinning file contains NVIDIA's PartField weights, which are licensed for non-commercial use only."
)
FARTHEST_HOPS = 9  # joints farther apart than this count as this far
BASIS_OCTAVES = 4


@dataclass(frozen=True)
class SkinningConfig:
    """Sizes of the skinning network; the defaults are Puppeteer's released ones, with one block (others have two)."""

    heads: int = 8
    head_width: int = 64
    feed_forward: int = 4  # times the width
    depth: int = 1
    encoder: MichelangeloConfig = field(default_factory=MichelangeloConfig)
    partfield: PartFieldConfig = field(default_factory=PartFieldConfig)

    @property
    def width(self) -> int:
        """Of all streams: the shape tokens come from the encoder as they are."""
        return self.encoder.width


@dataclass(frozen=True)
class Streams:
    """What the points alone determine, slow, to be kept for a frame: point stream (B,N,width), shape (B,P,width)."""

    points: Tensor
    shape: Tensor


class SixEmbedding(nn.Module):
    """Six numbers (two positions, or position and normal) -> width, through sines and cosines of four octaves of pi."""

    def __init__(self, width: int):
        super().__init__()
        octaves = math.pi * 2.0 ** torch.arange(BASIS_OCTAVES)
        self.register_buffer("basis", torch.kron(torch.eye(6), octaves[None]))
        self.mlp = nn.Linear(2 * 6 * BASIS_OCTAVES + 6, width)

    def forward(self, x):
        angles = x @ self.basis
        return self.mlp(torch.cat([angles.sin(), angles.cos(), x], dim=-1))


class Attention(nn.Module):
    def __init__(self, config: SkinningConfig):
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_kv = nn.Linear(config.width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.width)

    def forward(self, x, context, bias, real):
        queries, keys, values = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in (self.to_q(x), *self.to_kv(context).chunk(2, dim=-1))
        )
        if real is not None:
            queries = queries * real[:, None, :, None]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=bias)
        return self.to_out(mixed.transpose(1, 2).flatten(2))


class GatedFeedForward(nn.Module):
    def __init__(self, config: SkinningConfig):
        super().__init__()
        inner = config.feed_forward * config.width
        self.net = nn.ModuleDict({"0": nn.Linear(config.width, 2 * inner), "2": nn.Linear(inner, config.width)})

    def forward(self, x):
        value, gate = self.net["0"](x).chunk(2, dim=-1)
        return self.net["2"](value * F.gelu(gate))


class NormedAttention(nn.Module):
    """x + attention(norm(x), norm(context)) for x (B,L,width), context (B,M,width).

    `bias` (B,heads or 1,L or 1,M) is added to the scaled products; rows of x that are not `real` (B,L) bool attend to
    everything alike.
    """

    def __init__(self, config: SkinningConfig):
        super().__init__()
        self.fn = Attention(config)
        self.norm = nn.LayerNorm(config.width)
        self.norm_context = nn.LayerNorm(config.width)

    def forward(self, x, context, bias=None, real=None):
        return x + self.fn(self.norm(x), self.norm_context(context), bias, real)


class NormedFeedForward(nn.Module):
    def __init__(self, config: SkinningConfig):
        super().__init__()
        self.fn = GatedFeedForward(config)
        self.norm = nn.LayerNorm(config.width)

    def forward(self, x):
        return x + self.fn(self.norm(x))


class Block(nn.Module):
    """Joints among themselves, points and joints look at the shape, joints at the points, points at the joints."""

    def __init__(self, config: SkinningConfig):
        super().__init__()
        self.rel_pos_scale = nn.Parameter(torch.full((1,), 0.1))
        for pair in ("self_attn_j", "cross_attn_ps", "cross_attn_js", "cross_attn_jp", "cross_attn_pj"):
            setattr(self, pair, NormedAttention(config))
            setattr(self, "ff_" + pair.rsplit("_", 1)[1], NormedFeedForward(config))
        self.rel_pos_embedding = nn.Embedding(FARTHEST_HOPS + 1, config.width // 4)
        self.rel_pos_proj = nn.Linear(config.width // 4, config.heads)

    def forward(self, points, joints, shape, hops, valid):
        """Streams (B,N,D), (B,J,D), (B,P,D), hops (B,J,J) long, valid (B,J) bool -> points and joints."""
        both = (valid[:, :, None] & valid[:, None, :])[:, None]
        topology = self.rel_pos_proj(self.rel_pos_embedding(hops)).permute(0, 3, 1, 2) * self.rel_pos_scale
        only_valid = torch.zeros_like(valid, dtype=points.dtype).masked_fill(~valid, -torch.inf)[:, None, None, :]
        # Padding never answers. As a query it is treated like any joint among the joints, and attends to everything
        # alike elsewhere, so it stays finite and means nothing.
        joints = self.ff_j(self.self_attn_j(joints, joints, torch.where(both, topology, 0.0) + only_valid))
        points = self.ff_ps(self.cross_attn_ps(points, shape))
        joints = self.ff_js(self.cross_attn_js(joints, shape, real=valid))
        joints = self.ff_jp(self.cross_attn_jp(joints, points, real=valid))
        points = self.ff_pj(self.cross_attn_pj(points, joints, only_valid))
        return points, joints


class PuppeteerSkinning(nn.Module):
    """Skin weights of points for a given skeleton. B shapes, N points, J joints (places for them), P shape tokens.

    Trained on at most 70 joints; nothing in the network stops there.
    """

    kind = "skinning"
    architecture = "puppeteer"
    encoder_parts = ("point_encoder", "point_embed")  # modules that fine-tuning leaves as they are

    def __init__(self, config: SkinningConfig):
        super().__init__()
        self.config = config
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.skeleton_condition = SixEmbedding(config.width)
        self.point_embed_pe = SixEmbedding(config.width)
        self.point_encoder = Michelangelo(config.encoder)
        self.point_embed = PartField(config.partfield)
        self.proj = nn.Sequential(
            nn.Linear(config.partfield.part_channels, config.width), nn.SiLU(), nn.Linear(config.width, config.width)
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))

    def forward(self, points: Tensor, joints: Tensor, parents: Tensor, valid: Tensor) -> Tensor:
        """Weights (B,N,J): rows sum to 1 over the valid joints and are exactly 0 elsewhere.

        points (B,N,6) with unit normals, joints (B,J,3), both in [-0.5, 0.5]; parents (B,J) long, -1 for a root and
        where not valid; valid (B,J) bool, at least one in each row.
        """
        return self.weights(self.encode(points), joints, parents, valid)

    def encode(self, points: Tensor) -> Streams:
        """The frozen encoders and what belongs to them, for points (B,N,6) as in `forward`."""
        points = torch.cat([points[..., :3].clamp(-0.5, 0.5), points[..., 3:]], dim=-1)
        features = self.proj(self.point_embed(points[..., :3])) + self.point_embed_pe(points)
        return Streams(features, self.shape_tokens(to_encoder_frame(points)))

    def weights(self, streams: Streams, joints: Tensor, parents: Tensor, valid: Tensor) -> Tensor:
        """The rest of `forward`, for the streams of its points."""
        clipped = joints.clamp(-0.5, 0.5)
        own = torch.arange(joints.shape[1], device=joints.device)
        parent = torch.where(parents < 0, own, parents)  # a root is its own parent
        heads = torch.gather(clipped, 1, parent[..., None].expand_as(clipped))
        bones = torch.where(valid[..., None], torch.cat([heads, clipped], dim=-1), 0.0)
        points, joints = self.attend(streams, bones, hop_distances(parents, valid), valid)[-1]
        logits = self.similarity(points, joints)
        return logits.masked_fill(~valid[:, None], -torch.inf).softmax(-1)

    # ---- the parts, in the released network's terms

    def shape_tokens(self, points: Tensor) -> Tensor:
        """Points (B,N,6) with coordinates within +-0.9995 -> global token and decoded latents (B,P,width)."""
        return self.point_encoder.decode(self.point_encoder.encode(points))

    def attend(self, streams: Streams, bones: Tensor, hops: Tensor, valid: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Points (B,N,width) and joints (B,J,width) after every block.

        bones (B,J,6): parent's position, joint's position, zero where not valid; hops (B,J,J) long in 0..FARTHEST_HOPS;
        valid (B,J) bool.
        """
        points, joints = streams.points, self.skeleton_condition(bones)
        states = []
        for block in self.blocks:
            points, joints = block(points, joints, streams.shape, hops, valid)
            states.append((points, joints))
        return states

    def similarity(self, points: Tensor, joints: Tensor) -> Tensor:
        """Scaled cosine (B,N,J) of every point with every joint."""
        cosine = F.normalize(points, dim=-1) @ F.normalize(joints, dim=-1).transpose(1, 2)
        return cosine * (self.scale.abs() + 1e-9)

    def weights_with_padding(self, points: Tensor, joints: Tensor) -> Tensor:
        """The released output (B,N,J): padding joints take their share of every row."""
        return self.similarity(points, joints).softmax(-1)


def hop_distances(parents: Tensor, valid: Tensor) -> Tensor:
    """Bones between any two joints on the tree of parents (B,J), at most FARTHEST_HOPS: (B,J,J) long.

    Joints that are not connected, or not valid, are FARTHEST_HOPS away from all others.
    """
    count = parents.shape[1]
    own = torch.eye(count, device=parents.device)
    linked = F.one_hot(parents.clamp_min(0), count) * ((parents >= 0) & valid)[..., None]
    near = own + linked + linked.transpose(1, 2)
    reached = own.expand_as(near)
    hops = torch.full_like(near, FARTHEST_HOPS)
    for distance in range(FARTHEST_HOPS):
        hops = torch.where((reached > 0) & (hops == FARTHEST_HOPS), distance, hops)
        reached = ((reached @ near) > 0).float()
    return hops.long()
