"""How noisy trajectories are: scans and quantised caches move every vertex at random, and no skeleton follows that.

Bones make trajectories of low rank; independent noise of every coordinate adds singular values whose distribution is
known (Marchenko & Pastur 1967), so its strength shows in the smallest ones (as in Gavish & Donoho 2014, who use the
median; here a lower quantile, because in short clips with many bones most singular values are motion).
"""

from __future__ import annotations

import numpy as np
import torch

from .problem import Problem

QUANTILE = 0.1  # of the singular values, from below
MOST_ROWS = 900  # coordinates over time that are looked at: 300 frames evenly spread
LEAST_RATIO = 2.0  # vertices for each of them: with fewer the smallest singular values say nothing


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


def _marchenko_pastur(ratio: float, quantile: float) -> float:
    """Quantile of the eigenvalues of the covariance of white noise of variance 1, rows / columns = ratio < 1."""
    low, high = (1 - np.sqrt(ratio)) ** 2, (1 + np.sqrt(ratio)) ** 2
    x = np.linspace(low, high, 4001)[1:-1]
    mass = np.cumsum(np.sqrt((high - x) * (x - low)) / x)
    return float(np.interp(quantile, mass / mass[-1], x))
