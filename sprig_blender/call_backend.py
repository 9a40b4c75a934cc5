"""The one way in which operators call the backend: a function of backend_work.py as the work of a Job.

It runs in the worker thread if PyTorch loads in Blender. On Windows it may not, because Blender has loaded older
runtime libraries than PyTorch wants, while Blender's own Python loads it without them. Then, or when the preferences
say so, it runs in a process of that Python, with the same progress, errors and result. Such a process lives as long as
its call: it costs the import of PyTorch each time, and in return nothing of it is ever left over.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..backend.errors import SprigError
from . import backend_child, backend_work, child_process, dependencies, preferences

LOADED = 0.05  # of the work: importing torch
# Makes the package known under its name outside of Blender and looks for modules where Blender does, its numpy first.
START = """
import json, sys, types
from pathlib import Path
root, folder, sys.path[:] = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
package = sys.modules["sprig"] = types.ModuleType("sprig")
package.__path__ = [root]
from sprig.sprig_blender import backend_child
backend_child.main(Path(folder))
"""


class ErrorInChild(Exception):
    """A bug that showed in the separate process; the text is the traceback there."""


def work(context, function: Callable, *arguments: Any) -> Callable[[Callable[[float, str], None]], Any]:
    """`function(*arguments, progress)` of backend_work.py, as the work of a Job."""
    separate = preferences.always_separate(context)

    def run(progress):
        progress(0.0, "Loading PyTorch")
        dependencies.check()

        def after_loading(fraction, text):
            progress(LOADED + (1 - LOADED) * fraction, text)

        if not separate and dependencies.load():
            return backend_work.call(function, arguments, after_loading)
        return _run_in_child(function, arguments, progress, after_loading)

    return run


def _run_in_child(function: Callable, arguments: tuple, loading: Callable, progress: Callable) -> Any:
    """Call the function in a process of its own. loading: is asked to go on before the first progress is made."""
    assert getattr(backend_work, function.__name__) is function, function
    last: dict[str, Any] = {}

    def on_line(line: str) -> None:
        last.update(json.loads(line) if line else {})
        if "progress" in last:
            progress(*last["progress"])
        else:
            loading(0.0, "Loading PyTorch")

    with tempfile.TemporaryDirectory(prefix="sprig-", ignore_cleanup_errors=True) as folder:
        backend_child.save(Path(folder) / backend_child.REQUEST, (function.__name__, arguments))
        with open(Path(folder) / "log", "w+", encoding="utf-8", errors="replace") as log:
            try:
                status, _output = child_process.run(_command(folder), on_line, errors=log)
            except OSError as error:
                raise SprigError(
                    f"Blender's Python cannot be started ({error.strerror or error}); allow that program to run, or "
                    "set Separate Process to Auto in the preferences."
                ) from error
            if "done" in last:
                return backend_child.load(Path(folder) / backend_child.RESULT)
            if "sentence" in last:
                raise SprigError(last["sentence"])
            if "unloadable" in last:
                raise dependencies.will_not_load("torch", last["unloadable"])
            if "bug" in last:
                raise ErrorInChild(last["bug"])
            log.seek(0)
            dependencies.note(f"The separate process ended with status {status}:\n{log.read()}")
    raise SprigError(
        f"The separate process crashed ({_how(status)}), as it does for lack of memory or with broken libraries; take "
        "fewer frames, or install the libraries again."
    )


def _command(folder: str) -> list[str]:
    """How to start the process: isolated from the user's settings of Python, as Blender is."""
    root = str(Path(__file__).parents[1])
    python = [sys.executable, "-I", "-X", "faulthandler", "-c", START]
    return [*python, root, folder, json.dumps(dependencies.search_path())]


def _how(status: int) -> str:
    """An exit status in words: the signal's name on Linux and macOS, Windows' hexadecimal number of the exception."""
    if status < 0 and -status in {*signal.Signals}:
        return signal.Signals(-status).name
    return f"status {status:#x}" if status > 255 else f"status {status}"
