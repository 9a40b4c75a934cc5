"""The built zip, installed into a clean Blender in a new process: what a user gets, and nothing else.

The process sees the wheels of this environment but not its `.pth` files, so the editable install of the checkout is
not there: an absolute import inside the package fails here, and only here.
"""

import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from sprig.sprig_blender.pinned_wheels import PINNED, Wheel, this_machine

from ..small_wheels import make_wheel

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

# In Blender the extension rigs in a separate process where torch does not load, from the button to the armature.
RIGGING = """
import importlib.util, json, sys
from importlib.abc import Loader, MetaPathFinder

site_packages, archive = sys.argv[1:3]
sys.path.append(site_packages)
import bpy, numpy as np

class Unloadable(MetaPathFinder, Loader):
    origin = importlib.util.find_spec("torch").origin
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            return importlib.util.spec_from_file_location(name, self.origin, loader=self)
    def create_module(self, spec):
        return None
    def exec_module(self, module):
        raise OSError("[WinError 1114]")

sys.meta_path.insert(0, Unloadable())
bpy.ops.extensions.package_install_files(
    repo="user_default", filepath=archive, enable_on_install=True, overwrite=True
)
bpy.ops.mesh.primitive_cylinder_add(vertices=12, depth=2)
body = bpy.context.object
bpy.ops.object.mode_set(mode="EDIT")
bpy.ops.mesh.subdivide(number_cuts=6)
bpy.ops.object.mode_set(mode="OBJECT")
body.shape_key_add(name="Basis")
body.shape_key_add(name="Bent")
shape = np.array([vertex.co for vertex in body.data.vertices])
above = shape[:, 2] > 0
shape[above] = shape[above][:, [0, 2, 1]] * [1, 1, -1]
body.data.shape_keys.key_blocks[1].data.foreach_set("co", shape.ravel())
for frame, value in ((1, 0), (4, 1)):
    body.data.shape_keys.key_blocks[1].value = value
    body.data.shape_keys.key_blocks[1].keyframe_insert("value", frame=frame)
scene = bpy.context.scene
scene.frame_start, scene.frame_end = 1, 4
scene.sprig.skeleton, scene.sprig.joints_mode, scene.sprig.joints = "motion", "NUMBER", 2
assert bpy.ops.sprig.auto_rig_sequence() == {"FINISHED"}
found = {"bones": len(bpy.context.object.data.bones), "torch": [n for n in sys.modules if n.startswith("torch")]}
print("FOUND " + json.dumps(found))
"""

# The zip that brings wheels along, in the session that installs it and in the next one.
WITH_WHEELS = """
import importlib, importlib.util, json, pathlib, sys

site_packages, archive = sys.argv[1:3]
sys.path.append(site_packages)
import bpy
if not pathlib.Path(bpy.utils.user_resource("EXTENSIONS"), "user_default", "sprig").exists():
    bpy.ops.extensions.package_install_files(
        repo="user_default", filepath=archive, enable_on_install=False, overwrite=True
    )
bpy.ops.preferences.addon_enable(module=MODULE)
dependencies = importlib.import_module(MODULE + ".sprig_blender.dependencies")
found = {
    "libraries": [(library.name, library.state.value, library.detail) for library in dependencies.libraries()],
    "torch": importlib.util.find_spec("torch").origin,
    "numpy": importlib.util.find_spec("numpy").origin,
    "came": dependencies.came_with_extension(),
    "installed": dependencies.is_installed(),
    "install": bpy.ops.sprig.install_backend.poll(),
}
dependencies.will_not_load("torch", "no reason")
found["remedy"] = dependencies.what_to_do()
print("FOUND " + json.dumps(found))
""".replace("MODULE", repr(MODULE))


def found_in_blender(script: str, archive: Path, folder: Path, site_packages: str | None = None) -> dict:
    """What a script found out in a Blender that has nothing but the wheels of this environment, or another folder."""
    site_packages = site_packages or sysconfig.get_path("platlib")
    (folder / "user").mkdir(exist_ok=True)
    environment = {**os.environ, "BLENDER_USER_RESOURCES": str(folder / "user")}
    command = [sys.executable, "-I", "-S", "-c", script, site_packages, str(archive)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND "))
    return json.loads(line.removeprefix("FOUND "))


@pytest.fixture(scope="module")
def installed(extension_zip, tmp_path_factory) -> dict:
    """What the child process found out about the installed extension."""
    return found_in_blender(IN_BLENDER, extension_zip, tmp_path_factory.mktemp("extension"))


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
        if (path.parent / "__init__.py").exists()  # presets are files for Blender to run
    }
    assert set(installed["modules"]) == shipped
    assert installed["torch_after"]


def test_disabling_removes_everything(installed):
    assert installed["before"] == installed["after"] == []
    assert installed["types"] != []


def test_rigs_where_torch_does_not_load_in_blender(extension_zip, tmp_path):
    found = found_in_blender(RIGGING, extension_zip, tmp_path)
    assert found == {"bones": 2, "torch": []}


# ---- make zip-full


@pytest.fixture(scope="module")
def tool():
    """tools/build_zip.py, which belongs to no package."""
    spec = importlib.util.spec_from_file_location("build_zip", ROOT / "tools" / "build_zip.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def wheels(tmp_path):
    """A folder with stand-ins for torch, of two machines, and scipy, of any; and their pins."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    torch = make_wheel(folder, "torch", "2.13.0").sha256["any"]
    elsewhere = "windows-cp313" if this_machine() != "windows-cp313" else "windows-cp311"
    scipy = make_wheel(folder, "scipy", "1.17.1")
    return folder, (Wheel("torch", "2.13.0", "torch", 1, {this_machine(): torch, elsewhere: "0" * 64}), scipy)


def test_full_zip_brings_its_libraries(tool, wheels, tmp_path):
    folder, pins = wheels
    (archive,) = tool.build_full_zips(tmp_path / "dist", folder, None, pins)
    with zipfile.ZipFile(archive) as file:
        manifest = tomllib.loads(file.read("blender_manifest.toml").decode())
        names = {name for name in file.namelist() if name.startswith("wheels/")}
    assert archive.name == f"sprig-{manifest['version']}-{this_machine()}.zip"
    assert names == {name.removeprefix("./") for name in manifest["wheels"]} and len(names) == 2
    assert len(manifest["platforms"]) == 1 and manifest["permissions"]["files"]
    assert list((tmp_path / "dist").iterdir()) == [archive]

    without = tmp_path / "site-packages"  # what Blender has, as links
    without.mkdir()
    for path in Path(sysconfig.get_path("platlib")).iterdir():
        if not path.name.startswith(("torch", "scipy")):
            (without / path.name).symlink_to(path)
    assert found_in_blender(WITH_WHEELS, archive, tmp_path, str(without))["came"]
    found = found_in_blender(WITH_WHEELS, archive, tmp_path, str(without))  # after a restart
    _numpy, torch, scipy, _safetensors = found["libraries"]
    assert (torch, scipy) == (["torch", "Ready", "2.13.0"], ["scipy", "Ready", "1.17.1"])
    assert "user" in Path(found["torch"]).parts and "user" not in Path(found["numpy"]).parts
    assert found["came"] and not found["installed"] and not found["install"]
    assert found["remedy"].endswith("; install the SPRig zip that was made for this system and this Blender")


def test_full_zip_takes_pinned_wheels_only(tool, wheels, tmp_path):
    folder, pins = wheels

    def refusal(machines=None, wheel_folder=folder):
        with pytest.raises(SystemExit) as error:
            tool.build_full_zips(tmp_path / "dist", wheel_folder, machines, pins)
        assert not (tmp_path / "dist").exists()
        return str(error.value)

    (elsewhere,) = set(pins[0].sha256) - {this_machine()}
    assert f"lacks the pinned wheel of torch for {elsewhere}" in refusal([elsewhere])
    assert "no wheels are pinned for abacus" in refusal(["abacus"])
    assert "holds no pinned wheel of torch" in refusal(wheel_folder=tmp_path)
    make_wheel(folder, "numpy")
    assert "numpy-1.0-py3-none-any.whl does not have the hash of a pinned wheel" in refusal()
    (folder / "numpy-1.0-py3-none-any.whl").unlink()
    make_wheel(folder, "scipy", "1.17.1", source="answer = 'changed by somebody else'\n")
    assert "scipy-1.17.1-py3-none-any.whl does not have the hash" in refusal()
    (folder / "scipy-1.17.1-py3-none-any.whl").unlink()
    assert f"lacks the pinned wheel of scipy for {this_machine()}" in refusal()


def test_full_zip_downloads_by_hash(tool, wheels, tmp_path, monkeypatch):
    """pip, directed at a folder instead of the network, fetches the file that is pinned and no other."""
    source, pins = wheels
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(source))
    target = tmp_path / "downloaded"
    target.mkdir()
    tool.download(target, this_machine(), pins)
    assert {path.name for path in target.glob("*.whl")} == {path.name for path in source.iterdir()}
    make_wheel(source, "scipy", "1.17.1", source="answer = 'changed by somebody else'\n")
    with pytest.raises(SystemExit, match="pip could not download"):
        tool.download(tmp_path, this_machine(), pins)


def test_manifest_of_every_full_zip(tool):
    """Every machine of the pins has its platform, its Blenders and its tags."""
    text = (ROOT / "blender_manifest.toml").read_text(encoding="utf-8")
    plain = tomllib.loads(text)
    versions = {}
    for machine in PINNED[0].sha256:
        manifest = tomllib.loads(tool.with_wheels(text, machine, ["a+b-1-py3-none-any.whl"]))
        assert manifest.pop("wheels") == ["./wheels/a+b-1-py3-none-any.whl"]
        assert manifest.pop("platforms")[0].startswith(machine.partition("-")[0])
        versions[machine.partition("-")[2]] = (
            manifest.pop("blender_version_min"),
            manifest.pop("blender_version_max", ""),
        )
        assert manifest == {key: value for key, value in plain.items() if key != "blender_version_min"}
        assert tool.TAGS[machine.partition("-")[0]]
    assert versions == {"cp311": ("4.2.0", "5.1.0"), "cp313": ("5.1.0", "")}
