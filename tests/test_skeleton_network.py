"""The skeleton decoder: its interface, what must not change its answer, and two rigs learned and read back exactly."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sprig.backend.skeleton.generate import generate
from sprig.backend.skeleton.network import (
    SkeletonConfig,
    SkeletonNetwork,
    farthest_points,
    fourier_features,
    nearest_points,
)
from sprig.backend.skeleton.tokens import BOS, PAD, decode, encode_batch, order_joints, reorder

TINY = SkeletonConfig(
    width=32,
    heads=2,
    seeds=24,
    neighbours=8,
    encoder_blocks=1,
    decoder_blocks=2,
    point_frequencies=3,
    joint_frequencies=5,
    dropout=0.0,
    most_joints=12,
)

RIGS = [  # joints and parents; the second has a joint less and other limbs
    (
        np.array(
            [[0, 0, 0], [0, 0, 0.2], [0, 0, 0.45], [0.3, 0, 0.2], [-0.3, 0, 0.2], [0.1, 0, -0.4], [-0.1, 0, -0.4]]
        ),
        np.array([-1, 0, 1, 1, 1, 0, 0]),
    ),
    (
        np.array([[0, -0.3, 0], [0, 0.3, 0.05], [0, 0.45, 0.2], [0.1, 0.3, -0.3], [-0.1, 0.3, -0.3], [0, -0.49, 0.1]]),
        np.array([-1, 0, 1, 1, 1, 0]),
    ),
]


def points_around(joints, parents, count, seed):
    """Points (N,6) on tubes of radius 0.04 around the bones."""
    rng = np.random.default_rng(seed)
    child = rng.choice(np.flatnonzero(parents >= 0), count)
    t = rng.random((count, 1))
    along = joints[child] - joints[parents[child]]
    normal = np.cross(along, rng.standard_normal((count, 3)))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    places = joints[parents[child]] + t * along + 0.04 * normal
    return torch.as_tensor(np.concatenate([places, normal], axis=1), dtype=torch.float32)


def batch(count=120):
    """Points (2,N,6) and ids (2,T) of both rigs in canonical order."""
    rigs = [reorder(joints, parents, order_joints(joints, parents)) for joints, parents in RIGS]
    most = max(len(parents) for _, parents in rigs)
    joints, parents, valid = np.zeros((2, most, 3)), np.full((2, most), -1), np.zeros((2, most), dtype=bool)
    for row, (places, tree) in enumerate(rigs):
        joints[row, : len(tree)], parents[row, : len(tree)], valid[row, : len(tree)] = places, tree, True
    points = torch.stack([points_around(*rig, count, seed) for seed, rig in enumerate(rigs)])
    return points, torch.as_tensor(encode_batch(joints, parents, valid))


def network(config=TINY, seed=0):
    """With larger weights than at the start of training, so that every path shows in the logits."""
    torch.manual_seed(seed)
    model = SkeletonNetwork(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


# ---- pieces


def test_fourier_features_by_hand():
    features = fourier_features(torch.tensor([[0.25, -0.5]]), 2)
    root = 0.5**0.5
    torch.testing.assert_close(
        features, torch.tensor([[0.25, -0.5, root, 1, -1, 0, root, 0, 0, -1]]), atol=1e-6, rtol=0
    )


def test_farthest_and_nearest_points_by_hand():
    line = torch.tensor([[[0.1, 0, 0], [-0.4, 0, 0], [0.3, 0, 0], [0.0, 0, 0], [-0.2, 0, 0]]])
    assert farthest_points(line, 4).tolist() == [[1, 2, 3, 4]]
    near = nearest_points(line[:, [2, 1]], line, 2)
    assert [sorted(row) for row in near[0].tolist()] == [[0, 2], [1, 4]]


# ---- the interface


def test_the_default_network_is_compact_and_says_what_it_is():
    model = SkeletonNetwork()
    assert 3e6 < sum(parameter.numel() for parameter in model.parameters()) < 8e6
    assert (model.kind, model.offset, model.most_joints) == ("skeleton", 0.5, 101)
    assert model.config == SkeletonConfig()


def test_forward_has_the_promised_shapes_and_repeats_itself():
    model, (points, ids) = network(), batch()
    condition = model.condition(points)
    logits = model(condition, ids)
    assert condition.tokens.shape == (2, TINY.seeds, TINY.width) and logits.shape == (2, ids.shape[1], 131)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, model(model.condition(points), ids))
    assert torch.equal(logits, network()(condition, ids))


@torch.no_grad()
def test_token_by_token_gives_the_logits_of_the_whole_sequence():
    model, (points, _) = network(), batch()
    rng = np.random.default_rng(0)
    length = 4 * TINY.most_joints + 1
    ids = torch.as_tensor(rng.integers(3, 131, (2, length)))  # parents that do not exist yet among them
    ids[:, 4::4] = torch.as_tensor(3 + rng.integers(0, np.arange(length // 4) + 1, (2, length // 4)))
    ids[1, 8] = 120
    ids[:, 0] = BOS
    condition = model.condition(points)
    whole = model(condition, ids)
    logits, cache = model.begin(condition)
    stepped = [logits]
    for t in range(1, length):
        logits, cache = model.step(ids[:, t], cache)
        stepped.append(logits)
    torch.testing.assert_close(torch.stack(stepped, 1), whole, atol=1e-4, rtol=0)
    assert whole.std() > 0.1


@torch.no_grad()
def test_a_cache_can_be_selected_from_and_is_not_used_up():
    model, (points, ids) = network(), batch()
    _, cache = model.begin(model.condition(points))
    for t in range(1, 10):
        expected, after = model.step(ids[:, t], cache)
        rows = torch.tensor([1, 0, 1])
        picked, _ = model.step(ids[rows, t], cache.select(rows))
        torch.testing.assert_close(picked, expected[rows], atol=1e-5, rtol=0)
        again, _ = model.step(ids[:, t], cache)
        assert torch.equal(again, expected)
        cache = after


@torch.no_grad()
def test_no_token_sees_a_later_one():
    model, (points, ids) = network(), batch()
    condition = model.condition(points)
    before = model(condition, ids)
    for t in (5, 8, 11, 16):
        changed = ids.clone()
        changed[:, t:] = PAD
        after = model(condition, changed)
        torch.testing.assert_close(after[:, :t], before[:, :t], atol=1e-5, rtol=0)
        assert (after[:, t] - before[:, t]).abs().max() > 1e-3


@torch.no_grad()
def test_every_row_of_a_batch_stands_alone():
    model, (points, ids) = network(), batch()
    together = model(model.condition(points), ids)
    for row in range(2):
        alone = model(model.condition(points[row : row + 1]), ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-4, rtol=0)
    assert (together[0] - together[1]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_points_does_not_matter(seed):
    model, (points, ids) = network(), batch(700)
    shuffled = points[:, torch.randperm(700, generator=torch.Generator().manual_seed(seed))]
    torch.testing.assert_close(
        model(model.condition(shuffled), ids), model(model.condition(points), ids), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_few_and_coinciding_points_are_no_trouble():
    model = network()
    for points in (torch.zeros(1, 1, 6), torch.zeros(1, 50, 6), batch()[0][:, :3]):
        assert model.condition(points).tokens.isfinite().all()


def test_every_parameter_learns():
    model, (points, ids) = network(), batch()
    logits = model(model.condition(points), ids[:, :-1])
    F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0] == []


# ---- recovery


def test_two_rigs_are_learned_and_read_back_exactly():
    torch.manual_seed(0)
    points, ids = batch()
    model = SkeletonNetwork(TINY).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3, weight_decay=0.0)
    for _ in range(200):
        logits = model(model.condition(points), ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), ignore_index=PAD)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    assert loss.item() < 0.02
    model.eval()
    for row in range(2):
        expected, expected_parents = decode(ids[row].numpy())
        for search in ({}, {"beams": 3}, {"temperature": 0.5, "top_p": 0.9}):
            (found,) = generate(model, points[row], **search)
            np.testing.assert_array_equal(found.joints, expected)
            np.testing.assert_array_equal(found.parents, expected_parents)
            assert found.confidence.min() > 0.8 and not found.cut


@pytest.mark.gpu
@torch.no_grad()
def test_the_gpu_gives_the_same_logits():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    model, (points, ids) = network(), batch()
    expected = model(model.condition(points), ids)
    expected_skeleton = generate(model, points[0])[0]
    model, points, ids = model.cuda(), points.cuda(), ids.cuda()
    torch.testing.assert_close(model(model.condition(points), ids).cpu(), expected, atol=1e-3, rtol=0)
    found = generate(model, points[0], temperature=1.0, candidates=3)
    assert len(found) == 3
    np.testing.assert_array_equal(generate(model, points[0])[0].parents, expected_skeleton.parents)
