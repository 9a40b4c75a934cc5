"""The preview without a window: it changes nothing, is written as Auto-Rig writes, and leaves nothing when it ends."""

import gc
import importlib
import weakref

import bpy
import numpy as np
import pytest

from sprig.backend.rig import Rig
from sprig.sprig_blender import overlay as drawing
from sprig.sprig_blender.compat import curves_of
from sprig.sprig_blender.overlay import Overlay

from .rigs import random_rig, replay, tube
from .scene_state import scene_state
from .test_operator import FRAMES, addon_of, by_shape_keys, select, skins


@pytest.fixture
def addon(extension):
    return addon_of(extension, "auto_rig", "overlay", "preview", "problems")


def previewed(addon, *things):
    """Press *Preview* on these; returns the preview."""
    select(*things)
    assert bpy.ops.sprig.preview() == {"FINISHED"}
    return addon.preview.current()


def written(armature) -> dict[str, np.ndarray]:
    """Bones, keys, rest shape and skin weights of a result, as numbers."""
    (skin,) = skins(armature)
    weights = np.zeros((len(skin.data.vertices), len(skin.vertex_groups)))
    for v, vertex in enumerate(skin.data.vertices):
        for group in vertex.groups:
            weights[v, group.group] = group.weight
    return {
        "bones": np.array([[*bone.head_local, *bone.tail_local] for bone in armature.data.bones]),
        "keys": np.array([[point.co for point in curve.keyframe_points] for curve in curves_of(armature)]),
        "rest": np.array([vertex.co for vertex in skin.data.vertices]),
        "weights": weights,
    }


def counts() -> tuple:
    return {
        name: len(getattr(bpy.app.handlers, name))
        for name in ("load_pre", "frame_change_post", "depsgraph_update_post")
    }


# ---- in Blender


def test_a_preview_changes_nothing(addon):
    body = by_shape_keys()
    select(body)
    before = scene_state()
    shown = previewed(addon, body)
    assert scene_state() == before
    assert len(shown.computed.rig.skeleton) == 2 and shown.name == "Body"
    assert shown.computed.sequence.vertices.dtype == np.float32


def test_applied_it_is_what_auto_rig_writes(addon, monkeypatch):
    body = by_shape_keys()
    select(body)
    assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
    armature = bpy.context.view_layer.objects.active
    expected, figures = written(armature), {name: armature.sprig[name] for name in ("joints", "rmse", "worst_frame")}
    state = scene_state()
    body.hide_set(False)

    previewed(addon, body)
    monkeypatch.setattr(addon.auto_rig.call_backend, "work", None)  # nothing is computed again
    monkeypatch.setattr(addon.auto_rig, "read_frames", None)
    assert bpy.ops.sprig.apply_preview() == {"FINISHED"}
    armature = bpy.context.view_layer.objects.active
    assert {name: armature.sprig[name] for name in figures} == figures and armature.sprig.seconds > 0
    for name, values in written(armature).items():
        np.testing.assert_array_equal(values, expected[name], err_msg=name)
    assert scene_state() == state  # names, visibility, selection and all
    assert addon.preview.current() is None and not bpy.ops.sprig.apply_preview.poll()


def test_applied_with_corrective_shape_keys(addon):
    body = by_shape_keys()
    bpy.context.scene.sprig.corrective = True
    previewed(addon, body)
    assert bpy.ops.sprig.apply_preview() == {"FINISHED"}
    (skin,) = skins(bpy.context.view_layer.objects.active)
    assert len(skin.data.shape_keys.key_blocks) == 1 + len(FRAMES)


def test_auto_rig_does_not_mind_a_preview(addon):
    body = by_shape_keys()
    shown = previewed(addon, body)
    assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
    assert bpy.context.view_layer.objects.active.sprig.joints == 2 and addon.preview.current() is shown


@pytest.mark.parametrize("how", ["discard", "another", "disable", "open a file"])
def test_nothing_is_left_of_it(addon, extension, how):
    body = by_shape_keys()
    before = scene_state()["datablocks"], counts()
    shown = previewed(addon, body)
    handle, overlay = shown.handle, weakref.ref(shown.overlay)
    assert counts() == before[1]
    if how == "discard":
        assert bpy.ops.sprig.discard_preview() == {"FINISHED"} and not bpy.ops.sprig.discard_preview.poll()
        assert (scene_state()["datablocks"], counts()) == before
    elif how == "another":
        assert previewed(addon, body) is not shown
    elif how == "disable":
        bpy.ops.preferences.addon_disable(module=extension.__name__)
    else:
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    assert addon.preview.current() is None or how == "another"
    with pytest.raises(ValueError, match="invalid or already removed"):
        bpy.types.SpaceView3D.draw_handler_remove(handle, "WINDOW")
    del shown
    gc.collect()
    assert overlay() is None
    if how == "disable":
        assert not [handler for handler in bpy.app.handlers.load_pre if "sprig" in handler.__module__]
        bpy.ops.preferences.addon_enable(module=extension.__name__)


def test_objects_that_no_longer_fit(addon):
    body = by_shape_keys()
    shown = previewed(addon, body)
    body.name = "Renamed"  # is nobody's business
    body.data.vertices.add(1)
    before = scene_state()
    with pytest.raises(RuntimeError, match="The mesh of 'Renamed' was edited after it was previewed; run the rigging"):
        bpy.ops.sprig.apply_preview()
    assert scene_state() == before
    bpy.data.objects.remove(body)
    before = scene_state()
    with pytest.raises(
        RuntimeError, match=r"^Error: 'Body' was deleted after it was previewed; undo that and run .*\.$"
    ):
        bpy.ops.sprig.apply_preview()
    assert scene_state() == before
    assert addon.preview.current() is shown  # undo may bring the object back


def test_applying_waits_for_the_right_place(addon):
    with pytest.raises(RuntimeError, match="There is no preview"):
        bpy.ops.sprig.apply_preview()
    body, scene = by_shape_keys(), bpy.context.scene
    previewed(addon, body)
    bpy.ops.object.mode_set(mode="EDIT")
    with pytest.raises(RuntimeError, match="Switch to Object Mode first"):
        bpy.ops.sprig.apply_preview()
    bpy.ops.object.mode_set(mode="OBJECT")
    bpy.context.window.scene = bpy.data.scenes.new("Other")
    with pytest.raises(RuntimeError, match="belongs to another scene"):
        bpy.ops.sprig.apply_preview()
    bpy.context.window.scene = scene
    assert bpy.ops.sprig.apply_preview() == {"FINISHED"}


def test_drawing_that_fails_ends_the_preview(addon, capfd):
    shown = previewed(addon, by_shape_keys())
    shown.overlay.draw = None
    for _ in range(2):
        addon.preview._draw()
    assert "The preview met a bug of ours (TypeError)" in addon.problems.last().sentence
    assert capfd.readouterr().err.count("Traceback") == 1  # and not at every redraw
    assert bpy.app.timers.is_registered(addon.preview.discard)
    bpy.app.timers.unregister(addon.preview.discard)


def test_joints_to_choose_from(addon):
    names = importlib.import_module(f"{addon.preview.__package__}.properties")._joints_of_the_preview
    assert list(names(None, None, "")) == []
    assert (
        names(None, None, "") != previewed(addon, by_shape_keys()).computed.rig.skeleton.names == names(None, None, "")
    )


# ---- numbers


@pytest.fixture
def rig() -> Rig:
    """Five bones at random, frames 3, 5, 7, 9, and a motion that its sequence (below) does not follow exactly."""
    return random_rig(np.random.default_rng(3), *tube(), origin=(5.0, 0, 0))


@pytest.fixture
def overlay(rig):
    sequence = replay(rig)
    noise = np.random.default_rng(4).normal(scale=0.01, size=sequence.vertices.shape).astype(np.float32)
    sequence.vertices[:] += noise
    return Overlay(rig, sequence)


def test_errors_are_those_of_the_metrics(rig, overlay):
    """Frame by frame, with sums written out, and as the solver's own report has them."""
    low, high = overlay.sequence.vertices[0].min(axis=0), overlay.sequence.vertices[0].max(axis=0)
    diagonal = np.sqrt(((high - low).astype(np.float64) ** 2).sum())
    for f in range(4):
        for v in (0, 17, 40):
            place = np.zeros(3)
            for j in range(5):
                moved = rig.motion[f, j] @ [*rig.rest_vertices[v], 1.0]
                place += rig.weights[v, j] * moved[:3]
            error = 100 * np.linalg.norm(place - overlay.sequence.vertices[f, v]) / diagonal
            assert overlay.surface(f).errors[v] == pytest.approx(error, rel=1e-4)
            np.testing.assert_allclose(overlay.surface(f).positions[v], place, atol=1e-5)


def test_errors_of_a_previewed_rig(addon):
    shown = previewed(addon, by_shape_keys())
    for f in range(len(FRAMES)):
        errors = shown.overlay.surface(f).errors.astype(np.float64)
        assert np.sqrt((errors**2).mean()) == pytest.approx(shown.computed.rig.rmse_per_frame[f], rel=1e-4)
    assert shown.overlay.error_limit == drawing.SHORTEST_SCALE  # a tube that is replayed to within rounding


def test_the_scale_of_errors_fits_the_worst_frame(rig):
    rig = Rig(**{**vars(rig), "rmse_per_frame": np.array([0.1, 0.3, 0.2, 0.0])})
    assert Overlay(rig, replay(rig)).error_limit == pytest.approx(0.6)


def test_the_cache_follows_the_frame(rig, overlay, monkeypatch):
    assert [overlay.position(frame) for frame in (-9, 3, 5, 7, 9, 99)] == [0, 0, 1, 2, 3, 3]
    first = overlay.surface(overlay.position(3))
    assert overlay.surface(overlay.position(3)) is first  # computed once
    assert np.abs(overlay.surface(overlay.position(5)).positions - first.positions).max() > 0.01
    assert overlay.surface(overlay.position(3)) is first
    monkeypatch.setattr(drawing, "MEMORY", 2.5 * 20 * len(rig.rest_vertices))  # room for two
    overlay.surface(2)
    assert len(overlay._surfaces) == 1 and overlay.surface(0) is not first


def test_sticks_and_links_end_where_the_bones_do(rig, overlay):
    """By hand: motion times the rest pose's ends; a bone away from its parent's tail is linked to it."""
    f, colors = 2, np.linspace(0, 1, 15).reshape(5, 3)
    ends, rgba = drawing.stick_lines(overlay.heads[f], overlay.tails[f], colors)
    for j in range(5):
        for k, point in enumerate((rig.skeleton.joints[j], rig.skeleton.tails[j])):
            np.testing.assert_allclose(ends[2 * j + k], (rig.motion[f, j] @ [*point, 1])[:3], atol=1e-5)
            np.testing.assert_allclose(rgba[2 * j + k, :3], colors[j] * (1, drawing.TAIL)[k], atol=1e-6)
    assert (rgba[:, 3] == 1).all() and ends.dtype == rgba.dtype == np.float32

    assert list(overlay.links) == [1, 2, 3, 4]  # at random no bone begins where another ends, and the root has none
    ends, _ = drawing.link_lines(overlay.heads[f], overlay.tails[f], rig.skeleton.parents, overlay.links)
    np.testing.assert_allclose(ends[0::2], overlay.tails[f][rig.skeleton.parents[1:]], atol=1e-5)
    np.testing.assert_allclose(ends[1::2], overlay.heads[f][1:], atol=1e-5)
    assert list(drawing.loose_bones(rig, distance=1e9)) == []


def test_lines_of_a_raw_skeleton():
    """From every joint's parent to the joint, parents first or not; a joint alone has none."""
    joints = np.array([[0, 0, 1], [0, 0, 0], [1, 0, 1]], dtype=float)
    ends = drawing.raw_lines(joints, np.array([1, -1, 0]))
    np.testing.assert_array_equal(ends, [[0, 0, 0], [0, 0, 1], [0, 0, 1], [1, 0, 1]])
    assert ends.dtype == np.float32 and drawing.raw_lines(joints[:1], np.array([-1])).shape == (0, 3)


def test_octahedra_are_closed_and_face_outwards(overlay):
    heads, tails = overlay.heads[1], overlay.tails[1]
    corners, rgba = drawing.octahedra(heads, tails, np.ones((5, 3)), overlay.diagonal)
    faces = corners.reshape(5, 8, 3, 3).astype(np.float64)
    for bone, head, tail in zip(faces, heads, tails, strict=True):
        middle = 0.85 * head + 0.15 * tail
        areas = np.cross(bone[:, 1] - bone[:, 0], bone[:, 2] - bone[:, 0])
        assert ((bone.mean(axis=1) - middle) * areas).sum(axis=1).min() > 0
        np.testing.assert_allclose(areas.sum(axis=0), 0, atol=1e-6)
        along = (bone.reshape(-1, 3) - head) @ (tail - head) / np.sum((tail - head) ** 2)
        assert along.min() == pytest.approx(0, abs=1e-5) and along.max() == pytest.approx(1, abs=1e-5)
    assert rgba.min() >= 0.6 - 1e-6 and rgba.max() <= 1


def test_normals_and_light():
    """A cube's corners look away from its middle; what faces the light is brightest."""
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], dtype=float)
    quads = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    faces = np.array([face for a, b, c, d in quads for face in ((a, b, c), (a, c, d))])
    normals = drawing.vertex_normals(corners, faces)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    assert ((normals * corners).sum(axis=1) > 1.5).all()
    assert drawing.brightness(drawing.LIGHT) == pytest.approx(1) and drawing.brightness(
        -drawing.LIGHT
    ) == pytest.approx(0.6)


def test_colours_of_bones(rig):
    seen, confidence = np.array([1, 1, 1, 0, 1], bool), np.array([0.0, 0.5, 1.0, 1.0, np.nan])
    turns = np.radians([0, 45, 90, 90, 400])
    rig = Rig(**{**vars(rig), "seen_in_motion": seen, "confidence": confidence, "rotation_range": turns})
    dark, middle, light = drawing.scale_colors(np.array([0.0, 0.5, 1.0]))
    assert dark.sum() < middle.sum() < light.sum()
    grey = np.array(drawing.UNKNOWN)
    np.testing.assert_allclose(drawing.bone_colors(rig, "CONFIDENCE"), [dark, middle, light, light, grey])
    np.testing.assert_allclose(drawing.bone_colors(rig, "MOTION"), [dark, middle, light, grey, light])
    assert (drawing.bone_colors(rig, "PLAIN") == drawing.PLAIN).all()


def test_colours_of_surfaces(rig, overlay):
    joint = rig.skeleton.names[2]
    surface = overlay.surface(1)
    for kind, values in (("WEIGHTS", rig.weights[:, 2]), ("ERROR", surface.errors / overlay.error_limit)):
        positions, rgba = overlay.colored_surface(1, kind, joint)
        assert positions is surface.positions
        np.testing.assert_allclose(rgba[:, :3], drawing.scale_colors(values) * surface.light, atol=1e-6)
        assert np.ptp(rgba[:, :3], axis=0).max() > 0.3
    _, all_joints = overlay.colored_surface(1, "WEIGHTS", "")
    _, unknown = overlay.colored_surface(1, "WEIGHTS", "a bone of another rig")
    assert (all_joints == unknown).all() and all_joints.min() >= 0 and all_joints.max() <= 1
    assert np.abs(all_joints - rgba).max() > 0.1
