"""Fixtures for every test: where the real clips are, and small sequences made on the spot."""

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real clips beside the checkout; the test is skipped, saying so, when it is not there."""
    if not (SHARED / "data").is_dir():
        pytest.skip("../shared is not there: no real clips to test on")
    return SHARED
