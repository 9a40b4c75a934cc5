"""Build the extension zip with Blender's own builder, which the bpy wheel carries and which runs without Blender.

python tools/build_zip.py [FOLDER]           writes FOLDER/sprig-VERSION.zip (dist/ by default) and prints its path
python tools/build_zip.py [FOLDER] --full    writes FOLDER/sprig-VERSION-MACHINE.zip for every machine that has pinned
                                             wheels, with these wheels in it, for studios without a network

--wheels FOLDER      takes the wheels from there; else pip downloads them. Only files with a pinned hash get in
--machine MACHINE    only this one, such as windows-cp311 (system and Python); may be repeated

Of one project Blender unpacks one wheel, the one of the highest name, so a zip is for one Python. What it unpacks comes
before Blender's own libraries for every add-on; numpy is none of the pinned wheels and stays Blender's.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
import tomllib
import zipfile
from pathlib import Path

from sprig.sprig_blender.pinned_wheels import PINNED, indexes, requirements

ROOT = Path(__file__).resolve().parent.parent
MANIFEST = "blender_manifest.toml"
PLATFORMS = {"linux": "linux-x64", "windows": "windows-x64", "macos": "macos-arm64"}  # in Blender's words
BLENDERS = {"cp311": ("4.2.0", "5.1.0"), "cp313": ("5.1.0", None)}  # with that Python: first one, first one without
TAGS = {  # of wheels, as pip wants to be told for another machine than its own
    "linux": ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64"),
    "windows": ("win_amd64",),
    "macos": ("macosx_14_0_arm64",),
}


def blender_extension_tool() -> Path:
    """The command line tool for extensions inside the installed bpy wheel, found without importing bpy (a second)."""
    spec = importlib.util.find_spec("bpy")
    found = sorted(Path(spec.origin).parent.glob("*/scripts/addons_core/bl_pkg/cli/blender_ext.py")) if spec else []
    if not found:
        raise SystemExit("build_zip.py: the bpy wheel is not installed; run `pip install -e .[bpy,dev]`")
    return found[-1]


def build(source: Path, target: Path) -> Path:
    """Validate the manifest in `source`, pack that folder as its [build] table says, and return the path of the zip."""
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-I", str(blender_extension_tool()), "build"]
    command += ["--source-dir", str(source), "--output-filepath", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"build_zip.py: Blender's builder refused the extension:\n{done.stdout}{done.stderr}")
    return target


def build_zip(folder: Path) -> Path:
    """The extension without libraries, as most people install it."""
    manifest = tomllib.loads((ROOT / MANIFEST).read_text(encoding="utf-8"))
    return build(ROOT, folder / f"{manifest['id']}-{manifest['version']}.zip")


def build_full_zip(folder: Path, machine: str, wheels: list[Path]) -> Path:
    """The extension with its libraries for one machine."""
    with tempfile.TemporaryDirectory(prefix="sprig-zip-") as scratch:
        plain, source = build_zip(Path(scratch)), Path(scratch) / "source"
        with zipfile.ZipFile(plain) as archive:
            archive.extractall(source)
        (source / "wheels").mkdir()
        for wheel in wheels:
            shutil.copy(wheel, source / "wheels")
        manifest = source / MANIFEST
        text = with_wheels(manifest.read_text(encoding="utf-8"), machine, [wheel.name for wheel in wheels])
        manifest.write_text(text, encoding="utf-8")
        return build(source, folder / f"{plain.stem}-{machine}.zip")


def with_wheels(manifest: str, machine: str, names: list[str]) -> str:
    """The manifest's text for the zip with these wheels: they, the platform and the Blenders with that Python."""
    system, python = machine.split("-")
    first, first_without = BLENDERS[python]
    settings = {"blender_version_min": first, "platforms": [PLATFORMS[system]]}
    settings |= {"blender_version_max": first_without} if first_without else {}
    settings |= {"wheels": [f"./wheels/{name}" for name in names]}
    top, tables = manifest.split("\n[", maxsplit=1)
    kept = [line for line in top.splitlines() if line.partition(" = ")[0] not in settings]
    added = [f"{key} = {json.dumps(value)}" for key, value in settings.items()]  # JSON's texts and lists are TOML's too
    return "\n".join([*kept, *added, "", f"[{tables}"])


# ---- wheels


def download(folder: Path, machine: str, pins=PINNED) -> None:
    """Let pip fetch the wheels of a machine, which need not be this one, and check their hashes."""
    system, python = machine.split("-")
    pins_file = folder / f"{machine}.txt"
    pins_file.write_text(requirements(pins, machine), encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--requirement", str(pins_file), "--dest", str(folder)]
    command += ["--require-hashes", "--no-deps", "--only-binary=:all:", "--disable-pip-version-check"]
    command += ["--implementation", "cp", "--python-version", f"{python[2]}.{python[3:]}"]
    for tag in TAGS[system]:
        command += ["--platform", tag]
    for index in indexes(pins, machine):
        command += ["--extra-index-url", index]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise SystemExit(f"build_zip.py: pip could not download the wheels for {machine}")


def wheels_by_hash(folder: Path) -> dict[str, Path]:
    """Every wheel in a folder by its sha256."""
    found = {}
    for path in sorted(folder.glob("*.whl")):
        with path.open("rb") as file:
            found[hashlib.file_digest(file, "sha256").hexdigest()] = path
    return found


def choose_wheels(folder: Path, machines: list[str] | None, pins=PINNED) -> dict[str, list[Path]]:
    """The wheels of every machine; without `machines`, of those whose torch is there. Refuses what is not pinned."""
    found = wheels_by_hash(folder)
    known = {digest for wheel in pins for digest in wheel.sha256.values()}
    strangers = [path.name for digest, path in found.items() if digest not in known]
    if strangers:
        raise SystemExit(
            f"build_zip.py: {strangers[0]} does not have the hash of a pinned wheel; take it out of {folder}"
        )
    torch = pins[0]
    machines = machines or [machine for machine in torch.sha256 if torch.hash_for(machine) in found]
    if not machines:
        raise SystemExit(f"build_zip.py: {folder} holds no pinned wheel of {torch.project}")
    chosen = {}
    for machine in machines:
        missing = [wheel.project for wheel in pins if wheel.hash_for(machine) not in found]
        if missing:
            raise SystemExit(f"build_zip.py: {folder} lacks the pinned wheel of {', '.join(missing)} for {machine}")
        chosen[machine] = [found[wheel.hash_for(machine)] for wheel in pins]
    return chosen


def build_full_zips(folder: Path, wheel_folder: Path | None, machines: list[str] | None, pins=PINNED) -> list[Path]:
    """One zip for every machine."""
    unknown = set(machines or ()) - set(pins[0].sha256)
    if unknown:
        raise SystemExit(
            f"build_zip.py: no wheels are pinned for {unknown.pop()}; choose from {', '.join(pins[0].sha256)}"
        )
    with tempfile.TemporaryDirectory(prefix="sprig-wheels-") as scratch:
        if wheel_folder is None:
            wheel_folder = Path(scratch)
            for machine in machines or pins[0].sha256:
                download(wheel_folder, machine, pins)
        chosen = choose_wheels(wheel_folder, machines, pins)
        return [build_full_zip(folder, machine, wheels) for machine, wheels in chosen.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the extension zip.")
    parser.add_argument("folder", nargs="?", type=Path, default=ROOT / "dist")
    parser.add_argument("--full", action="store_true", help="with the pinned wheels, one zip for every machine")
    parser.add_argument("--wheels", type=Path, help="folder of downloaded wheels")
    parser.add_argument("--machine", action="append", help="only this machine, such as windows-cp311")
    options = parser.parse_args()
    if options.wheels and not options.wheels.is_dir():
        parser.error(f"there is no folder {options.wheels}")
    if options.full:
        print(*build_full_zips(options.folder, options.wheels, options.machine), sep=os.linesep)
    else:
        print(build_zip(options.folder))


if __name__ == "__main__":
    main()
