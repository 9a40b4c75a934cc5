"""Several clips of one character in Blender: an action each, kept through saving, and files that play all of them."""

import json
from dataclasses import replace

import bpy
import numpy as np
import pytest
from scipy.spatial import cKDTree

from sprig.backend.clips import join_clips
from sprig.sprig_blender import cli
from sprig.sprig_blender.compat import assign
from sprig.sprig_blender.export import export
from sprig.sprig_blender.write_armature import FRAME_RATE, evaluated_positions, mesh_from_sequence, write_armature

from .rigs import random_rig, replay, replayed, tube
from .scene_files import export as export_scene
from .test_cli_blender import bending_tube, skinned_meshes

CLIPS = (("walk", 25.0, 5), ("hop", 30.0, 7))  # name, rate, frames


@pytest.fixture(scope="module")
def shown():
    """The rig of two clips, and the sequence that it replays: walk and hop, both numbered 3, 5, 7, …"""
    rig = random_rig(np.random.default_rng(4), *tube(), joints=5, frames=12, angle=0.7, origin=(0.5, -0.2, 1.0))
    return rig, replay(rig)


@pytest.fixture
def joined(shown):
    rig, whole = shown
    numbers = 3 + 2 * np.arange(12)
    pieces = [
        replace(whole.with_frames(numbers[start], numbers[start + count - 1]), name=name, fps=fps)
        for (name, fps, count), start in zip(CLIPS, (0, 5), strict=True)
    ]
    pieces[1] = replace(pieces[1], frame_numbers=numbers[:7])
    sequence = join_clips(pieces)
    rig = replace(rig, frame_numbers=sequence.frame_numbers, fps=25.0, clips=sequence.clips)
    return rig, sequence


@pytest.fixture
def written(joined):
    rig, sequence = joined
    return write_armature(bpy.context, rig, mesh_from_sequence(bpy.context, sequence), sequence.object_id)


def apart(shapes, wanted) -> float:
    """Largest distance in diagonals; exporters reorder vertices, so each has the nearest one in the first frame."""
    order = cKDTree(wanted[0]).query(shapes[0])[1]
    diagonal = np.linalg.norm(np.ptp(wanted[0], axis=0))
    return np.linalg.norm(shapes - wanted[:, order], axis=2).max() / diagonal


def world(sequence, clip):
    """World positions (F,V,3) of a clip's frames."""
    return np.stack([sequence.world_vertices(f) for f in range(clip.start, clip.stop)])


def test_every_clip_is_an_action(written, joined):
    _, sequence = joined
    armature, (mesh,) = written.armature, written.meshes
    assert [action.name for action in written.actions] == ["walk", "hop"]
    assert armature.animation_data.action == written.action == written.actions[0]
    assert [action[FRAME_RATE] for action in written.actions] == [25, 30]
    tracks = armature.animation_data.nla_tracks
    assert [(track.name, track.strips[0].action, track.mute) for track in tracks] == [
        ("walk", written.actions[0], True),
        ("hop", written.actions[1], True),
    ]
    for action, clip in zip(written.actions, sequence.clips, strict=True):
        numbers = sequence.frame_numbers[clip.rows]
        assert tuple(action.frame_range) == (numbers[0], numbers[-1]) and action.use_fake_user
        assign(armature, action)
        assert apart(replayed(mesh, numbers), world(sequence, clip)) < 1e-5


def test_a_strip_lasts_as_long_as_its_clip(written):
    """hop: twelve frames at 30 a second are ten at 25."""
    walk, hop = (track.strips[0] for track in written.armature.animation_data.nla_tracks)
    assert (walk.frame_start, walk.frame_end) == (3, 11) and (hop.frame_start, hop.frame_end) == (3, 13)


def test_running_again_leaves_no_action_behind(shown, joined):
    rig, sequence = joined
    (source,) = mesh_from_sequence(bpy.context, sequence)
    del source["sprig_made_from_sequence"]
    for _ in range(2):
        write_armature(bpy.context, rig, [source], sequence.object_id)
        assert sorted(bpy.data.actions.keys()) == ["hop", "walk"]
    write_armature(bpy.context, shown[0], [source], sequence.object_id)
    assert bpy.data.actions.keys() == ["mesh Motion"]


@pytest.mark.parametrize("suffix", [".glb", ".fbx"])
def test_exchange_formats_hold_every_clip(suffix, written, tmp_path):
    """Each shows what its strip shows, for as long."""
    bpy.data.actions.new("Not ours").use_fake_user = True
    animation, (mesh,) = written.armature.animation_data, written.meshes
    wanted = {}
    animation.action = None
    for track in animation.nla_tracks:
        track.mute = False
        strip = track.strips[0]
        wanted[track.name] = replayed(mesh, range(int(strip.frame_start), int(strip.frame_end) + 1))
        track.mute = True
    assign(written.armature, written.action)

    export(tmp_path / f"out{suffix}", bpy.context, written, sources=[])
    assert animation.action == written.action and all(track.mute for track in animation.nla_tracks)

    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.context.scene.render.fps = 25
    reader = bpy.ops.import_scene.gltf if suffix == ".glb" else bpy.ops.import_scene.fbx
    reader(filepath=str(tmp_path / f"out{suffix}"))
    (mesh,) = skinned_meshes()
    armature = mesh.parent
    for track in armature.animation_data.nla_tracks:
        track.mute = True
    actions = {action.name.removesuffix(f"_{armature.name}").split("|")[1 if suffix == ".fbx" else 0]: action
               for action in bpy.data.actions}  # fmt: skip
    assert set(actions) == {"walk", "hop"}
    for name, action in actions.items():
        assign(armature, action)
        first, last = np.round(action.frame_range).astype(int)
        assert last - first + 1 == len(wanted[name])
        assert apart(replayed(mesh, range(first, last + 1)), wanted[name]) < 2e-4


def test_a_blend_keeps_every_clip(written, joined, tmp_path):
    _, sequence = joined
    export(tmp_path / "out.blend", bpy.context, written, sources=[])
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "out.blend"))
    scene = bpy.context.scene
    assert (scene.frame_start, scene.frame_end, scene.render.fps) == (3, 11, 25)
    (mesh,) = skinned_meshes()
    for clip in sequence.clips:
        assign(mesh.parent, bpy.data.actions[clip.name])
        assert apart(replayed(mesh, sequence.frame_numbers[clip.rows]), world(sequence, clip)) < 1e-5


# ---- the command line


def clip_files(folder, suffix):
    """Two clips of one tube, six frames from 1 and eight from 11: bend and sway."""
    files = []
    for name, frames in (("bend", range(1, 7)), ("sway", range(11, 19))):
        bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
        bending_tube(frames=frames)
        if name == "sway":
            rig = bpy.data.objects["Armature"]
            for number in frames:
                half = 0.04 * (number - frames[0])
                rig.pose.bones["lower"].rotation_quaternion = (np.cos(half), 0, np.sin(half), 0)
                rig.pose.bones["lower"].keyframe_insert("rotation_quaternion", frame=number)
        files.append(folder / f"{name}{suffix}")
        export_scene(files[-1])
    return files


def rig_files(files, out):
    """Rig clips of one character; the report."""
    told = out.with_suffix(".json")
    options = ["-o", out, "-q", "--report", told, "--same-character", "--joints", "3"]
    assert cli.main(["rig", *map(str, files), *map(str, options)]) == 0
    return json.loads(told.read_text())


@pytest.mark.parametrize("suffix", [".abc", ".glb"])
def test_clips_that_blender_reads(suffix, tmp_path):
    files = clip_files(tmp_path, suffix)
    out = tmp_path / "rig.blend"
    told = rig_files(files, out)
    assert [(clip["name"], clip["frames"]) for clip in told["clips"]] == [("bend", 6), ("sway", 8)]
    assert told["rmse_percent"] < 0.5

    bpy.ops.wm.open_mainfile(filepath=str(out))
    mesh, source = (bpy.data.objects[name] for name in ("body Skin", "body"))
    assert mesh.data.uv_layers  # made from what Blender imported
    played = mesh.parent.animation_data.action
    tracks = mesh.parent.animation_data.nla_tracks
    assert [track.name for track in tracks] == ["bend", "sway"] and played == tracks[0].strips[0].action
    start = int(played.frame_range[0])
    for number in (start, start + 5):  # the source is the first clip's
        bpy.context.scene.frame_set(number)
        graph = bpy.context.evaluated_depsgraph_get()
        source.hide_set(False)
        difference = evaluated_positions(mesh, graph) - evaluated_positions(source, graph)
        assert np.abs(difference).max() < 0.05


def test_clips_of_two_kinds(tmp_path):
    """One that Blender reads, one that it does not; the scene is the first one's."""
    scene, archive = clip_files(tmp_path, ".blend")[1], clip_files(tmp_path, ".abc")[0]
    told = rig_files([archive, scene], tmp_path / "rig.glb")
    assert [clip["input"] for clip in told["clips"]] == [str(archive), str(scene)]
    chunk = (tmp_path / "rig.glb").read_bytes()[20:]
    found = json.JSONDecoder().raw_decode(chunk.decode("utf-8", errors="ignore"))[0]
    assert [animation["name"] for animation in found["animations"]] == ["bend", "sway"]
