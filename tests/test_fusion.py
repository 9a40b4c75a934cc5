"""`auto`: which candidate is taken and why, several proposals, and whole rigs where the networks know nothing."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from sprig.backend.device import load_torch

torch = load_torch()

from sprig.backend import fusion, metrics  # noqa: E402
from sprig.backend.fusion import CERTAIN_PREFERENCE, PREFERENCE, Candidate, _looks, choose, fuse, propose  # noqa: E402
from sprig.backend.learned import NetworkRig, load_networks  # noqa: E402
from sprig.backend.motion.alternate import go_on  # noqa: E402
from sprig.backend.motion.solver import solve_motion  # noqa: E402
from sprig.backend.pipeline import RigOptions, rig_sequence  # noqa: E402
from sprig.backend.report import rig_report  # noqa: E402
from sprig.backend.sequence import MeshSequence  # noqa: E402
from sprig.backend.surface import prepare  # noqa: E402

from .creatures import chain  # noqa: E402


def candidate(source, rmse, joints=10):
    return Candidate(source, SimpleNamespace(rmse=rmse, parents=np.zeros(joints)), np.ones(joints))


def test_anatomy_is_preferred_unless_it_costs_too_much():
    best = candidate("motion", 1e-3)

    def taken(*candidates):
        return choose(list(candidates)).taken.source

    assert taken(candidate("network", 0.99e-3 * PREFERENCE), best) == "network"
    assert taken(candidate("network", 1.01e-3 * PREFERENCE), best) == "motion"
    assert taken(candidate("network", 2e-3, 5), best) == "network"  # half the joints, twice the error
    assert taken(candidate("network", 9e-5), candidate("motion", 1e-6)) == "network"  # nobody sees that


def test_a_rig_beyond_the_tolerance_is_not_taken_where_another_meets_it():
    near = [candidate("network", 1.02e-3), candidate("motion", 0.98e-3)]
    assert choose(near).taken.source == "network"
    assert choose(near, 1e-3).taken.source == "motion"
    assert choose(near, 0.9e-3).taken.source == "network"  # none meets it


def test_sure_networks_may_cost_more_where_they_meet_the_tolerance():
    tried = [candidate("network", 0.9e-3), candidate("motion", 0.9e-3 / 2)]
    assert choose(tried, 1e-3).taken.source == choose(tried, 0.8e-3, certain=True).taken.source == "motion"
    sure = choose(tried, 1e-3, certain=True)
    assert sure.taken.source == "network" and "sure" in sure.reason and sure.tried == tried
    worse = [candidate("network", 0.9e-3), candidate("motion", 0.99 * 0.9e-3 / CERTAIN_PREFERENCE)]
    assert choose(worse, 1e-3, certain=True).taken.source == "motion"
    best = choose([candidate("network", 0.9e-3), candidate("motion", 0.9e-3)], 1e-3, certain=True)
    assert best.taken.source == "network" and "sure" not in best.reason  # it needs no such credit


def test_who_counts_as_sure():
    """Their joints are a little off, so that the motion explains the clip better, and both meet the tolerance."""
    sequence, places, weights = anchored()
    off = places + np.array([0, 0.13, 0.0])
    for confidence, agreed, source in (
        (1.0, True, "network"),
        (1.0, False, None),
        (0.5, True, None),
        (np.nan, True, None),
    ):
        prepared, rig = proposal(sequence, off, weights, confidence, agreed)
        choice = fuse(prepared, 0, rig, joints=None, tolerance=5.0)
        assert ("sure" in choice.reason) == (source is not None), (confidence, agreed)
        assert source in (None, choice.taken.source)
    prepared, rig = proposal(sequence, off, weights, 1.0, True)
    assert "sure" not in fuse(prepared, 0, rig, joints=3, tolerance=5.0).reason  # there is no tolerance to meet


def proposal(sequence, joints, weights, confidence=1.0, agreed=False):
    prepared = prepare(sequence)
    rows = np.zeros((len(prepared.counts), weights.shape[1]))
    rows[prepared.vertex_map] = weights
    parents = np.arange(len(joints)) - 1
    return prepared, NetworkRig(joints - sequence.origin, parents, rows, np.full(len(joints), confidence), (), agreed)


def anchored(bones=3, frames=16):
    """A chain with its skeleton where it is in frame 0."""
    sequence, joints, weights, motion = chain(bones, frames)
    places = np.einsum("jab,jb->ja", motion[0], np.c_[joints, np.ones(bones)])[:, :3]
    return sequence, places, weights


def test_a_network_that_is_right_is_believed():
    sequence, places, weights = anchored()
    prepared, rig = proposal(sequence, places, weights)
    choice = fuse(prepared, 0, rig, joints=3, tolerance=0.1)
    chosen, tried = choice.taken, choice.tried
    assert [one.source for one in tried] == ["network", "parts", "motion"] and chosen.source == "network"
    assert choice.reason and chosen.fit.parents.tolist() == [-1, 0, 1]
    assert np.linalg.norm(chosen.fit.joints - rig.joints, axis=1).max() < 0.05
    assert chosen.confidence.tolist() == [1, 1, 1]


@pytest.mark.parametrize(("joints", "tolerance", "longer"), [(3, 0.1, True), (None, 5.0, False), (None, 1e-4, True)])
def test_what_is_taken_is_fitted_longer_where_no_tolerance_ends_the_fit(monkeypatch, joints, tolerance, longer):
    sequence, places, weights = anchored()
    rng = np.random.default_rng(0)
    prepared, rig = proposal(
        sequence, places + rng.normal(0, 0.4, places.shape), weights[rng.permutation(len(weights))]
    )
    before = []

    def spy(setting, fit, tick, rounds):
        before.append(fit.rmse)
        return go_on(setting, fit, tick, rounds)

    monkeypatch.setattr(fusion, "go_on", spy)
    choice = fuse(prepared, 0, rig, joints=joints, tolerance=tolerance)
    assert choice.taken.source != "network" and bool(before) == longer
    assert not longer or choice.taken.fit.rmse < before[0]
    assert choice.taken in choice.tried and len(choice.tried) == 3
    assert any("instead of the tolerance" in warning for warning in choice.warnings) == (tolerance == 1e-4)


def test_one_that_is_wrong_does_no_harm():
    sequence, places, weights = anchored()
    rng = np.random.default_rng(0)
    prepared, rig = proposal(
        sequence, places + rng.normal(0, 0.4, places.shape), weights[rng.permutation(len(weights))]
    )
    choice = fuse(prepared, 0, rig, joints=3, tolerance=0.1)
    chosen, tried = choice.taken, choice.tried
    plain = solve_motion(prepared.trajectories, np.concatenate([prepared.edges, prepared.bridges]), 0, joints=3)
    assert chosen.source != "network" and chosen.fit.rmse < PREFERENCE * plain.rmse
    assert tried[0].fit.rmse > PREFERENCE * chosen.fit.rmse


@pytest.mark.parametrize("candidates", [1, 3])
def test_networks_that_know_nothing(candidates, network_files):
    """Untrained ones: the rig replays as well as one from the motion alone, and the report says who decided."""
    sequence, *_ = chain(3, 16)
    options = RigOptions(joints=3, candidates=candidates, **network_files)
    rig = rig_sequence(sequence, options)
    plain = rig_sequence(sequence, RigOptions(skeleton="motion", joints=3))
    assert rig.rmse < max(1.2 * plain.rmse, 0.012)
    report = rig_report(rig, source="x.npz", object_names=["x"], influences=4)
    assert report["skeleton_source"] == "auto" and set(report["checkpoints"]) == {"skeleton", "skinning"}
    choice = report["choice"]
    assert [one["source"] for one in choice["candidates"]] == ["network", "parts", "motion"]
    assert sum(one["chosen"] for one in choice["candidates"]) == 1 and choice["reason"]
    assert len(choice["proposals"]) == candidates
    if candidates > 1:
        assert sum(one["chosen"] for one in choice["proposals"]) == 1
        assert [one["drawn"] for one in choice["proposals"]] == [False, True, False]
        assert choice["proposals"][2]["frame"] != choice["proposals"][0]["frame"]
    again = rig_sequence(sequence, options)
    np.testing.assert_array_equal(again.weights, rig.weights)


def test_a_student_proposes_beside_its_teacher(network_files):
    sequence, *_ = chain(3, 16)
    rig = rig_sequence(sequence, RigOptions(joints=3, candidates=3, finetune=1, **network_files))
    proposals = rig_report(rig, source="x.npz", object_names=["x"], influences=4)["choice"]["proposals"]
    assert [one["fine_tuned"] for one in proposals] == [True, False, True]
    assert [one["drawn"] for one in proposals] == [False, False, True]
    assert proposals[0]["frame"] == proposals[1]["frame"]


def test_more_joints_than_the_network_can_hold(network_files):
    sequence, *_ = chain(4, 16)
    rig = rig_sequence(sequence, RigOptions(joints=14, **network_files))  # it holds 12
    assert len(rig.skeleton) <= 14 and rig.rmse < 0.1


def test_proposals_are_drawn_and_from_other_frames_in_turn():
    frames = [7, 3, 9]
    assert _looks(frames, 1, 0.0) == [(7, False)] and _looks(frames, 1, 0.5) == [(7, True)]
    assert _looks(frames, 4, 0.0) == [(7, False), (7, True), (3, False), (7, True)]
    assert _looks(frames, 7, 0.0)[4:] == [(9, False), (7, True), (7, True)]  # no frames are left


def test_a_hopeless_network_is_not_corrected(monkeypatch):
    """Its skeleton is fitted all the same, so that the report can say how far it is off."""
    sequence, places, weights = anchored()
    prepared, rig = proposal(sequence, places, weights[np.random.default_rng(0).permutation(len(weights))])

    def never(*_arguments, **_options):
        raise AssertionError("corrected")

    monkeypatch.setattr(fusion, "correct", never)
    monkeypatch.setattr(fusion, "HOPELESS", 0.0)
    tried = fuse(prepared, 0, rig, joints=3, tolerance=0.1).tried
    assert tried[0].source == "network" and len(tried[0].fit.parents) == 3
    monkeypatch.setattr(fusion, "HOPELESS", np.inf)
    with pytest.raises(AssertionError, match="corrected"):
        fuse(prepared, 0, rig, joints=3, tolerance=0.1)


@pytest.mark.parametrize("percent, most", [(0.0, 1e-6), (0.5, 0.35)])
def test_networks_see_a_shape_with_less_noise(percent, most, network_files, monkeypatch):
    clean, *_ = chain(3, 30)
    size = metrics.diagonal(clean.vertices[0])
    noisy = metrics.with_noise(clean.vertices, percent, size) if percent else clean.vertices
    prepared, seen, real = prepare(MeshSequence(noisy, clean.faces)), [], fusion.rig_shape

    def rig_shape(shape, *arguments, **options):
        seen.append(shape)
        return real(shape, *arguments, **options)

    monkeypatch.setattr(fusion, "rig_shape", rig_shape)
    propose(prepared, 0, load_networks(*network_files.values()), joints=4)
    off = 100 / size * np.sqrt(((seen[0][prepared.vertex_map] - clean.vertices[0]) ** 2).sum(1).mean())
    assert off < most


def test_merged_joints_leave_their_weights_to_those_above():
    rig = NetworkRig(np.zeros((4, 3)), np.array([-1, 0, 1, 2]), np.eye(4), np.ones(4), ())
    start = fusion._start_weights(rig, np.array([0, 2, -1]))  # joint 1 and 3 are merged, one is new
    np.testing.assert_array_equal(start, [[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]])
