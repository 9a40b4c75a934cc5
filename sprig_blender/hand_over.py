"""Handing a rig over: look at it beside its source, check and export it for game engines, or take it away again.

Comparing changes nothing but what can be seen: the eye icons, and that the rig's own meshes are drawn as wires where
both are shown. So it is the scene that remembers the view, through saving and undo, and renders always show the rig.
"""

from __future__ import annotations

from pathlib import Path

import bpy

from ..backend.errors import SprigError
from .export import ENGINES, export
from .export_check import export_findings
from .write_armature import MARK, in_view_layer, read_result, remove_result, result_of, select

VIEWS = {"RIG": "Rig", "SOURCE": "Source", "BOTH": "Both"}  # in the order in which they follow each other


def chosen_result(context) -> bpy.types.Collection | None:
    """The result of ours that the active object belongs to, or else a selected one."""
    active = context.view_layer.objects.active
    for thing in [active] * (active is not None) + list(context.selected_objects):
        result = result_of(thing)
        if result is not None:
            return result
    return None


def armature_of(result) -> bpy.types.Object | None:
    """The armature of a result; None when it is gone."""
    return result[MARK]["objects"][0]


def view_of(context, result) -> str:
    """Which of VIEWS is shown."""
    sources, skins = _compared(context, result)
    if not any(not source.hide_get() for source in sources):
        return "RIG"
    return "BOTH" if any(not skin.hide_get() for skin in skins) else "SOURCE"


def compare(context, result, view: str | None = None) -> str:
    """Show one of VIEWS, or the next one, and return a sentence. SprigError when one side is gone or cannot be seen."""
    sources, skins = _compared(context, result)
    for things, what in (
        (sources, f"What {result.name!r} was made from is"),
        (skins, f"The mesh of {result.name!r} is"),
    ):
        if not things:
            raise SprigError(f"{what} not in this view layer; undo its deletion, or show its collection.")
    if view is None:
        order = list(VIEWS)
        view = order[(order.index(view_of(context, result)) + 1) % len(order)]
    before = {thing: thing.hide_get() for thing in (*sources, *skins)}
    shown = {"RIG": skins, "SOURCE": sources, "BOTH": [*sources, *skins]}[view]
    for thing in before:
        thing.hide_set(thing not in shown)
    unseen = [thing.name for thing in shown if not thing.visible_get()]
    if unseen:
        for thing, hidden in before.items():
            thing.hide_set(hidden)
        raise SprigError(
            f"{', '.join(unseen)} cannot be shown, since it or its collection is disabled; enable it in the Outliner."
        )
    for skin in skins:
        if view == "BOTH" and skin.display_type == "TEXTURED":
            skin.display_type = "WIRE"
        elif view != "BOTH" and skin.display_type == "WIRE":
            skin.display_type = "TEXTURED"
    return {"RIG": "The rig", "SOURCE": "The source", "BOTH": "The source, with the rig as wires"}[view] + " is shown"


def clean_up(context, result) -> str:
    """Take away all that was made for a rig, show and select what it was made from; returns a sentence."""
    name = result.name
    sources = [source for source in result[MARK]["sources"] if source is not None and in_view_layer(context, source)]
    remove_result(context, result)
    select(context, sources, sources[0] if sources else None)
    shown = f"; {', '.join(source.name for source in sources)} is shown again" if sources else ""
    return f"{name} removed{shown}"


def check(context, result) -> list[str]:
    """What game engines would stumble over; kept on the armature for the panel. SprigError when too much is gone."""
    written = read_result(context, result)
    findings = export_findings(written.armature, written.meshes, context.scene, result[MARK].get("fps"))
    written.armature.sprig.findings = "\n".join(findings)
    written.armature.sprig.checked = True
    return findings


def export_game(context, result, path, engine: str) -> str:
    """Write a rig for one of ENGINES and return a sentence; SprigError when that is not possible."""
    written = read_result(context, result)
    export(path, context, written, engine=ENGINES[engine])
    return f"{written.armature.name} exported for {ENGINES[engine].title} to {path}"


def export_path(result, engine: str) -> Path:
    """Where a rig is exported to unless the user says otherwise: beside the .blend, called like the armature."""
    armature = armature_of(result)
    name = bpy.path.clean_name((armature or result).name)
    return with_suffix(Path(bpy.data.filepath).parent / name, engine)


def with_suffix(path: Path, engine: str) -> Path:
    """The path with the suffix of the engine's format instead of another engine's."""
    known = {one.suffix for one in ENGINES.values()}
    name = path.stem if path.suffix.lower() in known else path.name
    return path.with_name(name + ENGINES[engine].suffix)


def _compared(context, result) -> tuple[list, list]:
    """The sources of a result and its meshes, as far as they are in the view layer."""
    _, *skins = result[MARK]["objects"]
    return tuple(
        [thing for thing in things if thing is not None and in_view_layer(context, thing)]
        for things in (result[MARK]["sources"], skins)
    )
