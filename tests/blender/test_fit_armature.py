"""An armature of the artist's: what is fitted, that no bone of it changes, and what is refused."""

import importlib
import math
import threading
from types import SimpleNamespace

import bpy
import numpy as np
import pytest

from sprig.backend.formats.npz import read_rig
from sprig.backend.sequence import MeshSequence
from sprig.sprig_blender import cli
from sprig.sprig_blender.compat import curves_of
from sprig.sprig_blender.read_sequence import read_sequence
from sprig.sprig_blender.write_armature import WrittenRig, evaluated_rmse

from ..command_line import one_line
from .rigs import mesh_object, tube
from .scene_state import scene_state

FRAMES = range(1, 9)
EXACT = 0.02  # per cent of the diagonal: the artist's bones made the motion, so they replay it
TURN = (0.3, -0.2, 0.5)  # of the armature's object, which also is half as large and stands elsewhere


def select(*things):
    for other in bpy.context.selected_objects:
        other.select_set(False)
    for thing in things:
        thing.select_set(True)
    bpy.context.view_layer.objects.active = things[-1]


def artists_armature(name="Bones"):
    """Bones as artists have them: rolls, a connected one, one that slides, a control above and a handle that deform
    nothing, a second root, custom properties and rotation modes; the object is turned, scaled and elsewhere."""
    armature = bpy.data.objects.new(name, bpy.data.armatures.new(name))
    bpy.context.scene.collection.objects.link(armature)
    armature.location, armature.rotation_euler, armature.scale = (1, 2, 3), TURN, (0.5, 0.5, 0.5)
    select(armature)
    bpy.ops.object.mode_set(mode="EDIT")
    bones = {}
    for name_, parent, head, tail, roll, deform in (
        ("control", None, (0, -1, 0), (0, -0.5, 0), 0.1, False),
        ("Lower", "control", (0, 0, 0), (0, 0, 1), 0.7, True),
        ("Middle", "Lower", (0, 0, 1), (0, 0.05, 1.5), -1.2, True),
        ("Slide", "Middle", (0, 0, 1.5), (0, 0, 2), 2.0, True),
        ("handle", "Slide", (0, 0, 2.2), (0, 0.3, 2.2), 0.0, False),
        ("Target", None, (0, 2, 0), (0, 2.5, 0), 0.0, False),
    ):
        bone = bones[name_] = armature.data.edit_bones.new(name_)
        bone.head, bone.tail, bone.roll, bone.use_deform = head, tail, roll, deform
        bone.parent = bones.get(parent)
    bones["Middle"].use_connect = True
    bpy.ops.object.mode_set(mode="OBJECT")
    armature.data.bones["Lower"]["stiffness"] = 0.25
    armature.pose.bones["Middle"].rotation_mode = "ZXY"
    armature.pose.bones["Slide"].rotation_mode = "AXIS_ANGLE"
    return armature


def moving_body(armature, name="Body"):
    """A tube that the armature moves, with its keys."""
    vertices, faces = tube(rings=25)
    body = mesh_object(vertices, faces, name)
    body.parent = armature
    body.modifiers.new("Armature", "ARMATURE").object = armature
    z = vertices[:, 2]
    shares = {"Lower": np.clip((1.2 - z) / 0.4, 0, 1), "Slide": np.clip((z - 1.4) / 0.2, 0, 1)}
    shares["Middle"] = 1 - shares["Lower"] - shares["Slide"]
    for bone, share in shares.items():
        group = body.vertex_groups.new(name=bone)
        for v in np.flatnonzero(share > 0):
            group.add([int(v)], float(share[v]), "REPLACE")
    for frame in FRAMES:
        phase = frame / 3
        control, middle, slide = (armature.pose.bones[bone] for bone in ("control", "Middle", "Slide"))
        control.location = (0.2 * frame, 0, math.sin(phase))
        control.keyframe_insert("location", frame=frame)
        middle.rotation_euler = (math.sin(phase), 0.3 * math.cos(phase), 0.1)
        middle.keyframe_insert("rotation_euler", frame=frame)
        slide.rotation_axis_angle = (0.5 * math.sin(2 * phase), 1, 0, 0)
        slide.location = (0, 0.1 * frame, 0)
        slide.keyframe_insert("rotation_axis_angle", frame=frame)
        slide.keyframe_insert("location", frame=frame)
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = FRAMES[0], FRAMES[-1]
    scene.frame_set(3)
    return body


def bones_of(armature) -> dict:
    """Everything about the bones that a fit must leave alone."""
    select(armature)
    hidden = armature.hide_get()
    armature.hide_set(False)
    bpy.ops.object.mode_set(mode="EDIT")
    found = {
        bone.name: (
            tuple(bone.head), tuple(bone.tail), bone.roll, bone.parent.name if bone.parent else None, bone.use_connect,
            bone.use_deform, bone.get("stiffness"),
        )
        for bone in armature.data.edit_bones
    }  # fmt: skip
    bpy.ops.object.mode_set(mode="OBJECT")
    armature.hide_set(hidden)
    return found | {"order": [bone.name for bone in armature.data.bones]}


def error_of(result, skin, sequence: MeshSequence) -> float:
    """RMSE, per cent, of what Blender shows."""
    written = WrittenRig(result, (skin,), (result.animation_data.action,), int(sequence.frame_numbers[0]), 24.0)
    return float(np.sqrt(np.mean(evaluated_rmse(bpy.context, written, sequence) ** 2)))


def recorded(body):
    return read_sequence(bpy.context, [body])


@pytest.fixture
def addon(extension):
    """The modules of the extension that the tests look into."""
    names = ("fit_armature", "auto_rig")
    modules = {name: importlib.import_module(f"{extension.__name__}.sprig_blender.{name}") for name in names}
    return SimpleNamespace(errors=importlib.import_module(f"{extension.__name__}.backend.errors"), **modules)


def fitted(*things):
    """Press the button on these; the copy of the armature, and its mesh."""
    select(*things)
    assert bpy.ops.sprig.fit_armature() == {"FINISHED"}
    result = bpy.context.view_layer.objects.active
    (skin,) = (child for child in result.children if child.type == "MESH")
    return result, skin


# ---- the button


@pytest.mark.parametrize("fit", ["both", "motion", "weights"])
def test_the_result_replays_and_no_bone_changes(addon, fit):
    armature = artists_armature()
    body = moving_body(armature)
    before, sequence = bones_of(armature), recorded(body)
    action = armature.animation_data.action
    weights = [[(element.group, element.weight) for element in vertex.groups] for vertex in body.data.vertices]
    bpy.context.scene.sprig.fit = fit
    result, skin = fitted(body, armature)
    assert result != armature and armature.hide_get() and body.hide_get()
    assert armature.animation_data.action == action and action.use_fake_user
    assert result.animation_data.action != action
    assert [[(element.group, element.weight) for element in vertex.groups] for vertex in body.data.vertices] == weights
    assert error_of(result, skin, sequence) < EXACT
    assert result.sprig.rmse < EXACT and result.sprig.joints == 6
    modes = [bone.rotation_mode for bone in result.pose.bones]
    assert modes == [bone.rotation_mode for bone in armature.pose.bones]
    assert not {"handle", "Target", "control"} & {group.name for group in skin.vertex_groups}
    keyed = {curve.data_path for curve in curves_of(result)}
    assert not any("handle" in path or "Target" in path for path in keyed)
    assert not any("location" in path and ("Middle" in path or "Lower" in path) for path in keyed)
    assert bones_of(result) == before == bones_of(armature)
    assert skin.parent == result


def test_an_armature_that_moved_nothing_fits_a_cache(addon):
    """Shape keys carry the motion; the frame that the user names shows the rest pose."""
    made = artists_armature("Old")
    body = moving_body(made)
    shapes = recorded(body)
    rest, faces = tube(rings=25)
    other = mesh_object(rest, faces, "Cache")
    other.matrix_world = made.matrix_world
    bpy.context.view_layer.update()
    into = np.linalg.inv(np.array(made.matrix_world))
    other.shape_key_add(name="Basis")
    for f, frame in enumerate(FRAMES):
        key = other.shape_key_add(name=f"Frame {frame}")
        local = shapes.world_vertices(f) @ into[:3, :3].T + into[:3, 3]
        key.data.foreach_set("co", local.astype(np.float32).ravel())
        for at, value in ((frame - 1, 0.0), (frame, 1.0), (frame + 1, 0.0)):
            key.value = value
            key.keyframe_insert("value", frame=at)
    armature = artists_armature("New")
    for name in ("Lower", "Middle", "handle"):  # so the artist says that Slide may move
        armature.pose.bones[name].lock_location = (True, True, True)
    bpy.data.objects.remove(body)
    settings = bpy.context.scene.sprig
    bpy.context.scene.frame_start = 0  # where no key has a value, the rest shape shows
    select(other)
    with pytest.raises(RuntimeError, match="name the rest frame"):
        settings.own_armature = armature
        bpy.ops.sprig.fit_armature()
    settings.rest_mode, settings.rest_frame = "FRAME", 0
    settings.own_armature = armature
    sequence = recorded(other)
    result, skin = fitted(other)
    settings.own_armature = None
    assert error_of(result, skin, sequence) < 0.2
    assert bones_of(result) == bones_of(armature)


def test_locked_groups_keep_their_weights(addon):
    armature = artists_armature()
    body = moving_body(armature)
    group = body.vertex_groups["Middle"]
    group.add(list(range(40)), 0.25, "REPLACE")
    for name in ("Lower",):
        body.vertex_groups[name].add(list(range(40)), 0.75, "REPLACE")
    group.lock_weight = True

    def column(mesh):
        index = mesh.vertex_groups["Middle"].index
        return np.array([sum(e.weight for e in v.groups if e.group == index) for v in mesh.data.vertices])

    wanted = column(body)
    _, skin = fitted(body, armature)
    np.testing.assert_allclose(column(skin), wanted, atol=2e-4)
    assert [group.name for group in skin.vertex_groups if group.lock_weight] == ["Middle"]


def test_constraints_do_not_fight_with_the_keys(addon):
    armature = artists_armature()
    body = moving_body(armature)
    limit = armature.pose.bones["Middle"].constraints.new("LIMIT_ROTATION")
    limit.use_limit_x, limit.max_x, limit.owner_space = True, 0.2, "LOCAL"
    sequence = recorded(body)
    result, skin = fitted(body, armature)
    assert error_of(result, skin, sequence) < EXACT
    assert result.pose.bones["Middle"].constraints[0].mute and not limit.mute


def test_running_again_replaces_the_result(addon):
    armature = artists_armature()
    body = moving_body(armature)
    result, _ = fitted(body, armature)
    before = scene_state()["datablocks"]
    again, _ = fitted(result)  # the copy stands for the artist's, its mesh for the source
    assert scene_state()["datablocks"] == before
    assert addon.fit_armature.chosen_armature(bpy.context) == armature
    assert bones_of(again) == bones_of(armature)


def test_a_bone_without_its_parents_rotation_is_keyed_right(addon):
    armature = artists_armature()
    body = moving_body(armature)
    armature.data.bones["Slide"].use_inherit_rotation = False
    armature.data.bones["Slide"].use_local_location = False
    sequence = recorded(body)
    result, skin = fitted(body, armature)
    assert error_of(result, skin, sequence) < EXACT


def refused(*things) -> str:
    select(*things)
    before = scene_state()
    with pytest.raises(RuntimeError) as error:
        bpy.ops.sprig.fit_armature()
    assert scene_state() == before
    return str(error.value)


def test_refusals_leave_the_scene_as_it_was(addon):
    armature = artists_armature()
    body = moving_body(armature)
    armature.scale = (1, 2, 1)
    bpy.context.view_layer.update()
    assert "apply its scale" in refused(body, armature)
    armature.scale = (1, 1, 1)
    armature.pose.bones["Slide"].scale = (2, 2, 2)
    bpy.context.view_layer.update()
    bpy.context.scene.sprig.fit = "weights"
    assert "is scaled in frame 1" in refused(body, armature)
    bpy.context.scene.sprig.fit = "both"
    settings = bpy.context.scene.sprig
    settings.rest_mode, settings.rest_frame = "FRAME", 77
    assert "The rest frame 77" in refused(body, armature)
    settings.rest_mode = "BOUND"
    for bone in armature.data.bones:
        bone.use_deform = False
    assert "no bone that deforms" in refused(body, armature)
    select(mesh_object(*tube(), "Alone"))
    assert not bpy.ops.sprig.fit_armature.poll()


@pytest.mark.parametrize("phase", ["Reading the poses", "Frames read", "Fitting", "Writing"])
def test_cancelling_leaves_the_scene_as_it_was(addon, phase):
    armature = artists_armature()
    body = moving_body(armature)
    bpy.context.scene.sprig.fit = "weights" if phase == "Reading the poses" else "both"
    select(body, armature)
    before, cancel = scene_state(), threading.Event()
    steps = addon.fit_armature.steps(bpy.context, cancel, patience=0.05)
    with pytest.raises(addon.errors.Cancelled):
        for step in steps:
            if step.text.startswith(phase):
                cancel.set()
    assert scene_state() == before


# ---- the command line


@pytest.fixture
def scene_file(tmp_path):
    armature = artists_armature()
    body = moving_body(armature)
    saved = bones_of(armature), recorded(body)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "body.blend"))
    return tmp_path / "body.blend", *saved


@pytest.mark.parametrize("suffix", [".blend", ".glb", ".fbx", ".npz"])
def test_the_command_line_fits_an_armature_of_the_scene(scene_file, suffix):
    path, bones, sequence = scene_file
    out = path.with_name(f"out{suffix}")
    assert cli.main(["rig", str(path), "-o", str(out), "-q", "--skeleton", "Bones"]) == 0
    if suffix == ".npz":
        rig = read_rig(out)
        assert list(rig["joint_names"]) == bones["order"]
        return
    if suffix == ".blend":
        bpy.ops.wm.open_mainfile(filepath=str(out))
        armatures = {thing.name: thing for thing in bpy.data.objects if thing.type == "ARMATURE"}
        assert sorted(armatures) == ["Body Rig", "Bones"]
        result = armatures["Body Rig"]
        (skin,) = (child for child in result.children if child.type == "MESH")
        assert error_of(result, skin, sequence) < EXACT
        assert bones_of(result) == bones == bones_of(armatures["Bones"])
        assert len(curves_of(armatures["Bones"])) == 13  # the artist's own
        return
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    importer = bpy.ops.import_scene.gltf if suffix == ".glb" else bpy.ops.import_scene.fbx
    importer(filepath=str(out))
    (armature,) = (thing for thing in bpy.data.objects if thing.type == "ARMATURE")
    assert sorted(bone.name for bone in armature.data.bones) == sorted(bones["order"])


def test_a_skeleton_from_a_file_keeps_its_rolls_in_a_scene(scene_file):
    path, bones, _ = scene_file
    rig, clip, out = (path.with_name(name) for name in ("rig.npz", "clip.npz", "out.blend"))
    assert cli.main(["rig", str(path), "-o", str(rig), "-q", "--skeleton", "Bones"]) == 0
    first = read_rig(rig)
    bpy.ops.wm.open_mainfile(filepath=str(path))
    sequence = recorded(bpy.data.objects["Body"])
    shapes = np.stack([sequence.world_vertices(f) for f in range(sequence.frame_count)])
    np.savez(clip, vertices=shapes, faces=sequence.faces, fps=24.0)
    assert cli.main(["rig", str(clip), "-o", str(out), "-q", "--skeleton", str(rig)]) == 0
    bpy.ops.wm.open_mainfile(filepath=str(out))
    (armature,) = (thing for thing in bpy.data.objects if thing.type == "ARMATURE")
    assert [bone.name for bone in armature.data.bones] == bones["order"]
    made = np.array([armature.matrix_world @ bone.matrix_local for bone in armature.data.bones])
    np.testing.assert_allclose(made, first["bone_rest"], atol=2e-4)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--skeleton", "Nobody"], "There is no armature 'Nobody'; the input has Bones."),
        (["--skeleton", "Bones", "--joints", "4"], "--joints does not apply to a skeleton that is given"),
        (["--skeleton", "missing.npz"], "There is no file missing.npz"),
        (["--fit", "motion"], "--fit belongs to a given skeleton"),
        (["--skeleton", "Bones", "--rest-frame", "99"], "Frame 99"),
    ],
)
def test_the_command_line_says_what_is_wrong(scene_file, capfd, options, words):
    path, _, _ = scene_file
    assert cli.main(["rig", str(path), "-o", str(path.with_name("out.npz")), "-q", *options]) == 2
    assert words in one_line(capfd.readouterr().err)
    assert not path.with_name("out.npz").exists()
