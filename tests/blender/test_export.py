"""Exports replay the rig after they are read back, in another process for .blend; failures leave nothing behind."""

import json
import resource
import subprocess
import sys
from contextlib import contextmanager

import bpy
import numpy as np
import pytest
from scipy.spatial import cKDTree

from sprig.backend.errors import SprigError
from sprig.sprig_blender.compat import curves_of
from sprig.sprig_blender.export import export
from sprig.sprig_blender.write_armature import evaluated_positions, mesh_from_sequence, write_armature

from .rigs import random_rig, replay, source_of, tube

REPLAY_TOLERANCE = 2e-4  # diagonals; what the exchange formats' own rounding may cost (the issue's 0.02 %)


@pytest.fixture
def rig():
    return random_rig(np.random.default_rng(1), *tube(), joints=6, frames=6, angle=0.7, origin=(0.5, -0.2, 1.0))


@pytest.fixture
def source(rig):
    return source_of(rig, tube()[1])


@pytest.fixture
def written(rig, source):
    return write_armature(bpy.context, rig, [source], np.zeros(len(rig.rest_vertices), int))


def import_again(path):
    """An empty scene at the rig's frame rate with the file in it."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.context.scene.render.fps = 25
    readers = {".glb": "import_scene.gltf", ".fbx": "import_scene.fbx", ".usdc": "wm.usd_import"}
    module, name = readers[path.suffix].split(".")
    getattr(getattr(bpy.ops, module), name)(filepath=str(path))


def replay_error(sequence, shift: int) -> float:
    """Largest distance in diagonals between the scene's only mesh at frame + shift and the sequence.

    Exporters split and reorder vertices, so each imported one is matched to the nearest of the first frame.
    """
    (mesh,) = [thing for thing in bpy.context.scene.objects if thing.type == "MESH" and thing.modifiers]
    diagonal = np.linalg.norm(np.ptp(sequence.world_vertices(0), axis=0))
    worst, match = 0.0, None
    for f, number in enumerate(sequence.frame_numbers):
        bpy.context.scene.frame_set(int(number) + shift)
        shape = evaluated_positions(mesh, bpy.context.evaluated_depsgraph_get())
        if match is None:
            match = cKDTree(sequence.world_vertices(f)).query(shape)[1]
            assert set(match) == set(range(sequence.vertex_count))
        worst = max(worst, np.linalg.norm(shape - sequence.world_vertices(f)[match], axis=1).max() / diagonal)
    return worst


@pytest.mark.parametrize("suffix", [".glb", ".fbx", ".usdc"])
def test_exchange_formats_replay_after_import(rig, source, written, tmp_path, suffix):
    sequence = replay(rig)
    scene = bpy.context.scene
    scene.render.fps, scene.frame_end = 24, 33
    before = set(bpy.data.user_map())

    export(tmp_path / f"out{suffix}", bpy.context, written, sources=[source])

    assert set(bpy.data.user_map()) == before and (scene.render.fps, scene.frame_end) == (24, 33)
    assert [p.name for p in tmp_path.iterdir()] == [f"out{suffix}"]
    import_again(tmp_path / f"out{suffix}")
    things = [
        thing for thing in bpy.context.scene.objects if thing.type in ("MESH", "ARMATURE") and not thing.hide_get()
    ]
    (armature,) = [thing for thing in things if thing.type == "ARMATURE"]
    (mesh,) = [thing for thing in things if thing.type == "MESH" and thing.modifiers]
    assert {bone.name for bone in armature.data.bones} == set(rig.skeleton.names)
    assert set(mesh.vertex_groups.keys()) == set(rig.skeleton.names)
    assert armature.animation_data.action is not None and curves_of(armature)
    first, last = armature.animation_data.action.frame_range
    assert last - first == pytest.approx(rig.frame_numbers[-1] - rig.frame_numbers[0], abs=1e-3)
    assert replay_error(sequence, round(first) - int(rig.frame_numbers[0])) < REPLAY_TOLERANCE


@pytest.mark.parametrize("suffix", [".glb", ".fbx", ".usdc"])
def test_corrective_keys_travel_along(rig, source, tmp_path, suffix):
    sequence = replay(rig)
    sequence.vertices[...] += np.random.default_rng(2).normal(size=sequence.vertices.shape).astype(np.float32) * 0.02
    ids = np.zeros(len(rig.rest_vertices), int)
    written = write_armature(bpy.context, rig, [source], ids, corrective=sequence)
    export(tmp_path / f"out{suffix}", bpy.context, written, sources=[source])
    import_again(tmp_path / f"out{suffix}")
    (armature,) = [thing for thing in bpy.context.scene.objects if thing.type == "ARMATURE"]
    first = armature.animation_data.action.frame_range[0]
    assert replay_error(sequence, round(first) - int(rig.frame_numbers[0])) < REPLAY_TOLERANCE


@pytest.mark.parametrize("suffix", [".glb", ".fbx"])
def test_only_our_result_is_exported(rig, source, written, tmp_path, suffix):
    other = source_of(rig, tube()[1], "Other")
    other.animation_data_create().action = bpy.data.actions.new("Not ours")
    export(tmp_path / f"out{suffix}", bpy.context, written, sources=[source])
    import_again(tmp_path / f"out{suffix}")
    assert "Not ours" not in " ".join(bpy.data.actions.keys()) and len(bpy.data.actions) == 1
    assert not {"Other", "Body"} & set(bpy.data.objects.keys())


IN_A_NEW_PROCESS = """
import json, sys
import bpy
import numpy as np
bpy.ops.wm.open_mainfile(filepath=sys.argv[1])
scene = bpy.context.scene
mesh = next(thing for thing in scene.objects if thing.name == "Body Skin")
shapes = []
for number in range(scene.frame_start, scene.frame_end + 1):
    scene.frame_set(number)
    evaluated = mesh.evaluated_get(bpy.context.evaluated_depsgraph_get())
    local = np.empty(3 * len(evaluated.data.vertices), dtype=np.float32)
    evaluated.data.vertices.foreach_get("co", local)
    matrix = np.array(evaluated.matrix_world)
    shapes.append(local.reshape(-1, 3).astype(float) @ matrix[:3, :3].T + matrix[:3, 3])
np.save(sys.argv[2], shapes)
print(json.dumps({
    "frames": [scene.frame_start, scene.frame_end], "fps": scene.render.fps / scene.render.fps_base,
    "objects": {thing.name: thing.hide_get() for thing in scene.objects}, "all": bpy.data.objects.keys(),
    "cache": [cache.filepath for cache in bpy.data.cache_files],
}))
"""


def open_in_a_new_process(path, shapes):
    command = [sys.executable, "-c", IN_A_NEW_PROCESS, str(path), str(shapes)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(answer.stdout.strip().splitlines()[-1])


def test_a_blend_replays_in_a_new_process(rig, source, written, tmp_path):
    source_of(rig, tube()[1], "Stranger")
    export(tmp_path / "out.blend", bpy.context, written, sources=[source])
    said = open_in_a_new_process(tmp_path / "out.blend", tmp_path / "shapes.npy")
    assert said["frames"] == [3, 13] and said["fps"] == 25
    assert said["objects"] == {"Body Rig": False, "Body Skin": False, "Body": True}
    assert set(said["all"]) == set(said["objects"])
    sequence = replay(rig)
    shapes = np.load(tmp_path / "shapes.npy")[sequence.frame_numbers - 3]
    diagonal = np.linalg.norm(np.ptp(sequence.world_vertices(0), axis=0))
    wanted = np.stack([sequence.world_vertices(f) for f in range(sequence.frame_count)])
    assert np.linalg.norm(shapes - wanted, axis=2).max() / diagonal < 1e-5


def test_stand_ins_for_a_file_are_not_saved(rig, tmp_path):
    sequence = replay(rig)
    sources = mesh_from_sequence(bpy.context, sequence)
    written = write_armature(bpy.context, rig, sources, sequence.object_id)
    export(tmp_path / "out.blend", bpy.context, written, sources=sources)
    with bpy.data.libraries.load(str(tmp_path / "out.blend")) as (there, _):
        assert set(there.objects) == {"mesh Rig", "mesh Skin"}


def test_a_saved_result_is_replaced_after_opening(rig, source, written, tmp_path):
    export(tmp_path / "out.blend", bpy.context, written, sources=[source])
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "out.blend"))
    reopened = bpy.data.objects["Body"]
    write_armature(bpy.context, rig, [reopened], np.zeros(len(rig.rest_vertices), int))
    assert set(bpy.data.objects.keys()) == {"Body", "Body Rig", "Body Skin"}


def test_cache_files_are_saved_by_relative_path(rig, source, written, tmp_path):
    (tmp_path / "caches").mkdir()
    (tmp_path / "caches" / "walk.mdd").write_bytes(b"\0" * 8)
    image = bpy.data.images.new("Skin", 4, 4)
    image.filepath_raw, image.file_format = str(tmp_path / "caches" / "skin.png"), "PNG"
    image.save()
    image.source = "FILE"
    material = bpy.data.materials.new("Skin")
    material.use_nodes = True
    material.node_tree.nodes.new("ShaderNodeTexImage").image = image
    written.meshes[0].data.materials.append(material)
    export(tmp_path / "out.blend", bpy.context, written, sources=[source])
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "out.blend"))
    assert bpy.data.images["Skin"].filepath.replace("\\", "/") == "//caches/skin.png"
    assert bpy.data.images["Skin"].packed_file is None


# --- what is refused ---------------------------------------------------------------------------------------------


def test_a_missing_exporter_is_named(written, source, tmp_path):
    bpy.ops.preferences.addon_disable(module="io_scene_gltf2")
    try:
        with pytest.raises(SprigError, match=r"no exporter for \.glb"):
            export(tmp_path / "out.glb", bpy.context, written, sources=[source])
    finally:
        bpy.ops.preferences.addon_enable(module="io_scene_gltf2")
    assert not list(tmp_path.iterdir())


def test_an_unknown_suffix_is_refused(written, source, tmp_path):
    with pytest.raises(SprigError, match=r"out\.obj .* \.blend, \.glb, \.fbx, \.usdc"):
        export(tmp_path / "out.obj", bpy.context, written, sources=[source])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", [".blend", ".glb", ".fbx", ".usdc"])
def test_a_folder_that_cannot_be_written_is_refused(written, source, tmp_path, suffix):
    tmp_path.chmod(0o555)
    try:
        with pytest.raises(SprigError, match="read-only"):
            export(tmp_path / f"out{suffix}", bpy.context, written, sources=[source])
    finally:
        tmp_path.chmod(0o755)
    with pytest.raises(SprigError, match="does not exist"):
        export(tmp_path / "nowhere" / f"out{suffix}", bpy.context, written, sources=[source])
    assert not list(tmp_path.iterdir())


@contextmanager
def disk_of(size: int):
    """No file may grow beyond `size` bytes: to a writer, a full disk (Python ignores the signal, so writes fail)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


# Blender's glTF exporter leaves its file open when a write fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("suffix", [".blend", ".glb", ".fbx", ".usdc"])
def test_a_full_disk_leaves_the_old_file(written, source, tmp_path, suffix):
    out = tmp_path / f"out{suffix}"
    out.write_bytes(b"old")
    before = set(bpy.data.user_map())
    with disk_of(4096), pytest.raises(SprigError, match=r"no space left|could not be written"):
        export(out, bpy.context, written, sources=[source])
    assert out.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == [out.name]
    assert set(bpy.data.user_map()) == before
