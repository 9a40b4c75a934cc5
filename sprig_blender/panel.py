"""The sidebar tab *SPRig* of the 3D viewport, and the entry in Object > Animation."""

import bpy
from bpy.types import Panel

from . import auto_rig, dependencies, drawing, hand_over, jobs, preferences, preview, problems, students

RIG_OPERATOR = "sprig.auto_rig_sequence"
FINETUNE_OPERATOR = "sprig.finetune_sequence"
PREVIEW_OPERATOR = "sprig.preview"
FIT_OPERATOR = "sprig.fit_armature"


class SPRIG_PT_main(Panel):
    bl_idname = "SPRIG_PT_main"
    bl_label = "SPRig"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "SPRig"

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        if not dependencies.ready():
            drawing.draw_paragraph(layout, f"{dependencies.what_is_wrong()}.", icon="INFO")
            drawing.draw_libraries(layout)
        running = jobs.running()
        settings = layout.column()
        settings.enabled = running is None
        _draw_chosen(settings, context)
        _draw_settings(settings, context)
        _draw_networks(settings, context)
        _draw_own_armature(settings, context)
        _draw_advanced(settings, context)
        layout.separator()
        if running:
            drawing.draw_progress(layout, running)
        else:
            _draw_fine_tuning(layout, context)
            row = layout.row()
            row.scale_y = 1.6
            row.operator(RIG_OPERATOR, icon="ARMATURE_DATA")
            layout.operator(PREVIEW_OPERATOR, icon="HIDE_OFF")
        _draw_preview(layout, context)
        _draw_problem(layout)
        _draw_result(layout, context)
        _draw_hand_over(layout, context)


def _draw_chosen(layout, context) -> None:
    """What the button would rig."""
    meshes = auto_rig.chosen_meshes(context)
    if not meshes:
        layout.label(text="Select an animated mesh", icon="MESH_DATA")
        return
    name = meshes[0].name if len(meshes) == 1 else f"{len(meshes)} meshes"
    vertices = sum(len(mesh.data.vertices) for mesh in meshes)
    layout.label(text=f"{name}  ·  {vertices:,} vertices", icon="MESH_DATA")


def _draw_settings(layout, context) -> None:
    scene, settings = context.scene, context.scene.sprig
    column = layout.column()
    column.row().prop(settings, "range_mode", expand=True)
    owner = settings if settings.range_mode == "CUSTOM" else scene
    block = column.column(align=True)
    ends = block.column(align=True)
    ends.active = owner is settings
    ends.prop(owner, "frame_start", text="Start")
    ends.prop(owner, "frame_end", text="End")
    block.prop(settings, "frame_step")

    column = layout.column()
    column.row().prop(settings, "anchor_mode", expand=True)
    if settings.anchor_mode == "FRAME":
        column.prop(settings, "anchor_frame")

    column = layout.column()
    column.prop(settings, "skeleton")
    column.row().prop(settings, "joints_mode", expand=True)
    if settings.joints_mode == "NUMBER":
        column.prop(settings, "joints")
    elif settings.skeleton != "learned":  # networks count joints themselves
        column.prop(settings, "tolerance")
    column.prop(settings, "names")


def _draw_networks(layout, context) -> None:
    settings = context.scene.sprig
    if settings.skeleton == "motion":
        return
    body = _section(layout, "SPRIG_PT_networks", "Networks")
    if body is None:
        return
    column = body.column()
    column.prop(settings, "candidates")
    column.prop(settings, "temperature")
    column.prop(settings, "checkpoint_skeleton", text="Skeleton")
    column.prop(settings, "checkpoint_skinning", text="Skinning")
    column.prop(settings, "finetune_epochs", text="Fine-tuning Epochs")


def _section(layout, name: str, title: str):
    """The layout of a part that is closed at first; None while it is."""
    header, body = layout.panel(name, default_closed=True)
    header.label(text=title)
    return body


def _draw_own_armature(layout, context) -> None:
    body = _section(layout, "SPRIG_PT_own_armature", "Own Armature")
    if body is None:
        return
    settings = context.scene.sprig
    column = body.column()
    column.prop(settings, "own_armature")
    column.prop(settings, "fit")
    column.row().prop(settings, "rest_mode", expand=True)
    if settings.rest_mode == "FRAME":
        column.prop(settings, "rest_frame")
    body.operator(FIT_OPERATOR, icon="OUTLINER_OB_ARMATURE")


def _draw_advanced(layout, context) -> None:
    body = _section(layout, "SPRIG_PT_advanced", "Advanced")
    if body is None:
        return
    settings = context.scene.sprig
    column = body.column()
    column.prop(settings, "influences")
    column.column(heading="Rest Shape").prop(settings, "rest_correction", text="Correct")
    column.column(heading="Bones").prop(settings, "stretch", text="May Stretch")
    column.column(heading="Residual").prop(settings, "corrective", text="As Shape Keys")
    column.prop(settings, "root_motion")
    column.prop(settings, "seed")
    ours = preferences.of_this_addon(context)
    if ours:
        column.prop(ours, "device")


def _draw_fine_tuning(layout, context) -> None:
    """The button that teaches the networks this sequence, or that they have learned it."""
    if context.scene.sprig.skeleton == "motion":
        return
    if students.student_of(auto_rig.chosen_meshes(context)):
        row = layout.row()
        row.label(text="Fine-tuned on this sequence", icon="CHECKMARK")
        row.operator("sprig.forget_student", text="", icon="X", emboss=False)
    else:
        layout.operator(FINETUNE_OPERATOR, icon="MOD_ARMATURE")


def _draw_preview(layout, context) -> None:
    """What is previewed, how it is drawn, and how to go on."""
    shown = preview.current()
    if shown is None:
        return
    settings, rig = context.scene.sprig, shown.computed.rig
    box = layout.box()
    box.label(text=f"Preview of {shown.name}", icon="HIDE_OFF")
    column = box.column(align=True)
    _draw_figure(column, "Joints", f"{len(rig.skeleton)}")
    _draw_figure(column, "RMSE", f"{rig.rmse:.3f} %")
    _draw_figure(
        column, "This Frame", f"{rig.rmse_per_frame[shown.overlay.position(context.scene.frame_current)]:.3f} %"
    )
    column = box.column()
    column.prop(settings, "preview_bones")
    if settings.preview_bones != "NONE":
        column.prop(settings, "preview_bone_color")
    column.prop(settings, "preview_surface")
    if settings.preview_surface == "WEIGHTS":
        column.prop(settings, "preview_joint", icon="BONE_DATA")
    elif settings.preview_surface == "ERROR":
        _draw_figure(column, "Lightest", f"{shown.overlay.error_limit:.3g} % and more")
    row = box.row(align=True)
    row.operator("sprig.apply_preview", icon="CHECKMARK")
    row.operator("sprig.discard_preview", icon="X")


def _draw_problem(layout) -> None:
    """Why the last run ended without a rig."""
    problem = problems.last()
    if problem is None:
        return
    box = layout.box()
    row = box.row()
    drawing.draw_paragraph(row, problem.sentence, icon="ERROR", beside=1)
    row.operator("sprig.dismiss_problem", text="", icon="X", emboss=False)
    if problem.report:
        box.operator("sprig.copy_report", icon="COPYDOWN")


def _draw_result(layout, context) -> None:
    """The figures of the rig that the active object belongs to."""
    active = context.view_layer.objects.active
    armature = auto_rig.result_for(active) if active else None
    if armature is None or armature.sprig.joints == 0:
        return
    result = armature.sprig
    box = layout.box()
    box.label(text=armature.name, icon="OUTLINER_OB_ARMATURE")
    column = box.column(align=True)
    _draw_figure(column, "Joints", f"{result.joints}")
    _draw_figure(column, "Frames", f"{result.first_frame} – {result.last_frame}")
    _draw_frame(column, "Rest Pose", result.anchor_frame, f"{result.anchor_frame}")
    column.separator()
    _draw_figure(column, "RMSE", f"{result.rmse:.3f} %")
    _draw_frame(column, "Worst Frame", result.worst_frame, f"{result.worst_frame}   ({result.worst_rmse:.3f} %)")
    _draw_figure(column, "Time", f"{result.seconds:.1f} s")
    for warning in result.warnings.splitlines():
        drawing.draw_paragraph(box, warning, icon="ERROR")


def _draw_hand_over(layout, context) -> None:
    """What can be done with the rig that the selection belongs to."""
    result = hand_over.chosen_result(context)
    body = _section(layout, "SPRIG_PT_hand_over", "Hand Over") if result else None
    if body is None:
        return
    row = body.row(align=True)
    shown = hand_over.view_of(context, result)
    for view, title in hand_over.VIEWS.items():
        row.operator("sprig.compare", text=title, depress=view == shown).view = view
    body.operator("sprig.check_export", icon="CHECKMARK")
    armature = hand_over.armature_of(result)
    if armature is not None and armature.sprig.checked:
        for finding in armature.sprig.findings.splitlines():
            drawing.draw_paragraph(body, finding, icon="ERROR")
        if not armature.sprig.findings:
            body.label(text="Ready for export")
    body.operator("sprig.export_game", icon="EXPORT")
    body.operator("sprig.clean_up", icon="TRASH")


def _figure_row(layout, name: str):
    """A row with the name on the left, as wide as the names of properties; returns the right part."""
    split = layout.split(factor=0.4)
    left = split.row()
    left.alignment = "RIGHT"
    left.label(text=name)
    return split.row()


def _draw_figure(layout, name: str, value: str) -> None:
    _figure_row(layout, name).label(text=value)


def _draw_frame(layout, name: str, frame: int, text: str) -> None:
    """A frame number as a button that goes there."""
    _figure_row(layout, name).operator("sprig.go_to_frame", text=text, icon="TIME").frame = frame


def draw_menu_entry(self, _context) -> None:
    """In Object > Animation."""
    self.layout.separator()
    self.layout.operator(RIG_OPERATOR, icon="ARMATURE_DATA")
    self.layout.operator(PREVIEW_OPERATOR, icon="HIDE_OFF")
    self.layout.operator(FIT_OPERATOR, icon="OUTLINER_OB_ARMATURE")


CLASSES = (SPRIG_PT_main,)


def register() -> None:
    bpy.types.VIEW3D_MT_object_animation.append(draw_menu_entry)


def unregister() -> None:
    bpy.types.VIEW3D_MT_object_animation.remove(draw_menu_entry)
