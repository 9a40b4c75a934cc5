"""Starts Blender in a window, lets it play a scenario and brings back what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np

from sprig.backend.formats import read_sequence_file

CHECKOUT = Path(__file__).resolve().parents[2]
RUNNER = "SPRIG_BLENDER_GUI"  # names another program than tools/blender_window.py, see test_window.py


def window_opener() -> list[str] | None:
    """The command that opens windows; None where there is no Blender to open."""
    if RUNNER in os.environ:
        return [os.environ[RUNNER]]
    if shutil.which(os.environ.get("BLENDER", "blender")) is None:
        return None
    return [sys.executable, str(CHECKOUT / "tools" / "blender_window.py")]


def play(name: str, scratch: Path) -> dict:
    """Play a scenario of scenarios.py; returns what it returned, its pictures are in `scratch`."""
    script = scratch / "scenario.py"
    script.write_text(
        f"import runpy\nrunpy.run_path({str(CHECKOUT / 'tests' / 'window' / 'scenarios.py')!r})"
        f"['run']({name!r}, {str(CHECKOUT)!r}, {str(scratch)!r})\n"
    )
    binds = [str(CHECKOUT), str(scratch), *filter(None, [os.environ.get("BLENDER_GUI_BIND")])]
    done = subprocess.run(
        [*window_opener(), "screenshot", script, scratch / "end.png", "--", "--enable-event-simulate"],
        env={**os.environ, "BLENDER_GUI_BIND": ":".join(binds)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((scratch / "result.json").read_text())


def save_animal(scratch: Path) -> None:
    """The embedded example as scratch/animal.npz: Blender may be built without Alembic."""
    sequence = read_sequence_file(CHECKOUT / "examples" / "elephant_walk.abc")
    np.savez(scratch / "animal.npz", vertices=sequence.vertices, faces=sequence.faces)
