"""Translations: every entry belongs to something that the add-on says; nearly every label and tooltip has one.

The bpy wheel is built without languages; what a German Blender shows is looked at by the window tests.
"""

import ast
import re
from pathlib import Path

import bpy
import pytest

from sprig.sprig_blender.translations import LANGUAGES

CHECKOUT = Path(__file__).resolve().parents[2]
OWN_WORDS = {"", "bl_idname", "RNA", "SPRig", "RMSE", "Unity", "Unreal", "Mixamo", "Rigify", "CUDA", "Godot, glTF"}
DRAWN_ELSEWHERE = {"Name", "Menu", "File", "Files", "Folder", "Filter", "Check Existing", "Bone", "Kind", "Remove"}
COMPLETE = 0.9  # share of the labels and tooltips


def texts_in_code() -> set[str]:
    """Every text in the modules that have something to say, but for the translations themselves."""
    paths = [*(CHECKOUT / "sprig_blender").glob("*.py"), *(CHECKOUT / "backend").rglob("*.py")]
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in paths if path.name != "translations.py")
    nodes = (node for tree in trees for node in ast.walk(tree))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def operators() -> list:
    return [getattr(bpy.ops.sprig, name).get_rna_type() for name in dir(bpy.ops.sprig)]


def settings_labels(extension) -> tuple[set[str], set[str]]:
    """Labels and tooltips of the settings, the preferences and the choices among them."""
    preferences = bpy.context.preferences.addons[extension.__name__].preferences
    groups = [type(bpy.context.scene.sprig), type(preferences)]
    found = [group.bl_rna.properties[name] for group in groups for name in group.__annotations__]
    choices = [choice for setting in found if setting.type == "ENUM" for choice in setting.enum_items]
    return {one.name for one in found + choices}, {one.description for one in found + choices}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_entry_is_said_somewhere(extension, language):
    labels, tooltips = settings_labels(extension)
    buttons = {operator.name for operator in operators()}
    in_code = texts_in_code()
    said = in_code | labels | tooltips | {operator.description for operator in operators()}
    for context, text in LANGUAGES[language]:
        assert text in said, text
        if context == "Operator" and text not in buttons:  # a text of its own on a button
            assert text in in_code, text


@pytest.mark.parametrize("language", LANGUAGES)
def test_gaps_stay_the_same(language):
    for (_context, text), translated in LANGUAGES[language].items():
        assert translated and sorted(re.findall(r"{.*?}", text)) == sorted(re.findall(r"{.*?}", translated)), text
        assert text.endswith(".") == translated.endswith("."), text


@pytest.mark.parametrize("language", LANGUAGES)
def test_nearly_everything_is_translated(extension, language):
    wanted = {("*", label) for label in settings_labels(extension)[0] - OWN_WORDS - DRAWN_ELSEWHERE}
    wanted |= {(operator.translation_context, operator.name) for operator in operators()}
    panel = ast.parse((CHECKOUT / "sprig_blender" / "panel.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(panel) if isinstance(node, ast.Call)]
    sections = [call.args[2].value for call in calls if getattr(call.func, "id", "") == "_section"]
    assert len(sections) >= 8
    wanted |= {("*", section) for section in sections}
    wanted |= {("*", tooltip) for tooltip in settings_labels(extension)[1] if tooltip}
    wanted |= {("*", operator.description) for operator in operators() if operator.description}
    missing = wanted - set(LANGUAGES[language])
    assert len(missing) <= (1 - COMPLETE) * len(wanted), sorted(missing)
