"""Wheels with one small module each, for tests of installing."""

import hashlib
import zipfile

from sprig.sprig_blender.pinned_wheels import Wheel


def make_wheel(folder, project, version="1.0", source="answer = 42\n"):
    """Write a pure-Python wheel with one module, and return its row for the table of pins."""
    module = project.lower()
    info = f"{project}-{version}.dist-info"
    path = folder / f"{project}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(f"{module}.py", source)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", f"{module}.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return Wheel(project, version, module, 1.0, {"any": hashlib.sha256(path.read_bytes()).hexdigest()})
