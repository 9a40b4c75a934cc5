"""How noisy trajectories are: scans and quantised caches move every vertex at random, and no skeleton follows that.

Bones make trajectories of low rank; independent noise of every coordinate adds singular values whose distribution is
known (Marchenko & Pastur 1967), so its strength shows in the smallest ones (as in Gavish & Donoho 2014, who use the
median; here a lower quantile, because in short clips with many bones most singular values are motion).

What looks at one frame alone can be shown a steadier one: where a patch of the surface keeps its shape, all frames
say where its vertices are (`steady_shape`).
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from .problem import Problem
from .procrustes import rotation_from_covariance

QUANTILE = 0.1  # of the singular values, from below
MOST_ROWS = 900  # coordinates over time that are looked at: 300 frames evenly spread
LEAST_RATIO = 2.0  # vertices for each of them: with fewer the smallest singular values say nothing
RINGS = 3  # of neighbours, which move with a vertex
STEADY_FRAMES = 24  # that are averaged
OWN = 2.0  # what the frame itself counts beside one in which the patch has kept its shape


def noise_level(problem: Problem) -> float:
    """RMS length of the vertices' random displacement, as a fraction of the diagonal; 0.0 where it cannot be told."""
    frames = torch.linspace(0, problem.frames - 1, min(problem.frames, MOST_ROWS // 3)).round().long().unique()
    X = problem.X[frames.to(problem.device)].flatten(0, 1)
    rows, columns = X.shape
    if columns < LEAST_RATIO * rows:  # few vertices: fewer frames tell as much
        rows = int(columns / LEAST_RATIO) // 3 * 3
        X = X[
            torch.linspace(0, len(X) // 3 - 1, rows // 3).round().long().repeat_interleave(3) * 3
            + torch.arange(rows) % 3
        ]
    if rows < 12:
        return 0.0
    spectrum = torch.linalg.eigvalsh(X @ X.T).clamp_min(0) / columns
    smallest = float(spectrum.quantile(QUANTILE))
    return float(np.sqrt(3 * smallest / _marchenko_pastur(rows / columns, QUANTILE)))


def steady_shape(trajectories, edges, anchor: int, level: float) -> np.ndarray:
    """Frame `anchor` (N,3) of trajectories (F,N,3) without most of its noise, of RMS length `level` in their units.

    Of every frame, the patch around a vertex (RINGS of `edges` (E,2)) is laid on the anchor's rigidly (Kabsch 1976),
    and the vertex is the mean of where it then lies. Frames in which the patch has bent by more than the noise count by
    the inverse square of that. Halves the noise of 0.1 and 0.5 % on real clips.
    """
    vertices = trajectories.shape[1]
    ends = np.concatenate([edges, edges[:, ::-1]])
    ring = sp.coo_matrix((np.ones(len(ends)), ends.T), (vertices, vertices)).tocsr()
    ring.data[:] = 1  # an edge that is given twice is one
    ring = ring + sp.identity(vertices)
    ring = sp.diags(1 / ring.sum(axis=1).A1) @ ring
    patch = ring
    for _ in range(RINGS - 1):
        patch = patch @ ring

    shape = trajectories[anchor].astype(np.float64)
    centres, noise = patch @ shape, 2 * level**2  # of both frames
    total, counted = OWN * shape, np.full(vertices, OWN)
    others = np.setdiff1d(np.arange(len(trajectories)), [anchor])
    for frame in others[np.unique(np.linspace(0, len(others) - 1, min(len(others), STEADY_FRAMES)).astype(int))]:
        other = trajectories[frame].astype(np.float64)
        middles = patch @ other
        products = patch @ (shape[:, :, None] * other[:, None, :]).reshape(vertices, 9)
        covariance = products.reshape(vertices, 3, 3) - centres[:, :, None] * middles[:, None, :]
        turn = rotation_from_covariance(torch.as_tensor(covariance)).numpy()
        laid = np.einsum("nij,nj->ni", turn, other - middles) + centres
        bent = patch @ ((laid - shape) ** 2).sum(axis=1)
        share = (noise / np.maximum(bent, noise)) ** 2
        total, counted = total + share[:, None] * laid, counted + share
    return total / counted[:, None]


def _marchenko_pastur(ratio: float, quantile: float) -> float:
    """Quantile of the eigenvalues of the covariance of white noise of variance 1, rows / columns = ratio < 1."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    x = np.linspace(low, high, 4001)[1:-1]
    mass = np.cumsum(np.sqrt((high - x) * (x - low)) / x)
    return float(np.interp(quantile, mass / mass[-1], x))
