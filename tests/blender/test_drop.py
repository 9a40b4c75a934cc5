"""Files dropped on the viewport: imported and selected, so that the button is ready; refusals change nothing."""

import importlib
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import bpy
import numpy as np
import pytest

from .rigs import mesh_object, tube
from .scene_state import scene_state
from .test_operator import bent, select, world_positions

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "elephant_walk.abc"
VERTICES, FACES = tube(rings=24)
SAMPLES = np.array([bent(VERTICES, 0.2 * number) for number in range(4)], dtype=np.float32)


def drop(*paths):
    """What Blender does with dropped files."""
    return bpy.ops.sprig.import_sequence(
        "INVOKE_DEFAULT", directory=str(paths[0].parent), files=[{"name": path.name} for path in paths]
    )


def refused(*paths) -> str:
    before = scene_state()
    with pytest.raises(RuntimeError) as error:
        drop(*paths)
    assert scene_state() == before
    return str(error.value)


def write_pc2(path, samples=SAMPLES, start=1.0, step=1.0):
    header = b"POINTCACHE2\0" + np.array([1, samples.shape[1]], "<i4").tobytes()
    header += np.array([start, step], "<f4").tobytes() + np.array([len(samples)], "<i4").tobytes()
    path.write_bytes(header + samples.astype("<f4").tobytes())
    return path


def write_mdd(path, samples=SAMPLES):
    header = np.array(samples.shape[:2], ">i4").tobytes() + (np.arange(len(samples)) / 24).astype(">f4").tobytes()
    path.write_bytes(header + samples.astype(">f4").tobytes())
    return path


@pytest.fixture
def body(extension):
    made = mesh_object(VERTICES, FACES, "Body")
    select(made)
    return made


def test_a_dropped_archive_is_ready_to_be_rigged(extension):
    status = importlib.import_module(f"{extension.__name__}.sprig_blender.status")
    assert drop(EXAMPLE) == {"FINISHED"}
    active = bpy.context.view_layer.objects.active
    assert active.type == "MESH" and bpy.context.selected_objects == [active]
    assert bpy.ops.sprig.auto_rig_sequence.poll()
    scene = bpy.context.scene
    assert scene.frame_current == scene.frame_start < scene.frame_end
    shown = status.in_words(status.found(bpy.context), scene)
    assert shown == f"Alembic cache, 1 mesh, 1,017 vertices, frames {scene.frame_start}–{scene.frame_end}"


def test_several_archives_come_all_or_not_at_all(extension, tmp_path):
    paths = [tmp_path / "one.abc", tmp_path / "two.abc"]
    for path in paths:
        shutil.copy(EXAMPLE, path)
    assert drop(*paths) == {"FINISHED"}
    assert len(bpy.context.selected_objects) == 2
    paths[1].write_bytes(paths[1].read_bytes()[:5000])
    assert "two.abc" in refused(*paths)


@pytest.mark.parametrize(
    ("write", "frames"),
    [
        (lambda folder: write_pc2(folder / "body.pc2"), [1, 2, 3, 4]),
        (lambda folder: write_pc2(folder / "body.PC2", start=5.0, step=2.0), [5, 7, 9, 11]),
        (lambda folder: write_pc2(folder / "body.pc2", start=math.nan, step=0.0), [1, 2, 3, 4]),
        (lambda folder: write_mdd(folder / "body.mdd"), [1, 2, 3, 4]),
    ],
    ids=["PC2", "PC2 on twos", "PC2 without timing", "MDD"],
)
def test_a_point_cache_moves_the_active_mesh(body, tmp_path, write, frames):
    body.modifiers.new("Subdivision", "SUBSURF").show_viewport = False
    assert drop(write(tmp_path)) == {"FINISHED"}
    assert [modifier.type for modifier in body.modifiers] == ["MESH_CACHE", "SUBSURF"]
    scene = bpy.context.scene
    assert (scene.frame_start, scene.frame_end, scene.frame_current) == (frames[0], frames[-1], frames[0])
    for frame, expected in zip(frames, SAMPLES, strict=True):
        scene.frame_set(frame)
        np.testing.assert_allclose(world_positions(body), expected, atol=1e-6)
    assert bpy.ops.sprig.auto_rig_sequence.poll()


def test_another_point_cache_takes_the_place_of_the_first(body, tmp_path):
    drop(write_pc2(tmp_path / "one.pc2"))
    drop(write_mdd(tmp_path / "two.mdd", SAMPLES[:3]))
    (modifier,) = body.modifiers
    assert (modifier.cache_format, Path(modifier.filepath).name) == ("MDD", "two.mdd")
    assert bpy.context.scene.frame_end == 3


def test_refused_point_caches(body, tmp_path):
    cache = write_pc2(tmp_path / "body.pc2")
    assert "import it by itself" in refused(cache, EXAMPLE)
    assert "moves 191 vertices and Body has 192" in refused(write_pc2(tmp_path / "less.pc2", SAMPLES[:, 1:]))
    (tmp_path / "cut.pc2").write_bytes(cache.read_bytes()[:-1])
    assert "truncated" in refused(tmp_path / "cut.pc2")
    (tmp_path / "other.pc2").write_bytes(b"POINTCACHE9\0" + cache.read_bytes()[12:])
    assert "no PC2 file" in refused(tmp_path / "other.pc2")
    (tmp_path / "short.mdd").write_bytes(b"\0\0\0")
    assert "truncated" in refused(tmp_path / "short.mdd")
    assert "does not exist" in refused(tmp_path / "gone.mdd")
    assert "Blender imports" in refused(tmp_path / "body.txt")
    select()
    assert "select the mesh that it moves" in refused(cache)


def test_in_edit_mode_nothing_is_imported(body):
    bpy.ops.object.mode_set(mode="EDIT")
    with pytest.raises(RuntimeError, match="Switch to Object Mode first"):
        drop(EXAMPLE)
    bpy.ops.object.mode_set(mode="OBJECT")


def test_blender_is_told_of_it(extension):
    file_import = importlib.import_module(f"{extension.__name__}.sprig_blender.file_import")
    handler = bpy.types.SPRIG_FH_sequence
    assert handler.bl_file_extensions.split(";") == [".abc", ".pc2", ".mdd"]
    assert handler.bl_import_operator == bpy.ops.sprig.import_sequence.idname_py()
    for area, mode, taken in (("VIEW_3D", "OBJECT", True), ("VIEW_3D", "EDIT_MESH", False), ("OUTLINER", "OBJECT", 0)):
        context = SimpleNamespace(area=SimpleNamespace(type=area), mode=mode)
        assert handler.poll_drop(context) == bool(taken)
    assert not handler.poll_drop(SimpleNamespace(area=None, mode="OBJECT"))
    properties = bpy.ops.sprig.import_sequence.get_rna_type().properties
    assert all(properties[name].is_skip_save for name in ("filepath", "directory", "files"))
    assert file_import.draw_menu_entry in bpy.types.TOPBAR_MT_file_import.draw._draw_funcs
