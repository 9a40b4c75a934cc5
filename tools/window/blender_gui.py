"""Runs in Blender's window for tools/blender_window.py: plays a script, and offers it a few helpers.

The script is run once the window has been drawn; it can `import blender_gui as gui`. When it is done, and every hold()
has had its ready(), a last picture is taken and Blender ends; with status 1 after an exception or fail().
"""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import bpy

LOOK = 0.1  # seconds between looks at whether the script is done
SETTLE = 2.0  # seconds in which the window is drawn before the last picture
SIDEBAR = 5.0  # seconds after which a tab of the sidebar should be there

_holds, _failed = 0, False


def view3d():
    """The first 3D viewport: window, area, region, space."""
    for window in bpy.context.window_manager.windows:
        for area in window.screen.areas:
            if area.type == "VIEW_3D":
                region = next(region for region in area.regions if region.type == "WINDOW")
                return window, area, region, area.spaces.active
    raise RuntimeError("there is no 3D viewport")


def maximize() -> None:
    """Let the 3D viewport fill the window."""
    window, area, region, _space = view3d()
    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.screen.screen_full_area(use_hide_panels=False)


def sidebar(tab: str) -> None:
    """Open the viewport's sidebar on a tab; it is there some drawing later, and the last picture waits for it."""
    space = view3d()[3]
    space.show_region_ui = True
    hold()
    left = SIDEBAR

    def choose():
        nonlocal left
        area = view3d()[1]
        area.tag_redraw()
        region = next(region for region in area.regions if region.type == "UI")
        try:
            region.active_panel_category = tab
        except TypeError:  # tabs are known once they were drawn
            left -= LOOK
            if left > 0:
                return LOOK
            fail(f"the sidebar has no tab {tab}")
        ready()
        return None

    bpy.app.timers.register(choose, first_interval=LOOK)


def hold() -> None:
    """The script goes on after its last line, until ready()."""
    global _holds
    _holds += 1


def ready() -> None:
    """What hold() waited for has come."""
    global _holds
    _holds -= 1


def fail(why: str) -> None:
    """End Blender with status 1 soon."""
    global _failed
    _failed = True
    print(f"blender_gui: {why}", file=sys.stderr, flush=True)


def shot(path: str | os.PathLike) -> None:
    """A picture of the display as it is now."""
    bpy.ops.wm.redraw_timer(type="DRAW_WIN_SWAP", iterations=1)
    subprocess.run(["import", "-window", "root", os.fspath(path)], check=True, timeout=60)


def _guarded(function: Callable) -> None:
    try:
        function()
    except BaseException as problem:
        if not isinstance(problem, SystemExit) or problem.code:
            traceback.print_exc()
            fail("the script failed")


def _end() -> None:
    if not _failed:
        _guarded(lambda: shot(os.environ["BLENDER_WINDOW_PICTURE"]))
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(int(_failed))  # Blender would ask about unsaved changes


def main() -> None:
    bpy.context.preferences.view.show_splash = False
    settled = 0.0

    def play():
        _guarded(lambda: runpy.run_path(os.environ["BLENDER_WINDOW_SCRIPT"], run_name="__main__"))
        bpy.app.timers.register(look, first_interval=LOOK, persistent=True)

    def look():
        nonlocal settled
        settled = 0.0 if _holds > 0 else settled + LOOK
        if _failed or settled > SETTLE:
            _end()
        for window in bpy.context.window_manager.windows:
            for area in window.screen.areas if settled == LOOK else ():
                area.tag_redraw()
        return LOOK

    bpy.app.timers.register(play, first_interval=0.5, persistent=True)  # the window is drawn first


if __name__ == "__main__":  # Blender runs this file; the script shall import the very same module
    sys.path.insert(0, str(Path(__file__).parent))
    import blender_gui

    blender_gui.main()
