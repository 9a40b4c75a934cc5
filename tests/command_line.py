"""What tests of the command line share."""

import os
import subprocess
import sys
from pathlib import Path

COMMAND = [sys.executable, "-m", "sprig.sprig_blender.cli"]
OUTSIDE = Path(__file__).resolve().parents[2]  # where `sprig` is not in the current folder


def listing(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def one_line(text):
    """The single line that a failed run leaves on standard error."""
    assert text.endswith("\n") and text.count("\n") == 1, text
    assert text.startswith("sprig: ") and "Traceback" not in text, text
    return text


def start(*arguments, **settings):
    """A run in a process of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=OUTSIDE,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **settings,
    )
