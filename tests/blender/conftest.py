"""Blender for tests: the bpy wheel in this process, without the user's settings, and an empty scene for every test.

The user's folder has to be chosen before bpy is imported, so it happens while this file is loaded. Where the bpy wheel
is missing every test of this folder is skipped, saying so.
"""

import os
import tempfile

import pytest

_user_folder = tempfile.TemporaryDirectory(prefix="sprig-test-blender-")  # removed when the process ends
os.environ["BLENDER_USER_RESOURCES"] = _user_folder.name

bpy = pytest.importorskip("bpy", reason="the bpy wheel is not installed: pip install bpy")


@pytest.fixture(autouse=True)
def empty_scene():
    """Start from the factory's scene without objects; enabled add-ons and preferences stay as they are."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    return bpy.context.scene
