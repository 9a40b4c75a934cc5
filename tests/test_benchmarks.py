"""The benchmarks measure what they say: the generated creature, and Dem Bones as its authors' tool would run it."""

import csv
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from sprig.backend.anchor import anchor_frame
from sprig.backend.metrics import diagonal
from sprig.backend.surface import islands, prepare, surface_areas

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def clips(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import clips

    return clips


@pytest.fixture
def peer(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import peer

    return peer


def test_creature_has_the_size_asked_for_and_is_the_same_every_time(clips):
    one, again = clips.creature(1_003, 7, 23), clips.creature(1_003, 7, 23)
    assert one.vertices.shape == (7, 1_003, 3)
    assert np.array_equal(one.vertices, again.vertices) and np.array_equal(one.faces, again.faces)
    assert not np.array_equal(one.vertices, clips.creature(1_003, 7, 23, seed=1).vertices)


def test_creature_is_one_mesh_that_bends(clips):
    """Every vertex belongs to a face, islands are the tubes, and the whole moves far while its area hardly changes."""
    sequence = clips.creature(2_000, 20, 20)
    assert len(np.unique(sequence.faces)) == sequence.vertex_count
    assert prepare(sequence).island_count <= 8
    areas = surface_areas(sequence.vertices, sequence.faces)
    assert areas.min() > 0.8 * areas.max()
    travelled = np.linalg.norm(sequence.vertices[10] - sequence.vertices[0], axis=1)
    assert travelled.max() > 0.2 * diagonal(sequence.vertices[0])


def test_peer_is_measured_over_all_original_vertices(clips, peer):
    """Bones that never move leave exactly the distance from the rest frame, in per cent of the anchor's diagonal."""
    sequence = clips.creature(600, 6, 12)
    given = peer.weld_and_bridge(sequence)
    still = np.tile(np.eye(4), (sequence.frame_count, 1, 1, 1))
    rest = given.trajectories[2]
    found = peer.FreeBones(rest, np.ones((len(rest), 1)), still, seconds=0.0)
    moved = sequence.vertices.astype(np.float64) - sequence.vertices[2]
    expected = 100 * np.sqrt((moved**2).sum(axis=2).mean()) / diagonal(sequence.vertices[4])
    assert peer.rmse_percent(sequence, given, found, anchor=4) == pytest.approx(expected, rel=1e-6)


def test_peer_gets_a_connected_mesh(clips, peer):
    given = peer.weld_and_bridge(clips.creature(600, 6, 12))
    links = [polygon for polygon in given.polygons if len(polygon) == 2]
    assert links
    sides = [(a, b) for polygon in given.polygons for a, b in pairwise(polygon)]
    assert islands(given.trajectories.shape[1], np.array(sides)).max() == 0


def test_peer_solves(clips, peer):
    sequence = clips.creature(600, 12, 12)
    given = peer.weld_and_bridge(sequence)
    found = peer.dem_bones(given, 12, rest_frame=0, trans_affine=peer.TUNED)
    assert found.motion.shape == (12, found.weights.shape[1], 4, 4)
    assert np.allclose(found.weights.sum(axis=1), 1) and (found.weights > 0).sum(axis=1).max() <= peer.INFLUENCES
    anchor = anchor_frame(surface_areas(sequence.vertices, sequence.faces))
    assert 0 < peer.rmse_percent(sequence, given, found, anchor) < 1


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["quat_trex_jump", "m2m_snake_sidewinding", "dembones_bone", "oa_gargoyle_death"])
def test_peer_reproduces_the_published_baseline(shared, clips, peer, clip):
    """Within 3 %: another build of the same program, on the same welded and bridged mesh."""
    with open(shared / "reference" / "dembones_baseline.csv", newline="", encoding="utf-8") as file:
        rows = {(row["clip"], row["engine"]): float(row["rmse_rel_pct"]) for row in csv.DictReader(file)}
    sequence = clips.load_reference(clip)
    given = peer.weld_and_bridge(sequence)
    for trans_affine, engine in ((peer.DEFAULT, "dembones-weld+bridge"), (peer.TUNED, "dembones-weld+bridge+tA0")):
        found = peer.dem_bones(given, clips.REFERENCE[clip], 0, trans_affine)
        ours = peer.rmse_percent(sequence, given, found, anchor=0)  # the baseline divides by the first frame's diagonal
        assert ours == pytest.approx(rows[clip, engine], rel=0.03)
