"""Generation: whatever the logits, valid trees; and what was asked for, checked against other ways to get it."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sprig.backend.errors import Cancelled, SprigError
from sprig.backend.skeleton.generate import generate, generate_each
from sprig.backend.skeleton.tokens import BOS, EOS, FIRST_BIN, VOCABULARY, dequantise, encode

POINTS = torch.zeros(4, 6)
BIN = FIRST_BIN  # id of bin 0


@dataclass(frozen=True)
class Seen:
    """The simplest cache there is: the ids so far (B,T)."""

    ids: torch.Tensor

    def select(self, rows):
        return Seen(self.ids[rows])


class TableDecoder:
    """A decoder whose logits are any function of the ids so far, `logits_of(ids)` -> (VOCABULARY,)."""

    def __init__(self, logits_of, most_joints=101, offset=0.5):
        self.logits_of, self.most_joints, self.offset = logits_of, most_joints, offset

    def condition(self, points):
        return points[:, :1]

    def begin(self, condition):
        return self.step(torch.full((len(condition),), BOS), Seen(torch.empty((len(condition), 0), dtype=torch.long)))

    def step(self, ids, cache):
        seen = torch.cat([cache.ids, ids[:, None]], dim=1)
        return torch.stack([self.logits_of(tuple(row)) for row in seen.tolist()]), Seen(seen)


def noise_of(seed, spread=1.0, eos=0.0):
    """Logits that depend on all ids so far."""

    def logits_of(ids):
        rng = np.random.default_rng([seed, *ids])
        logits = torch.as_tensor(spread * rng.standard_normal(VOCABULARY), dtype=torch.float32)
        logits[EOS] += eos
        return logits

    return logits_of


def hostile(seed):
    """Logits out of -inf, inf and huge numbers, all of them -inf at times."""

    def logits_of(ids):
        rng = np.random.default_rng([seed, *ids])
        values = rng.choice([-np.inf, np.inf, 3e38, -3e38, 1e-30, 0, 5], VOCABULARY)
        return torch.as_tensor(values if rng.random() < 0.7 else np.full(VOCABULARY, -np.inf), dtype=torch.float32)

    return logits_of


def allowed_by_definition(ids):
    """Ids that may follow `ids` (BOS first), without limits on the number of joints."""
    done, slot = divmod(len(ids) - 1, 4)
    if slot < 3:
        return list(range(BIN, VOCABULARY)) + ([EOS] if slot == 0 and done >= 2 else [])
    return [BIN] if done == 0 else [BIN + 1 + j for j in range(done)]


def log_probabilities(logits_of, ids, limit=10**9):
    """Of each id after BOS, among those that the definition allows; no new joint after `limit`."""
    result = []
    for t in range(1, len(ids)):
        allowed = allowed_by_definition(ids[:t])
        allowed = [EOS] if t == 4 * limit + 1 else allowed
        weights = np.exp(logits_of(tuple(ids[:t]))[allowed].double().numpy())
        result.append(np.log(weights[allowed.index(ids[t])] / weights.sum()))
    return np.array(result)


def same(a, b):
    return a.joints.shape == b.joints.shape and (a.joints == b.joints).all() and (a.parents == b.parents).all()


# ---- nothing but valid trees


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(2, 9),
    st.sampled_from([noise_of, hostile]),
    st.sampled_from([{}, {"beams": 3, "candidates": 2}, {"temperature": 1.0, "candidates": 3}, {"temperature": 1e-30}]),
    st.sampled_from([{}, {"joints": 2}, {"joints": 2, "at_most": True}]),
    st.sampled_from([0.0, 0.5]),
)
def test_any_logits_give_valid_trees(seed, most_joints, kind, search, budget, offset):
    model = TableDecoder(kind(seed), most_joints, offset)
    found = generate(model, POINTS, **search, **budget, seed=seed)
    assert 1 <= len(found) <= search.get("candidates", 1)
    for skeleton in found:
        count = len(skeleton.parents)
        assert 2 <= count <= budget.get("joints", most_joints)
        assert skeleton.joints.shape == (count, 3) and skeleton.joints.dtype == np.float32
        assert np.abs(skeleton.joints).max() <= 0.5
        assert skeleton.parents[0] == -1
        assert all(0 <= skeleton.parents[j] < j for j in range(1, count))
        assert skeleton.confidence.shape == (count,)
        assert ((skeleton.confidence >= 0) & (skeleton.confidence <= 1)).all()
        assert np.isfinite(skeleton.log_probability) and skeleton.log_probability <= 0


def test_joints_at_one_place_are_kept_and_are_a_tree():
    def always_bin_7(ids):
        logits = torch.zeros(VOCABULARY)
        logits[BIN + 7] = 50
        return logits

    (skeleton,) = generate(TableDecoder(always_bin_7, 12), POINTS)
    np.testing.assert_array_equal(skeleton.joints, np.full((12, 3), dequantise(7)))
    assert skeleton.parents[0] == -1 and skeleton.parents[8] == 6  # bin 7 is joint 6
    assert skeleton.cut


def test_numbers_that_are_none_are_an_error():
    with pytest.raises(SprigError, match="not numbers"):
        generate(TableDecoder(lambda ids: torch.full((VOCABULARY,), torch.nan)), POINTS)


# ---- greedy, beams, samples


def test_greedy_takes_the_likeliest_allowed_token_and_says_how_likely_it_was():
    """And it ends where that is likelier than to go on, wherever going on would lead."""
    logits_of = noise_of(3, spread=2.0, eos=5.0)
    (skeleton,) = generate(TableDecoder(logits_of), POINTS)
    ids, tempted = [BOS], 0
    while ids[-1] != EOS:
        logits, allowed = logits_of(tuple(ids)), allowed_by_definition(ids)
        ids.append(max(allowed, key=lambda token: float(logits[token])))
        if ids[-1] == EOS and logits[allowed].softmax(0)[allowed.index(EOS)] < 0.5:
            ids[-1] = max(set(allowed) - {EOS}, key=lambda token: float(logits[token]))
            tempted += 1
    assert tempted  # the likeliest token would have ended it before
    assert encode(skeleton.joints, skeleton.parents).tolist() == ids and len(ids) > 14
    log_p = log_probabilities(logits_of, ids)
    np.testing.assert_allclose(skeleton.confidence, np.exp(log_p[:-1].reshape(-1, 4).mean(1)), rtol=1e-5)
    assert skeleton.log_probability == pytest.approx(log_p.sum(), rel=1e-5)
    assert not skeleton.cut


def two_bins(seed):
    """Coordinates in bins 5 and 6 alone: few enough sequences to try them all."""

    def logits_of(ids):
        logits = noise_of(seed)(ids)
        if len(ids) % 4:
            logits[[token for token in range(VOCABULARY) if token not in (EOS, BIN + 5, BIN + 6)]] = -torch.inf
        return logits

    return logits_of


@pytest.mark.parametrize("seed", range(5))
def test_a_wide_enough_search_finds_the_likeliest_skeletons(seed):
    every = [
        [BOS, *first, BIN, *second, BIN + 1, EOS]
        for first in itertools.product([BIN + 5, BIN + 6], repeat=3)
        for second in itertools.product([BIN + 5, BIN + 6], repeat=3)
    ]
    totals = np.array([log_probabilities(two_bins(seed), ids, limit=2).sum() for ids in every])
    best = np.argsort(-totals)[:4]
    found = generate(TableDecoder(two_bins(seed)), POINTS, joints=2, beams=64, candidates=4)
    assert [encode(s.joints, s.parents).tolist() for s in found] == [every[k] for k in best]
    np.testing.assert_allclose([s.log_probability for s in found], totals[best], rtol=1e-5)


def test_more_beams_find_no_worse_and_candidates_at_temperature_zero_are_beams():
    model = TableDecoder(noise_of(5, eos=3.0), 6)
    found = generate(model, POINTS, candidates=5)
    assert len(found) == 5
    assert not any(same(a, b) for a, b in itertools.combinations(found, 2))
    (greedy,) = generate(model, POINTS)

    def mean(skeleton):
        return skeleton.log_probability / (4 * len(skeleton.parents) + 1)

    assert [mean(s) for s in found] == sorted(map(mean, found), reverse=True)
    assert mean(generate(model, POINTS, beams=32)[0]) >= mean(greedy)


def test_samples_have_the_frequencies_of_the_model():
    wanted = np.array([0.5, 0.3, 0.15, 0.05])

    def logits_of(ids):
        logits = torch.full((VOCABULARY,), -torch.inf)
        logits[BIN : BIN + 4] = torch.as_tensor(wanted).log()
        return logits

    model, draws = TableDecoder(logits_of), 2000
    for top_p, temperature, expected in [
        (1.0, 1.0, wanted),
        (0.9, 1.0, np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (1.0, 0.5, wanted**2 / (wanted**2).sum()),
        (0.4, 1.0, np.array([1.0, 0, 0, 0])),
    ]:
        found = generate(model, POINTS, candidates=draws, temperature=temperature, top_p=top_p, joints=2, seed=1)
        bins = [encode(s.joints, s.parents)[1] - BIN for s in found]
        share = np.bincount(bins, minlength=4) / draws
        assert share.shape == (4,)
        # four standard deviations of a share of 2,000 draws
        np.testing.assert_allclose(share, expected, atol=4 * np.sqrt(0.25 / draws))
        assert ((expected > 0) | (share == 0)).all()


def test_a_candidate_depends_on_the_seed_and_its_number_alone():
    model = TableDecoder(noise_of(8, eos=4.0), 20)
    few = generate(model, POINTS, candidates=6, temperature=1.0, seed=4)
    many = generate(model, POINTS[None], candidates=12, temperature=1.0, seed=4)
    assert len({len(s.parents) for s in few}) > 2  # they end at different times
    assert all(any(same(a, b) for b in many) for a in few)
    (one,) = generate(model, POINTS, temperature=1.0, seed=4)
    assert any(same(one, b) for b in few)
    other = generate(model, POINTS, candidates=6, temperature=1.0, seed=5)
    assert not any(same(a, b) for a in few for b in other)


def test_a_low_temperature_is_greedy():
    model = TableDecoder(noise_of(2, eos=3.0), 10)
    (greedy,) = generate(model, POINTS)
    (cold,) = generate(model, POINTS, temperature=1e-300, top_p=1.0)
    assert same(greedy, cold) and cold.log_probability == greedy.log_probability


# ---- budgets and prefixes


@pytest.mark.parametrize("search", [{}, {"beams": 4}, {"temperature": 1.0}])
@pytest.mark.parametrize("eos", [-100.0, 0.0, 100.0])
def test_budgets_are_kept_and_cuts_are_told(search, eos):
    model = TableDecoder(noise_of(0, eos=eos), most_joints=9)
    (exact,) = generate(model, POINTS, joints=5, **search)
    assert len(exact.parents) == 5 and not exact.cut
    (bounded,) = generate(model, POINTS, joints=5, at_most=True, **search)
    assert len(bounded.parents) == (2 if eos > 0 else 5)
    assert bounded.cut == (eos <= 0)
    (free,) = generate(model, POINTS, **search)
    assert len(free.parents) == (2 if eos > 0 else 9)
    assert free.cut == (eos <= 0)


def test_a_skeleton_that_ends_by_itself_at_the_limit_is_not_cut():
    def ends_after_four(ids):
        logits = noise_of(1)(ids)
        logits[EOS] = 100 if len(ids) == 17 else -100
        return logits

    (skeleton,) = generate(TableDecoder(ends_after_four, most_joints=4), POINTS)
    assert len(skeleton.parents) == 4 and not skeleton.cut


@pytest.mark.parametrize("search", [{}, {"beams": 4, "candidates": 2}, {"temperature": 1.0, "candidates": 3}])
def test_a_prefix_is_kept_and_continued(search):
    model = TableDecoder(noise_of(6, eos=3.0), 12)
    joints, parents = np.float32([[0.013, 0, -0.2], [0.1, 0.2, 0.6], [0.1, 0.3, 0.4]]), np.array([-1, 0, 0])
    for skeleton in generate(model, POINTS, prefix=(joints, parents), **search):
        np.testing.assert_array_equal(skeleton.joints[:3], joints)
        np.testing.assert_array_equal(skeleton.parents[:3], parents)
        assert (skeleton.confidence[:3] == 1).all()
    # the model saw the given joints: the rest is what it says after them
    (skeleton,) = generate(model, POINTS, prefix=(joints, parents))
    ids = encode(skeleton.joints, skeleton.parents).tolist()
    log_p = log_probabilities(noise_of(6, eos=3.0), ids, limit=12)[12:]
    assert skeleton.log_probability == pytest.approx(log_p.sum(), rel=1e-5)
    (whole,) = generate(model, POINTS, prefix=(joints, parents), joints=3)
    assert len(whole.parents) == 3 and whole.log_probability == 0


def test_greedy_continues_its_own_beginning():
    model = TableDecoder(noise_of(9, eos=2.0), 10)
    (skeleton,) = generate(model, POINTS)
    (again,) = generate(model, POINTS, prefix=(skeleton.joints[:2], skeleton.parents[:2]))
    assert same(skeleton, again)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"joints": 10}, "2 to 9"),
        ({"joints": 1}, "2 to 9"),
        ({"joints": 2, "prefix": (np.zeros((3, 3)), np.array([-1, 0, 1]))}, "3 joints are given"),
        ({"prefix": (np.zeros((2, 3)), np.array([-1, -1]))}, "only root"),
        ({"candidates": 0}, "start at 1"),
        ({"temperature": -1.0}, "start at 1"),
        ({"top_p": 0.0}, "start at 1"),
        ({"temperature": 1.0, "beams": 2}, "draws nothing"),
    ],
)
def test_options_that_cannot_be_met(options, message):
    with pytest.raises(SprigError, match=message):
        generate(TableDecoder(noise_of(0), most_joints=9), POINTS, **options)


def test_progress_rises_and_may_cancel():
    told = []
    generate(TableDecoder(noise_of(0, eos=-100), 5), POINTS, progress=lambda fraction, text: told.append(fraction))
    assert told == [0, 0.2, 0.4, 0.6, 0.8, 1, 1]

    def stop(fraction, text):
        raise Cancelled

    with pytest.raises(Cancelled):
        generate(TableDecoder(noise_of(0)), POINTS, progress=stop)


def test_points_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="expected points"):
        generate(TableDecoder(noise_of(0)), torch.zeros(2, 5, 6))


# ---- several shapes at once


class ByShape(TableDecoder):
    """A TableDecoder whose logits depend on the shape, too: the first coordinate of its first point."""

    def begin(self, condition):
        return self.step(torch.full((len(condition),), BOS), Seen(condition[:, 0, :1].long()))

    def step(self, ids, cache):
        seen = torch.cat([cache.ids, ids[:, None]], dim=1)
        return torch.stack([self.logits_of(tuple(row)) for row in seen.tolist()]), Seen(seen)


def shapes(*numbers):
    points = torch.zeros(len(numbers), 4, 6)
    points[:, 0, 0] = torch.tensor(numbers, dtype=torch.float32)
    return points


def test_each_shape_gets_its_own_greedy_skeleton():
    model = ByShape(noise_of(3, spread=3.0, eos=4.0), most_joints=9)
    together = generate_each(model, shapes(1, 2, 3, 4))
    for (found,), points in zip(together, shapes(1, 2, 3, 4), strict=True):
        alone = generate(model, points)[0]
        assert same(found, alone)
        assert found.log_probability == pytest.approx(alone.log_probability)
    assert len({len(found.parents) for (found,) in together}) > 1


def test_each_temperature_gives_one_skeleton_and_changes_no_other():
    model = ByShape(noise_of(4, spread=2.0, eos=3.0), most_joints=9)
    found = generate_each(model, shapes(1, 2), (0.0, 1.0, 1.0), seed=7)
    assert [len(row) for row in found] == [3, 3]
    assert same(found[1][0], generate(model, shapes(2)[0])[0])
    assert not same(found[0][1], found[0][2])
    fewer = generate_each(model, shapes(1), (0.0, 1.0, 1.0), seed=7)
    assert all(same(a, b) for a, b in zip(found[0], fewer[0], strict=True))
    drawn = generate(model, shapes(1)[0], temperature=1.0, candidates=3, seed=7)
    again = generate_each(model, shapes(1), (1.0, 1.0, 1.0), seed=7)[0]
    assert all(any(same(a, b) for b in drawn) for a in again)


def test_a_number_of_joints_holds_for_each_shape():
    model = ByShape(noise_of(5), most_joints=9)
    assert [len(found.parents) for (found,) in generate_each(model, shapes(1, 2, 3), joints=5)] == [5, 5, 5]
