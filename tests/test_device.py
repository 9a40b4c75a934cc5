"""Loading torch. Which device is taken is tested with the pipeline."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_large_library_is_loaded_before_python_imports_torch():
    """With Python's lock given away, so that Blender's window goes on meanwhile."""
    code = """
import sys
from sprig.backend.device import load_torch

class Watch:
    def find_spec(name, path=None, target=None):
        if name == "torch":
            loaded.append("libtorch_cpu" in open("/proc/self/maps").read())

loaded = []
sys.meta_path.insert(0, Watch)
assert load_torch().ones(2).sum() == 2
assert loaded == [False, True], loaded  # when the library is looked for, and when Python imports
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
