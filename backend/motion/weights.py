"""Skin weights for given poses: an exact small quadratic program on the simplex for every vertex.

For a vertex with candidate bones the squared error over all frames is w^T G w - 2 c^T w + const, with
G[a,b] = U^T (sum_f M_a^T M_b) U and c[b] = sum_f <x, M_b U>; plus a pull `strength` to the rigidness-smoothed weights
(Le & Deng 2014). The support of at most K bones is grown greedily from the best pair and compared with the support the
vertex had, so a solve never makes the energy larger.

Columns may be held: their weights stay, and the others share what these leave. With x_held the motion that the held
columns give a vertex and s the share that is left, its free weights are s v, where v solves the same problem for the
motion (x - x_held) / s.

Far from the skin that a bone moves, its motion may happen to fit a vertex a little better than the bones there. Such
weights tie an ear to the trunk, replay this clip alone, and are the first thing that an artist has to paint away, so
every bit of them costs (`far_from_own_skin`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import scipy.sparse as sp
import torch
from scipy.sparse.csgraph import connected_components

from .problem import BoneErrors, Problem, bone_errors, design, flat, homogeneous, slices, smooth

CANDIDATES = 10  # bones looked at for each vertex
SMOOTHNESS = 1e-4  # pull to the smoothed weights, times the rest shape's spread
NEGLIGIBLE = 1e-6  # smaller weights are dropped
RIDGE = 1e-10  # of a support's largest diagonal entry: two bones that move alike share a vertex's weight
CARRIED = 0.5  # weight from which a bone has a right to a vertex wherever it lies (eyes, buttons)
FAINT = 1e-3  # smaller weights do not join two pieces of skin
RINGS = 2  # around its own skin that a bone may take without cost
CHUNK = 4096  # vertices at a time: bounds the memory of the candidate Gram matrices


def solve_weights(
    problem: Problem, errors: BoneErrors, u, W, influences: int, smoothness: float = SMOOTHNESS, far: float = 0.0
):
    """Weights (N,B) for the poses and the rest shape u (N,3) that `errors` were made with, starting from W (N,B).

    far: squared diagonals in every frame that a whole weight costs far from its bone's own skin.
    """
    everywhere = torch.arange(problem.vertices, device=u.device)
    return _solve(problem, errors, u, W, [(influences, everywhere)], smoothness, _far_cost(problem, W, far))


def solve_free_weights(
    problem: Problem, M, u, W, held, influences: int, smoothness: float = SMOOTHNESS, far: float = 0.0
):
    """As solve_weights, for poses M (F,B,3,4); columns of which `held` (B,) is true keep the weights in W.

    A vertex has at most `influences` bones where the held ones leave room, and one free bone where anything is left.
    """
    free = torch.nonzero(~held)[:, 0]
    kept = torch.where(held, W, 0.0)
    left = 1 - kept.sum(1)
    whole = left < NEGLIGIBLE  # vertices of the held bones alone
    left = torch.where(whole, 1.0, left)
    frames = problem.frames
    X = problem.X
    if bool((kept > 0).any()):
        posed = flat(M).reshape(3 * frames, -1) @ design(torch.where(whole[:, None], 0.0, kept), u).T
        X = (X - posed.reshape(frames, 3, -1)) / left
    rest = replace(problem, X=X, square_norm=torch.einsum("fiv,fiv->v", X, X))
    share = W[:, free] / W[:, free].sum(1, keepdim=True).clamp_min(1e-12)
    room = (influences - (kept > 0).sum(1)).clamp_min(1)
    groups = [(size, torch.nonzero(room == size)[:, 0]) for size in room.unique().tolist()]
    cost = _far_cost(problem, share, far)
    solved = _solve(rest, bone_errors(rest, M[:, free], u), u, share, groups, smoothness, cost)
    solved = torch.where(whole[:, None], 0.0, left[:, None] * solved)
    return kept.index_copy(1, free, solved)


def far_from_own_skin(problem: Problem, W) -> torch.Tensor:
    """Where bones have no business: (N,B) bool, for weights W (N,B).

    A bone's own skin is the heaviest piece of connected vertices that it moves, every other piece of which it carries
    some vertex more than all others do, and RINGS of vertices around these.
    """
    weights = W.cpu().numpy()
    rows, columns = np.nonzero(weights > FAINT)
    number = np.full(weights.shape, -1)
    number[rows, columns] = np.arange(len(rows))
    i, j = problem.neighbours.to_sparse_coo().coalesce().indices().cpu().numpy()
    first, second = number[i], number[j]
    joined = (first >= 0) & (second >= 0)
    links = sp.coo_matrix((np.ones(joined.sum()), (first[joined], second[joined])), (len(rows), len(rows)))
    count, piece = connected_components(links, directed=False)
    weight = weights[rows, columns]
    bone = np.empty(count, dtype=int)
    bone[piece] = columns
    mass = np.bincount(piece, weight**2, count)
    heaviest, most = np.zeros(weights.shape[1]), np.zeros(count)
    np.maximum.at(heaviest, bone, mass)
    np.maximum.at(most, piece, weight)
    own = ((mass == heaviest[bone]) | (most > CARRIED))[piece]
    near = torch.zeros_like(W)
    near[torch.as_tensor(rows[own], device=W.device), torch.as_tensor(columns[own], device=W.device)] = 1
    for _ in range(RINGS):
        near = ((problem.neighbours @ near + near) > 0).to(W)
    return near == 0


def _far_cost(problem: Problem, W, far: float):
    """What a whole weight of each bone costs at each vertex (N,B), in the units of the squared error."""
    return far * problem.frames * far_from_own_skin(problem, W).to(W) if far else torch.zeros_like(W)


def _solve(problem: Problem, errors: BoneErrors, u, W, groups, smoothness: float, cost):
    """Weights (N,B); groups: pairs of a number of influences and the vertices (n,) that may have so many; cost (N,B) of
    a whole weight."""
    pull = smoothness * problem.spread
    smoothed = smooth(problem, W)
    table = _pair_table(errors.gram)
    U = homogeneous(u)
    new = torch.empty_like(W)
    for influences, vertices in groups:
        for rows in (vertices[piece] for piece in slices(len(vertices), CHUNK)):
            new[rows] = _solve_rows(errors, table, U[rows], rows, smoothed[rows], W[rows], cost[rows], pull, influences)
    new = torch.where(new < NEGLIGIBLE, 0.0, new)
    return new / new.sum(1, keepdim=True)


def _pair_table(gram):
    """(B*B,10): G[a,b] of a pair of bones is its row times the ten products u_i u_j, i <= j."""
    bones = len(gram)
    i, j = torch.triu_indices(4, 4, device=gram.device)
    both = gram[..., i, j] + gram[..., j, i]
    return torch.where(i == j, both / 2, both).reshape(bones * bones, -1)


def _candidate_grams(table, U, chosen, bones: int):
    """G (n,C,C) of every vertex's own candidate bones `chosen` (n,C)."""
    n, size = chosen.shape
    i, j = torch.triu_indices(4, 4, device=U.device)
    a, b = torch.triu_indices(size, size, device=U.device)
    pairs = table.index_select(0, (chosen[:, a] * bones + chosen[:, b]).reshape(-1)).reshape(n, -1, 10)
    values = (pairs @ (U[:, i] * U[:, j])[:, :, None])[:, :, 0]
    place = torch.empty((size, size), dtype=torch.long, device=U.device)
    place[a, b] = place[b, a] = torch.arange(len(a), device=U.device)
    return values[:, place.reshape(-1)].reshape(n, size, size)


def _solve_rows(errors: BoneErrors, table, U, rows, smoothed, previous, cost, pull, influences):
    count, bones = previous.shape
    candidates = min(CANDIDATES, bones)
    wanted = min(influences, candidates)
    score = errors.alone[rows] - 2 * pull * smoothed + cost
    score = torch.where(previous > 0, score - score.abs().max() * 2 - 1, score)  # those in use are always looked at
    chosen = score.topk(candidates, dim=1, largest=False).indices
    G = _candidate_grams(table, U, chosen, bones)
    G.diagonal(dim1=1, dim2=2).add_(pull)
    c = errors.linear[rows].gather(1, chosen) + pull * smoothed.gather(1, chosen) - cost.gather(1, chosen) / 2
    old_support = previous.gather(1, chosen).topk(wanted, dim=1).indices
    supports = torch.cat([old_support, greedy_support(G, c, wanted)])
    weights, value = simplex_weights(*restrict(G.repeat(2, 1, 1), c.repeat(2, 1), supports))
    better = (value[count:] < value[:count]).long() * count + torch.arange(count, device=U.device)
    return torch.zeros_like(previous).scatter_(1, chosen.gather(1, supports[better]), weights[better])


def restrict(G, c, support):
    """G (n,C,C), c (n,C) -> the same on support (n,K)."""
    n, size = support.shape
    sub = G.gather(1, support[:, :, None].expand(n, size, G.shape[2])).gather(
        2, support[:, None, :].expand(n, size, size)
    )
    return sub, c.gather(1, support)


def greedy_support(G, c, size: int):
    """Support (n,size): the best single or pair in closed form, then the bone that lowers the energy most.

    With the pair's first bone as reference the sum constraint is gone (z_b moves weight from the reference to b) and
    adding a bone is one step of Gauss-Jordan elimination; only steps that keep all weights non-negative are taken.
    """
    n, candidates = c.shape
    diagonal = torch.diagonal(G, dim1=1, dim2=2)
    if size == 1 or candidates == 1:
        return (diagonal - 2 * c).argmin(1, keepdim=True)
    a, b = torch.triu_indices(candidates, candidates, 1, device=G.device)
    curvature = (diagonal[:, a] + diagonal[:, b] - 2 * G[:, a, b]).clamp_min(1e-30)
    slope = c[:, b] - c[:, a] - G[:, a, b] + diagonal[:, a]
    t = (slope / curvature).clamp(0, 1)
    value = diagonal[:, a] - 2 * c[:, a] + t * (t * curvature - 2 * slope)
    best = value.argmin(1)
    reference, second = a[best], b[best]
    row = torch.arange(n, device=G.device)
    to_reference = G[row, reference]  # (n,C)
    H = G - to_reference[:, :, None] - to_reference[:, None, :] + diagonal[row, reference][:, None, None]
    r = c - c[row, reference][:, None] - to_reference + diagonal[row, reference][:, None]
    start_diagonal = torch.diagonal(H, dim1=1, dim2=2).clone()
    support = [reference, second]
    tableau, z = _eliminate(H, r, second, row)
    for _ in range(2, min(size, candidates)):
        inside = torch.zeros_like(c, dtype=torch.bool)
        for s in support:
            inside[row, s] = True
        remaining = torch.diagonal(tableau, dim1=1, dim2=2)
        usable = ~inside & (remaining > RIDGE * start_diagonal + 1e-30)
        step = torch.where(usable, z / torch.where(usable, remaining, 1.0), 0.0)
        gain = torch.where(usable & (step > 0), z * step, -torch.inf)
        left = torch.ones_like(c)
        for s in support[1:]:
            after = z[row, s][:, None] - tableau[row, s] * step
            left = left - after
            gain = torch.where(after < 0, -torch.inf, gain)
        gain = torch.where(left - step < 0, -torch.inf, gain)
        gain, new = gain.max(1)
        # a vertex that gains nothing takes any unused bone; the exact solve gives it weight zero
        spare = (~inside).to(torch.int8).argmax(1)
        added = gain > 0
        new = torch.where(added, new, spare)
        support.append(new)
        next_tableau, next_z = _eliminate(tableau, z, new, row)
        tableau = torch.where(added[:, None, None], next_tableau, tableau)
        z = torch.where(added[:, None], next_z, z)
    return torch.stack(support, dim=1)


def _eliminate(H, r, pivot, row):
    """One Gauss-Jordan step on the rows of the symmetric system H z = r."""
    column = H[row, :, pivot]
    scale = column[row, pivot].clamp_min(1e-30)
    line = H[row, pivot] / scale[:, None]
    value = r[row, pivot] / scale
    H = H - column[:, :, None] * line[:, None, :]
    r = r - column * value[:, None]
    H[row, pivot] = line
    r[row, pivot] = value
    return H, r


def simplex_weights(G, c):
    """argmin w^T G w - 2 c^T w over w >= 0, sum w = 1, exactly; (n,K,K), (n,K) -> weights (n,K), value (n,).

    A primal active-set method (Lawson & Hanson 1974) over all rows at once: solve on the free set, step back to the
    first bound that is hit, free the bound with the most negative multiplier; ends after finitely many steps, in
    practice three or four.
    """
    n, size = c.shape
    if size == 1:
        return torch.ones_like(c), G[:, 0, 0] - 2 * c[:, 0]
    eye = torch.eye(size, dtype=G.dtype, device=G.device)
    level = torch.diagonal(G, dim1=1, dim2=2).amax(1).clamp_min(1e-30)
    G = G + (RIDGE * level)[:, None, None] * eye
    best = (torch.diagonal(G, dim1=1, dim2=2) - 2 * c).argmin(1)
    weights = torch.nn.functional.one_hot(best, size).to(G.dtype)
    free = torch.ones_like(weights, dtype=torch.bool)
    active = torch.arange(n, device=G.device)
    for _step in range(4 * size):
        g, f, w = G[active], free[active], weights[active]
        target = _equality_solve(g, c[active], f, eye)
        bad = f & (target < 0)
        ratio = torch.where(bad, w / (w - target).clamp_min(1e-300), torch.inf)
        alpha = ratio.amin(1).clamp_max(1.0)
        w = torch.where(f, w + alpha[:, None] * (target - w), 0.0)
        blocked = bad.any(1)
        hit = bad & (ratio <= alpha[:, None])
        w = torch.where(hit, 0.0, w)
        f = f & ~hit
        gradient = (g @ w[:, :, None])[:, :, 0] - c[active]
        multiplier = torch.where(f, gradient, 0.0).sum(1) / f.sum(1)
        slack = torch.where(f, torch.inf, gradient - multiplier[:, None])
        lowest, entering = slack.min(1)
        release = ~blocked & (lowest < -1e-12 * level[active])
        f = f | (torch.nn.functional.one_hot(entering, size).bool() & release[:, None])
        weights[active], free[active] = w, f
        active = active[blocked | release]
        if len(active) == 0:
            break
    weights = weights.clamp_min(0)
    weights = weights / weights.sum(1, keepdim=True)
    value = (weights * ((G @ weights[:, :, None])[:, :, 0] - 2 * c)).sum(1)
    return weights, value


def _equality_solve(G, c, free, eye):
    """Minimiser on the free set with sum 1; the other entries are zero."""
    both = free[:, :, None] & free[:, None, :]
    system = torch.where(both, G, eye * torch.diagonal(G, dim1=1, dim2=2).amax(1)[:, None, None])
    factor = torch.linalg.cholesky_ex(system).L
    ones = free.to(G.dtype)
    sides = torch.stack([c * ones, ones], dim=2)
    first, second = torch.cholesky_solve(sides, factor).unbind(2)
    first, second = first * ones, second * ones
    return first + second * ((1 - first.sum(1)) / second.sum(1))[:, None]
