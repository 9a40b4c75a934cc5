"""The report holds exactly what DESIGN 5 lists, in the units it promises, and is strict JSON."""

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from sprig.backend.report import SCHEMA, rig_report, version, write_report
from sprig.backend.rig import Rig, Skeleton

KEYS = (
    "schema sprig_version input object vertices faces frames fps anchor_frame skeleton_source checkpoints device seed "
    "influences joints rmse_percent rmse_percent_per_frame worst_frame seconds peak_memory_mb warnings"
).split()
JOINT_KEYS = "name parent head tail rotation_range_deg seen_in_motion confidence".split()


@pytest.fixture
def rig():
    """Two joints, four vertices, three frames numbered 10, 12, 14; ten kilometres from the world's origin."""
    return Rig(
        skeleton=Skeleton([[0, 0, 0], [0, 0, 1]], [[0, 0, 1], [0, 0, 2]], [-1, 0], ["hips", "spine"]),
        weights=np.repeat([[1, 0], [0, 1]], 2, axis=0),
        motion=np.tile(np.eye(4), (3, 2, 1, 1)),
        rest_vertices=np.eye(4, 3),
        faces=[[0, 1, 2], [1, 2, 3]],
        anchor=1,
        origin=[10000, 0, 0],
        fps=25,
        frame_numbers=[10, 12, 14],
        frame_index=[0, 2, 4],
        seen_in_motion=[True, False],
        rotation_range=[0, math.pi / 2],
        rmse_per_frame=[0.3, 0.0, 0.4],
        confidence=[math.nan, 0.5],
        provenance={"skeleton_source": "motion", "seed": 7, "device": "cpu"},
        warnings=("a", "b"),
        seconds={"motion": 2.0},
    )


@pytest.fixture
def report(rig):
    return rig_report(
        rig,
        source="horse.abc",
        object_names=("body", "saddle"),
        influences=4,
        seconds={"read": 1.0},
        warnings=("b", "c"),
        peak_memory=12.5,
    )


def test_keys_are_those_of_the_design(report):
    assert list(report) == KEYS
    assert all(list(joint) == JOINT_KEYS for joint in report["joints"])


def test_units(report):
    assert report["schema"] == SCHEMA
    assert report["sprig_version"] == version()
    assert (report["input"], report["object"]) == ("horse.abc", "body, saddle")
    assert (report["vertices"], report["faces"], report["frames"], report["fps"]) == (4, 2, 3, 25.0)
    assert (report["anchor_frame"], report["worst_frame"]) == (12, 14)  # numbers, not positions
    assert (report["skeleton_source"], report["device"], report["seed"], report["influences"]) == (
        "motion",
        "cpu",
        7,
        4,
    )
    assert report["rmse_percent"] == pytest.approx(math.sqrt((0.3**2 + 0.4**2) / 3))
    assert report["rmse_percent_per_frame"] == [0.3, 0.0, 0.4]
    assert report["seconds"] == {"read": 1.0, "motion": 2.0}
    assert sorted(report["warnings"]) == ["a", "b", "c"]  # the same sentence only once
    assert report["peak_memory_mb"] == 12.5


def test_joints_are_in_the_world(report):
    hips, spine = report["joints"]
    assert (hips["name"], hips["parent"], spine["parent"]) == ("hips", None, "hips")
    assert (spine["head"], spine["tail"]) == ([10000.0, 0.0, 1.0], [10000.0, 0.0, 2.0])
    assert spine["rotation_range_deg"] == pytest.approx(90)
    assert (hips["seen_in_motion"], spine["seen_in_motion"]) == (True, False)
    assert (hips["confidence"], spine["confidence"]) == (None, 0.5)


def test_file_is_strict_json(report, tmp_path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    write_report(tmp_path / "report.json", report)
    text = (tmp_path / "report.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=refuse) == report


def test_an_error_that_is_not_finite_is_never_written(report, tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_report(tmp_path / "report.json", report | {"rmse_percent": math.nan})


MEASURE = """
import numpy as np
from sprig.backend.report import peak_memory_mb
before = peak_memory_mb()
np.ones((200, 2**20), dtype=np.uint8)
print(peak_memory_mb() - before)
"""


@pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="not measured on this system")
def test_peak_memory_is_in_mebibytes_and_stays():
    grown = subprocess.run([sys.executable, "-c", MEASURE], capture_output=True, text=True, check=True).stdout
    assert float(grown) == pytest.approx(200, abs=30)  # the imports may have peaked above what they keep
