"""How noisy trajectories are, and that a rig of noisy ones follows the motion and not the noise."""

from __future__ import annotations

import numpy as np
import pytest

from sprig.backend import metrics
from sprig.backend.device import load_torch
from sprig.backend.pipeline import RigOptions, rig_sequence
from sprig.backend.sequence import MeshSequence
from sprig.backend.surface import edges

torch = load_torch()

from sprig.backend.motion.noise import noise_level, steady_shape  # noqa: E402
from sprig.backend.motion.problem import make_problem  # noqa: E402

from .creatures import chain  # noqa: E402


def noisy_chain(percent, bones=5, frames=30):
    sequence, *_ = chain(bones, frames)
    size = metrics.diagonal(sequence.vertices[0])
    vertices = metrics.with_noise(sequence.vertices, percent, size) if percent else sequence.vertices
    return sequence, MeshSequence(vertices, sequence.faces), size


@pytest.mark.parametrize("percent", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("frames", [8, 30, 120])
def test_noise_is_told_from_motion(percent, frames):
    _, noisy, _ = noisy_chain(percent, frames=frames)
    level = noise_level(make_problem(noisy.vertices, edges(noisy.faces), 0)[0])
    assert 100 * level == pytest.approx(percent, rel=0.3 if frames == 8 else 0.1)  # 24 singular values say less


@pytest.mark.parametrize("percent, most", [(0.1, 0.09), (0.5, 0.3)])  # the patches of a tube that bends bend, too
def test_all_frames_together_tell_a_steadier_shape(percent, most):
    clean, noisy, size = noisy_chain(percent)
    shape = steady_shape(noisy.vertices, edges(noisy.faces), 4, percent / 100 * size)
    off = 100 / size * np.sqrt(((shape - clean.vertices[4]) ** 2).sum(axis=1).mean())
    assert off < most
    alone = steady_shape(noisy.vertices[4:5], edges(noisy.faces), 0, percent / 100 * size)
    np.testing.assert_allclose(alone, noisy.vertices[4], atol=1e-6 * size)  # one frame says nothing more


def test_without_noise_there_is_none():
    clean, *_ = noisy_chain(0)
    assert noise_level(make_problem(clean.vertices, edges(clean.faces), 0)[0]) < 1e-6
    few = clean.vertices[:, :5]
    assert noise_level(make_problem(few, [[0, 1], [1, 2], [2, 3], [3, 4]], 0)[0]) == 0.0  # cannot be told


@pytest.mark.parametrize("percent", [0.1, 0.5])
def test_a_rig_follows_the_motion_and_not_the_noise(percent):
    clean, noisy, size = noisy_chain(percent)
    rig = rig_sequence(noisy, RigOptions(skeleton="motion"))
    plain = rig_sequence(clean, RigOptions(skeleton="motion"))
    assert len(rig.skeleton) <= 1.5 * len(plain.skeleton) and rig.rmse < 1.2 * percent
    against_clean = metrics.rmse_percent(rig.rest_vertices, rig.weights, rig.motion, clean.vertices, size)
    assert against_clean < percent
    assert any("at random" in warning for warning in rig.warnings)
    assert not any("at random" in warning for warning in plain.warnings)
