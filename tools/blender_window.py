#!/usr/bin/env python3
"""Open a real Blender window, run a script in it and save a picture: for the window tests and the pictures of docs/.

    python tools/blender_window.py screenshot SCRIPT.py OUT.png [-- ARGUMENTS OF BLENDER]

BLENDER names the executable, else the `blender` on the PATH is taken. The window opens on a virtual display where Xvfb
is installed, so that it neither disturbs nor shows anything else, and on the one of DISPLAY where it is not. Pictures
are of the whole display, menus included, taken by ImageMagick. On Debian: apt-get install xvfb imagemagick.

Further environment: BLENDER_GUI_SIZE (1600x1000), BLENDER_GUI_TIMEOUT (seconds that Blender may run, 600), and
BLENDER_GUI_HOME (a folder with Blender's settings; an empty one without it). The script can import
window/blender_gui.py.
Exit status: 0, 1 when the script failed, 2 when no window could be opened.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

HELPERS = Path(__file__).resolve().parent / "window"


class NoWindow(Exception):
    """Why there is no window, in one sentence with what to do."""


def run(script: Path, output: Path, arguments: list[str]) -> int:
    """Blender's exit status; 1 when it had to be ended, NoWindow when it cannot begin."""
    blender = shutil.which(os.environ.get("BLENDER", "blender"))
    if blender is None:
        raise NoWindow("There is no Blender; put it on the PATH, or name its executable in BLENDER.")
    if shutil.which("import") is None:
        raise NoWindow("There is no ImageMagick to take pictures with; install it.")
    if not script.is_file():
        raise NoWindow(f"There is no script {script}; name one.")
    size = os.environ.get("BLENDER_GUI_SIZE", "1600x1000")
    width, _, height = size.partition("x")
    command = [blender, "--factory-startup", "--offline-mode", "--window-geometry", "0", "0", width, height]
    command += [*arguments, "--python", str(HELPERS / "blender_gui.py")]
    with tempfile.TemporaryDirectory(prefix="blender-window-") as empty, display(size) as name:
        more = {"DISPLAY": name, "BLENDER_WINDOW_SCRIPT": str(script), "BLENDER_WINDOW_PICTURE": str(output)}
        more["BLENDER_USER_RESOURCES"] = os.environ.get("BLENDER_GUI_HOME", empty)
        try:
            seconds = float(os.environ.get("BLENDER_GUI_TIMEOUT", "600"))
            return int(
                subprocess.run(command, env={**os.environ, **more}, timeout=seconds, check=False).returncode != 0
            )
        except subprocess.TimeoutExpired:
            print(f"blender_window: Blender was ended after {seconds:g} seconds", file=sys.stderr)
            return 1


@contextlib.contextmanager
def display(size: str) -> Iterator[str]:
    """The name of a display: a virtual one that ends with the block, or the user's own."""
    if shutil.which("Xvfb") is None:
        if "DISPLAY" not in os.environ:
            raise NoWindow("There is no display; install Xvfb, or run this on a desktop.")
        yield os.environ["DISPLAY"]
        return
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", f"{size}x24", "-nolisten", "tcp", "-noreset"]
    server = subprocess.Popen(command, pass_fds=[writing], stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as answer:
            number = answer.readline().strip()  # empty when the server has ended
        if not number:
            raise NoWindow("Xvfb does not start; run it by hand to see why.")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["screenshot"])
    parser.add_argument("script", type=Path)
    parser.add_argument("output", type=Path, help="the picture, taken when the script is done")
    options = parser.parse_args(given[:end])
    try:
        sys.exit(run(options.script.resolve(), options.output.resolve(), given[end + 1 :]))
    except NoWindow as problem:
        print(f"blender_window: {problem}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
