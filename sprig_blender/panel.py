"""The sidebar tab *SPRig* of the 3D viewport, and the entry in Object > Animation."""

import bpy
from bpy.app.translations import pgettext_iface as iface_
from bpy.types import Panel

from . import (
    adjust,
    auto_rig,
    dependencies,
    drawing,
    hand_over,
    jobs,
    preferences,
    preset_menu,
    preview,
    problems,
    status,
    students,
)

RIG_OPERATOR = "sprig.auto_rig_sequence"
FINETUNE_OPERATOR = "sprig.finetune_sequence"
PREVIEW_OPERATOR = "sprig.preview"
FIT_OPERATOR = "sprig.fit_armature"
SUGGESTIONS = 6  # that are listed at most


class SPRIG_PT_main(Panel):
    bl_idname = "SPRIG_PT_main"
    bl_label = "SPRig"
    bl_space_type = "VIEW_3D"
    bl_region_type = "UI"
    bl_category = "SPRig"

    def draw_header_preset(self, _context):
        preset_menu.SPRIG_PT_presets.draw_panel_header(self.layout)

    def draw(self, context):
        layout = self.layout
        layout.use_property_split = True
        layout.use_property_decorate = False
        if not dependencies.ready():
            drawing.draw_paragraph(layout, f"{dependencies.what_is_wrong()}.", icon="INFO")
            drawing.draw_libraries(layout, preferences.build(context))
        running = jobs.running()
        _draw_found(layout, context)
        if running:
            drawing.draw_progress(layout, running)
        else:
            _draw_buttons(layout, context)
        _draw_preview(layout, context)
        _draw_problem(layout)
        _draw_result(layout, context)
        settings = layout.column()
        settings.enabled = running is None
        _draw_sequence(settings, context)
        _draw_skeleton(settings, context)
        _draw_skinning(settings, context)
        _draw_motion(settings, context)
        _draw_networks(settings, context)
        _draw_own_armature(settings, context)
        _draw_advanced(settings, context)
        _draw_hand_over(layout, context)


def _draw_found(layout, context) -> None:
    """What the button would rig."""
    found = status.found(context)
    if found is not None:
        layout.label(text=found.name, icon="MESH_DATA", translate=False)
        drawing.draw_paragraph(layout, status.in_words(found, context.scene), icon="BLANK1")


def _draw_buttons(layout, context) -> None:
    """The buttons, and why they are greyed out."""
    row = layout.row()
    row.scale_y = 2.0
    row.operator(RIG_OPERATOR, icon="ARMATURE_DATA")
    layout.operator(PREVIEW_OPERATOR, icon="HIDE_OFF")
    obstacle = status.obstacle_to_rigging(context)
    if obstacle and dependencies.ready():  # otherwise the panel has said so already
        drawing.draw_paragraph(layout, obstacle, icon="INFO")


def _draw_sequence(layout, context) -> None:
    body = _section(layout, "SPRIG_PT_sequence", "Sequence")
    if body is None:
        return
    scene, settings = context.scene, context.scene.sprig
    column = body.column()
    column.row().prop(settings, "range_mode", expand=True)
    owner = settings if settings.range_mode == "CUSTOM" else scene
    block = column.column(align=True)
    ends = block.column(align=True)
    ends.active = owner is settings
    ends.prop(owner, "frame_start", text="Start")
    ends.prop(owner, "frame_end", text="End")
    block.prop(settings, "frame_step")

    column = body.column()
    column.row().prop(settings, "anchor_mode", expand=True)
    if settings.anchor_mode == "FRAME":
        column.prop(settings, "anchor_frame")


def _draw_skeleton(layout, context) -> None:
    body = _section(layout, "SPRIG_PT_skeleton", "Skeleton")
    if body is None:
        return
    settings = context.scene.sprig
    column = body.column()
    column.prop(settings, "skeleton")
    column.row().prop(settings, "joints_mode", expand=True)
    if settings.joints_mode == "NUMBER":
        column.prop(settings, "joints")
    elif settings.skeleton != "learned":  # networks count joints themselves
        column.prop(settings, "tolerance")
    column.prop(settings, "names")


def _draw_skinning(layout, context) -> None:
    body = _section(layout, "SPRIG_PT_skinning", "Skinning")
    if body is None:
        return
    settings = context.scene.sprig
    column = body.column()
    column.prop(settings, "influences")
    column.column(heading="Rest Shape").prop(settings, "rest_correction", text="Correct")
    column.column(heading="Residual").prop(settings, "corrective", text="As Shape Keys")


def _draw_motion(layout, context) -> None:
    body = _section(layout, "SPRIG_PT_motion", "Motion")
    if body is None:
        return
    settings = context.scene.sprig
    column = body.column()
    column.column(heading="Bones").prop(settings, "stretch", text="May Stretch")
    column.prop(settings, "root_motion")


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
    column.separator()
    column.prop(settings, "finetune_epochs")
    _draw_fine_tuning(body, context)


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
    column.prop(settings, "seed")
    ours = preferences.of_this_addon(context)
    if ours:
        column.prop(ours, "device")


def _draw_fine_tuning(layout, context) -> None:
    """The button that teaches the networks this sequence, or that they have learned it."""
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
    _draw_raw_network(box, settings, shown.overlay.raw)
    adjusted = adjust.armature_of(context)
    _draw_joints(box, adjusted)
    row = box.row(align=True)
    row.operator("sprig.apply_preview", icon="CHECKMARK")
    row.operator("sprig.discard_preview" if adjusted is None else "sprig.discard_adjustment", icon="X")


def _draw_raw_network(layout, settings, raw) -> None:
    """The network's skeletons of single frames: the button that asks for them, or whether they are drawn."""
    if raw is None:
        layout.operator("sprig.show_raw_network", icon="GHOST_ENABLED")
        return
    column = layout.column()
    column.prop(settings, "preview_raw")
    if settings.preview_raw:
        figures = column.column(align=True)
        counts = sorted({len(parents) for parents in raw.parents})
        number = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} – {counts[-1]}"
        _draw_figure(figures, "Its Joints", number)
        _draw_figure(figures, "They Move", f"{raw.raw_shift:.2f} % a frame")
        _draw_figure(figures, "The Rig's", f"{raw.rig_shift:.2f} % a frame")


def _draw_joints(layout, armature) -> None:
    """The button to adjust the previewed joints, and in Edit Mode what helps with it."""
    if armature is None or armature.mode != "EDIT":
        layout.operator("sprig.adjust", icon="EDITMODE_HLT")
        return
    column = layout.column()
    row = column.row(align=True)
    for text, icon, kind in (("Lock", "LOCKED", "ENABLE"), ("Unlock", "UNLOCKED", "DISABLE")):
        lock = row.operator("wm.context_collection_boolean_set", text=text, icon=icon)
        lock.data_path_iter, lock.data_path_item, lock.type = "selected_bones", "lock", kind
    column.operator("sprig.symmetrise", icon="MOD_MIRROR")
    offered = adjust.offered(armature)
    for one in offered[:SUGGESTIONS]:
        row = column.row(align=True)
        drawing.draw_paragraph(row, f"{one.kind.title()} {one.bone}: {one.reason}", icon="DOT", beside=2)
        row.operator("sprig.select_suggestion", text="", icon="RESTRICT_SELECT_OFF").bone = one.bone
        follow = row.operator("sprig.follow_suggestion", text="", icon="CHECKMARK")
        follow.bone, follow.kind = one.bone, one.kind
    if len(offered) > SUGGESTIONS:
        column.label(text=f"and {len(offered) - SUGGESTIONS} more", icon="BLANK1")
    row = layout.row()
    row.scale_y = 1.4
    row.operator("sprig.refit", icon="FILE_REFRESH")


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
    box.label(text=armature.name, icon="OUTLINER_OB_ARMATURE", translate=False)
    summary = iface_("{:d} joints, RMSE {:.3f} %").format(result.joints, result.rmse)
    drawing.draw_paragraph(box, summary, icon="BLANK1")
    for warning in result.warnings.splitlines():
        drawing.draw_paragraph(box, warning, icon="ERROR")
    body = _section(box, "SPRIG_PT_result", "Result")
    if body is None:
        return
    column = body.column(align=True)
    _draw_figure(column, "Frames", f"{result.first_frame} – {result.last_frame}")
    _draw_frame(column, "Rest Pose", result.anchor_frame, f"{result.anchor_frame}")
    _draw_frame(column, "Worst Frame", result.worst_frame, f"{result.worst_frame}   ({result.worst_rmse:.3f} %)")
    _draw_figure(column, "Time", f"{result.seconds:.1f} s")
    if preview.current() is None:
        box.operator("sprig.adjust", icon="EDITMODE_HLT")


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
    self.layout.operator(FINETUNE_OPERATOR, icon="MOD_ARMATURE")


def draw_export_entry(self, _context) -> None:
    """In File > Export."""
    self.layout.operator("sprig.export_game", text="SPRig to Game Engine (.fbx, .glb)")


CLASSES = (SPRIG_PT_main,)


def register() -> None:
    bpy.types.VIEW3D_MT_object_animation.append(draw_menu_entry)
    bpy.types.TOPBAR_MT_file_export.append(draw_export_entry)


def unregister() -> None:
    bpy.types.TOPBAR_MT_file_export.remove(draw_export_entry)
    bpy.types.VIEW3D_MT_object_animation.remove(draw_menu_entry)
