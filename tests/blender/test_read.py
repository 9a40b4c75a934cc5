"""Reading animated objects: positions by hand for everything that can move a mesh, and a scene that stays as it was."""

import struct

import bpy
import numpy as np
import pytest

from sprig.backend.errors import Cancelled, SprigError
from sprig.sprig_blender.read_sequence import SequenceReader, animated_meshes, read_sequence

from .rigs import mesh_object, tube
from .scene_state import scene_state

FRAMES = np.arange(1, 7)
FLOAT32 = 4e-7  # of the size: a few roundings of float32 positions and matrices


def body(name="Body", size=1.0):
    """A tube as a mesh object, and its vertices (V,3) as Blender stores them."""
    vertices, faces = tube()
    vertices = (vertices * size).astype(np.float32)
    return mesh_object(vertices, faces, name), vertices.astype(np.float64)


def key(thing, path, values, frames=FRAMES, index=-1):
    """Key a property with one value per frame, linearly between them."""
    for frame, value in zip(frames, values, strict=True):
        holder, _, attribute = path.rpartition(".")
        setattr(thing.path_resolve(holder) if holder else thing, attribute, value)
        thing.keyframe_insert(path, index=index, frame=frame)


def read(*objects, start=1, end=6, step=1, **more):
    """World positions (F,V,3) of objects, having checked that reading leaves the scene as it was."""
    bpy.context.scene.frame_set(4, subframe=0.25)
    before = scene_state()
    sequence = read_sequence(bpy.context, objects, start, end, step, **more)
    assert scene_state() == before
    return sequence.vertices + sequence.origin


def close(got, expected):
    size = np.abs(expected).max()
    np.testing.assert_allclose(got, expected, atol=FLOAT32 * size, rtol=0)


def refused(*objects, start=1, end=6) -> str:
    """The sentence with which reading is refused, having checked that the scene is as it was."""
    before = scene_state()
    with pytest.raises(SprigError) as error:
        read_sequence(bpy.context, objects, start, end)
    assert scene_state() == before
    return str(error.value)


def write_pc2(path, positions):
    """A PC2 file of positions (F,V,3)."""
    frames, count = positions.shape[:2]
    header = struct.pack("<12siiffi", b"POINTCACHE2", 1, count, 0.0, 1.0, frames)
    path.write_bytes(header + positions.astype("<f4").tobytes())


def wavy(vertices, frames=6):
    """Positions (F,V,3) of a wobble, in float32 steps."""
    shift = np.sin(np.arange(frames)[:, None, None] + vertices[:, [2, 0, 1]])
    return (vertices + 0.1 * shift * np.ptp(vertices, axis=0).max()).astype(np.float32).astype(np.float64)


def cached(folder, size=1.0, name="Body", frames=6):
    """A mesh object that a Mesh Cache modifier moves, and its positions (F,V,3)."""
    thing, vertices = body(name, size)
    positions = wavy(vertices, frames)
    write_pc2(folder / f"{name}.pc2", positions)
    modifier = thing.modifiers.new("Cache", "MESH_CACHE")
    modifier.cache_format, modifier.filepath, modifier.frame_start = "PC2", str(folder / f"{name}.pc2"), 1
    return thing, positions


def armature(name="Armature"):
    """An armature object with one bone, whose pose bone turns about its head at (0, 0, 1)."""
    thing = bpy.data.objects.new(name, bpy.data.armatures.new(name))
    bpy.context.scene.collection.objects.link(thing)
    bpy.context.view_layer.objects.active = thing
    bpy.ops.object.mode_set(mode="EDIT")
    bone = thing.data.edit_bones.new("Bone")
    bone.head, bone.tail = (0, 0, 1), (0, 0, 2)
    bpy.ops.object.mode_set(mode="OBJECT")
    key(thing, 'pose.bones["Bone"].rotation_quaternion', [(np.cos(a), np.sin(a), 0, 0) for a in 0.1 * FRAMES])
    return thing


def skinned(name="Body"):
    """A tube whose upper half follows the bone of an armature, and its positions (F,V,3)."""
    rig, (thing, vertices) = armature(), body(name)
    thing.vertex_groups.new(name="Bone").add(np.flatnonzero(vertices[:, 2] > 1).tolist(), 1.0, "REPLACE")
    thing.modifiers.new("Armature", "ARMATURE").object = rig
    expected = np.repeat(vertices[None], len(FRAMES), axis=0)
    upper = vertices[:, 2] > 1
    for f, angle in enumerate(0.2 * FRAMES):  # the bone's X axis is the world's
        y, z = vertices[upper, 1], vertices[upper, 2] - 1
        expected[f, upper, 1] = np.cos(angle) * y - np.sin(angle) * z
        expected[f, upper, 2] = np.sin(angle) * y + np.cos(angle) * z + 1
    return thing, expected


def geometry_nodes(thing, name="Nodes"):
    """A geometry nodes modifier with a tree that passes its geometry on: modifier, tree, input and output node."""
    tree = bpy.data.node_groups.new(name, "GeometryNodeTree")
    tree.interface.new_socket("Geometry", in_out="INPUT", socket_type="NodeSocketGeometry")
    tree.interface.new_socket("Geometry", in_out="OUTPUT", socket_type="NodeSocketGeometry")
    first, last = tree.nodes.new("NodeGroupInput"), tree.nodes.new("NodeGroupOutput")
    tree.links.new(first.outputs[0], last.inputs[0])
    modifier = thing.modifiers.new(name, "NODES")
    modifier.node_group = tree
    return modifier, tree, first, last


# ---- everything that moves a mesh


def test_mesh_cache(tmp_path):
    thing, positions = cached(tmp_path)
    close(read(thing), positions)
    close(read(thing, start=2, end=6, step=2), positions[1::2])


def test_shape_keys():
    thing, vertices = body()
    thing.shape_key_add(name="Basis")
    shape = thing.shape_key_add(name="Bend")
    shape.points.foreach_set("co", (vertices + vertices[:, [1, 2, 0]]).astype(np.float32).ravel())
    key(thing.data.shape_keys, 'key_blocks["Bend"].value', FRAMES / 10)
    close(read(thing), vertices + (FRAMES / 10)[:, None, None] * vertices[:, [1, 2, 0]])


def test_armature():
    thing, positions = skinned()
    close(read(thing), positions)


def test_geometry_nodes():
    thing, vertices = body()
    _, tree, first, last = geometry_nodes(thing)
    move, time, offset = (
        tree.nodes.new(kind)
        for kind in ("GeometryNodeSetPosition", "GeometryNodeInputSceneTime", "ShaderNodeCombineXYZ")
    )
    tree.links.new(first.outputs[0], move.inputs["Geometry"])
    tree.links.new(time.outputs["Frame"], offset.inputs["X"])
    tree.links.new(offset.outputs[0], move.inputs["Offset"])
    tree.links.new(move.outputs[0], last.inputs[0])
    assert animated_meshes(bpy.context) == [thing]
    close(read(thing), vertices + FRAMES[:, None, None] * [1, 0, 0])


def test_object_motion_with_negative_and_uneven_scale():
    thing, vertices = body()
    thing.scale = (-1, 2, 0.5)
    thing.rotation_euler = (0, 0, np.pi / 2)
    key(thing, "location", [(f, 0, -f) for f in FRAMES])
    scaled = vertices * [-1, 2, 0.5]
    turned = np.stack([-scaled[:, 1], scaled[:, 0], scaled[:, 2]], axis=1)
    close(read(thing), turned + FRAMES[:, None, None] * [1, 0, -1])


def test_animated_parent_and_delta_transform(tmp_path):
    thing, positions = cached(tmp_path)
    parent = bpy.data.objects.new("Parent", None)
    bpy.context.scene.collection.objects.link(parent)
    thing.parent, thing.delta_location, thing.location = parent, (0, 0, 5), (0, 2, 0)
    key(parent, "location", [(f, 0, 0) for f in FRAMES])
    close(read(thing), positions + FRAMES[:, None, None] * [1, 0, 0] + [0, 2, 5])


def test_alembic(tmp_path):
    thing, positions = cached(tmp_path)
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 6
    bpy.ops.wm.alembic_export(filepath=str(tmp_path / "body.abc"), start=1, end=6)
    bpy.data.objects.remove(thing)
    bpy.ops.wm.alembic_import(filepath=str(tmp_path / "body.abc"), as_background_job=False)
    (imported,) = animated_meshes(bpy.context)
    assert [modifier.type for modifier in imported.modifiers] == ["MESH_SEQUENCE_CACHE"]
    close(read(imported), positions)


def simulated(kind):
    """A tube that lies along Y and is held at one end, as soft cloth or soft body."""
    thing, vertices = body()
    thing.rotation_euler = (np.pi / 2, 0, 0)
    pinned = thing.vertex_groups.new(name="Pinned")
    pinned.add(np.flatnonzero(vertices[:, 2] < 0.1).tolist(), 1.0, "REPLACE")
    modifier = thing.modifiers.new("Simulation", kind)
    if kind == "CLOTH":
        modifier.settings.vertex_group_mass = "Pinned"
        modifier.settings.tension_stiffness = modifier.settings.compression_stiffness = 0.1
    else:
        modifier.settings.vertex_group_goal = "Pinned"
    modifier.point_cache.frame_start, modifier.point_cache.frame_end = 1, 20
    return thing


@pytest.mark.parametrize("kind", ["CLOTH", "SOFT_BODY"])
def test_simulation_is_played_from_its_start(kind):
    """Frames 12 and 16 alone are what playing from frame 1 gives; jumping there gives something else."""
    thing = simulated(kind)
    played = read(thing, start=1, end=16)
    assert np.abs(played[-1] - played[0]).max() > 0.01

    bpy.data.objects.remove(thing)
    close(read(simulated(kind), start=12, end=16, step=4), played[[11, 15]])

    bpy.data.objects.remove(bpy.data.objects["Body"])
    thing = simulated(kind)
    bpy.context.scene.frame_set(1)
    bpy.context.scene.frame_set(12)
    jumped = np.array([v.co for v in thing.evaluated_get(bpy.context.evaluated_depsgraph_get()).data.vertices])
    assert np.abs(jumped - played[11]).max() > 0.01


def test_rigid_body():
    """A falling box is played from the start of the simulation, also for one late frame alone."""

    def falling():
        thing, _ = body("Falling")
        bpy.ops.rigidbody.world_add()
        bpy.context.view_layer.objects.active = thing
        bpy.ops.rigidbody.object_add(type="ACTIVE")
        for frame in range(1, 6):  # up to the state that reading returns to
            bpy.context.scene.frame_set(frame)
        return thing

    thing = falling()
    assert animated_meshes(bpy.context) == [thing]
    played = read(thing, start=1, end=12)
    assert played[0, 0, 2] - played[-1, 0, 2] > 0.1
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    close(read(falling(), start=12, end=12), played[[11]])


def test_simulation_zone_of_geometry_nodes():
    """Every frame from the first on moves the mesh by one unit along X, so frame 5 is five units away."""
    thing, vertices = body()
    _, tree, first, last = geometry_nodes(thing)
    begin, end, move = (
        tree.nodes.new(kind)
        for kind in ("GeometryNodeSimulationInput", "GeometryNodeSimulationOutput", "GeometryNodeSetPosition")
    )
    begin.pair_with_output(end)
    move.inputs["Offset"].default_value = (1, 0, 0)
    tree.links.new(first.outputs[0], begin.inputs["Geometry"])
    tree.links.new(begin.outputs["Geometry"], move.inputs["Geometry"])
    tree.links.new(move.outputs[0], end.inputs["Geometry"])
    tree.links.new(end.outputs["Geometry"], last.inputs[0])
    bpy.context.scene.frame_set(1)
    assert animated_meshes(bpy.context) == [thing]
    close(read(thing, start=3, end=5, step=2), vertices + [[[3, 0, 0]], [[5, 0, 0]]])


def test_mesh_bound_to_a_simulated_one():
    """The state of a simulation matters to whatever hangs on it, too."""

    def bound():
        cloth = simulated("CLOTH")
        thing, _ = body("Bound", 0.9)
        thing.rotation_euler = cloth.rotation_euler
        modifier = thing.modifiers.new("Surface Deform", "SURFACE_DEFORM")
        modifier.target = cloth
        bpy.context.scene.frame_set(1)
        with bpy.context.temp_override(object=thing):
            bpy.ops.object.surfacedeform_bind(modifier=modifier.name)
        assert modifier.is_bound
        return thing

    played = read(bound(), start=1, end=12)
    assert np.abs(played[-1] - played[0]).max() > 0.01
    for name in ("Body", "Bound"):
        bpy.data.objects.remove(bpy.data.objects[name])
    close(read(bound(), start=12, end=12), played[[11]])


# ---- several objects, sizes, places


def test_several_objects_become_one_sequence_in_the_order_given(tmp_path):
    first, first_positions = cached(tmp_path, name="Second")
    second, second_positions = cached(tmp_path, size=0.5, name="First")
    second.location = (0, 3, 0)
    sequence = read_sequence(bpy.context, [first, second], 1, 6)
    assert sequence.object_names == ("Second", "First")
    close(sequence.vertices + sequence.origin, np.concatenate([first_positions, second_positions + [0, 3, 0]], axis=1))
    count = first_positions.shape[1]
    assert (sequence.object_id == np.repeat([0, 1], count)).all()
    faces = sequence.faces.reshape(2, -1, 3)
    np.testing.assert_array_equal(faces[0] + count, faces[1])


def test_faces_triangulate_the_mesh_without_new_vertices(tmp_path):
    """Every polygon of n corners gives n - 2 triangles of its own corners; loose vertices stay."""
    vertices, faces = tube()
    thing = mesh_object([*vertices, (5, 5, 5)], faces)
    key(thing, "location", [(f, 0, 0) for f in FRAMES])
    sequence = read_sequence(bpy.context, [thing], 1, 6)
    assert sequence.vertex_count == len(vertices) + 1
    assert len(sequence.faces) == sum(len(face) - 2 for face in faces)
    polygons = [set(face) for face in faces]
    assert all(any(set(triangle) <= polygon for polygon in polygons) for triangle in sequence.faces.tolist())


@pytest.mark.parametrize("size", [1e-4, 1e4])
def test_size(tmp_path, size):
    thing, positions = cached(tmp_path, size)
    close(read(thing), positions)


def test_far_from_the_origin(tmp_path):
    """10 km away the shape keeps the precision of the mesh, since the translation is exact in float32."""
    thing, positions = cached(tmp_path)
    thing.location = (8192, -8192, 0)
    sequence = read_sequence(bpy.context, [thing], 1, 6)
    close(sequence.vertices + (sequence.origin - [8192, -8192, 0]), positions)


def test_numbers_rate_and_index(tmp_path):
    thing, _ = cached(tmp_path)
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = 30, 1.001
    scene.frame_start, scene.frame_end = 2, 6
    sequence = read_sequence(bpy.context, [thing], 4, 6, 2)
    assert sequence.frame_numbers.tolist() == [4, 6]
    assert sequence.frame_index.tolist() == [2, 4]
    assert sequence.fps == pytest.approx(30 / 1.001)
    assert read_sequence(bpy.context, [thing]).frame_numbers.tolist() == [2, 3, 4, 5, 6]


# ---- what is hidden, linked or shared


def hide_in_viewport(thing):
    thing.hide_viewport = True


def hide_with_the_eye(thing):
    thing.hide_set(True)


def in_own_collection(thing):
    collection = bpy.data.collections.new("Own")
    bpy.context.scene.collection.children.link(collection)
    collection.objects.link(thing)
    bpy.context.scene.collection.objects.unlink(thing)
    return collection, bpy.context.view_layer.layer_collection.children["Own"]


def exclude_collection(thing):
    in_own_collection(thing)[1].exclude = True


def hide_collection(thing):
    in_own_collection(thing)[0].hide_viewport = True


def hide_collection_with_the_eye(thing):
    in_own_collection(thing)[1].hide_viewport = True


def exclude_and_hide(thing):
    exclude_collection(thing)
    thing.hide_viewport = True


def move_to_other_scene(thing):
    bpy.data.scenes.new("Other").collection.objects.link(thing)
    bpy.context.scene.collection.objects.unlink(thing)


def unlink_everywhere(thing):
    bpy.context.scene.collection.objects.unlink(thing)


@pytest.mark.parametrize(
    "hide",
    [
        hide_in_viewport, hide_with_the_eye, exclude_collection, hide_collection, hide_collection_with_the_eye,
        exclude_and_hide, move_to_other_scene, unlink_everywhere,
    ],
)  # fmt: skip
def test_hidden_objects_are_read(hide):
    thing, positions = skinned()
    hide(thing)
    close(read(thing), positions)


@pytest.mark.parametrize("hide", [hide_in_viewport, hide_with_the_eye, exclude_collection])
def test_hidden_armature(hide):
    thing, positions = skinned()
    hide(bpy.data.objects["Armature"])
    close(read(thing), positions)


@pytest.fixture
def library(tmp_path):
    """A .blend with a skinned tube; its path and the tube's positions."""
    _, positions = skinned()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    return str(tmp_path / "library.blend"), positions


def linked(library):
    with bpy.data.libraries.load(library, link=True) as (_, wanted):
        wanted.objects = ["Body"]
    thing = wanted.objects[0]
    bpy.context.scene.collection.objects.link(thing)
    return thing


def test_a_linked_object_has_its_cache_beside_its_own_file(tmp_path):
    _, positions = cached(tmp_path)
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library.blend"))
    bpy.data.objects["Body"].modifiers["Cache"].filepath = "//Body.pc2"
    bpy.ops.wm.save_mainfile()
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    (tmp_path / "shots").mkdir()
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "shots" / "shot.blend"))
    thing = linked(str(tmp_path / "library.blend"))
    close(read(thing), positions)
    (tmp_path / "Body.pc2").unlink()
    with pytest.raises(SprigError, match="the file of its modifier Cache is missing"):
        read(thing)


def test_linked_object(library):
    path, positions = library
    close(read(linked(path)), positions)


def test_linked_object_outside_the_scene(library):
    path, positions = library
    thing = linked(path)
    bpy.context.scene.collection.objects.unlink(thing)
    close(read(thing), positions)


def test_overridden_object(library):
    path, positions = library
    thing = linked(path).override_create(remap_local_usages=True)
    close(read(thing), positions)


def test_linked_object_with_subdivision(tmp_path):
    """Modifiers of a linked object can be left out as well."""
    thing, positions = skinned()
    thing.modifiers.new("Subdivision", "SUBSURF")
    bpy.ops.wm.save_as_mainfile(filepath=str(tmp_path / "library.blend"))
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    close(read(linked(str(tmp_path / "library.blend"))), positions)


def test_multi_user_data():
    thing, positions = skinned()
    other = bpy.data.objects.new("Other", thing.data)
    bpy.context.scene.collection.objects.link(other)
    key(other, "location", [(f, 0, 0) for f in FRAMES])
    _, vertices = body("Same shape")
    close(read(thing, other), np.concatenate([positions, vertices + FRAMES[:, None, None] * [1, 0, 0]], axis=1))


# ---- modifiers that change the topology


def array_nodes(thing, delete_from_frame=None):
    """Geometry nodes that delete the first vertex, from a frame on or always."""
    _, tree, first, last = geometry_nodes(thing, "Deleting")
    delete, index, compare = (
        tree.nodes.new(kind) for kind in ("GeometryNodeDeleteGeometry", "GeometryNodeInputIndex", "FunctionNodeCompare")
    )
    compare.data_type, compare.operation = "INT", "LESS_THAN"
    tree.links.new(index.outputs[0], compare.inputs["A"])
    tree.links.new(first.outputs[0], delete.inputs["Geometry"])
    tree.links.new(compare.outputs[0], delete.inputs["Selection"])
    tree.links.new(delete.outputs[0], last.inputs[0])
    threshold = next(socket for socket in compare.inputs if socket.name == "B" and socket.enabled)
    threshold.default_value = 1
    if delete_from_frame is not None:
        time, late = tree.nodes.new("GeometryNodeInputSceneTime"), tree.nodes.new("FunctionNodeCompare")
        late.operation = "GREATER_THAN"
        late.inputs["B"].default_value = delete_from_frame - 0.5
        tree.links.new(time.outputs["Frame"], late.inputs["A"])
        tree.links.new(late.outputs[0], threshold)


@pytest.mark.parametrize(
    "kind", ["SUBSURF", "MIRROR", "ARRAY", "DECIMATE", "REMESH", "SCREW", "SOLIDIFY", "TRIANGULATE"]
)
def test_generative_modifier_after_the_last_deform_is_left_out(kind):
    thing, positions = skinned()
    modifier = thing.modifiers.new("Extra", kind)
    if kind == "DECIMATE":
        modifier.ratio = 0.5
    close(read(thing), positions)
    sequence = read_sequence(bpy.context, [thing], 1, 6)
    assert sequence.warnings == ("Body was read without Extra: the rig moves the mesh's own vertices.",)


def test_geometry_nodes_that_change_the_count_are_left_out():
    thing, positions = skinned()
    array_nodes(thing)
    close(read(thing), positions)


def test_geometry_nodes_that_keep_the_vertices_stay_on():
    """Behind a Subdivision, like the Smooth by Angle that Blender itself adds."""
    thing, positions = skinned()
    thing.modifiers.new("Subdivision", "SUBSURF")
    _, tree, first, last = geometry_nodes(thing)
    move = tree.nodes.new("GeometryNodeSetPosition")
    move.inputs["Offset"].default_value = (0, 0, 3)
    tree.links.new(first.outputs[0], move.inputs["Geometry"])
    tree.links.new(move.outputs[0], last.inputs[0])
    close(read(thing), positions + [0, 0, 3])


@pytest.mark.parametrize("kind", ["SUBSURF", "MIRROR"])
def test_generative_modifier_before_a_deform_is_refused_by_name(kind):
    thing, _ = skinned()
    thing.modifiers.new("Extra", kind)
    thing.modifiers.move(1, 0)
    assert "modifier Extra" in refused(thing)


def test_generative_modifier_that_is_off_is_not_refused():
    thing, positions = skinned()
    thing.modifiers.new("Extra", "MIRROR").show_viewport = False
    thing.modifiers.move(1, 0)
    close(read(thing), positions)


def test_count_that_changes_is_refused_with_the_frame():
    thing, _ = skinned()
    array_nodes(thing, delete_from_frame=5)
    thing.modifiers.move(1, 0)
    sentence = refused(thing)
    assert "frame 5" in sentence and "Deleting" in sentence


def test_alembic_with_changing_topology_is_refused_with_the_frame(tmp_path):
    thing, _ = cached(tmp_path)
    array_nodes(thing, delete_from_frame=4)
    bpy.ops.wm.alembic_export(filepath=str(tmp_path / "body.abc"), start=1, end=6)
    bpy.data.objects.remove(thing)
    bpy.ops.wm.alembic_import(filepath=str(tmp_path / "body.abc"), as_background_job=False)
    (imported,) = animated_meshes(bpy.context)
    sentence = refused(imported)
    assert "frame 4" in sentence and "topology" in sentence


# ---- refusals


def test_object_without_a_surface():
    points = mesh_object(np.zeros((5, 3)), [], "Points")
    assert refused(points).startswith("Points has no faces")
    nothing = mesh_object(np.zeros((0, 3)), [], "Nothing")
    assert refused(nothing).startswith("Nothing has no vertices")
    curve = bpy.data.objects.new("Path", bpy.data.curves.new("Path", "CURVE"))
    bpy.context.scene.collection.objects.link(curve)
    assert refused(curve).startswith("Path is no mesh but of type curve")


def test_nothing_and_no_frames(tmp_path):
    thing, _ = cached(tmp_path)
    assert "no mesh" in refused()
    assert "reversed" in refused(thing, start=6, end=1)
    assert "1048574" in refused(thing, start=1, end=2_000_000)
    with pytest.raises(SprigError, match="step is 0"):
        read_sequence(bpy.context, [thing], 1, 6, 0)
    with pytest.raises(SprigError, match="increase"):
        SequenceReader(bpy.context, [thing], [1, 3, 2])


@pytest.mark.parametrize("name", ["Body", "Armature"])
def test_edit_mode_is_refused(name):
    """In Edit Mode Blender shows the mesh without its modifiers, and an armature in its rest pose."""
    thing, _ = skinned()
    bpy.context.view_layer.objects.active = bpy.data.objects[name]
    bpy.ops.object.mode_set(mode="EDIT")
    assert refused(thing).startswith(f"{name} is in Edit Mode")
    bpy.ops.object.mode_set(mode="OBJECT")


def test_missing_cache_file(tmp_path):
    thing, _ = cached(tmp_path)
    (tmp_path / "Body.pc2").unlink()
    assert "Cache is missing" in refused(thing)


def test_positions_that_are_not_finite(tmp_path):
    thing, positions = cached(tmp_path)
    positions[2, :7] = np.nan
    write_pc2(tmp_path / "Body.pc2", positions)
    assert "7 vertices of frame 3" in refused(thing)


@pytest.mark.parametrize("calls", [1, 4])
def test_cancelling_leaves_the_scene_as_it_was(calls):
    thing, _ = skinned()
    thing.modifiers.new("Extra", "SUBSURF")
    exclude_and_hide(thing)
    seen = []

    def progress(fraction, text):
        seen.append((fraction, text))
        if len(seen) == calls:
            raise Cancelled

    bpy.context.scene.frame_set(4, subframe=0.25)
    before = scene_state()
    with pytest.raises(Cancelled):
        read_sequence(bpy.context, [thing], 1, 6, progress=progress)
    assert scene_state() == before
    assert seen[-1] == ((calls - 1) / 6, f"Reading frame {calls}")


def test_reading_step_by_step(tmp_path):
    """What an operator does between two looks at the window."""
    thing, positions = cached(tmp_path)
    before = scene_state()
    fractions = []
    with SequenceReader(bpy.context, [thing], [1, 4]) as reader:
        list(reader.prepare())
        while not reader.done:
            fractions.append(reader.fraction)
            reader.step()
        sequence = reader.result()
    assert scene_state() == before
    assert fractions == [0, 0.5]
    close(sequence.vertices + sequence.origin, positions[[0, 3]])


# ---- what counts as animated


def test_animated_meshes(tmp_path):
    """Whatever moves, hidden or not; nothing whose keys all say the same, and no mesh that only looks complicated."""
    skin, _ = skinned("Skinned")
    cache, _ = cached(tmp_path, name="Cached")
    still, _ = body("Still")
    still.modifiers.new("Subdivision", "SUBSURF")
    key(still, "location", [(1, 2, 3)] * len(FRAMES))
    geometry_nodes(still)
    child, _ = body("Child")
    parent = bpy.data.objects.new("Parent", None)
    bpy.context.scene.collection.objects.link(parent)
    child.parent = parent
    key(parent, "location", [(f, 0, 0) for f in FRAMES])
    follower, _ = body("Follower")
    follower.constraints.new("COPY_LOCATION").target = parent
    driven, _ = body("Driven")
    driven.driver_add("location", 0).driver.expression = "frame"
    strips, _ = body("Strips")
    key(strips, "location", [(f, 0, 0) for f in FRAMES])
    track = strips.animation_data.nla_tracks.new()
    track.strips.new("Strip", 1, strips.animation_data.action)
    strips.animation_data.action = None
    child.hide_viewport = True
    assert set(animated_meshes(bpy.context)) == {skin, cache, child, follower, driven, strips}
    assert animated_meshes(bpy.context.scene) == animated_meshes(bpy.context)
    track.mute = True
    assert strips not in animated_meshes(bpy.context)
