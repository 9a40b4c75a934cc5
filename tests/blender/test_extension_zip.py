"""The built zip, installed into a clean Blender in a new process: what a user gets, and nothing else.

The process sees the wheels of this environment but not its `.pth` files, so the editable install of the checkout is
not there: an absolute import inside the package fails here, and only here.
"""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULE = "bl_ext.user_default.sprig"

IN_BLENDER = """
import importlib, importlib.util, json, pkgutil, sys
from importlib.abc import MetaPathFinder

site_packages, archive = sys.argv[1:3]
sys.path.append(site_packages)

class NoTorch(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ModuleNotFoundError("torch is blocked in this test", name=name)

import bpy
found = {"sprig_outside": importlib.util.find_spec("sprig") is not None}
no_torch = NoTorch()
sys.meta_path.insert(0, no_torch)
bpy.ops.extensions.package_install_files(
    repo="user_default", filepath=archive, enable_on_install=False, overwrite=True
)

def sprig_types():
    return sorted(name for name in dir(bpy.types) if name.startswith("SPRIG_"))

found["before"] = sprig_types()
bpy.ops.preferences.addon_enable(module=MODULE)
found["enabled"] = MODULE in bpy.context.preferences.addons
found["operator"] = bpy.ops.sprig.auto_rig_sequence.get_rna_type().identifier
found["types"] = sprig_types()
found["heavy"] = sorted({"torch", "scipy", "trimesh", "alembic3d"} & set(sys.modules))

sys.meta_path.remove(no_torch)
package = sys.modules[MODULE]
found["modules"] = sorted(module.name for module in pkgutil.walk_packages(package.__path__, MODULE + "."))
for name in found["modules"]:
    importlib.import_module(name)
found["outside"] = sorted(
    name for name, module in sys.modules.items()
    if name.startswith(MODULE) and not (module.__file__ or "").startswith(package.__path__[0])
)
found["torch_after"] = "torch" in sys.modules

bpy.ops.preferences.addon_disable(module=MODULE)
found["after"] = sprig_types()
print("FOUND " + json.dumps(found))
""".replace("MODULE", repr(MODULE))


@pytest.fixture(scope="module")
def installed(extension_zip, tmp_path_factory) -> dict:
    """What the child process found out about the installed extension."""
    folder = tmp_path_factory.mktemp("extension")
    (folder / "user").mkdir()
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(folder / "user")}
    command = [sys.executable, "-I", "-S", "-c", IN_BLENDER, sysconfig.get_path("platlib"), str(extension_zip)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


def test_the_checkout_is_not_visible(installed):
    assert not installed["sprig_outside"] and installed["outside"] == []


def test_enables_without_torch(installed):
    assert installed["enabled"] and installed["operator"] == "SPRIG_OT_auto_rig_sequence"
    assert installed["heavy"] == []


def test_every_module_imports_with_torch(installed):
    shipped = {
        ".".join((MODULE, *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(".__init__")
        for layer in ("backend", "sprig_blender")
        for path in (ROOT / layer).rglob("*.py")
    }
    assert set(installed["modules"]) == shipped
    assert installed["torch_after"]


def test_disabling_removes_everything(installed):
    assert installed["before"] == installed["after"] == []
    assert installed["types"] != []
