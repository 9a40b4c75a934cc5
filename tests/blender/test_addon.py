"""The add-on as Blender sees it: enabling and disabling, descriptions, preferences, installing through the operator."""

import importlib
import sys
from pathlib import Path

import bpy
import pytest

from sprig.sprig_blender.pinned_wheels import PINNED

from ..small_wheels import make_wheel


def registered() -> dict:
    """Everything that enabling an add-on may add to Blender and to Python."""
    menus = (bpy.types.VIEW3D_MT_object_animation, bpy.types.TOPBAR_MT_file_import, bpy.types.TOPBAR_MT_file_export)
    entries = [getattr(menu.draw, "_draw_funcs", []) for menu in menus]  # Blender's own entry is one of them
    return {
        "types": [name for name in dir(bpy.types) if name.startswith("SPRIG_")],
        "operators": [name for name in dir(bpy.ops.sprig)],
        "properties": [hasattr(owner, "sprig") for owner in (bpy.types.Scene, bpy.types.Object)],
        "menus": [[entry.__name__ for entry in menu if "sprig" in entry.__module__] for menu in entries],
        "presets": [folder for folder in bpy.utils.preset_paths("sprig") if "sprig_blender" in folder],
        "handlers": {
            name: list(handlers)
            for name in dir(bpy.app.handlers)
            if isinstance(handlers := getattr(bpy.app.handlers, name), list)
        },
        "path": list(sys.path),
        "enabled": sorted(bpy.context.preferences.addons.keys()),
    }


def test_disabling_leaves_nothing_behind(repository):
    name = f"bl_ext.{repository}.sprig"
    seen = [registered()]
    for _ in range(2):
        bpy.ops.preferences.addon_enable(module=name)
        seen.append(registered())
        assert bpy.ops.sprig.auto_rig_sequence.get_rna_type().name == "Auto-Rig Sequence"
        bpy.ops.preferences.addon_disable(module=name)
        seen.append(registered())
    without, enabled, again_without, enabled_again, at_last = seen
    assert without == again_without == at_last
    assert enabled == enabled_again != without
    assert enabled["types"] and enabled["presets"] and all((*enabled["menus"], *enabled["properties"]))
    assert not (without["types"] or without["presets"] or any((*without["menus"], *without["properties"])))


def test_everything_shown_is_described(extension):
    """Tooltips of every setting, every operator and every choice."""
    operators = [getattr(bpy.ops.sprig, name).get_rna_type() for name in dir(bpy.ops.sprig)]
    assert len(operators) >= 8
    for operator in operators:
        assert len(operator.description) > 5 and not operator.description.endswith("."), operator.identifier
    thing = bpy.data.objects.new("Thing", None)
    preferences = bpy.context.preferences.addons[extension.__name__].preferences
    groups = [type(group) for group in (bpy.context.scene.sprig, thing.sprig, preferences)]
    settings = [group.bl_rna.properties[name] for group in groups for name in group.__annotations__]
    settings += [
        setting for operator in operators for setting in operator.properties if setting.identifier != "rna_type"
    ]
    assert len(settings) > 20
    for setting in settings:
        assert len(setting.description) > 5 and not setting.description.endswith("."), setting.identifier
        if setting.type == "ENUM":
            assert all(choice.description for choice in setting.enum_items), setting.identifier


def test_the_preferences_belong_to_the_root_package(extension):
    preferences = bpy.context.preferences.addons[extension.__name__].preferences
    assert preferences.device == "auto"
    preferences.device = "cpu"
    auto_rig = importlib.import_module(f"{extension.__name__}.sprig_blender.auto_rig")
    assert auto_rig.rig_choices(bpy.context)["device"] == "cpu"


def test_existing_folder_of_libraries(extension, tmp_path):
    preferences = bpy.context.preferences.addons[extension.__name__].preferences
    before = list(sys.path)
    preferences.libraries_folder = str(tmp_path)
    assert sys.path == [*before, str(tmp_path)]
    preferences.libraries_folder = ""
    assert sys.path == before


@pytest.fixture(scope="module")
def all_wheels(tmp_path_factory):
    """A folder with an empty stand-in, of the pinned version, for everything that is installed."""
    folder = tmp_path_factory.mktemp("wheels")
    for wheel in PINNED:
        make_wheel(folder, wheel.project, wheel.version)
    return folder


def test_installing_and_removing(extension, all_wheels):
    dependencies = importlib.import_module(f"{extension.__name__}.sprig_blender.dependencies")
    folder, before = dependencies.own_folder(), list(sys.path)
    assert Path(bpy.utils.extension_path_user(extension.__name__)) in folder.parents
    assert not bpy.ops.sprig.uninstall_backend.poll()
    assert bpy.ops.sprig.install_backend(wheel_folder=str(all_wheels)) == {"FINISHED"}
    assert all((folder / f"{wheel.module}.py").is_file() for wheel in PINNED)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert sys.path == [*before, str(folder)]  # last, so that what Blender brings comes first

    # Enabled again, the add-on finds its installation without importing anything.
    bpy.ops.preferences.addon_disable(module=extension.__name__)
    assert sys.path == before and folder.is_dir()
    bpy.ops.preferences.addon_enable(module=extension.__name__)
    assert sys.path == [*before, str(folder)]

    # Another kind of device: its folder replaces the other.
    preferences = bpy.context.preferences.addons[extension.__name__].preferences
    preferences.build = "CUDA"
    assert bpy.ops.sprig.install_backend(wheel_folder=str(all_wheels)) == {"FINISHED"}
    assert dependencies.own_folder().name == folder.name.replace("cpu", "cuda")
    assert [path.name for path in folder.parent.iterdir()] == [dependencies.own_folder().name]
    assert sys.path == [*before, str(dependencies.own_folder())]
    preferences.build = "CPU"

    assert bpy.ops.sprig.uninstall_backend() == {"FINISHED"}
    assert sys.path == before and list(folder.parent.iterdir()) == []


def test_removal_is_finished_at_the_next_start(extension):
    """Where a library is in use (Windows), its folder is only marked, and goes when the add-on is enabled again."""
    dependencies = importlib.import_module(f"{extension.__name__}.sprig_blender.dependencies")
    folder = dependencies.own_folder()
    folder.mkdir(parents=True)
    folder.with_suffix(".remove").touch()
    assert not dependencies.is_installed()
    bpy.ops.preferences.addon_disable(module=extension.__name__)
    bpy.ops.preferences.addon_enable(module=extension.__name__)
    assert list(folder.parent.iterdir()) == [] and str(folder) not in sys.path


def test_refused_installations(extension, tmp_path, all_wheels):
    with pytest.raises(RuntimeError, match=r"There is no folder .*missing; choose the one that holds the wheels"):
        bpy.ops.sprig.install_backend(wheel_folder=str(tmp_path / "missing"))
    with pytest.raises(RuntimeError, match=r"could not be installed from .*; nothing was kept"):
        bpy.ops.sprig.install_backend(wheel_folder=str(tmp_path))
    assert not bpy.app.online_access
    with pytest.raises(RuntimeError, match="allow Online Access in Preferences"):
        bpy.ops.sprig.install_backend()
    dependencies = importlib.import_module(f"{extension.__name__}.sprig_blender.dependencies")
    assert not dependencies.own_folder().exists()
