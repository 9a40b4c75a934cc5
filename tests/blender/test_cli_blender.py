"""`sprig` with Blender behind it: the embedded example to every format, scenes as input, and every way to fail."""

import importlib
import json
import signal
import sys

import bpy
import numpy as np
import pytest

from sprig.backend.checkpoint import kinds_in
from sprig.backend.formats import read_sequence_file
from sprig.sprig_blender import cli

from ..command_line import listing, one_line, start
from ..small_networks import small_networks
from .rigs import mesh_object, replayed, tube
from .scene_files import FORMATS, KNOWS_USD_RATE, export, has

QUICK = ("--skeleton", "motion")  # where it is files that are tested


def bending_tube(name="body", frames=range(1, 9), location=(0, 0, 0), fps=30):
    """A tube on two bones, the upper of which turns by a tenth of a radian a frame; with a texture map."""
    scene = bpy.context.scene
    scene.render.fps, scene.frame_start, scene.frame_end = fps, frames[0], frames[-1]
    vertices, faces = tube()
    body = mesh_object(vertices, faces, name)
    body.data.uv_layers.new(name="UVMap")
    rig = bpy.data.objects.new("Armature", bpy.data.armatures.new("Armature"))
    rig.location = location
    scene.collection.objects.link(rig)
    bpy.context.view_layer.objects.active = rig
    bpy.ops.object.mode_set(mode="EDIT")
    lower, upper = rig.data.edit_bones.new("lower"), rig.data.edit_bones.new("upper")
    lower.tail = upper.head = (0, 0, 1)
    upper.tail, upper.parent = (0, 0, 2), lower
    bpy.ops.object.mode_set(mode="OBJECT")
    for bone, rows in (("lower", vertices[:, 2] <= 1), ("upper", vertices[:, 2] > 1)):
        body.vertex_groups.new(name=bone).add(np.flatnonzero(rows).tolist(), 1.0, "REPLACE")
    body.modifiers.new("Armature", "ARMATURE").object = rig
    body.parent = rig
    for number in frames:
        half = 0.05 * (number - frames[0])
        rig.pose.bones["upper"].rotation_quaternion = (np.cos(half), np.sin(half), 0, 0)
        rig.pose.bones["upper"].keyframe_insert("rotation_quaternion", frame=number)
    return body


def floor():
    """A square that stands still."""
    return mesh_object([[-3, -3, 0], [3, -3, 0], [3, 3, 0], [-3, 3, 0]], [[0, 1, 2, 3]], "floor")


def report_of(source, out, *options):
    """Run `sprig rig` and return its report."""
    told = out.with_suffix(".json")
    assert cli.main(["rig", str(source), "-o", str(out), "-q", "--report", str(told), *options]) == 0
    return json.loads(told.read_text())


def skinned_meshes():
    return [
        thing
        for thing in bpy.data.objects
        if thing.type == "MESH" and any(modifier.type == "ARMATURE" for modifier in thing.modifiers)
    ]


@pytest.fixture
def clip(tmp_path):
    """A tube that bends, as an .npz: a sequence that comes from no scene."""
    rest, faces = tube()
    triangles = [[face[0], face[i], face[i + 1]] for face in faces for i in range(1, len(face) - 1)]
    angle = np.linspace(0, 1, 6)[:, None] * np.clip(rest[:, 2] - 1, 0, 1)
    x, y, z = rest.T
    posed = np.stack([x * np.cos(angle) + z * np.sin(angle), y + 0 * angle, z * np.cos(angle) - x * np.sin(angle)], 2)
    path = tmp_path / "clip.npz"
    np.savez(path, vertices=posed.astype(np.float32), faces=np.array(triangles), fps=12.0)
    return path


# ---- what comes out


def test_demo(tmp_path, capfd):
    """The demo's scene, opened again, replays the elephant with the error that the report states."""
    assert cli.main(["demo", "--out", str(tmp_path / "new" / "demo")]) == 0
    printed = capfd.readouterr()
    assert printed.err == ""
    folder = tmp_path / "new" / "demo"
    assert listing(folder) == ["elephant.blend", "elephant.glb", "preview.png", "report.json"]
    told = json.loads((folder / "report.json").read_text())
    assert told["rmse_percent"] <= 0.1
    assert (told["vertices"], told["frames"], told["fps"]) == (1017, 49, 30)
    assert f"{told['rmse_percent']:.4f} %" in printed.out and "elephant.blend" in printed.out
    assert (folder / "preview.png").read_bytes().startswith(b"\x89PNG")

    bpy.ops.wm.open_mainfile(filepath=str(folder / "elephant.blend"))
    scene, sequence = bpy.context.scene, read_sequence_file(cli.EXAMPLE)
    assert (scene.frame_start, scene.frame_end, scene.render.fps) == (1, 49, 30)
    (mesh,) = skinned_meshes()
    truth = np.stack([sequence.world_vertices(f) for f in range(49)])
    difference = ((replayed(mesh, sequence.frame_numbers) - truth) ** 2).sum(-1).mean(1)
    diagonal = np.linalg.norm(np.ptp(truth[sequence.position_of(told["anchor_frame"])], axis=0))
    assert 100 / diagonal * np.sqrt(difference) == pytest.approx(told["rmse_percent_per_frame"], abs=1e-3)

    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    bpy.ops.import_scene.gltf(filepath=str(folder / "elephant.glb"))
    (armature,) = [thing for thing in bpy.data.objects if thing.type == "ARMATURE"]
    assert len(armature.data.bones) == len(told["joints"])


@pytest.mark.parametrize("suffix", [".fbx", ".usdc", ".npz"])
def test_other_formats_and_a_picture(suffix, clip, tmp_path):
    """Of a sequence that comes from no scene."""
    picture = ["--preview", str(tmp_path / "out.png")] if suffix == ".npz" else []
    told = report_of(clip, tmp_path / f"out{suffix}", *QUICK, "--joints", "3", *picture)
    assert (told["frames"], told["fps"], len(told["joints"])) == (6, 12, 3)
    if suffix == ".npz":
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
        return
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    reader = {".fbx": bpy.ops.import_scene.fbx, ".usdc": bpy.ops.wm.usd_import}[suffix]
    reader(filepath=str(tmp_path / f"out{suffix}"))
    assert len(skinned_meshes()) == 1
    assert sum(len(thing.bones) for thing in bpy.data.armatures) == 3


def test_as_blenders_own_command(extension, clip, tmp_path, capfd):
    """`blender -c sprig …` ends in this call; the add-on stays enabled although the scene is emptied."""
    command = importlib.import_module(f"{extension.__name__}.sprig_blender")._run_command
    assert command(["rig", str(clip), "-o", str(tmp_path / "rig.blend"), "-q", "--joints", "2"]) == 0
    assert listing(tmp_path) == ["clip.npz", "rig.blend"]
    assert command(["rig", str(tmp_path / "nothing.npz"), "-o", str(tmp_path / "rig.glb")]) == 2
    assert "nothing.npz" in one_line(capfd.readouterr().err)
    assert extension.__name__ in bpy.context.preferences.addons
    assert hasattr(bpy.types, "SPRIG_OT_auto_rig_sequence")


def test_fine_tuning_on_a_scene(tmp_path):
    """The floor is no part of the character here either."""
    bending_tube(frames=range(1, 5))
    floor()
    source = export(tmp_path / "scene.glb")
    out, told = tmp_path / "student.safetensors", tmp_path / "student.json"
    networks = [f"--{name.replace('_', '-')}={file}" for name, file in small_networks(tmp_path).items()]
    arguments = ["finetune", str(source), "-o", str(out), "-q", "--epochs", "1", "--report", str(told), *networks]
    assert cli.main(arguments) == 0
    report = json.loads(told.read_text())
    assert (report["object"], report["frames"]) == ("body", 4) and kinds_in(out) == ("skeleton", "skinning")
    assert any("floor" in warning for warning in report["warnings"])


def test_capital_suffixes(clip, tmp_path):
    for suffix in (".GLB", ".BLEND"):
        assert cli.main(["rig", str(clip), "-o", str(tmp_path / f"rig{suffix}"), "-q", *QUICK, "--joints", "2"]) == 0
    assert listing(tmp_path) == ["clip.npz", "rig.BLEND", "rig.GLB"]


# ---- scenes as input


@pytest.mark.parametrize("suffix", [suffix for suffix in FORMATS if suffix != ".abc"])
def test_scenes_without_their_floor(suffix, tmp_path):
    """The bending tube is found at the scene's rate; the floor stays out unless it is asked for."""
    if suffix == ".dae" and not has("wm.collada_import"):
        pytest.skip("this Blender has no Collada")
    bending_tube()
    floor()
    source = export(tmp_path / f"scene{suffix}")
    told = report_of(source, tmp_path / "rig.npz", *QUICK, "--joints", "3")
    assert told["object"].startswith("body") and told["frames"] == 8
    if not suffix.startswith(".usd") or KNOWS_USD_RATE:
        assert told["fps"] == pytest.approx(30)
    assert any("floor" in warning for warning in told["warnings"])
    assert told["rmse_percent"] < 1

    both = report_of(
        source, tmp_path / "rig.npz", *QUICK, "--joints", "3", "--object", told["object"], "--object", "floor"
    )
    assert sorted(both["object"].split(", ")) == sorted([told["object"], "floor"])
    assert both["vertices"] == told["vertices"] + 4
    assert not any("left out" in warning for warning in both["warnings"])


def test_frames_of_a_scene(tmp_path):
    bending_tube(frames=range(10, 21))
    source = export(tmp_path / "scene.blend")
    told = report_of(source, tmp_path / "rig.npz", *QUICK, "--joints", "2", "--frames", "12:18:3", "--anchor", "15")
    assert (told["frames"], told["anchor_frame"]) == (3, 15)
    with np.load(tmp_path / "rig.npz") as rig:
        assert rig["frame_index"].tolist() == [2, 5, 8] and rig["anchor_frame"] == 1


def test_an_archive_keeps_its_looks(tmp_path):
    """Blender brings the texture map, alembic3d the positions; of an archive all meshes are rigged, still ones too."""
    bending_tube(location=(2, 0, 1))
    floor()
    source = export(tmp_path / "scene.abc")
    told = report_of(source, tmp_path / "rig.blend", *QUICK, "--joints", "2")
    assert sorted(told["object"].split(", ")) == ["body", "floor"]
    assert not any("archive" in warning for warning in told["warnings"])  # the two readers agree
    bpy.ops.wm.open_mainfile(filepath=str(tmp_path / "rig.blend"))
    meshes = {len(mesh.data.vertices): mesh for mesh in skinned_meshes()}
    body = meshes[len(tube()[0])]
    assert [layer.name for layer in body.data.uv_layers] == ["UVMap"]
    sequence = read_sequence_file(source).with_objects(["body"])
    error = replayed(body, sequence.frame_numbers) - np.stack([sequence.world_vertices(f) for f in range(8)])
    assert np.abs(error).max() < 0.05
    assert [thing.name for thing in bpy.context.scene.objects if thing.type == "MESH" and thing not in meshes.values()]


def test_an_archive_at_another_rate(tmp_path):
    """--fps renumbers the frames, for Blender as for alembic3d."""
    bending_tube()
    source = export(tmp_path / "scene.abc")
    told = report_of(source, tmp_path / "rig.blend", *QUICK, "--joints", "2", "--fps", "60")
    assert told["fps"] == 60 and told["frames"] == 8
    assert not any("archive" in warning for warning in told["warnings"])


def test_inspect_a_scene(tmp_path, capfd):
    bending_tube()
    floor()
    source = export(tmp_path / "scene.blend")
    capfd.readouterr()
    assert cli.main(["inspect", str(source), "--json"]) == 0
    printed = capfd.readouterr()
    told = json.loads(printed.out)
    assert [mesh["name"] for mesh in told["meshes"]] == ["body"]
    assert told["frames"] == {"count": 8, "first": 1, "last": 8, "fps": 30.0}
    assert any("floor" in warning for warning in told["warnings"]) and printed.err == ""


# ---- refusals


@pytest.mark.parametrize("suffix", [".abc", ".blend", ".fbx", ".glb", ".usdc"])
@pytest.mark.parametrize("damage", ["cut", "noise"])
def test_damaged_files(suffix, damage, tmp_path, capfd):
    bending_tube()
    source = export(tmp_path / f"scene{suffix}")
    content = source.read_bytes()
    source.write_bytes(content[: len(content) // 2] if damage == "cut" else bytes(range(256)) * 20)
    capfd.readouterr()
    before = listing(tmp_path)
    for out in ("rig.npz", "rig.glb"):
        assert cli.main(["rig", str(source), "-o", str(tmp_path / out), "-q"]) == 2
        printed = capfd.readouterr()
        assert source.name in one_line(printed.err) and printed.out == ""
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "options, expected",
    [
        (["--object", "Horse"], "'Horse'"),
        (["--up", "y"], "--up"),
        (["--rest", "a.obj"], "--rest"),
        (["--frames", "40:60"], ""),  # every frame there is the same
        (["--frames", "3:3"], ""),
        (["--anchor", "99"], "99"),
        (["--joints", "500"], "500"),
        (["--fps", "40000"], "fps"),
    ],
)
def test_bad_options_for_scenes(options, expected, tmp_path, capfd):
    bending_tube()
    source = export(tmp_path / "scene.blend")
    capfd.readouterr()
    before = listing(tmp_path)
    assert cli.main(["rig", str(source), "-o", str(tmp_path / "rig.blend"), "-q", *options]) == 2
    printed = capfd.readouterr()
    assert expected in one_line(printed.err) and printed.out == ""
    assert listing(tmp_path) == before


def test_a_scene_without_motion_is_refused(tmp_path, capfd):
    floor()
    source = export(tmp_path / "still.blend")
    capfd.readouterr()
    assert cli.main(["rig", str(source), "-o", str(tmp_path / "rig.npz"), "-q"]) == 2
    assert "--skeleton learned" in one_line(capfd.readouterr().err)


# ---- processes


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to children")
@pytest.mark.parametrize("said", ["Starting", "Importing", "Writing", "Drawing"])
def test_interrupted(said, tmp_path):
    """Ctrl-C while Blender's module is loaded, while it imports, exports, and draws."""
    outputs = ["-o", tmp_path / "rig.fbx", "--preview", tmp_path / "rig.png", "--report", tmp_path / "rig.json"]
    with start("rig", cli.EXAMPLE, *outputs, *QUICK, "--joints", "5") as run:
        while not run.stdout.readline().startswith(said):
            assert run.poll() is None
        run.send_signal(signal.SIGINT)
        error = run.stderr.read()
    assert run.returncode == 130
    assert "cancelled" in one_line(error)
    assert listing(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
@pytest.mark.parametrize("suffix", [".blend", ".glb", ".fbx", ".usdc"])
def test_full_disk(suffix, clip, tmp_path):
    """No file may grow beyond a few kilobytes, which is what a full disk does."""
    import resource

    out = tmp_path / f"rig{suffix}"
    out.write_bytes(b"precious")

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    with start("rig", clip, "-o", out, *QUICK, "--joints", "3", "-q", preexec_fn=full) as run:
        printed, error = run.communicate(timeout=120)
    assert run.returncode == 2, error
    assert str(out) in one_line(error) and printed == ""
    assert listing(tmp_path) == [clip.name, out.name] and out.read_bytes() == b"precious"


def test_a_quiet_run_is_silent_to_its_very_end(tmp_path):
    """Blender's module prints and may hang when Python tears it down; the command ends before that."""
    with start("rig", cli.EXAMPLE, "-o", tmp_path / "rig.glb", *QUICK, "--joints", "5", "-q") as run:
        printed, error = run.communicate(timeout=120)
    assert (run.returncode, printed, error) == (0, "", "")
