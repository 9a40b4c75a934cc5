"""The motion to explain, as tensors: trajectories, rest shape, mesh graph, and the Gram matrices everything runs on.

Letters (also in the other modules of this folder): F frames, N welded vertices, B bones.
    X  (F,3,N)    trajectories, centred and divided by the rest shape's bounding-box diagonal
    u  (N,3)      rest shape (at first the anchor frame or the one that is given), U (N,4) the same with a 1 appended
    W  (N,B)      skin weights
    M  (F,B,3,4)  bone matrices, rest pose to frame f
With P (N,4B), block b of row v being W[v,b] U[v], the sum of squared errors of frame f is
    |X_f|^2 + tr(M_f A M_f^T) - 2 tr(M_f Q_f^T),      A = P^T P (4B,4B),  Q_f = X_f P (3,4B),
so that the vertex count drops out of every pose solve (Le & Deng 2012 use the same covariances).
All of it is float64: the residuals that matter are 1e-4 of the size, their squares 1e-8.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace

import numpy as np
import torch

SMOOTHING_TERMS = 8  # the Neumann series of (I + L)^-1 halves its remainder per term: 4e-3 after eight
SAME_POSE = 1e-7  # RMS distance in diagonals: rounding of float32 caches
EDGE_CHANGE_FLOOR = 1e-6  # RMS change of an edge's length, in diagonals, below which an edge counts as rigid


@dataclass(frozen=True, eq=False)
class Problem:
    """One sequence ready for the solver; see the module's head for the letters."""

    X: torch.Tensor
    rest: torch.Tensor  # (N,3) shape that the bones move: the anchor frame's, or one that was given; never changed
    neighbours: torch.Tensor  # (N,N) sparse adjacency of the bridged mesh graph, values 1
    smoothing: torch.Tensor  # (N,N) sparse rows of edge rigidity, each row sums to 1
    square_norm: torch.Tensor  # (N,) sum over frames of |x|^2
    spread: float  # sum over frames of the rest shape's variance: scales the pulls in the weight solve

    @property
    def frames(self) -> int:
        return self.X.shape[0]

    @property
    def vertices(self) -> int:
        return self.X.shape[2]

    @property
    def device(self) -> torch.device:
        return self.X.device


def make_problem(
    trajectories, edges, anchor: int, device: str = "cpu", *, rest=None
) -> tuple[Problem, np.ndarray, float]:
    """Problem, centre (3,) and scale from trajectories (F,N,3) and the edges (E,2) of a connected graph.

    The rest shape is frame `anchor`, or `rest` (N,3).
    """
    rest = np.asarray(trajectories[anchor] if rest is None else rest, dtype=np.float64)
    centre = rest.mean(axis=0)
    scale = float(np.linalg.norm(np.ptp(rest, axis=0)))
    frames, vertices = trajectories.shape[:2]
    X = torch.empty((frames, 3, vertices), dtype=torch.float64, device=device)
    for f, positions in enumerate(trajectories):
        X[f] = torch.as_tensor((positions.T - centre[:, None]) / scale, device=device)
    rest = torch.as_tensor((rest - centre) / scale, device=device)
    edges = torch.as_tensor(np.asarray(edges, dtype=np.int64), device=device)
    spread = float(((rest - rest.mean(0)) ** 2).sum() / len(rest)) * len(X)
    neighbours, smoothing = _graph(X, rest, edges)
    return Problem(X, rest, neighbours, smoothing, torch.einsum("fiv,fiv->v", X, X), spread), centre, scale


def at_frames(problem: Problem, frames) -> Problem:
    """The same problem on some of its frames (K,) only; rest shape and graph stay."""
    X = problem.X[frames]
    spread = problem.spread * len(X) / problem.frames
    return replace(problem, X=X, square_norm=torch.einsum("fiv,fiv->v", X, X), spread=spread)


def diverse_frames(problem: Problem, first: int, count: int):
    """Frame `first` and up to count - 1 that differ most, in that order (K,); each frame's nearest among them (F,).

    Farthest-point sampling (Gonzalez 1985) of the shapes; frames that repeat others are left out.
    """
    shapes = problem.X.flatten(1)
    gram = shapes @ shapes.T  # no copy of the shapes, which differences would need
    norm = gram.diagonal()
    distance = ((norm[:, None] + norm - 2 * gram).clamp_min(0) / problem.vertices).sqrt()
    chosen, nearest = [first], distance[first]
    while len(chosen) < count and float(nearest.max()) > SAME_POSE:
        farthest = nearest > nearest.max() - SAME_POSE
        chosen.append(int(farthest.to(torch.int8).argmax()))  # the first of those that only rounding tells apart
        nearest = torch.minimum(nearest, distance[chosen[-1]])
    return torch.tensor(chosen, device=problem.device), distance[:, chosen].argmin(1)


def slices(count: int, size: int) -> list[slice]:
    """Slices of nearly equal length, at most `size`, that cover range(count)."""
    pieces = max(1, -(-count // size))
    return [slice(count * i // pieces, count * (i + 1) // pieces) for i in range(pieces)]


def _graph(X, rest, edges):
    """Adjacency, and the row-normalised rigidness weights 1 / (RMS change of edge length) of Le & Deng 2014."""
    start, end = edges.T
    rest_length = (rest[start] - rest[end]).norm(dim=1)
    change = torch.zeros_like(rest_length)
    for frame in X:
        change += ((frame[:, start] - frame[:, end]).square().sum(0).sqrt() - rest_length).square()
    rigidity = 1 / ((change / len(X)).sqrt() + EDGE_CHANGE_FLOOR)
    index = torch.cat([edges.T, edges.T.flip(0)], dim=1)
    count = len(rest)
    degree = torch.zeros(count, dtype=X.dtype, device=X.device).index_add_(0, index[0], rigidity.repeat(2))
    values = rigidity.repeat(2) / degree[index[0]]
    return _sparse_rows(index, torch.ones_like(values), count), _sparse_rows(index, values, count)


def _sparse_rows(index, values, count: int):
    matrix = torch.sparse_coo_tensor(index, values, (count, count), check_invariants=True).coalesce()
    with warnings.catch_warnings():  # torch calls compressed rows "beta"; they multiply three times faster than COO
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled", UserWarning)
        return matrix.to_sparse_csr()


def smooth(problem: Problem, W):
    """Implicit smoothing step (I + L)^-1 W, L = I - S, as the series 1/2 sum_k (S/2)^k W; rows keep their sum."""
    term, total = W / 2, W / 2
    for _ in range(SMOOTHING_TERMS):
        term = (problem.smoothing @ term) / 2
        total = total + term
    return total + term  # the rest of the series, taken as constant


def homogeneous(u):
    """(N,3) -> (N,4) with a 1 appended."""
    return torch.cat([u, torch.ones_like(u[:, :1])], dim=1)


def design(W, u):
    """P (N,4B): block b of row v is W[v,b] [u[v], 1]."""
    return (W[:, :, None] * homogeneous(u)[:, None, :]).reshape(len(W), -1)


def moments(problem: Problem, W, u):
    """Gram matrices A (4B,4B) and Q (F,3,4B) of the design matrix."""
    P = design(W, u)
    return P.T @ P, (problem.X.reshape(-1, problem.vertices) @ P).reshape(problem.frames, 3, -1)


def flat(M):
    """(F,B,3,4) -> (F,3,4B), the layout in which poses multiply P^T."""
    return M.transpose(1, 2).reshape(len(M), 3, -1)


def energy(M, A, Q, per_frame: bool = False):
    """Sum of squared errors without the constant |X|^2, per frame (F,) or in total."""
    m = flat(M)
    value = ((m @ A - 2 * Q) * m).sum((1, 2))
    return value if per_frame else value.sum()


def rmse(problem: Problem, M, A, Q) -> float:
    """RMSE as a fraction of the diagonal, from the Gram matrices alone."""
    total = float(energy(M, A, Q)) + float(problem.square_norm.sum())
    return float(np.sqrt(max(total, 0.0) / (problem.frames * problem.vertices)))


@dataclass(frozen=True, eq=False)
class BoneErrors:
    """How each bone alone would explain each vertex, and what the weight solve needs of the poses."""

    cross: torch.Tensor  # (N,B,4)  X^T M, so that cross . U is <x, M U> summed over frames
    gram: torch.Tensor  # (B,B,4,4) sum over frames of M_a^T M_b
    linear: torch.Tensor  # (N,B) <x, M U>
    alone: torch.Tensor  # (N,B) squared error if the bone carried the vertex by itself


def bone_errors(problem: Problem, M, u) -> BoneErrors:
    """All single-bone errors in one matrix product: |x|^2 - 2 u.(X^T M) + u^T (M^T M) u."""
    frames, bones = M.shape[:2]
    m = flat(M).reshape(3 * frames, 4 * bones)
    U = homogeneous(u)
    cross = (problem.X.reshape(3 * frames, -1).T @ m).reshape(-1, bones, 4)
    gram = (m.T @ m).reshape(bones, 4, bones, 4).transpose(1, 2)
    linear = torch.einsum("nbk,nk->nb", cross, U)
    own = torch.diagonal(gram, dim1=0, dim2=1).permute(2, 0, 1)  # (B,4,4)
    quadratic = (U[:, :, None] * U[:, None, :]).reshape(-1, 16) @ own.reshape(bones, 16).T
    return BoneErrors(cross, gram, linear, problem.square_norm[:, None] - 2 * linear + quadratic)
