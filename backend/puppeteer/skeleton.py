"""The skeleton decoder of Puppeteer (Song et al. 2025), also MagicArticulate's: OPT-350m's shape, its own embeddings.

Attribute names are those of the released files, so that a state dict loads key for key. The decoder is an OPT with
post-layer-normalisation and without a final one, causal over the 257 shape tokens too. Three things are its own:

* Every token gets the row of a small table that says which coordinate it is: BOS, EOS and PAD have rows 0 to 2, the
  others 3 + (index - 1) mod k, with k = 4 tokens for a joint (x, y, z, parent) or 6 for a bone (parent, child).
* The "target-aware" table, where a file has one: row 0 is added to every shape token, row 1 + j to the tokens of joint
  (or bone) j. BOS gets none, nor does the last joint the buffer can hold: the table is one row short.
* Input embedding and output head are one tensor, and both names are in the files.

The encoder sees coordinates within +-0.9995, joints live in [-0.5, 0.5]; `condition` takes points in the joints' frame
and rescales them. A bin stands for its lower edge, not its centre (`offset`). Dropout, 0.1 when Puppeteer was trained,
is left out: a student is compared with its teacher token by token.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import SprigError
from ..skeleton.tokens import BOS, EOS, FIRST_BIN, PAD, VOCABULARY
from .michelangelo import Michelangelo, MichelangeloConfig, to_encoder_frame

POSITION_OFFSET = 2  # OPT's position table starts two rows late


@dataclass(frozen=True)
class SkeletonConfig:
    """Sizes of the skeleton network; the defaults are Puppeteer's released joint-token file."""

    width: int = 1024
    heads: int = 16
    layers: int = 24
    feed_forward: int = 4096
    tokens_per_slot: int = 4  # 4: x, y, z, parent of a joint; 6: parent and child position of a bone
    slots: int = 101  # joints (or bones) the position table has room for
    target_table: bool = True  # the "target-aware" table; MagicArticulate has none
    encoder: MichelangeloConfig = field(default_factory=MichelangeloConfig)

    def __post_init__(self):
        if self.width % self.heads or self.tokens_per_slot not in (4, 6):
            raise ValueError(
                f"{self.heads} heads for a width of {self.width}, {self.tokens_per_slot} tokens for a slot"
            )


@dataclass(frozen=True)
class Cache:
    """Keys and values (B,heads,L,channels) of every layer, and how many tokens after the prefix they have seen."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    tokens: int

    def select(self, rows: Tensor) -> Cache:
        """The cache of the batch rows (n,) long, in this order; a row may appear more than once."""
        return Cache(tuple(k[rows] for k in self.keys), tuple(v[rows] for v in self.values), self.tokens)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, past):
        queries, keys, values = (
            proj(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        if past is not None:
            assert x.shape[1] == 1, "with a cache tokens come one at a time"
            keys, values = torch.cat([past[0], keys], dim=2), torch.cat([past[1], values], dim=2)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=past is None)
        return self.out_proj(mixed.transpose(1, 2).flatten(2)), keys, values


class Layer(nn.Module):
    """One OPT layer, normalised after each residual."""

    def __init__(self, config: SkeletonConfig):
        super().__init__()
        self.self_attn = Attention(config.width, config.heads)
        self.self_attn_layer_norm = nn.LayerNorm(config.width)
        self.fc1 = nn.Linear(config.width, config.feed_forward)
        self.fc2 = nn.Linear(config.feed_forward, config.width)
        self.final_layer_norm = nn.LayerNorm(config.width)

    def forward(self, x, past):
        mixed, keys, values = self.self_attn(x, past)
        x = self.self_attn_layer_norm(x + mixed)
        return self.final_layer_norm(x + self.fc2(F.relu(self.fc1(x)))), keys, values


class Decoder(nn.Module):
    def __init__(self, config: SkeletonConfig, positions: int):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, config.width)
        self.embed_positions = nn.Embedding(positions + POSITION_OFFSET, config.width)
        self.token_embed_positions = nn.Embedding(FIRST_BIN + config.tokens_per_slot, config.width)
        self.cond_embed = nn.Embedding(2, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class PuppeteerSkeleton(nn.Module):
    """Points to a sequence of joint (or bone) tokens. B shapes, N points, P prefix tokens, T generated tokens.

    Offers the interface every skeleton decoder of this package has: `condition`, `begin`, `step`, `forward`,
    `most_joints`, `offset`. Where a file writes bones (`config.tokens_per_slot` 6) the tokens mean something else: then
    `most_joints` is refused, which keeps it out of `generate`, and `repair.greedy_tree` is the way to a skeleton.
    """

    kind = "skeleton"
    architecture = "puppeteer"
    encoder_parts = ("point_encoder",)  # modules that fine-tuning leaves as they are
    offset = 0.0  # a bin stands for its lower edge

    def __init__(self, config: SkeletonConfig):
        super().__init__()
        self.config = config
        self.prefix_tokens = config.encoder.latents + 1
        self.most_tokens = config.slots * config.tokens_per_slot + 2  # with BOS and EOS
        if config.target_table:
            self.target_aware_pos_embed = nn.Parameter(0.02 * torch.randn(1, config.slots, config.width))
        self.point_encoder = Michelangelo(config.encoder)
        self.transformer = nn.Module()  # these two levels of names are the released ones
        self.transformer.model = nn.Module()
        self.transformer.model.decoder = Decoder(config, self.prefix_tokens + self.most_tokens)
        self.transformer.lm_head = nn.Linear(config.width, VOCABULARY, bias=False)
        self.cond_head_proj = nn.Linear(config.encoder.width, config.width)
        self.cond_proj = nn.Linear(config.encoder.width, config.width)
        self.tie()

    def tie(self) -> None:
        """Make output head and input embedding one tensor; needed again after weights were assigned.

        Where a file had two that differ the head's would win, as it does when Puppeteer loads one.
        """
        self.transformer.model.decoder.embed_tokens.weight = self.transformer.lm_head.weight

    # ---- the interface shared by all skeleton decoders

    @property
    def most_joints(self) -> int:
        """The most joints a sequence has room for; raises SprigError where the tokens are bones."""
        if self.config.tokens_per_slot != 4:
            raise SprigError(
                "This Puppeteer skeleton file writes bones, not joints, and cannot be guided; choose a joint-token one."
            )
        return self.config.slots

    def condition(self, points: Tensor) -> Tensor:
        """Points (B,N,6) with unit normals, coordinates in [-0.5, 0.5] -> prefix embeddings (B,P,width)."""
        return self.prefix(self.point_encoder.encode(to_encoder_frame(points)))

    def begin(self, condition: Tensor) -> tuple[Tensor, Cache]:
        """Prefix (B,P,width) -> logits (B,131) of the token after BOS, and a cache that has seen prefix and BOS."""
        bos = torch.full((len(condition), 1), BOS, dtype=torch.long, device=condition.device)
        embedded = torch.cat([self._embed_prefix(condition), self._embed_ids(bos, 0)], dim=1)
        return self._run(embedded, None, 1)

    def step(self, ids: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        """The tokens just chosen, ids (B,) long -> logits (B,131) of the next ones, and the longer cache."""
        return self._run(self._embed_ids(ids[:, None], cache.tokens), cache, cache.tokens + 1)

    def forward(self, condition: Tensor, ids: Tensor) -> Tensor:
        """Teacher forcing: ids (B,T) starting with BOS -> logits (B,T,131), row t predicts ids[:, t + 1]."""
        return self.logits(condition, ids)[:, 1:]

    # ---- what the shared interface is made of

    def prefix(self, tokens: Tensor) -> Tensor:
        """Encoder output (B,P,encoder width) -> prefix embeddings (B,P,width): global token, then decoded latents."""
        tokens = self.point_encoder.decode(tokens)
        return torch.cat([self.cond_head_proj(tokens[:, :1]), self.cond_proj(tokens[:, 1:])], dim=1)

    def logits(self, condition: Tensor, ids: Tensor) -> Tensor:
        """Logits (B,T+1,131) for ids (B,T): row t predicts ids[:, t], row 0 therefore from the prefix alone."""
        x = torch.cat([self._embed_prefix(condition), self._embed_ids(ids, 0)], dim=1)
        for layer in self.transformer.model.decoder.layers:
            x, _keys, _values = layer(x, None)
        return self.transformer.lm_head(x[:, condition.shape[1] - 1 :])

    @torch.no_grad()
    def greedy(self, condition: Tensor) -> Tensor:
        """The likeliest token at every step, as Puppeteer runs it: ids (B,T) long, beginning with its idea of BOS.

        Ends when every row has had an EOS or the buffer is full; a row is padded with PAD after its EOS. Nothing keeps
        these tokens from being nonsense, see `repair.one_tree`.
        """
        logits, cache = self._run(self._embed_prefix(condition), None, 0)
        ended = torch.zeros(len(condition), dtype=torch.bool, device=condition.device)
        chosen = []
        while True:
            ids = logits.argmax(-1).masked_fill(ended, PAD)
            chosen.append(ids)
            ended = ended | (ids == EOS)
            if len(chosen) == self.most_tokens or bool(ended.all()):
                return torch.stack(chosen, dim=1)
            logits, cache = self.step(ids, cache)

    def _run(self, x, cache: Cache | None, tokens: int):
        """Embedded tokens (B,L,width) through all layers: logits (B,131) after the last one, cache with `tokens`."""
        keys, values = [], []
        for i, layer in enumerate(self.transformer.model.decoder.layers):
            x, layer_keys, layer_values = layer(x, None if cache is None else (cache.keys[i], cache.values[i]))
            keys.append(layer_keys)
            values.append(layer_values)
        return self.transformer.lm_head(x[:, -1]), Cache(tuple(keys), tuple(values), tokens)

    def _embed_prefix(self, condition):
        decoder = self.transformer.model.decoder
        positions = torch.arange(condition.shape[1], device=condition.device) + POSITION_OFFSET
        embedded = condition + decoder.cond_embed.weight[0] + decoder.embed_positions(positions)
        return embedded + self.target_aware_pos_embed[:, 0] if self.config.target_table else embedded

    def _embed_ids(self, ids, start: int):
        """Embedding (B,T,width) of ids (B,T) whose first one has index `start`; BOS has index 0."""
        decoder, per_slot = self.transformer.model.decoder, self.config.tokens_per_slot
        index = torch.arange(start, start + ids.shape[1], device=ids.device)
        row = torch.where(ids < FIRST_BIN, ids, FIRST_BIN + (index - 1) % per_slot)
        embedded = (
            decoder.embed_tokens(ids)
            + decoder.token_embed_positions(row)
            + decoder.cond_embed.weight[1]
            + decoder.embed_positions(self.prefix_tokens + index + POSITION_OFFSET)
        )
        if self.config.target_table:
            slot = torch.div(index - 1, per_slot, rounding_mode="floor")
            has_row = (slot >= 0) & (slot < self.config.slots - 1)
            rows = self.target_aware_pos_embed[0, torch.where(has_row, slot + 1, 0)]
            embedded = embedded + torch.where(has_row[:, None], rows, 0.0)
        return embedded
