"""What happens in a real Blender window. Run by test_window.py; nothing here imports pytest or sprig.

A scenario is a generator that yields conditions: it goes on when Blender's main loop has made one true. That keeps the
window alive in between, as with a user, and makes a test wait for what happens instead of for seconds.
"""

import json
import runpy
import sys
import tempfile
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import blender_gui as gui  # comes with the runner
import bpy
import numpy as np

PATIENCE = 400  # seconds, on a machine that has other work, until a condition that never comes true fails the scenario
SCRUBBED = 200  # frames over which the time of a redraw is measured
REPOSITORY = "sprig_checkout"
ADD_ON = f"bl_ext.{REPOSITORY}.sprig"


def run(name, checkout, scratch):
    """Play the scenario `name`; what it returns is written to scratch/result.json."""
    stage = Stage(Path(checkout), Path(scratch))
    steps = SCENARIOS[name](stage)
    gui.hold()
    state = {"condition": None, "since": time.time()}

    def advance():
        try:
            if state["condition"] and not state["condition"]():
                assert time.time() - state["since"] < PATIENCE, "waited in vain"
                return 0.05
            state["condition"], state["since"] = next(steps), time.time()
            return 0.05
        except StopIteration as end:
            (stage.scratch / "result.json").write_text(json.dumps(end.value or {}))
        except BaseException:
            traceback.print_exc()
            gui.fail(f"scenario {name}")
        gui.ready()
        return None

    bpy.app.timers.register(advance, first_interval=0.2, persistent=True)


def seconds(count):
    """A condition: so many seconds have passed."""
    end = time.time() + count
    return lambda: time.time() > end


class Stage:
    """The window with the add-on, and the hands of the user."""

    def __init__(self, checkout, scratch):
        self.leftovers = runpy.run_path(str(checkout / "tests" / "blender" / "leftovers.py"))
        self.checkout, self.scratch, self.add_on = checkout, scratch, ADD_ON

    def enable(self):
        """Enable the checkout as an extension, as a user's repository would."""
        link = self.scratch / "repository" / "sprig"
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(self.checkout, target_is_directory=True)
        repositories = bpy.context.preferences.extensions.repos
        repositories.new(name="SPRig checkout", module=REPOSITORY, custom_directory=str(link.parent))
        bpy.ops.preferences.addon_enable(module=ADD_ON)
        assert ADD_ON in bpy.context.preferences.addons, "the add-on is not enabled"

    def install_zip(self):
        """Install scratch/sprig.zip from disk and enable it."""
        self.add_on = "bl_ext.user_default.sprig"
        bpy.ops.extensions.package_install_files(
            repo="user_default", filepath=str(self.scratch / "sprig.zip"), enable_on_install=True
        )
        assert self.add_on in bpy.context.preferences.addons, "the add-on is not enabled"

    def module(self, name):
        """A module of the add-on as Blender imported it."""
        return sys.modules[f"{self.add_on}.{name}"]

    def running(self):
        return self.module("sprig_blender.jobs").running()

    def problem(self):
        return self.module("sprig_blender.problems").last()

    def add_animal(self):
        """A scene with nothing but the sequence of scratch/animal.npz on a Mesh Cache modifier, selected."""
        bpy.data.batch_remove(list(bpy.data.objects))
        data = np.load(self.scratch / "animal.npz")
        vertices, faces = data["vertices"], data["faces"]
        mesh = bpy.data.meshes.new("Elephant")
        mesh.from_pydata(vertices[0], [], faces)
        mesh.shade_smooth()
        animal = bpy.data.objects.new("Elephant", mesh)
        scene = bpy.context.scene
        scene.collection.objects.link(animal)
        cache = self.scratch / "animal.pc2"
        header = b"POINTCACHE2\0" + np.array([1, vertices.shape[1]], "<i4").tobytes()
        header += np.array([1, 1], "<f4").tobytes() + np.array([len(vertices)], "<i4").tobytes()
        cache.write_bytes(header + vertices.astype("<f4").tobytes())
        modifier = animal.modifiers.new("Cache", "MESH_CACHE")
        modifier.cache_format, modifier.filepath, modifier.frame_start = "PC2", str(cache), 1
        scene.frame_start, scene.frame_end = 1, len(vertices)
        scene.frame_set(12)
        bpy.context.view_layer.objects.active = animal
        animal.select_set(True)
        bpy.ops.ed.undo_push(message="Scene")
        return animal

    def add_bar(self):
        """A scene with nothing but a bar that bends at its middle by shape keys, selected; two joints are enough."""
        bpy.data.batch_remove(list(bpy.data.objects))
        rings, around = 40, 24
        turn = np.linspace(0, 2 * np.pi, around, endpoint=False)
        height, angle = np.meshgrid(np.linspace(0, 4, rings), turn)
        straight = (
            np.stack([0.3 * np.cos(angle), 0.3 * np.sin(angle), height], axis=-1).transpose(1, 0, 2).reshape(-1, 3)
        )
        ring = np.arange(around)
        faces = [
            (row * around + i, row * around + j, (row + 1) * around + j, (row + 1) * around + i)
            for row in range(rings - 1)
            for i, j in zip(ring, np.roll(ring, -1), strict=True)
        ]
        mesh = bpy.data.meshes.new("Bar")
        mesh.from_pydata(straight, [], faces)
        bar = bpy.data.objects.new("Bar", mesh)
        scene = bpy.context.scene
        scene.collection.objects.link(bar)
        bar.shape_key_add(name="Basis")
        bent = straight.copy()
        upper = bent[:, 2] > 2
        bent[upper] = np.stack([bent[upper, 2] - 2, bent[upper, 1], 2 - bent[upper, 0]], axis=1)
        bend = bar.shape_key_add(name="Bend")
        bend.data.foreach_set("co", bent.ravel())
        for frame, value in ((1, 0.0), (20, 1.0)):
            bend.value = value
            bend.keyframe_insert("value", frame=frame)
        scene.frame_start, scene.frame_end = 1, 20
        scene.frame_set(1)
        bpy.context.view_layer.objects.active = bar
        bar.select_set(True)
        scene.sprig.joints_mode, scene.sprig.joints = "NUMBER", 2
        bpy.ops.ed.undo_push(message="Scene")
        return bar

    def look(self):
        """Frame the selection and open the sidebar on our tab; returns the condition that it is there."""
        window, area, region, space = gui.view3d()
        space.overlay.show_floor = space.overlay.show_axis_x = space.overlay.show_axis_y = True
        with bpy.context.temp_override(window=window, area=area, region=region):
            bpy.ops.view3d.view_axis(type="RIGHT")
            bpy.ops.view3d.view_orbit(angle=0.5, type="ORBITLEFT")
            bpy.ops.view3d.view_orbit(angle=0.25, type="ORBITUP")
            bpy.ops.view3d.view_selected()
        gui.sidebar("SPRig")
        sidebar = next(region for region in area.regions if region.type == "UI")
        return lambda: getattr(sidebar, "active_panel_category", "") == "SPRig"

    def open_sections(self, *titles):
        """Show these parts of the panel opened and the others closed, whatever they were before."""
        opened = time.monotonic()  # Blender remembers by name what is open

        def section(layout, name, title):
            header, body = layout.panel(f"{name}_{opened}", default_closed=title not in titles)
            header.label(text=title)
            return body

        self.module("sprig_blender.panel")._section = section

    def press_the_button(self):
        window, area, region, _space = gui.view3d()
        with bpy.context.temp_override(window=window, area=area, region=region):
            return bpy.ops.sprig.auto_rig_sequence("INVOKE_DEFAULT")

    def key(self, name, **modifiers):
        """Press and release a key over the 3D viewport."""
        window, _area, region, _space = gui.view3d()
        x, y = region.x + region.width // 3, region.y + region.height // 2
        for value in ("PRESS", "RELEASE"):
            window.event_simulate(type=name, value=value, x=x, y=y, **modifiers)

    def click(self, operator, area=None, kind="UI"):
        """Look for the button of an operator with the mouse and click it; part of a scenario (`yield from`).

        area, kind: where to look, the 3D viewport's sidebar at first. What the mouse is over, Blender tells as the
        Python command that it copies for a button.
        """
        window, viewport, _region, _space = gui.view3d()
        area = area or viewport
        window = next(window for window in bpy.context.window_manager.windows if area in window.screen.areas[:])
        region = next(region for region in area.regions if region.type == kind)
        step = round(10 * bpy.context.preferences.system.ui_scale)
        for y in range(region.y + region.height - step, region.y, -step):
            for part in (0.3, 0.7, 0.9):  # of several buttons beside each other
                x = region.x + round(part * region.width)
                window.event_simulate(type="MOUSEMOVE", value="NOTHING", x=x, y=y)
                yield seconds(0.05)
                with bpy.context.temp_override(window=window, area=area, region=region):
                    if not bpy.ops.ui.copy_python_command_button.poll():
                        continue
                    bpy.ops.ui.copy_python_command_button()
                if bpy.context.window_manager.clipboard.startswith(f"bpy.ops.{operator}("):
                    for value in ("PRESS", "RELEASE"):
                        window.event_simulate(type="LEFTMOUSE", value=value, x=x, y=y)
                        yield seconds(0.1)
                    return
        raise AssertionError(f"there is no button of {operator}")

    def scene_print(self):
        """Everything a cancelled run must leave as it was, comparable."""
        scene = bpy.context.scene
        objects = {
            thing.name: (
                thing.hide_get(),
                thing.hide_render,
                thing.hide_viewport,
                thing.select_get(),
                [(m.name, m.show_viewport, m.show_render) for m in thing.modifiers],
                [list(row) for row in thing.matrix_world],
            )
            for thing in scene.objects
        }
        blocks = {
            kind: sorted(block.name for block in getattr(bpy.data, kind))
            for kind in ("objects", "meshes", "armatures", "actions", "collections", "materials", "scenes")
        }
        active = bpy.context.view_layer.objects.active
        return [scene.frame_current, scene.frame_subframe, active.name if active else None, objects, blocks]


def _repository(module):
    """The number that Blender gives to a repository of extensions."""
    return [repository.module for repository in bpy.context.preferences.extensions.repos].index(module)


def panel(stage):
    """The panel idle, at work with status bar, and with its result; undo, redo, the worst frame, another run."""
    stage.enable()
    stage.add_animal()
    gui.maximize()
    yield seconds(0.5)
    yield stage.look()
    yield seconds(0.5)
    gui.shot(str(stage.scratch / "idle.png"))
    before = stage.scene_print()
    assert stage.press_the_button() == {"RUNNING_MODAL"}
    yield lambda: stage.running() is None or stage.running().step.fraction > 0.3
    assert stage.running(), f"it ended before a picture could be taken: {stage.problem()}"
    fraction = stage.running().step.fraction
    gui.shot(str(stage.scratch / "running.png"))
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    yield seconds(8)  # until the message in the status bar is gone
    gui.shot(str(stage.scratch / "result.png"))
    after = stage.scene_print()
    armature = bpy.context.view_layer.objects.active
    result = armature.sprig
    figures = {"joints": result.joints, "rmse": result.rmse, "worst_frame": result.worst_frame, "at": fraction}
    bpy.ops.sprig.go_to_frame(frame=result.worst_frame)
    figures["frame"] = bpy.context.scene.frame_current
    bpy.context.scene.frame_set(12)

    stage.key("Z", ctrl=True)
    yield lambda: len(bpy.data.armatures) == 0
    figures["undone"] = stage.scene_print() == before
    stage.key("Z", ctrl=True, shift=True)
    yield lambda: len(bpy.data.armatures) == 1
    figures["redone"] = stage.scene_print() == after

    stage.press_the_button()
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    figures["replaced"] = stage.scene_print()[4] == after[4]
    return figures


def cancel(stage):
    """Esc while frames are read, while the worker computes, and the panel's button: each time nothing has changed."""
    stage.enable()
    bar = stage.add_bar()
    yield stage.look()
    scene = bpy.context.scene
    scene.frame_set(7, subframe=0.25)
    settings = scene.sprig
    settings.range_mode, settings.frame_end = "CUSTOM", 20_000  # long enough to be met while it reads
    before = stage.scene_print()
    figures = {}

    stage.press_the_button()
    yield lambda: stage.running().step.exclusive and stage.running().step.fraction > 0.001
    figures["reading"] = stage.running().text
    gui.shot(str(stage.scratch / "reading.png"))
    stage.key("G")  # would move the bar; while frames are read the scene is not the user's
    stage.key("ESC")
    yield lambda: stage.running() is None
    figures["unchanged after reading"] = stage.scene_print() == before

    settings.frame_end = 200
    stage.press_the_button()
    yield lambda: not stage.running().step.exclusive and stage.running().step.fraction > 0.15
    figures["solving"] = stage.running().text
    stage.key("ESC")
    yield lambda: stage.running() is None
    figures["unchanged after solving"] = stage.scene_print() == before

    stage.press_the_button()
    yield lambda: stage.running().step.fraction > 0.15
    bpy.ops.sprig.cancel()
    figures["stopping"] = stage.running().text
    yield lambda: stage.running() is None
    figures["unchanged after the button"] = stage.scene_print() == before
    figures["complaint"] = stage.problem() and stage.problem().sentence
    stage.key("G")  # the window is the user's again
    yield lambda: bpy.context.window.modal_operators
    stage.key("ESC")
    yield lambda: not bpy.context.window.modal_operators
    figures["threads"] = [thread.name for thread in threading.enumerate() if "SPRig" in thread.name]
    assert bar.name == "Bar"
    return figures


def separate(stage):
    """The backend in a process of Blender's own Python: Esc ends it, and the rig is the same as inside Blender."""
    stage.enable()
    stage.add_bar()
    yield stage.look()
    preferences = bpy.context.preferences.addons[ADD_ON].preferences
    preferences.separate_process = "ALWAYS"

    def children():
        return len(stage.leftovers["children"]())

    figures = {"torch before": "torch" in sys.modules}
    stage.press_the_button()
    yield lambda: stage.running().text == "Loading PyTorch" and children()
    stage.key("ESC")
    yield lambda: stage.running() is None
    figures["children after Esc"] = children()

    rigs = []
    for choice in ("ALWAYS", "AUTO"):
        preferences.separate_process = choice
        stage.press_the_button()
        yield lambda: stage.running() is None
        figures.setdefault("torch then", "torch" in sys.modules)
        figures["problem"] = stage.problem() and stage.problem().sentence
        armature = bpy.context.view_layer.objects.active
        rigs.append([armature.sprig.rmse, *(list(bone.head_local) for bone in armature.data.bones)])
        gui.shot(str(stage.scratch / f"{choice}.png"))
    figures["same"] = rigs[0] == rigs[1]
    figures["children at last"] = children()
    return figures


def meanwhile(stage):
    """What the user does while the worker computes: edits the mesh, deletes it, enters another mode, opens a file."""
    stage.enable()
    figures = {}

    def start():
        bar = stage.add_bar()
        stage.press_the_button()
        return bar, lambda: stage.running().step.fraction > 0.15 and not stage.running().step.exclusive

    stage.add_bar()
    yield stage.look()
    bar, solving = start()
    yield solving
    mesh = bar.data
    mesh.vertices.add(1)
    yield lambda: stage.running() is None
    figures["edited"] = stage.problem().sentence
    gui.shot(str(stage.scratch / "edited.png"))

    bar, solving = start()
    yield solving
    bpy.data.objects.remove(bar)
    yield lambda: stage.running() is None
    figures["deleted"] = stage.problem().sentence

    bar, solving = start()
    yield solving
    window, area, region, _space = gui.view3d()
    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.object.mode_set(mode="EDIT")
    yield lambda: "waiting" in stage.running().text
    figures["waiting"] = stage.running().text
    gui.shot(str(stage.scratch / "waiting.png"))
    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.object.mode_set(mode="OBJECT")
    yield lambda: stage.running() is None
    figures["written after waiting"] = len(bpy.data.armatures)

    bar, solving = start()
    yield solving
    bar.name = "Renamed"
    yield lambda: stage.running() is None
    figures["renamed"] = sorted(thing.name for thing in bpy.data.objects)

    bar, solving = start()
    bar.location.x = 3
    bpy.ops.ed.undo_push(message="Move")
    yield solving
    stage.key("Z", ctrl=True)
    yield lambda: stage.running() is None
    # Blender refuses to undo while an operator runs that can be undone itself.
    figures["undo meanwhile"] = [bpy.data.objects["Bar"].location.x, stage.problem()]

    bar, solving = start()
    yield solving
    bpy.ops.preferences.addon_disable(module=ADD_ON)
    figures["after disabling"] = stage.running() is None and not hasattr(bpy.types.Scene, "sprig")
    figures["threads"] = [thread.name for thread in threading.enumerate() if "SPRig" in thread.name]
    yield seconds(0.5)
    bpy.ops.preferences.addon_enable(module=ADD_ON)

    bar, solving = start()
    yield solving
    saved = str(stage.scratch / "saved.blend")
    bpy.ops.wm.save_as_mainfile(filepath=saved)
    bpy.ops.wm.open_mainfile(filepath=saved)
    figures["after opening a file"] = stage.running() is None
    figures["threads then"] = [thread.name for thread in threading.enumerate() if "SPRig" in thread.name]
    yield seconds(0.5)
    stage.press_the_button()
    yield lambda: stage.running() is None
    figures["armatures then"] = len(bpy.data.armatures)
    return figures


def trouble(stage):
    """What the panel shows without the libraries, after a mistake of the user's, and after a bug of ours."""
    stage.enable()
    bar = stage.add_bar()
    yield stage.look()
    figures = {}
    dependencies = stage.module("sprig_blender.dependencies")
    loaded = {name: sys.modules.pop(name, None) for name in ("torch",)}
    sys.modules["torch"] = None  # Python's own way to say: this module cannot be imported
    dependencies.look_again()
    yield seconds(0.5)
    figures["without torch"] = bpy.ops.sprig.auto_rig_sequence.poll()
    gui.shot(str(stage.scratch / "missing.png"))
    del sys.modules["torch"]
    sys.modules.update({name: module for name, module in loaded.items() if module})
    dependencies.look_again()

    scene = bpy.context.scene
    scene.sprig.anchor_mode, scene.sprig.anchor_frame = "FRAME", 99
    figures["greyed out"] = not bpy.ops.sprig.auto_rig_sequence.poll()
    yield seconds(0.5)
    gui.shot(str(stage.scratch / "greyed.png"))
    scene.sprig.anchor_mode = "AUTO"
    for kind in ("MIRROR", "WAVE"):
        bar.modifiers.new(kind.title(), kind)
    stage.press_the_button()
    yield lambda: stage.running() is None
    figures["mistake"] = stage.problem().sentence
    bar.modifiers.clear()
    yield seconds(0.5)
    gui.shot(str(stage.scratch / "mistake.png"))

    before = stage.scene_print()
    stage.module("sprig_blender.auto_rig").writing = lambda *arguments, **named: {}["a bug"]
    stage.press_the_button()
    yield lambda: stage.running() is None
    figures["bug"] = stage.problem().sentence
    figures["unchanged"] = stage.scene_print() == before
    yield seconds(0.5)
    gui.shot(str(stage.scratch / "bug.png"))
    bpy.ops.sprig.copy_report()
    figures["report"] = bpy.context.window_manager.clipboard
    bpy.ops.sprig.dismiss_problem()
    figures["dismissed"] = stage.problem() is None
    assert bar.name == "Bar"
    return figures


def install(stage):
    """Esc during an installation leaves nothing; one from a folder of wheels works and can be removed again."""
    stage.enable()
    stage.add_bar()
    yield stage.look()
    dependencies = stage.module("sprig_blender.dependencies")
    folder = dependencies.own_folder()
    wheels = str(stage.scratch / "wheels")
    bpy.ops.sprig.install_backend("INVOKE_DEFAULT", wheel_folder=wheels)
    yield lambda: stage.running().text == "Trying the libraries"
    gui.shot(str(stage.scratch / "installing.png"))
    stage.key("ESC")
    yield lambda: stage.running() is None
    figures = {"left behind": [path.name for path in folder.parent.glob("*")] if folder.parent.exists() else []}

    (stage.scratch / "slow").unlink()
    bpy.ops.sprig.install_backend("INVOKE_DEFAULT", wheel_folder=wheels)
    yield lambda: stage.running() is None
    figures["problem"] = stage.problem() and stage.problem().sentence
    figures["installed"] = dependencies.is_installed() and str(folder) == sys.path[-1]
    bpy.ops.screen.userpref_show("INVOKE_DEFAULT")
    bpy.context.preferences.active_section = "ADDONS"
    bpy.context.window_manager.addon_search = "SPRig"
    with_preferences = bpy.context.window_manager.windows[-1].screen.areas[0]
    bpy.ops.preferences.addon_expand(module=ADD_ON)
    with_preferences.tag_redraw()
    yield seconds(1.0)
    gui.shot(str(stage.scratch / "preferences.png"))
    bpy.ops.sprig.uninstall_backend()
    figures["removed"] = not folder.exists() and str(folder) not in sys.path
    bpy.ops.sprig.install_backend("INVOKE_DEFAULT")
    yield lambda: stage.running() is None
    figures["offline"] = stage.problem().sentence
    return figures


def finetune(stage):
    """*Fine-tune on Sequence*: cancelled it changes nothing, done it is what the rig is made with, then forgotten."""
    stage.enable()
    bar = stage.add_bar()
    gui.maximize()
    settings = bpy.context.scene.sprig
    settings.joints_mode, settings.skeleton, settings.finetune_epochs = "AUTO", "learned", 1
    settings.range_mode, settings.frame_start, settings.frame_end, settings.frame_step = "CUSTOM", 1, 20, 4
    yield seconds(0.5)
    yield stage.look()
    yield seconds(0.5)
    gui.shot(str(stage.scratch / "offered.png"))
    before = stage.scene_print()
    figures = {}

    def press():
        window, area, region, _space = gui.view3d()
        with bpy.context.temp_override(window=window, area=area, region=region):
            assert bpy.ops.sprig.finetune_sequence("INVOKE_DEFAULT") == {"RUNNING_MODAL"}

    press()
    yield lambda: stage.running() is None or "PJDD" in stage.running().step.text
    assert stage.running(), stage.problem()
    figures["told"] = stage.running().step.text
    gui.shot(str(stage.scratch / "learning.png"))
    stage.key("ESC")
    yield lambda: stage.running() is None
    figures["cancelled"] = [bar.sprig.student, stage.scene_print() == before, stage.problem()]

    press()
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    figures["student"] = bar.sprig.student
    yield seconds(1)
    gui.shot(str(stage.scratch / "learned.png"))

    stage.press_the_button()
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    armature = bpy.context.view_layer.objects.active
    figures["joints"], figures["warnings"] = armature.sprig.joints, armature.sprig.warnings
    yield seconds(1)
    gui.shot(str(stage.scratch / "rigged.png"))
    bpy.ops.sprig.forget_student()
    figures["forgotten"] = bar.sprig.student
    return figures


def preview(stage):
    """*Preview* draws and changes nothing, follows the timeline, is applied in one undo step; failing, it ends."""
    stage.enable()
    animal = stage.add_animal()
    gui.maximize()
    scene = bpy.context.scene
    settings = scene.sprig
    settings.skeleton, settings.joints_mode, settings.joints = "motion", "NUMBER", 24
    bpy.ops.ed.undo_push(message="Settings")
    yield seconds(0.5)
    yield stage.look()
    before = stage.scene_print()
    preview_module = stage.module("sprig_blender.preview")
    durations = []

    def press():
        window, area, region, _space = gui.view3d()
        with bpy.context.temp_override(window=window, area=area, region=region):
            assert bpy.ops.sprig.preview("INVOKE_DEFAULT") == {"RUNNING_MODAL"}

    def redrawn():
        """A condition: the overlay has been drawn since."""
        count = len(durations)
        return lambda: len(durations) > count

    def show(frame, bones, color, surface, joint=""):
        scene.frame_set(frame)
        settings.preview_bones, settings.preview_bone_color = bones, color
        settings.preview_surface, settings.preview_joint = surface, joint
        return redrawn()

    press()
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    shown = preview_module.current()
    draw = shown.overlay.draw

    def timed(context):
        start = time.perf_counter()
        draw(context)
        durations.append(time.perf_counter() - start)

    shown.overlay.draw = timed
    figures = {"joints": len(shown.computed.rig.skeleton), "unchanged": stage.scene_print() == before}
    yield seconds(8)  # until the message in the status bar is gone
    gui.shot(str(stage.scratch / "sticks.png"))

    durations.clear()
    for step in range(SCRUBBED):
        scene.frame_set(1 + step % scene.frame_end)
        yield redrawn()
    figures["milliseconds"] = 1000 * float(np.median(durations))

    last = shown.computed.rig.skeleton.names[-1]
    for name, view in {
        "octahedra": (4, "OCTAHEDRA", "MOTION", "NONE"),
        "joint": (20, "STICKS", "PLAIN", "WEIGHTS", last),
        "joints": (20, "OCTAHEDRA", "PLAIN", "WEIGHTS"),
        "error": (int(shown.computed.rig.frame_numbers[shown.computed.rig.worst_frame]), "NONE", "PLAIN", "ERROR"),
    }.items():
        yield show(*view)
        yield seconds(1.0)
        gui.shot(str(stage.scratch / f"{name}.png"))
    yield show(12, "STICKS", "PLAIN", "NONE")

    animal.location.x = 1
    bpy.ops.ed.undo_push(message="Move")
    stage.key("Z", ctrl=True)
    yield lambda: bpy.data.objects["Elephant"].location.x == 0
    figures["kept by undo"] = preview_module.current() is shown

    before = stage.scene_print()
    window, area, region, _space = gui.view3d()
    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.sprig.apply_preview("INVOKE_DEFAULT")
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    figures["applied"] = [bpy.context.view_layer.objects.active.sprig.joints, preview_module.current()]
    yield seconds(1.0)
    gui.shot(str(stage.scratch / "applied.png"))
    stage.key("Z", ctrl=True)
    yield lambda: len(bpy.data.armatures) == 0
    figures["undone"] = stage.scene_print() == before

    press()
    yield lambda: stage.running() is None
    preview_module.current().overlay.draw = None  # as a graphics driver may fail
    bpy.context.scene.frame_set(3)
    yield lambda: preview_module.current() is None
    figures["failed"] = stage.problem().sentence
    yield seconds(0.5)
    gui.shot(str(stage.scratch / "failed.png"))
    return figures


def adjust(stage):
    """The network frame by frame beside the rig; joints edited in Edit Mode, fitted again and applied."""
    stage.enable()
    stage.add_animal()
    gui.maximize()
    scene = bpy.context.scene
    settings = scene.sprig
    settings.skeleton, settings.joints_mode, settings.joints = "motion", "NUMBER", 60
    settings.frame_step = 3  # fewer frames are quicker, and look the same here
    bpy.ops.ed.undo_push(message="Settings")
    yield seconds(0.5)
    yield stage.look()
    before = stage.scene_print()
    preview_module = stage.module("sprig_blender.preview")
    durations = []

    def press(operator, **options):
        window, area, region, _space = gui.view3d()
        with bpy.context.temp_override(window=window, area=area, region=region):
            operator("INVOKE_DEFAULT", **options)
        return lambda: stage.running() is None

    def redrawn():
        """A condition: the overlay has been drawn since."""
        count = len(durations)
        return lambda: len(durations) > count

    yield press(bpy.ops.sprig.preview)
    assert stage.problem() is None, stage.problem()
    yield press(bpy.ops.sprig.show_raw_network)
    assert stage.problem() is None, stage.problem()
    shown = preview_module.current()
    raw = shown.overlay.raw
    figures = {
        "joints": len(shown.computed.rig.skeleton),
        "raw joints": max(len(parents) for parents in raw.parents),
        "shifts": [raw.raw_shift, raw.rig_shift],
        "unchanged": stage.scene_print() == before,
    }
    draw = shown.overlay.draw

    def timed(context):
        start = time.perf_counter()
        draw(context)
        durations.append(time.perf_counter() - start)

    shown.overlay.draw = timed
    for step in range(SCRUBBED // 5):
        scene.frame_set(1 + step % scene.frame_end)
        yield redrawn()
    figures["milliseconds"] = 1000 * float(np.median(durations))
    shown.overlay.draw = draw
    yield seconds(8)  # until the message in the status bar is gone
    gui.shot(str(stage.scratch / "raw.png"))
    settings.preview_raw = False

    names = set(bpy.data.objects.keys())
    yield press(bpy.ops.sprig.adjust)
    assert stage.problem() is None, stage.problem()
    (name,) = set(bpy.data.objects.keys()) - names
    figures["editing"] = bpy.context.mode
    yield seconds(3)
    gui.shot(str(stage.scratch / "editing.png"))
    stage.key("Z", ctrl=True)
    yield lambda: name not in bpy.data.objects
    figures["undone"] = stage.scene_print() == before
    yield press(bpy.ops.sprig.adjust)

    bones = bpy.data.objects[name].data.edit_bones
    leaf = next(bone for bone in bones if not bone.children)
    new = bones.new("addition")
    new.head, new.tail, new.parent = leaf.tail.copy(), leaf.tail + leaf.vector, leaf
    new.use_connect = True
    yield press(bpy.ops.sprig.refit)
    assert stage.problem() is None, stage.problem()
    figures["fitted"] = ["addition" in preview_module.current().computed.rig.skeleton.names, bpy.context.mode]
    bpy.context.scene.frame_set(20)  # undo has made another scene of it
    yield seconds(6)
    gui.shot(str(stage.scratch / "fitted.png"))

    yield press(bpy.ops.sprig.apply_preview)
    assert stage.problem() is None, stage.problem()
    figures["applied"] = ["addition" in bpy.context.view_layer.objects.active.data.bones, name in bpy.data.objects]
    yield press(bpy.ops.sprig.adjust)  # what was applied
    assert stage.problem() is None, stage.problem()
    figures["again"] = bpy.context.mode
    yield seconds(1)
    gui.shot(str(stage.scratch / "again.png"))
    bpy.ops.sprig.discard_adjustment()
    figures["left"] = [bpy.context.mode, preview_module.current()]
    return figures


def hand_over(stage):
    """Comparing and cleaning up are one undo step each, the panel says what was found, and a file is written."""
    stage.enable()
    stage.add_bar()
    bpy.context.scene.sprig.skeleton = "motion"
    panel_module = stage.module("sprig_blender.panel")
    panel_module._section = lambda layout, name, title: layout.box() if title == "Hand Over" else None  # opened
    gui.maximize()
    bpy.ops.ed.undo_push(message="Settings")
    yield seconds(0.5)
    yield stage.look()
    stage.press_the_button()
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    window, area, region, _space = gui.view3d()

    def press(operator, **options):
        with bpy.context.temp_override(window=window, area=area, region=region):
            assert operator("EXEC_DEFAULT", True, **options) == {"FINISHED"}

    def seen():
        return [bpy.data.objects[name].visible_get() for name in ("Bar", "Bar Skin", "Bar Rig")]

    figures = {"rigged": seen()}
    for view in ("SOURCE", "BOTH"):
        press(bpy.ops.sprig.compare, view=view)
        figures[view] = seen()
        yield seconds(1.0)
        gui.shot(str(stage.scratch / f"{view.lower()}.png"))
    stage.key("Z", ctrl=True)
    yield lambda: seen() == figures["SOURCE"]
    stage.key("Z", ctrl=True)
    yield lambda: seen() == figures["rigged"]

    press(bpy.ops.sprig.check_export)
    yield seconds(1.0)
    gui.shot(str(stage.scratch / "ready.png"))
    armature = bpy.data.objects["Bar Rig"]
    figures["ready"] = armature.sprig.findings
    armature.scale = 1, 1, 2
    bpy.context.view_layer.update()
    press(bpy.ops.sprig.check_export)
    yield seconds(1.0)
    gui.shot(str(stage.scratch / "findings.png"))
    figures["findings"] = armature.sprig.findings
    armature.scale = 1, 1, 1
    bpy.ops.ed.undo_push(message="Scale")

    press(bpy.ops.sprig.export_game, filepath=str(stage.scratch / "bar.fbx"), engine="UNREAL")
    figures["written"] = (stage.scratch / "bar.fbx").stat().st_size > 1000
    before = stage.scene_print()
    press(bpy.ops.sprig.clean_up)
    figures["left"] = [*bpy.data.objects.keys(), *bpy.data.armatures.keys()]
    yield seconds(1.0)
    gui.shot(str(stage.scratch / "cleaned.png"))
    stage.key("Z", ctrl=True)
    yield lambda: len(bpy.data.armatures) == 1
    figures["undone"] = stage.scene_print() == before

    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.sprig.export_game("INVOKE_DEFAULT")
    yield seconds(2.0)
    gui.shot(str(stage.scratch / "dialog.png"))
    return figures


def whole_path(stage):
    """From the zip to the exported file, by mouse and keys: what a user goes through on the first day."""
    stage.install_zip()
    stage.add_bar()
    bpy.context.scene.sprig.skeleton = "motion"
    bpy.ops.ed.undo_push(message="Settings")
    gui.maximize()
    yield seconds(0.5)
    yield stage.look()
    yield seconds(0.5)
    figures, frames = {}, (1, 7, 20)

    def replay():
        """World positions of the skin on some frames, and what the panel says of the rig."""
        skin, scene = bpy.data.objects["Bar Skin"], bpy.context.scene
        now, shapes = scene.frame_current, []
        for frame in frames:
            scene.frame_set(frame)
            evaluated = skin.evaluated_get(bpy.context.evaluated_depsgraph_get())
            matrix = np.array(evaluated.matrix_world)
            local = np.array([vertex.co for vertex in evaluated.data.vertices])
            shapes.append(local @ matrix[:3, :3].T + matrix[:3, 3])
        scene.frame_set(now)
        result = skin.parent.sprig
        return np.array(shapes), [result.joints, result.rmse, result.worst_frame]

    yield from stage.click("sprig.preview")
    yield lambda: stage.running() is None
    assert stage.problem() is None, stage.problem()
    figures["previewed"] = len(stage.module("sprig_blender.preview").current().computed.rig.skeleton)
    for _ in range(5):
        stage.key("RIGHT_ARROW")
    yield lambda: bpy.context.scene.frame_current == 6
    stage.key("SPACE")
    yield lambda: bpy.context.screen.is_animation_playing and bpy.context.scene.frame_current != 6
    stage.key("SPACE")
    yield lambda: not bpy.context.screen.is_animation_playing
    gui.shot(str(stage.scratch / "previewed.png"))

    yield from stage.click("sprig.apply_preview")
    yield lambda: stage.running() is None and bpy.data.armatures
    after = stage.scene_print()
    stage.key("Z", ctrl=True)
    yield lambda: not bpy.data.armatures
    stage.key("Z", ctrl=True, shift=True)
    yield lambda: bpy.data.armatures
    figures["redone"] = stage.scene_print() == after

    settings = bpy.context.scene.sprig
    settings.range_mode, settings.frame_end = "CUSTOM", 200  # long enough to be met in the middle
    yield from stage.click("sprig.auto_rig_sequence")
    yield lambda: not stage.running().step.exclusive and stage.running().step.fraction > 0.15
    stage.key("ESC")
    yield lambda: stage.running() is None
    figures["cancelled"] = stage.scene_print() == after
    settings.range_mode = "SCENE"
    yield from stage.click("sprig.auto_rig_sequence")
    yield lambda: stage.running() is None
    figures["replaced"] = stage.scene_print()[4] == after[4]

    before = replay()
    saved = str(stage.scratch / "saved.blend")
    bpy.ops.wm.save_as_mainfile(filepath=saved)
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    yield seconds(0.5)
    bpy.ops.wm.open_mainfile(filepath=saved)
    yield seconds(0.5)
    again = replay()
    figures["reloaded"] = bool(np.array_equal(before[0], again[0])) and before[1] == again[1]
    figures["moved"] = float(np.abs(again[0][0] - again[0][-1]).max())

    stage.open_sections("Hand Over")
    yield stage.look()
    yield seconds(0.5)
    gui.shot(str(stage.scratch / "reloaded.png"))
    yield from stage.click("sprig.export_game")

    def browsers():
        windows = bpy.context.window_manager.windows
        return [area for window in windows for area in window.screen.areas if area.type == "FILE_BROWSER"]

    yield browsers
    yield seconds(1)
    gui.shot(str(stage.scratch / "browser.png"))
    yield from stage.click("file.execute", browsers()[0], "EXECUTE")
    yield lambda: not browsers()
    yield seconds(1)
    assert stage.problem() is None, stage.problem()
    figures["exported"] = [file.suffix for file in stage.scratch.glob("*.fbx") if file.stat().st_size > 1000]
    gui.shot(str(stage.scratch / "exported.png"))

    bpy.ops.extensions.package_uninstall(repo_index=_repository("user_default"), pkg_id="sprig")
    figures["removed"] = not [name for name in dir(bpy.types) if name.startswith("SPRIG_")]
    return figures


def repeated(stage):
    """20 runs, cancelled, previewed and applied, with files opened and the add-on disabled in between; all counted."""
    temporary = stage.scratch / "temporary"
    temporary.mkdir()
    tempfile.tempdir = str(temporary)
    stage.enable()
    stage.add_bar()
    bpy.context.scene.sprig.skeleton = "motion"
    yield stage.look()
    saved = str(stage.scratch / "saved.blend")
    bpy.ops.wm.save_as_mainfile(filepath=saved)
    figures = {"runs": 0, "changes": {}, "megabytes": []}

    def now():
        bpy.ops.sprig.preview.poll()  # keeps what it has found
        return stage.leftovers["left_over"](ADD_ON)

    def press(operator):
        figures["runs"] += 1
        window, area, region, _space = gui.view3d()
        with bpy.context.temp_override(window=window, area=area, region=region):
            operator("INVOKE_DEFAULT", True)

    def finished():
        assert stage.problem() is None, stage.problem()
        return stage.running() is None

    def compare(name, before):
        changes = stage.leftovers["difference"](before, now())
        if changes and turn > 0:  # the first turn loads what is loaded only once
            figures["changes"][f"{turn}: {name}"] = changes

    def choose_bar():
        bar = bpy.data.objects["Bar"]
        bar.hide_set(False)
        bpy.ops.object.select_all(action="DESELECT")
        bar.select_set(True)
        bpy.context.view_layer.objects.active = bar

    for turn in range(4):
        preferences = bpy.context.preferences.addons[ADD_ON].preferences
        preferences.separate_process = "ALWAYS" if turn % 2 else "AUTO"
        settings = bpy.context.scene.sprig
        before = now()

        settings.range_mode, settings.frame_end = "CUSTOM", 200  # long enough to be met in the middle
        press(bpy.ops.sprig.auto_rig_sequence)
        yield lambda: not stage.running().step.exclusive and stage.running().step.fraction > 0.1
        stage.key("ESC")
        yield finished
        settings.range_mode = "SCENE"
        compare("cancelled", before)

        press(bpy.ops.sprig.preview)
        yield finished
        bpy.context.scene.frame_set(5)
        yield seconds(0.5)
        bpy.ops.sprig.discard_preview()
        compare("discarded", before)

        press(bpy.ops.sprig.preview)
        yield finished
        bpy.ops.sprig.apply_preview("INVOKE_DEFAULT", True)
        yield finished
        applied = now()
        choose_bar()
        press(bpy.ops.sprig.auto_rig_sequence)
        yield finished
        compare("replaced", applied)

        choose_bar()
        press(bpy.ops.sprig.preview)
        yield finished
        bpy.ops.wm.open_mainfile(filepath=saved)
        yield seconds(0.5)
        compare("opened", before)
        bpy.ops.preferences.addon_disable(module=ADD_ON)
        yield seconds(0.5)
        bpy.ops.preferences.addon_enable(module=ADD_ON)
        yield seconds(0.5)
        compare("enabled again", before)
        figures["megabytes"].append(stage.leftovers["resident_megabytes"]())

    ticks = []

    class Ticks(bpy.types.Operator):
        """Counts the timers' events in the window."""

        bl_idname, bl_label = "scenario.ticks", "Ticks"

        def invoke(self, context, _event):
            context.window_manager.modal_handler_add(self)
            return {"RUNNING_MODAL"}

        def modal(self, _context, event):
            ticks.extend([event.type] if event.type == "TIMER" else [])
            return {"PASS_THROUGH"}

    bpy.utils.register_class(Ticks)
    window, area, region, _space = gui.view3d()
    with bpy.context.temp_override(window=window, area=area, region=region):
        bpy.ops.scenario.ticks("INVOKE_DEFAULT")
    bpy.ops.sprig.preview("INVOKE_DEFAULT")
    yield finished
    figures["timer at work"] = len(ticks) > 0
    ticks.clear()
    yield seconds(2)
    figures["timer events at rest"] = len(ticks)
    return figures


def tutorial(stage):
    """The pictures of docs/, see tools/make_screenshots.py; returns the sidebar's place in those that show it alone."""
    stage.enable()
    animal = stage.add_animal()
    gui.maximize()
    yield seconds(0.5)
    yield stage.look()
    window, area, region, space = gui.view3d()
    overlay = space.overlay
    overlay.show_floor = overlay.show_axis_x = overlay.show_axis_y = False  # an even ground makes small files
    sidebar = next(region for region in area.regions if region.type == "UI")
    settings = bpy.context.scene.sprig

    def shot(name):
        gui.shot(str(stage.scratch / f"{name}.png"))

    def press(operator, **options):
        with bpy.context.temp_override(window=window, area=area, region=region):
            operator("INVOKE_DEFAULT", True, **options)
        return lambda: stage.running() is None

    dependencies = stage.module("sprig_blender.dependencies")
    loaded = {name: sys.modules.pop(name, None) for name in ("torch", "scipy")}
    sys.modules.update(dict.fromkeys(loaded))  # None is Python's own way to say: this cannot be imported
    dependencies.look_again()
    yield seconds(1)
    shot("libraries")
    for name, module in loaded.items():
        del sys.modules[name]
        sys.modules.update({name: module} if module else {})
    dependencies.look_again()

    yield seconds(1)
    shot("ready")
    stage.open_sections("Sequence", "Skeleton", "Skinning", "Motion", "Networks")  # no more fit into the window
    yield seconds(1)
    shot("sections")
    stage.open_sections()

    yield press(bpy.ops.sprig.preview)
    assert stage.problem() is None, stage.problem()
    settings.preview_bones, settings.preview_surface = "STICKS", "WEIGHTS"
    yield seconds(8)  # until the message in the status bar is gone
    shot("preview")

    yield press(bpy.ops.sprig.apply_preview)
    assert stage.problem() is None, stage.problem()
    stage.open_sections("Result")
    yield seconds(8)
    shot("result")

    stage.open_sections("Hand Over")
    yield press(bpy.ops.sprig.compare, view="BOTH")
    yield press(bpy.ops.sprig.check_export)
    bpy.context.scene.frame_set(30)
    yield seconds(8)
    shot("compare")
    top = window.height - sidebar.y - sidebar.height
    place = [sidebar.x, top, sidebar.x + sidebar.width, top + sidebar.height]
    figures = {"joints": bpy.context.view_layer.objects.active.sprig.joints, "source": animal.name}
    return {**figures, "alone": {"libraries": place, "sections": place}}


def sections(stage):
    """The panel with all its settings and at work, in English and in German; a file dropped; a greyed-out button."""
    stage.enable()
    animal = stage.add_animal()
    gui.maximize()
    yield seconds(0.5)
    yield stage.look()
    yield seconds(1)
    gui.shot(str(stage.scratch / "closed.png"))
    stage.open_sections("Sequence", "Skeleton", "Skinning", "Motion", "Networks", "Own Armature", "Advanced")
    yield seconds(1)
    gui.shot(str(stage.scratch / "open.png"))
    animal.modifiers[0].show_viewport = False
    stage.open_sections()
    yield seconds(1)
    figures = {"still": bpy.ops.sprig.auto_rig_sequence.poll()}
    gui.shot(str(stage.scratch / "still.png"))
    cache = animal.modifiers[0].filepath
    animal.modifiers.clear()
    bpy.ops.ed.undo_push(message="Without a cache")
    bpy.ops.sprig.import_sequence(
        "INVOKE_DEFAULT", True, directory=str(stage.scratch), files=[{"name": Path(cache).name}]
    )
    figures["dropped"] = bpy.ops.sprig.auto_rig_sequence.poll()
    stage.key("Z", ctrl=True)
    yield lambda: not bpy.data.objects["Elephant"].modifiers
    stage.key("Z", ctrl=True, shift=True)
    yield lambda: bpy.data.objects["Elephant"].modifiers

    view = bpy.context.preferences.view
    figures["German"] = None
    with suppress(TypeError):  # Debian's Blender may lie there without its languages
        view.language = "de_DE"
        view.use_translate_interface = view.use_translate_tooltips = True
        say = bpy.app.translations.pgettext_iface
        figures["German"] = [say("Own Armature"), say("Auto-Rig Sequence", "Operator"), say("May Stretch")]
    stage.open_sections("Skeleton", "Motion", "Networks", "Own Armature")
    yield seconds(1)
    gui.shot(str(stage.scratch / "german.png"))
    stage.open_sections()
    stage.press_the_button()
    yield lambda: stage.running() is None or stage.running().seconds_left is not None
    figures["time left"] = stage.running() is not None and stage.running().seconds_left > 0
    yield seconds(0.2)
    gui.shot(str(stage.scratch / "time_left.png"))
    stage.key("ESC")
    yield lambda: stage.running() is None
    return figures


SCENARIOS = {
    function.__name__: function
    for function in (
        panel,
        sections,
        cancel,
        separate,
        meanwhile,
        trouble,
        install,
        finetune,
        preview,
        adjust,
        hand_over,
        whole_path,
        repeated,
        tutorial,
    )
}
