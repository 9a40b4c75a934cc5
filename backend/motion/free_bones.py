"""Free rigid bones: weights and rigid motions by block coordinate descent (SSDR, Le & Deng 2012).

Every bone moves on its own here; the hierarchy comes later and starts from these motions.
"""

from __future__ import annotations

import torch

from .problem import BoneErrors, Problem, bone_errors, design, flat, homogeneous, moments, rmse
from .procrustes import rotation_from_covariance
from .weights import solve_weights

SWEEPS = 1  # Gauss-Seidel sweeps over the bones between two weight solves: more cost time and gain nothing
MOMENTUM = 0.7  # weights are solved for poses this far ahead of the last step: halves the number of iterations
WARM_UP = 4  # iterations before bones are moved: until then every bone still finds its place
TRIAL = 2  # iterations after which a move must have paid
MOVED_SHARE = 0.1  # of the bones, the weakest, are tried elsewhere
SEED_RINGS = 4  # a moved bone starts on this many rings around the worst vertex
DEAD_BONE = 1e-3  # a bone whose sum of w^2 is below this share of the mean is moved to where the error is
REST_PULL = 1e-3  # pull of the rest shape to the anchor frame, per frame


def colour_bones(A, bones: int) -> list[torch.Tensor]:
    """Groups of bones that share no vertex, so that a group's transforms can be solved at the same time."""
    touching = (A.reshape(bones, 4, bones, 4)[:, 3, :, 3].abs() > 0).cpu().numpy()
    groups: list[list[int]] = []
    for bone in (-touching.sum(1)).argsort(kind="stable"):
        for group in groups:
            if not touching[bone, group].any():
                group.append(int(bone))
                break
        else:
            groups.append([int(bone)])
    return [torch.tensor(sorted(group), device=A.device) for group in groups]


def refit_transforms(M, A, Q, sweeps: int = SWEEPS):
    """Weighted Procrustes of each bone against the residual of all others, Gauss-Seidel over groups of bones."""
    frames, bones = M.shape[:2]
    m = flat(M).clone()
    blocks = A.reshape(bones, 4, bones, 4)
    mass = blocks[:, 3, :, 3].diagonal()
    plan = []
    for group in colour_bones(A, bones):
        group = group[mass[group] > 1e-9]
        if len(group):
            columns = (4 * group[:, None] + torch.arange(4, device=A.device)).reshape(-1)
            plan.append((columns, A[:, columns], blocks[group, :, group, :]))
    for _ in range(sweeps):
        for columns, others, own in plan:
            current = m[:, :, columns].reshape(frames, 3, -1, 4)
            target = (Q[:, :, columns] - m @ others).reshape(frames, 3, -1, 4)
            target = (target + torch.einsum("fibk,bkl->fibl", current, own)).transpose(1, 2)  # (F,k,3,4)
            source_mean = own[:, 3, :3] / own[:, 3, 3:]
            target_mean = target[..., 3] / own[:, 3, 3:]
            rotation = rotation_from_covariance(target[..., :3] - target_mean[..., None] * own[None, :, None, 3, :3])
            shift = target_mean - torch.einsum("fbij,bj->fbi", rotation, source_mean)
            m[:, :, columns] = torch.cat([rotation, shift[..., None]], -1).transpose(1, 2).reshape(frames, 3, -1)
    return m.reshape(frames, 3, bones, 4).transpose(1, 2).contiguous()


def correct_rest_shape(problem: Problem, errors: BoneErrors, W, pull: float = REST_PULL):
    """Rest shape (N,3) that explains all frames best, pulled to the anchor frame: one 3x3 solve per vertex."""
    bones = W.shape[1]
    size = int((W > 0).sum(1).max())
    w, index = W.topk(size, dim=1)
    pairs = errors.gram.reshape(bones * bones, 16)
    blended = torch.zeros((len(W), 16), dtype=W.dtype, device=W.device)
    for a in range(size):
        for b in range(size):
            blended += (w[:, a] * w[:, b])[:, None] * pairs.index_select(0, index[:, a] * bones + index[:, b])
    blended = blended.reshape(-1, 4, 4)
    right = (w[:, :, None] * errors.cross.gather(1, index[:, :, None].expand(-1, -1, 4))).sum(1)
    strength = pull * problem.frames
    system = blended[:, :3, :3] + strength * torch.eye(3, dtype=W.dtype, device=W.device)
    side = right[:, :3] - blended[:, :3, 3] + strength * problem.rest
    return torch.cholesky_solve(side[:, :, None], torch.linalg.cholesky_ex(system).L)[:, :, 0]


def vertex_errors(problem: Problem, M, W, u):
    """Squared error (N,) of every vertex, summed over frames."""
    error = torch.zeros(problem.vertices, dtype=W.dtype, device=W.device)
    P = design(W, u).T.contiguous()
    for x, m in zip(problem.X, flat(M), strict=True):
        error += (m @ P - x).square().sum(0)
    return error


def rigid_motion(problem: Problem, members, u):
    """The one rigid motion (F,3,4) that explains the listed vertices best."""
    U = homogeneous(u[members])
    moment = problem.X[:, :, members] @ U
    source, target = U[:, :3].mean(0), moment[..., 3] / len(members)
    rotation = rotation_from_covariance(moment[..., :3] - target[..., None] * U[:, :3].sum(0))
    return torch.cat([rotation, (target - rotation @ source)[..., None]], -1)


def _spread(problem: Problem, patch, rings: int):
    for _ in range(rings):
        patch = patch + problem.neighbours @ patch
    return patch


def reseed(problem: Problem, M, W, u, bones):
    """Move `bones` to the worst explained neighbourhoods of the mesh; returns new M and W."""
    need = _spread(problem, vertex_errors(problem, M, W, u)[:, None], 2)[:, 0]
    M, W = M.clone(), W.clone()
    alone = bone_errors(problem, M, u).alone
    for bone in bones:
        if float(need.max()) <= 0:
            break
        patch = torch.zeros((problem.vertices, 1), dtype=W.dtype, device=W.device)
        patch[need.argmax()] = 1
        patch = _spread(problem, patch, SEED_RINGS)
        members = torch.nonzero(patch[:, 0] > 0)[:, 0]
        M[:, bone] = rigid_motion(problem, members, u)
        W[:, bone] = 0
        W[members] = 0
        W[members, bone] = 1
        need[_spread(problem, patch, 2)[:, 0] > 0] = -1
    orphans = torch.nonzero(W.sum(1) < 1e-9)[:, 0]
    W[orphans, alone[orphans].argmin(1)] = 1
    return M, W / W.sum(1, keepdim=True)


def dead_bones(W) -> list[int]:
    """Bones that carry (almost) nothing."""
    mass = W.square().sum(0)
    return torch.nonzero(mass < DEAD_BONE * mass.mean())[:, 0].tolist()


def weakest_bones(problem: Problem, M, W, u) -> list[int]:
    """The MOVED_SHARE of the bones whose vertices would lose least by going to their next best bone."""
    alone = bone_errors(problem, M, u).alone
    best, index = alone.topk(min(2, W.shape[1]), dim=1, largest=False)
    bones = torch.arange(W.shape[1], device=W.device)
    alternative = torch.where(index[:, :1] == bones, best[:, -1:], best[:, :1])
    loss = (W * (alternative - vertex_errors(problem, M, W, u)[:, None]).clamp_min(0)).sum(0)
    return torch.argsort(loss, stable=True)[: max(1, round(MOVED_SHARE * W.shape[1]))].tolist()


def fit_free_bones(
    problem: Problem, M, W, influences: int, *, iterations: int, moves: int = 3, rest_correction=False, tick=None
):
    """Alternate transforms, weights and (optionally) the rest shape; returns M (F,B,3,4), W (N,B), u (N,3).

    After WARM_UP iterations up to `moves` times the weakest bones are tried where the error is largest; a trial that is
    not better after TRIAL iterations is undone and ends the trying. `tick(share)` is called before every iteration.
    """
    state = M, W, problem.rest
    state = _alternate(problem, state, influences, min(WARM_UP, iterations), rest_correction, tick, 0, iterations)
    if dead := dead_bones(state[1]):
        state = (*reseed(problem, *state, dead), state[2])
    for _ in range(moves if W.shape[1] > 1 else 0):
        before = _free_rmse(problem, *state)
        trial = (*reseed(problem, *state, weakest_bones(problem, *state)), state[2])
        trial = _alternate(problem, trial, influences, TRIAL, False, tick, WARM_UP, iterations)
        if _free_rmse(problem, *trial) >= before:
            break
        state = trial
    state = _alternate(problem, state, influences, iterations - WARM_UP, rest_correction, tick, WARM_UP, iterations)
    M, W, u = state
    return refit_transforms(M, *moments(problem, W, u)), W, u


def _free_rmse(problem: Problem, M, W, u) -> float:
    return rmse(problem, M, *moments(problem, W, u))


def _alternate(problem: Problem, state, influences, iterations, rest_correction, tick, done, total):
    M, W, u = state
    last = None
    for iteration in range(iterations):
        if tick:
            tick((done + iteration) / total)
        M = refit_transforms(M, *moments(problem, W, u))
        ahead = M if last is None else M + MOMENTUM * (M - last)
        last = M
        errors = bone_errors(problem, ahead, u)
        W = solve_weights(problem, errors, u, W, influences)
        if rest_correction:
            u = correct_rest_shape(problem, errors, W)
    return M, W, u
