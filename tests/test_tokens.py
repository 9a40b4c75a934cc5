"""Tokens: by hand, exact round trips, an order that neither the input's order nor rounding changes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sprig.backend.errors import SprigError
from sprig.backend.skeleton.tokens import (
    BINS,
    MOST_JOINTS,
    PAD,
    decode,
    decode_batch,
    dequantise,
    encode,
    encode_batch,
    order_joints,
    quantise,
    reorder,
)


def random_tree(count, seed):
    rng = np.random.default_rng(seed)
    parents = np.array([-1] + [rng.integers(j) for j in range(1, count)])
    return rng.uniform(-0.5, 0.5, (count, 3)), parents


# ---- sequences


def test_two_joints_by_hand():
    ids = encode([[-0.5, 0, 0.5], [0.25, -0.001, 0.4999]], [-1, 0])
    assert ids.tolist() == [0, 3, 67, 130, 3, 99, 66, 130, 4, 1]
    joints, parents = decode(ids)
    assert joints.dtype == np.float32 and parents.tolist() == [-1, 0]
    np.testing.assert_array_equal(joints * 256, [[-127, 1, 127], [65, -1, 127]])
    lower, _ = decode(ids, offset=0.0)
    np.testing.assert_array_equal(lower * 128, [[-64, 0, 63], [32, -1, 63]])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, MOST_JOINTS), st.integers(0, 10**6), st.sampled_from([0.0, 0.5]))
def test_round_trip(count, seed, offset):
    joints, parents = random_tree(count, seed)
    ids = encode(joints, parents)
    assert ids.shape == (4 * count + 2,)
    back, back_parents = decode(ids, offset)
    np.testing.assert_array_equal(back_parents, parents)
    assert np.abs(back + (0.5 - offset) / BINS - joints).max() <= 0.5 / BINS + 1e-7
    np.testing.assert_array_equal(encode(back, back_parents), ids)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), min_size=1, max_size=5), st.integers(0, 10**6))
def test_a_batch_is_its_rows_with_padding(counts, seed):
    trees = [random_tree(count, seed + k) for k, count in enumerate(counts)]
    most = max(counts)
    joints, parents = np.full((len(trees), most, 3), np.nan), np.full((len(trees), most), 77)
    for row, (places, tree) in enumerate(trees):
        joints[row, : len(tree)], parents[row, : len(tree)] = places, tree
    valid = np.arange(most) < np.array(counts)[:, None]
    ids = encode_batch(joints, parents, valid)
    back, back_parents, back_valid = decode_batch(ids)
    np.testing.assert_array_equal(back_valid, valid)
    assert (back[~valid] == 0).all() and (back_parents[~valid] == -1).all()
    for row, (places, tree) in enumerate(trees):
        single = encode(places, tree)
        np.testing.assert_array_equal(ids[row, : len(single)], single)
        assert (ids[row, len(single) :] == PAD).all()
        np.testing.assert_array_equal(back[row, : len(tree)], decode(single)[0])


def test_coordinates_outside_are_clipped_and_every_bin_comes_back():
    assert quantise([-7, -0.5, 0.5, 0.7]).tolist() == [0, 0, BINS - 1, BINS - 1]
    bins = np.arange(BINS)
    for offset in (0.0, 0.5):
        np.testing.assert_array_equal(quantise(dequantise(bins, offset)), bins)


@pytest.mark.parametrize(
    ("joints", "parents", "message"),
    [
        (np.zeros((0, 3)), [], "at least one"),
        (np.zeros((102, 3)), np.arange(102) - 1, "102 joints"),
        ([[0, 0, np.nan]], [-1], "not finite"),
        (np.zeros((2, 3)), [-1, -1], "only root"),
        (np.zeros((2, 3)), [1, -1], "only root"),
        (np.zeros((3, 3)), [-1, 2, 0], "before their children"),
        (np.zeros((3, 2)), [-1, 0, 0], "shape"),
    ],
)
def test_skeletons_that_cannot_be_written(joints, parents, message):
    with pytest.raises(SprigError, match=message):
        encode(joints, np.array(parents, dtype=int))


@pytest.mark.parametrize(
    "ids",
    [
        [0, 1],  # no joint
        [3, 3, 3, 3, 3, 1],  # no BOS
        [0, 3, 3, 3, 3],  # no EOS
        [0, 3, 3, 3, 1],  # three tokens
        [0, 3, 3, 3, 4, 1],  # the first is not a root
        [0, 3, 3, 3, 3, 3, 3, 3, 3, 1],  # two roots
        [0, 3, 3, 3, 3, 3, 3, 3, 5, 1],  # its own parent
        [0, 3, 2, 3, 3, 1],  # padding inside
        [0, 3, 131, 3, 3, 1],  # no such bin
        [0, 3, 3, 3, 3, 1, 3],  # more after the end
        [0.0, 3, 3, 3, 3, 1],  # not whole numbers
    ],
)
def test_ids_that_are_no_skeleton(ids):
    with pytest.raises(ValueError):
        decode(np.array(ids))


# ---- order

BIPED = {  # name: (parent, place), x to the side
    "hips": (None, (0, 0, 0)),
    "leg.R": ("hips", (-0.08, 0, -0.02)),
    "foot.R": ("leg.R", (-0.08, 0, -0.45)),
    "leg.L": ("hips", (0.08, 0, -0.02)),
    "foot.L": ("leg.L", (0.08, 0, -0.45)),
    "spine": ("hips", (0, 0, 0.1)),
    "arm.R": ("spine", (-0.1, 0, 0.25)),
    "hand.R": ("arm.R", (-0.4, 0, 0.25)),
    "arm.L": ("spine", (0.1, 0, 0.25)),
    "hand.L": ("arm.L", (0.4, 0, 0.25)),
    "head": ("spine", (0, 0, 0.3)),
}


def arrays(named):
    names = list(named)
    parents = np.array([names.index(parent) if parent else -1 for parent, _ in named.values()])
    return np.array([place for _, place in named.values()], dtype=float), parents, names


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("turned", [False, True])
def test_a_biped_keeps_its_order_however_it_is_listed_measured_or_turned(seed, turned):
    joints, parents, names = arrays(BIPED)
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(len(names))
    joints, parents = reorder(joints, parents, shuffled)
    joints = joints + rng.normal(0, 1e-3, joints.shape)  # left and right no longer round alike
    if turned:
        joints = joints[:, [1, 0, 2]]
    order = order_joints(joints, parents)
    assert [names[j] for j in shuffled[order]] == list(BIPED)


def test_collar_bones_from_one_point_are_told_apart_by_what_they_carry():
    named = {
        "spine": (None, (0, 0, 0)),
        "collar.R": ("spine", (0, 0.1, 0.2)),
        "arm.R": ("collar.R", (-0.2, 0.1, 0.2)),
        "collar.L": ("spine", (0, 0.1, 0.2)),
        "arm.L": ("collar.L", (0.2, 0.1, 0.2)),
    }
    joints, parents, names = arrays(named)
    for listed in ([0, 1, 2, 3, 4], [0, 3, 4, 1, 2], [4, 3, 2, 1, 0]):
        order = order_joints(*reorder(joints, parents, np.array(listed)))
        assert [names[listed[j]] for j in order] == names


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(0, 10**6))
def test_the_order_is_depth_first_and_does_not_depend_on_the_input(count, seed):
    joints, parents = random_tree(count, seed)
    order = order_joints(joints, parents)
    sorted_joints, sorted_parents = reorder(joints, parents, order)
    assert sorted(order) == list(range(count))
    encode(sorted_joints, sorted_parents)  # raises unless parents come first
    branch = {-1: set()}  # depth-first: the next joint hangs from the last one or one of its ancestors
    for j, parent in enumerate(sorted_parents):
        assert j == 0 or parent in branch[j - 1]
        branch[j] = branch[int(parent)] | {j}
    shuffled = np.random.default_rng(seed).permutation(count)
    again = reorder(joints, parents, shuffled)
    back, back_parents = reorder(*again, order_joints(*again))
    np.testing.assert_array_equal(back, sorted_joints)
    np.testing.assert_array_equal(back_parents, sorted_parents)
    np.testing.assert_array_equal(order_joints(sorted_joints, sorted_parents), np.arange(count))


@pytest.mark.parametrize(
    ("parents", "message"),
    [([-1, -1, 0], "one root"), ([-1, 2, 1], "loop"), ([1, 2, 0], "one root"), ([-1, 7, 0], "among")],
)
def test_what_is_no_tree_has_no_order(parents, message):
    with pytest.raises(SprigError, match=message):
        order_joints(np.zeros((3, 3)), parents)
