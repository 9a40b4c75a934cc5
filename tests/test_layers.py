"""Who may import whom. The rules are checked twice: by reading the sources, and by importing with modules blocked.

* `backend/` and `training/` work where there is no Blender; `backend/` knows neither `sprig_blender/` nor `training/`.
* The add-on can be enabled where there is no torch.
* Inside Blender the package is called `bl_ext.<repository>.sprig`, so imports within it are relative.
"""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("backend", "sprig_blender", "training")
BLENDER = {"_bpy", "aud", "bl_math", "blf", "bmesh", "bpy", "bpy_extras", "freestyle", "gpu", "gpu_extras", "mathutils"}
MAY_EDIT_SYS_PATH = "sprig_blender/dependencies.py"  # the user's folder with torch, outside the extension


def sources() -> list[Path]:
    """Every Python file of the package, relative to the checkout."""
    files = [ROOT / "__init__.py", *(path for layer in LAYERS for path in sorted((ROOT / layer).rglob("*.py")))]
    return [path.relative_to(ROOT) for path in files]


def module_name(path: Path) -> str:
    """backend/formats/npz.py -> sprig.backend.formats.npz"""
    parts = path.with_suffix("").parts
    return ".".join(("sprig", *parts)).removesuffix(".__init__")


def modules(*layers: str) -> list[str]:
    """Names of all modules; presets are scripts, which Blender runs when one is chosen."""
    return [module_name(path) for path in sources() if path.parts[0] in layers and "presets" not in path.parts]


# ---- reading the sources


def imports(tree: ast.AST, path: Path) -> list[tuple[int, str, bool]]:
    """Line, dotted name and whether it is relative, of every import in a file, inside functions too."""
    package = ["sprig", *path.parent.parts]
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{stem}.{alias.name}", bool(node.level)) for alias in node.names]
    return found


def edits_of_sys_path(tree: ast.AST) -> list[int]:
    """Lines that assign to sys.path or call one of its methods."""
    lines = []
    for node in ast.walk(tree):
        targets = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            targets = [node.func.value]
        elif isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign):
            targets = [node.target]
        stems = [target.value if isinstance(target, ast.Subscript) else target for target in targets]
        lines += [node.lineno for stem in stems if ast.unparse(stem) == "sys.path"]
    return lines


def violations(source: str, path: Path) -> list[str]:
    """What a file does against the rules at the top, one line each."""
    tree = ast.parse(source)
    layer = path.parts[0]
    found = []
    for line, name, relative in imports(tree, path):
        top = name.split(".")[0]
        if not relative and top in ("sprig", *LAYERS):
            found.append(f"{path}:{line} imports {name} absolutely")
        if layer in ("backend", "training") and top in BLENDER:
            found.append(f"{path}:{line} imports {name}, which is there only in Blender")
        if layer == "backend" and name.startswith(("sprig.sprig_blender", "sprig.training")):
            found.append(f"{path}:{line} imports {name}, a layer above it")
    for node in ast.walk(tree):
        if isinstance(node, ast.Try) and any(isinstance(child, ast.Import | ast.ImportFrom) for child in node.body):
            caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
            if "ImportError" in caught or "ModuleNotFoundError" in caught:
                found.append(f"{path}:{node.lineno} tries an import and goes on without it")
    if path.as_posix() != MAY_EDIT_SYS_PATH:
        found += [f"{path}:{line} edits sys.path" for line in edits_of_sys_path(tree)]
    return found


def test_sources_keep_to_the_layers():
    files = sources()
    assert {path.parts[0] for path in files} == {"__init__.py", *LAYERS}
    assert [line for path in files for line in violations((ROOT / path).read_text(encoding="utf-8"), path)] == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("backend/a.py", "import sprig.backend.rig"),
        ("backend/a.py", "from backend.rig import Rig"),
        ("sprig_blender/a.py", "from sprig.backend.rig import Rig"),
        ("backend/formats/a.py", "def f():\n    import bpy"),
        ("training/a.py", "from mathutils import Matrix"),
        ("backend/formats/a.py", "from ...sprig_blender import cli"),
        ("backend/a.py", "from .. import training"),
        ("sprig_blender/a.py", "import sys\nsys.path.insert(0, 'x')"),
        ("sprig_blender/a.py", "import sys\nsys.path += ['x']"),
        ("sprig_blender/a.py", "import sys\nsys.path[:0] = ['x']"),
        ("sprig_blender/a.py", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
    ],
)
def test_violations_are_noticed(path, source):
    assert len(violations(source, Path(path))) == 1


# ---- importing with modules blocked

BLOCKED_IMPORTS = """
import importlib, sys
from importlib.abc import MetaPathFinder

class Blocked(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is blocked in this test", name=name)

blocked, wanted = sys.argv[1].split(","), sys.argv[2].split(",")
sys.meta_path.insert(0, Blocked())
for name in wanted:
    importlib.import_module(name)
print(*sorted({name.split(".")[0] for name in sys.modules}))
"""


def import_without(blocked, wanted) -> set[str]:
    """Import the wanted modules in a new process where the blocked ones are not there; returns what got imported."""
    command = [sys.executable, "-c", BLOCKED_IMPORTS, ",".join(blocked), ",".join(wanted)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_a_blocked_module_is_not_there():
    done = subprocess.run([sys.executable, "-c", BLOCKED_IMPORTS, "json", "json"], capture_output=True, check=False)
    assert b"json is blocked in this test" in done.stderr


def test_backend_and_training_need_no_blender():
    imported = import_without(BLENDER, modules("backend", "training"))
    assert "torch" in imported and not imported & BLENDER


def test_the_doors_import_nothing_heavy():
    doors = ["sprig", "sprig.backend", "sprig.sprig_blender", "sprig.sprig_blender.cli"]
    imported = import_without(BLENDER, doors)
    assert not imported & {"alembic3d", "scipy", "torch", "trimesh", *BLENDER}


def test_the_separate_process_needs_no_blender():
    imported = import_without(BLENDER, ["sprig.sprig_blender.backend_child"])
    assert "numpy" in imported and not imported & {"torch", *BLENDER}


def test_the_add_on_needs_no_torch_to_be_enabled():
    if importlib.util.find_spec("bpy") is None:
        pytest.skip("the bpy wheel is not installed")
    imported = import_without(["torch"], modules("sprig_blender"))
    assert "bpy" in imported
