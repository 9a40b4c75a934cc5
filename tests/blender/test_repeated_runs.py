"""Runs again and again, cancelled, previewed and applied: nothing may be left over. tests/window has the long version.

Between them the file is opened again while a preview is shown, and the add-on is disabled and enabled.
"""

import tempfile
import threading

import bpy
import pytest

from .leftovers import difference, left_over
from .test_operator import addon_of, by_shape_keys, select

ROUNDS = 2  # of four runs each; the first one loads what is loaded only once


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """Python's folder of temporary files, empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.mark.slow
def test_nothing_is_left_over(extension, tmp_path, temporary):
    saved = str(tmp_path / "body.blend")
    addon_of(extension)  # its settings for a small and quick rig
    bpy.context.scene.sprig.skeleton = "motion"
    select(by_shape_keys())
    bpy.ops.wm.save_as_mainfile(filepath=saved)

    def now():
        assert bpy.ops.sprig.preview.poll()  # keeps what it has found
        return left_over(extension.__name__)

    def opened():
        bpy.ops.wm.open_mainfile(filepath=saved)
        return now()

    for _ in range(ROUNDS):
        addon = addon_of(extension, "auto_rig", "preview")
        before = opened()
        cancel = threading.Event()
        with pytest.raises(addon.errors.Cancelled):
            for step in addon.auto_rig.steps(bpy.context, cancel, 0.01):
                if step.fraction > addon.auto_rig.READ:
                    cancel.set()
        cancelled = now()

        assert bpy.ops.sprig.preview() == {"FINISHED"}
        shown = now()
        assert bpy.ops.sprig.apply_preview() == {"FINISHED"}
        applied = now()
        select(bpy.data.objects["Body"])
        assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
        replaced = now()

        select(bpy.data.objects["Body"])
        assert bpy.ops.sprig.preview() == {"FINISHED"}
        left_open = opened()
        bpy.ops.preferences.addon_disable(module=extension.__name__)
        bpy.ops.preferences.addon_enable(module=extension.__name__)
        enabled_again = opened()
    assert difference(before, cancelled) == {}
    assert difference(applied, replaced) == {}
    assert difference(before, left_open) == {}
    assert difference(before, enabled_again) == {}
    name = f"{extension.__name__}.sprig_blender.preview"  # that this is seen at all
    assert {f"references: {name}._draw", f"instances: {name}.Preview"} <= difference(before, shown).keys()
