"""Loading torch. Which device is taken is tested with the pipeline."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_large_library_is_loaded_before_python_imports_torch():
    """With Python's lock given away, so that Blender's window goes on meanwhile."""
    code = (
        "import sys; from sprig.backend import device; device._load_library(); "
        "assert 'torch' not in sys.modules; assert 'libtorch_cpu' in open('/proc/self/maps').read(); "
        "assert device.load_torch().ones(2).sum() == 2"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
