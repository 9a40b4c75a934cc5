"""The skeleton decoder: points -> tokens of a skeleton, p(S | points) = prod_i p(s_i | s_<i, points) (SPRig 4.1).

A point encoder makes one token for each of some hundred neighbourhoods on the surface; a Transformer decoder takes one
step a joint while it looks at them, and a small network spells the joint's four tokens (tokens.py) from that step's
state. About 4 million parameters, meant for little data and a CPU:

* The neighbourhoods are those of farthest points, started at the point farthest from the origin of the frame, pooled
  by maximum: the order of the points does not matter, nothing is drawn, no kernel of ours is needed.
* Every neighbourhood votes for two places: where the joint lies that moves it, and where that joint's bone ends. The
  decoder's state says which votes count for the next joint, so it has to know which part of the body comes next, and
  the surface there says where that is. Votes are offsets from the surface, which look alike on every leg of every
  animal. The likelihood of the coordinates is that of the votes (a mixture of Gaussians, so y follows from x in closed
  form) times a distribution that the state gives by itself.
* Coordinates enter as Fourier features of the numbers behind the bins and leave as smooth functions of the bins'
  centres plus a row of a table: what is learned about a bin holds for its neighbours.
* The parent is pointed at: its logit is the product of the current state and the state in which that joint was
  completed (pointer networks, Vinyals et al. 2015), so that a joint is known by what it is and not by its number.

The encoder is one module, so that fine-tuning can freeze it (SPRig section 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import nn

from .tokens import BINS, BOS, FIRST_BIN, MOST_JOINTS, PAD, VOCABULARY

INITIAL_SPREAD = 0.02  # standard deviation of weights, as in GPT-2
SHARPEST_VOTE = 0.7 / BINS  # standard deviation: a vote is never surer than the bins are wide
NO_VOTE = 1e-3 / BINS  # probability of a bin that nobody votes for
NEVER = 1e-6  # the same, where later coordinates follow from earlier ones


@dataclass(frozen=True)
class SkeletonConfig:
    width: int = 192  # of every token
    heads: int = 3
    seeds: int = 128  # neighbourhoods = tokens of the points
    neighbours: int = 16  # points in each
    encoder_blocks: int = 4
    decoder_blocks: int = 3
    point_frequencies: int = 6  # of the Fourier features of seeds: pi, 2 pi, 4 pi, ...; the finest wave is 1/16 long
    joint_frequencies: int = 7  # of joints: the finest wave is 4 bins long
    dropout: float = 0.0  # on what each block adds, in training; for runs that see their characters very often
    most_joints: int = MOST_JOINTS
    many_views: bool = True  # decode it by `consensus`; not so a student, which knows its sequence in one view only

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
    """Joints look at earlier ones and at the points."""

    def __init__(self, config: SkeletonConfig):
        super().__init__()
        self.self_norm, self.cross_norm, self.feed_norm = (nn.LayerNorm(config.width) for _ in range(3))
        self.self_attention = Attention(config.width, config.heads)
        self.cross_attention = Attention(config.width, config.heads)
        self.feed = FeedForward(config.width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, past, points):
        """x (B,K,W) after `past`, the keys and values of earlier joints (with K = 1) or None; `points`: theirs.

        Returns x and the keys and values of all joints.
        """
        assert past is None or x.shape[1] == 1, "several joints at once only without a past: the mask is square"
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


@dataclass(frozen=True, eq=False)
class Condition:
    """What the decoder knows of the points, for S neighbourhoods.

    tokens (B,S,W); seeds (B,S) long, which points they are around; votes (B,S,2,3) for the joint that moves the
    neighbourhood and for the end of its bone, with their standard deviations spread (B,S,2).
    """

    tokens: torch.Tensor
    seeds: torch.Tensor
    votes: torch.Tensor
    spread: torch.Tensor


class PointEncoder(nn.Module):
    """Points (B,N,6), position and normal -> tokens of neighbourhoods (PointNet++, Qi et al. 2017) and their votes
    (as in VoteNet, Qi et al. 2019)."""

    def __init__(self, config: SkeletonConfig):
        super().__init__()
        self.config = config
        half = config.width // 2
        self.local = nn.Sequential(nn.Linear(9, half // 2), nn.GELU(), nn.Linear(half // 2, half), nn.GELU())
        self.place = nn.Linear(half + 3 * (2 * config.point_frequencies + 1) + 3, config.width)
        self.blocks = nn.ModuleList(EncoderBlock(config) for _ in range(config.encoder_blocks))
        self.norm = nn.LayerNorm(config.width)
        self.vote = nn.Linear(config.width, 2 * (3 + 1))

    def forward(self, points) -> Condition:
        config, positions = self.config, points[..., :3]
        chosen = farthest_points(positions, min(config.seeds, points.shape[1]))
        seeds = at_points(points, chosen)
        near = nearest_points(seeds[..., :3], positions, min(config.neighbours, points.shape[1]))
        near = at_points(points, near)  # (B,S,K,6)
        offsets = near[..., :3] - seeds[:, :, None, :3]
        reach = offsets.square().sum(-1, keepdim=True).amax(2, keepdim=True).sqrt().clamp_min(1e-6)  # all may coincide
        seed_normals = seeds[:, :, None, 3:].expand(-1, -1, near.shape[2], -1)
        local = self.local(torch.cat([offsets / reach, near[..., 3:], seed_normals], dim=-1))
        local = local.max(2).values  # the gradient of amax, shared among equal ones, is slow
        place = fourier_features(seeds[..., :3], config.point_frequencies)
        x = self.place(torch.cat([local, place, seeds[..., 3:]], dim=-1))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        offset, spread = self.vote(x).float().unflatten(2, (2, 4)).split([3, 1], dim=3)
        return Condition(x, chosen, seeds[:, :, None, :3] + offset, SHARPEST_VOTE + F.softplus(spread[..., 0]) / 20)


# ---- skeleton


@dataclass(frozen=True, eq=False)
class Cache:
    """What `step` needs of the tokens it has seen; never changed in place, so an earlier one stays usable.

    ids (B,T); seen: keys and values (B,heads,K,W/heads) of each block; points: the same of the points; votes: what
    points at them (B,2S,W), and what each says of the bins along x, y, z (B,3,2S,BINS); joints (B,J,W): what completed
    joints are pointed at by; state (B,1,W) of the joint that is being spelled, and where it points (B,1,2S).
    """

    ids: torch.Tensor
    seen: tuple
    points: tuple
    votes: tuple
    joints: torch.Tensor
    state: torch.Tensor
    pointing: torch.Tensor

    def select(self, rows) -> Cache:
        """The batch rows `rows` (R,) long, in this order, any of them several times."""

        def pick(value):
            return tuple(pick(part) for part in value) if isinstance(value, tuple) else value[rows]

        return Cache(**{field.name: pick(getattr(self, field.name)) for field in fields(self)})


class SkeletonNetwork(nn.Module):
    """The decoder. Sequences are BOS, then x, y, z, parent of each joint: token t completes a joint where t % 4 == 0.

    `condition` once for the points; then `forward` for whole sequences, or `begin` and `step` token by token with
    the same logits. Logits are those of the vocabulary in tokens.py, without its grammar, which generate.py adds.
    """

    kind = "skeleton"
    encoder_parts = ("encoder",)  # modules that fine-tuning leaves as they are
    offset = 0.5  # coordinates are the centres of their bins

    def __init__(self, config: SkeletonConfig = SkeletonConfig()):
        super().__init__()
        self.config = config
        self.most_joints = config.most_joints
        self.encoder = PointEncoder(config)
        width, features = config.width, 2 * config.joint_frequencies + 1
        self.joint_embedding = nn.Embedding(config.most_joints + 1, width)  # how many joints there are
        self.last_joint = nn.Linear(6 * features, width)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.decoder_blocks))
        self.norm = nn.LayerNorm(width)
        self.slot_embedding = nn.Embedding(4, 2 * width)  # which of the joint's four tokens comes next
        self.slot_state, self.slot_known = nn.Linear(width, 2 * width), nn.Linear(3 * features, 2 * width, bias=False)
        self.slot_output, self.slot_norm = nn.Linear(2 * width, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, VOCABULARY)
        self.smooth_head = nn.Linear(width, features)
        self.pointer_query, self.pointer_key = nn.Linear(width, width), nn.Linear(width, width)
        self.vote_query, self.vote_key = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.trust = nn.Linear(width, 1)  # in the votes
        centres = (torch.arange(BINS) + self.offset) / BINS - 0.5
        waves = fourier_features(centres[:, None], config.joint_frequencies)
        self.register_buffer("centres", centres, persistent=False)  # (BINS,)
        self.register_buffer("bin_features", waves, persistent=False)  # (BINS, features)
        self._initialise()

    @torch.no_grad()
    def _initialise(self):
        """As GPT-2: small weights, and what the blocks add smaller still, so that their sum starts at a fixed size."""
        shrink = 1 / math.sqrt(3 * self.config.decoder_blocks)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_SPREAD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, Attention):
                module.output.weight *= shrink
            elif isinstance(module, FeedForward):
                module[-1].weight *= shrink

    def condition(self, points) -> Condition:
        """Points (B,N,6), positions in [-0.5, 0.5] and unit normals -> what the decoder sees of them."""
        return self.encoder(points)

    def begin(self, condition: Condition) -> tuple[torch.Tensor, Cache]:
        """Logits (B,VOCABULARY) of the token after BOS, and the cache that has seen the points and BOS."""
        tokens = condition.tokens
        batch, votes = len(tokens), 2 * tokens.shape[1]
        ids = torch.empty((batch, 0), dtype=torch.long, device=tokens.device)
        none, state = tokens.new_empty(batch, 0, tokens.shape[2]), tokens.new_empty(batch, 1, tokens.shape[2])
        nothing = tuple(None for _ in self.blocks)
        cache = Cache(ids, nothing, *self._look(condition), none, state, tokens.new_empty(batch, 1, votes))
        return self.step(ids.new_full((batch,), BOS), cache)

    def step(self, ids, cache: Cache) -> tuple[torch.Tensor, Cache]:
        """Logits (B,VOCABULARY) of the tokens after `ids` (B,), the tokens just chosen, and the cache with them."""
        sequence = torch.cat([cache.ids, ids[:, None]], dim=1)
        joint, slot = divmod(cache.ids.shape[1], 4)
        cache = replace(cache, ids=sequence)
        if slot == 0:
            state, seen = self._run(self._embed(sequence, joint), cache.seen, cache.points)
            joints = torch.cat([cache.joints, self.pointer_key(state)], dim=1) if joint else cache.joints
            cache = replace(cache, seen=seen, joints=joints, state=state, pointing=self._point(state, cache.votes))
        bins = _joint_bins(sequence)[:, joint:]
        return self._logits(cache.state, bins, cache.joints, cache.pointing, cache.votes, joint)[:, 0, slot], cache

    def forward(self, condition: Condition, ids):
        """Teacher forcing: what is known of the points, ids (B,T) from BOS on -> logits (B,T,VOCABULARY).

        Row t is about the token after ids[:, t].
        """
        return self.teach(condition, ids)[0]

    def teach(self, condition: Condition, ids, seen=None):
        """As `forward`, and the votes that count for each joint: logarithms of shares (B,K,2S), those of the s-th
        neighbourhood for its own joint and for the end of its bone at 2s and 2s+1.

        The completed joints that the decoder looks back at may be others: those of `seen` (B,T).
        """
        points, votes = self._look(condition)
        seen = ids if seen is None else seen
        state, _ = self._run(self._embed(seen, 0), tuple(None for _ in self.blocks), points)
        pointing = self._point(state, votes)
        logits = self._logits(state, _joint_bins(ids), self.pointer_key(state[:, 1:]), pointing, votes, 0)
        return logits.flatten(1, 2)[:, : ids.shape[1]], pointing

    def _look(self, condition: Condition):
        """What of the points stays the same for all tokens: `points` and `votes` of the Cache."""
        points = tuple(block.cross_attention.keys_and_values(condition.tokens) for block in self.blocks)
        keys = self.vote_key(condition.tokens).unflatten(2, (2, -1)).flatten(1, 2)
        votes = condition.votes.detach().flatten(1, 2)  # where they go is learned from the surface alone
        away = self.centres - votes.mT[..., None]  # (B,3,2S,BINS)
        spread = condition.spread.flatten(1)[:, None, :, None]
        return points, (keys, (-0.5 * (away / spread).square()).exp() / (spread * math.sqrt(2 * math.pi) * BINS))

    def _embed(self, ids, start: int):
        """Inputs (B,K,W) of the decoder's steps from `start` on: step k follows joint k-1, step 0 follows BOS."""
        bins = _joint_bins(ids)
        count = bins.shape[1]
        x = self.joint_embedding(torch.arange(start, count, device=ids.device)).expand(len(ids), -1, -1)
        own = bins[:, :-1, :3]
        parent = bins[:, :-1, 3] - 1
        earlier = (parent >= 0) & (parent < torch.arange(count - 1, device=ids.device))
        theirs = own.gather(1, torch.where(earlier, parent, 0)[..., None].expand(-1, -1, 3))
        theirs = torch.where(earlier[..., None], theirs, -1)
        known = self._features(torch.cat([own, theirs], dim=2)[:, max(start - 1, 0) :])
        return x + F.pad(self.last_joint(known), (0, 0, int(start == 0), 0))

    def _features(self, bins):
        """Fourier features (...,C features) of bins (...,C), zeros where a bin is negative."""
        return (self.bin_features[bins.clamp_min(0)] * (bins >= 0)[..., None]).flatten(-2)

    def _run(self, x, past, points):
        seen = []
        for block, before, around in zip(self.blocks, past, points, strict=True):
            x, keys_and_values = block(x, before, around)
            seen.append(keys_and_values)
        return self.norm(x), tuple(seen)

    def _point(self, state, votes):
        keys, _ = votes
        return (self.vote_query(state) @ keys.transpose(1, 2) / math.sqrt(keys.shape[2])).float().log_softmax(2)

    def _logits(self, state, bins, joints, pointing, votes, start: int):
        """Logits (B,K,4,VOCABULARY) of the tokens of joints start, start+1, ...

        state (B,K,W); bins (B,K,4) as far as they are known, only a joint's earlier ones count; joints (B,J,W)
        completed ones; pointing (B,K,2S).
        """
        axis = torch.arange(3, device=bins.device)
        slot = torch.arange(4, device=bins.device)[:, None]
        known = self._features(torch.where(axis < slot, bins[:, :, None, :3], -1))  # (B,K,4,3 features)
        hidden = self.slot_state(state)[:, :, None] + self.slot_known(known) + self.slot_embedding.weight
        state = self.slot_norm(state[:, :, None] + self.slot_output(F.gelu(hidden)))
        logits = self.head(state)
        spread = logits[..., FIRST_BIN:] + self.smooth_head(state) @ self.bin_features.T
        coordinates, parent = spread[:, :, :3].float(), spread[:, :, 3:].float()
        coordinates = coordinates + self._voted(pointing, votes, bins) * F.softplus(self.trust(state[:, :, :3])).float()
        pointed = (self.pointer_query(state[:, :, 3:]) @ joints[:, None].mT).float() / math.sqrt(joints.shape[2])
        root, candidates, others = parent.split([1, joints.shape[1], BINS - 1 - joints.shape[1]], dim=3)
        step = torch.arange(start, start + state.shape[1], device=bins.device)[:, None, None]
        earlier = torch.arange(joints.shape[1], device=bins.device) < step  # (K,1,J)
        parent = torch.cat([root, torch.where(earlier, pointed, candidates), others], dim=3)
        return torch.cat([logits[..., :FIRST_BIN].float(), torch.cat([coordinates, parent], dim=2)], dim=3)

    def _voted(self, pointing, votes, bins):
        """Logarithms (B,K,3,BINS) of what the votes say: of x, of y for this x, of z for this x and y."""
        _, density = votes
        said = []
        for axis in range(3):
            said.append(torch.log(pointing.exp() @ density[:, axis] + NO_VOTE))
            here = bins[:, None, :, axis].clamp_min(0).expand(-1, density.shape[2], -1)
            fits = torch.log(density[:, axis].detach().gather(2, here) + NEVER).mT
            pointing = (pointing + torch.where(bins[:, :, axis, None] >= 0, fits, 0.0)).log_softmax(2)
        return torch.stack(said, dim=2)


def _joint_bins(ids):
    """Bins (B,K,4) of ids (B,T) from BOS on, with the joint that comes next: negative where not written yet."""
    count = (ids.shape[1] + 3) // 4
    return F.pad(ids[:, 1:], (0, 4 * count + 1 - ids.shape[1]), value=PAD).unflatten(1, (count, 4)) - FIRST_BIN
