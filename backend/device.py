"""Which device the work runs on."""

from __future__ import annotations

import ctypes
import os
import sys
import time
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from .errors import SprigError

DEVICES = ("auto", "cpu", "cuda", "mps")


# The work is long chains of short tensor operations. Threads that sleep between them gain nothing from a second core,
# threads that spin (GNU's default is 300,000 turns) starve on a busy machine: they spin about as long as waking takes.
WAITS = {
    "GOMP_SPINCOUNT": "2000",  # GNU OpenMP (Linux): turns
    "KMP_BLOCKTIME": "1",  # LLVM's and Intel's (macOS, Windows): milliseconds
}


def load_torch():
    """Import torch, the slow part of the first run, with the settings that it reads when it is loaded."""
    for name, value in WAITS.items():
        os.environ.setdefault(name, value)
    if "torch" not in sys.modules and os.name == "posix":
        _load_library()
    import torch

    return torch


def _load_library() -> None:
    """Have the system load torch's large library while other threads, Blender's window among them, go on.

    `import torch` would hold Python's lock for the fifth of a second that this takes (on Windows it does not). Where
    it fails, nothing is said: the import that follows says what is wrong.
    """
    found = find_spec("torch")
    if found is not None and found.origin is not None:
        for library in (Path(found.origin).parent / "lib").glob("libtorch_cpu.*"):
            ctypes.CDLL(None).dlopen(os.fsencode(library), os.RTLD_NOW)


def resolve_device(name: str, *, double_precision: bool = False) -> str:
    """The torch device for a user's choice; `double_precision` keeps float64 work off MPS, which has none.

    Raises SprigError for an unknown name or a device that this machine or this build of torch does not have.
    """
    torch = load_torch()
    if name not in DEVICES:
        raise SprigError(f"There is no device {name!r}; choose one of {', '.join(DEVICES)}.")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    elif not available[name]:
        raise SprigError(f"The device {name!r} is not available here; use --device cpu or --device auto.")
    return "cpu" if name == "mps" and double_precision else name


@cache
def half_pays() -> bool:
    """Whether this CPU multiplies matrices in bfloat16 much faster than in float32: some by five times, some not."""
    torch = load_torch()

    def seconds(dtype):
        a, b = torch.ones(1024, 256, dtype=dtype), torch.ones(256, 1024, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            a @ b
            times.append(time.perf_counter() - start)
        return min(times)

    return seconds(torch.bfloat16) < 0.7 * seconds(torch.float32)
