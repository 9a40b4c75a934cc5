"""What the buttons would work on, and why they cannot: the panel's status line, and the operators' polls.

Blender asks for this at every redraw and must not be kept waiting, so nothing is evaluated here, and what has to be
looked for (does anything move, is the cache's file there) is kept until Blender reports a change. Not every change is
reported, that of a file never; hence it is looked for again after a moment in any case.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import bpy
from bpy.app.handlers import persistent
from bpy.app.translations import pgettext_iface as iface_

from ..backend.errors import SprigError
from . import auto_rig, dependencies, jobs
from .read_sequence import check_readable
from .what_moves import kind_of_motion

LOOK_AGAIN = 2.0  # seconds


@dataclass(frozen=True)
class Found:
    """The meshes that would be rigged: what moves them, in words; problem: a sentence, when one cannot be read."""

    name: str
    kinds: tuple[str, ...]
    meshes: int
    vertices: int
    problem: str
    looked: float = field(default_factory=time.monotonic)


_kept: dict[tuple, Found] = {}  # at most one, under the selection that it belongs to


def found(context) -> Found | None:
    """What is selected, None where that is no mesh."""
    meshes = auto_rig.chosen_meshes(context)
    if not meshes:
        return None
    selection = (context.mode, *((mesh.session_uid, mesh.name) for mesh in meshes))
    known = _kept.get(selection)
    if known is None or time.monotonic() - known.looked > LOOK_AGAIN:
        _kept.clear()
        _kept[selection] = known = _look(meshes)
    return known


def _look(meshes) -> Found:
    problem = ""
    for mesh in meshes:
        try:
            check_readable(mesh)
        except SprigError as error:
            problem = str(error)
            break
    kinds = dict.fromkeys(filter(None, map(kind_of_motion, meshes)))  # each once, in order
    name = meshes[0].name if len(meshes) == 1 else iface_("{:d} meshes").format(len(meshes))
    return Found(name, tuple(kinds), len(meshes), sum(len(mesh.data.vertices) for mesh in meshes), problem)


def in_words(found: Found, scene: bpy.types.Scene) -> str:
    """Such as: Alembic cache, 1 mesh, 2,146 vertices, frames 1–88."""
    kinds = " + ".join(map(iface_, found.kinds)) or iface_("Not animated")
    meshes = iface_("1 mesh") if found.meshes == 1 else iface_("{:d} meshes").format(found.meshes)
    words = [kinds, meshes, iface_("{:,} vertices").format(found.vertices)]
    try:
        numbers = auto_rig.frame_numbers(scene)
    except SprigError:
        return ", ".join(words)
    words.append(iface_("frames {:d}–{:d}").format(numbers[0], numbers[-1]))
    if numbers.step > 1:
        words.append(iface_("every {:d}").format(numbers.step))
    return ", ".join(words)


def busy() -> str:
    """That something is running."""
    return iface_("{} is running; wait for it or cancel it").format(iface_(jobs.running().title))


def obstacle(context) -> str:
    """Why nothing can be done with the selected meshes now, in words for the user; empty when it can."""
    if jobs.running():
        return busy()
    if not dependencies.ready():
        return dependencies.what_to_do()
    if context.mode != "OBJECT":
        return iface_("Switch to Object Mode first")
    selected = found(context)
    if selected is None:
        return iface_("Select one or several animated meshes")
    if selected.problem:
        return selected.problem
    try:
        auto_rig.frame_numbers(context.scene)
    except SprigError as error:
        return str(error)
    return ""


def obstacle_to_rigging(context) -> str:
    """As `obstacle`, or that nothing moves; the networks alone rig that as well."""
    words = obstacle(context)
    if not words and not found(context).kinds and context.scene.sprig.skeleton != "learned":
        words = iface_("{} neither moves nor changes shape with time; select a mesh that is animated.").format(
            found(context).name
        )
    return words


@persistent
def _something_changed(*_arguments) -> None:
    _kept.clear()


def register() -> None:
    for handlers in (bpy.app.handlers.depsgraph_update_post, bpy.app.handlers.load_post):
        handlers.append(_something_changed)


def unregister() -> None:
    for handlers in (bpy.app.handlers.load_post, bpy.app.handlers.depsgraph_update_post):
        handlers.remove(_something_changed)
    _kept.clear()
