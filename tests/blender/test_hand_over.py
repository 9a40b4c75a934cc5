"""Handing over: what is compared, cleaned up, checked and exported, and what carries the travel."""

import dataclasses
import importlib
import json
from types import SimpleNamespace

import bpy
import numpy as np
import pytest
from scipy.spatial import cKDTree

from sprig.backend.errors import SprigError
from sprig.backend.formats.npz import read_rig
from sprig.backend.kinematics import linear_blend_skinning
from sprig.backend.sequence import ClipSpan
from sprig.sprig_blender import cli
from sprig.sprig_blender.compat import assign, curves_of
from sprig.sprig_blender.export import ENGINES, export
from sprig.sprig_blender.export_check import export_findings
from sprig.sprig_blender.write_armature import (
    MARK,
    evaluated_positions,
    mesh_from_sequence,
    read_result,
    write_armature,
)

from ..command_line import one_line
from ..small_files import write_npz
from .rigs import mesh_object, random_rig, replay, replayed, source_of, triangles, tube
from .scene_state import scene_state
from .test_operator import bent, by_armature, by_shape_keys, select

ROOT_MOTIONS = ("hips", "root", "object")
SAME = 1e-6  # diagonals; the float32 of Blender's evaluation
RE_IMPORTED = 1e-3  # diagonals; what an exchange format may cost


def moving_rig(**options):
    """A rig with six bones that walks about."""
    return random_rig(
        np.random.default_rng(1), *tube(), joints=6, frames=6, angle=0.7, origin=(0.5, -0.2, 1), **options
    )


def written_as(root_motion="hips", **options):
    """The rig, its source and what was written for it."""
    rig = moving_rig()
    source = source_of(rig, tube()[1])
    ids = np.zeros(len(rig.rest_vertices), int)
    scene = bpy.context.scene
    scene.render.fps, scene.frame_start, scene.frame_end = 25, int(rig.frame_numbers[0]), int(rig.frame_numbers[-1])
    return rig, source, write_armature(bpy.context, rig, [source], ids, root_motion=root_motion, **options)


@pytest.fixture
def addon(extension):
    """The add-on's modules under the names that Blender gave them, and settings for a small and quick rig."""
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 6
    scene.sprig.joints_mode, scene.sprig.joints = "NUMBER", 2
    scene.sprig.skeleton = "motion"
    names = ("hand_over", "problems", "write_armature")
    return SimpleNamespace(
        **{name: importlib.import_module(f"{extension.__name__}.sprig_blender.{name}") for name in names}
    )


def auto_rig(*things):
    """Press the button on these; returns the armature and its meshes."""
    select(*things)
    assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
    armature = bpy.context.view_layer.objects.active
    return armature, [child for child in armature.children if child.type == "MESH"]


def refused(operator, **options) -> str:
    """The sentence with which an operator refuses, having checked that the scene is as it was."""
    before = scene_state()
    with pytest.raises(RuntimeError) as error:
        operator(**options)
    assert scene_state() == before
    return str(error.value)


def delete(thing):
    """As the user does it in the viewport."""
    select(thing)
    bpy.ops.object.delete()


# ---- root motion


@pytest.mark.parametrize("root_motion", ROOT_MOTIONS)
def test_the_rig_replays_whatever_carries_it(root_motion):
    rig, _, written = written_as(root_motion)
    sequence = replay(rig)
    size = np.linalg.norm(np.ptp(sequence.world_vertices(0), axis=0))
    shapes = replayed(written.meshes[0], rig.frame_numbers)
    errors = [np.abs(shape - sequence.world_vertices(f)).max() for f, shape in enumerate(shapes)]
    assert max(errors) < SAME * max(size, np.abs(shapes).max())


def keyed(armature, path):
    return [curve for curve in curves_of(armature) if curve.data_path == path]


def test_hips_carry_the_travel():
    _, _, written = written_as("hips")
    assert len(written.armature.data.bones) == 6 and not keyed(written.armature, "location")


def test_a_root_bone_carries_the_travel():
    rig, _, written = written_as("root")
    armature = written.armature
    root = armature.data.bones["root"]
    assert len(armature.data.bones) == 7 and root.parent is None and not root.use_deform
    assert [bone.name for bone in armature.data.bones if bone.parent is None] == ["root"]
    assert "root" not in written.meshes[0].vertex_groups
    lowest = rig.rest_vertices[:, 2].min() + rig.origin[2]
    assert (armature.matrix_world @ root.head_local).z == pytest.approx(lowest, abs=1e-5)
    np.testing.assert_allclose(np.array(root.matrix_local)[:3, :3], np.eye(3), atol=1e-6)
    assert [c.name for c in root.collections] == ["Root"]
    # Below the root bone the joint that carried everything only goes up and down.
    for number in rig.frame_numbers:
        bpy.context.scene.frame_set(int(number))
        pose = armature.pose.bones
        moved = (pose["bone_0"].head - pose["root"].head) - (armature.data.bones["bone_0"].head_local - root.head_local)
        assert abs(moved.x) < 1e-5 and abs(moved.y) < 1e-5
        assert pose["root"].head.z == pytest.approx(root.head_local.z, abs=1e-6)


def test_the_bones_are_the_same_beside_the_root():
    """Names, rolls and collections do not depend on who carries the travel."""

    found = {}
    for root_motion in ROOT_MOTIONS:
        armature = written_as(root_motion)[2].armature
        bones = [bone for bone in armature.data.bones if bone.name != "root"]
        found[root_motion] = (
            [(bone.name, *(collection.name for collection in bone.collections)) for bone in bones],
            np.array([[*np.ravel(bone.matrix_local), bone.length] for bone in bones]),
        )
    for root_motion in ("root", "object"):
        assert found[root_motion][0] == found["hips"][0]
        np.testing.assert_allclose(found[root_motion][1], found["hips"][1], atol=1e-5)


def test_the_armature_carries_the_travel():
    rig, _, written = written_as("object")
    assert len(written.armature.data.bones) == 6 and len(keyed(written.armature, "location")) == 3
    places = []
    for number in rig.frame_numbers:
        bpy.context.scene.frame_set(int(number))
        places.append(np.array(written.armature.matrix_world)[:3, 3])
    assert np.ptp(places, axis=0)[:2].min() > 0.1 and np.ptp(places, axis=0)[2] == 0


@pytest.mark.parametrize("root_motion", ROOT_MOTIONS)
def test_corrective_keys_fit_whatever_carries_the_rig(root_motion):
    rig = moving_rig()
    sequence = replay(rig)
    noise = np.random.default_rng(2).normal(size=sequence.vertices.shape) * 0.02
    sequence.vertices[...] += noise.astype(np.float32)
    source = source_of(rig, tube()[1])
    written = write_armature(
        bpy.context, rig, [source], np.zeros(len(noise[0]), int), corrective=sequence, root_motion=root_motion
    )
    shapes = replayed(written.meshes[0], rig.frame_numbers)
    for f, shape in enumerate(shapes):
        np.testing.assert_allclose(shape, sequence.world_vertices(f), atol=1e-4)


def test_the_panel_chooses_what_carries_the_travel(addon):
    body = by_shape_keys()
    bpy.context.scene.sprig.root_motion = "root"
    armature, _ = auto_rig(body)
    assert "root" in armature.data.bones and armature.sprig.joints == len(armature.data.bones) - 1
    bpy.context.scene.sprig.root_motion = "object"
    armature, _ = auto_rig(body)
    assert "location" in {curve.data_path for curve in curves_of(armature)}


def walking_tube(path, frames=6):
    """A clip of a tube that bends and walks away; returns its positions (F,V,3)."""
    vertices, faces = tube(rings=24)
    positions = [bent(vertices, 0.2 * f) + np.array([0.3, -0.2, 0.1]) * f for f in range(frames)]
    write_npz(path, np.array(positions, dtype=np.float32), triangles(faces))
    return np.array(positions)


@pytest.mark.parametrize("suffix", [".blend", ".glb", ".fbx", ".npz"])
@pytest.mark.parametrize("root_motion", ROOT_MOTIONS[1:])
def test_the_command_line_writes_every_kind(suffix, root_motion, tmp_path, capfd):
    clip, out, told = tmp_path / "clip.npz", tmp_path / f"out{suffix}", tmp_path / "told.json"
    positions = walking_tube(clip)
    arguments = ["rig", clip, "-o", out, "--skeleton", "motion", "--joints", "2", "--root-motion", root_motion]
    status = cli.main([*map(str, arguments), "-q", "--report", str(told)])
    if (suffix, root_motion) == (".npz", "object"):
        assert status == 2 and not out.exists()
        assert "--root-motion object does not apply; give hips or root" in one_line(capfd.readouterr().err)
        return
    assert status == 0
    joints = [joint["name"] for joint in json.loads(told.read_text())["joints"]]
    assert len(joints) == (3 if root_motion == "root" else 2)
    if suffix == ".npz":
        rig = read_rig(out)
        assert list(rig["joint_names"]) == joints and joints[0] == "root"
        motion = rig["bone_world"] @ np.linalg.inv(rig["bone_rest"])
        shapes = np.array([linear_blend_skinning(rig["rest_vertices"], rig["weights"], pose) for pose in motion])
    else:
        if suffix == ".blend":
            bpy.ops.wm.open_mainfile(filepath=str(out))
        else:
            import_again(out, fps=24)
        (mesh,) = [thing for thing in bpy.context.scene.objects if thing.type == "MESH" and thing.modifiers]
        assert {bone.name for bone in mesh.parent.data.bones} == set(joints)
        start = round(mesh.parent.animation_data.action.frame_range[0])
        shapes = replayed(mesh, range(start, start + len(positions)))
    order = cKDTree(positions[0]).query(shapes[0])[1]
    assert np.linalg.norm(shapes - positions[:, order], axis=2).max() < 0.01 * np.linalg.norm(np.ptp(positions[0], 0))


def test_a_given_skeleton_keeps_what_carries_it(tmp_path, capfd):
    walking_tube(tmp_path / "clip.npz")
    arguments = ["rig", tmp_path / "clip.npz", "-o", tmp_path / "out.npz", "-q", "--root-motion", "root"]
    assert cli.main([*map(str, arguments), "--skeleton", "some.npz"]) == 2
    assert "--root-motion does not apply to a skeleton that is given" in one_line(capfd.readouterr().err)


def two_clips(root_motion):
    """A rig of two clips, written; clip by clip the world positions (F,V,3)."""
    rig = random_rig(np.random.default_rng(4), *tube(), joints=5, frames=12, angle=0.7, origin=(0.5, -0.2, 1.0))
    whole = replay(rig)
    numbers = 3 + np.arange(12)
    rig = dataclasses.replace(
        rig, frame_numbers=numbers, clips=(ClipSpan("walk", 25.0, 0, 5), ClipSpan("hop", 25.0, 5, 12))
    )
    sources = mesh_from_sequence(bpy.context, whole)
    written = write_armature(bpy.context, rig, sources, whole.object_id, root_motion=root_motion)
    shapes = np.array([whole.world_vertices(f) for f in range(12)])
    bpy.context.scene.render.fps = 25
    return written, {clip.name: shapes[clip.rows] for clip in rig.clips}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("root_motion", ROOT_MOTIONS)
def test_every_clip_travels(engine, root_motion, tmp_path):
    written, wanted = two_clips(root_motion)
    assert findings(written) == []
    path = tmp_path / f"out{ENGINES[engine].suffix}"
    export(path, bpy.context, written, engine=ENGINES[engine])
    import_again(path)
    (mesh,) = [thing for thing in bpy.context.scene.objects if thing.type == "MESH" and thing.modifiers]
    for track in mesh.parent.animation_data.nla_tracks:
        track.mute = True
    for name, shapes in wanted.items():
        (action,) = [action for action in bpy.data.actions if name in action.name]
        assign(mesh.parent, action)
        first = round(action.frame_range[0])
        again = replayed(mesh, range(first, first + len(shapes)))
        order = cKDTree(shapes[0]).query(again[0])[1]
        size = np.linalg.norm(np.ptp(shapes[0], axis=0))
        assert np.linalg.norm(again - shapes[:, order], axis=2).max() < RE_IMPORTED * size


# ---- compare


def seen(things) -> list[bool]:
    return [thing.visible_get() for thing in things]


def test_compare_goes_round(addon):
    one, two = by_shape_keys("One"), by_shape_keys("Two")
    two.location.x = 1
    armature, skins = auto_rig(one, two)
    before = scene_state()
    select(skins[0])
    assert bpy.ops.sprig.compare() == {"FINISHED"}
    assert seen([one, two]) == [True, True] and seen(skins) == [False, False] and armature.visible_get()
    assert one.hide_render and not skins[0].hide_render  # renders show the rig
    assert bpy.context.view_layer.objects.active == skins[0]  # hidden, and still what the panel is about
    assert bpy.ops.sprig.compare() == {"FINISHED"}
    assert seen([one, two, *skins]) == [True] * 4 and {skin.display_type for skin in skins} == {"WIRE"}
    assert bpy.ops.sprig.compare() == {"FINISHED"}
    assert seen([one, two]) == [False, False] and {skin.display_type for skin in skins} == {"TEXTURED"}
    select(armature)
    assert scene_state() == before
    assert bpy.ops.sprig.compare(view="BOTH") == bpy.ops.sprig.compare(view="RIG") == {"FINISHED"}
    assert scene_state() == before


def test_a_comparison_is_saved(addon, tmp_path):
    auto_rig(by_shape_keys())
    for view, shown in (("SOURCE", [True, False]), ("BOTH", [True, True])):
        assert bpy.ops.sprig.compare(view=view) == {"FINISHED"}
        bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
        bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "scene.blend"))
        objects = bpy.data.objects
        assert seen([objects["Body"], objects["Body Skin"]]) == shown
        result = addon.hand_over.chosen_result(bpy.context)
        assert addon.hand_over.view_of(bpy.context, result) == view
    assert bpy.ops.sprig.compare() == {"FINISHED"}  # what follows on both
    assert seen([objects["Body"], objects["Body Skin"]]) == [False, True]
    assert objects["Body Skin"].display_type == "TEXTURED"


def test_comparisons_can_be_undone(addon):
    auto_rig(by_shape_keys())
    bpy.ops.ed.undo_push(message="before")
    before = scene_state()
    assert bpy.ops.sprig.compare("EXEC_DEFAULT", True, view="SOURCE") == {"FINISHED"}
    assert scene_state() != before
    bpy.ops.ed.undo()
    assert scene_state() == before


def test_what_cannot_be_compared_stays(addon):
    body = by_shape_keys()
    armature, skins = auto_rig(body)
    body.hide_viewport = True
    assert "Body cannot be shown" in refused(bpy.ops.sprig.compare, view="SOURCE")
    assert skins[0].visible_get() and body.hide_get()
    body.hide_viewport = False
    body.hide_set(False)
    delete(body)
    select(armature)
    assert "was made from is not in this view layer" in refused(bpy.ops.sprig.compare)
    assert addon.problems.last().sentence.endswith("undo its deletion, or show its collection.")


# ---- clean up


def everything() -> dict:
    """Names of all data, and how the objects are."""
    state = scene_state()
    return {key: state[key] for key in ("datablocks", "objects")}


@pytest.mark.parametrize("make", [by_shape_keys, by_armature])
@pytest.mark.parametrize("corrective", [False, True])
@pytest.mark.parametrize("root_motion", ROOT_MOTIONS)
def test_nothing_is_left_of_a_rig(addon, make, corrective, root_motion):
    body = make()
    before, uses = everything(), {action.name: action.users for action in bpy.data.actions}
    settings = bpy.context.scene.sprig
    settings.corrective, settings.root_motion = corrective, root_motion
    _, skins = auto_rig(body)
    assert bool(skins[0].data.shape_keys) == corrective
    select(skins[0])
    assert bpy.ops.sprig.clean_up() == {"FINISHED"}
    assert everything() == before and {action.name: action.users for action in bpy.data.actions} == uses
    assert body.visible_get() and not body.hide_render and bpy.context.view_layer.objects.active == body
    assert not bpy.ops.sprig.clean_up.poll()
    auto_rig(body)  # begins anew


def test_meshes_that_share_their_data(addon):
    one = by_shape_keys("One")
    two = one.copy()
    two.name, two.location.x = "Two", 1
    bpy.context.scene.collection.objects.link(two)
    bpy.context.view_layer.update()
    before = everything()
    armature, skins = auto_rig(one, two)
    assert one.data == two.data and len({skin.data for skin in skins}) == 2
    select(armature)
    assert bpy.ops.sprig.compare() == bpy.ops.sprig.clean_up() == {"FINISHED"}
    assert everything() == before and seen([one, two]) == [True, True]


def test_a_source_of_another_file(addon, tmp_path):
    """A linked mesh is compared and left as it is."""
    library = str(tmp_path / "library.blend")
    by_shape_keys()
    bpy.ops.wm.save_as_mainfile(filepath=library, copy=True)
    bpy.data.batch_remove([*bpy.data.objects, *bpy.data.meshes, *bpy.data.actions])
    with bpy.data.libraries.load(library, link=True) as (_, chosen):
        chosen.objects = ["Body"]
    (body,) = chosen.objects
    bpy.context.scene.collection.objects.link(body)
    before = everything()
    _, skins = auto_rig(body)
    select(skins[0])
    assert bpy.ops.sprig.compare(view="SOURCE") == {"FINISHED"} and seen([body, *skins]) == [True, False]
    assert bpy.ops.sprig.clean_up() == {"FINISHED"}
    assert everything() == before and seen([body]) == [True] and not body.is_editable  # still linked


def test_cleaning_up_can_be_undone(addon):
    auto_rig(by_shape_keys())
    bpy.ops.ed.undo_push(message="before")
    before = scene_state()
    assert bpy.ops.sprig.clean_up("EXEC_DEFAULT", True) == {"FINISHED"}
    assert scene_state() != before
    bpy.ops.ed.undo()
    assert scene_state() == before
    assert bpy.ops.sprig.clean_up() == {"FINISHED"} and not bpy.data.armatures


def test_what_the_artist_made_stays(addon):
    body = by_shape_keys()
    armature, (skin,) = auto_rig(body)
    collection = addon.hand_over.chosen_result(bpy.context)
    hat = mesh_object([(0, 0, 0), (1, 0, 0), (0, 1, 0)], [[0, 1, 2]], "Hat")
    collection.objects.link(hat)
    material = bpy.data.materials.new("Paint")
    skin.data.materials.append(material)
    own = bpy.data.actions.new("My walk")
    armature.animation_data.action = own
    select(armature)
    assert bpy.ops.sprig.clean_up() == {"FINISHED"}
    assert set(bpy.data.objects.keys()) == {"Body", "Hat"} and collection.objects[:] == [hat]
    assert MARK not in collection and bpy.data.actions[:] == [body.data.shape_keys.animation_data.action, own]
    assert bpy.data.materials[:] == [material]


def test_an_own_armature_is_as_before(addon):
    """Its action has no user more than it had, and nothing is hidden."""
    body = by_armature()
    own = bpy.data.objects["Bones"]
    action = own.animation_data.action
    action.use_fake_user = False
    before = everything()
    for _ in range(2):  # the second fit replaces the first
        select(body, own)
        assert bpy.ops.sprig.fit_armature() == {"FINISHED"}
        assert action.use_fake_user and not own.visible_get()
    assert bpy.ops.sprig.clean_up() == {"FINISHED"}
    assert everything() == before and own.visible_get() and not action.use_fake_user


@pytest.mark.parametrize("gone", ["source", "armature", "skin"])
def test_what_was_deleted_meanwhile(addon, gone):
    one, two = by_shape_keys("One"), by_shape_keys("Two")
    two.location.x = 1
    armature, skins = auto_rig(one, two)
    assert bpy.ops.sprig.compare(view="BOTH") == {"FINISHED"}
    delete({"source": one, "armature": armature, "skin": skins[0]}[gone])
    select(skins[1])
    if gone == "armature":
        assert "armature of 'SPRig One' is not in this view layer" in refused(bpy.ops.sprig.check_export)
    else:
        assert bpy.ops.sprig.check_export() == {"FINISHED"}
    assert bpy.ops.sprig.compare(view="SOURCE") == {"FINISHED"}
    assert bpy.ops.sprig.clean_up() == {"FINISHED"}
    assert set(bpy.data.objects.keys()) == ({"Two"} if gone == "source" else {"One", "Two"})
    assert not bpy.data.armatures and {mesh.name for mesh in bpy.data.meshes} == {"One", "Two"}


def test_nothing_of_ours_is_selected(addon):
    select(mesh_object(*tube(), "Still"))
    for operator in (bpy.ops.sprig.compare, bpy.ops.sprig.clean_up, bpy.ops.sprig.check_export):
        assert "Select a rig that SPRig made" in refused(operator)
    _, skins = auto_rig(by_shape_keys())
    select(skins[0])
    bpy.ops.object.mode_set(mode="EDIT")
    with pytest.raises(RuntimeError, match="Switch to Object Mode first"):
        bpy.ops.sprig.clean_up()
    bpy.ops.object.mode_set(mode="OBJECT")


# ---- check for export


def findings(written, fps=25.0) -> list[str]:
    bpy.context.view_layer.update()
    before = scene_state()
    found = export_findings(written.armature, written.meshes, bpy.context.scene, fps)
    assert scene_state() == before
    assert all(one.endswith(".") and "; " in one for one in found), found  # what is wrong; what to do
    return found


@pytest.mark.parametrize("root_motion", ROOT_MOTIONS)
def test_our_rigs_are_ready(root_motion):
    _, _, written = written_as(root_motion, corrective=replay(moving_rig()))
    assert findings(written) == []


def test_findings_in_weights():
    _, _, written = written_as()
    mesh, armature = written.meshes[0], written.armature
    groups = mesh.vertex_groups
    for group in groups:
        group.add([3], 0.2, "REPLACE")
        group.remove([5])
    groups[0].add([7], 5e-1, "ADD")
    for group in groups[1:]:
        group.remove([7])
    groups[0].add([7], 0.5, "REPLACE")
    assert findings(written) == [
        "Body Skin: more than 4 bones move 1 vertex; use Weights > Limit Total in Weight Paint Mode.",
        "Body Skin: no bone moves 1 vertex; give weights to what stays behind.",
        "Body Skin: the weights of 2 vertices do not sum to 1; use Weights > Normalize All in Weight Paint Mode.",
    ]
    armature.data.bones["bone_2"].use_deform = False
    assert any("Body Skin has weights for bone_2, which do not deform" in one for one in findings(written))


def edit_bones(armature, change):
    select(armature)
    bpy.ops.object.mode_set(mode="EDIT")
    change(armature.data.edit_bones)
    bpy.ops.object.mode_set(mode="OBJECT")


def test_findings_in_bones():
    _, _, written = written_as()

    def change(bones):
        bones["bone_5"].parent = None
        bones["bone_4"].tail = bones["bone_4"].head + (bones["bone_4"].tail - bones["bone_4"].head) * 1e-5
        bones["bone_3"].name = "arm:left"
        bones["bone_2"].name = "BODY SKIN"

    edit_bones(written.armature, change)
    assert findings(written) == [
        "Body Rig has 2 root bones (bone_0, bone_5); parent all of them to one bone.",
        "Body Rig has bones without length (bone_4); make them longer in Edit Mode.",
        "The names arm:left have characters that engines replace (:); rename them.",
        "The bones BODY SKIN share their names with another bone or an object, but for capitals; rename them.",
    ]


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        ((2, 2, 2), "Body Rig has a scale of 2; use"),
        ((1, 1, 3), "Body Rig has an uneven scale of 1 x 1 x 3; use"),
        ((-1, 1, 1), "Body Rig is mirrored by a negative scale; use"),
    ],
)
def test_findings_in_scale(scale, words):
    _, _, written = written_as()
    written.armature.scale = scale
    (found,) = findings(written)  # the mesh has none of its own
    assert words in found
    written.armature.scale = 1, 1, 1
    written.meshes[0].scale = scale
    (found,) = findings(written)
    assert words.replace("Rig", "Skin") in found


def test_findings_in_time():
    _, _, written = written_as()
    scene = bpy.context.scene
    scene.frame_end += 1  # the next key would be on the frame after it
    assert findings(written) == []
    scene.frame_end += 10
    (found,) = findings(written)
    assert "The keys are on frames 3 to 13 and the scene plays 3 to 24" in found
    scene.frame_start, scene.frame_end = 4, 13
    assert "plays 4 to 13" in findings(written)[0]
    scene.frame_start = 3
    scene.render.fps = 30
    assert findings(written) == [
        "The keys were made for 25 frames a second and the scene plays 30; set the frame rate in the output properties."
    ]
    scene.render.fps = 25
    curves_of(written.armature)[0].keyframe_points[2].co.x += 0.25
    assert "between frames" in findings(written)[0]
    written.armature.animation_data_clear()
    assert "no keys" in findings(written)[0]


def test_the_check_is_kept_for_the_panel(addon):
    armature, (skin,) = auto_rig(by_shape_keys())
    assert not armature.sprig.checked
    assert bpy.ops.sprig.check_export() == {"FINISHED"}
    assert armature.sprig.checked and armature.sprig.findings == ""
    skin.scale.x = 2
    bpy.context.view_layer.update()
    assert bpy.ops.sprig.check_export() == {"FINISHED"}
    assert "uneven scale" in armature.sprig.findings


# ---- export


def import_again(path, fps=25):
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.context.scene.render.fps = fps
    reader = bpy.ops.import_scene.fbx if path.suffix == ".fbx" else bpy.ops.import_scene.gltf
    reader(filepath=str(path))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("root_motion", ROOT_MOTIONS)
def test_exports_replay(engine, root_motion, tmp_path):
    """Read back, every vertex moves as in the scene, by bones of the same names."""
    rig, _, written = written_as(root_motion)
    source_of(rig, tube()[1], "Armature")  # has the name that Unreal wants for ours
    shapes = replayed(written.meshes[0], rig.frame_numbers)
    bones = {bone.name for bone in written.armature.data.bones}
    size = np.linalg.norm(np.ptp(shapes[0], axis=0))
    path = (tmp_path / "hero").with_suffix(ENGINES[engine].suffix)
    before = scene_state()
    export(path, bpy.context, written, engine=ENGINES[engine])
    assert scene_state() == before
    import_again(path)

    things = [thing for thing in bpy.context.scene.objects if not thing.hide_get()]
    (armature,) = [thing for thing in things if thing.type == "ARMATURE"]
    (mesh,) = [thing for thing in things if thing.type == "MESH" and thing.modifiers]
    assert {bone.name for bone in armature.data.bones} == bones
    if engine == "UNREAL":
        assert armature.name == ("root" if root_motion == "object" else "Armature")
    action = armature.animation_data.action
    assert "Body Motion" in action.name
    start = round(action.frame_range[0])
    if engine == "GODOT":
        assert start <= 1  # no rest before the animation
    match, worst = None, 0.0
    for number, shape in zip(rig.frame_numbers, shapes, strict=True):
        bpy.context.scene.frame_set(int(number) - int(rig.frame_numbers[0]) + start)
        again = evaluated_positions(mesh, bpy.context.evaluated_depsgraph_get())
        if match is None:  # exporters split and reorder vertices
            match = cKDTree(shape).query(again)[1]
            assert set(match) == set(range(len(shape)))
        worst = max(worst, np.linalg.norm(again - shape[match], axis=1).max() / size)
    assert worst < RE_IMPORTED


def test_the_button_exports(addon, tmp_path):
    one, two = by_shape_keys("One"), by_shape_keys("Two")
    two.location.x = 1
    _, skins = auto_rig(one, two)
    mesh_object(*tube(), "Still")
    assert bpy.ops.sprig.compare(view="SOURCE") == {"FINISHED"}  # what is hidden is exported all the same
    before = scene_state()
    for engine, suffix in (("UNITY", ".fbx"), ("UNREAL", ".fbx"), ("GODOT", ".glb")):
        path = tmp_path / f"{engine}{suffix}"
        assert bpy.ops.sprig.export_game(filepath=str(path), engine=engine) == {"FINISHED"}
    assert scene_state() == before
    names = {skin.name for skin in skins}
    for path in sorted(tmp_path.iterdir()):
        import_again(path)
        assert {thing.name for thing in bpy.context.scene.objects if thing.type == "MESH" and thing.modifiers} == names
        assert not {"One", "Two", "Still"} & set(bpy.data.objects.keys())


def test_exports_that_are_refused(addon, tmp_path):
    armature, _ = auto_rig(by_shape_keys())
    export_game = bpy.ops.sprig.export_game
    assert "should end in .glb" in refused(export_game, filepath=str(tmp_path / "hero.fbx"), engine="GODOT")
    assert "does not exist" in refused(export_game, filepath=str(tmp_path / "no" / "hero.fbx"), engine="UNITY")
    armature.animation_data_clear()
    assert "has no action" in refused(export_game, filepath=str(tmp_path / "hero.fbx"), engine="UNITY")
    assert not list(tmp_path.iterdir())


def test_the_file_is_called_like_the_rig(addon, tmp_path):
    armature, _ = auto_rig(by_shape_keys())
    armature.name = "Hero v1.2/old"
    result = addon.hand_over.chosen_result(bpy.context)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "scene.blend"))
    path = addon.hand_over.export_path(result, "GODOT")
    assert path.parent == tmp_path and path.suffix == ".glb" and "/" not in path.name
    assert addon.hand_over.with_suffix(path, "UNITY").name == path.stem + ".fbx"
    assert addon.hand_over.with_suffix(tmp_path / "hero v1.2", "UNITY").name == "hero v1.2.fbx"


def test_a_result_is_read_back():
    _, _, written = written_as()
    bpy.context.scene.render.fps = 30
    again = read_result(bpy.context, written.collection)
    assert (again.armature, again.meshes, again.actions) == (written.armature, written.meshes, written.actions)
    assert again.fps == 30
    written.armature.animation_data.action = None
    with pytest.raises(SprigError, match="has no action; assign one"):
        read_result(bpy.context, written.collection)
