"""What is shipped: the listing of the extension zip and of the wheel, and that the wheel works by itself.

An editable install hides a forgotten package and a stray file alike, so both listings are compared with the checkout.
"""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
IN_THE_ZIP = {
    "CHANGELOG.md",
    "LICENSE",
    "README.md",
    "__init__.py",
    "backend",
    "blender_manifest.toml",
    "examples",
    "sprig_blender",
    "weights",
}
IN_THE_WHEEL = {"__init__.py", "backend", "blender_manifest.toml", "examples", "sprig_blender", "training", "weights"}
PACKAGES_STAY_BELOW = 20_000_000  # bytes: an upload limit of extension platforms, and nothing big belongs in there


def read_toml(name: str) -> dict:
    return tomllib.loads((ROOT / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def checkout() -> set[str]:
    """Paths of all files that belong to the project: known to git, or new and not ignored."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip("not a git checkout: nothing to compare the listings with")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()}


def top_levels(names) -> set[str]:
    return {PurePosixPath(name).parts[0] for name in names}


def test_versions_agree():
    version = read_toml("pyproject.toml")["project"]["version"]
    assert read_toml("blender_manifest.toml")["version"] == version
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_package_is_listed(checkout):
    folders = {PurePosixPath(name).parent for name in checkout if PurePosixPath(name).name == "__init__.py"}
    shipped = {folder for folder in folders if not folder.parts or folder.parts[0] in IN_THE_WHEEL}
    packages = {".".join(("sprig", *folder.parts)) for folder in shipped}
    assert set(read_toml("pyproject.toml")["tool"]["setuptools"]["packages"]) == packages


def test_zip_holds_what_we_ship(checkout, extension_zip):
    assert extension_zip.name == f"sprig-{read_toml('blender_manifest.toml')['version']}.zip"
    with zipfile.ZipFile(extension_zip) as archive:
        names = archive.namelist()
    expected = {name for name in checkout if PurePosixPath(name).parts[0] in IN_THE_ZIP}
    assert sorted(names) == sorted(expected)
    assert top_levels(names) >= IN_THE_ZIP & top_levels(checkout)
    assert extension_zip.stat().st_size < PACKAGES_STAY_BELOW


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory) -> Path:
    """The wheel, built from a copy: setuptools leaves its intermediate files in the tree that it builds."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in checkout:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-build-isolation", "--no-deps", "--no-index", "-w", out]
    done = subprocess.run([*map(str, command), str(source)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = out.glob("*.whl")
    return path


def test_wheel_holds_what_we_ship(checkout, wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    python = {name for name in checkout if name.endswith(".py") and PurePosixPath(name).parts[0] in IN_THE_WHEEL}
    data = {name for name in checkout if name.startswith(("examples/", "weights/"))}
    data |= {name for name in checkout if name.startswith("training/") and name.endswith(".txt")}
    assert names == {f"sprig/{name}" for name in python | data | {"blender_manifest.toml"}}
    assert wheel.stat().st_size < PACKAGES_STAY_BELOW


def test_wheel_works_by_itself(wheel, tmp_path):
    """Run the command line from the unpacked wheel, on the example in it, away from the checkout."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import sprig; "
        "assert Path(sprig.__file__).is_relative_to(sys.argv[1]), sprig.__file__; "
        "from sprig.sprig_blender.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    example = tmp_path / "sprig" / "examples" / "elephant_walk.abc"
    command = [sys.executable, "-I", "-c", program, str(tmp_path), "inspect", str(example)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "1017" in done.stdout.replace(",", "")
