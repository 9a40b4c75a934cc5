"""Pieces of layout that the panel and the preferences share."""

from __future__ import annotations

import blf
import bpy
from bpy.app.translations import pgettext_iface as iface_

from . import dependencies, jobs
from .dependencies import State

DEFAULT_FONT = 0  # the interface's
STATE_ICONS = {State.READY: "CHECKMARK", State.MISSING: "IMPORT", State.BROKEN: "ERROR"}
MARGIN = 95  # what tabs, panel, box and icon take of a region's width, in pixels at scale 1
BUTTON = 25  # the width of a button that has only an icon, and the gap before it


def draw_paragraph(layout, text: str, icon: str = "NONE", beside: int = 0) -> None:
    """A sentence, broken into lines since Blender would cut it off; `beside`: how many icon buttons are next to it."""
    column = layout.column(align=True)
    column.scale_y = 0.8
    for number, line in enumerate(_lines(text, bpy.context.region.width, MARGIN + BUTTON * beside)):
        column.label(text=line, icon=icon if number == 0 or icon == "NONE" else "BLANK1")


def _lines(text: str, width: int, margin: int) -> list[str]:
    """`text` broken between words so that no line is wider than `width` pixels less `margin` (at scale 1)."""
    preferences = bpy.context.preferences
    scale = preferences.system.ui_scale
    blf.size(DEFAULT_FONT, preferences.ui_styles[0].widget.points * scale)
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and blf.dimensions(DEFAULT_FONT, longer)[0] > width - margin * scale:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def draw_progress(layout, activity: jobs.Activity) -> None:
    """The bar of what runs, what it is at, and the button that stops it."""
    row = layout.row(align=True)
    row.scale_y = 1.4
    row.progress(factor=activity.step.fraction, text=f"{iface_(activity.title)}  {100 * activity.step.fraction:.0f} %")
    row.operator("sprig.cancel", text="", icon="X")
    draw_paragraph(layout, activity.text)
    if left := jobs.time_left(activity):
        layout.label(text=left[0].upper() + left[1:], translate=False)


def draw_libraries(layout, build: str) -> None:
    """The state of every library, and the buttons that change it; `build` is what would be installed."""
    box, libraries, activity = layout.box(), dependencies.libraries(), jobs.running()
    installing = activity is not None and activity.title == jobs.INSTALL
    for library in libraries:
        row = box.split(factor=0.45)
        row.label(text=library.name, icon=STATE_ICONS[library.state])
        if library.state is State.READY:
            row.label(text=library.detail, translate=False)
        elif installing:
            row.label(text=f"{iface_('Installing')} {100 * activity.step.fraction:.0f} %", translate=False)
        else:
            row.label(text=f"{iface_(library.state.value)} {library.detail}", translate=False)
    if dependencies.has_failed():
        box.operator("sprig.copy_log", icon="COPYDOWN")
    if dependencies.came_with_extension():
        box.label(text="They came with SPRig")
        return
    broken = any(library.state is State.BROKEN for library in libraries)
    verb = ("Repair" if broken else "Reinstall") if dependencies.is_installed() else "Install"
    row = box.row(align=True)
    size = dependencies.download_size(dependencies.wheels_for(build))
    row.operator("sprig.install_backend", text=f"{iface_(verb)} ({size:.0f} MB)", icon="IMPORT")
    row.operator("sprig.install_backend_from_folder", text="", icon="FILE_FOLDER")
    if dependencies.is_installed():
        row.operator("sprig.uninstall_backend", text="", icon="TRASH")
