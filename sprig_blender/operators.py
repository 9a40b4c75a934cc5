"""The operators: thin doors to auto_rig.py and dependencies.py, and the small buttons around them."""

import os
from pathlib import Path

import bpy
from bpy.props import BoolProperty, CollectionProperty, EnumProperty, IntProperty, StringProperty
from bpy.types import Operator, OperatorFileListElement

from ..backend.errors import SprigError
from . import (
    adjust,
    auto_rig,
    dependencies,
    file_import,
    finetune,
    fit_armature,
    hand_over,
    jobs,
    preferences,
    preview,
    problems,
    status,
    students,
)
from .jobs import Job, LongOperator, Step
from .pinned_wheels import PINNED

IN_OBJECT_MODE = "Switch to Object Mode first"
ADJUSTING = "Joints are being adjusted; apply or discard that first"


def _waits(operator) -> bool:
    """Whether an operator has to wait for another one; its button then says so."""
    if jobs.running():
        operator.poll_message_set(status.busy())
    return jobs.running() is not None


def _obstacle_to_go_on(context) -> str:
    """Why nothing can be done with the preview, in one sentence; empty where nothing is in the way."""
    if jobs.running():
        return status.busy()
    if preview.current() is None:
        return "There is no preview; press Preview first"
    if preview.current().computed.scene_uid != context.scene.session_uid:
        return "The preview belongs to another scene; switch to that one"
    return ""


class _Guarded(LongOperator):
    """Long work that says why it cannot begin: obstacle(context) is one sentence, or empty."""

    obstacle = staticmethod(status.obstacle)  # to what works on the selected meshes

    @classmethod
    def poll(cls, context):
        words = cls.obstacle(context)
        if words:
            cls.poll_message_set(words.removesuffix("."))
        return not words


class SPRIG_OT_auto_rig_sequence(_Guarded, Operator):
    """Turn the selected animated meshes into one rig: an armature, skinned copies and keys that replay the motion"""

    bl_idname = "sprig.auto_rig_sequence"
    bl_label = "Auto-Rig Sequence"
    bl_options = {"REGISTER", "UNDO"}
    title = "Auto-Rig"
    obstacle = staticmethod(status.obstacle_to_rigging)

    def steps(self, context, cancel, patience):
        return auto_rig.steps(context, cancel, patience)


class SPRIG_OT_preview(_Guarded, Operator):
    """Rig the selected animated meshes as Auto-Rig does, but only draw the rig over them until it is applied"""

    bl_idname = "sprig.preview"
    bl_label = "Preview"
    title = "Preview"

    @staticmethod
    def obstacle(context):
        if adjust.armature_of(context) is not None:
            return ADJUSTING
        return status.obstacle_to_rigging(context)

    def steps(self, context, cancel, patience):
        return preview.steps(context, cancel, patience)


class SPRIG_OT_apply_preview(_Guarded, Operator):
    """Write the rig that is previewed, as Auto-Rig does; nothing is computed again"""

    bl_idname = "sprig.apply_preview"
    bl_label = "Apply"
    bl_options = {"REGISTER", "UNDO"}
    title = "Apply Preview"

    @staticmethod
    def obstacle(context):
        return _obstacle_to_go_on(context) or ("" if context.mode == "OBJECT" else IN_OBJECT_MODE)

    def steps(self, context, cancel, patience):
        return adjust.apply_steps(context, cancel, patience)


class SPRIG_OT_discard_preview(Operator):
    """End the preview; nothing was written, so nothing is left of it"""

    bl_idname = "sprig.discard_preview"
    bl_label = "Discard"

    @classmethod
    def poll(cls, context):
        if adjust.armature_of(context) is not None:
            cls.poll_message_set(ADJUSTING)
            return False
        return preview.current() is not None

    def execute(self, _context):
        preview.discard()
        return {"FINISHED"}


class SPRIG_OT_show_raw_network(_Guarded, Operator):
    """Ask the skeleton network about every frame by itself, and draw its answers beside the rig to compare"""

    bl_idname = "sprig.show_raw_network"
    bl_label = "Show Raw Network"
    title = "Raw Network"
    obstacle = staticmethod(_obstacle_to_go_on)

    def steps(self, context, cancel, patience):
        return preview.raw_steps(context, cancel, patience)


class SPRIG_OT_adjust(_Guarded, Operator):
    """Edit the previewed joints in Edit Mode: move, add, delete, reparent and rename bones, then press Refit"""

    bl_idname = "sprig.adjust"
    bl_label = "Adjust Joints"
    bl_options = {"REGISTER", "UNDO"}
    title = "Adjust Joints"

    @staticmethod
    def obstacle(context):
        if context.mode != "OBJECT":
            return IN_OBJECT_MODE
        if preview.current() is None and adjust.result_for(context) is not None:
            return status.busy() if jobs.running() else ""
        return _obstacle_to_go_on(context)

    def steps(self, context, cancel, patience):
        return adjust.steps(context, cancel, patience)


class SPRIG_OT_refit(_Guarded, Operator):
    """Fit skin weights and motion again for exactly these bones, and preview that; the frames are not read again"""

    bl_idname = "sprig.refit"
    bl_label = "Refit"
    bl_options = {"REGISTER", "UNDO"}
    title = "Refit"

    @staticmethod
    def obstacle(context):
        words = "Press Adjust Joints first, and edit the bones"
        return _obstacle_to_go_on(context) or ("" if adjust.edited(context) else words)

    def steps(self, context, cancel, patience):
        return adjust.refit_steps(context, cancel, patience)


class SPRIG_OT_fit_armature(_Guarded, Operator):
    """Find skin weights and keys for an armature of your own, so that it replays the selected meshes; its bones stay"""

    bl_idname = "sprig.fit_armature"
    bl_label = "Fit Armature to Sequence"
    bl_options = {"REGISTER", "UNDO"}
    title = "Fitting"

    @staticmethod
    def obstacle(context):
        words = "Choose an armature in the panel, or select it together with the meshes"
        return status.obstacle(context) or ("" if fit_armature.chosen_armature(context) else words)

    def steps(self, context, cancel, patience):
        return fit_armature.steps(context, cancel, patience)


class SPRIG_OT_finetune_sequence(_Guarded, Operator):
    """Teach the networks to see one rig in every frame of the selected meshes; takes minutes, Auto-Rig then uses it"""

    bl_idname = "sprig.finetune_sequence"
    bl_label = "Fine-tune on Sequence"
    bl_options = {"REGISTER", "UNDO"}
    title = "Fine-tuning"

    def steps(self, context, cancel, patience):
        return finetune.steps(context, cancel, patience)


class SPRIG_OT_forget_student(Operator):
    """Take the networks as they were before they were fine-tuned on this sequence"""

    bl_idname = "sprig.forget_student"
    bl_label = "Forget Fine-tuning"

    @classmethod
    def poll(cls, context):
        if any(mesh.sprig.student for mesh in auto_rig.chosen_meshes(context)):
            return not _waits(cls)
        cls.poll_message_set("The networks were not fine-tuned on the selected meshes")
        return False

    def execute(self, context):
        students.forget(auto_rig.chosen_meshes(context))
        self.report({"INFO"}, "Auto-Rig takes the networks as they were")
        return {"FINISHED"}


class _Install(LongOperator):
    """What both ways to install have in common."""

    title = jobs.INSTALL

    @classmethod
    def poll(cls, context):
        if _waits(cls):
            return False
        if dependencies.own_folder() is None:
            cls.poll_message_set("SPRig is not installed as an extension, so it has no folder for libraries")
        elif dependencies.came_with_extension():
            cls.poll_message_set("The libraries came with SPRig")
        else:
            return True
        return False

    def _install(self, context, wheel_folder: Path | None, cancel, patience):
        build = preferences.build(context)
        folder = dependencies.own_folder(build)
        wheels = PINNED if wheel_folder else dependencies.wheels_for(build)
        with Job(lambda progress: dependencies.install(folder, wheel_folder, progress, wheels), cancel) as job:
            while job.wait(patience):
                yield Step(job.fraction, job.text)
        job.result()
        dependencies.keep_only(folder)
        dependencies.use_folder(preferences.libraries_folder(context))
        versions = ", ".join(f"{library.name} {library.detail}" for library in dependencies.libraries())
        return f"Installed; SPRig uses {versions}"


class SPRIG_OT_install_backend(_Install, Operator):
    """Download PyTorch and SciPy into SPRig's own folder; Blender's own Python is left alone"""

    bl_idname = "sprig.install_backend"
    bl_label = "Install Libraries"

    wheel_folder: StringProperty(
        name="Folder of Wheels",
        description="Take the libraries from this folder instead of the network",
        subtype="DIR_PATH",
        options={"SKIP_SAVE"},
    )

    def steps(self, context, cancel, patience):
        if self.wheel_folder:
            folder = Path(bpy.path.abspath(self.wheel_folder))
            if not folder.is_dir():
                raise SprigError(f"There is no folder {folder}; choose the one that holds the wheels.")
            return (yield from self._install(context, folder, cancel, patience))
        if not bpy.app.online_access:
            raise SprigError(
                "Blender may not use the network; allow Online Access in Preferences, System, "
                "or install from a folder of wheels."
            )
        return (yield from self._install(context, None, cancel, patience))


class SPRIG_OT_install_backend_from_folder(Operator):
    """Install PyTorch and SciPy from a folder of downloaded wheels, without the network"""

    bl_idname = "sprig.install_backend_from_folder"
    bl_label = "Install from Folder of Wheels"
    bl_options = {"INTERNAL"}

    directory: StringProperty(
        name="Folder of Wheels",
        description="The folder that holds the wheels",
        subtype="DIR_PATH",
        options={"SKIP_SAVE"},
    )

    @classmethod
    def poll(cls, context):
        return SPRIG_OT_install_backend.poll(context)

    def invoke(self, context, _event):
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, _context):
        return bpy.ops.sprig.install_backend("INVOKE_DEFAULT", wheel_folder=self.directory)


class SPRIG_OT_uninstall_backend(Operator):
    """Remove the libraries that SPRig installed"""

    bl_idname = "sprig.uninstall_backend"
    bl_label = "Remove Libraries"

    @classmethod
    def poll(cls, _context):
        if not dependencies.is_installed():
            cls.poll_message_set("SPRig has installed no libraries")
            return False
        return not _waits(cls)

    def invoke(self, context, event):
        return context.window_manager.invoke_confirm(self, event)

    def execute(self, context):
        gone = dependencies.uninstall()
        dependencies.use_folder(preferences.libraries_folder(context))
        self.report({"INFO"}, "Libraries removed" if gone else "The libraries are in use and go when Blender restarts")
        return {"FINISHED"}


class SPRIG_OT_cancel(Operator):
    """Stop what SPRig is doing; nothing is changed"""

    bl_idname = "sprig.cancel"
    bl_label = "Cancel"
    bl_options = {"INTERNAL"}

    @classmethod
    def poll(cls, _context):
        return jobs.running() is not None

    def execute(self, _context):
        jobs.running().cancel.set()
        return {"FINISHED"}


class SPRIG_OT_go_to_frame(Operator):
    """Show this frame"""

    bl_idname = "sprig.go_to_frame"
    bl_label = "Go to Frame"
    bl_options = {"INTERNAL", "UNDO_GROUPED"}
    bl_undo_group = "Frame Change"  # the name that Blender's own frame jumps share

    frame: IntProperty(name="Frame", description="Frame to show")

    def execute(self, context):
        context.scene.frame_set(self.frame)
        return {"FINISHED"}


class _AtOnce:
    """What is done at once has in common: `work` does it to the `target` and returns the sentence for the user."""

    def execute(self, context):
        problems.forget()
        try:
            self.report({"INFO"}, self.work(context, self.target(context)))
            return {"FINISHED"}
        except SprigError as error:
            self.report({"ERROR"}, problems.expected(error))
        except Exception as error:  # a bug of ours
            self.report({"ERROR"}, problems.unexpected(self.bl_label, error))
        return {"CANCELLED"}


class _OnJoints(_AtOnce):
    """What is done to the joints that are being adjusted has in common."""

    @classmethod
    def poll(cls, context):
        if _waits(cls):
            return False
        if adjust.edited(context) is None:
            cls.poll_message_set("Press Adjust Joints first, and edit the bones")
            return False
        return True

    @staticmethod
    def target(context):
        return adjust.edited(context)


class SPRIG_OT_discard_adjustment(_AtOnce, Operator):
    """Take the adjusted joints away, and bring back the preview that was there before"""

    bl_idname = "sprig.discard_adjustment"
    bl_label = "Discard"
    bl_options = {"REGISTER", "UNDO"}

    @classmethod
    def poll(cls, context):
        return not _waits(cls) and adjust.armature_of(context) is not None

    @staticmethod
    def target(context):
        return adjust.armature_of(context)

    def work(self, context, armature):
        return adjust.discard(context, armature)


class SPRIG_OT_symmetrise(_OnJoints, Operator):
    """Make left and right joints mirror each other, in the mean of both; locked ones stay where they are"""

    bl_idname = "sprig.symmetrise"
    bl_label = "Symmetrise Joints"
    bl_options = {"REGISTER", "UNDO"}

    def work(self, _context, armature):
        return adjust.symmetrise(armature)


class SPRIG_OT_select_suggestion(_OnJoints, Operator):
    """Select the bone that this is about"""

    bl_idname = "sprig.select_suggestion"
    bl_label = "Select"
    bl_options = {"INTERNAL", "UNDO"}

    bone: StringProperty(name="Bone", description="Name of the bone")

    def work(self, _context, armature):
        adjust.select_bone(armature, self.bone)
        return f"{self.bone} is selected"


class SPRIG_OT_follow_suggestion(_OnJoints, Operator):
    """Merge or split this bone as suggested; Refit then finds weights and motion"""

    bl_idname = "sprig.follow_suggestion"
    bl_label = "Apply"
    bl_options = {"INTERNAL", "UNDO"}

    bone: StringProperty(name="Bone", description="Name of the bone")
    kind: StringProperty(name="Kind", description="What is suggested: merge or split")

    def work(self, _context, armature):
        return adjust.follow(armature, self.kind, self.bone)


class _OnResult(_AtOnce):
    """What is done at once with a rig of ours has in common."""

    @classmethod
    def poll(cls, context):
        if _waits(cls):
            return False
        if context.mode != "OBJECT":
            cls.poll_message_set(IN_OBJECT_MODE)
        elif hand_over.chosen_result(context) is None:
            cls.poll_message_set("Select a rig that SPRig made, or what it was made from")
        else:
            return True
        return False

    @staticmethod
    def target(context):
        return hand_over.chosen_result(context)


class SPRIG_OT_compare(_OnResult, Operator):
    """Show the rig's meshes, the meshes that it was made from, or both; renders always show the rig"""

    bl_idname = "sprig.compare"
    bl_label = "Compare"
    bl_options = {"REGISTER", "UNDO"}

    view: EnumProperty(
        name="View",
        description="What is shown",
        items=(
            ("NEXT", "Next", "What comes after what is shown: the rig, the source, both"),
            ("RIG", "Rig", "The meshes that the rig moves"),
            ("SOURCE", "Source", "The meshes that the rig was made from"),
            ("BOTH", "Both", "The source, and over it the rig's meshes as wires"),
        ),
        default="NEXT",
        options={"SKIP_SAVE"},
    )

    def work(self, context, result):
        return hand_over.compare(context, result, None if self.view == "NEXT" else self.view)


class SPRIG_OT_clean_up(_OnResult, Operator):
    """Take away all that SPRig made for this rig, and show again what it was made from"""

    bl_idname = "sprig.clean_up"
    bl_label = "Clean Up"
    bl_options = {"REGISTER", "UNDO"}

    def work(self, context, result):
        return hand_over.clean_up(context, result)


class SPRIG_OT_check_export(_OnResult, Operator):
    """Look for what game engines would stumble over, such as uneven scale or vertices that nothing moves"""

    bl_idname = "sprig.check_export"
    bl_label = "Check for Export"
    bl_options = {"REGISTER", "UNDO"}

    def work(self, context, result):
        count = len(hand_over.check(context, result))
        return f"Found {count} thing{'s' if count > 1 else ''} to repair" if count else "Ready for export"


class SPRIG_OT_export_game(_OnResult, Operator):
    """Write this rig, its meshes and its animation for a game engine, and nothing else of the scene"""

    bl_idname = "sprig.export_game"
    bl_label = "Export to Game Engine"

    engine: EnumProperty(
        name="Engine",
        description="Which game engine the file is for",
        items=(
            ("UNITY", "Unity", "FBX in metres, whose objects keep a scale of 1"),
            ("UNREAL", "Unreal", "FBX in centimetres, with an armature that is no bone"),
            ("GODOT", "Godot, glTF", "glTF, whose animations start at 0 s"),
        ),
        default="UNITY",
    )
    filepath: StringProperty(name="File", description="Where the file is written", subtype="FILE_PATH")
    filter_glob: StringProperty(
        name="Filter",
        description="Which files the file browser shows",
        default="*.fbx;*.glb",
        options={"HIDDEN", "SKIP_SAVE"},
    )
    check_existing: BoolProperty(
        name="Check Existing",
        description="Whether the file browser warns of a file that is there",
        default=True,
        options={"HIDDEN", "SKIP_SAVE"},
    )

    def invoke(self, context, _event):
        self.filepath = str(hand_over.export_path(hand_over.chosen_result(context), self.engine))
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def check(self, _context):
        """The suffix follows the engine."""
        if not os.path.basename(self.filepath):
            return False
        path = str(hand_over.with_suffix(Path(self.filepath), self.engine))
        changed, self.filepath = path != self.filepath, path
        return changed

    def work(self, context, result):
        return hand_over.export_game(context, result, bpy.path.abspath(self.filepath), self.engine)


class SPRIG_OT_import_sequence(Operator):
    """Import animated meshes at their own frame rate and select them; a point cache (PC2, MDD) moves the active mesh"""

    bl_idname = "sprig.import_sequence"
    bl_label = "Import Animated Mesh"
    bl_options = {"REGISTER", "UNDO"}

    filepath: StringProperty(name="File", description="The file to import", subtype="FILE_PATH", options={"SKIP_SAVE"})
    directory: StringProperty(
        name="Folder", description="Where the files are", subtype="DIR_PATH", options={"HIDDEN", "SKIP_SAVE"}
    )
    files: CollectionProperty(
        name="Files",
        description="Names of the files in the folder",
        type=OperatorFileListElement,
        options={"HIDDEN", "SKIP_SAVE"},
    )
    filter_glob: StringProperty(
        name="Filter",
        description="Which files the file browser shows",
        default=";".join(f"*{suffix}" for suffix in file_import.SUFFIXES),
        options={"HIDDEN", "SKIP_SAVE"},
    )

    @classmethod
    def poll(cls, context):
        if _waits(cls):
            return False
        if context.mode != "OBJECT":
            cls.poll_message_set(IN_OBJECT_MODE)
            return False
        return True

    def invoke(self, context, _event):
        if self._paths():  # dropped
            return self.execute(context)
        context.window_manager.fileselect_add(self)
        return {"RUNNING_MODAL"}

    def execute(self, context):
        problems.forget()
        try:
            self.report({"INFO"}, file_import.import_files(context, self._paths()))
            return {"FINISHED"}
        except SprigError as error:
            self.report({"ERROR"}, problems.expected(error))
        except Exception as error:  # a bug of ours
            self.report({"ERROR"}, problems.unexpected(self.bl_label, error))
        return {"CANCELLED"}

    def _paths(self) -> list[Path]:
        folder = bpy.path.abspath(self.directory)
        names = [os.path.join(folder, file.name) for file in self.files if file.name]
        return [Path(name) for name in names or [bpy.path.abspath(self.filepath)] if name]


class SPRIG_OT_copy_report(Operator):
    """Copy versions and traceback of the last failure to the clipboard, to send them to the developers"""

    bl_idname = "sprig.copy_report"
    bl_label = "Copy Report"

    @classmethod
    def poll(cls, _context):
        if problems.last() is None or not problems.last().report:
            cls.poll_message_set("Nothing has failed unexpectedly")
            return False
        return True

    def execute(self, context):
        context.window_manager.clipboard = problems.last().report
        self.report({"INFO"}, "Report copied to the clipboard")
        return {"FINISHED"}


class SPRIG_OT_copy_log(Operator):
    """Copy what is known about the libraries, and what was said when they failed, to the clipboard"""

    bl_idname = "sprig.copy_log"
    bl_label = "Copy Log"

    def execute(self, context):
        context.window_manager.clipboard = dependencies.log()
        self.report({"INFO"}, "Log copied to the clipboard")
        return {"FINISHED"}


class SPRIG_OT_dismiss_problem(Operator):
    """Take this message away"""

    bl_idname = "sprig.dismiss_problem"
    bl_label = "Dismiss"
    bl_options = {"INTERNAL"}

    def execute(self, _context):
        problems.forget()
        jobs.redraw_sidebars()
        return {"FINISHED"}


CLASSES = (
    SPRIG_OT_auto_rig_sequence,
    SPRIG_OT_preview,
    SPRIG_OT_apply_preview,
    SPRIG_OT_discard_preview,
    SPRIG_OT_show_raw_network,
    SPRIG_OT_adjust,
    SPRIG_OT_refit,
    SPRIG_OT_discard_adjustment,
    SPRIG_OT_symmetrise,
    SPRIG_OT_select_suggestion,
    SPRIG_OT_follow_suggestion,
    SPRIG_OT_fit_armature,
    SPRIG_OT_finetune_sequence,
    SPRIG_OT_forget_student,
    SPRIG_OT_install_backend,
    SPRIG_OT_install_backend_from_folder,
    SPRIG_OT_uninstall_backend,
    SPRIG_OT_cancel,
    SPRIG_OT_go_to_frame,
    SPRIG_OT_compare,
    SPRIG_OT_clean_up,
    SPRIG_OT_check_export,
    SPRIG_OT_export_game,
    SPRIG_OT_import_sequence,
    SPRIG_OT_copy_report,
    SPRIG_OT_copy_log,
    SPRIG_OT_dismiss_problem,
)
