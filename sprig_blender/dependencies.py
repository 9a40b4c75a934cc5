"""torch, scipy and safetensors inside Blender: are they there, and putting them there when the user asks for it.

Blender brings numpy only. The rest goes into the extension's own user folder (Blender keeps it across upgrades and
removes it with the extension), into a sub-folder named after the Python version and the kind of device, so that a
Blender with another Python finds "Missing" instead of crashing on it. That folder, or one the user names, is appended
to sys.path: appended, so that Blender's numpy stays the first. This is the only place that touches sys.path.

Nothing is imported to find out what is there: enabling the add-on has to be quick and must not fail. An installation
is made under another name, tried in a Python of its own and only then renamed, so a cancelled or failed one leaves
nothing behind.
"""

from __future__ import annotations

import enum
import importlib
import importlib.metadata
import importlib.util
import os
import re
import shutil
import sys
import tempfile
import tomllib
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import bpy

from ..backend.device import load_torch
from ..backend.errors import SprigError, no_progress
from . import child_process, problems
from .pinned_wheels import PINNED, Wheel, builds, indexes, requirements, this_machine

# What the backend imports, and the oldest versions it works with.
REQUIRED = {"torch": (2, 6), "scipy": (1, 11), "safetensors": (0, 4)}
PYTHON_TAG = f"py{sys.version_info.major}{sys.version_info.minor}"
RAW_PROGRESS_PIP = (24, 1)  # the first pip that can report its progress for programs
GRAPHICS = ("nvidia_", "cuda_", "triton-", "pytorch_triton")  # how wheels begin that torch for CUDA or ROCm needs
PIP_SHARE = 0.9  # of an installation's progress; the rest is trying out the result
TRIAL = "import importlib, sys; sys.path.insert(0, sys.argv[1]); [importlib.import_module(m) for m in sys.argv[2:]]"


class State(enum.Enum):
    MISSING = "Missing"
    READY = "Ready"
    BROKEN = "Broken"


@dataclass(frozen=True)
class Library:
    """One library as it is found now. detail: its version, or why it is broken."""

    name: str
    state: State
    detail: str


# ---- what is there


@cache
def libraries() -> tuple[Library, ...]:
    """numpy and the libraries that SPRig needs besides; looked up once, until `look_again`."""
    return (_look_up("numpy", (1, 26)), *(_look_up(name, oldest) for name, oldest in REQUIRED.items()))


def look_again() -> None:
    """Forget what was found; folders have changed."""
    importlib.invalidate_caches()
    libraries.cache_clear()


def ready() -> bool:
    """Whether everything needed for rigging seems to be there."""
    return all(library.state is State.READY for library in libraries())


def what_is_wrong() -> str:
    """What is missing or broken, as the first half of a sentence."""
    missing = [library.name for library in libraries() if library.state is State.MISSING]
    if missing and _other_python():
        return f"The libraries were installed for Python {_other_python()}, and this Blender has another"
    if missing:
        return f"SPRig needs {' and '.join(missing)}, which Blender does not bring along"
    broken = next(library for library in libraries() if library.state is State.BROKEN)
    return f"{broken.name} does not work here: {broken.detail}"


def what_to_do() -> str:
    """The whole sentence, for those who do not see the panel; without its full stop, as Blender's tooltips want it."""
    if came_with_extension():
        remedy = "install the SPRig zip that was made for this system and this Blender"
    elif _on_path is not None and _on_path != own_folder():
        remedy = "correct Existing Folder in the add-on's preferences"
    else:
        remedy = "install the libraries in the SPRig panel or in the add-on's preferences"
    return f"{what_is_wrong()}; {remedy}"


def check() -> None:
    """SprigError when something is missing or broken."""
    if not ready():
        raise SprigError(f"{what_to_do()}.")


def load() -> bool:
    """Import torch, which takes seconds the first time; False when it will not load in Blender's process.

    That is tried once: the next calls remember it. Whether torch works in a process of its own is seen there.
    """
    if not _not_in_blender:
        try:
            load_torch()
        except (ImportError, OSError) as error:  # a missing DLL or shared library is an OSError
            _not_in_blender.append(_first_line(str(error)))
            note("PyTorch does not load in Blender's process:\n" + "".join(traceback.format_exception(error)))
            look_again()
    return not _not_in_blender


def will_not_load(name: str, reason: str) -> SprigError:
    """Remember that a library is there and cannot be imported at all; returns what to raise."""
    _will_not_load[name] = _first_line(reason)
    note(f"{name} does not load: {reason}")
    look_again()
    return SprigError(f"{what_to_do()}.")


_will_not_load: dict[str, str] = {}  # libraries that are there but could not be imported in this session, and why
_not_in_blender: list[str] = []  # why torch does not load in this process, once that was seen


# ---- what happened, for Copy Log

_noted: list[str] = []  # what went wrong in this session, in full


def note(text: str) -> None:
    """Keep what pip, an import or a child process said when it failed."""
    _noted.append(text)


def log() -> str:
    """Everything that helps to find out why the libraries do not work."""
    found = [f"{library.name}: {library.state.value} {library.detail}" for library in libraries()]
    folders = [f"Own folder: {own_folder()}", f"In use: {_on_path}", f"Python: {sys.executable}"]
    return "\n\n".join([problems.versions(), "\n".join(found), "\n".join(folders), *_noted])


def has_failed() -> bool:
    """Whether something is broken, or has gone wrong in this session."""
    return bool(_noted) or any(library.state is State.BROKEN for library in libraries())


def _look_up(name: str, oldest: tuple[int, int]) -> Library:
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # somebody blocks it, or has put something else in its place
        spec = None
    # A library that was uninstalled while it was loaded still has its spec.
    if spec is None or spec.origin is None or not Path(spec.origin).exists():
        return Library(name, State.MISSING, "")
    if name in _will_not_load:
        return Library(name, State.BROKEN, _will_not_load[name])
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return Library(name, State.BROKEN, "its version is unknown, so the installation is incomplete")
    if _numbers(version) < oldest:
        return Library(name, State.BROKEN, f"{version} is too old, {'.'.join(map(str, oldest))} or later is needed")
    separate = name == "torch" and _not_in_blender
    return Library(name, State.READY, f"{version}, in a separate process" if separate else version)


# ---- where it is

_own_root: Path | None = None  # the extension's user folder; None when SPRig is not installed as an extension
_on_path: Path | None = None  # the folder that this module appended to sys.path


def register(package: str) -> None:
    """Remember the extension's user folder and finish removals that were not possible while Blender ran."""
    global _own_root
    # Outside an extension repository (tests of parts, `pip install`) there is no such folder and no need for one.
    _own_root = Path(bpy.utils.extension_path_user(package)) if package.startswith("bl_ext.") else None
    _finish_removals()


def unregister() -> None:
    """Take our folder off sys.path again."""
    use_folder(None)


def own_folder(build: str | None = None) -> Path | None:
    """Where our installation for this Python is, or would be; or that of one of `pinned_wheels.builds`."""
    if _own_root is None:
        return None
    folders = {name: _own_root / f"{PYTHON_TAG}-{name}" for name in builds(this_machine())}
    found = (folder for folder in folders.values() if folder.is_dir() and not _removal_mark(folder).exists())
    return folders[build] if build else next(found, folders["cpu"])


def _other_python() -> str:
    """The Python that our installation is for where Blender came with another one since; else empty."""
    tags = [path.name.partition("-")[0] for path in _own_root.glob("py3*-*")] if _own_root else []
    others = [f"3.{tag.removeprefix('py3')}" for tag in tags if tag != PYTHON_TAG]
    return "" if is_installed() or not others else others[0]


@cache
def came_with_extension() -> bool:
    """Whether this is the zip that brings the libraries along (`make zip-full`); Blender unpacks and removes them."""
    manifest = Path(__file__).resolve().parents[1] / "blender_manifest.toml"
    return "wheels" in tomllib.loads(manifest.read_text(encoding="utf-8"))


def is_installed() -> bool:
    """Whether the libraries were installed by us."""
    folder = own_folder()
    return folder is not None and folder.is_dir() and not _removal_mark(folder).exists()


def use_folder(chosen: str | None) -> None:
    """Put a folder at the end of sys.path: the user's own, or our installation when that is ""; None takes it off."""
    global _on_path
    path = sys.path  # noqa: TID251 - the one place that edits it, see above
    if _on_path is not None and str(_on_path) in path:
        path.remove(str(_on_path))
    _on_path = None
    if chosen:
        _on_path = Path(chosen)
    elif chosen is not None and is_installed():
        _on_path = own_folder()
    if _on_path is not None:
        path.append(str(_on_path))
    _will_not_load.clear()
    _not_in_blender.clear()
    look_again()


def search_path() -> list[str]:
    """Where Blender looks for modules; a process that is given these finds the same ones."""
    return [folder for folder in sys.path if folder]  # noqa: TID251 - as above


# ---- installing


def wheels_for(build: str) -> tuple[Wheel, ...]:
    """What a build brings to this machine."""
    return builds(this_machine())[build]


def download_size(wheels: Iterable[Wheel] = PINNED) -> float:
    """MB to download, roughly."""
    return sum(wheel.megabytes for wheel in wheels)


def install(folder: Path, wheel_folder: Path | None = None, progress: Callable = no_progress, wheels=PINNED) -> None:
    """Install `wheels` into `folder`, replacing what is there; blocking, for a worker thread.

    wheel_folder: take them from there and use no network (their hashes are then the user's business), together with the
    libraries of graphics cards that lie there beside a torch for CUDA or ROCm. A failed or cancelled installation
    (`progress` raises Cancelled) leaves everything as it was. Raises SprigError.
    """
    if wheel_folder is None:
        _refuse_without_build(wheels)
    making, previous = folder.with_suffix(".tmp"), folder.with_suffix(".old")
    progress(0.0, "Preparing")
    try:
        for leftover in (making, previous):
            if leftover.exists():
                shutil.rmtree(leftover)
        making.mkdir(parents=True)
        _install_into(making, wheel_folder, progress, wheels)
        progress(PIP_SHARE, "Trying the libraries")
        trial = [sys.executable, "-I", "-c", TRIAL, str(making), *(wheel.module for wheel in wheels if wheel.module)]
        status, output = child_process.run(trial, lambda _line: progress(PIP_SHARE, "Trying the libraries"))
        if status:
            note(output)
            raise SprigError(
                f"The libraries were installed but do not load here ({_last_line(output)}); nothing was kept. "
                "Update your system's runtime libraries, or choose a folder with a torch that works."
            )
        _put_in_place(making, folder, previous)
        _removal_mark(folder).unlink(missing_ok=True)
    except OSError as error:
        raise SprigError(
            f"The libraries cannot be written to {folder} ({error.strerror or error}); "
            "free some space or restart Blender, and install again."
        ) from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)


def _put_in_place(making: Path, folder: Path, previous: Path) -> None:
    """Rename a finished installation, keeping the old one until that has worked."""
    had_one = folder.exists()
    if had_one:
        folder.rename(previous)
    try:
        making.rename(folder)
    except OSError:
        if had_one:
            previous.rename(folder)
        raise


def _refuse_without_build(wheels) -> None:
    machine = this_machine()
    missing = [wheel.project for wheel in wheels if wheel.hash_for(machine) is None]
    if missing:
        raise SprigError(
            f"SPRig knows no tested build of {' and '.join(missing)} for {machine}; install from a folder of wheels, "
            "or name a folder that has them, in the preferences."
        )


def _install_into(target: Path, wheel_folder: Path | None, progress: Callable, wheels) -> None:
    """Let pip unpack the pinned wheels into an empty folder, with as much progress as this pip can report."""
    pip, pip_version = _find_pip()
    with tempfile.TemporaryDirectory(prefix="sprig-install-") as scratch:
        pins = Path(scratch) / "requirements.txt"
        text = requirements(wheels, this_machine(), hashed=wheel_folder is None)
        pins.write_text(text + _for_graphics_cards(wheel_folder), encoding="utf-8")
        command = [sys.executable, "-I", *pip, "install", "--requirement", str(pins), "--target", str(target)]
        command += ["--no-deps", "--only-binary=:all:", "--no-input", "--no-compile", "--disable-pip-version-check"]
        if wheel_folder is None:
            command += ["--no-cache-dir", "--require-hashes"]
            for index in indexes(wheels, this_machine()):
                command += ["--extra-index-url", index]
        else:
            # Only from there: whatever pip's own settings add is left out (PIP_CONFIG_FILE below does the files).
            command += ["--isolated", "--no-index", "--find-links", str(wheel_folder)]
        command += ["--progress-bar", "raw" if pip_version >= RAW_PROGRESS_PIP else "off"]
        more = {"PIP_CONFIG_FILE": os.devnull} if wheel_folder else {}
        status, output = child_process.run(command, _PipProgress(wheels, progress), more)
    if status:
        note(output)
        complaints = re.findall(r"^ERROR: (.+)", output, flags=re.MULTILINE)
        reason = complaints[0] if complaints else _last_line(output)
        where = f"from {wheel_folder}" if wheel_folder else "from the network"
        raise SprigError(
            f"The libraries could not be installed {where} ({reason.rstrip('.')}); nothing was kept. "
            "Check the connection and the free space, or use a folder of wheels."
        )


def _for_graphics_cards(wheel_folder: Path | None) -> str:
    """What a torch for CUDA or ROCm brings besides the pinned projects, as further lines for pip."""
    names = sorted(path.name for path in wheel_folder.glob("*.whl")) if wheel_folder else []
    return "".join(f"{'=='.join(name.split('-')[:2])}\n" for name in names if name.startswith(GRAPHICS))


def _find_pip() -> tuple[list[str], tuple[int, ...]]:
    """How to start pip in Blender's Python, and its version: the module, or the wheel that ensurepip carries."""
    if importlib.util.find_spec("pip"):
        return ["-m", "pip"], _numbers(importlib.metadata.version("pip"))
    spec = importlib.util.find_spec("ensurepip")
    bundled = sorted(Path(spec.origin).parent.glob("_bundled/pip-*.whl")) if spec else []
    if not bundled:
        raise SprigError(
            "This Blender's Python has no pip; install pip for it, or name a folder with torch in the preferences."
        )
    return [str(bundled[-1] / "pip")], _numbers(bundled[-1].name)  # runs from the wheel; nothing is installed


def _numbers(version: str) -> tuple[int, ...]:
    """The first two numbers of a version: (2, 13) of 2.13.0+cpu."""
    return tuple(int(number) for number in re.findall(r"\d+", version)[:2])


class _PipProgress:
    """Turns pip's lines into progress by the megabytes of each project; called now and then without a line, too."""

    def __init__(self, wheels, progress: Callable):
        self._sizes = {wheel.project.lower(): wheel.megabytes for wheel in wheels}
        self._total = sum(self._sizes.values())
        self._done, self._size, self._part = 0.0, 0.0, 0.0  # MB finished, MB of the current project, fraction of it
        self._text = "Looking for the libraries"
        self._progress = progress

    def __call__(self, line: str) -> None:
        # The network's wheels are "Collecting torch==2.13.0 (…)", a folder's "Processing …/torch-2.13.0-….whl (…)".
        if found := re.match(r"Collecting ([\w.-]+?)==|Processing .*?([^/\\-]+)-[^/\\]+\.whl", line):
            name = found.group(1) or found.group(2)
            self._done += self._size
            self._size, self._part = self._sizes.get(name.lower(), 0.0), 0.0
            self._text = f"Fetching {name}"
        elif found := re.match(r"Progress (\d+) of (\d+)", line):
            self._part = int(found.group(1)) / max(1, int(found.group(2)))
        elif line.startswith("Installing collected packages"):
            self._done, self._size = self._total, 0.0
            self._text = "Unpacking the libraries"
        fraction = (self._done + self._size * self._part) / self._total
        self._progress(PIP_SHARE * min(fraction, 1.0), self._text)


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0] or "no reason given"


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no reason given"


# ---- removing


def _removal_mark(folder: Path) -> Path:
    """An empty file that says: remove this folder as soon as nothing uses it."""
    return folder.with_suffix(".remove")


def uninstall() -> bool:
    """Remove our installation; False when it is in use (Windows) and will go at the next start."""
    folder = own_folder()
    if folder is None or not folder.is_dir():
        raise SprigError("SPRig has installed no libraries here, so there is nothing to remove.")
    _removal_mark(folder).touch()
    _finish_removals()
    return not folder.exists()


def keep_only(folder: Path) -> None:
    """Remove what was installed for this Python beside `folder`."""
    for build in builds(this_machine()):
        other = own_folder(build)
        if other != folder and other.is_dir():
            _removal_mark(other).touch()
    _finish_removals()


def _finish_removals() -> None:
    """Remove what is marked, as far as the system lets us; the rest stays marked."""
    for mark in _own_root.glob("*.remove") if _own_root else ():
        folder = mark.with_suffix("")
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            mark.unlink()
