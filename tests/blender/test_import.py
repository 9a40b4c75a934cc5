"""Importing: every format comes in at its own rate with the right animation playing, and bad files change nothing."""

import csv
import json
import shutil
from pathlib import Path

import bpy
import numpy as np
import pytest
from scipy.spatial import cKDTree

from sprig.backend.errors import SprigError
from sprig.sprig_blender import import_sequence
from sprig.sprig_blender.compat import curves_of
from sprig.sprig_blender.import_sequence import import_file
from sprig.sprig_blender.read_sequence import read_sequence

from ..small_files import AbcMesh, write_abc
from .rigs import mesh_object, tube
from .scene_files import FORMATS, KNOWS_USD_RATE, export, has
from .scene_state import scene_state

FRAMES = range(1, 11)


def character(actions=(("Turn", 0.1),), fps=30.0, frames=FRAMES, size=1.0):
    """A tube on one bone that turns about X by 2 x amount a frame: an action per (name, amount), the last one plays."""
    scene = bpy.context.scene
    scene.render.fps, scene.render.fps_base = round(fps), round(fps) / fps
    scene.frame_start, scene.frame_end = frames[0], frames[-1]
    vertices, faces = tube()
    body = mesh_object(vertices * size, faces)
    rig = bpy.data.objects.new("Armature", bpy.data.armatures.new("Armature"))
    scene.collection.objects.link(rig)
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    bone = rig.data.edit_bones.new("Bone")
    bone.head, bone.tail = (0, 0, size), (0, 0, 2 * size)
    bpy.ops.object.mode_set(mode="OBJECT")
    body.vertex_groups.new(name="Bone").add(list(range(len(vertices))), 1.0, "REPLACE")
    body.modifiers.new("Armature", "ARMATURE").object = rig
    body.parent = rig
    for name, amount in actions:
        rig.animation_data_create().action = None
        for frame in frames:
            rig.pose.bones[0].rotation_quaternion = (np.cos(amount * frame), np.sin(amount * frame), 0, 0)
            rig.pose.bones[0].keyframe_insert("rotation_quaternion", frame=frame)
        action = rig.animation_data.action
        action.name, action.use_fake_user = name, True
        if len(actions) > 1:
            track = rig.animation_data.nla_tracks.new()
            track.name, track.mute = name, True
            track.strips.new(name, frames[0], action)
    return body


def positions(objects):
    """World positions (F,V,3) over the scene's range."""
    sequence = read_sequence(bpy.context, objects)
    return sequence.vertices + sequence.origin


def empty():
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)


def same_shapes(got, expected, tolerance):
    """Frame by frame the same points; glTF splits vertices at the edges of flat shading, so order is not compared."""
    assert len(got) == len(expected)
    for here, there in zip(got, expected, strict=True):
        assert max(cKDTree(there).query(here)[0].max(), cKDTree(here).query(there)[0].max()) < tolerance


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format(tmp_path, suffix):
    """Rate, range and positions of an exported character come back, and nothing is printed meanwhile."""
    if suffix == ".dae" and not has("wm.collada_import"):
        pytest.skip("this Blender has no Collada")
    expected = positions([character()])
    path = export(tmp_path / f"character{suffix}")
    empty()
    (body,) = import_file(path)
    scene = bpy.context.scene
    if not suffix.startswith(".usd") or KNOWS_USD_RATE:
        assert scene.render.fps / scene.render.fps_base == pytest.approx(30, rel=1e-6)
    assert scene.frame_end - scene.frame_start == 9
    assert scene.frame_current == scene.frame_start or suffix == ".blend"
    same_shapes(positions([body]), expected, 1e-5)


@pytest.mark.parametrize("suffix", [".glb", ".fbx", ".abc"])
@pytest.mark.parametrize("fps", [20, 24 / 1.001, 60, 30.1])
def test_frame_rate(tmp_path, suffix, fps):
    """Whatever the rate, each frame of the file becomes one frame of the scene."""
    expected = positions([character(fps=fps)])
    path = export(tmp_path / f"character{suffix}")
    empty()
    got = positions(import_file(path))
    render = bpy.context.scene.render
    if suffix == ".glb":  # Blender's exporter multiplies by fps_base where it should divide: the file has this rate
        fps = round(fps) ** 2 / fps
    assert render.fps / render.fps_base == pytest.approx(fps, rel=1e-5)
    same_shapes(got, expected, 1e-5)


@pytest.mark.parametrize("suffix", [".glb", ".fbx", ".abc"])
def test_given_frame_rate(tmp_path, suffix):
    """Half the rate reads every second frame."""
    expected = positions([character(frames=range(0, 11), fps=30)])
    path = export(tmp_path / f"character{suffix}")
    empty()
    got = positions(import_file(path, fps=15))
    assert bpy.context.scene.render.fps == 15
    same_shapes(got, expected[::2], 1e-5)


def test_keys_far_apart_are_poses(tmp_path):
    """Keys every half second are no samples at 2 frames a second: the frames between them are read, too."""
    body = character(frames=[0, 12, 24], fps=24)
    path = tmp_path / "character.glb"
    bpy.ops.export_scene.gltf(filepath=str(path), export_force_sampling=False)
    empty()
    (body,) = import_file(path)
    scene = bpy.context.scene
    assert (scene.render.fps, scene.frame_start, scene.frame_end) == (24, 0, 24)
    curve = next(iter(curves_of(body.parent)))
    assert [point.co.x for point in curve.keyframe_points] == [0, 12, 24]


@pytest.mark.parametrize("suffix", [".glb", ".fbx"])
def test_of_several_animations_the_first_that_moves_is_played(tmp_path, suffix):
    """Importers play the first one, or another that stands still; the others stay in the file."""
    character([("A still", 0), ("B turn", 0.1), ("C turn more", 0.2)])
    path = export(tmp_path / f"character{suffix}")
    empty()
    (body,) = import_file(path)
    assert "B turn" in body.parent.animation_data.action.name
    assert len(body.parent.animation_data.nla_tracks) == 0
    got = positions([body])
    empty()
    same_shapes(got, positions([character([("B turn", 0.1)])]), 1e-5)
    empty()
    import_file(path)
    assert sum(action.use_fake_user for action in bpy.data.actions) == 3


def test_animation_of_several_objects_is_played_whole(tmp_path):
    """glTF: two objects in two animations of the same names; both play the one that moves."""
    for name, x in (("First", 1), ("Second", 2)):
        vertices, faces = tube()
        thing = mesh_object(vertices, faces, name)
        for take, speed in (("A still", 0), ("B move", x)):
            thing.animation_data_create().action = None
            for frame in FRAMES:
                thing.location.x = frame * speed
                thing.keyframe_insert("location", frame=frame)
            track = thing.animation_data.nla_tracks.new()
            track.name = take
            track.strips.new(take, 1, thing.animation_data.action)
            thing.animation_data.action = None
    bpy.ops.export_scene.gltf(filepath=str(tmp_path / "two.glb"), export_animation_mode="NLA_TRACKS")
    empty()
    first, second = import_file(tmp_path / "two.glb")
    sequence = read_sequence(bpy.context, [first, second])
    travel = np.ptp(sequence.vertices[:, :, 0], axis=0)
    np.testing.assert_allclose(travel, np.where(sequence.object_id == 0, 9, 18), rtol=1e-5)


def test_frame_shapes_as_morph_targets(tmp_path):
    """Animation of shape keys is found as well as that of objects."""
    vertices, faces = tube()
    body = mesh_object(vertices, faces)
    body.shape_key_add(name="Basis")
    body.shape_key_add(name="Up").points.foreach_set("co", (vertices + [0, 0, 1]).astype(np.float32).ravel())
    for frame in FRAMES:
        body.data.shape_keys.key_blocks["Up"].value = frame / 10
        body.data.shape_keys.key_blocks["Up"].keyframe_insert("value", frame=frame)
    bpy.context.scene.frame_end = 10
    path = export(tmp_path / "morph.glb")
    empty()
    got = positions(import_file(path))
    np.testing.assert_allclose(np.ptp(got[:, :, 2], axis=0), 0.9, atol=1e-5)


@pytest.mark.parametrize("size", [1e-3, 1e3])
def test_size(tmp_path, size):
    expected = positions([character(size=size)])
    path = export(tmp_path / "character.glb")
    empty()
    same_shapes(positions(import_file(path)), expected, 1e-5 * size)


def test_meshes_that_stand_still_are_left_out_unless_all_do(tmp_path):
    character()
    mesh_object(*tube(), name="Floor")
    path = export(tmp_path / "both.glb")
    bpy.data.objects.remove(bpy.data.objects["Body"])
    bpy.data.objects.remove(bpy.data.objects["Armature"])
    still = export(tmp_path / "still.glb")
    empty()
    assert [thing.name for thing in import_file(path)] == ["Body"]
    empty()
    assert [thing.name for thing in import_file(still)] == ["Floor"]
    assert bpy.context.scene.frame_start == bpy.context.scene.frame_end


def test_import_beside_other_objects(tmp_path):
    """What was there stays, and is not returned, not even when it moves."""
    path = export_character(tmp_path, ".glb")
    there = character()
    (body,) = import_file(path)
    assert body.name == "Body.001" and there.name == "Body"


def test_nothing_is_printed(tmp_path, capfd):
    """The importers' own words, C++ and Python, stay out of stdout and stderr."""
    paths = [export_character(tmp_path, suffix) for suffix in (".fbx", ".glb", ".abc", ".usdc")]
    capfd.readouterr()
    for path in paths:
        import_file(path)
    with pytest.raises(SprigError):
        import_file(truncated(paths[0], 0.5))
    assert capfd.readouterr() == ("", "")


def export_character(folder: Path, suffix: str) -> Path:
    character()
    path = export(folder / f"character{suffix}")
    empty()
    return path


# ---- .blend files


def test_blend_with_scripts_does_not_run_them(tmp_path):
    """A registered text block runs when scripts are allowed, and does not when we open the file."""
    character()
    text = bpy.data.texts.new("hello.py")
    text.write(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch()")
    text.use_module = True
    path = tmp_path / "character.blend"
    bpy.ops.wm.save_as_mainfile(filepath=str(path), copy=True)
    empty()
    (body,) = import_file(path)
    assert body.name == "Body" and not (tmp_path / "ran").exists()
    bpy.ops.wm.open_mainfile(filepath=str(path), use_scripts=True)
    assert (tmp_path / "ran").exists()


def test_blend_keeps_hidden_objects_and_takes_the_rate_given(tmp_path):
    body = character()
    body.hide_viewport = True
    path = export(tmp_path / "character.blend")
    empty()
    assert [thing.name for thing in import_file(path, fps=12)] == ["Body"]
    assert bpy.context.scene.render.fps == 12


# ---- bad files


def truncated(path: Path, share: float) -> Path:
    data = path.read_bytes()
    cut = path.with_name(f"cut{path.suffix}")
    cut.write_bytes(data[: int(len(data) * share)])
    return cut


def refused(path, **options) -> str:
    """The sentence with which an import is refused, having checked that the scene is as it was."""
    mesh_object(*tube(), name="There")
    bpy.context.scene.frame_set(7)
    before = scene_state()
    with pytest.raises(SprigError) as error:
        import_file(path, **options)
    assert scene_state() == before
    sentence = str(error.value)
    assert "\n" not in sentence and sentence.endswith(".") and "Traceback" not in sentence
    return sentence


@pytest.mark.parametrize("suffix", FORMATS)
def test_truncated_files_are_refused(tmp_path, suffix):
    if suffix == ".dae" and not has("wm.collada_import"):
        pytest.skip("this Blender has no Collada")
    path = export_character(tmp_path, suffix)
    for share in (0.5, 0.97):
        assert refused(truncated(path, share)).startswith(f"cut{suffix}")
        empty()


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_is_no_file_of_its_format(tmp_path, suffix):
    path = tmp_path / f"nonsense{suffix}"
    assert "no file" in refused(path)
    path.write_bytes(b"")
    assert refused(path).startswith(f"nonsense{suffix} is")
    path.write_bytes(b"\x00\xff nonsense " * 50)
    assert refused(path).startswith(("nonsense", "Blender"))
    path.unlink()
    path.mkdir()
    assert refused(path).startswith("nonsense")


def test_crash_of_an_importer_is_a_refusal(tmp_path):
    """Blender's Alembic importer ends the process on a truncated archive: a real crash to rehearse."""
    path = truncated(export_character(tmp_path, ".abc"), 0.5)
    with pytest.raises(SprigError, match="crashes on it"):
        import_sequence._rehearse(path, "wm.alembic_import")


def test_gltf_that_claims_absurd_sizes(tmp_path):
    path = export_character(tmp_path, ".gltf")
    gltf = json.loads(path.read_text())
    gltf["accessors"][0]["count"] = 10**12
    path.write_text(json.dumps(gltf))
    assert "1000000000000 values" in refused(path)
    path.write_text("[" * 100_000)
    assert "not glTF" in refused(path)


def test_gltf_without_its_buffer(tmp_path):
    path = export_character(tmp_path, ".gltf")
    path.with_suffix(".bin").unlink()
    assert "cannot be imported" in refused(path)


def test_files_without_meshes(tmp_path):
    camera = bpy.data.objects.new("Camera", bpy.data.cameras.new("Camera"))
    bpy.context.scene.collection.objects.link(camera)
    path = tmp_path / "camera.glb"
    bpy.ops.export_scene.gltf(filepath=str(path), export_cameras=True)
    empty()
    assert "holds no mesh" in refused(path)


def test_format_that_this_blender_lacks(tmp_path):
    if has("wm.collada_import"):
        pytest.skip("this Blender has Collada")
    path = tmp_path / "character.dae"
    path.write_text("<COLLADA/>")
    assert "cannot import .dae" in refused(path)


def test_unknown_format_and_rate(tmp_path):
    assert ".abc .fbx" in refused(tmp_path / "character.max")
    path = export_character(tmp_path, ".glb")
    for fps in (0, -1, float("nan"), float("inf"), 1e6):
        assert "frame rate" in refused(path, fps=fps)


def test_damaged_fbx_and_glb(tmp_path):
    """Bytes overwritten at random: a sentence or a sequence, whatever they hit."""
    rng = np.random.default_rng(0)
    outcomes = set()
    for suffix in (".glb", ".fbx"):
        data = np.frombuffer(export_character(tmp_path, suffix).read_bytes(), np.uint8)
        for _ in range(12):
            damaged = data.copy()
            damaged[rng.integers(12, len(data), 4)] = rng.integers(0, 256, 4)
            path = tmp_path / f"damaged{suffix}"
            path.write_bytes(damaged.tobytes())
            try:
                objects = import_file(path)
                start = bpy.context.scene.frame_start
                read_sequence(bpy.context, objects, start, start + 2)
                outcomes.add("read")
            except SprigError as error:
                assert "\n" not in str(error)
                outcomes.add("refused")
            empty()
    assert outcomes == {"read", "refused"}


def test_animation_of_absurd_length(tmp_path):
    body = character()
    body.parent.pose.bones[0].keyframe_insert("rotation_quaternion", frame=500_000)
    path = tmp_path / "long.glb"
    bpy.ops.export_scene.gltf(filepath=str(path), export_force_sampling=False)
    empty()
    assert "claims animation from frame 1 to 500000" in refused(path)


def test_archive_between_the_frames(tmp_path):
    """Samples half a frame off are shifted to whole frames, so that what is read is what was written."""
    vertices, faces = tube()
    points = vertices + 0.1 * np.sin(np.arange(5)[:, None, None] + vertices)
    mesh = AbcMesh(points, [face[::-1] for face in faces], "tubeShape")
    path = write_abc(tmp_path / "half.abc", mesh, times=[(f + 0.5) / 24 for f in range(5)])
    sequence = read_sequence(bpy.context, import_file(path))
    upright = np.stack([points[..., 0], -points[..., 2], points[..., 1]], axis=-1)
    np.testing.assert_allclose(sequence.vertices + sequence.origin, upright, atol=1e-6)


# ---- real files

QUICK = {
    "glest_thor_attack.abc", "ufo_alientank_walk.abc", "glest_behemoth_walk_morph.glb", "quat_manta_ray_swim.glb",
    "quat_spider_walk.glb", "quat_knight_roll.fbx",
}  # fmt: skip
REAL = [
    "glest_behemoth_walk_morph.glb", "glest_thor_attack.abc", "m2m_horse_rear.abc", "m2m_horse_rear.fbx",
    "m2m_horse_rear.glb", "m2m_kaiju_tail_attack.abc", "m2m_kaiju_tail_attack.fbx", "m2m_kaiju_tail_attack.glb",
    "oa_gargoyle_death.abc", "quat_knight_roll.abc", "quat_knight_roll.fbx", "quat_knight_roll.glb",
    "quat_manta_ray_swim.abc", "quat_manta_ray_swim.fbx", "quat_manta_ray_swim.glb", "quat_spider_walk.abc",
    "quat_spider_walk.fbx", "quat_spider_walk.glb", "ufo_alientank_walk.abc",
]  # fmt: skip


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in REAL])
def test_real_files_equal_their_twins(shared, name):
    """Same vertices in the same order on the same frames; glTF may split vertices, as its catalogue entry says."""
    with (shared / "data" / "inputs" / "CATALOGUE.csv").open() as table:
        entry = next(row for row in csv.DictReader(table) if row["file"] == name)
    twin = np.load(shared / "data" / "sequences" / f"{entry['clip']}.npz")
    sequence = read_sequence(bpy.context, import_file(shared / "data" / "inputs" / name))
    assert sequence.vertex_count == int(entry["verts"])
    assert sequence.frame_count == int(entry["frames"])
    assert sequence.fps == pytest.approx(float(twin["fps"]), rel=1e-5)
    expected, got = twin["vertices"], sequence.vertices + sequence.origin
    tolerance = 1e-5 * np.linalg.norm(np.ptp(expected[0], axis=0))
    if entry["vertices"] == "same order":
        assert np.abs(got - expected).max() < tolerance
        assert len(sequence.faces) == len(twin["faces"])
    else:
        same_shapes(got, expected, tolerance)


@pytest.mark.slow
def test_archive_of_another_exporter(shared):
    """Maya's: 400 frames at 24 a second, the first 120 of which are the twin's."""
    sequence = read_sequence(bpy.context, import_file(shared / "data" / "inputs" / "dembones_bone_original.abc"))
    twin = np.load(shared / "data" / "sequences" / "dembones_bone.npz")["vertices"]
    assert sequence.vertex_count == twin.shape[1] and sequence.fps == 24
    same_shapes(sequence.vertices[:3] + sequence.origin, twin[:3], 1e-4 * np.ptp(twin))


def test_reading_a_copy_of_the_example(tmp_path):
    """The archive that the repository carries."""
    example = Path(__file__).resolve().parents[2] / "examples" / "elephant_walk.abc"
    path = shutil.copy(example, tmp_path / "elephant with spaces.ABC")
    sequence = read_sequence(bpy.context, import_file(path))
    assert sequence.frame_count > 10 and sequence.vertex_count > 100
