"""Adjusting joints without a window: a preview becomes bones in Edit Mode, and they become a preview again."""

import bpy
import numpy as np
import pytest

from ..small_networks import small_networks
from .rigs import replayed
from .scene_state import scene_state
from .test_operator import EVALUATED, FRAMES, addon_of, by_shape_keys, select, skins


@pytest.fixture
def addon(extension):
    return addon_of(extension, "adjust", "auto_rig", "call_backend", "preview", "problems", "panel", "read_sequence")


@pytest.fixture
def shown(addon):
    """A preview of a tube with two bones, `Body`."""
    bpy.context.scene.sprig.skeleton = "motion"
    select(by_shape_keys())
    assert bpy.ops.sprig.preview() == {"FINISHED"}
    return addon.preview.current()


def adjusted() -> bpy.types.Object:
    """Press *Adjust Joints*; returns the armature."""
    assert bpy.ops.sprig.adjust() == {"FINISHED"}
    assert bpy.context.mode == "EDIT_ARMATURE"
    return bpy.context.view_layer.objects.active


def joints(rig) -> dict[str, tuple]:
    """Parent, head and tail of every bone of a rig in world space."""
    skeleton, names = rig.skeleton, (*rig.skeleton.names, None)
    ends = zip(skeleton.joints + rig.origin, skeleton.tails + rig.origin, strict=True)
    return {
        name: (names[p], *np.round(head, 4), *np.round(tail, 4))
        for name, p, (head, tail) in zip(skeleton.names, skeleton.parents, ends, strict=True)
    }


# ---- there and back


def test_the_bones_are_those_of_the_preview(addon, shown):
    rig = shown.computed.rig
    armature = adjusted()
    bones = armature.data.edit_bones
    place = np.array(armature.matrix_world)[:3, 3]
    assert [bone.name for bone in bones] == list(rig.skeleton.names) and armature.name == "Body Joints"
    for bone, head, tail in zip(bones, rig.skeleton.joints, rig.skeleton.tails, strict=True):
        np.testing.assert_allclose(place + bone.head, head + rig.origin, atol=1e-6)
        np.testing.assert_allclose(place + bone.tail, tail + rig.origin, atol=1e-6)
    child = bones[int(np.flatnonzero(rig.skeleton.parents == 0)[0])]
    assert child.use_connect and not bones[0].use_connect  # so that moving a joint moves both bones
    assert bpy.context.scene.frame_current == rig.frame_numbers[rig.anchor]
    assert addon.preview.current() is shown
    assert not bpy.ops.sprig.preview.poll() and not bpy.ops.sprig.discard_preview.poll()


def test_refit_without_changes_is_the_same_rig(addon, shown):
    rig = shown.computed.rig
    adjusted()
    assert bpy.ops.sprig.refit() == {"FINISHED"}
    again = addon.preview.current().computed
    assert joints(again.rig) == joints(rig)
    assert again.sequence is shown.computed.sequence and again.rig.rmse < 0.5
    assert again.rig.anchor == rig.anchor


def test_edited_bones_are_fitted_and_written(addon, shown, monkeypatch):
    """One joint moved, one bone added and named, one given another parent; exactly these are in the result."""
    monkeypatch.setattr(addon.auto_rig, "read_frames", None)  # the frames are in memory
    body = bpy.context.view_layer.objects.active
    armature = adjusted()
    bones = armature.data.edit_bones
    root, child = bones
    child.head.z += 0.05
    tip = bones.new("tip")
    tip.head, tip.tail, tip.parent = child.tail.copy(), child.tail + child.vector, child
    bones.new("helper").tail = (0, 0.3, 0.5)
    bones["helper"].head = (0, 0, 0.5)
    bones["helper"].parent = root
    tip.parent = bones["helper"]
    expected = {b.name: (b.parent.name if b.parent else None, *np.round([*b.head, *b.tail], 4)) for b in bones}
    assert bpy.ops.sprig.refit() == {"FINISHED"}
    assert bpy.context.mode == "OBJECT" and armature.hide_get()
    rig = addon.preview.current().computed.rig
    assert joints(rig) == expected and rig.rmse < 0.5
    assert rig.provenance["skeleton_source"] == "given"

    assert bpy.ops.sprig.apply_preview() == {"FINISHED"}
    made = bpy.context.view_layer.objects.active
    assert made.name == "Body Rig" and {bone.name for bone in made.data.bones} == set(expected)
    assert made.data.bones["tip"].parent.name == "helper"
    assert addon.preview.current() is None and not [name for name in bpy.data.objects.keys() if "Joints" in name]
    assert not [name for name in bpy.data.collections.keys() if "Joints" in name]
    (skin,) = skins(made)
    body.hide_set(False)
    truth, replay = (replayed(thing, FRAMES) for thing in (body, skin))
    size = np.linalg.norm(np.ptp(truth[0], axis=0))
    errors = 100 / size * np.sqrt(np.square(replay - truth).sum(axis=2).mean(axis=1))
    np.testing.assert_allclose(errors, rig.rmse_per_frame, atol=EVALUATED)


def test_deleted_and_renamed_bones(addon, shown):
    rig = shown.computed.rig
    bones = adjusted().data.edit_bones
    root, child = bones
    bones.remove(child)
    root.name = "all of it"
    assert bpy.ops.sprig.refit() == {"FINISHED"}
    alone = addon.preview.current().computed.rig
    assert alone.skeleton.names == ("all of it",) and (alone.weights == 1).all()
    assert alone.rmse > 10 * rig.rmse  # a tube that bends cannot be one bone


def test_all_bones_deleted(addon, shown):
    armature = adjusted()
    for bone in list(armature.data.edit_bones):
        armature.data.edit_bones.remove(bone)
    with pytest.raises(RuntimeError, match="Body Joints has no bones left; undo that"):
        bpy.ops.sprig.refit()
    assert addon.preview.current() is shown


def test_an_armature_that_was_moved_and_scaled(addon, shown):
    """What counts is where the bones are in the world."""
    before = joints(shown.computed.rig)
    armature = adjusted()
    bpy.ops.object.mode_set(mode="OBJECT")
    for bone_scale in (2.0,):
        armature.scale = (bone_scale,) * 3
    bpy.context.view_layer.update()
    bpy.ops.object.mode_set(mode="EDIT")
    for bone in armature.data.edit_bones:
        bone.use_connect = False
    for bone in armature.data.edit_bones:
        bone.head, bone.tail = bone.head / 2, bone.tail / 2
    assert bpy.ops.sprig.refit() == {"FINISHED"}
    after = joints(addon.preview.current().computed.rig)
    for name, (parent, *places) in before.items():
        assert after[name][0] == parent
        np.testing.assert_allclose(after[name][1:], places, atol=2e-4)


def test_apply_wants_changes_to_be_fitted(addon, shown):
    armature = adjusted()
    armature.data.edit_bones[1].tail.x += 0.1
    bpy.ops.object.mode_set(mode="OBJECT")
    with pytest.raises(RuntimeError, match="The joints were changed after they were fitted; press Refit first"):
        bpy.ops.sprig.apply_preview()
    bpy.ops.sprig.adjust()
    assert bpy.ops.sprig.refit() == {"FINISHED"}
    assert bpy.ops.sprig.apply_preview() == {"FINISHED"}


def test_adjusted_but_not_changed_is_applied_at_once(addon, shown):
    rig = shown.computed.rig
    adjusted()
    bpy.ops.object.mode_set(mode="OBJECT")
    assert bpy.ops.sprig.apply_preview() == {"FINISHED"}
    assert bpy.context.view_layer.objects.active.sprig.rmse == pytest.approx(rig.rmse)


@pytest.mark.parametrize("root_motion", ["hips", "root"])
def test_a_rig_that_was_applied_is_adjusted(addon, root_motion):
    """Its bones and keys are read back; Discard leaves all as it was, Apply replaces it."""
    body, settings = by_shape_keys(), bpy.context.scene.sprig
    select(body)
    settings.skeleton, settings.root_motion = "motion", root_motion
    assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
    made = bpy.context.view_layer.objects.active
    before, names = scene_state(), {bone.name for bone in made.data.bones}
    adjusted()
    rig = addon.preview.current().computed.rig
    assert set(rig.skeleton.names) == names and rig.rmse == pytest.approx(made.sprig.rmse, abs=EVALUATED)
    assert bpy.ops.sprig.discard_adjustment() == {"FINISHED"}
    assert scene_state() == before and addon.preview.current() is None

    bones = adjusted().data.edit_bones
    tip = bones.new("tip")
    tip.parent = next(bone for bone in bones if bone.use_deform and not bone.children)
    tip.head, tip.tail = tip.parent.tail.copy(), tip.parent.tail + tip.parent.vector
    bpy.ops.sprig.refit()
    assert bpy.ops.sprig.apply_preview() == {"FINISHED"}
    made = bpy.context.view_layer.objects.active
    assert {bone.name for bone in made.data.bones} == {*names, "tip"} and made.sprig.rmse < 0.5
    assert [thing.name for thing in bpy.data.objects if thing.type == "ARMATURE"] == ["Body Rig"]


# ---- nothing is left


@pytest.mark.parametrize("how", ["in Edit Mode", "after Refit"])
def test_discard_leaves_the_scene_as_it_was(addon, shown, how):
    other = bpy.data.objects.new("Other", None)
    bpy.context.scene.collection.objects.link(other)
    other.select_set(True)
    before = scene_state()
    armature = adjusted()
    armature.data.edit_bones[1].tail.x += 0.1
    if how == "after Refit":
        assert bpy.ops.sprig.refit() == {"FINISHED"}
        assert addon.preview.current().computed is not shown.computed
        adjusted()
        assert bpy.ops.sprig.refit() == {"FINISHED"}  # twice
    assert bpy.ops.sprig.discard_adjustment() == {"FINISHED"}
    assert scene_state() == before
    assert addon.preview.current().computed is shown.computed
    assert bpy.ops.sprig.discard_preview() == {"FINISHED"}


def test_undo_takes_the_joints_back(addon, shown):
    bpy.context.preferences.edit.use_global_undo = True
    bpy.ops.ed.undo_push(message="Before")
    adjusted()
    bpy.ops.ed.undo_push(message="Adjust Joints")
    assert addon.adjust.armature_of(bpy.context) is not None
    bpy.ops.ed.undo()
    assert addon.adjust.armature_of(bpy.context) is None and bpy.context.mode == "OBJECT"
    assert addon.preview.current() is shown
    assert adjusted().name == "Body Joints"  # and it goes on


def test_a_source_that_was_deleted(addon, shown):
    bpy.data.objects.remove(bpy.data.objects["Body"])
    before = scene_state()
    with pytest.raises(RuntimeError, match="'Body' was deleted after it was previewed"):
        bpy.ops.sprig.adjust()
    assert scene_state() == before


# ---- suggestions, locks, symmetry


def test_a_joint_that_does_nothing_is_merged_as_suggested(addon, shown):
    """A still bone is put between the two; Refit finds it superfluous, and following that gives the two again."""
    armature = adjusted()
    bones = armature.data.edit_bones
    root, child = bones
    middle = bones.new("middle")
    child.use_connect = False
    middle.head, middle.tail, middle.parent = (root.head + root.tail) / 2, root.tail.copy(), root
    root.tail = middle.head
    child.parent = middle
    names = root.name, child.name
    bpy.ops.sprig.refit()
    armature = adjusted()
    merges = [one for one in addon.adjust.offered(armature) if one.kind == "merge"]
    assert [one.bone for one in merges] == ["middle"]
    bpy.ops.sprig.select_suggestion(bone="middle")
    assert [bone.name for bone in armature.data.edit_bones if bone.select] == ["middle"]
    assert bpy.ops.sprig.follow_suggestion(bone="middle", kind="merge") == {"FINISHED"}
    bones = armature.data.edit_bones
    assert {bone.name for bone in bones} == set(names) and bones[names[1]].parent == bones[names[0]]
    assert bones[names[1]].use_connect  # it begins where its new parent ends
    np.testing.assert_allclose(bones[names[0]].tail, bones[names[1]].head, atol=1e-6)
    with pytest.raises(RuntimeError, match="There is no such suggestion for 'middle' any more"):
        bpy.ops.sprig.follow_suggestion(bone="middle", kind="merge")


def test_a_bone_that_bends_is_split_as_suggested(addon, shown):
    good = shown.computed.rig.rmse
    armature = adjusted()
    root, child = armature.data.edit_bones
    joint, name = np.array(child.head), root.name
    armature.data.edit_bones.remove(child)
    bpy.ops.sprig.refit()
    assert addon.preview.current().computed.rig.rmse > 10 * good
    armature = adjusted()
    assert [(one.kind, one.bone) for one in addon.adjust.offered(armature)] == [("split", name)]
    armature.data.edit_bones[name].lock = True
    assert addon.adjust.offered(armature) == []
    armature.data.edit_bones[name].lock = False
    assert bpy.ops.sprig.follow_suggestion(bone=name, kind="split") == {"FINISHED"}
    new = armature.data.edit_bones[f"{name}_end"]
    np.testing.assert_allclose(new.head, joint, atol=0.15)  # of a tube 2 long
    assert addon.adjust.offered(armature) == []  # it was followed
    assert new.parent.name == name and bpy.ops.sprig.refit() == {"FINISHED"}
    assert addon.preview.current().computed.rig.rmse < max(2 * good, 0.5)


def test_locked_joints_keep_their_weights(addon, shown):
    rig = shown.computed.rig
    armature = adjusted()
    root, child = armature.data.edit_bones
    child.lock = True
    root.head.z -= 0.1
    tip = armature.data.edit_bones.new("tip")
    tip.head, tip.tail, tip.parent = (0, 0, 0.3), (0, 0, 0.6), root
    bpy.ops.sprig.refit()
    again = addon.preview.current().computed.rig
    kept = [names.index(rig.skeleton.names[1]) for names in (rig.skeleton.names, again.skeleton.names)]
    np.testing.assert_allclose(again.weights[:, kept[1]], rig.weights[:, kept[0]], atol=1e-5)
    adjusted()
    assert armature.data.edit_bones[rig.skeleton.names[1]].lock  # and it stays locked


def test_joints_are_made_symmetric_and_locked_ones_stay(addon, shown):
    armature = adjusted()
    bones = armature.data.edit_bones
    for name, x in (("hand.L", 0.4), ("hand.R", -0.5)):
        bone = bones.new(name)
        bone.head, bone.tail, bone.parent = (x, 0, 1), (2 * x, 0, 1.02 if x < 0 else 1), bones[0]
    assert bpy.ops.sprig.symmetrise() == {"FINISHED"}
    left, right = bones["hand.L"], bones["hand.R"]
    middle = (left.head.x + right.head.x) / 2
    assert left.head.x - middle == pytest.approx(0.45) and left.tail.z == pytest.approx(right.tail.z, abs=1e-6)
    left.lock, right.tail.z = True, 0.9
    before = tuple(left.head), tuple(left.tail)
    bpy.ops.sprig.symmetrise()
    assert (tuple(left.head), tuple(left.tail)) == before
    assert right.tail.z == pytest.approx(left.tail.z, abs=1e-6)
    bones.remove(bones["hand.R"])
    with pytest.raises(RuntimeError, match="No two bones are called left and right of each other"):
        bpy.ops.sprig.symmetrise()


# ---- the network's own skeletons


def test_raw_network_is_asked_and_kept(addon, shown, tmp_path):
    before = scene_state()
    settings = bpy.context.scene.sprig
    settings.checkpoint_skeleton = small_networks(tmp_path)["checkpoint_skeleton"]
    assert bpy.ops.sprig.show_raw_network() == {"FINISHED"}
    raw = shown.overlay.raw
    assert list(raw.frames) == list(range(len(FRAMES)))
    assert [len(joints) for joints in raw.joints] == [len(parents) for parents in raw.parents]
    assert scene_state() == before and settings.preview_raw
    heads = shown.overlay.heads
    steps = np.linalg.norm(heads[1:] - heads[:-1], axis=2).mean()
    assert raw.rig_shift == pytest.approx(100 * steps / shown.overlay.diagonal)
    adjusted()
    bpy.ops.sprig.refit()
    assert addon.preview.current().overlay.raw is raw  # the sequence is the same
    bpy.ops.sprig.discard_adjustment()
    assert addon.preview.current().overlay.raw is raw


def test_raw_network_that_is_missing(addon, shown, tmp_path):
    bpy.context.scene.sprig.checkpoint_skeleton = str(tmp_path / "none.safetensors")
    with pytest.raises(RuntimeError, match=r"none\.safetensors"):
        bpy.ops.sprig.show_raw_network()
    assert shown.overlay.raw is None
