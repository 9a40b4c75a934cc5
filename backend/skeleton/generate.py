"""Skeletons from a decoder, token by token; whatever the decoder's numbers, a valid tree comes out.

The place in the sequence alone says which tokens may follow (`Grammar`); the others get probability zero before one is
chosen. All rows (candidates or beams) are at the same place, so one mask serves them all and every step is one batch.
Works with any decoder that has `most_joints`, `offset`, `condition`, `begin` and `step` (network.py describes them).

Choices a reader would question:
* Probabilities are those of the masked distribution at temperature 1, whatever temperature and top-p were sampled with.
* Best first means the highest mean log-probability per token (Wu et al. 2016, length penalty 1): the sum prefers
  skeletons that end early.
* Whether a skeleton ends is a choice of its own, before that of the next joint's place: a search ends it where ending
  has at least half of the probability, and the temperature sharpens both choices. The likeliest token alone would end
  it sooner, because going on has its probability spread over the 128 bins where the next joint could be.
* A beam that ends leaves the others one place fewer, so the search ends after `beams` skeletons; greedy decoding is
  the search with one beam.
* A joint at its parent's very place is kept. It is a valid tree, and rigs do have such bones (twist, roll, collar);
  who writes bones gives them a length (`bone_tails`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ..errors import SprigError, no_progress
from .tokens import BOS, EOS, FIRST_BIN, VOCABULARY, decode, encode

FEWEST_JOINTS = 2  # one joint alone is no bone
ENDING = math.log(0.5)  # least log-probability of EOS
COLDEST = 1e-9  # temperature; below it a choice is the likeliest one in double precision
EXTREME = 1e4  # logits are clipped here, so that differences of the infinite ones are still numbers


@dataclass(frozen=True, eq=False)
class GeneratedSkeleton:
    """One skeleton in the frame of the points.

    joints (J,3) float32; parents (J,) int64, -1 for the root, parents first; confidence (J,) float32 in [0, 1], the
    geometric mean of the probabilities of the joint's four tokens, 1 for joints that were given; log_probability of
    all tokens that were chosen, EOS among them; cut: the decoder would rather have gone on when the limit was reached;
    agreed: the confidence is the share of many decodings that have the joint (consensus.py).
    """

    joints: np.ndarray
    parents: np.ndarray
    confidence: np.ndarray
    log_probability: float
    cut: bool
    agreed: bool = False


@dataclass(frozen=True)
class Grammar:
    """Which tokens may come next: the skeleton ends with `fewest` joints or more, and with `most` at the latest."""

    fewest: int
    most: int

    def allowed(self, place: int) -> torch.Tensor:
        """(VOCABULARY,) bool for the token that has `place` tokens of joints before it."""
        joint, slot = divmod(place, 4)
        mask = torch.zeros(VOCABULARY, dtype=torch.bool)
        if slot == 3:  # the parent: the root for the first joint, an earlier joint for the others
            mask[FIRST_BIN + min(joint, 1) : FIRST_BIN + 1 + joint] = True
        else:
            mask[FIRST_BIN:] = slot > 0 or joint < self.most
            mask[EOS] = slot == 0 and joint >= self.fewest
        return mask


@torch.no_grad()
def generate(
    model,
    points,
    *,
    candidates: int = 1,
    temperature: float = 0.0,
    top_p: float = 0.95,
    beams: int = 1,
    joints: int | None = None,
    at_most: bool = False,
    prefix=None,
    seed: int = 0,
    progress=no_progress,
) -> list[GeneratedSkeleton]:
    """Up to `candidates` skeletons for points (N,6) or (1,N,6), position in [-0.5, 0.5] and unit normal, best first.

    model: in eval mode, on the device of the points. With temperature 0 the result is the best that a search with
    max(beams, candidates) beams finds, one beam being greedy decoding. Otherwise the candidates are drawn at this
    temperature from the likeliest tokens that hold `top_p` of the probability, the same for the same `seed`; two may be
    equal.
    `joints`: that many exactly, or no more if `at_most`. `prefix`: joints (K,3) and parents (K,), parents first, that
    the skeleton begins with; they come back where they were given, not rounded to bins.
    `progress` is called at every joint and may raise Cancelled.

    Raises SprigError for options that cannot be met.
    """
    points = torch.as_tensor(points, dtype=torch.float32)
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3 or points.shape[0] != 1 or points.shape[1] == 0 or points.shape[2] != 6:
        raise ValueError(f"expected points (N, 6) or (1, N, 6), got {tuple(points.shape)}")
    if candidates < 1 or beams < 1 or not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        raise SprigError("Candidates and beams start at 1, the temperature at 0, and top-p lies above 0 up to 1.")
    if temperature > 0 and beams > 1:
        raise SprigError("A search with beams draws nothing; give a temperature of 0, or one beam.")
    given = np.empty(0, np.int64) if prefix is None else encode(*prefix)[1:-1]
    grammar = _grammar(model.most_joints, joints, at_most, len(given) // 4)

    condition = model.condition(points)
    logits, cache = model.begin(condition)
    for token in given:
        logits, cache = model.step(torch.full((1,), int(token), device=points.device), cache)
    if temperature > 0:
        choose = _Sampling.seeded(model, [temperature] * candidates, top_p, seed)
        rows = torch.zeros(candidates, dtype=torch.long, device=points.device)
        logits, cache = logits[rows], cache.select(rows)
    else:
        choose = _Search(max(beams, candidates))
    finished = _decode(model, grammar, logits, cache, len(given), choose, progress)
    finished.sort(key=lambda row: -row.log_p.mean())  # stable: equal ones stay in the order they were found
    return [_skeleton(row, given, prefix, model.offset) for row in finished[:candidates]]


@torch.no_grad()
def generate_each(
    model, points, temperatures=(0.0,), *, top_p: float = 0.95, joints: int | None = None, seed: int = 0,
    progress=no_progress,
) -> list[list[GeneratedSkeleton]]:  # fmt: skip
    """For each shape of points (B,N,6) one skeleton at every temperature, in that order: all of them in one batch.

    Temperature 0 decodes greedily; the others draw as `generate` does. Raises SprigError for options that
    cannot be met.
    """
    grammar = _grammar(model.most_joints, joints, False, 0)
    logits, cache = model.begin(model.condition(points))
    rows = torch.arange(len(points), device=points.device).repeat_interleave(len(temperatures))
    choose = _Sampling.seeded(model, list(temperatures) * len(points), top_p, seed)
    finished = _decode(model, grammar, logits[rows], cache.select(rows), 0, choose, progress)
    finished.sort(key=lambda row: row.start)
    found = iter([_skeleton(row, np.empty(0, np.int64), None, model.offset) for row in finished])
    return [[next(found) for _ in temperatures] for _ in points]


def _grammar(most_joints: int, joints: int | None, at_most: bool, given: int) -> Grammar:
    if joints is not None and not FEWEST_JOINTS <= joints <= most_joints:
        raise SprigError(f"This network makes {FEWEST_JOINTS} to {most_joints} joints, not {joints}; ask for as many.")
    most = most_joints if joints is None else joints
    if given > most:
        raise SprigError(f"{given} joints are given where {most} are the most; give fewer or ask for more.")
    return Grammar(FEWEST_JOINTS if joints is None or at_most else joints, most)


# ---- one token after the other


@dataclass(frozen=True, eq=False)
class _Finished:
    """ids (T,) that were chosen, EOS last, and their log-probabilities (T,); start: the row that it began in."""

    start: int
    ids: np.ndarray
    log_p: np.ndarray
    cut: bool


def _decode(model, grammar: Grammar, logits, cache, place: int, choose, progress) -> list[_Finished]:
    """Every row to its end. logits (R,VOCABULARY) and cache stand at `place`; `choose` says which rows go on, and how.

    The rows' tokens are kept on the CPU; only the chosen ids go to the model's device and only logits come back.
    """
    device = logits.device
    finished: list[_Finished] = []
    start = torch.arange(len(logits))
    ids = torch.empty((len(logits), 0), dtype=torch.long)
    scores = torch.empty((len(logits), 0), dtype=torch.float64)
    while True:
        if place % 4 == 0:
            progress(place / (4 * grammar.most), f"Placing joint {place // 4 + 1}")
        logits = logits.cpu().double()
        if logits.isnan().any():
            raise SprigError("The skeleton network gives values that are not numbers; use another checkpoint.")
        logits = logits.clamp(-EXTREME, EXTREME)
        log_p = _masked(logits, grammar.allowed(place))
        rows, tokens = choose(log_p, scores.sum(1), place, start, len(finished))
        ended = tokens == EOS
        cut = _would_go_on(logits, grammar, place)
        ids = torch.cat([ids[rows], tokens[:, None]], dim=1)
        scores = torch.cat([scores[rows], log_p[rows, tokens][:, None]], dim=1)
        start = start[rows]
        finished += [
            _Finished(int(start[row]), ids[row].numpy(), scores[row].numpy(), bool(cut[rows[row]]))
            for row in ended.nonzero()[:, 0]
        ]
        if ended.all():
            progress(1.0, "Skeleton placed")
            return finished
        rows, start, ids, scores = rows[~ended], start[~ended], ids[~ended], scores[~ended]
        if not torch.equal(rows, torch.arange(len(logits))):
            cache = cache.select(rows.to(device))
        logits, cache = model.step(ids[:, -1].to(device), cache)
        place += 1


def _masked(logits, allowed):
    """Log-probabilities (R,VOCABULARY) among the allowed tokens, -inf for the others."""
    return logits.masked_fill(~allowed, -torch.inf).log_softmax(1)


def _would_go_on(logits, grammar: Grammar, place: int):
    """(R,) bool: the limit ends the skeleton here, and the decoder gives EOS less than half of the probability.

    A number of joints that was asked for exactly is no limit that cuts.
    """
    if place < 4 * grammar.most or grammar.fewest == grammar.most:
        return torch.zeros(len(logits), dtype=torch.bool)
    without_limit = Grammar(grammar.fewest, grammar.most + 1)
    return _masked(logits, without_limit.allowed(place))[:, EOS] < ENDING


@dataclass(frozen=True)
class _Search:
    """The likeliest continuations of all rows together; greedy for a width of one."""

    width: int

    def __call__(self, log_p, totals, place, start, finished):
        """Rows (R',) to go on with and their tokens (R',); totals (R,) are the rows' log-probabilities so far."""
        if place % 4 == 0:
            unlikely = torch.zeros_like(log_p, dtype=torch.bool)
            unlikely[:, EOS] = log_p[:, EOS] < ENDING
            log_p = log_p.masked_fill(unlikely, -torch.inf)
        total, best = (totals[:, None] + log_p).reshape(-1).sort(descending=True, stable=True)
        best = best[: self.width - finished][total[: self.width - finished].isfinite()]
        return best // VOCABULARY, best % VOCABULARY


@dataclass(frozen=True, eq=False)
class _Sampling:
    """One draw for every row from the likeliest tokens that hold `top_p` (Holtzman et al. 2020).

    By the inverse of the cumulative distribution, at uniforms (starts, tokens) that are drawn beforehand, so no row
    changes another one. temperatures (starts,); 0 takes the likeliest token.
    """

    uniforms: torch.Tensor
    temperatures: torch.Tensor
    top_p: float

    @classmethod
    def seeded(cls, model, temperatures: list[float], top_p: float, seed: int) -> _Sampling:
        generator = torch.Generator().manual_seed(seed)
        size = (len(temperatures), 4 * model.most_joints + 1)
        uniforms = torch.rand(size, generator=generator, dtype=torch.float64)
        return cls(uniforms, torch.tensor(temperatures, dtype=torch.float64).clamp_min(COLDEST), top_p)

    def __call__(self, log_p, totals, place, start, finished):
        """All rows (R,) and their tokens (R,)."""
        temperature = self.temperatures[start, None]
        p = _tempered(log_p, temperature)
        if place % 4 == 0:  # to end or to go on is a choice of its own
            onward = log_p.index_fill(1, torch.tensor([EOS]), -torch.inf)
            end = _tempered(torch.stack([log_p[:, EOS], onward.logsumexp(1)], dim=1), temperature)
            p = end[:, 1:] * _tempered(onward, temperature).nan_to_num(0.0)  # nan at the limit, where all else is -inf
            p[:, EOS] = end[:, 0]
        p, token = p.sort(dim=1, descending=True, stable=True)
        p = torch.where(p.cumsum(1) - p < self.top_p, p, 0.0)
        cumulative = p.cumsum(1)
        drawn = self.uniforms[start, place, None] * cumulative[:, -1:]
        drawn = torch.searchsorted(cumulative, drawn, right=True).clamp_max((p > 0).sum(1, keepdim=True) - 1)
        return torch.arange(len(log_p)), token.gather(1, drawn)[:, 0]


def _tempered(log_p, temperature):
    log_p = log_p - log_p.amax(1, keepdim=True)  # before the division: the best stays at zero for any temperature
    return (log_p / temperature).softmax(1)


# ---- from tokens to a skeleton


def _skeleton(row: _Finished, given, prefix, offset: float) -> GeneratedSkeleton:
    places, parents = decode(np.concatenate([[BOS], given, row.ids]), offset)
    known = len(given) // 4
    if known:
        places[:known] = prefix[0]
    chosen = np.exp(row.log_p[:-1].reshape(-1, 4).mean(axis=1))
    confidence = np.append(np.ones(known), chosen).astype(np.float32)
    return GeneratedSkeleton(places, parents, confidence, float(row.log_p.sum()), row.cut)
