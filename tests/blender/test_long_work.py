"""Long work in small steps: how long the longest one is, and that it can end after any of them."""

import threading
import time

import bpy
import numpy as np
import pytest

from .rigs import mesh_object, tube
from .scene_state import scene_state
from .test_operator import addon_of, by_mesh_cache, by_shape_keys, finish, select

TEXTS = ("Writing the armature", "Writing the skin weights", "Writing the keys", "Writing the shape keys")


@pytest.fixture
def addon(extension):
    return addon_of(extension, "auto_rig", "jobs", "problems", "read_sequence", "skinned_mesh")


@pytest.fixture
def portions(addon, monkeypatch):
    """The add-on with a step for every portion of work, however short."""
    monkeypatch.setattr(addon.auto_rig, "SLICE", 0.0)
    monkeypatch.setattr(addon.skinned_mesh, "PORTION", 100)
    return addon


def big_mesh(folder, rings: int, frames: int):
    """A tube of 8 vertices a ring that bends more and more, by a point cache."""
    vertices, faces = tube(rings=rings)
    body = mesh_object(vertices, faces, "Body")
    angle = np.linspace(0, 1.5, frames)[:, None] * np.clip(vertices[:, 2] - 1, 0, 1)  # (F,V)
    shapes = np.stack([np.broadcast_to(vertices[:, 0], angle.shape), np.sin(angle), np.cos(angle)], axis=-1)
    header = b"POINTCACHE2\0" + np.array([1, len(vertices)], "<i4").tobytes()
    header += np.array([1, 1], "<f4").tobytes() + np.array([frames], "<i4").tobytes()
    (folder / "big.pc2").write_bytes(header + shapes.astype("<f4").tobytes())
    cache = body.modifiers.new("Cache", "MESH_CACHE")
    cache.cache_format, cache.filepath, cache.frame_start = "PC2", str(folder / "big.pc2"), 1
    bpy.context.scene.frame_start, bpy.context.scene.frame_end = 1, frames
    return body


def durations(steps) -> dict[str, list[float]]:
    """Seconds of every step, under what it was at."""
    taken = {}
    while True:
        begun = time.perf_counter()
        try:
            step = next(steps)
        except StopIteration:
            return taken
        taken.setdefault(step.text.rstrip("0123456789"), []).append(time.perf_counter() - begun)
        time.sleep(0.001)  # as a window does, so that the worker gets on


def test_no_step_of_a_run_is_long(portions, tmp_path):
    """10,000 vertices, 60 frames: every frame, every portion of weights and every bone's keys is a step of its own."""
    select(big_mesh(tmp_path, rings=1250, frames=60))
    bpy.context.scene.sprig.skeleton = "motion"
    taken = durations(portions.auto_rig.steps(bpy.context, threading.Event(), 0.0))
    longest = max(taken, key=lambda text: max(taken[text]))
    print(f"The longest of {sum(map(len, taken.values()))} steps took {1e3 * max(taken[longest]):.0f} ms: {longest}")
    assert len(taken["Reading frame "]) == 60
    assert len(taken["Writing the skin weights"]) > 10_000 / 100
    assert len(taken["Writing the keys"]) >= 2


def test_slices_take_several_portions(addon, tmp_path):
    """Steps as short as possible would make the work slow: a window looks at its events every 50 ms."""
    select(big_mesh(tmp_path, rings=1250, frames=60))
    steps = addon.auto_rig.steps(bpy.context, threading.Event(), 0.1)
    reading = [step for step in iter(lambda: next(steps), None) if step.exclusive or steps.close()]
    assert 1 <= len(reading) < 60 or pytest.fail(f"{len(reading)} steps")


# ---- ending it early


@pytest.mark.parametrize("how", ["cancelled", "abandoned"])
def test_writing_can_end_after_every_step(portions, how):
    """Each time the scene is as before; at last it is written after all."""
    body = by_shape_keys()
    scene = bpy.context.scene
    scene.sprig.corrective = True
    select(body)
    computed = finish(portions.auto_rig.compute(bpy.context, threading.Event(), 0.05))
    before, seen, number = scene_state(), set(), 0
    while True:
        cancel = threading.Event()
        steps = portions.auto_rig.write(bpy.context, computed, cancel)
        try:
            texts = [next(steps).text for _ in range(number + 1)]
        except StopIteration:
            break
        seen.add(texts[-1])
        if how == "cancelled":
            cancel.set()
            with pytest.raises(portions.errors.Cancelled):
                finish(steps)
        else:
            steps.close()
        assert scene_state() == before, texts[-1]
        number += 1
    assert seen >= set(TEXTS)
    assert bpy.context.view_layer.objects.active.sprig.joints == 2


def reading(portions, *things):
    """The button's work on these, in the middle of reading, and what is in the scene before it."""
    select(*things)
    before = scene_state()
    steps = portions.auto_rig.steps(bpy.context, threading.Event(), 0.05)
    for step in steps:
        if step.text == "Reading frame 3":
            return steps, before
    raise AssertionError("it did not get there")


def test_a_mesh_is_deleted_while_it_is_read(portions, tmp_path):
    one, two = by_shape_keys("One"), by_mesh_cache(tmp_path, "Two")
    one.modifiers.new("Subdivision", "SUBSURF")
    steps, before = reading(portions, one, two)
    assert not one.modifiers[0].show_viewport
    bpy.data.objects.remove(two)
    with pytest.raises(portions.errors.SprigError, match="was deleted meanwhile; undo that"):
        finish(steps)
    after = scene_state()
    assert after["objects"] == {"One": before["objects"]["One"]}
    assert after["scenes"]["Scene"]["frame"] == before["scenes"]["Scene"]["frame"]


def test_edit_mode_while_frames_are_read(portions):
    """As happens in another window, whose events are not ours."""
    steps, before = reading(portions, by_shape_keys())
    bpy.ops.object.mode_set(mode="EDIT")
    with pytest.raises(portions.errors.SprigError, match="Body is in Edit Mode; switch to Object Mode"):
        finish(steps)
    bpy.ops.object.mode_set(mode="OBJECT")
    assert scene_state() == before


@pytest.mark.parametrize("victim", ["armature", "source", "skin"])
def test_something_is_deleted_while_the_rig_is_written(portions, victim):
    body = by_shape_keys()
    select(body)
    steps = portions.auto_rig.steps(bpy.context, threading.Event(), 0.05)
    for step in steps:
        if step.text == "Writing the skin weights":
            break
    (armature,) = (thing for thing in bpy.data.objects if thing.type == "ARMATURE")
    (skin,) = armature.children
    bpy.data.objects.remove({"armature": armature, "source": body, "skin": skin}[victim])
    with pytest.raises(portions.errors.SprigError, match="Something was deleted while the rig was written; undo that"):
        finish(steps)
    assert [thing.name for thing in bpy.data.objects] == ([] if victim == "source" else ["Body"])
    assert not bpy.data.collections


def test_an_undo_ends_what_holds_on_to_the_scene(portions):
    steps, before = reading(portions, by_shape_keys())
    activity = portions.jobs.Activity("Preview")
    activity.abandon = steps.close
    portions.jobs._running.append(activity)
    try:
        activity.go_on(portions.jobs.Step(0.5, "Fitting bones"))  # holds on to nothing
        portions.jobs._before_undo()
        assert scene_state() != before
        activity.go_on(portions.jobs.Step(0.1, "Reading frame 3", exclusive=True))
        assert portions.jobs._before_undo in bpy.app.handlers.undo_pre
        portions.jobs._before_undo()
        assert scene_state() == before
        assert portions.problems.last().sentence == "Preview ended because of an undo; run it again."
    finally:
        portions.jobs._running.clear()
