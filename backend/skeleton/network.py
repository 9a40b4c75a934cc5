"""The skeleton decoder: points -> tokens of a skeleton, p(S | points) = prod_i p(s_i | s_<i, points) (SPRig 4.1).

A point encoder makes one token for each of some hundred neighbourhoods on the surface; a Transformer decoder writes the
skeleton's tokens (tokens.py) while it looks at them. About 8 million parameters, meant for little data and a CPU:

* The neighbourhoods are those of farthest points, started at the point farthest from the origin of the frame, pooled
  by maximum: the order of the points does not matter, nothing is drawn, no kernel of ours is needed.
* Coordinates enter as Fourier features of the numbers behind the bins, not only as rows of a table, and leave as a
  smooth function of the bin's centre plus such a row: what is learned about a bin holds for its neighbours.
* A token carries the part of its joint's position that is known; the parent token, which completes a joint, also the
  parent's position.
* The parent is pointed at: its logit is the product of the current state and the state in which that joint was
  completed (pointer networks, Vinyals et al. 2015), so that a joint is known by what it is and not by its number.

The encoder is one module, so that fine-tuning can freeze it (SPRig section 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from .tokens import BINS, BOS, FIRST_BIN, MOST_JOINTS, VOCABULARY

INITIAL_SPREAD = 0.02  # standard deviation of weights, as in GPT-2


@dataclass(frozen=True)
class SkeletonConfig:
    width: int = 256  # of every token
    heads: int = 4
    seeds: int = 256  # neighbourhoods = tokens of the points
    neighbours: int = 32  # points in each
    encoder_blocks: int = 3
    decoder_blocks: int = 5
    point_frequencies: int = 6  # of the Fourier features of seeds: pi, 2 pi, 4 pi, ...; the finest wave is 1/16 long
    joint_frequencies: int = 7  # of joints: the finest wave is 4 bins long
    dropout: float = 0.1  # on what each block adds, in training
    most_joints: int = MOST_JOINTS

    def __post_init__(self):
        if self.width % (4 * self.heads):
            raise ValueError(f"a width of {self.width} is no multiple of four times {self.heads} heads")


def fourier_features(x, frequencies: int):
    """(..., C) -> (..., C (2 frequencies + 1)): x, sin and cos of 2^k pi x."""
    waves = x[..., None] * (math.pi * 2.0 ** torch.arange(frequencies, device=x.device, dtype=x.dtype))
    return torch.cat([x, waves.sin().flatten(-2), waves.cos().flatten(-2)], dim=-1)


# ---- blocks, pre-norm


class Attention(nn.Module):
    """Multi-head attention of x (B,T,W) over keys and values (B,heads,S,W/heads) each, which a cache may keep."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, width)

    def keys_and_values(self, x):
        return tuple(self._split(part) for part in self.key_value(x).chunk(2, dim=-1))

    def forward(self, x, keys, values, causal: bool = False):
        mixed = F.scaled_dot_product_attention(self._split(self.query(x)), keys, values, is_causal=causal)
        return self.output(mixed.transpose(1, 2).flatten(2))

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class FeedForward(nn.Sequential):
    def __init__(self, width: int):
        super().__init__(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))


class EncoderBlock(nn.Module):
    """Tokens of the points look at each other."""

    def __init__(self, config: SkeletonConfig):
        super().__init__()
        self.attention_norm, self.feed_norm = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = Attention(config.width, config.heads)
        self.feed = FeedForward(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        normed = self.attention_norm(x)
        x = x + self.dropout(self.attention(normed, *self.attention.keys_and_values(normed)))
        return x + self.dropout(self.feed(self.feed_norm(x)))


class DecoderBlock(nn.Module):
    """Tokens of the skeleton look at earlier ones and at the points."""

    def __init__(self, config: SkeletonConfig):
        super().__init__()
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(config.width) for _ in range(3))
        self.self_attention = Attention(config.width, config.heads)
        self.cross_attention = Attention(config.width, config.heads)
        self.feed = FeedForward(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, past, points):
        """x (B,T,W) after `past`, the keys and values of earlier tokens (with T = 1) or None; `points`: theirs.

        Returns x and the keys and values of all tokens.
        """
        assert past is None or x.shape[1] == 1, "several tokens at once only without a past: the mask is square"
        normed = self.self_norm(x)
        seen = self.self_attention.keys_and_values(normed)
        if past is not None:
            seen = tuple(torch.cat(both, dim=2) for both in zip(past, seen, strict=True))
        x = x + self.dropout(self.self_attention(normed, *seen, causal=past is None))
        x = x + self.dropout(self.cross_attention(self.cross_norm(x), *points))
        return x + self.dropout(self.feed(self.feed_norm(x))), seen


# ---- points


@torch.no_grad()
def farthest_points(positions, count: int):
    """Indices (B,count) of points (B,N,3): the one farthest from the origin, then always the one farthest from all."""
    chosen = torch.empty((len(positions), count), dtype=torch.long, device=positions.device)
    nearest = torch.full(positions.shape[:2], torch.inf, device=positions.device)
    new = positions.square().sum(-1).argmax(1)
    for place in range(count):
        chosen[:, place] = new
        last = positions.gather(1, new[:, None, None].expand(-1, 1, 3))
        nearest = torch.minimum(nearest, (positions - last).square().sum(-1))
        new = nearest.argmax(1)
    return chosen


@torch.no_grad()
def nearest_points(seeds, positions, count: int):
    """Indices (B,S,count) of the points (B,N,3) nearest to each seed (B,S,3).

    Without the matrix product that cdist prefers, whose rounding depends on where a point stands in the array.
    """
    distances = torch.cdist(seeds, positions, compute_mode="donot_use_mm_for_euclid_dist")
    return distances.topk(count, dim=2, largest=False, sorted=False).indices


def at_points(values, indices):
    """values (B,N,C) at indices (B,...) -> (B,...,C)."""
    batch = torch.arange(len(values), device=values.device).reshape(-1, *[1] * (indices.ndim - 1))
    return values[batch, indices]


class PointEncoder(nn.Module):
    """Points (B,N,6), position and normal -> tokens (B,S,W) of S neighbourhoods (PointNet++, Qi et al. 2017)."""

    def __init__(self, config: SkeletonConfig):
        super().__init__()
        self.config = config
        half = config.width // 2
        self.local = nn.Sequential(nn.Linear(9, half // 2), nn.GELU(), nn.Linear(half // 2, half), nn.GELU())
        self.place = nn.Linear(half + 3 * (2 * config.point_frequencies + 1) + 3, config.width)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_blocks))
        self.norm = nn.LayerNorm(config.width)

    def forward(self, points):
        config, positions = self.config, points[..., :3]
        seeds = at_points(points, farthest_points(positions, min(config.seeds, points.shape[1])))
        near = nearest_points(seeds[..., :3], positions, min(config.neighbours, points.shape[1]))
        near = at_points(points, near)  # (B,S,K,6)
        offsets = near[..., :3] - seeds[:, :, None, :3]
        reach = offsets.square().sum(-1, keepdim=True).amax(2, keepdim=True).sqrt().clamp_min(1e-6)  # all may coincide
        seed_normals = seeds[:, :, None, 3:].expand(-1, -1, near.shape[2], -1)
        local = self.local(torch.cat([offsets / reach, near[..., 3:], seed_normals], dim=-1)).amax(2)
        place = fourier_features(seeds[..., :3], config.point_frequencies)
        x = self.place(torch.cat([local, place, seeds[..., 3:]], dim=-1))
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


# ---- skeleton


@dataclass(frozen=True, eq=False)
class Cache:
    """What `step` needs of the tokens it has seen; never changed in place, so an earlier one stays usable.

    ids (B,T); seen: keys and values (B,heads,T,W/heads) of each block; points: the same of the points; joints
    (B,J,W): what completed joints are pointed at by.
    """

    ids: torch.Tensor
    seen: tuple
    points: tuple
    joints: torch.Tensor

    def select(self, rows) -> Cache:
        """The batch rows `rows` (R,) long, in this order, any of them several times."""

        def pick(pairs):
            return tuple((keys[rows], values[rows]) for keys, values in pairs)

        return Cache(self.ids[rows], pick(self.seen), pick(self.points), self.joints[rows])


class SkeletonNetwork(nn.Module):
    """The decoder. Sequences are BOS, then x, y, z, parent of each joint: token t completes a joint where t % 4 == 0.

    `condition` once for the points; then `forward` for whole sequences, or `begin` and `step` token by token with
    the same logits. Logits are those of the vocabulary in tokens.py, without its grammar, which generate.py adds.
    """

    kind = "skeleton"
    offset = 0.5  # coordinates are the centres of their bins

    def __init__(self, config: SkeletonConfig = SkeletonConfig()):
        super().__init__()
        self.config = config
        self.most_joints = config.most_joints
        self.encoder = PointEncoder(config)
        features = 2 * config.joint_frequencies + 1
        self.token_embedding = nn.Embedding(VOCABULARY, config.width)
        self.slot_embedding = nn.Embedding(4, config.width)
        self.joint_embedding = nn.Embedding(config.most_joints + 2, config.width)  # row 0 for BOS, the last for EOS
        self.known_positions = nn.Linear(6 * features, config.width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, VOCABULARY)
        self.smooth_head = nn.Linear(config.width, features)
        self.pointer_query = nn.Linear(config.width, config.width)
        self.pointer_key = nn.Linear(config.width, config.width)
        centres = (torch.arange(BINS) + self.offset) / BINS - 0.5
        waves = fourier_features(centres[:, None], config.joint_frequencies)
        self.register_buffer("bin_features", waves, persistent=False)  # (BINS, features)
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        """As GPT-2: small weights, and what the blocks add smaller still, so that their sum starts at a fixed size."""
        shrink = 1 / math.sqrt(3 * self.config.decoder_blocks)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_SPREAD)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention):
                module.output.weight *= shrink
            elif isinstance(module, FeedForward):
                module[-1].weight *= shrink

    def condition(self, points):
        """Points (B,N,6), positions in [-0.5, 0.5] and unit normals -> their tokens (B,P,W)."""
        return self.encoder(points)

    def begin(self, condition) -> tuple[torch.Tensor, Cache]:
        """Logits (B,VOCABULARY) of the token after BOS, and the cache that has seen the points and BOS."""
        ids = torch.empty((len(condition), 0), dtype=torch.long, device=condition.device)
        joints = condition.new_empty(len(condition), 0, condition.shape[2])
        points = tuple(block.cross_attention.keys_and_values(condition) for block in self.blocks)
        nothing = tuple(None for _ in self.blocks)
        return self.step(ids.new_full((len(condition),), BOS), Cache(ids, nothing, points, joints))

    def step(self, ids, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Logits (B,VOCABULARY) of the tokens after `ids` (B,), the tokens just chosen, and the cache with them."""
        place = cache.ids.shape[1]
        sequence = torch.cat([cache.ids, ids[:, None]], dim=1)
        state, seen = self._run(self._embed(sequence, place), cache.seen, cache.points)
        joints = cache.joints
        if place % 4 == 0 and place > 0:
            joints = torch.cat([joints, self.pointer_key(state)], dim=1)
        return self._logits(state, joints, place)[:, 0], Cache(sequence, seen, cache.points, joints)

    def forward(self, condition, ids):
        """Teacher forcing: tokens of the points (B,P,W), ids (B,T) from BOS on -> logits (B,T,VOCABULARY).

        Row t is about the token after ids[:, t].
        """
        points = tuple(block.cross_attention.keys_and_values(condition) for block in self.blocks)
        state, _ = self._run(self._embed(ids, 0), tuple(None for _ in self.blocks), points)
        return self._logits(state, self.pointer_key(state[:, 4::4]), 0)

    def _run(self, x, past, points):
        seen = []
        for block, before, around in zip(self.blocks, past, points, strict=True):
            x, keys_and_values = block(x, before, around)
            seen.append(keys_and_values)
        return self.norm(x), tuple(seen)

    def _embed(self, ids, start: int):
        """Embeddings (B,T-start,W) of the tokens from `start` on, given all ids (B,T)."""
        place = torch.arange(start, ids.shape[1], device=ids.device)
        slot = (place + 3) % 4
        known = self._known_positions(ids, place, slot)
        return (
            self.token_embedding(ids[:, start:])
            + self.slot_embedding(slot)
            + self.joint_embedding((place + 3) // 4)
            + self.known_positions(known)
        )

    def _known_positions(self, ids, place, slot):
        """Fourier features (B,T',6 features) of what tokens at `place` (T',) know: their joint's x, y, z as far as
        they are written, and in the parent's slot the parent's; zeros for what is not known."""
        batch, axis = len(ids), torch.arange(3, device=ids.device)
        own = (place - slot)[:, None] + axis  # (T',3) where the joint's coordinates stand
        written = (place[:, None] > 0) & (axis <= slot[:, None])
        parent = ids[:, place] - FIRST_BIN - 1  # (B,T')
        theirs = 4 * parent[..., None] + 1 + axis
        earlier = (slot == 3)[:, None] & (parent[..., None] >= 0) & (theirs < own[:, :1])
        where = torch.cat([own.expand(batch, -1, -1), theirs], dim=2)
        known = torch.cat([written.expand(batch, -1, -1), earlier], dim=2)
        bins = ids.gather(1, where.clamp(0, ids.shape[1] - 1).flatten(1)).reshape(where.shape) - FIRST_BIN
        known = known & (bins >= 0)
        features = self.bin_features[bins.clamp_min(0)] * known[..., None]
        return features.flatten(2)

    def _logits(self, state, joints, start: int):
        """Logits (B,T,VOCABULARY) of states (B,T,W) of the tokens from `start` on, completed joints (B,J,W)."""
        logits = self.head(state)
        smooth = self.smooth_head(state) @ self.bin_features.T
        place = torch.arange(start, start + state.shape[1], device=state.device)[:, None]
        joint = torch.arange(joints.shape[1], device=state.device)
        pointed = (self.pointer_query(state) @ joints.transpose(1, 2)) / math.sqrt(joints.shape[2])
        before, root, after = logits.split([FIRST_BIN, 1, BINS - 1], dim=2)
        after = after + smooth[..., 1:]
        candidates = after[..., : len(joint)]
        candidates = torch.where((place % 4 == 3) & (joint < place // 4), pointed, candidates)
        return torch.cat([before, root + smooth[..., :1], candidates, after[..., len(joint) :]], dim=2)
