"""Presets: what the settings of the panel are for a purpose. Ours lie in the folder `presets`, the user's in Blender's.

A preset says everything about how a rig is made, and nothing about the sequence at hand (frames, rest pose, files, an
armature of the user's) or how a preview is drawn. As everywhere in Blender its file is a script; choosing one is undone
in one step.
"""

from __future__ import annotations

from pathlib import Path

import bpy
from bl_operators.presets import AddPresetBase
from bl_ui.utils import PresetPanel
from bpy.props import BoolProperty, StringProperty
from bpy.types import Operator, Panel

FOLDER = "sprig"  # below `presets`, of ours and of Blender's
SETTINGS = (
    "skeleton",
    "candidates",
    "temperature",
    "joints_mode",
    "joints",
    "tolerance",
    "names",
    "influences",
    "rest_correction",
    "stretch",
    "corrective",
    "root_motion",
    "finetune_epochs",
)


class SPRIG_PT_presets(PresetPanel, Panel):
    bl_idname = "SPRIG_PT_presets"
    bl_label = "SPRig Presets"
    preset_subdir = FOLDER
    preset_operator = "sprig.load_preset"
    preset_add_operator = "sprig.add_preset"


class SPRIG_OT_load_preset(Operator):
    """Take the settings of this preset; frames, rest pose and files stay as they are"""

    bl_idname = "sprig.load_preset"
    bl_label = "Load Preset"
    bl_options = {"INTERNAL", "UNDO"}

    filepath: StringProperty(
        name="File", description="The file of the preset", subtype="FILE_PATH", options={"SKIP_SAVE"}
    )
    menu_idname: StringProperty(name="Menu", description="The menu that it was chosen in", options={"SKIP_SAVE"})

    def execute(self, _context):
        return bpy.ops.script.execute_preset(filepath=self.filepath, menu_idname=SPRIG_PT_presets.bl_idname)


class SPRIG_OT_add_preset(AddPresetBase, Operator):
    """Keep the settings under a name, or remove a preset of your own"""

    bl_idname = "sprig.add_preset"
    bl_label = "Add Preset"
    preset_menu = SPRIG_PT_presets.bl_idname
    preset_subdir = FOLDER
    preset_defines = ["settings = bpy.context.scene.sprig"]
    preset_values = [f"settings.{name}" for name in SETTINGS]

    remove_name: BoolProperty(
        name="Remove", description="Remove the preset of this name", options={"HIDDEN", "SKIP_SAVE"}
    )
    remove_active: BoolProperty(
        name="Remove Active", description="Remove the preset that was chosen last", options={"HIDDEN", "SKIP_SAVE"}
    )


CLASSES = (SPRIG_OT_load_preset, SPRIG_OT_add_preset, SPRIG_PT_presets)


def register() -> None:
    bpy.utils.register_preset_path(str(Path(__file__).parent))


def unregister() -> None:
    bpy.utils.unregister_preset_path(str(Path(__file__).parent))
