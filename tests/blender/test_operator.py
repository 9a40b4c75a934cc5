"""The button without a window: every kind of source, running again, refusals, and cancelling at every step."""

import importlib
import math
import shutil
import tempfile
import threading
from types import SimpleNamespace

import bpy
import numpy as np
import pytest

from sprig.backend.checkpoint import read_provenance
from sprig.backend.name_presets import NAMES
from sprig.backend.pipeline import RigOptions

from ..small_networks import small_networks
from .rigs import mesh_object, tube
from .scene_state import scene_state

FRAMES = range(1, 7)
WORST_RMSE = 0.5  # per cent: two rigid halves of a tube, each a dozen rings, are replayed far better than this
EVALUATED = 2e-3  # per cent of the diagonal: what Blender's float32 may add to the reported RMSE on one frame


def bent(vertices, angle: float, height: float = 1.0) -> np.ndarray:
    """The tube (V,3) with everything above `height` turned about the X axis there."""
    shape = np.array(vertices, dtype=np.float64)
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    above = shape[:, 2] > height
    shape[above] = (shape[above] - [0, 0, height]) @ turn.T + [0, 0, height]
    return shape


def angle_at(frame: int) -> float:
    return 0.2 * (frame - 1)


def by_shape_keys(name="Body"):
    """A tube that bends by one shape key per frame."""
    vertices, faces = tube(rings=24)
    body = mesh_object(vertices, faces, name)
    body.shape_key_add(name="Basis")
    for frame in FRAMES:
        key = body.shape_key_add(name=f"Frame {frame}")
        key.data.foreach_set("co", bent(vertices, angle_at(frame)).astype(np.float32).ravel())
        for at, value in ((frame - 1, 0.0), (frame, 1.0), (frame + 1, 0.0)):
            key.value = value
            key.keyframe_insert("value", frame=at)
    return body


def by_armature(name="Body"):
    """A tube that bends by an armature of the user's, with two bones."""
    vertices, faces = tube(rings=24)
    body = mesh_object(vertices, faces, name)
    armature = bpy.data.objects.new("Bones", bpy.data.armatures.new("Bones"))
    bpy.context.scene.collection.objects.link(armature)
    bpy.context.view_layer.objects.active = armature
    bpy.ops.object.mode_set(mode="EDIT")
    for bone_name, start in (("lower", 0.0), ("upper", 1.0)):
        bone = armature.data.edit_bones.new(bone_name)
        bone.head, bone.tail = (0, 0, start), (0, 0, start + 1)
    bpy.ops.object.mode_set(mode="OBJECT")
    above = np.flatnonzero(np.asarray(vertices)[:, 2] > 1.0)
    body.vertex_groups.new(name="upper").add(above.tolist(), 1.0, "REPLACE")
    below = np.flatnonzero(np.asarray(vertices)[:, 2] <= 1.0)
    body.vertex_groups.new(name="lower").add(below.tolist(), 1.0, "REPLACE")
    body.modifiers.new("Armature", "ARMATURE").object = armature
    upper = armature.pose.bones["upper"]
    upper.rotation_mode = "XYZ"
    for frame in FRAMES:
        upper.rotation_euler.x = angle_at(frame)
        upper.keyframe_insert("rotation_euler", frame=frame)
    return body


def by_mesh_cache(folder, name="Body"):
    """A tube that bends by a PC2 file on a Mesh Cache modifier."""
    vertices, faces = tube(rings=24)
    body = mesh_object(vertices, faces, name)
    shapes = np.array([bent(vertices, angle_at(frame)) for frame in FRAMES], dtype="<f4")
    header = b"POINTCACHE2\0" + np.array([1, len(vertices)], "<i4").tobytes()
    header += np.array([1, 1], "<f4").tobytes() + np.array([len(shapes)], "<i4").tobytes()
    (folder / "body.pc2").write_bytes(header + shapes.tobytes())
    cache = body.modifiers.new("Cache", "MESH_CACHE")
    cache.cache_format, cache.filepath, cache.frame_start = "PC2", str(folder / "body.pc2"), 1
    return body


def select(*things):
    for other in bpy.context.selected_objects:
        other.select_set(False)
    for thing in things:
        thing.select_set(True)
    bpy.context.view_layer.objects.active = things[0] if things else None


def world_positions(thing) -> np.ndarray:
    """Evaluated world positions (V,3) on the current frame."""
    evaluated = thing.evaluated_get(bpy.context.evaluated_depsgraph_get())
    local = np.empty((len(evaluated.data.vertices), 3), dtype=np.float32)
    evaluated.data.attributes["position"].data.foreach_get("vector", local.ravel())
    matrix = np.array(evaluated.matrix_world)
    return local @ matrix[:3, :3].T + matrix[:3, 3]


def addon_of(extension, *names) -> SimpleNamespace:
    """Modules of the add-on under the names that Blender gave them, and settings for a small and quick rig."""
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = FRAMES[0], FRAMES[-1]
    scene.frame_set(3, subframe=0.25)
    scene.sprig.joints_mode, scene.sprig.joints = "NUMBER", 2
    modules = {name: importlib.import_module(f"{extension.__name__}.sprig_blender.{name}") for name in names}
    return SimpleNamespace(errors=importlib.import_module(f"{extension.__name__}.backend.errors"), **modules)


@pytest.fixture
def addon(extension):
    return addon_of(extension, "auto_rig", "dependencies", "finetune", "jobs", "problems", "students", "write_armature")


def rig(*things):
    """Press the button on these; returns the new armature."""
    select(*things)
    assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
    armature = bpy.context.view_layer.objects.active
    assert armature.type == "ARMATURE" and armature.sprig.joints >= 2
    return armature


def skins(armature):
    return [child for child in armature.children if child.type == "MESH"]


def refused(*things) -> str:
    """The sentence with which the button refuses these, having checked that the scene is as it was."""
    select(*things)
    before = scene_state()
    with pytest.raises(RuntimeError) as error:
        bpy.ops.sprig.auto_rig_sequence()
    assert scene_state() == before
    return str(error.value)


# ---- what comes out


@pytest.mark.parametrize("kind", ["shape keys", "armature", "mesh cache"])
def test_rigs_every_kind_of_source(addon, tmp_path, kind):
    make = {"shape keys": by_shape_keys, "armature": by_armature, "mesh cache": lambda: by_mesh_cache(tmp_path)}
    source = make[kind]()
    armature = rig(source)
    scene, result = bpy.context.scene, armature.sprig
    assert (scene.frame_current, scene.frame_subframe) == (3, 0.25)
    assert source.hide_get() and source.hide_render and not armature.hide_get()
    assert result.joints == len(armature.data.bones) == 2
    assert (result.first_frame, result.last_frame) == (FRAMES[0], FRAMES[-1])
    assert result.worst_frame in FRAMES and result.anchor_frame in FRAMES and result.seconds > 0
    assert 0 < result.rmse <= result.worst_rmse < WORST_RMSE

    (skin,) = skins(armature)
    source.hide_set(False)  # a hidden object is not evaluated
    errors = {}
    for frame in FRAMES:
        scene.frame_set(frame)
        shapes = world_positions(skin), world_positions(source)
        errors[frame] = math.sqrt(np.mean(np.sum((shapes[0] - shapes[1]) ** 2, axis=1)))
    scene.frame_set(result.anchor_frame)
    errors = {
        frame: 100 * error / np.linalg.norm(np.ptp(world_positions(source), axis=0)) for frame, error in errors.items()
    }
    assert max(errors.values()) == pytest.approx(result.worst_rmse, abs=EVALUATED)
    assert math.sqrt(np.mean(np.square(list(errors.values())))) == pytest.approx(result.rmse, abs=EVALUATED)


@pytest.mark.parametrize("pressed_on", ["source", "armature", "skin"])
def test_running_again_replaces_the_result(addon, pressed_on):
    source = by_shape_keys()
    armature = rig(source)
    before = scene_state()["datablocks"]
    thing = {"source": source, "armature": armature, "skin": skins(armature)[0]}[pressed_on]
    bpy.context.scene.frame_end = 4
    assert rig(thing).sprig.last_frame == 4
    assert scene_state()["datablocks"] == before


def test_several_meshes_become_one_rig(addon):
    one, two = by_shape_keys("One"), by_shape_keys("Two")
    two.location.x = 1
    armature = rig(one, two)
    assert len(bpy.data.armatures) == 1
    assert sorted(skin.name for skin in skins(armature)) == ["One Skin", "Two Skin"]
    assert one.hide_get() and two.hide_get()
    (of_two,) = (skin for skin in skins(armature) if skin.name == "Two Skin")
    assert addon.auto_rig.result_for(of_two) == addon.auto_rig.result_for(one) == armature
    select(of_two)
    assert addon.auto_rig.chosen_meshes(bpy.context) == [one, two]


def test_hidden_active_object(addon):
    source = by_shape_keys()
    select(source)
    source.hide_set(True)
    assert bpy.context.selected_objects == [] and bpy.context.view_layer.objects.active == source
    assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
    assert addon.auto_rig.result_for(source).sprig.joints == 2 and source.hide_get()


def test_custom_range_and_step(addon):
    settings = bpy.context.scene.sprig
    settings.range_mode = "CUSTOM"
    assert (settings.frame_start, settings.frame_end) == (FRAMES[0], FRAMES[-1])  # the scene's, to begin with
    settings.frame_start, settings.frame_step = 2, 2
    settings.anchor_mode, settings.anchor_frame = "FRAME", 4
    result = rig(by_shape_keys()).sprig
    assert (result.first_frame, result.last_frame, result.anchor_frame) == (2, 6, 4)


def test_corrective_shape_keys(addon):
    bpy.context.scene.sprig.corrective = True
    (skin,) = skins(rig(by_shape_keys()))
    assert len(skin.data.shape_keys.key_blocks) == 1 + len(FRAMES)


def test_settings_mean_what_the_command_line_means(addon):
    """Untouched, the panel asks for the defaults of RigOptions; touched, every setting arrives."""
    settings = bpy.context.scene.sprig
    for name in ("joints_mode", "joints"):
        settings.property_unset(name)
    default, chosen = RigOptions(), addon.auto_rig.rig_choices(bpy.context)
    assert RigOptions(**{**chosen, "tolerance": default.tolerance}) == default
    assert chosen["tolerance"] == pytest.approx(default.tolerance)
    settings.joints_mode, settings.joints, settings.anchor_mode, settings.anchor_frame = "NUMBER", 7, "FRAME", 5
    settings.influences, settings.rest_correction, settings.stretch, settings.seed = 2, False, True, 11
    assert tuple(settings.bl_rna.properties["names"].enum_items.keys()) == NAMES
    settings.names = "unity"
    options = RigOptions(**addon.auto_rig.rig_choices(bpy.context))
    assert (options.joints, options.anchor, options.influences, options.seed) == (7, 5, 2, 11)
    assert options.names == "unity"
    assert not options.rest_correction and options.stretch == "auto"
    settings.skeleton, settings.candidates, settings.temperature = "learned", 4, 0.5
    settings.checkpoint_skeleton = "/networks/mine.safetensors"
    options = RigOptions(**addon.auto_rig.rig_choices(bpy.context))
    assert (options.skeleton, options.candidates, options.temperature) == ("learned", 4, 0.5)
    assert (options.checkpoint_skeleton, options.checkpoint_skinning) == ("/networks/mine.safetensors", None)


@pytest.mark.parametrize(
    "source", [by_shape_keys, lambda: mesh_object(*tube(rings=24), "Body")], ids=["moving", "still"]
)
def test_networks_rig_what_moves_and_what_does_not(source, addon, tmp_path):
    """Every bone says how sure the network was; a mesh that stands still gets bones as well."""
    settings = bpy.context.scene.sprig
    settings.skeleton = "learned"
    for name, file in small_networks(tmp_path).items():
        setattr(settings, name, file)
    armature = rig(source())
    assert all(0 < bone["sprig_confidence"] <= 1 for bone in armature.data.bones)
    settings.checkpoint_skeleton = str(tmp_path / "nowhere.safetensors")
    with pytest.raises(RuntimeError, match=r"nowhere\.safetensors"):
        bpy.ops.sprig.auto_rig_sequence()


def test_going_to_the_worst_frame(addon):
    assert bpy.ops.sprig.go_to_frame(frame=5) == {"FINISHED"}
    assert bpy.context.scene.frame_current == 5


# ---- fine-tuning


@pytest.fixture
def learned(addon, tmp_path):
    """The learned skeleton from small networks, one epoch, and no student yet."""
    settings = bpy.context.scene.sprig
    settings.skeleton, settings.finetune_epochs = "learned", 1
    for name, file in small_networks(tmp_path).items():
        setattr(settings, name, file)
    folder = addon.students.students_folder()
    assert folder.parent == addon.dependencies.own_folder().parent and not folder.exists()
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def fine_tune(*things):
    """Press the button on these; returns the name of the student."""
    select(*things)
    assert bpy.ops.sprig.finetune_sequence() == {"FINISHED"}
    (name,) = {thing.sprig.student for thing in things}
    return name


def bones(armature):
    return [(bone.name, *bone.head_local, *bone.tail_local) for bone in armature.data.bones]


def test_auto_rig_uses_what_was_fine_tuned(addon, learned):
    body = by_shape_keys()
    settings = bpy.context.scene.sprig
    of_teacher = bones(rig(body))
    body.hide_set(False)
    select(body)
    before = scene_state()
    student = learned / fine_tune(body)
    assert scene_state() == before  # but for the mesh's own note nothing was changed
    assert [path.name for path in learned.iterdir()] == [student.name]
    assert read_provenance(student)["finetuned"]["skeleton"]["epochs"] == 1
    assert addon.students.student_of([body]) == student

    armature = rig(body)
    of_student = bones(armature)
    assert of_student != of_teacher and "fine-tuned" not in armature.sprig.warnings
    files = settings.checkpoint_skeleton, settings.checkpoint_skinning
    body.sprig.student = ""
    settings.checkpoint_skeleton = settings.checkpoint_skinning = str(student)
    assert bones(rig(body)) == of_student
    settings.checkpoint_skeleton, settings.checkpoint_skinning = files

    body.sprig.student = student.name
    settings.skeleton, settings.joints_mode = "motion", "NUMBER"
    assert "fine-tuned" not in rig(body).sprig.warnings  # the motion has nothing to do with it
    settings.skeleton = "learned"

    select(body)
    assert bpy.ops.sprig.forget_student() == {"FINISHED"}
    assert body.sprig.student == "" and not student.exists() and not bpy.ops.sprig.forget_student.poll()
    assert bones(rig(body)) == of_teacher


def test_a_student_of_something_else_is_not_used(addon, learned):
    body = by_shape_keys()
    settings = bpy.context.scene.sprig
    student = learned / fine_tune(body)

    bpy.context.scene.frame_end = 5
    armature = rig(body)
    assert "The frames are not those that the networks were fine-tuned on" in armature.sprig.warnings
    bpy.context.scene.frame_end = FRAMES[-1]
    teacher, settings.checkpoint_skinning = settings.checkpoint_skinning, str(student)
    assert "These are not the networks that were fine-tuned" in rig(body).sprig.warnings
    settings.checkpoint_skinning = teacher
    assert "fine-tun" not in rig(body).sprig.warnings
    student.write_bytes(student.read_bytes()[:1000])
    assert "cannot be read" in rig(body).sprig.warnings
    student.unlink()
    assert "fine-tun" not in rig(body).sprig.warnings  # as in a scene that comes from another computer


def test_several_meshes_share_a_student(addon, learned):
    one, two = by_shape_keys("One"), by_shape_keys("Two")
    two.location.x = 1
    student = learned / fine_tune(one, two)
    assert addon.students.student_of([one, two]) == student
    assert addon.students.student_of([]) is None
    two.sprig.student = "another"
    assert addon.students.student_of([one, two]) is None


def test_a_scene_cannot_name_files_of_ours(addon, learned, tmp_path):
    """What a mesh says of its student may come from anywhere."""
    victim = tmp_path / "precious.safetensors"
    victim.write_bytes(b"precious")
    body = by_shape_keys()
    for name in (str(victim), "../precious.safetensors", f"{'0' * 16}-{'0' * 16}.safetensors/../../x"):
        body.sprig.student = name
        assert addon.students.student_of([body]) is None
        select(body)
        assert bpy.ops.sprig.forget_student() == {"FINISHED"}
    assert victim.read_bytes() == b"precious" and body.sprig.student == ""


@pytest.mark.parametrize("phase", ["reading", "learning"])
@pytest.mark.parametrize("how", ["cancelled", "abandoned"])
def test_stopped_fine_tuning_keeps_the_teacher(addon, learned, phase, how):
    bpy.context.scene.sprig.finetune_epochs = 50
    body = by_shape_keys()
    select(body)
    before = scene_state()
    cancel = threading.Event()
    steps = addon.finetune.steps(bpy.context, cancel, patience=0.01)
    wanted = {"reading": PHASES["reading"], "learning": lambda step: step.text.startswith("Epoch 2: PJDD")}
    stop_at(addon, steps, cancel, wanted[phase], how)
    assert scene_state() == before and body.sprig.student == "" and not learned.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "SPRig"]


def test_refused_fine_tuning(addon, learned):
    def refused_with(*things):
        select(*things)
        with pytest.raises(RuntimeError) as error:
            bpy.ops.sprig.finetune_sequence()
        return str(error.value)

    assert "Select one or several animated meshes" in refused_with()
    assert "neither moves nor changes shape" in refused_with(mesh_object(*tube(rings=24), "Still"))
    body = by_shape_keys()
    bpy.context.scene.frame_end = 1
    assert "This is a single frame" in refused_with(body)
    bpy.context.scene.frame_end = FRAMES[-1]
    bpy.context.scene.sprig.checkpoint_skinning = "/nowhere/skinning.safetensors"
    assert "skinning.safetensors" in refused_with(body)
    assert body.sprig.student == "" and not learned.exists()


# ---- what is refused


def reversed_range(settings):
    settings.range_mode, settings.frame_start, settings.frame_end = "CUSTOM", 6, 2


def single_frame(settings):
    settings.frame_step = 99


def anchor_outside(settings):
    settings.anchor_mode, settings.anchor_frame = "FRAME", 99


def too_many_joints(settings):
    settings.joints = 100_000


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (reversed_range, "frame range 6 to 2 is reversed; give the first frame"),
        (single_frame, "a single frame; choose a longer range"),
        (anchor_outside, "frame 99 is not one of the frames 1 to 6; choose"),
        (too_many_joints, "100000"),
    ],
)
def test_refused_settings(addon, change, words):
    change(bpy.context.scene.sprig)
    assert words in refused(by_shape_keys())


def test_refused_sources(addon):
    vertices, faces = tube()
    assert "Still neither moves nor changes shape" in refused(mesh_object(vertices, faces, "Still"))
    changing = by_shape_keys("Changing")
    changing.modifiers.new("Mirror", "MIRROR")
    changing.modifiers.new("Wave", "WAVE")
    assert "Mirror" in refused(changing)
    loose = bpy.data.objects.new("Loose", bpy.data.meshes.new("Loose"))
    bpy.context.scene.collection.objects.link(loose)
    assert "Loose has no vertices" in refused(loose)


def test_poll_says_why(addon):
    assert "Select one or several animated meshes" in refused()
    body = by_shape_keys()
    select(body)
    assert bpy.ops.sprig.auto_rig_sequence.poll()
    bpy.ops.object.mode_set(mode="EDIT")
    with pytest.raises(RuntimeError, match="Switch to Object Mode first"):
        bpy.ops.sprig.auto_rig_sequence()
    bpy.ops.object.mode_set(mode="OBJECT")


def test_without_torch_the_button_explains(addon, monkeypatch):
    body = by_shape_keys()
    select(body)
    monkeypatch.setitem(__import__("sys").modules, "torch", None)  # Python's own way to say: cannot be imported
    addon.dependencies.look_again()
    try:
        with pytest.raises(RuntimeError, match="SPRig needs torch, which Blender does not bring along; install"):
            bpy.ops.sprig.auto_rig_sequence()
    finally:
        monkeypatch.undo()
        addon.dependencies.look_again()


# ---- cancelled, changed meanwhile, broken


def steps_of(addon, *things):
    """The button's work on these, to be taken step by step, and the event that cancels it."""
    select(*things)
    cancel = threading.Event()
    return addon.auto_rig.steps(bpy.context, cancel, patience=0.05), cancel


def advance(steps, wanted):
    """Take steps until one for which `wanted` is true."""
    for step in steps:
        if wanted(step):
            return step
    raise AssertionError("the work ended before that step")


def stop_at(addon, steps, cancel, wanted, how):
    """Take steps until one for which `wanted` is true, and stop there: by the user, or because Blender ends it."""
    advance(steps, wanted)
    if how == "cancelled":
        cancel.set()
        with pytest.raises(addon.errors.Cancelled):
            advance(steps, lambda step: False)
    else:
        steps.close()


PHASES = {
    "reading": lambda step: step.exclusive and step.fraction > 0,
    "solving": lambda step: not step.exclusive and step.text not in ("", "Writing the armature"),
    "writing": lambda step: step.text == "Writing the armature",
}


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["cancelled", "abandoned"])
def test_stopped_in_every_phase(addon, phase, how):
    source = by_shape_keys()
    select(source)
    before = scene_state()
    steps, cancel = steps_of(addon, source)
    stop_at(addon, steps, cancel, PHASES[phase], how)
    assert scene_state() == before
    assert not [thread for thread in threading.enumerate() if thread.name == "SPRig"]


def test_the_source_changes_meanwhile(addon):
    source = by_shape_keys()
    steps, _cancel = steps_of(addon, source)
    advance(steps, PHASES["solving"])
    source.name = "Renamed"  # is nobody's business
    assert "Renamed Rig: 2 joints" in finish(steps)

    steps, _cancel = steps_of(addon, source)
    advance(steps, PHASES["solving"])
    source.data.vertices.add(1)
    before = scene_state()
    with pytest.raises(addon.errors.SprigError, match="The mesh of 'Renamed' was edited while it was rigged; run"):
        finish(steps)
    assert scene_state() == before

    body = by_shape_keys("Body")
    steps, _cancel = steps_of(addon, body)
    advance(steps, PHASES["solving"])
    bpy.data.objects.remove(body)
    before = scene_state()
    with pytest.raises(addon.errors.SprigError, match="'Body' was deleted while it was rigged; undo"):
        finish(steps)
    assert scene_state() == before


def finish(steps) -> str:
    """Take all remaining steps and return the sentence at the end."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def test_waits_for_object_mode(addon):
    body = by_shape_keys()
    steps, _cancel = steps_of(addon, body)
    advance(steps, PHASES["solving"])
    bpy.ops.object.mode_set(mode="EDIT")
    advance(steps, lambda step: "waiting for Object Mode" in step.text)
    assert len(bpy.data.armatures) == 0
    bpy.ops.object.mode_set(mode="OBJECT")
    assert "2 joints" in finish(steps)


def test_a_bug_becomes_a_sentence_and_a_report(addon, monkeypatch, tmp_path, capfd):
    def faulty(*_arguments, **_named):
        raise KeyError("a bug")

    monkeypatch.setattr(addon.auto_rig, "writing", faulty)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert "Auto-Rig met a bug of ours (KeyError); use Copy Report" in refused(by_shape_keys())
    report = addon.problems.last().report
    assert "Traceback" in report and "KeyError: 'a bug'" in report
    assert bpy.app.version_string in report and "torch 2" in report
    (log,) = tmp_path.glob("sprig-error-*.log")
    assert log.read_text() == report and report in capfd.readouterr().err
    assert bpy.ops.sprig.copy_report() == {"FINISHED"}
    assert bpy.ops.sprig.dismiss_problem() == {"FINISHED"} and not bpy.ops.sprig.copy_report.poll()


def test_one_run_at_a_time(addon):
    body = by_shape_keys()
    select(body)
    activity = addon.jobs.Activity("Auto-Rig")
    addon.jobs._running.append(activity)
    try:
        assert "Auto-Rig is running; wait for it or cancel it" in refused(body)
        assert bpy.ops.sprig.cancel() == {"FINISHED"} and activity.cancel.is_set()
    finally:
        addon.jobs._running.clear()
