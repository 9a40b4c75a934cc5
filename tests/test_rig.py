"""The result's data model: what it refuses, and the numbers it derives."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sprig.backend.errors import SprigError
from sprig.backend.rig import Rig, Skeleton

JOINTS = np.array([[0, 0, 0], [0, 0, 1], [0, 0, 2]], dtype=float)


def make_skeleton(**fields) -> Skeleton:
    return Skeleton(
        **({"joints": JOINTS, "tails": JOINTS + [0, 0.5, 0.5], "parents": [-1, 0, 1], "names": "abc"} | fields)
    )


def make_rig(**fields) -> Rig:
    """A rig of 3 joints, 6 vertices and 4 frames; fields override its own."""
    rng = np.random.default_rng(0)
    motion = np.tile(np.eye(4), (4, 3, 1, 1))
    motion[..., :3, :3] = Rotation.random(12, random_state=0).as_matrix().reshape(4, 3, 3, 3)
    motion[..., :3, 3] = rng.normal(size=(4, 3, 3))
    rig = {
        "skeleton": make_skeleton(), "weights": rng.dirichlet(np.ones(3), 6), "motion": motion,
        "rest_vertices": rng.normal(size=(6, 3)), "faces": [[0, 1, 2], [3, 4, 5]], "anchor": 1, "origin": [0, 0, 0],
        "fps": 24.0, "frame_numbers": [1, 2, 3, 4], "frame_index": [0, 1, 2, 3], "seen_in_motion": [True] * 3,
        "rotation_range": [0.0] * 3, "rmse_per_frame": [0.0, 3.0, 1.0, 3.0],
    }  # fmt: skip
    return Rig(**(rig | fields))


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"tails": JOINTS[:2]}, r"tails should have shape \(3, 3\), shape is \(2, 3\)"),
        ({"joints": JOINTS[:, :2]}, r"joints should have shape \(3, 3\)"),
        ({"names": "ab"}, "as many different names"),
        ({"names": "aab"}, "as many different names"),
        ({"joints": JOINTS * np.nan}, "not finite"),
        ({"tails": JOINTS + np.inf}, "not finite"),
        ({"parents": [-1, 1, 1]}, "before their children"),
        ({"parents": [1, -1, 1]}, "before their children"),
        ({"parents": [-2, 0, 1]}, "before their children"),
        ({"joints": JOINTS[:0], "tails": JOINTS[:0], "parents": [], "names": []}, "at least one joint"),
    ],
)
def test_a_skeleton_that_is_none_is_refused(fields, message):
    with pytest.raises(SprigError, match=message):
        make_skeleton(**fields)


def test_a_skeleton_may_have_several_roots():
    assert len(make_skeleton(parents=[-1, 0, -1])) == 3
    assert make_skeleton().names == ("a", "b", "c")


BAD_WEIGHTS = np.full((6, 3), 1 / 3)


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"weights": BAD_WEIGHTS[:5]}, r"weights should have shape \(6, 3\), shape is \(5, 3\)"),
        ({"weights": BAD_WEIGHTS * 1.001}, "sum to 1 .*0.001"),
        ({"weights": BAD_WEIGHTS + [[-0.5, 0.5, 0]]}, "non-negative"),
        ({"weights": BAD_WEIGHTS * np.nan}, "weights are not finite"),
        ({"motion": np.zeros((4, 2, 4, 4))}, r"motion should have shape \(4, 3, 4, 4\)"),
        ({"motion": np.full((4, 3, 4, 4), np.nan)}, "motion are not finite"),
        ({"rest_vertices": np.full((6, 3), np.inf)}, "rest_vertices are not finite"),
        ({"origin": [0, 0, np.nan]}, "origin are not finite"),
        ({"anchor": 4}, "one of the 4 frames, is 4"),
        ({"anchor": -1}, "one of the 4 frames, is -1"),
        ({"seen_in_motion": [True]}, r"seen_in_motion should have shape \(3,\)"),
        ({"rotation_range": [0.0]}, r"rotation_range should have shape \(3,\)"),
        ({"rmse_per_frame": [0.0]}, r"rmse_per_frame should have shape \(4,\)"),
        ({"frame_index": [0]}, r"frame_index should have shape \(4,\)"),
        ({"confidence": [0.5]}, r"confidence should have shape \(3,\)"),
    ],
)
def test_a_rig_that_is_none_is_refused(fields, message):
    with pytest.raises(SprigError, match=message):
        make_rig(**fields)


def test_types_and_derived_numbers():
    rig = make_rig()
    assert rig.weights.dtype == np.float32 and rig.motion.dtype == np.float64 and rig.faces.dtype == np.int32
    assert rig.rmse == pytest.approx(np.sqrt(19 / 4))  # the RMS over the frames, not their mean
    assert rig.worst_frame == 1  # the first of equals
    assert np.isnan(rig.confidence).all()  # nothing is known
