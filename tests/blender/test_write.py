"""What the result is made of, what stays as it was, and that running again replaces our own result only."""

from dataclasses import replace

import bpy
import numpy as np
import pytest
from mathutils import Quaternion

from sprig.backend.errors import SprigError
from sprig.backend.naming import name_joints
from sprig.backend.rig import Skeleton
from sprig.sprig_blender.compat import curves_of
from sprig.sprig_blender.skinned_mesh import pruned
from sprig.sprig_blender.write_armature import (
    evaluated_rmse,
    mesh_from_sequence,
    remove_previous,
    sources_of,
    write_armature,
)

from ..test_naming import quadruped
from ..test_rolls import standing_human
from .rigs import mesh_object, random_rig, replay, source_of, tube


def write(rig, *sources, **options):
    return write_armature(bpy.context, rig, list(sources), np.zeros(len(rig.rest_vertices), int), **options)


@pytest.fixture
def rig():
    return random_rig(np.random.default_rng(1), *tube(), joints=5)


@pytest.fixture
def source(rig):
    return source_of(rig, tube()[1])


def corner_attribute(mesh, kind):
    """A corner's values, put on a mesh so that they name the corner's face and vertex."""
    values = np.array([[p.index, mesh.loops[k].vertex_index] for p in mesh.polygons for k in p.loop_indices], float)
    if kind == "uv":
        mesh.uv_layers.new(name="UV").uv.foreach_set("vector", values.ravel())
    return values


# --- the result --------------------------------------------------------------------------------------------------


def test_armature_bones_groups_and_action(rig, source):
    written = write(rig, source)
    armature, (mesh,) = written.armature, written.meshes
    assert bpy.context.mode == "OBJECT" and bpy.context.object == armature
    assert sorted(bone.name for bone in armature.data.bones) == sorted(rig.skeleton.names)
    for name, parent in zip(rig.skeleton.names, rig.skeleton.parents, strict=True):
        bone = armature.data.bones[name]
        assert (bone.parent.name if bone.parent else None) == (rig.skeleton.names[parent] if parent >= 0 else None)
        assert bone.use_deform and not bone.use_connect
        (collection,) = bone.collections
        assert collection.parent.name == "Deform"
        assert bone["sprig_seen_in_motion"] is True
        assert bone["sprig_rotation_range_deg"] == pytest.approx(np.degrees(0.5))
        assert "sprig_confidence" not in bone  # nothing is known
    assert {bone.rotation_mode for bone in armature.pose.bones} == {"QUATERNION"}
    assert mesh.parent == armature and mesh.vertex_groups.keys() == list(rig.skeleton.names)
    assert [(m.type, m.object) for m in mesh.modifiers] == [("ARMATURE", armature)]
    weights = np.zeros_like(rig.weights)
    for vertex in mesh.data.vertices:
        for group in vertex.groups:
            weights[vertex.index, group.group] = group.weight
    np.testing.assert_allclose(weights, rig.weights, atol=1e-6)
    assert armature.animation_data.action == written.action
    np.testing.assert_allclose(written.action.frame_range, rig.frame_numbers[[0, -1]])
    assert {c.name for c in mesh.users_collection} == {c.name for c in armature.users_collection} == {"SPRig Body"}


@pytest.mark.parametrize("stretching", [(), (2,)])
def test_location_keys_only_where_a_joint_translates(stretching):
    vertices, faces = tube()
    rig = random_rig(np.random.default_rng(2), vertices, faces, joints=5, stretch=stretching)
    armature = write(rig, source_of(rig, faces)).armature
    paths = [curve.data_path for curve in curves_of(armature)]
    moving = {name for name in rig.skeleton.names if f'pose.bones["{name}"].location' in paths}
    assert moving == {rig.skeleton.names[j] for j in (0, *stretching)}
    assert all(paths.count(f'pose.bones["{name}"].rotation_quaternion') == 4 for name in rig.skeleton.names)
    keys = [key for curve in curves_of(armature) for key in curve.keyframe_points]
    assert {key.interpolation for key in keys} == {"LINEAR"}
    assert sorted({key.co.x for key in keys}) == rig.frame_numbers.tolist()
    assert all(curve.group.name in rig.skeleton.names for curve in curves_of(armature))


def creature_rig(creature):
    """A rig of a body of ours that stands still, on a tube whose vertices are tied to it at random."""
    joints, parents, _ = creature()
    tails = np.array([
        joints[parents == j].mean(axis=0) if (parents == j).any() else 2 * head - joints[parents[j]]
        for j, head in enumerate(joints)
    ])  # fmt: skip
    rig = random_rig(np.random.default_rng(6), *tube(), joints=len(joints), frames=2)
    skeleton = Skeleton(joints, tails, parents, name_joints(joints, parents))
    return replace(rig, skeleton=skeleton, motion=np.tile(np.eye(4), (2, len(joints), 1, 1)))


@pytest.mark.parametrize(
    ("creature", "expected"),
    [
        (standing_human, "Spine Head Arm.L Arm.R Leg.L Leg.R"),
        (quadruped, "Spine Head Tail Leg.L Leg.R"),
    ],
)
def test_every_bone_is_in_the_collection_of_its_part(creature, expected):
    rig = creature_rig(creature)
    bones = write(rig, source_of(rig, tube()[1])).armature.data
    (deform,) = bones.collections
    assert [child.name for child in deform.children] == expected.split()
    assert sorted(b.name for child in deform.children for b in child.bones) == sorted(rig.skeleton.names)
    held = {child.name: [bone.name for bone in child.bones] for child in deform.children}
    assert {"hips", "chest"} <= set(held["Spine"]) and "neck" in held["Head"]
    assert all(name.endswith(".L") for name in held["Leg.L"])
    if creature is quadruped:
        assert {"side.L", "side.R"} <= set(held["Head"])  # the ears


@pytest.mark.parametrize("creature", [standing_human, quadruped])
def test_a_pose_pasted_flipped_is_the_mirror_image(creature):
    """With Blender's own copy and paste, of all bones at once, turned at random and the hips moved."""
    rig = creature_rig(creature)
    armature = write(rig, source_of(rig, tube()[1])).armature
    armature.animation_data_clear()
    rng = np.random.default_rng(2)
    bpy.ops.object.mode_set(mode="POSE")
    for bone in armature.pose.bones:
        bone.rotation_quaternion = Quaternion(rng.normal(size=3), rng.uniform(-1, 1))
    armature.pose.bones["hips"].location = (0.1, 0.2, 0.3)
    bpy.context.view_layer.update()
    before = {bone.name: np.array(bone.matrix) for bone in armature.pose.bones}
    bpy.ops.pose.select_all(action="SELECT")
    bpy.ops.pose.copy()
    bpy.ops.pose.paste(flipped=True)
    bpy.context.view_layer.update()
    mirror, flip = np.diag([-1.0, 1, 1, 1]), np.diag([-1.0, 1, 1, 1])
    for name, matrix in before.items():
        other = name[:-1] + {"L": "R", "R": "L"}[name[-1]] if name[-2] == "." else name
        pasted = np.array(armature.pose.bones[other].matrix)
        np.testing.assert_allclose(pasted, mirror @ matrix @ flip, atol=1e-5, err_msg=name)


def test_tiny_weights_are_dropped_and_rows_renormalised():
    np.testing.assert_allclose(
        pruned(np.array([[0.5, 0.49995, 5e-5], [1, 0, 0]])), [[0.500025, 0.499975, 0], [1, 0, 0]], atol=1e-7
    )


def test_scaling_bones_are_refused_and_the_scene_unchanged(rig, source):
    motion = rig.motion.copy()
    motion[1, 2, :3, :3] *= 1.1
    before = set(bpy.data.user_map())
    with pytest.raises(SprigError, match="scale or shear"):
        write(replace(rig, motion=motion), source)
    assert set(bpy.data.user_map()) == before and not source.hide_get()


def test_a_mesh_that_no_longer_fits_is_refused_and_the_scene_unchanged(rig):
    other = mesh_object(*tube(rings=5))
    before = set(bpy.data.user_map())
    with pytest.raises(SprigError, match="'Body' no longer has the 72 vertices"):
        write(rig, other)
    assert set(bpy.data.user_map()) == before and not other.hide_get()


def test_long_and_odd_names_reach_bones_groups_and_curves():
    rig = random_rig(np.random.default_rng(3), *tube(), joints=3)
    names = ("a" * 80, 'say "so"\\', "Ünï\ncode")
    skeleton = type(rig.skeleton)(rig.skeleton.joints, rig.skeleton.tails, rig.skeleton.parents, names)
    rig = replace(rig, skeleton=skeleton)
    written = write(rig, source_of(rig, tube()[1]))
    assert written.meshes[0].vertex_groups.keys() == [bone.name for bone in written.armature.data.bones]
    assert evaluated_rmse(bpy.context, written, replay(rig)).max() < 1e-3


# --- what the mesh keeps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [(1, 1, 1), (2, 1, 0.5), (-1, 1, 1), (-1, -2, -1)])
def test_winding_uvs_normals_and_edges_survive_any_scale(rig, scale):
    source = source_of(rig, tube()[1], matrix=np.diag([*scale, 1.0]))
    mesh = source.data
    if np.prod(scale) < 0:
        mesh.flip_normals()  # as a modeller sees it: outside out in the world
    values = corner_attribute(mesh, "uv")
    mesh.edges[3].use_seam = True
    mesh.edges[4].use_edge_sharp = True
    # Custom normals that no smooth shading gives: the world's radial direction, tilted.
    world = np.array(source.matrix_world)[:3, :3]
    positions = np.array([world @ v.co for v in mesh.vertices])
    wanted = positions * [1, 1, 0] + [0, 0, 0.2]
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    corner_vertex = np.array([loop.vertex_index for loop in mesh.loops])
    local = wanted[corner_vertex] @ world  # a normal's world direction is world⁻ᵀ n
    mesh.normals_split_custom_set(local / np.linalg.norm(local, axis=1, keepdims=True))

    copy = write(rig, source).meshes[0].data

    assert np.linalg.det(np.array(bpy.data.objects["Body Skin"].matrix_world)[:3, :3]) == pytest.approx(1)
    for polygon in copy.polygons:  # outside stays outside: the tube's axis is Z
        centre = np.array(polygon.center) - [0, 0, 1]
        assert np.dot(polygon.normal, centre) > 0
    for polygon in copy.polygons:
        for k in polygon.loop_indices:
            np.testing.assert_allclose(copy.uv_layers["UV"].uv[k].vector, (polygon.index, copy.loops[k].vertex_index))
    assert len(values) == len(copy.loops)
    assert [e.index for e in copy.edges if e.use_seam] == [3]
    assert [e.index for e in copy.edges if e.use_edge_sharp] == [4]
    normals = np.array([n.vector for n in copy.corner_normals])
    if np.ptp(np.abs(scale)) == 0:  # a non-uniform scale changes the surface that custom normals are relative to
        corner_vertex = np.array([loop.vertex_index for loop in copy.loops])
        assert np.degrees(np.arccos((normals * wanted[corner_vertex]).sum(axis=1).clip(-1, 1))).max() < 1.0
    assert copy.has_custom_normals


def test_materials_colours_and_object_linked_slots_are_kept(rig, source):
    of_mesh, of_object = bpy.data.materials.new("of mesh"), bpy.data.materials.new("of object")
    source.data.materials.append(of_mesh)
    source.data.materials.append(of_mesh)
    source.material_slots[1].link = "OBJECT"
    source.material_slots[1].material = of_object
    source.data.polygons[5].material_index = 1
    colors = source.data.color_attributes.new("Paint", "FLOAT_COLOR", "POINT")
    colors.data.foreach_set("color", np.linspace(0, 1, 4 * len(source.data.vertices)).astype(np.float32))
    copy = write(rig, source).meshes[0]
    assert [slot.material for slot in copy.material_slots] == [of_mesh, of_object]
    assert copy.data.polygons[5].material_index == 1
    assert tuple(copy.data.color_attributes["Paint"].data[7].color) == tuple(colors.data[7].color)


def test_the_copy_is_free_of_what_moved_the_source(rig, source):
    """Armature, parent, constraint, action, NLA, shape keys and vertex groups stay on the source, unchanged."""
    old_armature = bpy.data.objects.new("Old", bpy.data.armatures.new("Old"))
    bpy.context.scene.collection.objects.link(old_armature)
    source.parent = old_armature
    source.modifiers.new("Armature", "ARMATURE").object = old_armature
    source.constraints.new("LIMIT_LOCATION")
    source.vertex_groups.new(name="old bone").add([0, 1], 1.0, "REPLACE")
    source.shape_key_add(name="Basis")
    source.shape_key_add(name="Smile").value = 1
    source.keyframe_insert("location", frame=1)
    source.animation_data.nla_tracks.new().strips.new("strip", 1, source.animation_data.action)

    copy = write(rig, source).meshes[0]

    assert copy.data.shape_keys is None and not copy.constraints and copy.animation_data is None
    assert "old bone" not in copy.vertex_groups and [m.type for m in copy.modifiers] == ["ARMATURE"]
    assert copy.parent != old_armature
    assert source.parent == old_armature and source.modifiers[0].object == old_armature
    assert "old bone" in source.vertex_groups and source.data.shape_keys.key_blocks["Smile"].value == 1
    assert source.animation_data.action and source.animation_data.nla_tracks[0].strips


def test_a_subdivision_after_the_deformation_is_kept(rig, source):
    source.modifiers.new("Cache", "MESH_CACHE")
    subdivision = source.modifiers.new("Smoother", "SUBSURF")
    subdivision.levels, subdivision.use_limit_surface = 2, False
    source.modifiers.new("Flat", "TRIANGULATE").min_vertices = 5
    written = write(rig, source)
    modifiers = written.meshes[0].modifiers
    assert [m.type for m in modifiers] == ["ARMATURE", "SUBSURF", "TRIANGULATE"]
    assert modifiers["Smoother"].levels == 2 and not modifiers["Smoother"].use_limit_surface
    assert modifiers["Flat"].min_vertices == 5
    assert evaluated_rmse(bpy.context, written, replay(rig)).max() < 1e-3
    assert all(m.show_viewport for m in modifiers)


def test_a_mesh_that_a_modifier_makes_is_rigged(rig):
    """The source's own mesh is half of what was read: a mirror before the deformation makes the rest."""
    vertices, faces = rig.rest_vertices, tube()[1]
    half = mesh_object(vertices[:3], [[0, 1, 2]])
    maker = half.modifiers.new("Maker", "NODES")
    maker.node_group = bpy.data.node_groups.new("Maker", "GeometryNodeTree")
    maker.node_group.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    nodes = maker.node_group.nodes
    info, output = nodes.new("GeometryNodeObjectInfo"), nodes.new("NodeGroupOutput")
    info.inputs["Object"].default_value = mesh_object(vertices, faces, "Whole")
    maker.node_group.links.new(info.outputs["Geometry"], output.inputs[0])
    half.modifiers.new("Smoother", "SUBSURF")
    count = len(bpy.data.objects)
    written = write(rig, half)
    assert len(bpy.data.objects) == count + 2
    assert [m.type for m in written.meshes[0].modifiers] == ["ARMATURE", "SUBSURF"]
    assert [m.show_viewport for m in half.modifiers] == [True, True]
    assert evaluated_rmse(bpy.context, written, replay(rig)).max() < 1e-3


def test_multi_user_data_is_copied(rig, source):
    twin = bpy.data.objects.new("Twin", source.data)
    bpy.context.scene.collection.objects.link(twin)
    before = np.array([v.co for v in source.data.vertices])
    written = write(rig, source)
    assert written.meshes[0].data != source.data and twin.data == source.data
    np.testing.assert_array_equal(before, [v.co for v in source.data.vertices])


def test_a_linked_object_gets_a_local_copy(rig, source, tmp_path):
    material = bpy.data.materials.new("of library")
    source.data.materials.append(material)
    library = tmp_path / "library.blend"
    bpy.data.libraries.write(str(library), {source})
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    with bpy.data.libraries.load(str(library), link=True) as (_, wanted):
        wanted.objects = ["Body"]
    linked = wanted.objects[0]
    bpy.context.scene.collection.objects.link(linked)
    written = write(rig, linked)
    mesh = written.meshes[0]
    assert mesh.is_editable and mesh.data.is_editable and mesh.data.users == 1
    assert not linked.is_editable
    assert mesh.data.materials[0].name == "of library"
    assert linked.hide_get() and evaluated_rmse(bpy.context, written, replay(rig)).max() < 1e-3


# --- several objects, sequences without objects ------------------------------------------------------------------


def test_several_objects_become_one_rig(rig):
    vertices, faces = tube()
    half = len(vertices) // 2
    lower, upper = [f for f in faces if max(f) < half], [[i - half for i in f] for f in faces if min(f) >= half]
    sources = [mesh_object(vertices[:half], lower, "Legs"), mesh_object(vertices[half:], upper, "Torso")]
    ids = (np.arange(len(vertices)) >= half).astype(int)
    written = write_armature(bpy.context, rig, sources, ids)
    assert [m.name for m in written.meshes] == ["Legs Skin", "Torso Skin"]
    assert {m.parent for m in written.meshes} == {written.armature}
    sequence = replace(replay(rig), object_id=ids, object_names=("Legs", "Torso"))
    assert evaluated_rmse(bpy.context, written, sequence).max() < 1e-3

    again = write_armature(
        bpy.context, random_rig(np.random.default_rng(4), vertices[:half], lower), sources[:1], ids[:half]
    )
    assert [m.name for m in again.meshes] == ["Legs Skin"]  # the joint rig is gone, and its other source shown again
    assert sources[0].hide_get() and not sources[1].hide_get() and "Torso Skin" not in bpy.data.objects


def test_meshes_from_a_sequence_serve_as_sources(rig):
    sequence = replay(rig)
    ids = (np.arange(sequence.vertex_count) % 3 == 0).astype(np.int32)  # interleaved on purpose
    faces = np.array([[0, 3, 6], [1, 2, 4], [2, 5, 4]])
    sequence = replace(
        sequence, object_id=ids, object_names=("odd", "third"), faces=faces, origin=np.array([5.0, 0, 0])
    )
    sources = mesh_from_sequence(bpy.context, sequence)
    assert [s.name for s in sources] == ["odd", "third"]
    assert [len(s.data.vertices) for s in sources] == [(ids == 0).sum(), (ids == 1).sum()]
    assert sum(len(s.data.polygons) for s in sources) == len(faces)
    for k, made in enumerate(sources):
        bpy.context.view_layer.update()
        world = np.array([made.matrix_world @ v.co for v in made.data.vertices])
        np.testing.assert_allclose(world, sequence.world_vertices(0)[ids == k], atol=1e-5)
    moved = replace(rig, origin=sequence.origin)
    written = write_armature(bpy.context, moved, sources, ids)
    assert evaluated_rmse(bpy.context, written, sequence).max() < 1e-3


# --- the scene, and running again --------------------------------------------------------------------------------


def test_the_scene_is_otherwise_untouched(rig, source):
    scene = bpy.context.scene
    scene.render.fps, scene.frame_start, scene.frame_end = 30, 7, 99
    scene.frame_set(12)
    write(rig, source)
    assert (scene.render.fps, scene.frame_start, scene.frame_end, scene.frame_current) == (30, 7, 99, 12)
    assert source.hide_get() and source.hide_render and not source.hide_viewport


def test_running_again_replaces_our_result_even_renamed(rig, source):
    first = write(rig, source)
    first.armature.name, first.meshes[0].name, first.collection.name = "Hero", "Hero body", "Heroes"
    blocks = len(bpy.data.user_map())
    second = write(random_rig(np.random.default_rng(9), *tube(), joints=5), source)
    assert "Hero" not in bpy.data.objects and "Heroes" not in bpy.data.collections
    assert second.armature.name == "Body Rig" and second.meshes[0].name == "Body Skin"
    assert len(bpy.data.user_map()) == blocks  # no orphaned mesh, armature or action is left
    assert sources_of(second.meshes[0]) == sources_of(second.armature) == [source] and sources_of(source) == []


def test_running_again_keeps_what_the_user_made(rig, source):
    first = write(rig, source)
    prop = mesh_object([(0, 0, 0), (1, 0, 0), (0, 1, 0)], [[0, 1, 2]], "Hat")
    first.collection.objects.link(prop)
    duplicate = first.armature.copy()
    duplicate.data = duplicate.data.copy()
    bpy.context.scene.collection.objects.link(duplicate)
    duplicate.name = "Mine"
    second = write(rig, source)
    assert prop.name == "Hat" and {c.name for c in prop.users_collection} == {"Scene Collection", "SPRig Body"}
    assert duplicate.animation_data.action is not None and duplicate.name == "Mine"
    assert set(second.collection.objects) == {second.armature, *second.meshes}


def test_another_objects_result_is_left_alone(rig, source):
    other = source_of(rig, tube()[1], "Other")
    first = write(rig, other)
    write(rig, source)
    assert first.armature.name == "Other Rig"
    remove_previous(bpy.context, [source])
    assert set(bpy.data.objects.keys()) == {"Body", "Other", "Other Rig", "Other Skin"}


@pytest.mark.parametrize("way", ["hidden", "excluded", "edit mode"])
def test_sources_that_cannot_be_seen(rig, source, way):
    """The result lands where it can be seen and edited."""
    collection = bpy.data.collections.new("Cast")
    bpy.context.scene.collection.children.link(collection)
    collection.objects.link(source)
    bpy.context.scene.collection.objects.unlink(source)
    layer = bpy.context.view_layer.layer_collection.children["Cast"]
    if way == "edit mode":
        bpy.context.view_layer.objects.active = source
        bpy.ops.object.mode_set(mode="EDIT")
    else:
        layer.hide_viewport, layer.exclude = way == "hidden", way == "excluded"
    written = write(rig, source)
    assert bpy.context.mode == "OBJECT" and written.armature.visible_get()
    assert evaluated_rmse(bpy.context, written, replay(rig)).max() < 1e-3
    assert written.collection.name in bpy.context.scene.collection.children


def test_the_result_lies_beside_the_sources_collection(rig, source):
    cast, hero = bpy.data.collections.new("Cast"), bpy.data.collections.new("Hero")
    bpy.context.scene.collection.children.link(cast)
    cast.children.link(hero)
    hero.objects.link(source)
    bpy.context.scene.collection.objects.unlink(source)
    assert write(rig, source).collection.name in cast.children


def test_undo_takes_everything_back_in_one_step(rig, source):
    bpy.ops.ed.undo_push(message="before")
    write(rig, source)
    bpy.ops.ed.undo_push(message="after")
    bpy.ops.ed.undo()
    assert bpy.data.objects.keys() == ["Body"] and not bpy.data.actions and not bpy.data.armatures
    assert not bpy.data.objects["Body"].hide_get() and not bpy.data.objects["Body"].hide_render
