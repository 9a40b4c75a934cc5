"""Long work that keeps Blender usable: a worker thread, and operators that advance by small steps.

A long operator is written once, as a generator of `Step`s. `invoke` (the button) takes one step per timer event, so
the window stays alive and Esc or the panel's Cancel stops it; `execute` (scripts, background mode) takes them all.
Stopping works the same way everywhere: an event is set, and the next step or progress call raises `Cancelled`.

The worker thread never touches bpy, not even to read; it talks through a queue only.

Undo exchanges what an exclusive step holds on to. Blender keeps it back while an operator runs that can be undone
itself, and the keys of the operator's own window are swallowed; where it comes through all the same (another window),
the work ends before it happens.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Any, NamedTuple

import bpy
from bpy.app.handlers import persistent
from bpy.app.translations import pgettext_iface as iface_

from ..backend.errors import Cancelled, SprigError
from . import problems

TICK = 0.05  # seconds between two timer events: quick enough for a smooth bar, slow enough to leave Blender alone
PATIENCE = 0.1  # seconds that a synchronous run waits for the worker at a time, so that Ctrl+C stays prompt
ENOUGH_SECONDS, ENOUGH_PROGRESS = 3.0, 0.1  # from here on the time that is left can be told from the progress
INSTALL = "Install"  # the title of installing the libraries, whose progress their box shows as well
MOUSE = {"MOUSEMOVE", "INBETWEEN_MOUSEMOVE", "LEFTMOUSE", "WHEELUPMOUSE", "WHEELDOWNMOUSE", "TRACKPADPAN"}


class Step(NamedTuple):
    """What a generator of steps tells its driver: progress in [0, 1], what it does, and who owns the scene.

    exclusive: the scene is changed for the moment (frame, modifiers), so the user must not work in it until it is back.
    """

    fraction: float
    text: str
    exclusive: bool = False


Steps = Generator[Step, None, str]  # returns the sentence for the user


class Job:
    """One function in a thread of its own: `work(progress)`, where progress raises Cancelled once `cancel` is set.

    As a context manager it starts the thread, and on leaving asks it to stop and waits: no thread outlives its user.
    """

    def __init__(self, work: Callable[[Callable[[float, str], None]], Any], cancel: threading.Event):
        self.fraction, self.text = 0.0, ""
        self._work = work
        self._cancel = cancel
        self._messages: queue.SimpleQueue[tuple[float, str]] = queue.SimpleQueue()
        self._result: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="SPRig", daemon=True)

    def __enter__(self) -> Job:
        self._thread.start()
        return self

    def __exit__(self, *_exception) -> None:
        if self._thread.is_alive():
            self._cancel.set()
            self._thread.join()

    def _run(self) -> None:
        try:
            self._result = self._work(self._progress)
        except BaseException as error:  # handed on by result(), with its traceback
            self._error = error

    def _progress(self, fraction: float, text: str) -> None:
        if self._cancel.is_set():
            raise Cancelled
        self._messages.put((fraction, text))

    def wait(self, seconds: float) -> bool:
        """Wait up to `seconds` for the end, take in what the worker said, and tell whether it is still running."""
        self._thread.join(seconds)
        while not self._messages.empty():
            self.fraction, self.text = self._messages.get()
        return self._thread.is_alive()

    def result(self) -> Any:
        """What `work` returned; raises what it raised. Only after wait() said that it ended."""
        assert not self._thread.is_alive(), "the job is still running"
        if self._error is not None:
            raise self._error
        return self._result


class Activity:
    """What runs at the moment, for the panel and the status bar."""

    def __init__(self, title: str):
        self.title = title
        self.step = Step(0.0, "Starting")
        self.cancel = threading.Event()
        self.abandon: Callable[[], None] | None = None  # ends it at once; None while it runs synchronously
        self._began = time.monotonic()
        self._ends = 0.0  # when it ends if it goes on like this; 0 while that cannot be told

    @property
    def text(self) -> str:
        """What it is at, in the user's language."""
        return iface_("Stopping" if self.cancel.is_set() else self.step.text)

    @property
    def seconds_left(self) -> float | None:
        """How long it takes still, if it goes on as fast as so far; None while nobody knows, and once that is over."""
        left = self._ends - time.monotonic()
        return left if self._ends and left > 0 and not self.cancel.is_set() else None

    def go_on(self, step: Step) -> None:
        """Take in the next step."""
        taken = time.monotonic() - self._began
        if step.fraction > self.step.fraction >= ENOUGH_PROGRESS and taken >= ENOUGH_SECONDS:
            self._ends = self._began + taken / step.fraction
        self.step = step


_running: list[Activity] = []  # at most one: the activity that owns the panel


def running() -> Activity | None:
    """The activity in progress, if there is one."""
    return _running[0] if _running else None


def time_left(activity: Activity) -> str:
    """How long it takes still, in words and rounded up; empty while nobody knows."""
    if activity.seconds_left is None:
        return ""
    seconds = math.ceil(activity.seconds_left)
    if seconds < 10:
        return iface_("a few seconds left")
    if seconds < 90:
        return iface_("about {:d} s left").format(10 * math.ceil(seconds / 10))
    return iface_("about {:d} min left").format(math.ceil(seconds / 60))


class LongOperator:
    """Mixin of operators that run a generator of steps; `title` names the work, `steps` does it."""

    title = ""

    def steps(self, context, cancel: threading.Event, patience: float) -> Steps:
        """Do the work step by step and return the sentence that tells the user how it went.

        cancel: raise Cancelled soon after it is set; patience: seconds a step may wait for a worker thread.
        """

    # -- synchronous: scripts, background mode, Repeat Last ------------------------------------------------------------
    def execute(self, context):
        if running():
            self.report({"ERROR"}, f"{running().title} is running; wait for it or cancel it.")
            return {"CANCELLED"}
        activity = self._begin()
        manager = context.window_manager
        manager.progress_begin(0, 100)
        try:
            with closing(self.steps(context, activity.cancel, PATIENCE)) as steps:
                while (outcome := self._advance(steps, activity)) is None:
                    manager.progress_update(100 * activity.step.fraction)
        finally:
            manager.progress_end()
            self._end(activity)
        return outcome

    # -- in the window ------------------------------------------------------------------------------------------------
    def invoke(self, context, _event):
        if bpy.app.background or running():
            return self.execute(context)
        self._activity = self._begin()
        self._activity.abandon = self._abandon
        self._shown = ""
        self._steps = self.steps(context, self._activity.cancel, 0.0)
        self._timer = context.window_manager.event_timer_add(TICK, window=context.window)
        context.window_manager.modal_handler_add(self)
        self._show()
        return {"RUNNING_MODAL"}

    def modal(self, context, event):
        activity = self._activity
        if activity not in _running:  # it was abandoned
            return {"CANCELLED", "PASS_THROUGH"}
        if event.type == "ESC" and event.value == "PRESS":
            activity.cancel.set()
            self._show()
            return {"RUNNING_MODAL"}
        if event.type != "TIMER":
            if activity.step.exclusive and not (event.type in MOUSE and _over_sidebar(event)):
                return {"RUNNING_MODAL"}  # swallowed
            return {"PASS_THROUGH"}
        outcome = self._advance(self._steps, activity)
        if outcome is None:
            self._show()
            return {"PASS_THROUGH"}
        self._leave()
        return outcome

    def cancel(self, _context):
        """Blender ends the operator itself: another file is opened, or the window closes."""
        self._abandon()

    # -- shared -------------------------------------------------------------------------------------------------------
    def _begin(self) -> Activity:
        problems.forget()
        activity = Activity(self.title)
        _running.append(activity)
        return activity

    def _end(self, activity: Activity) -> None:
        _running.remove(activity)
        redraw_sidebars()

    def _advance(self, steps: Steps, activity: Activity) -> set[str] | None:
        """Take one step; None, or the operator's outcome when that was the last one."""
        try:
            activity.go_on(next(steps))
            return None
        except StopIteration as finished:
            self.report({"INFO"}, finished.value)
            return {"FINISHED"}
        except Cancelled:
            self.report({"INFO"}, f"{self.title} cancelled; nothing was changed.")
        except SprigError as error:
            self.report({"ERROR"}, problems.expected(error))
        except Exception as error:  # a bug of ours: a sentence for the user, the rest into console, log and report
            self.report({"ERROR"}, problems.unexpected(self.title, error))
        return {"CANCELLED"}

    def _show(self) -> None:
        """Draw progress in the sidebar and the status bar, when there is something new to see."""
        activity = self._activity
        at = f"{iface_(activity.title)}: {100 * activity.step.fraction:.0f} %"
        status = "     ".join(filter(None, (at, activity.text, time_left(activity), iface_("Esc: Cancel"))))
        if status != self._shown:
            self._shown = status
            bpy.context.workspace.status_text_set(status)
            redraw_sidebars()

    def _abandon(self) -> None:
        if self._activity is None:  # it has ended already
            return
        self._activity.cancel.set()
        self._steps.close()  # waits for the worker, puts the scene back
        self._leave()

    def _leave(self) -> None:
        bpy.context.window_manager.event_timer_remove(self._timer)
        for workspace in bpy.data.workspaces:  # the user may have gone through several
            workspace.status_text_set(None)
        self._end(self._activity)
        self._activity = self._steps = self._timer = None  # Blender keeps the last operators that ran


def _over_sidebar(event) -> bool:
    """Whether the mouse is over a 3D viewport's sidebar, where the panel's Cancel button is."""
    return any(
        region.x <= event.mouse_x < region.x + region.width and region.y <= event.mouse_y < region.y + region.height
        for region in _sidebars()
    )


def _sidebars():
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                yield from (region for region in area.regions if region.type == "UI")


def redraw_sidebars() -> None:
    """Ask Blender to draw the 3D viewports' sidebars and the preferences again; the views stay as they are."""
    for region in _sidebars():
        region.tag_redraw()
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "PREFERENCES":
                area.tag_redraw()


@persistent
def _before_undo(*_arguments) -> None:
    activity = running()
    if activity and activity.abandon and activity.step.exclusive:
        activity.abandon()
        problems.expected(SprigError(f"{activity.title} ended because of an undo; run it again."))


def register() -> None:
    bpy.app.handlers.undo_pre.append(_before_undo)
    bpy.app.handlers.redo_pre.append(_before_undo)


def unregister() -> None:
    """End what runs in a window, too; the add-on is being disabled."""
    activity = running()
    if activity and activity.abandon:
        activity.abandon()
    bpy.app.handlers.redo_pre.remove(_before_undo)
    bpy.app.handlers.undo_pre.remove(_before_undo)
