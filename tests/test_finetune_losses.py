"""SPRig's losses: each equation by hand, what must not matter, gradients, and what they pull a student to."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from sprig.backend.finetune import losses
from sprig.backend.finetune.losses import LossConfig
from sprig.backend.skeleton import tokens
from sprig.backend.skeleton.network import SkeletonConfig, SkeletonNetwork
from sprig.backend.skinning.network import pair_geometry

CONFIG = LossConfig()
SEEDS = st.integers(0, 2**32 - 1)

# Skeletons whose principal axes are no help: joints and parents.
LINE = [[0.0, 0, 0], [0.1, 0, 0], [0.3, 0, 0]], [-1, 0, 1]
STAR = [[0.0, 0, 0], [0.2, 0, 0], [-0.2, 0, 0], [0, 0.2, 0], [0, -0.2, 0], [0, 0, 0.2], [0, 0, -0.2]], [-1] + [0] * 6
SQUARE = [[0.0, 0, 0], [0.2, 0, 0], [0.2, 0.2, 0], [0, 0.2, 0]], [-1, 0, 1, 2]
PYRAMID = [[0.0, 0, 0.3], [0.1, 0.1, 0], [-0.1, 0.1, 0], [-0.1, -0.1, 0], [0.1, -0.1, 0]], [-1, 0, 0, 0, 0]
ONE_BONE = [[0.1, 0, 0], [0.1, 0.2, 0]], [-1, 0]
COINCIDENT_AXES = {"line": LINE, "star": STAR, "square": SQUARE, "pyramid": PYRAMID, "one bone": ONE_BONE}
# Distinct axes, but half a turn about Z changes nothing except which joint is which.
TWO_SIDED = [[0.0, 0, 0], [0, 0, 0.4], [0.2, 0.05, 0.3], [-0.2, -0.05, 0.3]], [-1, 0, 0, 0]
SKELETONS = {"two-sided": TWO_SIDED, **COINCIDENT_AXES}


def as_tensors(skeleton) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(skeleton[0], dtype=torch.float64), torch.tensor(skeleton[1])


def random_skeleton(rng, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints (J,3) float64 and parents (J,); the bones reach 0.2, 0.14 and 0.07 along the principal axes."""
    joints = rng.normal(size=(count, 3))
    parents = np.array([-1] + [int(rng.integers(0, j)) for j in range(1, count)])
    ends = np.concatenate([joints[1:], joints[parents[1:]]])
    spread, axes = np.linalg.eigh(np.cov(ends.T))
    joints = (joints - ends.mean(axis=0)) @ axes / np.sqrt(spread) * [0.07, 0.14, 0.2]
    return torch.tensor(joints @ Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()), torch.tensor(
        parents
    )


def rigid_motions(rng, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    rotations = Rotation.random(count, random_state=int(rng.integers(2**31))).as_matrix()
    return torch.tensor(rotations), torch.tensor(rng.uniform(-0.3, 0.3, (count, 1, 3)))


def reorder(skeletons, parents, order) -> tuple[torch.Tensor, torch.Tensor]:
    """Skeletons (...,J,3) and parents (J,) with the joints in another order, in which parents need not come first."""
    return skeletons[..., order, :], torch.where(parents < 0, -1, order.argsort()[parents.clamp_min(0)])[order]


def ids_of(skeleton) -> torch.Tensor:
    return torch.as_tensor(tokens.encode(*map(np.asarray, skeleton)))


def logits_of(ids, sharpness: float = 50.0) -> torch.Tensor:
    """Logits (T,V) float64 of a student that is sure of ids (T,): row t is about ids[t + 1]."""
    return sharpness * torch.nn.functional.one_hot(ids.roll(-1), tokens.VOCABULARY).double()


def random_weights(rng, *shape, temperature: float = 2.0) -> torch.Tensor:
    return torch.tensor(temperature * rng.normal(size=shape)).softmax(-1)


# ---- tokens


def chances(ids, *rows) -> torch.Tensor:
    """Logits (F,T,V) of a student to whom token ids[t + 1] of frame f has the probability rows[f][t]."""
    logits = torch.zeros(len(rows), len(ids), tokens.VOCABULARY, dtype=torch.float64)
    for f, row in enumerate(rows):
        for t, chance in enumerate(row):
            logits[f, t] = math.log((1 - chance) / (tokens.VOCABULARY - 1))
            logits[f, t, ids[t + 1]] = math.log(chance)
    return logits


ONE_JOINT = torch.tensor([0, 10, 60, 130, 3, 1])  # BOS, x, y, z, root, EOS
ROWS = [0.5, 0.25, 0.125, 0.0625, 0.5], [0.5, 0.5, 0.5, 0.5, 0.25]
# in units of log 2, the parent counting five times: (1 + 2 + 3 + 5 * 4 + 1) / 9 and (1 + 1 + 1 + 5 + 2) / 9
SURPRISE = torch.tensor([27 / 9, 10 / 9], dtype=torch.float64) * math.log(2)


def test_token_losses_by_hand():
    logits = chances(ONE_JOINT, *ROWS)
    torch.testing.assert_close(losses.self_loss(logits[0], ONE_JOINT, 5.0), SURPRISE[0])
    torch.testing.assert_close(losses.cross_loss(logits, ONE_JOINT, 5.0), SURPRISE.mean())
    torch.testing.assert_close(losses.cross_loss(logits, ONE_JOINT.expand(2, -1), 5.0), SURPRISE.mean())
    # unweighted: (1 + 2 + 3 + 4 + 1) / 5
    torch.testing.assert_close(losses.self_loss(logits[0], ONE_JOINT, 1.0).item(), 11 / 5 * math.log(2))


@pytest.mark.parametrize("anchor", [0, 1, 2])
def test_token_loss_tells_the_anchor_from_the_others(anchor):
    rows = [ROWS[0], ROWS[1], ROWS[1]]
    rows[0], rows[anchor] = rows[anchor], rows[0]
    loss, terms = losses.token_loss(chances(ONE_JOINT, *rows), ONE_JOINT, anchor, replace(CONFIG, cross=0.3))
    torch.testing.assert_close(torch.stack([terms["self"], terms["cross"]]), SURPRISE)
    torch.testing.assert_close(loss, SURPRISE[0] + 0.3 * SURPRISE[1])


def test_the_parent_is_the_fourth_of_every_quadruple():
    ids = ids_of(SQUARE)
    logits = torch.zeros(len(ids), tokens.VOCABULARY, dtype=torch.float64, requires_grad=True)
    losses.self_loss(logits, ids, 5.0).backward()
    pull = -logits.grad[torch.arange(len(ids) - 1), ids[1:]]
    torch.testing.assert_close(pull / pull[0], torch.tensor([1.0, 1, 1, 5] * 4 + [1], dtype=torch.float64))
    assert (logits.grad[-1] == 0).all()  # nothing comes after EOS


def test_padding_does_not_matter_to_tokens():
    padded = torch.cat([ONE_JOINT, torch.full((7,), tokens.PAD)])  # some of it where parents would be
    logits = torch.cat([chances(ONE_JOINT, *ROWS), torch.randn(2, 7, tokens.VOCABULARY, dtype=torch.float64)], dim=1)
    torch.testing.assert_close(losses.cross_loss(logits, padded, 5.0), SURPRISE.mean())


def test_rows_are_those_that_the_network_generates_by():
    """The likelihood of a skeleton token by token, as generation goes, against eq. 1 without weights."""
    torch.manual_seed(0)
    network = SkeletonNetwork(
        SkeletonConfig(width=32, heads=2, seeds=16, neighbours=4, encoder_blocks=1, decoder_blocks=1, most_joints=8)
    ).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    ids = ids_of(PYRAMID)
    with torch.no_grad():
        condition = network.condition(torch.rand(1, 50, 6) - 0.5)
        logits, cache = network.begin(condition)
        surprise = []
        for token in ids[1:]:
            surprise.append(-logits.log_softmax(-1)[0, token])
            logits, cache = network.step(token[None], cache)
        found = losses.self_loss(network(condition, ids[None])[0], ids, 1.0)
    torch.testing.assert_close(found, torch.stack(surprise).mean())


# ---- projected skeletons


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("straight_through", [False, True])
def test_a_sure_student_projects_to_the_decoded_skeleton(offset, straight_through):
    ids = ids_of(PYRAMID)
    joints, _ = tokens.decode(ids.numpy(), offset)
    found = losses.project_skeletons(logits_of(ids)[None].expand(3, -1, -1), 5, offset, straight_through)
    torch.testing.assert_close(found, torch.tensor(joints).double().expand(3, -1, -1), atol=1e-7, rtol=0)


def test_an_unsure_student_projects_to_the_mean_of_bins():
    logits = torch.full((1, 6, tokens.VOCABULARY), -100.0, dtype=torch.float64)
    logits[..., : tokens.FIRST_BIN] = 100  # these are no bins
    logits[0, 0, tokens.FIRST_BIN + torch.tensor([0, 64])] = 0
    logits[0, 1, tokens.FIRST_BIN] = math.log(3)  # three to one
    logits[0, 1, tokens.FIRST_BIN + 64] = 0
    logits[0, 2, tokens.FIRST_BIN + 127] = 0
    logits.requires_grad_()
    half = 0.5 / 128
    soft = losses.project_skeletons(logits, 1)
    expected = torch.tensor([[[-0.25, -0.375, 0.5 - 2 * half]]], dtype=torch.float64) + half
    torch.testing.assert_close(soft, expected, atol=1e-12, rtol=0)
    hard = losses.project_skeletons(logits, 1, straight_through=True)
    assert hard[0, 0, 1].item() == pytest.approx(-0.5 + half)
    gradients = [torch.autograd.grad(joints.square().sum(), logits)[0] for joints in (soft, hard)]
    on_y = [gradient[0, 1] / joints[0, 0, 1].item() for gradient, joints in zip(gradients, (soft, hard), strict=True)]
    torch.testing.assert_close(*on_y)
    assert on_y[0].abs().max() > 0.1


# ---- geometry, by hand

# bones along X (0.2) and Y (0.1), and along X (0.2) and the diagonal between (0.1 sqrt 2)
ANCHOR = torch.tensor([[[0, 0, 0], [0.2, 0, 0]], [[0.2, 0, 0], [0.2, 0.1, 0]]], dtype=torch.float64)
MOVED = torch.tensor([[[[0, 0, 0], [0.2, 0, 0]], [[0.2, 0, 0], [0.3, 0.1, 0]]]], dtype=torch.float64)


def test_direction_loss_by_hand():
    # the diagonal is as far from X as from Y, Y is closest to the diagonal: 1 - 1/sqrt 2 for one bone of two, each way
    expected = (1 - math.sqrt(0.5)) / 2
    assert losses.direction_loss(MOVED, ANCHOR, 2).item() == pytest.approx(expected)
    assert losses.direction_loss(MOVED.flip(2), ANCHOR, 9).item() == pytest.approx(expected)  # whichever way along
    assert losses.direction_loss(MOVED, ANCHOR, 1).item() == pytest.approx(0)  # the longest are the same
    # one frame of X alone: 0 from it to the anchor; back, Y is at right angles
    assert losses.direction_loss(MOVED[:, :1], ANCHOR, 2).item() == pytest.approx((0 + 1 / 2) / 2)
    two_frames = torch.cat([MOVED, ANCHOR[None]])
    assert losses.direction_loss(two_frames, ANCHOR, 2).item() == pytest.approx(expected / 2)


def test_bones_as_long_as_the_last_of_the_longest_count_too():
    sides = torch.tensor([[[0.0, 0, 0], [0.2, 0, 0]], [[0, 0, 0], [0, 0.2, 0]], [[0, 0, 0], [0, 0, 0.1]]])
    only_x = sides[:1].double()
    for order in ([0, 1, 2], [1, 0, 2], [2, 1, 0]):
        # the second of the two longest is at right angles to X; the short one does not count
        assert losses.direction_loss(sides.double()[None, order], only_x, 1).item() == pytest.approx(0.5 / 2)


def test_length_loss_by_hand():
    assert losses.length_loss(MOVED, ANCHOR).item() == pytest.approx((0.1 * math.sqrt(2) - 0.1) / 2)
    # ascending, as many as there are: 0.1 sqrt 2 against 0.1
    assert losses.length_loss(MOVED[:, 1:], ANCHOR).item() == pytest.approx(0.1 * math.sqrt(2) - 0.1)


def test_endpoint_loss_by_hand():
    # heads and tails 0, X, X and the last, 0.1 beside (0.2, 0.1) and 0.1 sqrt 2 from X
    assert losses.endpoint_loss(MOVED, ANCHOR).item() == pytest.approx((0.1 / 4 + 0.1 / 4) / 2)
    # from the anchor to the first bone: (0.2, 0.1) is 0.1 off, and its head twice on it; the other way nothing is off
    assert losses.endpoint_loss(MOVED[:, :1], ANCHOR).item() == pytest.approx((0 + 0.1 / 4) / 2)


def test_bones_have_heads_and_tails_and_roots_and_padding_have_none():
    joints, parents = torch.arange(12.0).view(4, 3), torch.tensor([1, -1, 1, -1])
    ends = losses.bone_ends(joints, parents)
    assert ends.tolist() == [[joints[1].tolist(), joints[0].tolist()], [joints[1].tolist(), joints[2].tolist()]]


def test_geometry_loss_weighs_its_terms_and_leaves_the_anchor_out():
    ids, moved = ids_of(PYRAMID), ids_of((np.array(PYRAMID[0]) * [1, 1, 1.4], PYRAMID[1]))
    joints, parents = map(torch.as_tensor, tokens.decode(ids.numpy()))
    logits = torch.stack([logits_of(moved), logits_of(torch.full_like(ids, 70)), logits_of(moved)])
    config = replace(CONFIG, direction=2.0, length=3.0, endpoint=5.0)
    loss, terms = losses.geometry_loss(logits, joints, parents, 1, config)
    assert min(terms.values()) > 0.001
    assert loss.item() == pytest.approx((2 * terms["direction"] + 3 * terms["length"] + 5 * terms["endpoint"]).item())
    expected = losses.compare_skeletons(
        torch.as_tensor(tokens.decode(moved.numpy())[0])[None].double(), joints.double(), parents, CONFIG.longest
    )
    for name, value in terms.items():
        assert value.item() == pytest.approx(expected[name].item(), abs=1e-6)
    assert losses.geometry_loss(logits[1:], joints, parents, 0, config)[0].item() == pytest.approx(loss.item())


# ---- geometry, what must not matter


def terms_of(skeletons, joints, parents, longest: int = 5) -> torch.Tensor:
    return torch.stack(list(losses.compare_skeletons(skeletons, joints, parents, longest).values()))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_rigid_motion_of_a_skeleton_is_undone(seed):
    rng = np.random.default_rng(seed)
    joints, parents = random_skeleton(rng)
    rotations, shifts = rigid_motions(rng, 4)
    ends = losses.bone_ends(joints @ rotations.mT + shifts, parents)
    found, shift = losses.rigid_alignment(ends, losses.bone_ends(joints, parents))
    torch.testing.assert_close(found, rotations.mT, atol=1e-6, rtol=0)
    torch.testing.assert_close(shift[:, None], -shifts @ rotations, atol=1e-6, rtol=0)
    assert terms_of(joints @ rotations.mT + shifts, joints, parents).abs().max() < 1e-6


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_rigid_motion_of_a_symmetric_skeleton_is_undone(skeleton):
    """By corresponding ends, or none of these would come back; each joint to its own place, not to its twin's."""
    rng = np.random.default_rng(0)
    joints, parents = as_tensors(skeleton)
    rotations, shifts = rigid_motions(rng, 5)
    moved = joints @ rotations.mT + shifts
    rotation, shift = losses.rigid_alignment(losses.bone_ends(moved, parents), losses.bone_ends(joints, parents))
    torch.testing.assert_close(torch.linalg.det(rotation), torch.ones(5, dtype=torch.float64))
    back = moved @ rotation.mT + shift[:, None]
    torch.testing.assert_close(back, joints.expand(5, -1, -1), atol=1e-7, rtol=0)
    assert terms_of(moved, joints, parents).abs().max() < 1e-7


def test_axes_decide_where_they_differ_and_ends_where_they_do_not():
    """Frames whose joints were swapped in pairs: the axes do not care which joint is which, Kabsch does."""
    joints, parents = random_skeleton(np.random.default_rng(1))
    ends = losses.bone_ends(joints, parents)
    rotation, _ = losses.rigid_alignment(ends.flip(0)[None], ends)
    torch.testing.assert_close(rotation[0], torch.eye(3, dtype=torch.float64), atol=1e-9, rtol=0)
    star = losses.bone_ends(*as_tensors(STAR))
    rotation, _ = losses.rigid_alignment(star[None, [2, 3, 1, 0, 4, 5]], star)
    quarter = torch.tensor([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]], dtype=torch.float64)
    torch.testing.assert_close(rotation[0], quarter, atol=1e-9, rtol=0)


def test_alignment_never_reflects():
    joints, parents = random_skeleton(np.random.default_rng(2))
    mirrored = joints * torch.tensor([-1.0, 1, 1])
    rotation, _ = losses.rigid_alignment(losses.bone_ends(mirrored, parents)[None], losses.bone_ends(joints, parents))
    assert torch.linalg.det(rotation[0]).item() == pytest.approx(1)
    assert terms_of(mirrored[None], joints, parents)[2] > 0.01


def bent_skeletons(seed, name):
    """Random numbers, a skeleton, and three frames (3,J,3) of it whose joints are a tenth of a bone off."""
    rng = np.random.default_rng(seed)
    joints, parents = as_tensors(SKELETONS[name]) if name in SKELETONS else random_skeleton(rng)
    return rng, joints, parents, joints + torch.tensor(rng.normal(0, 0.02, (3, *joints.shape)))


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, name=st.sampled_from(["random", *SKELETONS]))
def test_geometry_is_invariant_to_rigid_motion(seed, name):
    """Of either skeleton, when they differ; bent ones are a tenth of a bone off, in the frames and in the anchor."""
    rng, joints, parents, bent = bent_skeletons(seed, name)
    before = terms_of(bent, joints, parents)
    (rotations, shifts), (turn, shift) = rigid_motions(rng, 3), rigid_motions(rng, 1)
    after = terms_of(bent @ rotations.mT + shifts, joints @ turn[0].mT + shift[0], parents)
    assert before[1:].min() > 1e-4
    torch.testing.assert_close(after, before, atol=1e-7, rtol=0)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, name=st.sampled_from(["random", *SKELETONS]))
def test_geometry_is_invariant_to_the_order_of_joints(seed, name):
    rng, joints, parents, bent = bent_skeletons(seed, name)
    order = torch.tensor(rng.permutation(len(parents)))
    renamed = reorder(joints, parents, order)
    after = terms_of(reorder(bent, parents, order)[0], *renamed, longest=2)
    torch.testing.assert_close(after, terms_of(bent, joints, parents, longest=2), atol=1e-7, rtol=0)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS, symmetric=st.booleans())
def test_the_order_of_the_frame_alone_does_not_matter_where_the_axes_differ(seed, symmetric):
    """An exact copy of a two-sided skeleton is as good the other way round."""
    rng = np.random.default_rng(seed)
    joints, parents = as_tensors(TWO_SIDED) if symmetric else random_skeleton(rng)
    own = losses.bone_ends(joints, parents)
    bent = joints + (0 if symmetric else torch.tensor(rng.normal(0, 0.005, joints.shape)))
    ends = losses.bone_ends(bent, parents)
    found = []
    for order in (torch.arange(len(ends)), torch.tensor(rng.permutation(len(ends)))):
        shuffled = ends[None, order]
        rotation, shift = losses.rigid_alignment(shuffled, own)
        aligned = (shuffled.flatten(1, 2) @ rotation.mT + shift[:, None]).view_as(shuffled)
        terms = losses.direction_loss(aligned, own, 4), losses.length_loss(aligned, own)
        found.append(torch.stack([*terms, losses.endpoint_loss(aligned, own)]))
    torch.testing.assert_close(*found, atol=1e-7, rtol=0)


def test_endpoint_and_direction_are_those_of_another_form():
    rng = np.random.default_rng(4)
    joints, parents = random_skeleton(rng)
    bent = joints + torch.tensor(rng.normal(0, 0.05, joints.shape))
    ends, own = losses.bone_ends(bent, parents), losses.bone_ends(joints, parents)
    apart = cdist(ends.flatten(0, 1), own.flatten(0, 1))
    expected = (apart.min(0).mean() + apart.min(1).mean()) / 2
    assert losses.endpoint_loss(ends[None], own).item() == pytest.approx(expected)

    def longest(bones):
        along = (bones[:, 1] - bones[:, 0]).numpy()
        return along[np.argsort(-np.linalg.norm(along, axis=1))[:6]]

    apart = 1 - np.abs(1 - cdist(longest(ends), longest(own), "cosine"))
    expected = (apart.min(0).mean() + apart.min(1).mean()) / 2
    assert losses.direction_loss(ends[None], own, 6).item() == pytest.approx(expected)


def test_no_gradient_passes_through_the_alignment():
    rng = np.random.default_rng(5)
    joints, parents = random_skeleton(rng)
    bent = joints + torch.tensor(rng.normal(0, 0.03, (2, *joints.shape)))
    bent.requires_grad_()
    own, ends = losses.bone_ends(joints, parents), losses.bone_ends(bent, parents)
    rotation, shift = losses.rigid_alignment(ends, own)
    assert not rotation.requires_grad and not shift.requires_grad
    aligned = losses.bone_ends(bent @ rotation.mT + shift[:, None], parents)
    (expected,) = torch.autograd.grad(losses.endpoint_loss(aligned, own), bent)
    (found,) = torch.autograd.grad(losses.compare_skeletons(bent, joints, parents, 5)["endpoint"], bent)
    torch.testing.assert_close(found, expected)
    assert found.abs().max() > 1e-3


# ---- skinning, by hand

VALID = torch.tensor([True, True, True, False])
TARGET = torch.tensor([[0.6, 0.3, 0.1, 0], [0.2, 0, 0.8, 0]], dtype=torch.float64)


def test_support_mask_by_hand():
    mask = losses.support_mask(TARGET, VALID, 2, 0.1)
    assert mask.tolist() == [[1, 1, 0.1, 0], [1, 0.1, 1, 0]]
    assert losses.support_mask(TARGET, VALID, 1, 0.0).tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert losses.support_mask(TARGET, VALID, 9, 0.1).tolist() == [[1, 1, 1, 0], [1, 0.1, 1, 0]]  # 0 supports nothing
    assert losses.support_mask(0 * TARGET, VALID, 2, 0.1).tolist() == [[0.1, 0.1, 0.1, 0]] * 2
    # equal weights are in or out together; what stands in padding is not looked at
    assert losses.support_mask(torch.tensor([[0.3, 0.3, 0.4, 0.9]]), VALID, 2, 0.0).tolist() == [[1, 1, 1, 0]]


def test_masked_renormalisation_and_mean_by_hand():
    mask = torch.tensor([[1, 0.5, 0], [0, 1, 1]], dtype=torch.float64)
    weights = torch.tensor([[[0.5, 0.2, 0.3], [0.6, 0.1, 0.3]]], dtype=torch.float64)
    expected = torch.tensor([[[0.5 / 0.6, 0.1 / 0.6, 0], [0, 0.25, 0.75]]], dtype=torch.float64)
    torch.testing.assert_close(losses.renormalise(weights, mask), expected, atol=1e-7, rtol=0)
    found = losses.masked_mean(weights, mask)
    assert found.shape == (1,) and found.item() == pytest.approx((0.5 + 0.1 + 0.1 + 0.3) / 3.5)
    assert losses.masked_mean(weights, 0 * mask).item() == 0


TAUGHT = torch.tensor([[0.5, 0.5, 0], [1, 0, 0]], dtype=torch.float64)
FOUND = torch.tensor([[[0.25, 0.75, 0], [0.5, 0.5, 0]], [[0.5, 0.5, 0], [1, 0, 0]]], dtype=torch.float64)
MASK = torch.tensor([[1, 1, 0], [1, 0.5, 0]], dtype=torch.float64)


def test_consistency_losses_by_hand():
    # the second frame agrees, so that its half of each mean is 0; absolute differences 1/4, 1/4 and 1/2, 1/2
    difference = (0.25 + 0.25 + 0.5 + 0.5 * 0.5) / 3.5
    assert losses.difference_loss(FOUND, TAUGHT, MASK).item() == pytest.approx(difference / 2)
    assert losses.anchor_loss(FOUND[0], TAUGHT, MASK).item() == pytest.approx(difference)
    assert losses.anchor_loss(FOUND[1], TAUGHT, MASK).item() == 0
    # KL both ways, entry by entry; no weight is 1e-8 in the logarithm
    small = 1e-8
    first = 0.5 * math.log(2) + 0.25 * math.log(0.5), 0.5 * math.log(2 / 3) + 0.75 * math.log(3 / 2)
    second = math.log(2) + 0.5 * math.log(0.5), 0 + 0.5 * math.log(0.5 / small)
    expected = (first[0] + first[1] + second[0] + 0.5 * second[1]) / 2 / 3.5
    assert losses.divergence_loss(FOUND, TAUGHT, MASK).item() == pytest.approx(expected / 2)


def test_entropy_by_hand():
    weights = torch.tensor([[[0.5, 0.5, 0], [1, 0, 0]], [[0.25, 0.25, 0.5], [0, 0, 1]]], dtype=torch.float64)
    assert losses.entropy_loss(weights).item() == pytest.approx((1 + 0 + 1.5 + 0) * math.log(2) / 4, abs=1e-7)


def test_prior_loss_by_hand():
    weights = torch.tensor([[[0.5, 0.5], [1, 0]], [[0.2, 0.8], [0, 1]]])
    prior = torch.tensor([[[0.4, 0.6], [1, 0]], [[0.2, 0.8], [1, 0]]])
    assert losses.prior_loss(weights, prior).item() == pytest.approx((0.2 + 0 + 0 + 2) / 4)


def test_bone_distances_by_hand():
    """The skeleton of the network's own test: a joint with children along X and Y, whose bones go on half as far."""
    joints = torch.tensor([[0.0, 0, 0], [0.4, 0, 0], [0, 0.2, 0]])
    points = torch.tensor([[0.1, 0, 0.3], [0.5, 0, 0]])
    expected = torch.tensor([[0.3, 0.18**0.5, 0.14**0.5], [0.1, 0.0, 0.29**0.5]])
    frames = torch.stack([joints, joints + 1]), torch.stack([points, points + 1])
    found = losses.bone_distances(frames[1], frames[0], torch.tensor([-1, 0, 0]))
    torch.testing.assert_close(found, expected.expand(2, -1, -1), atol=1e-6, rtol=0)
    alone = losses.bone_distances(points[None], joints[None, :1], torch.tensor([-1]))
    torch.testing.assert_close(alone[0, :, 0], points.norm(dim=1))


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS, count=st.integers(1, 20))
def test_bone_distances_are_those_the_network_sees(seed, count):
    rng = np.random.default_rng(seed)
    parents = torch.tensor([-1] + [int(rng.integers(0, j)) for j in range(1, count)])
    joints, parents = reorder(
        torch.tensor(rng.uniform(-1, 1, (2, count, 3))), parents, torch.tensor(rng.permutation(count))
    )
    points = torch.tensor(rng.uniform(-0.5, 0.5, (2, 15, 6)))
    above = torch.where(parents < 0, torch.arange(count), parents).expand(2, -1)
    expected = pair_geometry(points, joints, above, torch.ones(2, count, dtype=torch.bool))[..., 1]
    torch.testing.assert_close(losses.bone_distances(points[..., :3], joints, parents), expected, atol=1e-12, rtol=0)


def test_proximity_by_hand():
    distances = torch.tensor([[[0.0, 0.1, 0.3, 0.0]]], dtype=torch.float64)
    e = math.e
    expected = torch.tensor([[[1, 1 / e, e**-3, 0]]], dtype=torch.float64) / (1 + 1 / e + e**-3)
    torch.testing.assert_close(losses.proximity(distances, VALID, 0.1), expected)
    far = losses.proximity(distances.float() + 1e4, VALID, 0.1)  # where exp would be 0 / 0
    torch.testing.assert_close(far, expected.float(), atol=0.01, rtol=0)
    assert (losses.proximity(distances, ~VALID & VALID, 0.1) == 0).all()


def test_sliding_mean_by_hand():
    values = torch.tensor([[0.0], [3], [9], [6]])[..., None] * torch.tensor([[1.0, 2]])
    expected = torch.tensor([1.5, 4, 6, 7.5])[:, None, None] * torch.tensor([[1.0, 2]])
    torch.testing.assert_close(losses.sliding_mean(values, 3), expected)
    assert torch.equal(losses.sliding_mean(values, 1), values)
    torch.testing.assert_close(losses.sliding_mean(values[:1], 3), values[:1])
    with pytest.raises(ValueError, match="odd"):
        LossConfig(window=2)


def test_the_prior_follows_the_posed_skeleton():
    """A forearm swings up with its points: they stay its own, which the skeleton of the first frame would not say."""
    joints = torch.tensor([[[0.0, 0, 0], [0.2, 0, 0], [0.4, 0, 0]], [[0, 0, 0], [0.2, 0, 0], [0.2, 0.2, 0]]])
    joints = torch.cat([joints, torch.zeros(2, 1, 3)], dim=1)
    points = torch.tensor([[[0.1, 0.01, 0], [0.3, 0.01, 0]], [[0.1, 0.01, 0], [0.19, 0.1, 0]]])
    config, parents = replace(CONFIG, window=1), torch.tensor([-1, 0, 1, -1])
    prior = losses.geometric_prior(points, joints, parents, VALID, config)
    torch.testing.assert_close(prior.sum(-1), torch.ones(2, 2))
    assert (prior[..., 3] == 0).all() and (prior.argmax(-1) == torch.tensor([0, 1])).all()
    torch.testing.assert_close(prior[0], prior[1], atol=0.05, rtol=0)
    smoothed = losses.geometric_prior(points, joints, parents, VALID, CONFIG)
    torch.testing.assert_close(smoothed, prior.mean(0).expand(2, -1, -1))


def test_skinning_loss_weighs_its_terms():
    rng = np.random.default_rng(0)
    weights, target, prior = random_weights(rng, 3, 5, 4), random_weights(rng, 5, 4), random_weights(rng, 3, 5, 4)
    valid = torch.ones(4, dtype=torch.bool)
    names = ("divergence", "difference", "anchor", "entropy", "prior")
    config = replace(CONFIG, support=2, **dict(zip(names, (2.0, 3.0, 5.0, 7.0, 11.0), strict=True)))
    loss, terms = losses.skinning_loss(weights, target, prior, valid, 1, config)
    assert loss.item() == pytest.approx(sum(getattr(config, name) * terms[name].item() for name in names))
    mask = losses.support_mask(target, valid, 2, config.residual)
    taught, found = losses.renormalise(target, mask), losses.renormalise(weights, mask)
    expected = {
        "divergence": losses.divergence_loss(found, taught, mask),
        "difference": losses.difference_loss(found, taught, mask),
        "anchor": losses.anchor_loss(found[1], taught, mask),
        "entropy": losses.entropy_loss(weights),
        "prior": losses.prior_loss(weights, prior),
    }
    assert terms == expected and len(set(terms.values())) == 5


# ---- skinning, what must not matter


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_skinning_is_invariant_to_the_order_of_joints_and_to_padding(seed):
    """With equal weights and zeros in the target, where a top-k would choose by index."""
    rng = np.random.default_rng(seed)
    count = 6
    target = torch.tensor(rng.integers(0, 3, (8, count)) + np.eye(count)[rng.integers(0, count, 8)])
    target = target / target.sum(-1, keepdim=True)
    weights, points = random_weights(rng, 3, 8, count), torch.tensor(rng.uniform(-0.5, 0.5, (3, 8, 3)))
    joints, parents = random_skeleton(rng, count)
    joints = joints + torch.tensor(rng.normal(0, 0.02, (3, count, 3)))
    valid = torch.ones(count, dtype=torch.bool)

    def terms(weights, target, joints, parents, valid):
        prior = losses.geometric_prior(points, joints, parents, valid, CONFIG)
        loss, found = losses.skinning_loss(weights, target, prior, valid, 0, replace(CONFIG, support=2))
        return torch.stack([loss, *found.values()]), prior

    before, prior = terms(weights, target, joints, parents, valid)
    order = torch.tensor(rng.permutation(count))
    after, moved = terms(weights[..., order], target[..., order], *reorder(joints, parents, order), valid)
    torch.testing.assert_close(after, before)
    torch.testing.assert_close(moved, prior[..., order])
    pad = torch.nn.functional.pad
    padded = pad(weights, (0, 2)), pad(target, (0, 2)), pad(joints, (0, 0, 0, 2)), pad(parents, (0, 2), value=-1)
    torch.testing.assert_close(terms(*padded, pad(valid, (0, 2)))[0], before)


@settings(max_examples=10, deadline=None)
@given(seed=SEEDS)
def test_every_consistency_term_is_zero_at_agreement_and_only_there(seed):
    rng = np.random.default_rng(seed)
    joints, parents = random_skeleton(rng)
    assert terms_of(joints.expand(3, -1, -1), joints, parents).abs().max() < 1e-6
    ids = ids_of((joints, parents))
    _, terms = losses.token_loss(logits_of(ids).expand(3, -1, -1), ids, 0, CONFIG)
    assert max(terms.values()) < 1e-12
    target, valid = random_weights(rng, 7, 5), torch.ones(5, dtype=torch.bool)
    _, terms = losses.skinning_loss(target.expand(3, -1, -1), target, target.expand(3, -1, -1), valid, 0, CONFIG)
    assert all(terms[name] == 0 for name in ("divergence", "difference", "anchor", "prior"))
    weights = random_weights(rng, 3, 7, 5)
    _, terms = losses.skinning_loss(weights, target, target.expand(3, -1, -1), valid, 0, CONFIG)
    assert all(terms[name] > 1e-3 for name in ("divergence", "difference", "anchor", "prior"))


# ---- gradients


def gradient_cases():
    """Name, function and the tensor its gradient is for, every term of every loss, in general position."""
    rng = np.random.default_rng(7)
    joints, parents = random_skeleton(rng, 6)
    own = losses.bone_ends(joints, parents)
    bent = joints + torch.tensor(rng.normal(0, 0.05, (2, 6, 3)))
    ids = ids_of(ONE_BONE)
    logits = torch.tensor(rng.normal(size=(2, len(ids), tokens.VOCABULARY)))
    target, prior = random_weights(rng, 4, 5), random_weights(rng, 2, 4, 5)
    mask = losses.support_mask(target, torch.ones(5, dtype=torch.bool), 2, 0.1)
    scores, distances = torch.tensor(rng.normal(size=(2, 4, 5))), torch.tensor(rng.uniform(0.01, 0.1, (2, 4, 5)))
    points = torch.tensor(rng.uniform(-0.5, 0.5, (2, 4, 3)))
    return {
        "self": (lambda x: losses.self_loss(x[0], ids, 5.0), logits),
        "cross": (lambda x: losses.cross_loss(x, ids, 5.0), logits),
        "project": (lambda x: losses.project_skeletons(x, 2), 5 * logits),
        "direction": (lambda x: losses.direction_loss(losses.bone_ends(x, parents), own, 3), bent),
        "length": (lambda x: losses.length_loss(losses.bone_ends(x, parents), own), bent),
        "endpoint": (lambda x: losses.endpoint_loss(losses.bone_ends(x, parents), own), bent),
        "renormalise": (lambda x: losses.renormalise(x.softmax(-1), mask), scores),
        "masked mean": (lambda x: losses.masked_mean(x.softmax(-1), mask), scores),
        "divergence": (lambda x: losses.divergence_loss(losses.renormalise(x.softmax(-1), mask), target, mask), scores),
        "difference": (lambda x: losses.difference_loss(losses.renormalise(x.softmax(-1), mask), target, mask), scores),
        "anchor": (lambda x: losses.anchor_loss(losses.renormalise(x.softmax(-1), mask)[0], target, mask), scores),
        "entropy": (lambda x: losses.entropy_loss(x.softmax(-1)), scores),
        "prior": (lambda x: losses.prior_loss(x.softmax(-1), prior), scores),
        "proximity": (lambda x: losses.proximity(x, torch.tensor([True] * 4 + [False]), 0.03), distances),
        "sliding mean": (lambda x: losses.sliding_mean(x, 3), scores),
        "bone distances": (lambda x: losses.bone_distances(points, x, parents), bent),
    }


@pytest.mark.parametrize("name", gradient_cases())
def test_gradients_are_right(name):
    function, at = gradient_cases()[name]
    assert torch.autograd.gradcheck(function, at.clone().requires_grad_(), fast_mode=at.numel() > 200)


def finite(loss, *inputs):
    gradients = torch.autograd.grad(loss, inputs, retain_graph=True)
    return bool(loss.isfinite()) and all(bool(gradient.isfinite().all()) for gradient in gradients)


DEGENERATE = {
    **SKELETONS,
    "all in one place": ([[0.1, 0.1, 0.1]] * 4, [-1, 0, 1, 1]),
    "a bone without length": ([[0.0, 0, 0], [0.2, 0, 0], [0.2, 0, 0], [0.2, 0.1, 0]], [-1, 0, 1, 2]),
    "two joints in one place": ([[0.0, 0, 0], [0.2, 0, 0], [0.2, 0, 0], [0.3, 0.1, 0]], [-1, 0, 0, 2]),
    "padding": ([[0.0, 0, 0], [0.2, 0, 0], [0.2, 0.1, 0], [0, 0, 0], [0, 0, 0]], [-1, 0, 1, -1, -1]),
    "one joint": ([[0.1, 0, 0]], [-1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", DEGENERATE)
def test_geometry_of_degenerate_skeletons_has_finite_gradients(name, dtype):
    joints, parents = as_tensors(DEGENERATE[name])
    joints = joints.to(dtype)
    other = torch.tensor(np.random.default_rng(0).uniform(-0.4, 0.4, joints.shape)).to(dtype)
    for skeletons, own in ((joints, joints), (other, joints), (joints, other)):
        skeletons = skeletons.expand(2, -1, -1).clone().requires_grad_()
        terms = losses.compare_skeletons(skeletons, own, parents, 20)
        assert all(finite(term, skeletons) for term in terms.values())
        assert all(term.dtype == dtype for term in terms.values())
        if own is joints and torch.equal(skeletons[0], joints):
            assert max(term.abs().item() for term in terms.values()) < 1e-3  # at most the rounding of float32


def test_padded_joints_get_no_gradient():
    joints, parents = as_tensors(DEGENERATE["padding"])
    logits = torch.randn(3, 4 * len(parents) + 2, tokens.VOCABULARY, requires_grad=True)
    loss, _ = losses.geometry_loss(logits, joints.float(), parents, 0, CONFIG)
    loss.backward()
    assert logits.grad.isfinite().all() and (logits.grad[:, 12:] == 0).all() and (logits.grad[0] == 0).all()
    assert all((logits.grad[1:, 4 * joint : 4 * joint + 3] != 0).any() for joint in range(3))


def test_a_clip_of_the_anchor_alone_has_no_cross_terms():
    ids = ids_of(PYRAMID)
    logits = torch.randn(1, len(ids), tokens.VOCABULARY, requires_grad=True)
    loss, terms = losses.token_loss(logits, ids, 0, CONFIG)
    assert finite(loss, logits) and terms["cross"] == 0 and loss.item() == terms["self"].item() > 1
    joints, parents = map(torch.as_tensor, tokens.decode(ids.numpy()))
    loss, _ = losses.geometry_loss(logits, joints, parents, 0, CONFIG)
    assert finite(loss, logits) and loss == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", ["no target", "all padding", "single joint", "sure", "wrong and sure", "no residual"])
def test_degenerate_weights_have_finite_gradients(case, dtype):
    joints = 1 if case == "single joint" else 5
    scores = torch.randn(3, 6, joints, dtype=dtype, generator=torch.Generator().manual_seed(0))
    scores = scores * (1e4 if "sure" in case else 1)
    valid = torch.full((joints,), case != "all padding")
    target = scores[0].roll(1, -1).softmax(-1) if case == "wrong and sure" else scores[0].softmax(-1)
    target = 0 * target if case == "no target" else target
    config = replace(CONFIG, support=2, residual=0.0 if case == "no residual" else CONFIG.residual)
    scores.requires_grad_()
    weights = scores.softmax(-1) * valid
    prior = losses.proximity(torch.rand(3, 6, joints, dtype=dtype), valid, 0.03)
    loss, terms = losses.skinning_loss(weights, target, prior, valid, 0, config)
    assert finite(loss, scores) and loss.dtype == dtype
    if case == "single joint":
        assert max(map(abs, terms.values())) < 1e-6
    if case == "wrong and sure":
        assert terms["difference"] > 0.1
    if case == "all padding":
        assert terms["divergence"] == terms["difference"] == terms["anchor"] == 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_losses_are_the_same_in_half_precision_around_them(half):
    rng = np.random.default_rng(0)
    ids = ids_of(PYRAMID)
    joints, parents = map(torch.as_tensor, tokens.decode(ids.numpy()))
    logits = torch.tensor(3 * rng.normal(size=(3, len(ids), tokens.VOCABULARY))).to(half)
    weights, target, prior = (
        random_weights(rng, 3, 5, 4).to(half),
        random_weights(rng, 5, 4),
        random_weights(rng, 3, 5, 4),
    )

    def all_losses(logits, weights):
        return [
            losses.token_loss(logits, ids, 1, CONFIG)[0],
            losses.geometry_loss(logits, joints, parents, 1, CONFIG)[0],
            losses.skinning_loss(weights, target.float(), prior.float(), VALID | True, 1, CONFIG)[0],
        ]

    expected = all_losses(logits.float(), weights.float())
    with torch.autocast("cpu", torch.bfloat16):
        found = all_losses(logits, weights)
    assert found == expected and all(loss.dtype == torch.float32 for loss in found)


# ---- what they pull a student to


def minimise(loss, start, steps: int, rate: float) -> torch.Tensor:
    values = start.clone().requires_grad_()
    optimiser = torch.optim.Adam([values], lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        loss(values).backward()
        optimiser.step()
    return values.detach()


def test_a_student_comes_to_spell_the_anchor_skeleton_in_every_frame():
    ids = ids_of(PYRAMID)
    joints, parents = map(torch.as_tensor, tokens.decode(ids.numpy()))
    start = torch.randn(3, len(ids), tokens.VOCABULARY, generator=torch.Generator().manual_seed(0))

    def loss(logits):
        geometry, _ = losses.geometry_loss(logits, joints, parents, 1, CONFIG)
        return losses.token_loss(logits, ids, 1, CONFIG)[0] + geometry

    assert not torch.equal(start[:, :-1].argmax(-1), ids[1:].expand(3, -1))
    found = minimise(loss, start, steps=60, rate=0.2)
    assert torch.equal(found[:, :-1].argmax(-1), ids[1:].expand(3, -1))


def test_geometry_alone_brings_a_skeleton_back_to_its_shape_wherever_it_is():
    rng = np.random.default_rng(3)
    joints, parents = random_skeleton(rng)
    rotations, shifts = rigid_motions(rng, 2)
    start = (joints + torch.tensor(rng.normal(0, 0.02, (2, *joints.shape)))) @ rotations.mT + shifts
    found = minimise(lambda x: sum(losses.compare_skeletons(x, joints, parents, 20).values()), start, 150, 0.001)
    before, after = terms_of(start, joints, parents, 20), terms_of(found, joints, parents, 20)
    assert (after < before / 2).all()


def test_a_student_comes_to_weigh_every_frame_as_the_teacher_weighs_the_anchor():
    rng = np.random.default_rng(0)
    target, start = random_weights(rng, 20, 6), torch.tensor(rng.normal(size=(4, 20, 6)))
    config = replace(CONFIG, entropy=0.0, prior=0.0)
    valid = torch.ones(6, dtype=torch.bool)
    found = minimise(
        lambda x: losses.skinning_loss(x.softmax(-1), target, torch.zeros_like(x), valid, 0, config)[0], start, 200, 0.1
    ).softmax(-1)
    mask = losses.support_mask(target, valid, config.support, config.residual)
    away = [
        (losses.renormalise(weights, mask) - losses.renormalise(target, mask)).abs().mean()
        for weights in (start.softmax(-1), found)
    ]
    assert away[0] > 0.1 and away[1] < 0.005
