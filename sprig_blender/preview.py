"""*Preview*: a rig that is drawn over the scene and follows the timeline, but is written only when it is applied.

At most one preview exists. It holds numbers and names, no references to anything of Blender's, so undo and deleted
objects do it no harm; whether the objects still fit it is seen when it is applied. Opening a file ends it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import Any

import bpy
from bpy.app.handlers import persistent

from ..backend.errors import Cancelled
from . import auto_rig, backend_work, call_backend, problems
from .jobs import Job, Step, Steps
from .overlay import Overlay


@dataclass(eq=False)
class Preview:
    """The rig, what draws it, and Blender's handle of the drawing; broken: drawing has failed.

    former: what was previewed before joints were adjusted; of_result: it was no preview then, but a rig that was
    applied; suggestions: what could be adjusted (see backend/adjust.py).
    """

    computed: auto_rig.Computed
    overlay: Overlay
    handle: Any
    former: auto_rig.Computed | None = None
    of_result: bool = False
    suggestions: list = field(default_factory=list)
    broken: bool = False

    @property
    def name(self) -> str:
        """What is previewed, in a few words."""
        sources = self.computed.identities
        return sources[0].name if len(sources) == 1 else f"{len(sources)} meshes"


_current: list[Preview] = []  # at most one


def current() -> Preview | None:
    """The preview, if there is one."""
    return _current[0] if _current else None


def steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Compute what Auto-Rig would write, and show it instead (see jobs.LongOperator.steps)."""
    computed = yield from auto_rig.compute(context, cancel, patience)
    if cancel.is_set():
        raise Cancelled
    show(computed)
    rig = computed.rig
    return f"{current().name}: {len(rig.skeleton)} joints, RMSE {rig.rmse:.3f} %; Apply writes the rig"


def apply_steps(context, cancel: threading.Event, _patience: float) -> Steps:
    """Write the previewed rig as Auto-Rig does; the preview ends once that has worked."""
    sentence = yield from auto_rig.write(context, current().computed, cancel, since="after it was previewed")
    discard()
    return sentence


def raw_steps(context, cancel: threading.Event, patience: float) -> Steps:
    """Ask the skeleton network about every frame by itself, and draw what it says beside the previewed rig."""
    from ..backend.raw_network import RawSkeletons

    shown = current()
    computed, choices = shown.computed, auto_rig.rig_choices(context)
    work = call_backend.work(context, backend_work.raw_skeletons, computed.sequence, computed.rig, choices)
    with Job(work, cancel) as job:
        while job.wait(patience):
            yield Step(job.fraction, job.text)
    raw = RawSkeletons(*job.result())
    if current() is None or current().computed.sequence is not computed.sequence:
        raise Cancelled
    current().overlay.raw = raw
    context.scene.sprig.preview_raw = True
    _redraw_views()
    shifts = f"{raw.raw_shift:.2f} % a frame, those of the rig by {raw.rig_shift:.2f} %"
    return f"Asked frame by frame, the network's joints move by {shifts}"


def show(
    computed: auto_rig.Computed, former: auto_rig.Computed | None = None, raw=None, of_result: bool = False
) -> None:
    """Draw this rig in all 3D viewports, in place of an earlier one; see Preview, and Overlay for raw."""
    overlay = Overlay(computed.rig, computed.sequence, raw)
    discard()
    handle = bpy.types.SpaceView3D.draw_handler_add(_draw, (), "WINDOW", "POST_VIEW")
    _current.append(Preview(computed, overlay, handle, former, of_result))
    _redraw_views()


def discard() -> None:
    """End the preview and leave nothing of it."""
    if _current:
        ended = _current.pop()
        bpy.types.SpaceView3D.draw_handler_remove(ended.handle, "WINDOW")
        ended.overlay.clear()
        _redraw_views()


def _draw() -> None:
    """Draw into one viewport; what fails ends the preview, because Blender would only call again and again."""
    shown = current()
    if shown is None or shown.broken or bpy.context.scene.session_uid != shown.computed.scene_uid:
        return
    try:
        shown.overlay.draw(bpy.context)
    except Exception as error:
        shown.broken = True
        problems.unexpected("The preview", error)
        bpy.app.timers.register(discard)  # not while Blender goes through its handlers


def _redraw_views() -> None:
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                area.tag_redraw()


@persistent
def _before_opening(*_arguments) -> None:
    discard()


def register() -> None:
    bpy.app.handlers.load_pre.append(_before_opening)


def unregister() -> None:
    bpy.app.handlers.load_pre.remove(_before_opening)
    discard()
