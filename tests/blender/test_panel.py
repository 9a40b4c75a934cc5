"""The panel without a window: the status line, why buttons are greyed out, presets, and the time that is left."""

import os
import re
import time

import bpy
import pytest

from sprig.backend.pipeline import RigOptions

from .rigs import mesh_object, tube
from .test_operator import FRAMES, addon_of, by_armature, by_mesh_cache, by_shape_keys, select

BUTTONS = ("auto_rig_sequence", "preview")


@pytest.fixture
def addon(extension):
    return addon_of(extension, "auto_rig", "jobs", "preset_menu", "status")


def still(name="Still"):
    return mesh_object(*tube(rings=24), name)


def words(addon) -> str:
    return addon.status.in_words(addon.status.found(bpy.context), bpy.context.scene)


# ---- what was found


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda _folder: by_shape_keys(), "Shape keys"),
        (lambda _folder: by_armature(), "Armature"),
        (by_mesh_cache, "PC2 cache"),
        (lambda _folder: still(), "Not animated"),
    ],
    ids=["shape keys", "armature", "point cache", "still"],
)
def test_the_status_line_says_what_moves(addon, tmp_path, make, kind):
    select(make(tmp_path))
    assert words(addon) == f"{kind}, 1 mesh, 192 vertices, frames 1–6"


def test_the_status_line_of_several_meshes(addon, tmp_path):
    select(by_shape_keys("One"), by_shape_keys("Two"), by_mesh_cache(tmp_path), still())
    bpy.context.scene.sprig.frame_step = 2
    assert words(addon) == "Shape keys + PC2 cache, 4 meshes, 768 vertices, frames 1–5, every 2"
    assert addon.status.found(bpy.context).name == "4 meshes"
    select()
    assert addon.status.found(bpy.context) is None


def test_looking_is_done_once_until_something_changes(addon):
    body = by_shape_keys()
    select(body)
    bpy.context.view_layer.update()
    seen = addon.status.found(bpy.context)
    assert addon.status.found(bpy.context) is seen
    body.modifiers.new("Build", "BUILD")
    bpy.context.view_layer.update()
    assert addon.status.found(bpy.context).kinds == ("Simulation",)
    body.name = "Renamed"
    assert addon.status.found(bpy.context).name == "Renamed"


def test_looking_evaluates_nothing(addon):
    """A change that Blender has not worked out yet is still waiting after the panel has drawn its status line."""
    body = by_shape_keys()
    select(body)
    bpy.context.view_layer.update()
    updates = []
    bpy.app.handlers.depsgraph_update_post.append(lambda *_arguments: updates.append(1))
    try:
        body.location.x = 1
        words(addon)
        addon.status.obstacle_to_rigging(bpy.context)
        assert updates == []
        bpy.context.view_layer.update()
        assert updates == [1]
    finally:
        bpy.app.handlers.depsgraph_update_post.pop()


# ---- why a button is greyed out


def in_edit_mode(_addon, _folder):
    select(by_shape_keys())
    bpy.ops.object.mode_set(mode="EDIT")


def reversed_frames(_addon, _folder):
    select(by_shape_keys())
    settings = bpy.context.scene.sprig
    settings.range_mode, settings.frame_start, settings.frame_end = "CUSTOM", 6, 2


def file_is_gone(addon, folder):
    select(by_mesh_cache(folder))
    assert addon.status.obstacle_to_rigging(bpy.context) == ""
    (folder / "body.pc2").unlink()  # which Blender does not report
    addon.status._kept.clear()


@pytest.mark.parametrize(
    ("arrange", "reason"),
    [
        (lambda _addon, _folder: select(), "Select one or several animated meshes"),
        (lambda _addon, _folder: select(still()), "Still neither moves nor changes shape with time; select a mesh"),
        (in_edit_mode, "Switch to Object Mode first"),
        (reversed_frames, "The frame range 6 to 2 is reversed; give the first frame before the last"),
        (file_is_gone, "the file of its modifier Cache is missing"),
        (lambda addon, _folder: addon.jobs._running.append(addon.jobs.Activity("Preview")), "Preview is running; wait"),
    ],
    ids=["nothing selected", "still", "Edit Mode", "frames", "file", "running"],
)
def test_a_greyed_out_button_says_why(addon, tmp_path, arrange, reason):
    arrange(addon, tmp_path)
    try:
        shown = addon.status.obstacle_to_rigging(bpy.context)
        assert reason in shown
        for name in BUTTONS:
            operator = getattr(bpy.ops.sprig, name)
            assert not operator.poll()
            with pytest.raises(RuntimeError, match=re.escape(shown.removesuffix("."))):
                operator()
    finally:
        addon.jobs._running.clear()
        if bpy.context.mode != "OBJECT":
            bpy.ops.object.mode_set(mode="OBJECT")


def test_a_file_that_comes_back_is_seen(addon, tmp_path, monkeypatch):
    select(by_mesh_cache(tmp_path))
    cache = tmp_path / "body.pc2"
    cache.rename(tmp_path / "away.pc2")
    assert not bpy.ops.sprig.auto_rig_sequence.poll()
    (tmp_path / "away.pc2").rename(cache)
    monkeypatch.setattr(addon.status, "LOOK_AGAIN", 0.0)
    assert bpy.ops.sprig.auto_rig_sequence.poll()


def test_networks_alone_rig_what_stands_still(addon):
    select(still())
    assert not bpy.ops.sprig.auto_rig_sequence.poll()
    bpy.context.scene.sprig.skeleton = "learned"
    assert bpy.ops.sprig.auto_rig_sequence.poll()


# ---- presets


def shipped(addon) -> dict[str, str]:
    (folder,) = (path for path in bpy.utils.preset_paths(addon.preset_menu.FOLDER) if "sprig_blender" in path)
    return {name.removesuffix(".py"): os.path.join(folder, name) for name in os.listdir(folder) if name.endswith(".py")}


def load(path: str):
    assert bpy.ops.sprig.load_preset(filepath=path) == {"FINISHED"}


def chosen(addon) -> dict:
    return {name: getattr(bpy.context.scene.sprig, name) for name in addon.preset_menu.SETTINGS}


def test_shipped_presets_can_be_loaded(addon):
    settings = bpy.context.scene.sprig
    settings.anchor_mode, settings.anchor_frame, settings.frame_step = "FRAME", 4, 2
    for name in addon.preset_menu.SETTINGS:
        settings.property_unset(name)
    default, seen = chosen(addon), []
    presets = shipped(addon)
    assert sorted(presets) == ["Default", "Film", "Game_Engine", "Noisy_Scan", "Quick"]
    for name, path in presets.items():
        settings.joints_mode, settings.names, settings.stretch = "NUMBER", "unity", True
        load(path)
        seen.append(chosen(addon))
        assert (seen[-1] == default) == (name == "Default"), name
        assert RigOptions(**addon.auto_rig.rig_choices(bpy.context)).names == "sprig"
        assert (settings.anchor_mode, settings.anchor_frame, settings.frame_step) == ("FRAME", 4, 2)
    assert all(seen.count(one) == 1 for one in seen)
    load(presets["Game_Engine"])
    assert settings.influences <= 4 and settings.root_motion == "root" and not settings.corrective
    assert "UNDO" in addon.preset_menu.SPRIG_OT_load_preset.bl_options


def test_a_preset_of_ones_own(addon):
    settings = bpy.context.scene.sprig
    settings.joints, settings.tolerance, settings.names = 17, 0.25, "mixamo"
    mine = chosen(addon)
    assert bpy.ops.sprig.add_preset(name="My Dragons") == {"FINISHED"}
    try:
        load(shipped(addon)["Default"])
        assert chosen(addon) != mine
        path = bpy.utils.preset_find("My_Dragons", addon.preset_menu.FOLDER)
        assert path.startswith(os.environ["BLENDER_USER_RESOURCES"])
        load(path)
        assert chosen(addon) == mine
    finally:
        assert bpy.ops.sprig.add_preset(name="My_Dragons", remove_name=True) == {"FINISHED"}
    assert bpy.utils.preset_find("My_Dragons", addon.preset_menu.FOLDER) is None


# ---- the time that is left


def test_time_left(addon, monkeypatch):
    monkeypatch.setattr(addon.jobs, "ENOUGH_SECONDS", 0.1)
    activity, step = addon.jobs.Activity("Auto-Rig"), addon.jobs.Step
    activity.go_on(step(0.2, "Reading"))
    assert activity.seconds_left is None and addon.jobs.time_left(activity) == ""  # too early
    time.sleep(0.2)
    activity.go_on(step(0.4, "Solving"))
    assert 0.2 < activity.seconds_left < 3  # 0.3 where nothing else runs
    assert addon.jobs.time_left(activity) == "a few seconds left"
    activity._ends += 60
    assert addon.jobs.time_left(activity) == "about 70 s left"
    activity._ends += 300
    assert addon.jobs.time_left(activity) == "about 7 min left"
    activity.cancel.set()
    assert addon.jobs.time_left(activity) == ""
    activity.cancel.clear()
    activity._ends = time.monotonic() - 1  # it takes longer than was thought, such as waiting for Object Mode
    assert activity.seconds_left is None


def test_frames_are_those_of_the_scene(addon):
    select(by_shape_keys())
    bpy.context.scene.frame_end = 88
    assert words(addon).endswith("frames 1–88")
    assert FRAMES[-1] < 88
