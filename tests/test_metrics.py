"""Every metric: by hand on cases small enough for paper, against the peers' own numbers, and what must not matter."""

import importlib.util
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sprig.backend import metrics
from sprig.backend.kinematics import linear_blend_skinning

LINE = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.2, 0, 0]])
CHAIN = np.array([-1, 0, 1])


def rigid_motions(count: int, seed: int = 0) -> np.ndarray:
    """Random rigid motions (count,4,4)."""
    rng = np.random.default_rng(seed)
    motion = np.tile(np.eye(4), (count, 1, 1))
    motion[:, :3, :3] = Rotation.random(count, random_state=seed).as_matrix()
    motion[:, :3, 3] = rng.normal(size=(count, 3))
    return motion


def random_tree(joints: int, seed: int):
    """Joints (J,3) within the unit cube and parents (J,)."""
    rng = np.random.default_rng(seed)
    parents = np.array([-1] + [int(rng.integers(0, j)) for j in range(1, joints)])
    return rng.uniform(-0.5, 0.5, (joints, 3)), parents


# ---- RMSE


def test_rmse_by_hand():
    """Two vertices on a diagonal of length 5; one is off by 3 in the first frame, both by 4 in the second."""
    rest = np.array([[0.0, 0, 0], [3, 4, 0]])
    motion = np.tile(np.eye(4), (2, 1, 1, 1))
    vertices = np.stack([rest + [[0, 0, 3], [0, 0, 0]], rest + [4, 0, 0]])
    assert metrics.diagonal(rest) == 5
    per_frame = metrics.rmse_per_frame(rest, np.ones((2, 1)), motion, vertices, 5.0)
    assert per_frame == pytest.approx([100 / 5 * np.sqrt(9 / 2), 80])
    assert metrics.rmse_percent(rest, np.ones((2, 1)), motion, vertices, 5.0) == pytest.approx(
        20 * np.sqrt((9 / 2 + 16) / 2)
    )


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), chunk=st.sampled_from([1, 1000, 64e6]))
def test_rmse_is_that_of_linear_blend_skinning_whatever_the_chunk(seed, chunk):
    rng = np.random.default_rng(seed)
    frames, count, joints = rng.integers(1, 6), rng.integers(1, 30), rng.integers(1, 6)
    rest, vertices = rng.normal(size=(count, 3)), rng.normal(size=(frames, count, 3))
    weights = rng.dirichlet(np.ones(joints), count) * (rng.random((count, joints)) > 0.3)
    motion = rigid_motions(frames * joints, seed % 1000).reshape(frames, joints, 4, 4)
    posed = np.stack([linear_blend_skinning(rest, weights, m) for m in motion])
    expected = 100 / 7 * np.sqrt(((posed - vertices) ** 2).sum(axis=2).mean(axis=1))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "CHUNK_BYTES", chunk)
        assert metrics.rmse_per_frame(rest, weights, motion, vertices, 7.0) == pytest.approx(expected)


def test_rmse_needs_no_more_memory_for_more_frames(monkeypatch):
    monkeypatch.setattr(metrics, "CHUNK_BYTES", 1e6)
    weights, rest = np.eye(4)[np.arange(5000) % 4], np.random.default_rng(0).normal(size=(5000, 3))
    peaks = []
    for frames in (20, 160):
        motion, vertices = np.tile(np.eye(4), (frames, 4, 1, 1)), np.zeros((frames, 5000, 3), np.float32)
        tracemalloc.start()
        metrics.rmse_per_frame(rest, weights, motion, vertices, 1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def test_rmse_and_distances_agree_with_the_independent_scorer(shared):
    """A real clip, rigged by its artist's skeleton with slightly wrong weights, bones and joints."""
    spec = importlib.util.spec_from_file_location("score", shared / "tools" / "score.py")
    score = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(score)
    with np.load(shared / "data" / "sequences" / "quat_wolf_gallop.npz", allow_pickle=False) as file:
        clip = dict(file)
    rng = np.random.default_rng(0)
    anchor, frame_index = 3, np.arange(4, 30, 2)
    truth = clip["vertices"][frame_index].astype(np.float64)
    weights = clip["weights"].astype(np.float64) + 0.02 * (clip["weights"] > 0)
    weights /= weights.sum(axis=1, keepdims=True)
    bone_world = clip["bone_world"][frame_index].astype(np.float64)
    bone_world[:, :, :3, 3] += rng.normal(0, 0.01, bone_world[:, :, :3, 3].shape)
    parents = np.where(np.arange(len(clip["parents"])) == 0, -1, np.maximum(clip["parents"], 0))
    joints = bone_world[anchor, :, :3, 3]
    rig = {
        "rest_vertices": clip["rest_vertices"], "weights": weights, "parents": parents, "joints_rest": joints,
        "bone_rest": clip["bone_rest"], "bone_world": bone_world, "frame_index": frame_index, "anchor_frame": anchor,
    }  # fmt: skip
    expected = score.score(rig, clip)

    motion = bone_world @ np.linalg.inv(clip["bone_rest"].astype(np.float64))
    size = metrics.diagonal(truth[anchor])
    assert expected["rmse_percent"] > 0.1
    rmse = metrics.rmse_percent(clip["rest_vertices"], weights, motion, truth, size)
    assert rmse == pytest.approx(expected["rmse_percent"], rel=1e-9)

    keep = metrics.weighted_joints(clip["weights"].astype(np.float32), clip["parents"])
    centre, side = metrics.unit_cube(truth[anchor])
    theirs = (clip["bone_world"][frame_index[anchor], keep, :3, 3].astype(np.float64) - centre) / side
    distances = metrics.chamfer_distances(
        (joints - centre) / side, metrics.bones_of(parents),
        theirs, metrics.bones_of(metrics.parents_among(clip["parents"], keep)),
    )  # fmt: skip
    assert keep.sum() == expected["gt_joints"]
    for name in ("j2j", "j2b", "b2b"):
        assert getattr(distances, name) == pytest.approx(expected[f"cd_{name}"], rel=1e-9)


def test_every_second_frame_is_left_out_and_never_the_anchor():
    assert [part.tolist() for part in metrics.left_out_split(5, anchor=1)] == [[1, 3], [0, 2, 4]]
    fitted, left_out = metrics.left_out_split(6, anchor=4)
    assert fitted.tolist() == [0, 2, 4] and left_out.tolist() == [1, 3, 5]


def test_noise_has_the_stated_length():
    vertices = np.random.default_rng(0).normal(size=(7, 50, 3)).astype(np.float32)
    noisy = metrics.with_noise(vertices, percent=0.5, anchor_diagonal=20.0, seed=4)
    length = np.sqrt(((noisy.astype(float) - vertices) ** 2).sum(axis=2).mean())
    assert length == pytest.approx(0.1, rel=1e-5)  # 0.5 % of 20, within float32
    assert noisy.dtype == np.float32 and noisy.shape == vertices.shape
    assert np.array_equal(noisy, metrics.with_noise(vertices, 0.5, 20.0, seed=4))
    assert np.array_equal(vertices, metrics.with_noise(vertices, 0.0, 20.0))


# ---- skeletons


def test_unit_cube_by_hand():
    centre, side = metrics.unit_cube([[0, 0, 0], [4, 2, 1], [1, 1, 1]])
    assert centre.tolist() == [2, 1, 0.5] and side == 4


def test_weighted_joints_and_their_ancestors():
    parents = np.array([-1, 0, 1, 0, 3, -1])
    weights = np.zeros((3, 6))
    weights[:, 2], weights[0, 3], weights[1, 4] = 1, 0.0101, 0.01  # 0.01 itself does not exceed the threshold
    keep = metrics.weighted_joints(weights, parents)
    assert keep.tolist() == [True, True, True, True, False, False]
    assert metrics.parents_among(parents, keep).tolist() == [-1, 0, 1, 0]
    with pytest.raises(AssertionError, match="ancestor"):
        metrics.parents_among(parents, np.array([True, False, True, False, False, False]))


def test_bone_samples_by_hand():
    joints = np.array([[0, 0, 0], [0.012, 0, 0], [0.012, 0, 0]])
    samples = metrics.bone_samples(joints, np.array([[0, 1], [1, 2]]))  # round(2.4) = 2 intervals; a bone of length 0
    assert samples == pytest.approx(np.array([[0, 0, 0], [0.006, 0, 0], [0.012, 0, 0], [0.012, 0, 0]]))
    assert metrics.bone_samples(joints[:1], np.zeros((0, 2), int)).tolist() == [[0, 0, 0]]


def test_chamfer_by_hand():
    a, b = np.array([[0.0, 0, 0], [1, 0, 0]]), np.array([[0.0, 0, 3]])
    assert metrics.chamfer(a, b) == pytest.approx(((3 + np.sqrt(10)) / 2 + 3) / 2)
    one = metrics.chamfer_distances([[0, 0, 0.1], [0.2, 0, 0.1]], np.array([[0, 1]]), LINE, metrics.bones_of(CHAIN))
    assert one.j2j == pytest.approx((0.1 + (0.1 + np.sqrt(0.02) + 0.1) / 3) / 2)
    assert one.j2b == pytest.approx(0.1) and one.b2b == pytest.approx(0.1)


def test_chamfer_distances_are_the_peers(shared):
    with np.load(shared / "reference" / "parity" / "metrics.npz") as parity:
        expected = parity["cd_puppeteer_j2j_j2b_b2b"]
        for k, row in enumerate(expected):
            found = metrics.chamfer_distances(
                *(parity[f"{kind}_{side}_{k}"] for side in "ab" for kind in ("joints", "bones"))
            )
            assert [found.j2j, found.j2b, found.b2b] == pytest.approx(row, abs=1e-12)
    assert len(expected) == 24


def test_matching_prefers_more_pairs_over_nearer_ones():
    a, b = np.array([[0.0, 0, 0], [0.04, 0, 0]]), np.array([[0.039, 0, 0], [0.08, 0, 0], [1, 0, 0]])
    # 0.04 is nearest to 0.039, but then 0 has no partner
    assert metrics.match_joints(a, b).tolist() == [[0, 0], [1, 1]]
    assert metrics.match_joints(a, b + 1).tolist() == []
    assert metrics.match_joints(a, a + [0.0499, 0, 0], limit=0.05).tolist() == [[0, 0], [1, 1]]


def test_topology_f1_by_hand():
    joints = np.array([[0.0, 0, 0], [0.2, 0, 0], [0.4, 0, 0], [0.2, 0.2, 0]])
    assert metrics.topology_f1(joints, [-1, 0, 1, 1], joints + 0.01, [-1, 0, 1, 1]) == 1
    # one of three pairs differs on either side
    assert metrics.topology_f1(joints, [-1, 0, 1, 1], joints, [-1, 0, 1, 0]) == pytest.approx(2 / 3)
    # a joint without partner and its pair cost: 2 pairs found of 3 and 2
    assert metrics.topology_f1(joints, [-1, 0, 1, 1], joints[:3], [-1, 0, 1]) == pytest.approx(4 / 5)
    # direction counts
    assert metrics.topology_f1(joints[:2], [-1, 0], joints[[1, 0]], [-1, 0]) == 0
    assert metrics.topology_f1(joints[:1], [-1], joints[:1], [-1]) == 1
    assert metrics.topology_f1(joints[:1], [-1], joints[:1] + 1, [-1]) == 0


def test_gsd_by_hand():
    """Spectra of the normalised Laplacian: a path of 2 has 0, 2; a path or star of 3 has 0, 1, 2."""
    assert metrics.gsd([-1, 0], [-1, 0, 1]) == pytest.approx(1 / 3)  # a sixth of the mass moves by 1 from either end
    assert metrics.gsd([-1, 0, 1], [-1, 0, 0]) == pytest.approx(0, abs=1e-12)
    assert metrics.gsd([-1], [-1, 0]) == pytest.approx(1)  # 0 against 0 and 2
    # a path of 4 has 0, 1/2, 3/2, 2, a star of 4 has 0, 1, 1, 2
    assert metrics.gsd([-1, 0, 1, 2], [-1, 0, 0, 0]) == pytest.approx(1 / 4)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(2, 25))
def test_skeleton_distances_do_not_depend_on_the_order_of_joints(seed, size):
    rng = np.random.default_rng(seed)
    (a, parents_a), (b, parents_b) = random_tree(size, seed), random_tree(size + 1, seed + 1)
    order = rng.permutation(size)
    rank = np.argsort(order)
    shuffled = np.append(rank, -1)[parents_a[order]]
    bones = [metrics.bones_of(p) for p in (parents_a, shuffled, parents_b)]
    first = metrics.chamfer_distances(a, bones[0], b, bones[2])
    second = metrics.chamfer_distances(a[order], bones[1], b, bones[2])
    assert [first.j2j, first.j2b, first.b2b] == pytest.approx([second.j2j, second.j2b, second.b2b])
    assert metrics.gsd(parents_a, parents_b) == pytest.approx(metrics.gsd(shuffled, parents_b), abs=1e-9)
    near = a + rng.normal(0, 0.02, a.shape)
    assert metrics.topology_f1(a, parents_a, near, parents_a) == pytest.approx(
        metrics.topology_f1(a[order], shuffled, near, parents_a)
    )


# ---- stability


def test_pjdd_by_hand():
    """Distances 0.1, 0.1, 0.2 in the anchor; then 0.1, 0.2, 0.3, then re-ordered, then with a joint less."""
    longer = np.array([[0.0, 0, 0], [0.1, 0, 0], [0.3, 0, 0]])
    skeletons = [(LINE, CHAIN), (longer, CHAIN), (LINE[[1, 0, 2]], np.array([-1, 0, 0])), (LINE[:2], CHAIN[:2]), None]
    found = metrics.pjdd(skeletons, anchor=0)
    # by index the re-ordered one has 0.1, 0.1, 0.2 as 0.1 (1-0), 0.1 (1-2), 0.2 (0-2) against 0.1, 0.2, 0.1
    assert found.index == pytest.approx(100 * np.mean([0.2 / 3, 0.2 / 3, 0]))
    assert found.matched == pytest.approx(100 * np.mean([0.2 / 3, 0, 0]), abs=1e-9)
    assert found.changed == 3 / 4 and found.failed == 1


def test_pjdd_without_anything_to_measure():
    alone = metrics.pjdd([(LINE, CHAIN)], anchor=0)
    assert np.isnan(alone.index) and np.isnan(alone.matched) and alone.changed == 0 and alone.failed == 0
    with pytest.raises(ValueError, match="anchor frame 1"):
        metrics.pjdd([(LINE, CHAIN), None], anchor=1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(3, 20))
def test_pjdd_ignores_rigid_motion_and_matched_pjdd_the_order_too(seed, size):
    rng = np.random.default_rng(seed)
    joints, parents = random_tree(size, seed)
    motion = rigid_motions(3, seed % 1000)
    skeletons = [(joints, parents)] + [(joints @ m[:3, :3].T + m[:3, 3], parents) for m in motion]
    found = metrics.pjdd(skeletons, anchor=0)
    assert found.index == pytest.approx(0, abs=1e-9) and found.matched == pytest.approx(0, abs=1e-9)
    assert found.changed == 0
    order = rng.permutation(size)
    moved = joints[order] @ motion[0, :3, :3].T + motion[0, :3, 3]
    assert metrics.pjdd([(joints, parents), (moved, parents)], anchor=0).matched == pytest.approx(0, abs=1e-9)


def test_temporal_skin_error_by_hand():
    weights = np.array([[[1, 0], [0.5, 0.5]], [[0.8, 0.2], [0.5, 0.5]], [[1, 0], [0, 1]]])
    found = metrics.temporal_skin_error(weights, anchor=0)
    assert found.total == pytest.approx((0.4 + 1.0) / 2)
    assert found.per_point == pytest.approx(0.35)
    assert metrics.temporal_skin_error(weights[:1], anchor=0).total == 0


# ---- skin against a truth


def test_sharpened_rows_by_hand():
    assert metrics.sharpened([[0.7, 0.2, 0.1], [0.5, 0.3, 0.2]]) == pytest.approx(
        np.array([[1, 0, 0], [5 / 10, 3 / 10, 2 / 10]])
    )


def test_skin_scores_by_hand():
    truth = np.array([[1.0, 0, 0], [0.5, 0.5, 0], [0.2, 0.3, 0.5], [0.5, 0, 0]])  # the last row is unusable
    predicted = np.array([[0.9, 0.1, 0], [0, 1, 0], [0.1, 0.3, 0.6], [1, 0, 0]])
    found = metrics.skin_scores(predicted, truth)
    # above 0.15: predicted 1 + 1 + 2, true 1 + 2 + 3, both 1 + 1 + 2
    assert found.precision == 1 and found.recall == pytest.approx(4 / 6)
    assert found.l1 == pytest.approx((0.2 + 1 + 0.2) / 3) and found.dropped_rows == 1
    assert metrics.skin_scores(np.full((2, 10), 0.1), np.eye(10)[:2]).precision == 0
    assert np.isnan(metrics.skin_scores(predicted, 0 * truth).l1)


def test_skin_scores_are_the_peers(shared):
    """The peers threshold the prediction by row maximum, and compare what is left of it with all of the truth."""
    with np.load(shared / "reference" / "parity" / "metrics.npz") as parity:
        for k in range(8):
            for threshold, row in zip((0.15, 0.35), parity[f"prec_rec_l1_thr015_thr035_{k}"], strict=True):
                predicted = metrics.sharpened(parity[f"pred_{k}"], threshold)
                found = metrics.skin_scores(predicted, parity[f"gt_{k}"], influence=0)
                assert [found.precision, found.recall, found.l1] == pytest.approx(row, abs=1e-8)
                assert found.dropped_rows == (5 if k == 2 else 0)


def test_joints_without_a_partner_count_as_missing():
    predicted, truth = np.array([[0.6, 0.4]]), np.array([[0.5, 0.3, 0.2]])
    a, b = metrics.matched_columns(predicted, truth, np.array([[1, 0]]))
    assert a.tolist() == [[0.4, 0.6, 0, 0]] and b.tolist() == [[0.5, 0, 0.3, 0.2]]
    found = metrics.skin_scores(a, b)
    assert found.precision == 1 / 2 and found.recall == 1 / 3 and found.l1 == pytest.approx(0.1 + 0.6 + 0.3 + 0.2)
