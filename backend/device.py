"""Which device the work runs on."""

from __future__ import annotations

from .errors import SprigError

DEVICES = ("auto", "cpu", "cuda", "mps")


def resolve_device(name: str, *, double_precision: bool = False) -> str:
    """The torch device for a user's choice; `double_precision` keeps float64 work off MPS, which has none.

    Raises SprigError for an unknown name or a device that this machine or this build of torch does not have.
    """
    import torch

    if name not in DEVICES:
        raise SprigError(f"There is no device {name!r}; choose one of {', '.join(DEVICES)}.")
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(device for device in ("cuda", "mps", "cpu") if available[device])
    elif not available[name]:
        raise SprigError(f"The device {name!r} is not available here; use --device cpu or --device auto.")
    return "cpu" if name == "mps" and double_precision else name
