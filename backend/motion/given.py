"""A skeleton that is given, by a network or an artist: weights and poses from the motion, joints as they are.

Where the start weights say little, the poses that fit them say little, too: both are therefore solved in turn, and a
vertex may go to any bone that explains it better (Le & Deng 2014 refine their own skeletons in the same way).
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import no_progress
from .alternate import ROUNDS, MotionFit, alternate, in_scene_units
from .hierarchy import start_pose
from .poses import rigid_starts
from .problem import make_problem
from .solver import make_setting


def fit_given(
    trajectories,
    edges,
    anchor: int,
    joints,
    parents,
    weights,
    *,
    rest=None,
    located=(),
    priors=None,
    counts=None,
    influences: int = 4,
    rest_correction: bool = True,
    rounds: int = ROUNDS,
    device: str = "cpu",
    progress=no_progress,
) -> MotionFit:
    """Weights and poses of a skeleton, joints (J,3) and parents (J,) parents first, for trajectories (F,N,3).

    `weights` (N,J) to start from. The rest shape, in which the joints are where they are, is frame `anchor` or `rest`
    (N,3). Every root moves; `located` bones have a location of their own as well. Other arguments as in solve_motion.
    """
    problem, centre, scale = make_problem(trajectories, edges, anchor, device, rest=rest)
    setting = make_setting(problem, anchor, counts, influences, rest_correction)
    W = torch.as_tensor(np.asarray(weights), dtype=torch.float64, device=device)
    places = torch.as_tensor((np.asarray(joints) - centre) / scale, dtype=torch.float64, device=device)
    pose = start_pose(rigid_starts(setting.key, W, parents), places, parents, located=located)
    near = None if priors is None else torch.as_tensor((np.asarray(priors) - centre) / scale, device=device)
    fit = alternate(
        setting, pose, W, problem.rest, lambda share: progress(share, "Fitting the skeleton"), priors=near, rounds=rounds
    )
    return in_scene_units(fit, centre, scale)
