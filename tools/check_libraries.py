"""Say which system libraries the bpy wheel misses, and the one command that installs them. Does nothing off Linux.

bpy links to the X11 and OpenGL libraries even when it never opens a window, and a slim image does not have them;
`import bpy` would then fail with the name of one file only. EGL is loaded later, for pictures.
"""

import ctypes
import importlib.util
import subprocess
import sys
from pathlib import Path

PACKAGES = {  # shared library: Debian or Ubuntu package
    "libEGL.so.1": "libegl1",
    "libGL.so.1": "libgl1",
    "libICE.so.6": "libice6",
    "libSM.so.6": "libsm6",
    "libX11.so.6": "libx11-6",
    "libXext.so.6": "libxext6",
    "libXfixes.so.3": "libxfixes3",
    "libXi.so.6": "libxi6",
    "libXrender.so.1": "libxrender1",
    "libXxf86vm.so.1": "libxxf86vm1",
    "libxkbcommon.so.0": "libxkbcommon0",
}


def missing_libraries() -> list[str]:
    """File names of the libraries that bpy needs and the loader cannot find."""
    spec = importlib.util.find_spec("bpy")
    if spec is None:
        raise SystemExit("check_libraries.py: the bpy wheel is not installed")
    module = next(Path(spec.origin).parent.glob("__init__*.so"))
    linked = subprocess.run(["ldd", str(module)], capture_output=True, text=True, check=True).stdout
    missing = [line.split()[0] for line in linked.splitlines() if "not found" in line]
    try:
        ctypes.CDLL("libEGL.so.1")
    except OSError:
        missing.append("libEGL.so.1")
    return missing


if __name__ == "__main__" and sys.platform == "linux" and (missing := missing_libraries()):
    packages = " ".join(sorted({PACKAGES.get(name, name) for name in missing}))
    raise SystemExit(
        f"Blender's Python module needs system libraries that are not there: {', '.join(missing)}.\n"
        f"On Debian or Ubuntu: sudo apt-get install {packages} libgl1-mesa-dri"
    )
