"""Build the extension zip with Blender's own builder, which the bpy wheel carries and which runs without Blender.

python tools/build_zip.py [FOLDER]        writes FOLDER/sprig-VERSION.zip (dist/ by default) and prints its path
"""

import importlib.util
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def blender_extension_tool() -> Path:
    """The command line tool for extensions inside the installed bpy wheel, found without importing bpy (a second)."""
    spec = importlib.util.find_spec("bpy")
    found = sorted(Path(spec.origin).parent.glob("*/scripts/addons_core/bl_pkg/cli/blender_ext.py")) if spec else []
    if not found:
        raise SystemExit("build_zip.py: the bpy wheel is not installed; run `pip install -e .[bpy,dev]`")
    return found[-1]


def build_zip(folder: Path) -> Path:
    """Validate the manifest, pack the checkout as its [build] table says, and return the path of the zip."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-I", str(blender_extension_tool()), "build"]
    done = subprocess.run(
        [*command, "--source-dir", str(ROOT), "--output-dir", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"build_zip.py: Blender's builder refused the extension:\n{done.stdout}{done.stderr}")
    manifest = tomllib.loads((ROOT / "blender_manifest.toml").read_text(encoding="utf-8"))
    return folder / f"{manifest['id']}-{manifest['version']}.zip"


if __name__ == "__main__":
    print(build_zip(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist"))
