"""The add-on in a real Blender window: the modal operator, Esc, undo, and what the panel looks like.

Set SPRIG_BLENDER_GUI to a program that can be called as

    PROGRAM screenshot SCRIPT.py OUT.png -- BLENDER-ARGUMENTS

It opens a Blender window (a virtual display will do), runs SCRIPT.py once the window is up, saves a picture of it, and
returns a status other than 0 when the script failed. Scripts may `import blender_gui`, which has to offer view3d,
sidebar, hold, ready, shot and fail. BLENDER_GUI_BIND holds the folders that the script needs, separated by colons.
"""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from sprig.backend.formats import read_sequence_file

CHECKOUT = Path(__file__).resolve().parents[2]
RUNNER = "SPRIG_BLENDER_GUI"

pytestmark = pytest.mark.window


@pytest.fixture
def play(tmp_path):
    """Play a scenario in a window; returns what it returned and the folder with its pictures."""
    if RUNNER not in os.environ:
        pytest.skip(f"{RUNNER} is not set to a program that opens Blender windows")
    animal = read_sequence_file(CHECKOUT / "examples" / "elephant_walk.abc")
    np.savez(tmp_path / "animal.npz", vertices=animal.vertices, faces=animal.faces)

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


def test_panel(play):
    result, pictures = play("panel")
    assert 0 < result["rmse"] < 1 and result["joints"] >= 2
    assert 0.3 < result["at"] < 1
    assert result["frame"] == result["worst_frame"]
    assert result["undone"] and result["redone"] and result["replaced"]
    assert all((pictures / name).stat().st_size > 10_000 for name in ("idle.png", "running.png", "result.png"))
