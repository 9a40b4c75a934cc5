"""Fixtures for every test: where the real clips are, and small sequences made on the spot."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
exit_status = pytest.StashKey[int]()


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips beside the checkout; the test is skipped, saying so, when it is not there."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared is not there: no real clips to test on")
    return SHARED


@pytest.fixture(scope="session")
def network_files(tmp_path_factory) -> dict[str, str]:
    """Files of two small untrained networks, as the options of RigOptions that name them."""
    from .small_networks import small_networks  # loads torch

    return small_networks(tmp_path_factory.mktemp("networks"))


@pytest.fixture(scope="session")
def extension_zip(tmp_path_factory) -> Path:
    """The extension as `make zip` builds it, with Blender's own builder from the bpy wheel."""
    if importlib.util.find_spec("bpy") is None:
        pytest.skip("the bpy wheel, which holds the builder, is not installed")
    command = [sys.executable, str(ROOT / "tools" / "build_zip.py"), str(tmp_path_factory.mktemp("zip"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


# Tearing down Blender's module prints about memory, and waits for ever where torch is loaded and a glTF file was
# written (sprig_blender/cli.py leaves the same way). So a run that had Blender in its process ends here, with pytest's
# status.


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    session.config.stash[exit_status] = int(session.exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    if "bpy" in sys.modules:
        config.get_terminal_writer().flush()
        os._exit(config.stash[exit_status])
