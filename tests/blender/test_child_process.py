"""The backend in a process of its own: the same rigs, sentences and cancelling as inside Blender, and nothing left."""

import importlib
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from pathlib import Path

import bpy
import numpy as np
import pytest

from sprig.backend.device import load_torch
from sprig.backend.errors import Cancelled, SprigError
from sprig.backend.given_skeleton import GivenSkeleton
from sprig.backend.sequence import ClipSpan, MeshSequence
from sprig.sprig_blender import backend_child, backend_work, call_backend, child_process, dependencies

from .rigs import random_rig, replay, triangles, tube
from .test_fit_armature import artists_armature, moving_body
from .test_operator import addon_of, by_shape_keys, select

WHY = "[WinError 1114] c10.dll did not initialise"
PROMPT = 2.0  # seconds in which Esc has to have ended the process, on a busy machine


class Unloadable(MetaPathFinder, Loader):
    """torch as Windows has it: it is there, and importing it fails, though only in this process."""

    def __init__(self):
        self.origin = importlib.util.find_spec("torch").origin

    def find_spec(self, name, path=None, target=None):
        return importlib.util.spec_from_file_location(name, self.origin, loader=self) if name == "torch" else None

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        raise OSError(WHY)


@contextmanager
def failing_in_blender(modules=dependencies):
    """torch does not load in this process; modules: the add-on's dependencies.py."""
    loaded = load_torch()  # a library that cannot be loaded twice
    unloadable = Unloadable()
    sys.meta_path.insert(0, unloadable)
    del sys.modules["torch"]
    modules.look_again()
    try:
        yield
        assert "torch" not in sys.modules
    finally:
        sys.meta_path.remove(unloadable)
        sys.modules["torch"] = loaded
        modules.use_folder(None)


@pytest.fixture
def always(extension):
    """*Separate Process* set to *Always*."""
    preferences = bpy.context.preferences.addons[extension.__name__].preferences
    preferences.separate_process = "ALWAYS"


@pytest.fixture(autouse=True)
def children(monkeypatch, tmp_path_factory):
    """The processes that were started; afterwards they have ended, and their temporary folders are gone."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(child_process.subprocess, "Popen", Recorded)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield started
    assert all(child.poll() is not None for child in started)
    assert list(folder.glob("sprig-*")) == []


def in_child(function, *arguments, progress=lambda fraction, text: None):
    """Call a function of backend_work in a process of its own."""
    return call_backend._run_in_child(function, arguments, progress, progress)


def small_sequence() -> MeshSequence:
    """A tube in three frames, moved by a random rig."""
    vertices, faces = tube(rings=12)
    return replay(random_rig(np.random.default_rng(3), vertices, triangles(faces), joints=3, angle=0.4))


CHOICES = {"skeleton": "motion", "joints": 3, "device": "cpu"}


# ---- what goes over


def same(a, b) -> bool:
    """Equal in type and to the last bit, NaN included."""
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, tuple | list) and type(a) is type(b):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if hasattr(a, "__dict__") and not isinstance(a, Path):
        return type(a) is type(b) and same(vars(a), vars(b))
    return type(a) is type(b) and (a == b or (a != a and b != b))


def test_files_keep_everything(tmp_path):
    rng = np.random.default_rng(0)
    vertices, faces = tube()
    rig = random_rig(rng, vertices, triangles(faces), origin=(1e6, 0.1, -3))
    rig.confidence[0] = np.nan
    rig.provenance.update(seed=7, figures={"pjdd": 0.1 + 0.2, "best": [1, None]}, share=float("inf"))
    given = GivenSkeleton(rig.skeleton.joints, rig.skeleton.tails, rig.skeleton.parents, rig.skeleton.names)
    clip = ClipSpan("Gang – 走", 23.976, 0, 4)
    value = (rig, given, {"file": None, "folder": tmp_path / "ä ö", "clip": (clip,)}, True, 1 / 3, "", [(), ()])
    backend_child.save(tmp_path / "a.npz", value)
    assert same(backend_child.load(tmp_path / "a.npz"), value)
    backend_child.save(tmp_path / "a.npz", {"one": np.float32(0.1), "two": np.int64(2)})
    assert backend_child.load(tmp_path / "a.npz") == {"one": float(np.float32(0.1)), "two": 2}


def test_files_name_no_code(tmp_path):
    for value in (threading.Event(), np.array([print]), {1: "a key that JSON would change"}):
        with pytest.raises(AssertionError):
            backend_child.save(tmp_path / "a.npz", value)
    np.savez(tmp_path / "a.npz", structure=np.array(json.dumps({"Popen": {"args": "true"}})))
    with pytest.raises(KeyError):
        backend_child.load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", structure=np.array([print], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle"):
        backend_child.load(tmp_path / "a.npz")


# ---- the same as inside Blender


def test_the_rig_is_the_same():
    work = call_backend.work(bpy.context, backend_work.rig, small_sequence(), CHOICES, None)

    def rig_and_progress():
        said = []
        rig = work(lambda fraction, text: said.append((fraction, text)))
        return {name: value for name, value in vars(rig).items() if name != "seconds"}, list(dict.fromkeys(said))

    here = rig_and_progress()
    with failing_in_blender():
        separate = rig_and_progress()
        assert not dependencies.load()  # remembered
        (torch,) = (library for library in dependencies.libraries() if library.name == "torch")
        assert torch.state is dependencies.State.READY and torch.detail.endswith(", in a separate process")
        assert WHY in dependencies.log()
    assert same(here, separate)
    assert here[1][0] == (0.0, "Loading PyTorch") and len(here[1]) > 5
    assert dependencies.load()


def armature_of(extension, *things):
    """What the result shows after the button was pressed on these."""
    addon_of(extension)
    select(*things)
    assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
    armature = bpy.context.view_layer.objects.active
    figures = armature.sprig.joints, armature.sprig.rmse, armature.sprig.worst_frame, armature.sprig.warnings
    return figures, [(bone.name, *bone.head_local, *bone.tail_local) for bone in armature.data.bones]


def test_the_button(extension, children):
    """Where torch does not load in Blender, the result is that of a Blender where it does."""
    here = armature_of(extension, by_shape_keys())
    assert children == []
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    with failing_in_blender(importlib.import_module(f"{extension.__name__}.sprig_blender.dependencies")):
        assert armature_of(extension, by_shape_keys()) == here
    assert len(children) == 1


def test_own_armature_and_fine_tuning(extension, always, children, network_files):
    armature = artists_armature()
    body = moving_body(armature)
    scene = bpy.context.scene
    scene.frame_start, scene.frame_end = 1, 4
    select(body, armature)
    assert bpy.ops.sprig.fit_armature() == {"FINISHED"}
    result = bpy.context.view_layer.objects.active
    assert len(children) == 1 and [bone.name for bone in result.data.bones] == [*armature.data.bones.keys()]

    settings = scene.sprig
    settings.skeleton, settings.finetune_epochs = "learned", 1
    for name, file in network_files.items():
        setattr(settings, name, file)
    thing = by_shape_keys("Thing")
    select(thing)
    assert bpy.ops.sprig.finetune_sequence() == {"FINISHED"}
    students = importlib.import_module(f"{extension.__name__}.sprig_blender.students")
    assert len(children) == 2 and students.student_of([thing]).is_file()
    shutil.rmtree(students.students_folder())


# ---- what goes wrong


def test_sentences_come_back():
    arguments = small_sequence(), {**CHOICES, "anchor": 99}, None
    with pytest.raises(SprigError) as here:
        backend_work.rig(*arguments, lambda fraction, text: None)
    with pytest.raises(SprigError) as there:
        in_child(backend_work.rig, *arguments)
    assert str(there.value) == str(here.value)


def test_bug_in_the_child_is_reported(extension, always):
    """Its traceback is that of the child, where it happened."""
    work = call_backend.work(bpy.context, backend_work.rig, small_sequence(), {"abacus": 1}, None)
    with pytest.raises(TypeError, match="abacus"):  # the preferences above are those of the extension, not of `sprig`
        work(lambda fraction, text: None)
    with pytest.raises(call_backend.ErrorInChild, match=r"(?s)Traceback .*backend_work.py.*TypeError: .*abacus"):
        in_child(backend_work.rig, small_sequence(), {"abacus": 1}, None)


@pytest.mark.parametrize("stage", ["Loading PyTorch", "Reading the motion"])
def test_cancelling_ends_the_process(children, stage):
    stopped = []

    def progress(_fraction, text):
        if children and text == stage:
            stopped.append(time.perf_counter())
            raise Cancelled

    with pytest.raises(Cancelled):
        in_child(backend_work.rig, small_sequence(), CHOICES, None, progress=progress)
    assert children[0].poll() is not None
    assert time.perf_counter() - stopped[0] < PROMPT


def test_crash_is_one_sentence(children):
    def progress(_fraction, text):
        if text == "Reading the motion":
            children[0].kill()

    with pytest.raises(SprigError) as error:
        in_child(backend_work.rig, small_sequence(), CHOICES, None, progress=progress)
    assert "The separate process crashed (SIGKILL), " in str(error.value) or sys.platform == "win32"
    assert "ended with status" in dependencies.log()


def test_words_for_an_exit_status():
    assert call_backend._how(-signal.SIGSEGV) == "SIGSEGV"
    assert call_backend._how(1) == "status 1"
    assert call_backend._how(0xC0000005) == "status 0xc0000005"  # Windows' access violation


def test_torch_that_loads_nowhere(tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text(f"raise OSError({WHY!r})")
    monkeypatch.syspath_prepend(tmp_path)
    work = call_backend.work(bpy.context, backend_work.rig, small_sequence(), CHOICES, None)
    with failing_in_blender():
        with pytest.raises(
            SprigError, match=r"torch does not work here: \[WinError 1114\] .*; install the libraries in"
        ):
            work(lambda fraction, text: None)
        assert [library.state.value for library in dependencies.libraries()] == ["Ready", "Broken", "Ready", "Ready"]
    assert dependencies.ready()


def test_python_that_cannot_be_started(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(SprigError, match=r"Blender's Python cannot be started \(No such file or directory\)"):
        in_child(backend_work.rig, small_sequence(), CHOICES, None)


def test_child_ends_when_blender_has_gone(tmp_path):
    """Then nobody else removes the folder."""
    folder = tmp_path / "request"
    folder.mkdir()
    backend_child.save(folder / backend_child.REQUEST, ("rig", (small_sequence(), CHOICES, None)))
    child = subprocess.Popen(call_backend._command(str(folder)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    child.stdout.close()
    assert child.wait(60) == 1
    assert not folder.exists()


NOISY = """
import json, sys
from importlib.abc import MetaPathFinder

class Noisy(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.endswith("backend.pipeline"):
            print("noise", "bpy" in sys.modules)

sys.meta_path.insert(0, Noisy())
"""


def test_child_hears_only_messages(tmp_path):
    """What libraries print goes elsewhere, and no bpy is there."""
    folder = tmp_path / "request"
    folder.mkdir()
    backend_child.save(folder / backend_child.REQUEST, ("rig", (small_sequence(), CHOICES, None)))
    *command, start, root, where, path = call_backend._command(str(folder))
    done = subprocess.run([*command, NOISY + start, root, where, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "noise False" in done.stderr, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert messages[-1] == {"done": True} and all("progress" in message for message in messages[:-1])
