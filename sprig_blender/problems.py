"""What went wrong last, in one sentence for the panel and, after a bug, as a report to copy.

A `SprigError` is the user's to repair and its sentence is all there is to say. Anything else is ours: the traceback
goes to the console and into a log file of its own, and *Copy Report* puts it on the clipboard with the versions.
"""

from __future__ import annotations

import importlib.metadata
import platform
import sys
import tempfile
import traceback
from dataclasses import dataclass

import bpy

from ..backend.report import version


@dataclass(frozen=True)
class Problem:
    """sentence: for the panel; report: versions and traceback of a bug, empty for the user's own mistakes."""

    sentence: str
    report: str = ""


_last: list[Problem] = []  # at most one


def last() -> Problem | None:
    """The problem of the last run, if it had one."""
    return _last[0] if _last else None


def forget() -> None:
    """A new run starts, or the user has read it."""
    _last.clear()


def expected(error: Exception) -> str:
    """Remember a SprigError and return its sentence."""
    _last[:] = [Problem(str(error))]
    return _last[0].sentence


def unexpected(title: str, error: Exception) -> str:
    """Write a bug's traceback to the console and the log file, remember it, and return the sentence for the user."""
    report = "\n\n".join([versions(), f"{title} failed:", "".join(traceback.format_exception(error))])
    with tempfile.NamedTemporaryFile(
        "w", prefix="sprig-error-", suffix=".log", delete=False, encoding="utf-8", errors="replace"
    ) as log:
        log.write(report)
    print(report, f"This is also in {log.name}", sep="\n", file=sys.stderr)
    sentence = (
        f"{title} met a bug of ours ({type(error).__name__}); use Copy Report in the SPRig panel and send it to us."
    )
    _last[:] = [Problem(sentence, report)]
    return sentence


def versions() -> str:
    """One line on everything a bug may depend on; imports nothing that is not loaded yet."""
    libraries = []
    for name in ("numpy", "scipy", "torch"):
        try:
            libraries.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            libraries.append(f"{name} missing")
    return (
        f"SPRig {version()}, Blender {bpy.app.version_string}, Python {platform.python_version()}, "
        f"{', '.join(libraries)}, {platform.platform()}"
    )
