"""Blender for tests: the bpy wheel in this process, without the user's settings, and an empty scene for every test.

The user's folder has to be chosen before bpy is imported, so it happens while this file is loaded. Where the bpy wheel
is missing every test of this folder is skipped, saying so.
"""

import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

_user_folder = tempfile.TemporaryDirectory(prefix="sprig-test-blender-")  # removed when the process ends
os.environ["BLENDER_USER_RESOURCES"] = _user_folder.name

bpy = pytest.importorskip("bpy", reason="the bpy wheel is not installed: pip install bpy")


_exit_status = []


def pytest_sessionfinish(exitstatus):
    _exit_status.append(int(exitstatus))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure():
    """End the process as the command line does: with torch loaded and a glTF file written, bpy's tear-down hangs."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    _user_folder.cleanup()
    shutil.rmtree(bpy.app.tempdir, ignore_errors=True)
    os._exit(_exit_status[-1])


@pytest.fixture(autouse=True)
def empty_scene():
    """Start from the factory's scene without objects; enabled add-ons and preferences stay as they are."""
    bpy.ops.wm.read_homefile(use_empty=True, use_factory_startup=True)
    return bpy.context.scene


@pytest.fixture(scope="session")
def repository(tmp_path_factory):
    """A local extension repository whose only content is a link to this checkout."""
    folder = tmp_path_factory.mktemp("extensions")
    (folder / "sprig").symlink_to(Path(__file__).resolve().parents[2], target_is_directory=True)
    repositories = bpy.context.preferences.extensions.repos
    yield repositories.new(name="SPRig checkout", module="sprig_checkout", custom_directory=str(folder)).module


@pytest.fixture
def extension(repository):
    """The checkout enabled as an extension; the value is its module, `bl_ext.sprig_checkout.sprig`."""
    name = f"bl_ext.{repository}.sprig"
    bpy.ops.preferences.addon_enable(module=name)
    yield importlib.import_module(name)
    bpy.ops.preferences.addon_disable(module=name)
