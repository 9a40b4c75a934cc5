"""The motion solver: formulas by hand or against another form, invariances, and rigs that we know coming back."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from sprig.backend import surface
from sprig.backend.errors import Cancelled
from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.motion import free_bones, hierarchy, joints, parts, problem, weights
from sprig.backend.motion.procrustes import cross_matrix, rotation_exponential, rotation_from_covariance
from sprig.backend.motion.solver import Hints, solve_motion, tolerance_warnings

from .creatures import chain, tube


def edges_of(faces):
    return surface.edges(faces)


def small_problem(bones=3, frames=12, seed=0):
    sequence, _truth_joints, truth_weights, motion = chain(bones, frames, seed)
    return problem.make_problem(sequence.vertices, edges_of(sequence.faces), 0)[0], truth_weights, motion


# ---- closed forms


def test_rotation_from_covariance_recovers_a_rotation_and_never_reflects():
    rng = np.random.default_rng(1)
    points = rng.normal(size=(50, 3))
    turn = Rotation.random(7, random_state=2).as_matrix()
    covariance = np.einsum("kij,nj,nl->kil", turn, points, points)
    found = rotation_from_covariance(torch.as_tensor(covariance)).numpy()
    np.testing.assert_allclose(found, turn, atol=1e-12)
    mirrored = rotation_from_covariance(torch.as_tensor(covariance @ np.diag([1, 1, -1.0]))).numpy()
    np.testing.assert_allclose(np.linalg.det(mirrored), 1, atol=1e-12)


def test_rotation_exponential_equals_scipy():
    omega = np.concatenate([np.random.default_rng(0).normal(size=(20, 3)), [[0, 0, 0], [1e-9, 0, 0], [np.pi, 0, 0]]])
    np.testing.assert_allclose(
        rotation_exponential(torch.as_tensor(omega)).numpy(), Rotation.from_rotvec(omega).as_matrix(), atol=1e-12
    )
    v, y = torch.as_tensor(omega[0]), torch.as_tensor(omega[1])
    torch.testing.assert_close(cross_matrix(v) @ y, torch.linalg.cross(v, y))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 6), st.integers(0, 10**6))
def test_simplex_weights_are_the_minimum(size, seed):
    """Against a general solver started from several points; values, since near ties the argument is not unique."""
    rng = np.random.default_rng(seed)
    basis = rng.normal(size=(size + 2, size))
    G, c = basis.T @ basis, 2 * rng.normal(size=size)
    w, value = weights.simplex_weights(torch.as_tensor(G)[None], torch.as_tensor(c)[None])
    w = w[0].numpy()
    assert w.min() >= 0 and abs(w.sum() - 1) < 1e-12
    best = min(
        minimize(
            lambda x: x @ G @ x - 2 * c @ x,
            start,
            jac=lambda x: 2 * (G @ x - c),
            bounds=[(0, 1)] * size,
            constraints={"type": "eq", "fun": lambda x: x.sum() - 1, "jac": np.ones_like},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 200},
        ).fun
        for start in [np.full(size, 1 / size), *np.eye(size)]
    )
    assert float(value[0]) <= best + 1e-6 * max(1, abs(best))


def test_greedy_support_finds_the_best_pair_exactly():
    rng = np.random.default_rng(3)
    basis = rng.normal(size=(40, 12, 6))
    G = torch.as_tensor(basis.swapaxes(1, 2) @ basis)
    c = torch.as_tensor(rng.normal(size=(40, 6)))
    support = weights.greedy_support(G, c, 2)
    _, value = weights.simplex_weights(*weights.restrict(G, c, support))
    pairs = [(a, b) for a in range(6) for b in range(a + 1, 6)]
    every = torch.stack(
        [weights.simplex_weights(*weights.restrict(G, c, torch.tensor([p] * 40)))[1] for p in pairs], dim=1
    )
    torch.testing.assert_close(value, every.min(1).values, atol=1e-8, rtol=0)


def test_gram_energy_equals_the_squared_errors_over_the_vertices():
    P, W, motion = small_problem()
    W = torch.as_tensor(W)
    M = torch.as_tensor(motion[:, :, :3])
    A, Q = problem.moments(P, W, P.rest)
    posed = torch.einsum("nb,fbij,nj->fin", W, M, problem.homogeneous(P.rest))
    direct = (posed - P.X).square().sum((1, 2))
    torch.testing.assert_close(problem.energy(M, A, Q, per_frame=True) + P.X.square().sum((1, 2)), direct)
    torch.testing.assert_close(free_bones.vertex_errors(P, M, W, P.rest).sum(), direct.sum())


def test_smoothing_is_the_implicit_step():
    P, W, _ = small_problem()
    W = torch.as_tensor(W)
    system = 2 * torch.eye(P.vertices, dtype=torch.float64) - P.smoothing.to_dense()
    exact = torch.linalg.inv(system) @ W
    torch.testing.assert_close(problem.smooth(P, W), exact, atol=4e-3, rtol=0)
    torch.testing.assert_close(problem.smooth(P, W).sum(1), W.sum(1))


def test_diverse_frames_hold_every_pose_of_a_sequence_that_repeats_them():
    P, _, _ = small_problem(bones=4, frames=6)
    again = torch.tensor([0, 0, 3, 1, 3, 3, 2, 5, 4, 4, 0])
    repeated = problem.at_frames(P, again)
    chosen, nearest = problem.diverse_frames(repeated, 3, 48)
    assert int(chosen[0]) == 3
    assert sorted(again[chosen].tolist()) == list(range(6))
    torch.testing.assert_close(repeated.X[chosen][nearest], repeated.X)
    fewer, _ = problem.diverse_frames(repeated, 3, 3)
    torch.testing.assert_close(fewer, chosen[:3])


def test_some_frames_are_a_problem_of_their_own():
    P, _, _ = small_problem(bones=4, frames=12)
    some = problem.at_frames(P, torch.tensor([2, 7, 3]))
    labels, M = parts.split_into_parts(some, 4)
    W = torch.nn.functional.one_hot(labels, M.shape[1]).double()
    posed = torch.einsum("fbij,vj,vb->fiv", M, problem.homogeneous(some.rest), W)
    expected = float((posed - P.X[[2, 7, 3]]).square().sum(1).mean().sqrt())
    assert problem.rmse(some, M, *problem.moments(some, W, some.rest)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count, size", [(0, 4), (1, 4), (4, 4), (5, 4), (4124, 4096), (17, 1)])
def test_slices_cover_everything_once(count, size):
    pieces = problem.slices(count, size)
    assert [i for piece in pieces for i in range(count)[piece]] == list(range(count))
    assert all(piece.stop - piece.start <= size for piece in pieces)


def test_weight_solve_never_raises_the_energy_and_keeps_to_the_influences():
    P, _, _ = small_problem(bones=5, frames=20)
    labels, M = parts.split_into_parts(P, 5)
    W = torch.nn.functional.one_hot(labels, M.shape[1]).double()
    before = problem.rmse(P, M, *problem.moments(P, W, P.rest))
    for influences in (1, 2, 4, 7):
        new = weights.solve_weights(P, problem.bone_errors(P, M, P.rest), P.rest, W, influences, smoothness=0.0)
        assert int((new > 0).sum(1).max()) <= influences
        torch.testing.assert_close(new.sum(1), torch.ones(P.vertices, dtype=torch.float64))
        assert problem.rmse(P, M, *problem.moments(P, new, P.rest)) <= before + 1e-9


def strip(positions, frames=1):
    """Points along x in the plane, each joined to the next: a problem, from trajectories (F,N,3) or points (N,)."""
    positions = np.asarray(positions, dtype=float)
    if positions.ndim == 1:
        positions = np.stack([np.stack([positions, positions**2, 0 * positions], axis=1)] * frames)
    count = positions.shape[1]
    return problem.make_problem(positions, np.stack([np.arange(count - 1), np.arange(1, count)], axis=1), 0)[0]


def test_a_bone_has_no_business_far_from_its_own_skin():
    """By hand: the heaviest piece and RINGS around it are its own; a smaller one only where it carries a vertex."""
    P = strip(np.linspace(0, 1, 30))
    W = torch.zeros(30, 2, dtype=torch.float64)
    W[:, 0] = 1
    W[:10, 1], W[20:22, 1] = 0.9, 0.2
    W[:, 0] -= W[:, 1]
    far = weights.far_from_own_skin(P, W)
    assert torch.nonzero(~far[:, 1])[:, 0].tolist() == list(range(10 + weights.RINGS))
    assert not far[:, 0].any()  # its share of the others' vertices joins the pieces
    W[20] = torch.tensor([0.4, 0.6])
    far = weights.far_from_own_skin(P, W)
    assert torch.nonzero(~far[:, 1])[:, 0].tolist() == [*range(10 + weights.RINGS), *range(18, 24)]


def test_weights_far_from_a_bones_own_skin_have_to_pay():
    """A vertex of the first bone trembles a little with the second, far away: only where that is free is it told."""
    count, frames = 30, 12
    turn = np.linspace(0, 1, frames)
    rest = np.stack([np.linspace(0, 1, count), 0 * np.arange(count), 0 * np.arange(count)], axis=1)
    shift = np.zeros((frames, count, 3))
    shift[:, 20:, 1] = 0.01 * turn[:, None]
    shift[:, 5, 1] = 0.0005 * turn
    P = strip(rest + shift)
    size = np.linalg.norm(np.ptp(rest, axis=0))
    M = torch.zeros(frames, 2, 3, 4, dtype=torch.float64)
    M[..., :3] = torch.eye(3, dtype=torch.float64)
    M[:, 1, 1, 3] = torch.as_tensor(0.01 * turn / size)
    W = torch.zeros(count, 2, dtype=torch.float64)
    W[:20, 0] = W[20:, 1] = 1
    errors = problem.bone_errors(P, M, P.rest)
    free = weights.solve_weights(P, errors, P.rest, W, 4, smoothness=0.0)
    paying = weights.solve_weights(P, errors, P.rest, W, 4, smoothness=0.0, far=1e-5)
    assert free[5, 1] == pytest.approx(0.05, rel=1e-3) and paying[5, 1] == 0
    torch.testing.assert_close(paying[20:], free[20:])


def test_transform_sweeps_lower_the_energy():
    P, _, _ = small_problem(bones=4)
    labels, M = parts.split_into_parts(P, 4)
    W = torch.nn.functional.one_hot(labels, M.shape[1]).double()
    W = weights.solve_weights(P, problem.bone_errors(P, M, P.rest), P.rest, W, 4)
    A, Q = problem.moments(P, W, P.rest)
    values = [float(problem.energy(M, A, Q))]
    for _ in range(4):
        M = free_bones.refit_transforms(M, A, Q, sweeps=1)
        values.append(float(problem.energy(M, A, Q)))
    assert (np.diff(values) <= 1e-12).all() and values[-1] < values[0]


def test_joint_of_a_hinge_lies_on_its_axis_and_takes_the_prior_along_it():
    angle = np.linspace(0, 1, 9)
    rotation = Rotation.from_rotvec(np.stack([0 * angle, 0 * angle, angle], axis=1)).as_matrix()
    hinge = np.array([0.3, -0.2, 0.0])
    M = np.zeros((9, 2, 3, 4))
    M[:, 0, :, :3] = np.eye(3)
    M[:, 1, :, :3] = rotation
    M[:, 1, :, 3] = hinge - rotation @ hinge
    gram = np.einsum("faki,fbkj->abij", M, M)
    joint, misfit = joints.fit_joints(gram, np.array([0]), np.array([1]), np.array([[0.3, -0.2, 0.7]]))
    np.testing.assert_allclose(joint[0], [0.3, -0.2, 0.7], atol=1e-9)
    assert misfit[0] < 1e-12


def test_gauss_newton_finds_the_poses_of_a_known_rig():
    """Start from the identity, joints and weights known: the error must fall to rounding."""
    sequence, truth_joints, truth_weights, _motion = chain(4, 10, travel=0.1)
    P, centre, scale = problem.make_problem(sequence.vertices, edges_of(sequence.faces), 0)
    rest = chain(4, 10, travel=0.1)[0].origin
    vertices, _ = tube()
    u = torch.as_tensor((vertices - rest - centre) / scale)
    c = (truth_joints - rest - centre) / scale
    A, Q = problem.moments(P, torch.as_tensor(truth_weights), u)
    still = torch.eye(3, 4, dtype=torch.float64).expand(P.frames, 4, 3, 4).contiguous()
    pose = hierarchy.start_pose(still, c, [-1, 0, 1, 2])
    pose = hierarchy.refine_pose(pose, A, Q, steps=40)
    assert problem.rmse(P, hierarchy.bone_matrices(pose), A, Q) < 1e-6  # float32 positions


def test_bundle_adjustment_moves_wrong_joints_back():
    sequence, truth_joints, truth_weights, motion = chain(4, 16, travel=0.1)
    P, centre, scale = problem.make_problem(sequence.vertices, edges_of(sequence.faces), 0)
    vertices, _ = tube()
    u = torch.as_tensor((vertices - sequence.origin - centre) / scale)
    truth = (truth_joints - sequence.origin - centre) / scale
    A, Q = problem.moments(P, torch.as_tensor(truth_weights), u)
    wrong = truth + np.array([0.03, 0.01, -0.01])
    M = torch.as_tensor(motion[:, :, :3].copy())
    priors = torch.as_tensor(wrong)
    pose = hierarchy.start_pose(M, wrong, [-1, 0, 1, 2], priors)
    for _ in range(30):
        pull = hierarchy.joint_prior_strength(pose, A, priors, 1e-8)
        pose = hierarchy.refine_pose(pose, A, Q, steps=1, joints=pull, priors=priors)
    assert problem.rmse(P, hierarchy.bone_matrices(pose), A, Q) < 1e-5
    assert np.abs(pose.c.numpy()[1:] - truth[1:]).max() < 2e-3


def test_pose_steps_never_raise_the_energy():
    P, _, _ = small_problem(bones=5, frames=20, seed=4)
    labels, M = parts.split_into_parts(P, 5)
    W = torch.nn.functional.one_hot(labels, M.shape[1]).double()
    M, W, u = free_bones.fit_free_bones(P, M, W, 4, iterations=4)
    tree = joints.connect_bones(P, M, W, u)
    order = torch.as_tensor(tree.order)
    W = W[:, order]
    A, Q = problem.moments(P, W, u)
    priors = torch.as_tensor(tree.priors)
    pose = hierarchy.start_pose(M[:, order], tree.joints, tree.parents, priors)
    last = problem.energy(hierarchy.bone_matrices(pose), A, Q, per_frame=True)
    for located in ((0,), (0, 1, 2)):
        pose = replace(pose, located=located)
        for _ in range(4):
            pose = hierarchy.refine_pose(pose, A, Q, steps=1)
            value = problem.energy(hierarchy.bone_matrices(pose), A, Q, per_frame=True)
            assert (value <= last + 1e-12).all()
            last = value
    pull = hierarchy.joint_prior_strength(pose, A, priors, 1e-9)
    moved = hierarchy.refine_pose(pose, A, Q, steps=3, joints=pull, priors=priors)
    assert problem.energy(hierarchy.bone_matrices(moved), A, Q) <= last.sum() + 1e-9


def test_no_joint_leaves_its_neighbourhood():
    """Joints given far outside come back to the limit at once, and steps keep to it."""
    P, _, _ = small_problem(bones=3, frames=12)
    labels, M = parts.split_into_parts(P, 3)
    W = torch.nn.functional.one_hot(labels, M.shape[1]).double()
    tree = joints.connect_bones(P, M, W, P.rest)
    order = torch.as_tensor(tree.order)
    A, Q = problem.moments(P, W[:, order], P.rest)
    priors = torch.as_tensor(tree.priors)
    pose = hierarchy.start_pose(M[:, order], tree.joints + [5.0, 0, 0], tree.parents, priors)
    for _ in range(3):
        assert float((pose.c - priors).norm(dim=1).max()) <= hierarchy.JOINT_LIMIT + 1e-9
        pull = hierarchy.joint_prior_strength(pose, A, priors, 1e-6)
        pose = hierarchy.refine_pose(pose, A, Q, steps=1, joints=pull, priors=priors)


def test_a_long_sequence_in_chunks_gives_the_same_step(monkeypatch):
    P, _, _ = small_problem(bones=4, frames=15)
    labels, M = parts.split_into_parts(P, 4)
    W = torch.nn.functional.one_hot(labels, M.shape[1]).double()
    tree = joints.connect_bones(P, M, W, P.rest)
    order = torch.as_tensor(tree.order)
    A, Q = problem.moments(P, W[:, order], P.rest)
    priors = torch.as_tensor(tree.priors)
    pose = hierarchy.start_pose(M[:, order], tree.joints, tree.parents, priors)
    pull = hierarchy.joint_prior_strength(pose, A, priors, 1e-3)
    whole = hierarchy.refine_pose(pose, A, Q, steps=2, joints=pull, priors=priors)
    monkeypatch.setattr(hierarchy, "LARGEST", 1)
    pieces = hierarchy.refine_pose(pose, A, Q, steps=2, joints=pull, priors=priors)
    torch.testing.assert_close(whole.R, pieces.R, atol=1e-4, rtol=0)  # the steps are float32
    torch.testing.assert_close(whole.c, pieces.c, atol=1e-4, rtol=0)


# ---- the whole solver


def posed(fit):
    return np.einsum("nb,fbij,nj->fni", fit.weights, fit.motion[..., :3, :], np.c_[fit.rest, np.ones(len(fit.rest))])


def error(fit, vertices, anchor=0):
    size = np.linalg.norm(np.ptp(vertices[anchor], axis=0))
    return np.sqrt(((posed(fit) - vertices) ** 2).sum(-1).mean()) / size


@pytest.mark.parametrize("bones", [2, 3, 5])
def test_a_known_chain_comes_back(bones):
    """Joint count, tree and joints. The anchor frame is bent, so that its skin is not the one the chain was made with:
    0.3 % of the diagonal for the replay, 3 % for the joints, which trade off against blended skin."""
    sequence, truth_joints, _, motion = chain(bones, 30)
    fit = solve_motion(sequence.vertices, edges_of(sequence.faces), 0, joints=bones)
    assert len(fit.parents) == bones
    assert error(fit, sequence.vertices) < 3e-3
    anchor_joints = np.einsum("bij,bj->bi", motion[0, :, :3, :3], truth_joints) + motion[0, :, :3, 3] - sequence.origin
    size = np.linalg.norm(np.ptp(sequence.vertices[0], axis=0))
    inner = fit.joints[fit.parents >= 0]
    distance = np.linalg.norm(inner[:, None] - anchor_joints[None, 1:], axis=-1)
    assert sorted(distance.argmin(1)) == list(range(bones - 1)), "every inner joint is found once"
    assert distance.min(1).max() < 0.03 * size
    assert (np.bincount(fit.parents[fit.parents >= 0], minlength=bones) <= 2).all(), "a chain does not branch"


def test_rotations_are_rotations_and_joints_stay_attached():
    sequence, *_ = chain(4, 20)
    fit = solve_motion(sequence.vertices, edges_of(sequence.faces), 3, joints=5)
    rotation = fit.motion[..., :3, :3]
    np.testing.assert_allclose(
        rotation @ rotation.swapaxes(-1, -2), np.broadcast_to(np.eye(3), rotation.shape), atol=1e-9
    )
    heads = np.c_[fit.joints, np.ones(len(fit.joints))]
    child = np.flatnonzero(fit.parents >= 0)
    gap = np.einsum("fbij,bj->fbi", fit.motion[:, child] - fit.motion[:, fit.parents[child]], heads[child])
    assert np.abs(gap).max() < 1e-9


def test_stretch_keeps_a_telescope_that_rotation_cannot_follow():
    """The far half slides along the tube: with stretch the error falls by far more than half."""
    vertices, faces = tube()
    slide = np.linspace(0, 0.5, 16)
    far = vertices[:, 0] > 1.0
    bend = Rotation.from_rotvec([[0, 0, 0.6 * np.sin(6 * s)] for s in slide]).as_matrix()
    frames = []
    for s, turn in zip(slide, bend, strict=True):
        frame = vertices.copy()
        frame[far] = (vertices[far] - [1, 0, 0]) @ turn.T + [1 + s, 0, 0]
        frames.append(frame)
    frames = np.array(frames, dtype=np.float32)
    plain = solve_motion(frames, edges_of(faces), 0, joints=2)
    stretched = solve_motion(frames, edges_of(faces), 0, joints=2, stretch=True)
    assert stretched.located == (0, 1) and plain.located == (0,)
    assert error(stretched, frames) < 0.2 * error(plain, frames)


def test_rest_correction_off_keeps_the_anchor_frame_exactly():
    sequence, *_ = chain(3, 12)
    fit = solve_motion(sequence.vertices, edges_of(sequence.faces), 5, joints=3, rest_correction=False)
    np.testing.assert_allclose(fit.rest, sequence.vertices[5], atol=1e-6)


def test_the_number_of_joints_is_found():
    sequence, *_ = chain(4, 30)
    fit = solve_motion(sequence.vertices, edges_of(sequence.faces), 0, tolerance=0.1)
    assert 4 <= len(fit.parents) <= 8
    assert error(fit, sequence.vertices) <= 1e-3 and fit.warnings == ()
    loose = solve_motion(sequence.vertices, edges_of(sequence.faces), 0, tolerance=3.0)
    assert len(loose.parents) < len(fit.parents)


def test_a_pulse_that_no_joint_explains_ends_with_a_warning():
    sequence, *_ = chain(2, 12)
    rest = sequence.vertices[0].astype(np.float64)
    wave = 1 + 0.2 * np.sin(np.linspace(0, 6, 12)[:, None] + 3 * rest[:, 0])
    pulsing = (rest * np.stack([np.ones_like(wave), wave, wave], axis=2)).astype(np.float32)
    fit = solve_motion(pulsing, edges_of(sequence.faces), 0, tolerance=0.01)
    assert len(fit.warnings) == 1 and "no longer pay" in fit.warnings[0]


def test_no_proposed_joints_change_nothing():
    sequence, *_ = chain(3)
    plain, hinted = (
        solve_motion(sequence.vertices, edges_of(sequence.faces), 0, joints=3, hints=hints)
        for hints in (None, Hints(np.zeros((0, 3))))
    )
    np.testing.assert_array_equal(hinted.joints, plain.joints)
    np.testing.assert_array_equal(hinted.weights, plain.weights)


def test_what_is_said_of_a_rig_beyond_the_tolerance():
    assert tolerance_warnings(0.99e-3, 1e-3, 2e-3) == ()
    (noisy,) = tolerance_warnings(2.3e-3, 1e-3, 2e-3)
    assert "move at random by 0.2 %" in noisy and "0.1 %" in noisy
    (beyond,) = tolerance_warnings(2.5e-3, 1e-3, 2e-3)
    assert "reaches 0.25 % instead of the tolerance of 0.1 %" in beyond


def test_fewer_joints_than_asked_are_reported():
    vertices, faces = tube()
    turn = Rotation.from_rotvec(np.linspace(0, 1, 8)[:, None] * [[0.3, 0.5, 1]]).as_matrix()
    fit = solve_motion((vertices @ turn.swapaxes(1, 2)).astype(np.float32), edges_of(faces), 0, joints=6)
    assert len(fit.parents) < 6 and "instead of the 6 asked for" in fit.warnings[0]
    assert error(fit, (vertices @ turn.swapaxes(1, 2))) < 1e-5


def test_one_rigid_body_needs_one_bone():
    vertices, faces = tube()
    turn = Rotation.from_rotvec(np.linspace(0, 1, 8)[:, None] * [[0.3, 0.5, 1]]).as_matrix()
    fit = solve_motion((vertices @ turn.swapaxes(1, 2)).astype(np.float32), edges_of(faces), 0)
    assert len(fit.parents) == 1


def test_free_bones_have_no_hierarchy_and_a_smaller_error():
    sequence, *_ = chain(5, 20)
    tied = solve_motion(sequence.vertices, edges_of(sequence.faces), 0, joints=3)
    free = solve_motion(sequence.vertices, edges_of(sequence.faces), 0, joints=3, hierarchy=False, iterations=20)
    assert (free.parents == -1).all() and free.rmse <= tied.rmse


def test_the_same_input_gives_the_same_rig():
    sequence, *_ = chain(4, 16)
    first, second = (solve_motion(sequence.vertices, edges_of(sequence.faces), 0, joints=4) for _ in range(2))
    np.testing.assert_array_equal(first.weights, second.weights)
    np.testing.assert_array_equal(first.motion, second.motion)


def test_thread_count_does_not_matter():
    sequence, *_ = chain(4, 16)
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            results.append(posed(solve_motion(sequence.vertices, edges_of(sequence.faces), 0, joints=4)))
    finally:
        torch.set_num_threads(threads)
    assert np.abs(results[0] - results[1]).max() < 1e-5 * np.linalg.norm(np.ptp(sequence.vertices[0], axis=0))


@pytest.mark.parametrize("change", ["rigid", "scale", "vertex order", "frame order"])
def test_what_should_not_matter_does_not(change):
    """The replayed motion follows the change of the input; 0.02 % of the diagonal, since rounding may pick another
    of two equally good seeds."""
    sequence, *_ = chain(3, 14)
    base = sequence.vertices.astype(np.float64)
    edges = edges_of(sequence.faces)
    fit = solve_motion(base, edges, 0, joints=3)
    size = np.linalg.norm(np.ptp(base[0], axis=0))
    if change == "rigid":
        turn = Rotation.from_rotvec([0.3, -0.8, 1.1]).as_matrix()
        other = posed(solve_motion(base @ turn.T + [5, -3, 2], edges, 0, joints=3))
        back = (other - [5, -3, 2]) @ turn
    elif change == "scale":
        back = posed(solve_motion(base * 1e4, edges, 0, joints=3)) / 1e4
    elif change == "vertex order":
        order = np.random.default_rng(0).permutation(base.shape[1])
        rank = np.argsort(order)
        back = posed(solve_motion(base[:, order], rank[edges], 0, joints=3))[:, rank]
    else:
        order = np.random.default_rng(1).permutation(len(base))
        back = posed(solve_motion(base[order], edges, int(np.argsort(order)[0]), joints=3))[np.argsort(order)]
    assert np.sqrt(((back - posed(fit)) ** 2).sum(-1).mean()) < 2e-4 * size


def test_cancel_stops_the_work():
    sequence, *_ = chain(3, 14)
    calls = []

    def progress(fraction, text):
        calls.append((fraction, text))
        if len(calls) == 5:
            raise Cancelled

    with pytest.raises(Cancelled):
        solve_motion(sequence.vertices, edges_of(sequence.faces), 0, joints=3, progress=progress)
    assert len(calls) == 5


def test_dead_bones_are_moved_to_where_the_error_is():
    P, _, _ = small_problem(bones=3, frames=16)
    labels, M = parts.split_into_parts(P, 2)
    W = torch.nn.functional.one_hot(labels, 3).double()  # the third bone carries nothing
    M = torch.cat([M, M[:, :1]], dim=1)
    assert free_bones.dead_bones(W) == [2]
    before = problem.rmse(P, M, *problem.moments(P, W, P.rest))
    M, W = free_bones.reseed(P, M, W, P.rest, [2])
    assert float(W[:, 2].sum()) > 0
    M, W, u = free_bones.fit_free_bones(P, M, W, 4, iterations=3, moves=0)
    assert problem.rmse(P, M, *problem.moments(P, W, u)) < before


def test_frames_unlike_any_key_frame_find_their_pose():
    """More poses than there are key frames, each unlike all others: as when clips are joined."""
    rng = np.random.default_rng(0)
    vertices, faces = tube()
    _, rest, truth, _ = chain(3, 2)
    shapes = []
    for _ in range(160):
        above, motion = np.eye(4), []
        for joint in rest:
            local = np.eye(4)
            local[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.8, 3)).as_matrix()
            local[:3, 3] = joint - local[:3, :3] @ joint
            above = above @ local
            motion.append(above)
        shapes.append(linear_blend_skinning(vertices, truth, np.array(motion)))
    shapes = np.array(shapes, dtype=np.float32)
    fit = solve_motion(shapes, edges_of(faces), 0, joints=3)
    posed = np.stack([linear_blend_skinning(fit.rest, fit.weights, motion) for motion in fit.motion])
    errors = np.sqrt(((posed - shapes) ** 2).sum(2).mean(1))
    assert errors.max() < 4 * np.median(errors)
