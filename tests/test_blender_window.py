"""The driver of the window tests, as far as it goes without a Blender; tests/window goes on from there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

DRIVER = Path(__file__).resolve().parents[1] / "tools" / "blender_window.py"


def drive(folder, **environment):
    command = [sys.executable, str(DRIVER), "screenshot", str(folder / "script.py"), str(folder / "out.png")]
    environment = {**os.environ, "PATH": str(folder), **environment}
    environment.pop("DISPLAY", None)
    return subprocess.run([*command, "--", "--version"], capture_output=True, text=True, env=environment, check=False)


def program(path, text="exit 0"):
    path.write_text(f"#!{shutil.which('sh')}\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_it_says_what_is_missing(tmp_path):
    for said, more in (
        ("There is no Blender; put it on the PATH", lambda: program(tmp_path / "blender")),
        ("There is no ImageMagick", lambda: program(tmp_path / "import")),
        ("There is no script", lambda: (tmp_path / "script.py").touch()),
        ("There is no display; install Xvfb", lambda: program(tmp_path / "Xvfb")),
        ("Xvfb does not start", lambda: None),
    ):
        done = drive(tmp_path)
        assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
        more()


def test_blender_gets_its_arguments_a_display_and_empty_settings(tmp_path):
    (tmp_path / "script.py").touch()
    program(tmp_path / "import")
    program(tmp_path / "Xvfb", 'eval "echo 77 >&$2"; exec 1>&- 2>&-; read _forever')
    shown = 'echo "$DISPLAY $BLENDER_WINDOW_SCRIPT $*"; [ -z "$(echo "$BLENDER_USER_RESOURCES"/*)" ]; exit 3'
    other = program(tmp_path / "other", shown)
    done = drive(tmp_path, BLENDER=other)
    assert done.returncode == 1, done.stderr  # whatever Blender's own status
    number, script, *arguments = done.stdout.split()
    assert (number, script) == (":77", str(tmp_path / "script.py"))
    assert arguments[:2] == ["--factory-startup", "--offline-mode"] and "--version" in arguments
    assert arguments[-1].endswith("blender_gui.py")
