"""What a command-line run shows, hides and obeys: progress, captured output, Ctrl-C, and files that appear whole.

Blender's importers and exporters print at will, from Python and from C. While a command works, everything that is
printed to the process's standard output and error is kept from the terminal; only what the command itself says reaches
it, so that a failure is one line on standard error and `-q` is silent.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import os
import re
import signal
import stat
import sys
import threading
import uuid
from pathlib import Path

from ..backend.errors import Cancelled, SprigError

ANYONE_MAY_WRITE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH
BAR_FORMAT = "{desc:<34.34} {percentage:3.0f}% |{bar:30}| {elapsed}"
COUNTER = re.compile(r"[\s\d/.,%()]+$")  # texts that differ in a counter at their end belong to one stage


class Interrupts:
    """Turns SIGINT into KeyboardInterrupt, once, and remembers it.

    Remembering matters: code in between may swallow the exception or turn it into another one (an import in C, an
    exporter that Blender runs). Whatever arrives after an interrupt is therefore read as "cancelled", and later
    interrupts are ignored so that they cannot disturb the tidying up.
    """

    def __init__(self):
        self.happened = False
        # Python delivers signals to the main thread only, and only there handlers can be set.
        self._listens = threading.current_thread() is threading.main_thread()

    def __enter__(self):
        if self._listens:
            self._previous = signal.signal(signal.SIGINT, self._interrupt)
        return self

    def __exit__(self, *exception):
        if self._listens:  # inside Blender the previous handler is C's own, which Python knows as None
            signal.signal(signal.SIGINT, signal.SIG_DFL if self._previous is None else self._previous)

    def _interrupt(self, number, frame):
        if not self.happened:
            self.happened = True
            raise KeyboardInterrupt

    def check(self):
        """Raise Cancelled when there was an interrupt that somebody swallowed."""
        if self.happened:
            raise Cancelled

    def ignore_from_now_on(self):
        """The results are about to appear under their names: too late to cancel."""
        self.check()
        if self._listens:
            signal.signal(signal.SIGINT, signal.SIG_IGN)


class Console:
    """The terminal of one command: `with Console(quiet, interrupts) as console` captures all other output."""

    def __init__(self, quiet: bool, interrupts: Interrupts):
        self.quiet = quiet
        self.interrupts = interrupts
        self._printed = io.StringIO()
        self._bar = None
        self._stage = None
        self._undo = contextlib.ExitStack()

    def __enter__(self):
        self._out = self._undo.enter_context(_kept_stream(sys.stdout, 1))
        # Nothing of this goes to a disk: when that is full, Blender aborts on a print that fails.
        nowhere = self._undo.enter_context(open(os.devnull, "wb"))
        for descriptor in (1, 2):
            self._undo.enter_context(_descriptor_to(descriptor, nowhere.fileno()))
        self._undo.enter_context(contextlib.redirect_stdout(self._printed))
        self._undo.enter_context(contextlib.redirect_stderr(self._printed))
        return self

    def __exit__(self, *exception):
        self._close_bar()
        self._undo.close()

    @property
    def printed(self) -> str:
        """What Python code printed meanwhile, for the log of a bug."""
        return self._printed.getvalue()

    def say(self, text: str = ""):
        """Print a line, unless quiet. A reader that went away (`| head`) silences the rest."""
        self._close_bar()
        self._write(text + "\n")

    def result(self, text: str):
        """Print what the user asked for, whether quiet or not."""
        self.quiet = False
        self.say(text)

    def progress(self, fraction: float, text: str):
        """Show progress: a bar with the stage's name on a terminal, a line per stage elsewhere. May raise Cancelled."""
        self.interrupts.check()
        if self.quiet:
            return
        stage = COUNTER.sub("", text)
        if self._out.isatty():
            if self._bar is None:
                from tqdm import tqdm

                self._bar = tqdm(total=1.0, file=self._out, leave=False, bar_format=BAR_FORMAT)
            self._bar.set_description_str(text, refresh=False)
            self._bar.n = min(max(fraction, self._bar.n), 1.0)
            self._bar.refresh()
        elif stage != self._stage:
            self._write(f"{text}\n")
        self._stage = stage

    def part(self, start: float, end: float):
        """A progress callback for work that takes the run from one fraction to another."""
        return lambda fraction, text: self.progress(start + (end - start) * fraction, text)

    def _close_bar(self):
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _write(self, text: str):
        if self.quiet:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except BrokenPipeError:
            self.quiet = True
            with open(os.devnull, "w") as nowhere:  # for what the stream still holds, which it writes when it is closed
                os.dup2(nowhere.fileno(), self._out.fileno())


@contextlib.contextmanager
def _kept_stream(stream, descriptor: int):
    """The stream as it is now, on a copy of its descriptor when that one is about to be redirected."""
    stream.flush()
    try:
        on_descriptor = stream.fileno() == descriptor
    except (AttributeError, OSError):  # not backed by a file: a notebook, a test
        on_descriptor = False
    if not on_descriptor:
        yield stream
        return
    with open(os.dup(descriptor), "w", encoding=stream.encoding, errors="replace") as kept:
        yield kept


@contextlib.contextmanager
def _descriptor_to(descriptor: int, target: int):
    """Let what is written to a file descriptor, from C as well, go to another one for a while."""
    _flush_c_streams()
    saved = os.dup(descriptor)
    os.dup2(target, descriptor)
    try:
        yield
    finally:
        _flush_c_streams()  # else C would print its buffer after the descriptor is back
        os.dup2(saved, descriptor)
        os.close(saved)


def _flush_c_streams():
    library = ctypes.CDLL("ucrtbase" if sys.platform == "win32" else None)
    library.fflush(None)


class PendingFiles:
    """Files that appear under their names together when all are written, or not at all.

    Each is written to a hidden name beside its own (renaming within a folder is atomic) and removed again unless
    `commit` was reached. The hidden file is made at once, so that an unwritable place is found before the work.
    """

    def __init__(self):
        self._pending: dict[Path, Path] = {}

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        for pending in self._pending.values():
            pending.unlink(missing_ok=True)
        if isinstance(error, SprigError):  # a writer knows the hidden names only; the user should read the real ones
            sentence = str(error)
            for final, pending in self._pending.items():
                sentence = sentence.replace(str(pending), str(final)).replace(pending.name, final.name)
            raise SprigError(sentence) from error

    def add(self, final: Path) -> Path:
        """The path to write to instead of `final`, with its suffix; SprigError when nothing can be written there."""
        try:
            if final.is_dir():
                raise SprigError(f"{final} is a folder; give the name of a file to write.")
            if not final.parent.is_dir():
                raise SprigError(f"The folder {final.parent} does not exist; make it or choose another place.")
            for place in (final.parent, final):
                # The superuser could write there all the same, but is asked not to.
                if place.exists() and not place.stat().st_mode & ANYONE_MAY_WRITE:
                    raise SprigError(f"{place} is read-only; choose another place or change its permissions.")
            pending = final.with_name(f".sprig-{uuid.uuid4().hex}{final.suffix}")
            pending.touch(exist_ok=False)
        except OSError as error:
            raise writing_error(error, final) from error
        self._pending[final] = pending
        return pending

    def commit(self):
        """Give all files their names, replacing what was there."""
        for final, pending in self._pending.items():
            try:
                os.replace(pending, final)
            except OSError as error:
                raise writing_error(error, final) from error


def writing_error(error: OSError, path) -> SprigError:
    """The sentence for what the system said while `path` was written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return SprigError(f"There is no space left to write {path}; free some or choose another folder.")
    reason = error.strerror or str(error)
    return SprigError(f"{path} cannot be written ({reason}); choose another place or change the permissions.")
