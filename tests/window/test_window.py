"""The add-on in a real Blender window: the modal operator, Esc, undo, and what the panel looks like.

Set SPRIG_BLENDER_GUI to a program that can be called as

    PROGRAM screenshot SCRIPT.py OUT.png -- BLENDER-ARGUMENTS

It opens a Blender window (a virtual display will do), runs SCRIPT.py once the window is up, saves a picture of it, and
returns a status other than 0 when the script failed. Scripts may `import blender_gui`, which has to offer view3d, shot,
maximize, sidebar, hold, ready and fail. BLENDER_GUI_BIND holds the folders that the script needs, separated by colons.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sprig.backend.formats import read_sequence_file
from sprig.sprig_blender.pinned_wheels import PINNED

from ..small_wheels import make_wheel

CHECKOUT = Path(__file__).resolve().parents[2]
RUNNER = "SPRIG_BLENDER_GUI"

pytestmark = pytest.mark.window


@pytest.fixture
def play(tmp_path):
    """Play a scenario in a window; returns what it returned and the folder with its pictures."""
    if RUNNER not in os.environ:
        pytest.skip(f"{RUNNER} is not set to a program that opens Blender windows")

    def play_scenario(name):
        script = tmp_path / "scenario.py"
        script.write_text(
            f"import runpy\nrunpy.run_path({str(CHECKOUT / 'tests' / 'window' / 'scenarios.py')!r})"
            f"['run']({name!r}, {str(CHECKOUT)!r}, {str(tmp_path)!r})\n"
        )
        binds = [str(CHECKOUT), str(tmp_path), *filter(None, [os.environ.get("BLENDER_GUI_BIND")])]
        done = subprocess.run(
            [os.environ[RUNNER], "screenshot", script, tmp_path / "end.png", "--", "--enable-event-simulate"],
            env={**os.environ, "BLENDER_GUI_BIND": ":".join(binds)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((tmp_path / "result.json").read_text()), tmp_path

    return play_scenario


@pytest.fixture
def animal(tmp_path):
    """The embedded example as scratch/animal.npz: Blender may be built without Alembic."""
    sequence = read_sequence_file(CHECKOUT / "examples" / "elephant_walk.abc")
    np.savez(tmp_path / "animal.npz", vertices=sequence.vertices, faces=sequence.faces)


@pytest.fixture
def wheels(tmp_path):
    """Stand-ins of the pinned versions in scratch/wheels; importing one waits for as long as scratch/slow is there."""
    folder, slow = tmp_path / "wheels", tmp_path / "slow"
    folder.mkdir()
    slow.touch()
    waits = f"import os, time\nwhile os.path.exists({str(slow)!r}):\n    time.sleep(0.1)\n"
    for wheel in PINNED:
        make_wheel(folder, wheel.project, wheel.version, waits if wheel.project == "trimesh" else "")


def test_panel(play, animal):
    """docs/panel.png is this test's result.png."""
    result, pictures = play("panel")
    assert 0 < result["rmse"] < 1 and result["joints"] >= 2
    assert 0.3 < result["at"] < 1
    assert result["frame"] == result["worst_frame"]
    assert result["undone"] and result["redone"] and result["replaced"]
    for name in ("idle.png", "running.png", "result.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_esc_in_every_phase(play):
    result, _pictures = play("cancel")
    assert result.pop("reading").startswith("Reading frame")
    assert result.pop("solving") not in ("Stopping", "Writing the armature")
    assert result == {
        "unchanged after reading": True,
        "unchanged after solving": True,
        "stopping": "Stopping",
        "unchanged after the button": True,
        "complaint": None,
        "threads": [],
    }


def test_the_user_works_on_meanwhile(play):
    result, _pictures = play("meanwhile")
    assert result == {
        "edited": "The mesh of 'Bar' was edited while it was rigged; run the rigging again.",
        "deleted": "'Bar' was deleted while it was rigged; undo that and run the rigging again.",
        "waiting": "Ready; waiting for Object Mode in the scene Scene",
        "written after waiting": 1,
        "renamed": ["Renamed", "Renamed Rig", "Renamed Skin"],
        "undo meanwhile": [3.0, None],
        "after disabling": True,
        "threads": [],
        "after opening a file": True,
        "threads then": [],
        "armatures then": 1,
    }


def test_trouble(play):
    result, _pictures = play("trouble")
    assert not result["without torch"]
    assert result["mistake"] == "The rest pose's frame 99 is not one of the frames 1 to 20; choose one of them."
    assert "a bug of ours (KeyError)" in result["bug"] and result["unchanged"]
    assert "KeyError: 'a bug'" in result["report"] and "Blender" in result["report"]
    assert result["dismissed"]


def test_fine_tuning(play):
    result, pictures = play("finetune")
    assert "PJDD" in result["told"] and result["cancelled"] == ["", True, None]
    assert result["student"].endswith(".safetensors") and result["joints"] >= 2 and result["forgotten"] == ""
    assert "fine-tuned" not in result["warnings"]  # the student fits the sequence
    for name in ("offered.png", "learning.png", "learned.png", "rigged.png"):
        assert (pictures / name).stat().st_size > 10_000, name


def test_install(play, wheels):
    result, _pictures = play("install")
    assert result.pop("offline").startswith("Blender may not use the network; allow Online Access")
    assert result == {"left behind": [], "problem": None, "installed": True, "removed": True}
