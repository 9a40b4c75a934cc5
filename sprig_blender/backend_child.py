"""The process beside Blender in which the backend runs where PyTorch does not load in Blender itself.

call_backend.py starts it and is the only one that it talks to. The request and the result are .npz files in a folder
that belongs to Blender's side: arrays as they are, the rest as JSON, and of classes only the backend's own data, whose
constructors check them again. Pickle would be shorter, but these files lie in a temporary folder, and what is read from
there should not be able to name code. What happens meanwhile goes to standard output, one JSON object a line:

    {"progress": [0.25, "Solving"]}    {"done": true}    {"sentence": "…"}  a SprigError
    {"unloadable": "…"}  PyTorch cannot be imported here either    {"bug": "traceback"}

No bpy is imported here. Where Blender has gone, the next message cannot be delivered, and the process ends itself.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

from ..backend.device import load_torch
from ..backend.errors import SprigError
from ..backend.given_skeleton import GivenSkeleton
from ..backend.rig import Rig, Skeleton
from ..backend.sequence import ClipSpan, MeshSequence
from . import backend_work

REQUEST, RESULT = "request.npz", "result.npz"
CLASSES = {cls.__name__: cls for cls in (ClipSpan, GivenSkeleton, MeshSequence, Rig, Skeleton)}


# ---- files


def save(path: Path, value: Any) -> None:
    """Write numbers, texts, paths, arrays, the backend's data, and tuples, lists and dictionaries of all these."""
    arrays: list[np.ndarray] = []
    structure = json.dumps(_outline(value, arrays))
    np.savez(path, structure=np.array(structure), **{str(number): array for number, array in enumerate(arrays)})


def load(path: Path) -> Any:
    """Read what `save` has written; the same to the last bit."""
    with np.load(path, allow_pickle=False) as file:
        return _filled(json.loads(str(file["structure"])), file)


def _outline(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value in JSON's types, every other one as an object with one key that says what it is."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray):
        assert not value.dtype.hasobject, "an array of Python objects would be pickled"
        arrays.append(value)
        return {"array": str(len(arrays) - 1)}
    if isinstance(value, Path):
        return {"path": str(value)}
    if isinstance(value, tuple | list):
        return {type(value).__name__: [_outline(item, arrays) for item in value]}
    if isinstance(value, dict):
        assert all(isinstance(key, str) for key in value), value
        return {"dict": {key: _outline(item, arrays) for key, item in value.items()}}
    assert CLASSES.get(type(value).__name__) is type(value), type(value)
    fields = {field.name: _outline(getattr(value, field.name), arrays) for field in dataclasses.fields(value)}
    return {type(value).__name__: fields}


def _filled(outline: Any, arrays) -> Any:
    """The value that an outline stands for."""
    if not isinstance(outline, dict):
        return outline
    ((kind, content),) = outline.items()
    if kind == "array":
        return arrays[content]
    if kind == "path":
        return Path(content)
    if kind in ("tuple", "list"):
        items = [_filled(item, arrays) for item in content]
        return tuple(items) if kind == "tuple" else items
    fields = {name: _filled(item, arrays) for name, item in content.items()}
    return fields if kind == "dict" else CLASSES[kind](**fields)


# ---- the process


def main(folder: Path) -> None:
    """Do what the request in `folder` says, and end the process: without libraries' clean-up, which can hang."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is for Blender, which then ends this process
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints is no message
    sys.stdout = sys.stderr

    def say(**message: Any) -> None:
        try:
            print(json.dumps(message), file=channel, flush=True)
        except OSError:  # nobody listens: Blender has ended, and so nobody else clears up
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)

    try:
        load_torch()
    except (ImportError, OSError) as error:
        say(unloadable=str(error))
        os._exit(0)
    try:
        name, arguments = load(folder / REQUEST)
        function = getattr(backend_work, name)
        result = backend_work.call(function, arguments, lambda share, text: say(progress=[float(share), text]))
        save(folder / RESULT, result)
        say(done=True)
    except SprigError as error:
        say(sentence=str(error))
    except Exception as bug:  # Blender's side raises it again, as ErrorInChild
        say(bug="".join(traceback.format_exception(bug)))
    os._exit(0)
