"""Poses of a skeleton: joint rotations and one root translation, by Gauss-Newton on Gram matrices.

Bones are in depth-first order, parents first. The pose of frame f is a global rotation R_b per bone and a world-space
shift s_b that is zero except for the bones with a location of their own (the roots, and those that may stretch):
    pivot_b = M_p(b) c_b + s_b,      M_b = [R_b | pivot_b - R_b c_b],      M_p(root) = identity.
A small rotation omega_k at pivot k moves every vertex of its subtree by omega x y_k, with
y_k = sum_{b in subtree k} w_b (M_b u - pivot_k); a small shift tau_k moves it by s_k = sum_{b in subtree k} w_b. The
normal equations therefore need only  sum_v y_k y_l^T = Z_k A Z_l^T,  sum_v y_k s_l  and  sum_v s_k s_l,  and moving the
joint position c_k is the shift (R_p - R_k) dc_k, shared by all frames: joints and poses are solved together by a Schur
complement over the frames (bundle adjustment), because wrong joints and wrong rotations compensate each other.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch

from .problem import energy, flat, slices
from .procrustes import cross_matrix, rotation_exponential

JOINT_REACH, JOINT_LIMIT = 0.1, 0.2  # diagonals from the prior: where the pull grows, where a joint stops
JOINT_DAMPING_START, JOINT_DAMPING_LEAST, JOINT_DAMPING_MOST = 1e-2, 1e-4, 1e3
HESSIAN = torch.float32  # steps need no more: gradients and energies, which decide where they end, are float64
LARGEST = 2**19  # numbers in the largest temporary: a few frames at a time stay in the processor's cache
DAMPING_START, DAMPING_LEAST, DAMPING_MOST = 1e-3, 1e-6, 1e3


@dataclass(frozen=True, eq=False)
class Pose:
    """R (F,B,3,3) global rotations, c (B,3) joints, s (F,B,3) shifts of the `located` bones; damping (F,)."""

    R: torch.Tensor
    c: torch.Tensor
    s: torch.Tensor
    parents: tuple[int, ...]
    located: tuple[int, ...]
    damping: torch.Tensor
    joint_damping: float = JOINT_DAMPING_START

    @property
    def subtree(self) -> torch.Tensor:
        """(B,B) 1 where column bone lies in the row bone's subtree."""
        bones = len(self.parents)
        below = np.eye(bones)
        for b in range(bones - 1, 0, -1):
            if self.parents[b] >= 0:
                below[self.parents[b]] += below[b]
        return torch.as_tensor(below, dtype=self.R.dtype, device=self.R.device)


def near_prior(c, priors):
    """Joints (B,3), those farther than JOINT_LIMIT from their prior moved back to that distance."""
    offset = c - priors
    distance = offset.norm(dim=1, keepdim=True)
    return priors + offset * (JOINT_LIMIT / distance.clamp_min(JOINT_LIMIT))


def start_pose(M, joints, parents, priors=None, located=()) -> Pose:
    """Pose with the rotations of free bones M (F,B,3,4) and the roots' translations.

    With `priors` (B,3) joints farther than JOINT_LIMIT from them are moved back; `located` bones may shift as roots do.
    """
    R = M[..., :3].contiguous()
    c = torch.as_tensor(joints, dtype=M.dtype, device=M.device)
    c = c if priors is None else near_prior(c, priors)
    parents = tuple(int(p) for p in parents)
    roots = [b for b, p in enumerate(parents) if p < 0]
    s = torch.zeros_like(M[..., 3])
    s[:, roots] = torch.einsum("fbij,bj->fbi", R[:, roots], c[roots]) + M[:, roots, :, 3] - c[roots]
    damping = torch.full((len(M),), DAMPING_START, dtype=M.dtype, device=M.device)
    return Pose(R, c, s, parents, tuple(sorted({*roots, *located})), damping)


def at_poses(pose: Pose, frames) -> Pose:
    """The same skeleton in the listed poses (K,), which may repeat."""
    return replace(pose, R=pose.R[frames], s=pose.s[frames], damping=pose.damping[frames])


def bone_matrices(pose: Pose) -> torch.Tensor:
    """M (F,B,3,4) of a pose."""
    turned = torch.einsum("fbij,bj->fbi", pose.R, pose.c)
    shifts: list[torch.Tensor] = []
    for b, p in enumerate(pose.parents):
        pivot = pose.c[b] + pose.s[:, b] if p < 0 else pose.R[:, p] @ pose.c[b] + shifts[p] + pose.s[:, b]
        shifts.append(pivot - turned[:, b])
    return torch.cat([pose.R, torch.stack(shifts, dim=1)[..., None]], dim=-1)


def joint_prior_strength(pose: Pose, A, priors, strength: float):
    """Pull (B,) of every joint to its prior (B,3): `strength` times the largest eigenvalue of its own evidence.

    The pull grows steeply beyond JOINT_REACH, so that no joint leaves the character for a gain in the last digit.
    """
    subtree = pose.subtree
    mass = ((subtree @ A[3::4, 3::4]) * subtree).sum(1)
    bend = _bend(pose)
    evidence = torch.einsum("fbij,fbik->bjk", bend, bend) * mass[:, None, None]
    reach = 1 + ((pose.c - priors).square().sum(1) / JOINT_REACH**2) ** 3
    return strength * reach * torch.linalg.eigvalsh(evidence)[:, -1] + 1e-9 * mass * len(pose.R)


def _bend(pose: Pose):
    """R_parent - R (F,B,3,3): how a joint's position matters; zero for a root."""
    parents = torch.as_tensor(pose.parents, device=pose.R.device)
    bend = pose.R[:, parents.clamp_min(0)] - pose.R
    bend[:, parents < 0] = 0
    return bend


def refine_pose(pose: Pose, A, Q, *, steps: int, joints=None, priors=None) -> Pose:
    """Gauss-Newton steps on rotations and on the shifts of located bones.

    With `joints` (the pull (B,) of joint_prior_strength) and `priors` (B,3), joint positions are solved as well. A step
    that does not lower a frame's energy is undone for that frame and its damping raised, so the energy never grows.
    """
    M = bone_matrices(pose)
    value = energy(M, A, Q, per_frame=True)
    for _ in range(steps):
        moved, dc = _normal_step(pose, M, A, Q, joints, priors)
        if dc is not None:
            trial = replace(moved, c=near_prior(pose.c + dc, priors))
            trial_M = bone_matrices(trial)
            trial_value = energy(trial_M, A, Q, per_frame=True)
            offset, shift = pose.c - priors, trial.c - priors
            change = (trial_value - value).sum() + (joints * (shift.square().sum(1) - offset.square().sum(1))).sum()
            if float(change) < 0:
                damping = (pose.damping * 0.3).clamp_min(DAMPING_LEAST)
                loose = max(pose.joint_damping * 0.3, JOINT_DAMPING_LEAST)
                pose, M, value = replace(trial, damping=damping, joint_damping=loose), trial_M, trial_value
                continue
            pose = replace(pose, joint_damping=min(pose.joint_damping * 10, JOINT_DAMPING_MOST))
            moved, _ = _normal_step(pose, M, A, Q, None, None)
        moved_M = bone_matrices(moved)
        moved_value = energy(moved_M, A, Q, per_frame=True)
        better = moved_value < value
        pick = better[:, None, None]
        damping = torch.where(better, pose.damping * 0.3, pose.damping * 10).clamp(DAMPING_LEAST, DAMPING_MOST)
        pose = replace(
            pose,
            R=torch.where(pick[..., None], moved.R, pose.R),
            s=torch.where(pick, moved.s, pose.s),
            damping=damping,
        )
        M = torch.where(pick[..., None], moved_M, M)
        value = torch.where(better, moved_value, value)
    return pose


def stretch_gains(pose: Pose, A, Q):
    """How much squared error (B,) a shift of each subtree alone would take away; zero for bones that have one."""
    m = flat(bone_matrices(pose))
    subtree = pose.subtree
    pull = (Q - m @ A).reshape(len(m), 3, -1, 4)[..., 3].transpose(1, 2)
    force = subtree @ pull
    mass = ((subtree @ A[3::4, 3::4]) * subtree).sum(1)
    gains = force.square().sum((0, 2)) / mass.clamp_min(1e-9)
    gains[list(pose.located)] = 0
    return gains


@dataclass(frozen=True, eq=False)
class _Equations:
    """Normal equations of some frames: H (f,U,U) undamped and g (f,U) in float32, U = 3B + 3S unknowns."""

    H: torch.Tensor
    g: torch.Tensor
    arm: torch.Tensor  # (f,B,3,B) sum_v y_k s_l
    force: torch.Tensor  # (f,B,3) half the negative gradient for a shift of every subtree


def _frame_equations(pose: Pose, M, A, Q, subtree, mass, shifting) -> _Equations:
    """How the energy of frames M (f,B,3,4) answers rotations at all pivots and shifts of the `shifting` subtrees."""
    m = flat(M)
    frames, bones = M.shape[:2]
    n = 3 * bones
    pivot = torch.einsum("fbij,bj->fbi", M[..., :3], pose.c) + M[..., 3]
    pull = Q - m @ A  # half the negative gradient with respect to m
    columns = m.reshape(frames, 3, bones, 4).permute(0, 2, 3, 1)
    pulls = pull.reshape(frames, 3, bones, 4).permute(0, 2, 3, 1)
    force = subtree @ pulls[:, :, 3]
    torque = subtree @ torch.linalg.cross(columns, pulls).sum(2) - torch.linalg.cross(pivot, force)
    g = torch.cat([torque.reshape(frames, n), force[:, shifting].reshape(frames, -1)], dim=1).to(HESSIAN)

    below = subtree.to(HESSIAN)
    Z = m.to(HESSIAN)[:, None] * below.repeat_interleave(4, dim=1)[None, :, None]
    Z[..., 3::4] -= pivot.to(HESSIAN)[..., None] * below[None, :, None]
    Z = Z.reshape(frames, n, -1)
    ZA = Z @ A.to(HESSIAN)
    C = (ZA @ Z.mT).reshape(frames, bones, 3, bones, 3)  # sum_v y_k y_l^T
    arm = (ZA[..., 3::4] @ below.T).reshape(frames, bones, 3, bones)
    H = torch.empty((frames, g.shape[1], g.shape[1]), dtype=HESSIAN, device=M.device)
    rotations = H[:, :n, :n].unflatten(2, (bones, 3)).unflatten(1, (bones, 3))
    torch.neg(C.permute(0, 1, 4, 3, 2), out=rotations)  # [y_k]x^T [y_l]x = (y_k . y_l) I - y_l y_k^T
    rotations.diagonal(dim1=2, dim2=4).add_(torch.diagonal(C, dim1=2, dim2=4).sum(-1)[..., None])
    coupling = cross_matrix(arm[..., shifting].transpose(2, 3)).transpose(2, 3).reshape(frames, n, -1)
    H[:, :n, n:], H[:, n:, :n] = coupling, coupling.mT
    H[:, n:, n:] = torch.kron(mass[shifting][:, shifting], torch.eye(3, dtype=M.dtype, device=M.device))
    return _Equations(H, g, arm, force)


def _normal_step(pose: Pose, M, A, Q, joints, priors):
    """One damped Gauss-Newton step; returns the moved pose and the joints' move (B,3) (None without `joints`).

    With joints the frames' unknowns are eliminated: S dc = right with S = H_cc - sum_f H_fc^T H_ff^-1 H_fc.
    """
    frames, bones = M.shape[:2]
    n = 3 * bones
    shifting = list(pose.located)
    subtree = pose.subtree
    mass = subtree @ A[3::4, 3::4] @ subtree.T  # sum_v s_k s_l
    damping = pose.damping if joints is None else pose.damping.clamp_min(pose.joint_damping)
    bend = None if joints is None else _bend(pose)

    def factorise(now):
        equations = _frame_equations(pose, M[now], A, Q[now], subtree, mass, shifting)
        diagonal = equations.H.diagonal(dim1=1, dim2=2)
        diagonal += damping[now, None].to(HESSIAN) * diagonal + 1e-9
        with _one_thread():
            return equations, torch.linalg.cholesky_ex(equations.H).L

    def pose_step(now):
        equations, factor = factorise(now)
        return torch.cholesky_solve(equations.g[..., None], factor)[..., 0]

    def eliminate(now):
        equations, factor = factorise(now)
        sides = _joint_sides(equations.arm, mass[shifting].to(HESSIAN), bend[now].to(HESSIAN), equations.g)
        with _one_thread():
            half = torch.linalg.solve_triangular(
                factor.mT, sides, upper=True, left=False
            )  # (f,3B+1,U), (L^-1 sides^T)^T
        flattened = half.transpose(0, 1).flatten(1)
        eliminated = flattened @ flattened[:n].T  # (3B+1,3B)
        rows = bend[now].permute(0, 2, 1, 3).reshape(-1, n)
        own = (rows.T @ rows) * mass.repeat_interleave(3, 0).repeat_interleave(3, 1)
        own.diagonal().mul_(1 + pose.joint_damping)
        pull = torch.einsum("fbij,fbi->bj", bend[now], equations.force).flatten()
        return factor, half, own - eliminated[:n], pull - eliminated[n]

    pieces = slices(frames, max(1, LARGEST // (3 * bones * 4 * bones)))
    if joints is None:
        step, dc = torch.cat([pose_step(piece) for piece in pieces]), None
    else:
        factors, halves, systems, rights = zip(*map(eliminate, pieces), strict=True)
        system = sum(systems) + torch.diag(joints.repeat_interleave(3))
        system.diagonal().add_(1e-12)  # a root's joint is not an unknown: its rows are zero
        right = sum(rights) + (joints[:, None] * (priors - pose.c)).flatten()
        with _one_thread():
            dc = torch.cholesky_solve(right[:, None], torch.linalg.cholesky_ex(system).L)[:, 0]
        known = torch.cat([-dc, dc.new_ones(1)]).to(HESSIAN)
        left = [(known @ half)[..., None] for half in halves]
        solved = [torch.linalg.solve_triangular(L.mT, y, upper=True) for L, y in zip(factors, left, strict=True)]
        step, dc = torch.cat(solved)[..., 0], dc.reshape(bones, 3)
    step = step.to(M.dtype)
    return _moved(pose, step[:, :n].reshape(frames, bones, 3), step[:, n:].reshape(frames, -1, 3)), dc


@contextmanager
def _one_thread():
    """LAPACK rounds differently with another number of threads, and is no faster with more on matrices of this size.

    The solver's choices between bones would turn that rounding into another rig on another machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _joint_sides(arm, mass, bend, g):
    """Right-hand sides (f,3B+1,3B+3S): how each joint's move acts on all rotations and shifts; the gradient is last.

    arm (f,B,3,B) sum_v y_k s_l; mass (S,B) of the shifting bones; bend (f,B,3,3) R_parent - R; g (f,3B+3S).
    """
    frames, bones = bend.shape[:2]
    n = 3 * bones
    sides = torch.empty((frames, n + 1, g.shape[1]), dtype=g.dtype, device=g.device)
    turned = sides[:, :n, :n].unflatten(2, (bones, 3)).unflatten(1, (bones, 3))  # (f,l,3 of dc,k,3 of torque)
    arm, bend = arm.permute(0, 3, 2, 1), bend.transpose(2, 3)  # (f,l,3,k), (f,l,3 of dc,3)
    for i in range(3):  # y x (bend dc), component by component
        j, k = (i + 1) % 3, (i + 2) % 3
        torch.mul(arm[:, :, None, j], bend[..., k, None], out=turned[..., i])
        turned[..., i] -= arm[:, :, None, k] * bend[..., j, None]
    sides[:, :n, n:] = torch.einsum("kl,flmi->flmki", mass, bend).reshape(frames, n, -1)
    sides[:, n] = g
    return sides


def _moved(pose: Pose, omega, tau) -> Pose:
    """Apply small rotations at all pivots, composed from the root to the leaves, and the shifts."""
    turn = rotation_exponential(omega)
    total: list[torch.Tensor] = []
    shift = torch.zeros_like(pose.s)
    for b, p in enumerate(pose.parents):
        total.append(turn[:, b] if p < 0 else total[p] @ turn[:, b])
        if b in pose.located:
            carried = pose.s[:, b] if p < 0 else (total[p] @ pose.s[:, b, :, None])[..., 0]
            shift[:, b] = carried + tau[:, pose.located.index(b)]
    return replace(pose, R=torch.stack(total, dim=1) @ pose.R, s=shift)
