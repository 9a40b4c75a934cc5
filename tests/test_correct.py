"""What the motion says about a proposed skeleton: joints that move back, merge, or are added, and that gates hold."""

from __future__ import annotations

import numpy as np
import pytest

from sprig.backend.device import load_torch

torch = load_torch()

from sprig.backend.motion.alternate import alternate, finish, go_on, in_scene_units, in_solver_units  # noqa: E402
from sprig.backend.motion.correct import add_bones, correct, keep_still_weights, merge_still_joints, move_joints  # noqa: E402
from sprig.backend.motion.given import start_state  # noqa: E402
from sprig.backend.motion.hierarchy import bone_matrices  # noqa: E402
from sprig.backend.motion.problem import make_problem, moments, rmse  # noqa: E402
from sprig.backend.motion.solver import make_setting  # noqa: E402
from sprig.backend.surface import edges, winding_numbers  # noqa: E402

from .creatures import chain, tube  # noqa: E402


def silent(_share):
    pass


def started(bones=3, frames=24, joints=None, weights=None, rounds=4):
    """A chain's problem with a skeleton at work: (setting, state, true joints (J,3) in the solver's units)."""
    sequence, truth, true_weights, _ = chain(bones, frames)
    rest = tube()[0] - sequence.origin
    problem, centre, scale = make_problem(sequence.vertices, edges(sequence.faces), 0, rest=rest)
    setting = make_setting(problem, 0, rest_correction=False)
    truth = (truth - sequence.origin - centre) / scale
    joints = truth if joints is None else joints(truth)
    parents = range(-1, len(joints) - 1)
    weights = true_weights if weights is None else weights(true_weights)
    state = start_state(setting, torch.as_tensor(joints), parents, torch.as_tensor(weights))
    return setting, alternate(setting, state, silent, rounds=rounds), truth


def anywhere(points):
    return np.ones(len(points), dtype=bool)


def moved_off(truth):
    wrong = truth.copy()
    wrong[1] += [0.03, 0, 0.01]
    return wrong


def test_a_joint_that_was_proposed_beside_its_place_moves_back():
    setting, state, truth = started(joints=moved_off)
    corrected = move_joints(setting, state, anywhere)
    before = np.linalg.norm(state.pose.c.numpy() - truth, axis=1)
    after = np.linalg.norm(corrected.pose.c.numpy() - truth, axis=1)
    assert before[1] > 0.03 and after[1] < 0.3 * before[1]
    assert after[0] == before[0]  # a root's place is not told by rotations


def test_no_joint_leaves_the_mesh_or_moves_on_little_evidence(monkeypatch):
    setting, state, _ = started(joints=moved_off)
    assert move_joints(setting, state, lambda points: np.zeros(len(points), dtype=bool)) is state
    monkeypatch.setattr("sprig.backend.motion.correct.TURN", np.pi)
    assert move_joints(setting, state, anywhere) is state


def split(weights):
    """The last bone's skin divided between it and a joint beyond that never turns."""
    beyond = np.zeros((len(weights), 1))
    half = tube()[0][:, 0] > 1.7
    beyond[half, 0] = weights[half, -1]
    weights = np.hstack([weights, beyond])
    weights[half, -2] = 0
    return weights


def with_end(truth):
    return np.vstack([truth, truth[-1] + [0.2, 0, 0]])


@pytest.mark.parametrize(("sure", "left"), [(0.9, 4), (0.2, 3), (np.nan, 3)])
def test_a_joint_without_evidence_stays_where_the_network_is_sure(sure, left):
    setting, state, _ = started(joints=with_end, weights=split, rounds=0)
    merged, kept = merge_still_joints(setting, state, np.array([1.0, 1.0, 1.0, sure]))
    assert len(kept) == len(merged.pose.parents) == merged.W.shape[1] == left
    assert kept.tolist() == list(range(left)) and merged.pose.parents == tuple(range(-1, left - 1))
    fit = finish(setting, merged, silent)
    assert fit.rmse < 1e-3


def test_a_part_that_no_bone_explains_gets_one():
    """Of a chain of eight joints the proposal lacks the last."""
    setting, state, truth = started(
        8, joints=lambda truth: truth[:7], weights=lambda w: np.hstack([w[:, :6], w[:, 6:].sum(1, keepdims=True)])
    )
    before = finish(setting, state, silent).rmse
    grown = add_bones(setting, state, silent)
    assert grown.pose.parents[:8] == (*range(-1, 6), 6)
    assert finish(setting, grown, silent).rmse < 0.3 * before
    assert np.linalg.norm(grown.pose.c.numpy()[7] - truth[7]) < 0.05
    again, origin = correct(setting, state, np.ones(7), anywhere, silent)
    assert origin.tolist() == [*range(7)] + [-1] * (len(again.pose.parents) - 7) and -1 in origin
    same, origin = correct(setting, state, np.ones(7), anywhere, silent, same_count=True)
    assert origin.tolist() == [*range(7)] and len(same.pose.parents) == 7


def test_bones_come_until_the_error_is_small_enough():
    """Of a chain of eight joints the proposal lacks two: the skin of both is explained badly, and no one bone pays."""
    kept = [0, 1, 2, 4, 5, 6]

    def merged(weights):
        return np.stack([weights[:, [k, k + 1]].sum(1) if k in (2, 6) else weights[:, k] for k in kept], axis=1)

    setting, state, _ = started(8, joints=lambda truth: truth[kept], weights=merged)
    before = key_error(setting, state)
    assert add_bones(setting, state, silent) is state
    reached = add_bones(setting, state, silent, before / 2)
    assert key_error(setting, reached) <= before / 2 and reached.pose.parents[:6] == state.pose.parents
    beyond = add_bones(setting, state, silent, 1e-9)  # out of reach: only bones that pay together stay
    assert len(beyond.pose.parents) * key_error(setting, beyond) <= 6 * before
    assert add_bones(setting, state, silent, 1.01 * before) is state


def key_error(setting, state):
    return rmse(setting.key, bone_matrices(state.pose), *moments(setting.key, state.W, state.u))


def test_more_rounds_never_make_a_finished_fit_worse():
    setting, state, _ = started(6, joints=lambda truth: truth + 0.02 * np.sin(np.arange(18).reshape(6, 3)), rounds=1)
    fit = finish(setting, state, silent)
    longer = go_on(setting, fit, silent, 8)
    assert longer.rmse < 0.95 * fit.rmse
    np.testing.assert_allclose(longer.joints, fit.joints)
    assert longer.parents.tolist() == fit.parents.tolist() and longer.located == fit.located
    assert go_on(setting, longer, silent, 1).rmse <= longer.rmse


def test_units_go_forth_and_back():
    setting, state, _ = started()
    fit = finish(setting, state, silent)
    centre, scale = np.array([3.0, -2.0, 7.0]), 4.0
    back = in_solver_units(in_scene_units(fit, centre, scale), centre, scale)
    for name in ("joints", "rest", "motion", "weights"):
        np.testing.assert_allclose(getattr(back, name), getattr(fit, name), atol=1e-12)


def test_a_good_skeleton_is_left_alone():
    setting, state, truth = started()
    corrected, origin = correct(setting, state, np.ones(3), anywhere, silent)
    assert origin.tolist() == [0, 1, 2]
    assert np.abs(corrected.pose.c.numpy() - truth).max() < 0.01


def test_still_limbs_keep_the_weights_they_came_with():
    """Joints 1 and 2 move as one: their sum is the motion's, its division the network's."""
    weights = np.array([[0.2, 0.8, 0.0], [0.0, 0.5, 0.5], [1.0, 0.0, 0.0]])
    start = np.array([[0.5, 0.1, 0.4], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]])
    found = keep_still_weights(weights, start, np.array([0.0, 1.0, 0.0]), [-1, 0, 1], 4)
    np.testing.assert_allclose(found, [[0.2, 0.16, 0.64], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    fewer = keep_still_weights(weights, start, np.array([0.0, 1.0, 0.0]), [-1, 0, 1], 2)
    np.testing.assert_allclose(fewer[0], [0.2 / 0.84, 0, 0.64 / 0.84])


def test_winding_numbers_tell_inside_from_outside():
    vertices, faces = tube()
    inside, outside = [[1.0, 0.0, 0.05], [0.1, 0.0, 0.0]], [[1.0, 0.0, 0.5], [-0.2, 0.0, 0.0]]
    np.testing.assert_allclose(np.abs(winding_numbers(inside + outside, vertices, faces)), [1, 1, 0, 0], atol=1e-6)
